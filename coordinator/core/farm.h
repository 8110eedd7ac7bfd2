/* The farm as a pure state machine: batches, tasks, shards, workers, and who renders what next.
 *
 *     farm_step(farm, event, now, effects)      one event in, a list of effects out
 *
 * There is no socket, no clock, no randomness, no Redis and no image byte in here: time is an argument
 * (milliseconds of a monotonic clock that only grows), and everything that happens outside is an effect,
 * which the shell carries out; the outcome comes back as an event. The same events give the same effects, bit
 * for bit (tests/sim). Only libc and base are included. One thread.
 *
 * The life of a task:
 *
 *                grant             result              stored
 *     queued ───────────▶ granted ────────▶ committing ────────▶ done
 *       ▲                  │   │                │
 *       │ shard ended      │   │                │ store gives up
 *       ├──────────────────┘   │                │
 *       ├──────────────────────┼────────────────┘
 *       │                      │ too many charges      stored
 *       │ retry                └────────────────▶ failing ─────▶ failed, cancelled
 *       ├──────────────────────────────────────────────────────────┘
 *       │ object lost
 *       └───────────────────────────────────────────────────────── done
 *
 *  - A result is accepted from whoever brings it first, while the batch is live and the task is queued or
 *    granted: a late image is as good as any. A second result of the same backend class with other pixels is
 *    an alarm.
 *  - A shard that ends without a result queues its tasks again. Only tasks that were executing are charged,
 *    and a task with charges_max charges fails with its reason (blame.c), once the workers that charged it are
 *    known to be well (health.c).
 *  - Cancelling a batch turns queued and granted into cancelled. A task that is committing or failing waits
 *    for the store's answer, and is cancelled if the store was told of the cancelling first.
 *  - A done task whose object is lost or damaged is queued again, or cancelled where its batch is, once the
 *    store has voided its record (EV_OBJECTS_LOST). A done batch is active again then.
 *  - A retry queues what failed again, and of a cancelled batch also what was cancelled.
 *  - A retry that meets a task in failing has it queued as soon as the store has answered. If that answer is
 *    that an earlier result had been written after all, failing becomes done.
 *
 * Invariants (farm_check asserts them; tests call it after every step):
 *  - queued + granted + committing + failing + done + failed + cancelled = total, for every batch, and each
 *    count equals what a scan counts;
 *  - a task is done only after EV_STORED said so, and there is one FX_COMMIT or FX_FAIL at a time for a task;
 *  - no worker holds more shards than its credit; a granted task is in one or two live shards, a queued one
 *    in none;
 *  - no shard mixes groups or models; nothing is granted from a paused or cancelled batch;
 *  - memory: at most 32 bytes a task beside the tables of groups and shards. */
#ifndef KILN_COORDINATOR_CORE_FARM_H
#define KILN_COORDINATOR_CORE_FARM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/states.h"

struct farm;

struct farm_config {
    uint64_t term;       /* of this coordinator; stands in every grant */
    uint32_t silence_ms; /* a worker that was not heard of for so long is given up (10,000) */
    uint32_t ask_ms;     /* an older worker of a name has so long to answer: two heartbeats (2,000) */
    /* An executing shard without a sign of life for so long is taken away and charged (330,000). Sooner, down
       to 15 s, once its steps have told how long one takes. */
    uint32_t progress_ms;
    uint32_t shard_target_ms;   /* a shard should take so long on its worker (4,000) */
    uint32_t charges_max;       /* charges after which a task fails (3) */
    uint32_t worker_faults_max; /* faults in a row that others disprove, after which a worker is held (5) */
};
void farm_config_default(struct farm_config *c);

KN_MUST_USE int farm_create(const struct farm_config *c, struct farm **out);
void farm_destroy(struct farm *f);

/* ---- events */

enum farm_event_type {
    EV_TICK,           /* time passed; to be sent at least when farm_next_tick says */
    EV_BATCH_OPEN,     /* a batch is durable, or was read back after a restart: its tasks may be handed out */
    EV_BATCH_CANCEL,   /* a person's wish, as all of the next: nothing more of it is rendered */
    EV_BATCH_PAUSE,    /* nothing more of it is handed out */
    EV_BATCH_RESUME,   /* …it is again */
    EV_BATCH_RETRY,    /* failed tasks are queued again, uncharged; and those that were cancelled */
    EV_BATCH_PRIORITY, /* it gets another priority */
    EV_BATCH_REMOVE,   /* a batch that has ended leaves */
    EV_WORKER_HELLO,   /* a worker connected, and says what it can do and what it holds */
    EV_WORKER_HEARTBEAT, /* a worker is alive, and says what it executes */
    EV_WORKER_GONE,      /* a worker said bye, or its connection broke */
    EV_WORKER_DRAIN,     /* a person's wish: this worker finishes what it holds and gets nothing more */
    EV_SHARD_STARTED,    /* the worker began to execute it */
    EV_SHARD_RETURNED,   /* the worker hands it back; nobody is charged */
    EV_SHARD_DONE,       /* every image of it was sent or reported */
    EV_TASK_FAILED,      /* the worker could not render this task */
    EV_PROBED,           /* …or this probe picture, or could */
    EV_RESULT,           /* the bytes of an image are durable under their digest, but not yet committed */
    EV_STORED,           /* the store answers an FX_COMMIT, FX_FAIL or FX_BATCH_STATE */
    EV_RESULT_BAD, /* what a worker brought is not the picture that was asked for: that is the worker's fault */
    EV_OBJECTS_LOST, /* the records of these done tasks are void, durably: their objects are lost or damaged */
};

enum farm_task_state {
    TASK_QUEUED,     /* waits for a worker */
    TASK_GRANTED,    /* in one or two shards */
    TASK_COMMITTING, /* its result is on its way to the store */
    TASK_FAILING,    /* its failure is on its way to the store */
    TASK_DONE,       /* from here on it has ended */
    TASK_FAILED,
    TASK_CANCELLED
};

struct farm_group { /* what tasks must have in common to share a minibatch */
    kn_digest model;
    uint64_t needs; /* KN_FEATURE_…: a worker that lacks one of them is not given such tasks */
    uint32_t width, height, steps, sampler, schedule;
};
/* As a key: without the bytes that fill the struct up. */
#define FARM_GROUP_BYTES (offsetof(struct farm_group, schedule) + sizeof(uint32_t))

struct farm_done_task { /* a task that had ended, as read back from the store */
    uint32_t task;
    enum farm_task_state state; /* TASK_DONE, TASK_FAILED or TASK_CANCELLED */
    uint32_t backend;           /* TASK_DONE: farm_backend()'s number of its class */
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
    uint32_t
        shard_tasks_max; /* so many of its tasks, and no more, fit in a grant; 0: as many as a worker takes */
    bool paused, cancelled;
    bool done;                          /* its state is stored as done, and need not be written again */
    const struct farm_done_task *ended; /* ended before a restart, in the order to show them; copied */
    uint32_t ended_count;
    const struct farm_charge { uint32_t task, charges; } * charges; /* from before a restart; copied */
    uint32_t charge_count;
};

struct ev_batch { /* cancel, pause, resume, retry, priority, remove */
    kn_id id;
    int priority;
};

struct farm_held { /* a shard that a worker says it holds when it says hello */
    uint64_t shard, term;
    kn_id batch;
    const uint32_t *tasks; /* not yet acknowledged */
    uint32_t task_count;
    bool
        unproven; /* nothing shows that it was granted: it goes on if the core knows it, and is never adopted */
};

/* A hello of another process under the name of a worker that is connected takes nothing from it: the older
 * one is asked first (FX_ASK). If it answers within ask_ms, the newcomer is refused (FX_REFUSE), or given
 * another name where nobody chose this one. If its connection breaks, or no answer comes, the newcomer is
 * asked to say hello again (FX_HELLO_AGAIN) and takes its place. */
struct ev_worker_hello {
    const char *worker; /* the name that a person chose, or that the farm gave before; copied */
    const char *base;   /* nobody chose the name: what it is made of (the host's name); "" or NULL: chosen */
    bool named_by_farm; /* with base: an earlier FX_WELCOME gave `worker` */
    bool has_machine;   /* with base: */
    kn_id machine;      /* names the machine and the place on it, the same after a restart; clones share it */
    bool answers;       /* it answers FX_ASK; of others each heartbeat is an answer */
    kn_id instance;     /* of the process */
    const char *backend; /* class; copied */
    uint32_t credit, batch_max;
    uint64_t features;       /* KN_FEATURE_…: what it knows */
    bool died_of_memory;     /* a new instance: the kernel killed the old one for want of memory */
    bool probes;             /* it renders probe pictures (FX_PROBE) */
    const kn_digest *models; /* copied */
    uint32_t model_count;
    /* Shards that it kept over a lost connection: adopted whatever their term, if they are still of use. */
    const struct farm_held *held;
    uint32_t held_count;
};

struct ev_worker_heartbeat {
    uint64_t shard; /* 0: idle */
    uint32_t step, steps, progress_age_ms;
    uint32_t minibatch; /* images that the step is of; 0: one */
    bool draining;
    bool has_model;
    kn_digest model; /* loaded now */
    uint64_t answer; /* the question of the last FX_ASK that it received; 0: none */
};

struct ev_shard {
    uint64_t shard, term;
    bool out_of_memory; /* EV_SHARD_RETURNED: for want of memory */
    bool unsupported;   /* …or since it cannot read or do it: it is given no such shard again */
    uint32_t render_ms; /* EV_SHARD_DONE: how long it took, for the estimate of speed */
};

struct ev_task_failed {
    kn_id batch;
    uint32_t task;
    uint64_t shard, term;
    int code;
    const char *reason;
};

struct ev_probed {
    uint64_t probe; /* the number in FX_PROBE */
    int code;       /* 0: the picture is well */
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
    const char *worker, *engine; /* for the record; the worker may be unknown by now */
};

struct ev_result_bad {
    kn_id batch;
    uint32_t task;
    uint64_t shard, term;
    const char *worker, *reason;
};

struct ev_objects_lost {
    kn_id batch;
    const uint32_t *tasks; /* those that are not done are passed over */
    uint32_t count;
};

struct ev_stored {
    uint32_t what; /* the effect that is answered: FX_COMMIT, FX_FAIL or FX_BATCH_STATE */
    kn_id batch;
    uint32_t task;
    /* 0: durable. KN_EEXIST: it was committed already, which is as good. KN_EGONE: the batch is cancelled or
       removed. KN_ETERM: this coordinator has lost the lead. Others: not durable, the core asks again
       later. */
    int code;
};

struct farm_event {
    enum farm_event_type type;
    uint64_t conn; /* events of workers and EV_RESULT: the shell's number of the connection; 0: none */
    union {
        struct ev_batch_open batch_open;
        struct ev_batch batch;
        struct ev_worker_hello hello;
        struct ev_worker_heartbeat heartbeat;
        struct ev_shard shard;
        struct ev_task_failed task_failed;
        struct ev_probed probed;
        struct ev_result result;
        struct ev_result_bad result_bad;
        struct ev_stored stored;
        struct ev_objects_lost objects_lost;
        struct {
            const char *worker;
            bool exit;
        } drain;
        struct {
            const char *reason;
            /* It left on purpose, and had handed back what it could: only what it was executing all the same
               is charged (an engine that failed). Without `bye` its connection broke: it may come back within
               silence_ms with what it holds. */
            bool bye;
            bool revoked; /* with bye: it was thrown out, and is to blame for nothing */
        } gone;
    } u;
};

/* ---- effects: carried out in order */

enum farm_effect_type {
    FX_GRANT,  /* send this shard */
    FX_REVOKE, /* take it back */
    FX_COMMIT, /* make this result durable; answer with EV_STORED */
    FX_FAIL,   /* make this failure durable; answer with EV_STORED */
    FX_CHARGE, /* remember how an attempt ended, and how often its task was charged; no answer is needed */
    FX_BATCH_STATE,  /* make the batch's state durable; answer with EV_STORED */
    FX_BATCH_REMOVE, /* delete the batch from the store, and its objects that no other batch names */
    FX_ACK,     /* tell who brought a result what became of it; 0: it is kept, the bytes may be forgotten */
    FX_WELCOME, /* its hello is taken, under this name; grants come behind it */
    FX_REFUSE,  /* another worker has its name, and answered: it is not taken */
    FX_ASK,     /* another process wants this worker's name: let it show that it is there */
    FX_HELLO_AGAIN, /* this connection is not known (any more): let it say hello */
    FX_DRAIN,       /* tell a worker to finish what it holds; with `exit`, to end then */
    FX_PROBE,       /* let this worker render a probe picture; answered by EV_PROBED */
    FX_ALARM,       /* a promise is in doubt, the text says which: log, count and show it */
    FX_NOTE,        /* worth a line in the log */
};

struct farm_effect {
    enum farm_effect_type type;
    uint64_t conn; /* of grant, revoke, ack, welcome, refuse, ask, hello_again, drain, probe */
    kn_id batch;
    uint32_t task;
    union {
        struct {
            uint64_t shard;
            uint32_t attempt; /* the highest of its tasks; the first is 1 */
            kn_digest model;
            const uint32_t *tasks; /* lives in the effects list */
            uint32_t task_count;
        } grant;
        struct {
            uint64_t shard, term;
            bool abort;
        } revoke;
        struct { /* the result as it came; the strings live in the effects list */
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
            const char *worker;
            const char *backend; /* NULL: no attempt; what the worker charged is taken back */
            int code;
            bool charged; /* false: others of its shard, or its worker, may be to blame */
        } charge;
        struct { /* one at a time for a batch */
            enum kn_batch_state state;
            int priority;
            bool retried; /* all failures and charges recorded before are void */
        } batch_state;
        struct {
            int code;
        } ack;
        struct {
            const char *worker;
        } welcome, refuse; /* the name */
        struct {
            uint64_t question; /* to be repeated in a heartbeat */
        } ask;
        struct {
            bool exit;
            const char *reason;
        } drain;
        struct {
            uint64_t probe;
            kn_digest model;
        } probe;
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
 * of the core: KN_ENOENT (no such batch or worker), KN_EEXIST (EV_BATCH_OPEN of a known id), KN_EAGAIN
 * (EV_WORKER_HELLO: the older worker of that name is asked first; an effect follows later), KN_ESTATE
 * (removing a batch that still runs …), KN_EINVAL, KN_ELIMIT, KN_ENOMEM (nothing was changed). Events of
 * peers that do not fit (an unknown shard, a stale term, a task out of range) are no errors: they are
 * dropped, and an FX_NOTE says so. */
KN_MUST_USE int farm_step(struct farm *f, const struct farm_event *ev, uint64_t now_ms,
                          struct farm_effects *fx);

/* When the next EV_TICK is due, on the clock of now_ms. */
uint64_t farm_next_tick(const struct farm *f, uint64_t now_ms);

/* A small number for a backend class's name, the same for the same name as long as the farm lives. */
KN_MUST_USE int farm_backend(struct farm *f, const char *name, uint32_t *out);
const char *farm_backend_name(const struct farm *f, uint32_t backend);

/* ---- looking at it; nothing here changes anything */

struct farm_batch_view {
    kn_id id;
    enum kn_batch_state state;
    uint32_t total, done, failed, cancelled, queued;
    uint32_t running;        /* granted, committing or failing */
    uint32_t ended;          /* done + failed + cancelled: the length of the log of ends */
    float images_per_s;      /* over the last 15 s */
    float images_per_s_mean; /* since the first grant, pauses left out */
    int64_t eta_ms;          /* -1: unknown */
    float progress;          /* 0 to 1, with the steps of what runs */
    float steps_per_s;       /* of all its images, over the last 15 s */
    int priority;
    bool cancelled_by_person;
    /* Why nothing of it is rendered. The store and the disk are not the core's: it never says those. */
    enum kn_wait wait;
    uint32_t wait_workers;   /* how many have that */
    const char *wait_worker; /* one of them, or the one that was lost last; "" for none; borrowed */
    uint64_t wait_ms;        /* SILENT, NO_WORKER: when that one was heard of last, ago */
    kn_digest wait_model;    /* of the tasks that wait */
    const char *wait_class;  /* CLASS: what the batch is pinned to; borrowed */
    kn_id wait_batch;        /* PRIORITY, TURN: what they render */
    uint64_t wait_lacks;     /* FEATURE: what that worker does not know; 0: it refused such tasks */
    const char *wait_reason; /* HELD: of wait_worker; borrowed */
    bool held;               /* HELD, and none of them is likely to come back: not to be waited for */
};
KN_MUST_USE int farm_batch_view(const struct farm *f, const kn_id id, uint64_t now_ms,
                                struct farm_batch_view *out);
/* The store has every change of its state that a person asked for. Until then a crash may take it back. An unknown
 * batch is settled. */
bool farm_batch_settled(const struct farm *f, const kn_id id);
size_t farm_batch_count(const struct farm *f);
/* The i-th batch in the order they were opened. */
KN_MUST_USE int farm_batch_at(const struct farm *f, size_t i, uint64_t now_ms, struct farm_batch_view *out);
/* The log of ends: the numbers of tasks in the order in which they ended, from the from-th, at most max. A
 * retry, or a lost object, takes tasks out of the log and gives it another epoch: what was read in an earlier epoch is void. */
KN_MUST_USE int farm_batch_ended(const struct farm *f, const kn_id id, uint32_t from, uint32_t max,
                                 uint32_t *tasks, uint32_t *count, uint64_t *epoch);
KN_MUST_USE int farm_task_state(const struct farm *f, const kn_id id, uint32_t task,
                                enum farm_task_state *out);
struct farm_task_view {
    enum farm_task_state state;
    uint32_t attempts, charges; /* grants so far, and failures that counted */
    const char *worker;         /* that holds it; "" for none; borrowed */
    bool started;               /* …and has begun it */
    uint32_t step, steps, shard_tasks;
    bool suspect;             /* it failed, or shared a shard that did: it goes alone, or with few */
    uint32_t unfit;           /* queued: workers that have its model and cannot render it, */
    const char *unfit_worker; /* one of them, borrowed, */
    uint64_t unfit_lacks;     /* and what that one does not know; 0: it refused such tasks */
};
KN_MUST_USE int farm_task_view(const struct farm *f, const kn_id id, uint32_t task,
                               struct farm_task_view *out);
/* 0 if a result for this task is wanted at all, so that the shell can refuse the bytes early. KN_EEXIST: it
 * is done already. KN_EGONE: the task or its batch is over or unknown. */
KN_MUST_USE int farm_wants(const struct farm *f, const kn_id id, uint32_t task);
/* This worker holds this task by a grant that the core knows. */
bool farm_holds(const struct farm *f, const char *worker, uint64_t shard, uint64_t term, const kn_id batch,
                uint32_t task);
/* The size of the task's picture; 0 and 0: no such task. */
void farm_task_size(const struct farm *f, const kn_id id, uint32_t task, uint32_t *width, uint32_t *height);
/* Calls `each` for the objects of results that wait for the store to be asked again: they are about to be
 * named. */
void farm_each_waiting(const struct farm *f, void (*each)(void *ctx, const kn_digest sha256), void *ctx);

struct farm_worker_view {
    const char *worker, *backend; /* borrowed until the next step */
    uint64_t conn;                /* 0: lost */
    enum kn_worker_state state;
    bool drains;             /* it says so itself */
    const char *hold_reason; /* why it is held; "" when it is not; borrowed */
    bool has_batch, has_model;
    kn_id batch;
    kn_digest model;
    uint32_t step, steps, tasks, done, failed, shards;
    uint32_t last_seen_ms;
    float images_per_s, steps_per_s;
};
size_t farm_worker_count(const struct farm *f);
KN_MUST_USE int farm_worker_at(const struct farm *f, size_t i, uint64_t now_ms, struct farm_worker_view *out);
/* True for one that is not there any more, or was never. */
bool farm_worker_is_lost(const struct farm *f, const char *name);
float farm_images_per_s(const struct farm *f, uint64_t now_ms); /* the whole farm, last 15 s */

/* Asserts every invariant above. Looks at every task, so it is for tests. */
void farm_check(const struct farm *f);

#endif
