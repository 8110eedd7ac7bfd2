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
    KN_BATCH_ASIDE =
        5, /* it is in the store and cannot be read back: the farm goes on without it. Never stored */
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

/* Why nothing of a batch that has not ended is being rendered. */
enum kn_wait {
    KN_WAIT_NONE = 0,      /* something is, or is about to be */
    KN_WAIT_PAUSED = 1,    /* a person paused it */
    KN_WAIT_NO_WORKER = 2, /* no worker is there that has its model */
    KN_WAIT_SILENT = 3,    /* the workers that have it have not been heard of for seconds */
    KN_WAIT_DRAINING = 4,  /* they drain: they get no more work */
    KN_WAIT_HELD = 5,      /* they were drained for their faults */
    KN_WAIT_CLASS = 6,     /* they are of other backend classes than the batch is pinned to */
    KN_WAIT_PRIORITY = 7,  /* they render a batch of higher priority */
    KN_WAIT_TURN = 8,      /* they render a batch whose turn comes before */
    KN_WAIT_OTHER = 9,     /* what is left failed on them, and another worker is to try it */
    KN_WAIT_STORE = 10,    /* the store (Redis) does not answer */
    KN_WAIT_DISK = 11,     /* the disk of the farm's folder takes no pictures */
    KN_WAIT_FEATURE = 12,  /* the workers that have its model are older, and do not know what it asks for */
};

/* The work of a busy worker. */
enum kn_worker_phase {
    KN_PHASE_NONE = 0,      /* nothing, or it does not say */
    KN_PHASE_RENDERING = 1, /* denoises or decodes */
    KN_PHASE_LOADING = 2,   /* reads a model into memory */
};

/* Who a key is, and so what it may do (coordinator/roles.h). Redis has them by these numbers. */
enum kn_role {
    KN_ROLE_WORKER = 1, /* takes work, and commits its own */
    KN_ROLE_CLIENT = 2, /* submits; reads and cancels its own */
    KN_ROLE_ADMIN = 3,  /* everything */
    KN_ROLE_READ = 4,   /* reads everything */
};

/* NULL for a value that this program does not know: a peer that is newer may send one. */
const char *kn_batch_state_name(enum kn_batch_state s); /* "active", "paused", "done", "cancelled", "aside" */
const char *kn_worker_state_name(enum kn_worker_state s);   /* "idle", "busy", "draining", "lost" */
const char *kn_result_status_name(enum kn_result_status s); /* "done", "failed", "cancelled" */
const char *kn_wait_name(enum kn_wait w);                   /* "no_worker", "paused", … as --json has it */
const char *kn_worker_phase_name(enum kn_worker_phase p);   /* "rendering", "loading" */
const char *kn_role_name(enum kn_role r);                   /* "worker", "client", "admin", "read" */

#endif
