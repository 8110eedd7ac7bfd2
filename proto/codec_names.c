/* Names of states and messages. See codec.h. */
#include "proto/codec.h"

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

const char *kn_msg_name(enum kn_msg_type type) {
    switch (type) {
    case KN_MSG_WORKER_HELLO:
        return "worker_hello";
    case KN_MSG_HEARTBEAT:
        return "heartbeat";
    case KN_MSG_SHARD_STARTED:
        return "shard_started";
    case KN_MSG_SHARD_RETURNED:
        return "shard_returned";
    case KN_MSG_SHARD_DONE:
        return "shard_done";
    case KN_MSG_TASK_FAILED:
        return "task_failed";
    case KN_MSG_WORKER_BYE:
        return "worker_bye";
    case KN_MSG_WELCOME:
        return "welcome";
    case KN_MSG_HELLO_AGAIN:
        return "hello_again";
    case KN_MSG_SHARD_GRANT:
        return "shard_grant";
    case KN_MSG_SHARD_REVOKE:
        return "shard_revoke";
    case KN_MSG_IMAGE_ACK:
        return "image_ack";
    case KN_MSG_DRAIN_WORKER:
        return "drain_worker";
    case KN_MSG_IMAGE_RESULT:
        return "image_result";
    case KN_MSG_CLIENT_HELLO:
        return "client_hello";
    case KN_MSG_SUBMIT_BEGIN:
        return "submit_begin";
    case KN_MSG_SUBMIT_CHUNK:
        return "submit_chunk";
    case KN_MSG_SUBMIT_SEAL:
        return "submit_seal";
    case KN_MSG_REPLY:
        return "reply";
    case KN_MSG_BATCH_QUERY:
        return "batch_query";
    case KN_MSG_BATCH_LIST:
        return "batch_list";
    case KN_MSG_WORKERS_QUERY:
        return "workers_query";
    case KN_MSG_WORKER_LIST:
        return "worker_list";
    case KN_MSG_MODELS_QUERY:
        return "models_query";
    case KN_MSG_MODEL_LIST:
        return "model_list";
    case KN_MSG_BATCH_COMMAND:
        return "batch_command";
    case KN_MSG_WORKER_COMMAND:
        return "worker_command";
    case KN_MSG_RESULTS_QUERY:
        return "results_query";
    case KN_MSG_RESULTS_REPLY:
        return "results_reply";
    case KN_MSG_TASKS_QUERY:
        return "tasks_query";
    case KN_MSG_TASKS_REPLY:
        return "tasks_reply";
    case KN_MSG_OBJECT_GET:
        return "object_get";
    case KN_MSG_OBJECT_REPLY:
        return "object_reply";
    }
    return "?";
}
