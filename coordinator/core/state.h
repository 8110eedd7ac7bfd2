/* The farm's data model: everything that the core knows, in one place. Private to coordinator/core.
 *
 * Read in this order: task, piece, group, lane, batch; shard; model, pool, worker; then the tables of struct
 * farm.
 *
 * The code is built in floors. A file calls functions of the files above it in this list, never of those
 * below it: the lowest floor comes first. tests/lint/core_floors.py reads the list and checks every call.
 *
 *   slab.c      elements addressed by number
 *   effects.c   the list of effects that a step fills
 *   state.c     the ground: room for what one event may need, names of backend classes
 *   trouble.c   suspicion: troubles of tasks, faults of workers
 *   pool.c      models, shapes, and which batches wait for which kind of worker
 *   worker.c    the table of workers
 *   name.c      the names of workers, and who has one when two want it
 *   speed.c     how fast workers are
 *   task.c      the states of tasks, and the queues that they wait in
 *   batch.c     the life of a batch: opening, its state in the store, its end, its share of time
 *   pending.c   results and failures on their way to the store
 *   health.c    the health of workers: who is well, who is held, and the probe pictures that tell
 *   blame.c     who is guilty when something fails: the task or the worker
 *   shard.c     shards: how they begin, lose tasks and end; a bad end is judged by blame.c
 *   commit.c    results, and answers of the store
 *   fleet.c     workers: hello, heartbeat, silence, leaving
 *   report.c    reports of workers about their shards
 *   control.c   a person's wishes about a batch
 *   sched.c     who gets what next
 *   tail.c      the end of the work: nothing is left to hand out, others still render
 *   views.c     looking at it
 *   check.c     asserting that all of it fits together
 *   farm.c      farm_step, and the clock
 *
 * Where a lower floor must cause something above it, it leaves a note in the state, and farm_step works it
 * off before it returns: a task that was queued (work_arrived, outranked) or credit that came free (woken)
 * brings sched.c to hand out work; a refused state (states_due), a refused commit (wait_head) and a suspect
 * that nobody may be left for (trouble_head) are looked after by the tick. A worker that was put on hold
 * (holds_fresh) is relieved of its shards by fleet.c.
 *
 * A task knows where it is through two numbers, `a` and `b`, so that a million of them stay small: links of a
 * queue, or slots of the shards that render it, or the slot of the commit that is under way. Everything with
 * a slot lives in a slab (slab.h). */
#ifndef KILN_COORDINATOR_CORE_STATE_H
#define KILN_COORDINATOR_CORE_STATE_H

#include <assert.h>
#include <string.h>

#include "base/map.h"
#include "coordinator/core/effects.h"
#include "coordinator/core/farm.h"
#include "coordinator/core/slab.h"

#define NONE UINT32_MAX
#define BACKENDS_MAX 250 /* classes of workers and results, in one coordinator's life; one byte in a task */
#define BACKEND_NONE UINT8_MAX
#define COPIES_MAX 2       /* shards that may hold a task at a time */
#define RIVALS_MAX 64      /* newcomers at a time whose names others have */
#define ACKS_MAX 4         /* connections that wait for one commit */
#define CHARGERS_MAX 8     /* workers whose charges a task remembers: more do not try it */
#define LOSSES_MAX 8       /* losses of a task after which a shard that never began counts as executing */
#define SPEEDS_MAX 64      /* shapes whose speed is remembered for a worker */
#define PENDING_MAX 65536  /* results and failures on their way to the store */
#define PENDING_PAUSE 8192 /* with so many on their way nothing more is handed out */

/* Times, in milliseconds unless their name says otherwise. */
#define RATE_WINDOW_S 15
#define AFFINITY_MS 10000      /* a batch waits no longer for workers that have another model loaded */
#define TAIL_EVERY_MS 100      /* how often the tail is looked at */
#define TAIL_MIN_MS 300        /* shards expected to end sooner are not rendered twice */
#define SENT_MS 30000          /* the images of an adopted shard must have come by then */
#define DELIVER_MS 5000        /* those of a shard that its worker said to be done: it has seen them arrive */
#define STEP_PATIENCE_MS 15000 /* the least that a shard may take for its next step, see shard.c */
#define REVOKE_MS 5000         /* a revoke has arrived by then */
#define UNHEARD_MAX 6 /* a worker that took so many grants of a shape without a word gets no more of it */
#define COOL_MS 300   /* pause after a worker handed something back of itself; doubles */
#define COOL_MS_MAX 10000
#define RETRY_MS 500 /* first pause before the store is asked again; doubles */
#define RETRY_MS_MAX 8000
#define STORE_TRIES_MAX 8 /* then a result is given up and its task queued again */
#define SILENT_MS 4000    /* a worker not heard of for so long is not believed to render; not given up yet */
#define LOST_KEEP_MS 3600000 /* a lost worker is shown so long */
#define HOLD_MS 2000         /* first pause before a held worker gets another probe; doubles */
#define HOLD_MS_MAX 600000
#define RIVAL_MS 10000 /* a newcomer that was told to say hello again has so long to do it */

/* ---- batches and their tasks */

struct task {           /* 28 bytes, and 4 in the log of ends: see farm.h */
    uint32_t pixels[2]; /* done: the first 8 bytes of the digest, to notice a duplicate that differs */
    /* queued: next and previous in its queue. granted: slots of its shards (b: of the second copy, or NONE).
       committing and failing: a is the slot in farm.pendings. */
    uint32_t a, b;
    uint32_t trouble; /* slot in farm.troubles, or NONE: it failed, or shared a shard that did */
    uint16_t group;   /* index in batch.groups */
    uint8_t state;    /* enum farm_task_state */
    uint8_t backend;  /* done: class of its result */
    uint8_t attempts; /* grants so far; stays at 255 */
    uint8_t charges;  /* failures that counted; stays at 255 */
    uint8_t losses;   /* grants that were lost uncharged (FATE_LOST); stays at 255 */
    bool lost;        /* within control_lost() only: it leaves its end */
};

struct trouble {              /* of a task under suspicion */
    uint32_t piece;           /* slot of the piece that it is queued in, or NONE */
    uint32_t fault;           /* slot of the fault that is to be explained, or NONE */
    uint32_t avoid;           /* uid of the worker that failed it last: others are tried first */
    struct charger {          /* the workers that charged it, each once */
        uint32_t worker;      /* its uid */
        uint32_t run, proved; /* its acquittals when it charged the task last: see struct worker */
        uint32_t done;        /* images of the batch by then */
        uint8_t charges;      /* how often it did */
        uint8_t nan;          /* its class, if it got NaN; else BACKEND_NONE */
        bool firm;            /* it was well until then: the charge stands if it never comes back */
    } by[CHARGERS_MAX];
    uint8_t by_count;
    bool deadly;         /* it is charged with a death or a hang: no more workers than needed try it */
    bool waits;          /* in the list of tasks that wait for their verdict, or may be left with nobody */
    int16_t code;        /* of the last charge */
    char *reason;        /* owns; of the last charge; may be NULL */
    uint32_t prev, next; /* in that list */
    struct batch *batch; /* NULL: this slot is free */
    uint32_t task;
};

/* Something that a worker did wrong. It is held against the worker if others do those very tasks without
 * fault. */
struct fault {
    uint32_t worker, run; /* uid of the worker, and its run of faults then */
    uint32_t left;        /* tasks whose outcome is not known */
    bool explained;       /* another worker failed one of them too: it was the task */
};

struct tasklist { /* doubly linked through task.a and task.b */
    uint32_t head, tail, count;
};

struct piece { /* suspects that travel together and with nobody else; a bad end halves them */
    struct tasklist list;
    uint32_t prev, next; /* in the group */
};

struct group {                       /* tasks of a batch that can share a minibatch */
    uint32_t shape;                  /* slot in farm.shapes */
    uint16_t lane;                   /* index in batch.lanes */
    bool listed;                     /* in the lane's list: something is queued */
    struct tasklist queue;           /* tasks that are no suspects */
    uint32_t piece_head, piece_tail; /* suspects; sched.c says when they go before the queue */
    uint32_t piece_tasks;            /* in all pieces */
    uint32_t prev, next;             /* in the lane's list of groups with queued tasks */
};

struct lane { /* the part of a batch that waits for one pool */
    struct batch *batch;
    struct pool *pool;
    bool ready;            /* in the pool's order */
    uint32_t queued;       /* tasks */
    uint64_t queued_units; /* their work, in steps x pixels */
    uint64_t open_units;   /* work of all tasks that have not ended */
    uint32_t head, tail;   /* groups with queued tasks */
};

struct rate {                           /* images in the last seconds */
    uint64_t second;                    /* of the newest bucket */
    uint32_t bucket[RATE_WINDOW_S + 1]; /* images of each second, a ring */
};

struct step_rate { /* denoising steps of images in the last seconds */
    struct rate rate;
    uint64_t since, last; /* of the first of them, which only starts the clock, and of the newest */
};

struct level { /* a priority in use, with the virtual time that its batches have reached */
    int priority;
    uint32_t batches; /* that have it */
    uint64_t vtime;   /* microseconds of work handed out; a batch that comes later begins there */
};

struct batch {
    kn_id id;
    uint64_t seq; /* in the order they were opened */
    uint32_t total;
    struct level *level; /* its priority */
    enum kn_batch_state state;
    bool cancelled_by_person;
    struct pin *pin;          /* class that must render it; NULL: any */
    uint32_t shard_tasks_max; /* so many of its tasks fit in a grant */
    struct task *tasks;       /* owns */
    struct group *groups;     /* owns */
    struct lane *lanes;       /* owns */
    uint32_t group_count, lane_count;
    uint32_t counts[TASK_CANCELLED + 1]; /* by state */
    uint32_t *log;                       /* owns; task numbers in the order of their ends */
    uint32_t log_count;
    uint64_t epoch;       /* of the log: another one after a retry or a restart */
    struct shard *shards; /* those with tasks of this batch, newest first */
    /* fair share: microseconds of work handed out */
    uint64_t vtime;
    uint64_t starved_since; /* last time that it was given anything, or got ready */
    /* the store */
    bool state_sent;      /* an FX_BATCH_STATE waits for its answer */
    bool state_dirty;     /* the state has changed since: another must follow */
    bool retried;         /* the next one must say that failures and charges are void */
    bool retried_sent;    /* the one that waits for its answer said so */
    uint32_t state_tries; /* refusals in a row */
    uint64_t state_due;   /* 0, or when it is to be asked again */
    /* for the views */
    struct rate rate;
    struct step_rate steps;
    uint64_t open_steps;              /* of all tasks that have not ended */
    uint64_t first_ms, ended_ms;      /* the first grant, the end; 0: not yet */
    uint64_t paused_ms, paused_since; /* all pauses so far; 0, or when the present one began */
    uint32_t done_here;               /* images since this coordinator began */
};

/* ---- shards */

enum shard_state {
    SHARD_WAITING, /* granted, not begun as far as we know */
    SHARD_STARTED, /* being rendered */
    SHARD_REVOKED, /* taken back: holds no task any more, but uses credit until the worker answers */
    SHARD_OWED, /* the worker says that it is through, and images are missing: uses credit until they are there */
    SHARD_SENT, /* adopted over the credit: uses none; its images are on their way */
};

struct shard {
    uint64_t id, term;   /* unique within a worker */
    struct batch *batch; /* NULL once it holds no task */
    struct worker *worker;
    uint32_t slot;  /* its own, in farm.shards */
    uint32_t group; /* index in batch.groups */
    uint32_t shape_uid;
    const struct model *model; /* only to be compared: it may be gone */
    uint64_t units;            /* work of one image */
    enum shard_state state;
    uint64_t began; /* in the order of all beginnings and faults; 0: not yet */
    /* A task of it ended its engine, and the others went on with a fresh one: then, in that order (0: never). Those behind
     * this place were begun after it. */
    uint64_t renewed;
    uint32_t renewed_at;
    uint32_t delivered;   /* images of it that came from its worker */
    bool suspect;         /* a piece: its tasks go back as one */
    bool copy;            /* the second of two that hold the same tasks */
    uint32_t *tasks;      /* owns; as granted. Those that it still holds are in TASK_GRANTED and point here */
    uint32_t count, left; /* granted; still held */
    uint64_t cost;        /* microseconds that it was expected to take */
    uint64_t granted_ms, started_ms, alive_ms; /* alive: the last sign of life */
    uint32_t step, steps;                      /* as the last heartbeat said */
    uint32_t minibatch,
        minibatch_step; /* images that it is at work on, and the step; 0 since a result came */
    uint64_t counted;   /* steps of its images that are in the rates of steps */
    struct shard *worker_prev, *worker_next; /* in the order of the grants */
    struct shard *batch_prev, *batch_next;   /* in batch.shards */
};

/* ---- workers, and what they can render */

struct model {
    kn_digest digest;
    uint32_t refs;      /* of pools and workers */
    struct pool *pools; /* of this model */
};

struct shape { /* one kind of minibatch, shared by all batches that want it */
    struct farm_group key;
    uint32_t slot, refs, uid; /* uid: never used twice */
    uint64_t units;           /* work of one image: steps x pixels */
};

/* The workers that can render a model, of one class or of any, and the batches that wait for them. */
struct pool {
    struct model *model;
    const struct pin *pin; /* class; NULL: any */
    struct pool *next;     /* of the same model */
    uint32_t refs;         /* lanes */
    struct lane **ready;   /* owns; best first */
    uint32_t ready_count, ready_cap;
    uint64_t ready_units; /* queued work of those lanes */
    uint32_t able, known; /* workers that may be given work; those of them whose speed is known */
    uint64_t speed;       /* the sum of the known speeds, units a second */
};

struct worker_model {
    struct model *model;
    uint64_t speed; /* units a second; 0: unknown */
};

struct worker_shape {
    uint32_t shape_uid;
    uint32_t us_per_image; /* 0: unknown */
    uint16_t limit;        /* after out of memory: images at a time; UINT16_MAX: none, 0: not even one */
    uint16_t last_count;   /* of the last shard that was measured */
    bool refused;          /* the worker cannot read or do such tasks: it gets none until its next hello */
    uint8_t unheard;       /* grants in a row that it took without a word */
    uint32_t used;         /* when it was measured, by shape_clock: the oldest is forgotten first */
};

struct worker {
    char name[KN_NAME_MAX + 1];
    char base[KN_NAME_MAX + 1]; /* nobody chose the name: it was made of this; else "" */
    bool has_machine, answers;  /* as in the hello */
    kn_id machine;
    uint64_t asked, answered;    /* the last question put to it; the last that it answered */
    uint32_t uid;                /* never used twice */
    kn_id instance;              /* of its process */
    uint64_t conn;               /* 0: not connected */
    bool lost;                   /* given up; kept to be shown, and for its faults */
    bool left;                   /* …and not to be expected back: it said bye */
    bool drain_wish;             /* a person wants it drained */
    bool drain_said;             /* its heartbeats say that it drains */
    bool can_probe;              /* it renders probe pictures */
    uint16_t backend;            /* class: index in farm.backends */
    uint32_t credit;             /* shards that it may hold */
    uint32_t batch_max;          /* images that it may be granted in a shard */
    uint64_t features;           /* what it knows */
    struct worker_model *models; /* owns */
    uint32_t model_count;
    bool counted;                       /* in its pools' sums */
    struct model *loaded;               /* one of models, as far as we know; or NULL */
    uint32_t last_shape;                /* uid of the shape granted last */
    struct shard *shards, *shards_last; /* in the order of the grants */
    uint32_t held;                      /* shards that use credit */
    uint32_t sent;                      /* shards in SHARD_SENT */
    uint64_t running;                   /* shard named by the last heartbeat */
    uint64_t beat_ms;                   /* when that heartbeat came */
    uint64_t seen_ms;                   /* when it was heard of last */
    uint64_t lost_ms;                   /* when it was given up */
    uint64_t idle_since;                /* heartbeats say so since then; 0: not */
    uint64_t unknown_since;             /* heartbeats name a shard that is not ours since then; 0: not */
    bool resync;                        /* it was asked to say again what it holds */
    struct worker_shape shapes[SPEEDS_MAX];
    uint32_t shape_count, shape_clock;
    bool woken; /* in the farm's list of those to be given work */
    struct worker *woken_next;
    uint64_t cool_until; /* it handed something back: nothing is given to it before */
    uint32_t returns;    /* shards it handed back since its last result */
    uint64_t ended_ms;   /* when it was through with a shard last */
    uint64_t moved_ms;   /* its last sign of progress */
    /* health */
    uint64_t fault;        /* its last bad end, in the order of shard.began; 0: acquitted since */
    uint32_t run;          /* acquittals, by a picture that it began after its last fault, or by a probe */
    uint32_t proved;       /* those by a picture */
    uint32_t faults;       /* bad ends since its last picture */
    uint32_t disproved;    /* those of them that others did without fault */
    uint32_t undelivered;  /* shards since its last picture that it said were done, and were not */
    uint64_t streak_batch; /* its faults in a row in one batch: the batch's seq, */
    uint32_t streak, streak_done; /* how many, and images of the batch when they began */
    uint64_t probe;               /* number of the probe picture that it renders now; 0: none */
    uint64_t probe_ms;            /* that was asked for, or the worker was busy with something else, last */
    kn_digest probe_model;
    bool on_hold;                  /* it is not believed to be well: nothing is granted to it */
    bool hold_fresh;               /* fleet.c has not taken its shards back yet */
    uint32_t hold_tries;           /* how often it was found wanting since its last picture */
    uint64_t hold_pause, hold_due; /* before it gets another probe, and when */
    char hold_reason[KN_REASON_MAX + 1];
    /* for the views */
    struct rate rate;
    struct step_rate steps_made;
    uint32_t done, failed; /* images committed; tasks that failed on it */
    uint32_t step, steps;  /* as the last heartbeat said */
};

/* ---- on the way to the store */

struct pending { /* a result or a failure that is not durable yet */
    bool fail;   /* a failure */
    bool flying; /* the store has been asked and has not answered */
    bool voided; /* a failure that a retry has overtaken */
    struct batch *batch;
    uint32_t task;
    uint32_t tries;      /* refusals */
    uint64_t due_ms;     /* not flying: when to ask again */
    uint32_t prev, next; /* in the list of those that wait */
    uint32_t attempt, render_ms, backend;
    int code;
    kn_digest sha256, pixels;
    bool flat;
    uint8_t ack_count;
    uint64_t acks[ACKS_MAX]; /* connections that wait for the answer */
    char worker[KN_NAME_MAX + 1], engine[KN_NAME_MAX + 1];
    char *reason; /* owns; failures */
};

/* A process that wants the name of a worker that is connected. Those that may have it were asked: one for a
 * chosen name; for a name that nobody chose, all of the same machine. */
struct rival {
    uint64_t conn;   /* 0: this place is free */
    uint32_t wanted; /* a chosen name: uid of the worker that has it; else 0, and: */
    char base[KN_NAME_MAX + 1];
    kn_id machine;
    uint64_t question;
    uint64_t since_ms; /* it waits since then; or, settled, is to say hello again since then */
    bool settled;
    bool others_live; /* settled: all of them answered, so that it gets another name */
};

struct backend {
    char *name; /* owns */
};

/* A class that batches are pinned to, which no worker need ever have had. Pins are not counted among the
 * classes: there is at most one for each batch, so that no number of them can keep a batch from being opened. */
struct pin {
    char *name;       /* owns */
    uint32_t refs;    /* batches */
    uint32_t backend; /* its number in farm.backends; BACKEND_NONE: that class was not seen yet */
};

struct farm {
    struct farm_config config;
    uint64_t now; /* of this step */
    bool deposed; /* another coordinator leads: nothing is granted or written any more */
    struct kn_map *batch_by_id;
    struct batch **batches; /* owns; in the order they were opened */
    size_t batch_count, batch_cap;
    uint64_t batch_seq;    /* of the batch opened last */
    uint32_t states_due;   /* batches whose state is to be asked for again */
    struct level **levels; /* owns */
    uint32_t level_count, level_cap;
    struct kn_map *worker_by_name, *worker_by_conn;
    struct worker **workers; /* owns; in the order they came */
    size_t worker_count, worker_cap;
    uint32_t worker_uid; /* the one given out last; shape_uid and shard_seq likewise */
    struct rival rivals[RIVALS_MAX];
    uint32_t rival_count;
    uint64_t question; /* the last that was asked */
    struct kn_map *model_by_digest, *shape_by_key;
    struct slab shapes, shards, pieces, troubles, faults, pendings;
    uint32_t shape_uid;
    uint64_t shard_seq, probe_seq;
    uint64_t turn;                       /* counts beginnings of shards and faults of workers */
    uint32_t holds_fresh;                /* workers with hold_fresh */
    uint32_t shard_count;                /* shards that hold tasks */
    uint32_t wait_head, wait_tail;       /* pendings to be asked again */
    uint32_t trouble_head, trouble_tail; /* tasks that may be left with nobody */
    struct backend backends[BACKENDS_MAX];
    uint32_t backend_count;
    struct kn_map *pin_by_name;
    struct rate rate;        /* of the whole farm */
    struct worker *woken;    /* workers that may have credit left since sched.c looked last */
    bool work_arrived;       /* something was queued: sched.c looks at every worker with credit left */
    bool outranked;          /* something was queued that may outrank what waits at workers */
    uint64_t tail_due;       /* when tail.c looks next */
    struct worker **order;   /* owns; room to sort all workers in */
    struct tail_shard *tail; /* owns; room to sort shards in */
    size_t tail_cap;
};

/* A class to be pinned to, made where no batch is yet. Each get takes a reference that a put gives back.
 * KN_EINVAL: it can be no class's name; KN_ENOMEM. */
KN_MUST_USE int farm_pin_get(struct farm *f, const char *name, struct pin **out);
void farm_pin_put(struct farm *f, struct pin *p); /* NULL is fine */

/* Makes room for what one event may need, so that nothing fails half way. KN_ENOMEM, KN_ELIMIT. */
KN_MUST_USE int farm_reserve(struct farm *f, struct farm_effects *fx, uint32_t effects, uint32_t suspects,
                             uint32_t pendings);

#endif
