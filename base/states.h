/* The states that the whole farm speaks of: of a batch, a worker, a task's result.
 *
 * Their values travel on the wire (proto/PROTOCOL.md) and rest in Redis: never renumber. States that only
 * one part of the farm tells apart (a task that is granted but not yet done, say) are that part's own enum. */
#ifndef KN_BASE_STATES_H
#define KN_BASE_STATES_H

enum kn_batch_state {
    KN_BATCH_ACTIVE = 1,    /* its tasks are handed out */
    KN_BATCH_PAUSED = 2,    /* by a person: nothing of it is handed out; what runs is finished */
    KN_BATCH_DONE = 3,      /* every task has ended: done, failed or cancelled */
    KN_BATCH_CANCELLED = 4, /* by a person: what had not ended is cancelled */
};

enum kn_worker_state {
    KN_WORKER_IDLE = 1,     /* connected, without a shard */
    KN_WORKER_BUSY = 2,     /* connected, with at least one shard */
    KN_WORKER_DRAINING = 3, /* connected, finishes what it holds and gets nothing new */
    KN_WORKER_LOST = 4,     /* not connected any more */
};

enum kn_result_status {
    KN_RESULT_DONE = 1,      /* the picture is committed */
    KN_RESULT_FAILED = 2,    /* for good, with a reason */
    KN_RESULT_CANCELLED = 3, /* with its batch */
};

const char *kn_batch_state_name(enum kn_batch_state s);     /* "active", "paused", "done", "cancelled" */
const char *kn_worker_state_name(enum kn_worker_state s);   /* "idle", "busy", "draining", "lost" */
const char *kn_result_status_name(enum kn_result_status s); /* "done", "failed", "cancelled" */

#endif
