/* Names of states. See states.h. */
#include "base/states.h"

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
    }
    return "?";
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
    return "?";
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
    return "?";
}
