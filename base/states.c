/* Names of states. See states.h. */
#include "base/states.h"

#include <stddef.h>

const char *kn_batch_state_name(enum kn_batch_state s) {
    switch (s) {
    case KN_BATCH_ACTIVE:
        return "active";
    case KN_BATCH_PAUSED:
        return "paused";
    case KN_BATCH_DONE:
        return "done";
    case KN_BATCH_CANCELLED:
        return "cancelled";
    case KN_BATCH_ASIDE:
        return "aside";
    }
    return NULL;
}

const char *kn_worker_state_name(enum kn_worker_state s) {
    switch (s) {
    case KN_WORKER_IDLE:
        return "idle";
    case KN_WORKER_BUSY:
        return "busy";
    case KN_WORKER_DRAINING:
        return "draining";
    case KN_WORKER_LOST:
        return "lost";
    }
    return NULL;
}

const char *kn_result_status_name(enum kn_result_status s) {
    switch (s) {
    case KN_RESULT_DONE:
        return "done";
    case KN_RESULT_FAILED:
        return "failed";
    case KN_RESULT_CANCELLED:
        return "cancelled";
    }
    return NULL;
}

const char *kn_wait_name(enum kn_wait w) {
    switch (w) {
    case KN_WAIT_NONE:
        return "none";
    case KN_WAIT_PAUSED:
        return "paused";
    case KN_WAIT_NO_WORKER:
        return "no_worker";
    case KN_WAIT_SILENT:
        return "silent";
    case KN_WAIT_DRAINING:
        return "draining";
    case KN_WAIT_HELD:
        return "held";
    case KN_WAIT_CLASS:
        return "class";
    case KN_WAIT_PRIORITY:
        return "priority";
    case KN_WAIT_TURN:
        return "turn";
    case KN_WAIT_OTHER:
        return "other";
    case KN_WAIT_STORE:
        return "store";
    case KN_WAIT_DISK:
        return "disk";
    case KN_WAIT_FEATURE:
        return "feature";
    }
    return NULL;
}

const char *kn_worker_phase_name(enum kn_worker_phase p) {
    switch (p) {
    case KN_PHASE_NONE:
        return "none";
    case KN_PHASE_RENDERING:
        return "rendering";
    case KN_PHASE_LOADING:
        return "loading";
    }
    return NULL;
}

const char *kn_role_name(enum kn_role r) {
    switch (r) {
    case KN_ROLE_WORKER:
        return "worker";
    case KN_ROLE_CLIENT:
        return "client";
    case KN_ROLE_ADMIN:
        return "admin";
    case KN_ROLE_READ:
        return "read";
    }
    return NULL;
}
