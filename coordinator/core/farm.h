/* The farm as a pure state machine: batches, tasks, shards, leases, workers, and who renders what next.
 *
 *     farm_step(farm, event, now, effects)      one event in, a list of effects out
 *
 * No socket, no clock, no randomness, no Redis and no image bytes here: time is an argument (milliseconds of
 * a monotonic clock that only grows), and all that happens outside is an effect that the shell carries out,
 * feeding what came of it back as an event. The same events give the same effects, bit for bit (tests/sim).
 * Includes libc and base only.
 *
 * The life of a task:            queued → leased → committing → done
 *                                   ↑________|          |→ queued (store refused)        queued|leased →
 * failed | cancelled A result is accepted from whoever brings it first, leased or not, as long as its batch
 * is live and the task has not ended: a late image is as good as any. A second result of the same backend
 * class with other pixels is an alarm. A lease that ends without result re-queues its tasks; only tasks that
 * were executing are charged, and a task with `charges_max` charges is failed with its reason.
 *
 * Invariants (farm_check asserts them; tests call it after every step):
 *  - queued + leased + committing + done + failed + cancelled = total, for every batch, and each count equals
 * what a scan counts;
 *  - a task is done only after EV_STORED said so; one FX_COMMIT at a time for a task;
 *  - no worker holds more shards than its credit; a leased task is in at least one live shard, a queued one
 * in none;
 *  - no shard mixes groups or models; nothing is granted from a paused or cancelled batch;
 *  - memory: at most 32 bytes a task beside the groups' and shards' tables. */
#ifndef KILN_COORDINATOR_CORE_FARM_H
#define KILN_COORDINATOR_CORE_FARM_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/states.h"

struct farm;

struct farm_config {
    uint64_t term;        /* this coordinator's; stands in every grant */
    uint32_t silence_ms;  /* a worker not heard of for so long is given up (10,000) */
    uint32_t progress_ms; /* an executing shard without a sign of life for so long is taken away and charged
                             (330,000); sooner, down to 15 s, once its steps have told how long one takes */
    uint32_t shard_target_ms;   /* a shard should take so long on its worker (4,000) */
    uint32_t charges_max;       /* charged failures that quarantine a task (3) */
    uint32_t worker_faults_max; /* consecutive faults after which a worker is drained if others can do the
                                   work (5) */
};
void farm_config_default(struct farm_config *c);

KN_MUST_USE int farm_create(const struct farm_config *c, struct farm **out);
void farm_destroy(struct farm *f);

/* ---- events */

enum farm_event_type {
    EV_TICK,       /* time passed; call at least every farm_next_tick() */
    EV_BATCH_OPEN, /* a batch is durable (or was read back after a restart): tasks may be handed out */
    EV_BATCH_CANCEL,
    EV_BATCH_PAUSE,
    EV_BATCH_RESUME,
    EV_BATCH_RETRY, /* failed tasks are queued again, uncharged */
    EV_BATCH_PRIORITY,
    EV_BATCH_REMOVE, /* a finished batch leaves */
    EV_WORKER_HELLO,
    EV_WORKER_HEARTBEAT,
    EV_WORKER_GONE,  /* said bye, or its connection cannot be reached */
    EV_WORKER_DRAIN, /* a person's wish */
    EV_SHARD_STARTED,
    EV_SHARD_RETURNED, /* handed back, uncharged */
    EV_SHARD_DONE,     /* every image was sent or reported */
    EV_TASK_FAILED,    /* the worker says so */
    EV_RESULT,         /* image bytes are durable under their digest; not yet committed */
    EV_STORED,         /* the store answered an FX_COMMIT, FX_FAIL or FX_BATCH_STATE */
};

enum farm_task_state {
    TASK_QUEUED,
    TASK_GRANTED,
    TASK_COMMITTING,
    TASK_FAILING,
    TASK_DONE,
    TASK_FAILED,
    TASK_CANCELLED
};

struct farm_group { /* what can share a GPU batch */
    kn_digest model;
    uint32_t width, height, steps, sampler, schedule;
};

struct farm_done_task { /* read back from the store */
    uint32_t task;
    enum farm_task_state state; /* TASK_DONE, TASK_FAILED or TASK_CANCELLED */
    uint32_t backend;           /* of TASK_DONE: index by farm_backend() of its class */
    kn_digest pixels;
};

struct ev_batch_open {
    kn_id id;
    uint32_t tasks;
    int priority;
    const char *pin_backend;         /* "" for any */
    const struct farm_group *groups; /* copied */
    uint32_t group_count;
    const uint16_t *task_group; /* copied; one a task */
    bool paused, cancelled;
    bool done;                          /* that is how its state is stored: it need not be written again */
    const struct farm_done_task *ended; /* what had ended before a restart, in the order to show it; copied */
    uint32_t ended_count;
    const struct farm_charge { uint32_t task, charges; } * charges; /* before a restart; copied */
    uint32_t charge_count;
};

struct ev_batch { /* cancel, pause, resume, retry, priority, remove */
    kn_id id;
    int priority;
};

struct farm_held { /* what a worker says it holds when it says hello */
    uint64_t shard, term;
    kn_id batch;
    const uint32_t *tasks; /* not yet acknowledged */
    uint32_t task_count;
};

struct ev_worker_hello {
    const char *worker; /* identity; copied */
    kn_id
        instance; /* another instance of the same worker: the old one is dead, what it executed is charged */
    const char *backend; /* class; copied */
    uint32_t credit, batch_max;
    const kn_digest *models; /* copied */
    uint32_t model_count;
    const struct farm_held *held; /* shards it kept over a lost connection: adopted, if of this batch and
                                     still useful, whatever the term */
    uint32_t held_count;
};

struct ev_worker_heartbeat {
    uint64_t shard; /* 0: idle */
    uint32_t step, steps, progress_age_ms;
    bool draining;
    bool has_model;
    kn_digest model; /* loaded now */
};

struct ev_shard {
    uint64_t shard, term;
    bool out_of_memory;         /* returned */
    uint32_t render_ms, images; /* done: feeds the speed estimate */
};

struct ev_task_failed {
    kn_id batch;
    uint32_t task;
    uint64_t shard, term;
    int code;
    const char *reason;
};

struct ev_result {
    kn_id batch;
    uint32_t task;
    uint32_t attempt;
    uint32_t backend; /* farm_backend() */
    kn_digest sha256, pixels;
    uint32_t render_ms;
    bool flat;
    const char *worker, *engine; /* for the record; who brought it may be unknown by now */
};

struct ev_stored {
    uint32_t what; /* FX_COMMIT, FX_FAIL or FX_BATCH_STATE: which effect is answered */
    kn_id batch;
    uint32_t task;
    int code; /* 0; KN_EEXIST: it was committed already (as good); KN_EGONE: batch cancelled or removed;
                 KN_ETERM: this coordinator has lost the lead; others: not durable, the core asks again later
               */
};

struct farm_event {
    enum farm_event_type type;
    uint64_t conn; /* worker events and EV_RESULT: the shell's number of the connection, 0: none */
    union {
        struct ev_batch_open batch_open;
        struct ev_batch batch;
        struct ev_worker_hello hello;
        struct ev_worker_heartbeat heartbeat;
        struct ev_shard shard;
        struct ev_task_failed task_failed;
        struct ev_result result;
        struct ev_stored stored;
        struct {
            const char *worker;
            bool exit;
        } drain;
        struct {
            const char *reason;
            bool bye; /* it left on purpose, and handed back before what it could: only what it was executing
                         all the same is charged (an engine that failed). Else its connection broke: it may
                         come back within silence_ms with what it holds */
        } gone;
    } u;
};

/* ---- effects: carried out in order */

enum farm_effect_type {
    FX_GRANT,       /* send this shard */
    FX_REVOKE,      /* take it back */
    FX_COMMIT,      /* make this result durable; answer with EV_STORED */
    FX_FAIL,        /* make this failure durable; answer with EV_STORED */
    FX_CHARGE,      /* remember that this task was charged (no answer needed) */
    FX_BATCH_STATE, /* make the batch's state durable (paused, resumed, cancelled, retried, done); answer with
                       EV_STORED */
    FX_BATCH_REMOVE, /* delete the batch from the store and its objects nobody else names */
    FX_ACK, /* tell the worker what became of a result; code 0: committed or known, it may forget the bytes */
    FX_HELLO_AGAIN, /* this connection is not known (any more) */
    FX_DRAIN,       /* tell a worker to drain; exit as it says */
    FX_ALARM,       /* a promise is in doubt; text says which. Log, count, show */
    FX_NOTE,        /* worth a log line: text */
};

struct farm_effect {
    enum farm_effect_type type;
    uint64_t conn; /* grant, revoke, ack, hello_again, drain */
    kn_id batch;
    uint32_t task;
    union {
        struct {
            uint64_t shard;
            uint32_t attempt; /* highest of its tasks, from 1 */
            kn_digest model;
            const uint32_t *tasks; /* lives in the effects list */
            uint32_t task_count;
        } grant;
        struct {
            uint64_t shard, term;
            bool abort;
        } revoke;
        struct { /* the result as it came; strings are copies inside the effects list */
            uint32_t attempt, render_ms, backend;
            kn_digest sha256, pixels;
            bool flat;
            const char *worker, *engine;
        } commit;
        struct {
            int code;
            uint32_t attempt;
            const char *reason, *worker;
        } fail;
        struct {
            uint32_t charges;
            const char *reason;
        } charge;
        struct { /* one at a time for a batch */
            enum kn_batch_state state;
            int priority;
            bool retried; /* what was recorded as failed or charged before is void */
        } batch_state;
        struct {
            int code;
        } ack;
        struct {
            bool exit;
            const char *reason;
        } drain;
        struct {
            const char *text;
        } note;
    } u;
};

struct farm_effects { /* grown by farm_step, emptied by farm_effects_clear; zero-initialised by the caller */
    struct farm_effect *v;
    size_t count, cap;
    struct farm_strings *strings; /* private */
};
void farm_effects_clear(struct farm_effects *fx);
void farm_effects_fini(struct farm_effects *fx);

/* Takes one event. now_ms must not be less than at the last call. Returns 0, or for events that ask something
 * of the core: KN_ENOENT (no such batch or worker), KN_EEXIST (EV_BATCH_OPEN of a known id), KN_ESTATE
 * (removing a batch that still runs …), KN_ELIMIT, KN_ENOMEM (nothing was changed). Events of peers that do
 * not fit (unknown shard, stale term, task out of range) are not errors: they are dropped, and a NOTE says
 * so. */
KN_MUST_USE int farm_step(struct farm *f, const struct farm_event *ev, uint64_t now_ms,
                          struct farm_effects *fx);

/* When the next EV_TICK is due (absolute). */
uint64_t farm_next_tick(const struct farm *f, uint64_t now_ms);

/* A small number for a backend class's name, the same for the same name as long as the farm lives. */
KN_MUST_USE int farm_backend(struct farm *f, const char *name, uint32_t *out);
const char *farm_backend_name(const struct farm *f, uint32_t backend);

/* ---- looking at it; nothing here changes anything */

struct farm_batch_view {
    kn_id id;
    enum kn_batch_state state;
    uint32_t total, done, failed, cancelled, queued, running; /* running: leased, committing, failing */
    uint32_t ended;          /* done + failed + cancelled: the length of the log of ends */
    float images_per_s;      /* over the last 15 s */
    float images_per_s_mean; /* since the first grant, pauses left out */
    int64_t eta_ms;          /* -1: unknown */
    int priority;
    bool cancelled_by_person;
};
KN_MUST_USE int farm_batch_view(const struct farm *f, const kn_id id, uint64_t now_ms,
                                struct farm_batch_view *out);
size_t farm_batch_count(const struct farm *f);
/* The i-th batch in the order they were opened. */
KN_MUST_USE int farm_batch_at(const struct farm *f, size_t i, uint64_t now_ms, struct farm_batch_view *out);
/* The log of ends: task numbers in the order in which they ended; a retry begins a new epoch (see epoch). */
KN_MUST_USE int farm_batch_ended(const struct farm *f, const kn_id id, uint32_t from, uint32_t max,
                                 uint32_t *tasks, uint32_t *count, uint64_t *epoch);
KN_MUST_USE int farm_task_state(const struct farm *f, const kn_id id, uint32_t task,
                                enum farm_task_state *out);
/* Whether a result for this task is wanted at all: lets the shell refuse bytes early. KN_EEXIST: done
 * already. KN_EGONE: batch over or unknown. */
KN_MUST_USE int farm_wants(const struct farm *f, const kn_id id, uint32_t task);

struct farm_worker_view {
    const char *worker, *backend; /* borrowed until the next step */
    uint64_t conn;                /* 0: lost */
    enum kn_worker_state state;
    bool has_batch, has_model;
    kn_id batch;
    kn_digest model;
    uint32_t step, steps, tasks, done, failed, shards;
    uint32_t last_seen_ms;
    float images_per_s;
};
size_t farm_worker_count(const struct farm *f);
KN_MUST_USE int farm_worker_at(const struct farm *f, size_t i, uint64_t now_ms, struct farm_worker_view *out);
float farm_images_per_s(const struct farm *f, uint64_t now_ms); /* the whole farm, last 15 s */

/* Asserts every invariant above; O(all tasks). Tests and --paranoid only. */
void farm_check(const struct farm *f);

#endif
