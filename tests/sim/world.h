/* A simulated farm around the real core: a virtual clock, a queue of events to come, workers that die, a
 * network that loses, a store that refuses, a person who changes their mind. All randomness comes from one
 * seed, so that a history can be played again, bit for bit. */
#ifndef KN_TESTS_SIM_WORLD_H
#define KN_TESTS_SIM_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/core/farm.h"

#define W_BATCHES 24
#define W_TASKS 400        /* in a batch, at most */
#define W_WORKERS 40       /* unless told otherwise */
#define W_HELD 24          /* shards that a worker has in hand, unacknowledged ones too */
#define W_UNACKNOWLEDGED 8 /* then it renders no more */
#define W_MODELS 3
#define W_CLASSES 2

#define W_ASSERT(cond, ...)                                                                                  \
    do {                                                                                                     \
        if (!(cond)) world_fail(__FILE__, __LINE__, #cond, __VA_ARGS__);                                     \
    } while (0)
_Noreturn void world_fail(const char *file, int line, const char *cond, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* ---- batches: each task has a nature that no retry changes */

enum nature {
    GOOD,           /* renders everywhere */
    KILLS,          /* kills the process that renders it */
    HANGS,          /* never ends */
    FAILS,          /* is reported as failed */
    NAN_EVERYWHERE, /* gives NaN */
    NAN_ON_CLASS_0, /* gives NaN on workers of class 0, a picture on others */
};

struct w_group {
    uint32_t model, size, steps;
};

struct w_batch {
    bool used, removed;
    int number;
    uint32_t tasks, group_count;
    struct w_group groups[4];
    uint16_t group[W_TASKS];
    enum nature nature[W_TASKS];
    uint8_t unlucky[W_TASKS]; /* how often a worker that had it in hand was lost for another reason */
    int pin;                  /* class, or -1 */
    /* in the store, durable */
    enum kn_batch_state state;
    int priority;
    uint8_t end[W_TASKS]; /* enum farm_task_state: TASK_QUEUED, or how it ended */
    int code[W_TASKS];    /* of failures */
    uint32_t backend[W_TASKS];
    uint64_t pixels[W_TASKS];
    uint32_t charges[W_TASKS];
    uint32_t log[W_TASKS], log_count;
    uint16_t commits[W_TASKS], voids[W_TASKS]; /* how often each happened to a task */
    bool wished;                               /* a person waits for the answer to a wish about it */
    /* what people and workers were told, in a hostile world */
    bool told;                    /* that it is accepted */
    bool too_large;               /* more than the core takes */
    uint32_t voiding;             /* voids in the store that the core has not heard of yet */
    uint16_t kept[W_TASKS];       /* that its picture is kept: its voids then, and 1; 0: nobody was told */
    enum kn_batch_state answered; /* that it is cancelled, or paused; else anything else */
};

/* ---- workers */

enum w_phase {
    PHASE_WAITS,   /* granted, behind others */
    PHASE_RUNS,    /* its images are being rendered */
    PHASE_THROUGH, /* rendered or given back; images may still have to be acknowledged */
};

enum w_image {
    IMAGE_MISSING, /* to be rendered */
    IMAGE_SENT,    /* not acknowledged yet: the worker keeps it */
    IMAGE_OVER,    /* acknowledged, failed, or not wanted any more */
};

struct w_shard {
    bool used;
    uint64_t id, term;
    int batch; /* index in world.batches */
    uint32_t tasks[KN_SHARD_TASKS_MAX], count;
    uint32_t at;                        /* the next task to be rendered */
    uint8_t images[KN_SHARD_TASKS_MAX]; /* enum w_image, by task */
    enum w_phase phase;
    uint64_t order, begun_ms;
};

enum defect { /* a worker's own, with every task and, unless it is sly, with its probe pictures too */
              SOUND,
              CRASHES,
              GIVES_NAN,
              NO_MODEL, /* the model's files are gone */
              ERRS,     /* reports each task as failed, after the time of an image */
              ERRS_AT_ONCE,
              FREEZES,        /* its engine hangs */
              BRINGS_NOTHING, /* says that its shards are done */
              DEFECTS
};

struct w_worker {
    bool used, alive;
    char name[KN_NAME_MAX + 1], base[16]; /* base: nobody chose the name; else "" */
    int machine;                          /* with base */
    bool named;                           /* with base: the farm gave the name */
    bool mute;                            /* of an older kind: it cannot be asked */
    uint64_t question;                    /* to be repeated in heartbeats */
    uint64_t taken;                       /* its hello was taken over this connection; 0: not */
    int instance;
    uint64_t conn;              /* 0: not connected */
    uint64_t out_last, in_last; /* when the last message each way arrives: a connection keeps the order */
    int backend;
    uint32_t us_per_image, credit, batch_max, memory; /* memory: images of 64x64 at a time */
    bool models[W_MODELS];
    bool whole; /* results come at the end of the shard, as on a GPU; else one by one */
    bool apart; /* its engine is in a process of its own: what ends that is named, and the rest goes on */
    uint64_t late_ms; /* …after so long, once */
    enum defect defect;
    bool sly;                   /* its probe pictures are well all the same */
    uint64_t sick_ms, sound_ms; /* from when to when (0: for ever) it has its defect */
    uint64_t probe;             /* number of the probe picture to render; 0: none */
    bool probing;
    bool draining, exits, hung;
    uint64_t progress_ms;
    struct w_shard held[W_HELD];
    uint64_t order;
    uint32_t serial;                 /* of the run that the next image belongs to */
    uint64_t deaf_until, dumb_until; /* a connection that is open at one end: nothing comes, nothing goes */
    uint32_t beat_ms;
};

struct w_object {    /* a picture's file, and what of it has reached the disk */
    uint64_t digest; /* 0: no such */
    bool named, synced, dir_synced, trashed, next_synced;
};

/* ---- events to come */

enum w_event_type {
    W_TO_FARM,   /* a message arrives at the coordinator */
    W_TO_WORKER, /* an effect arrives at a worker */
    W_IMAGE,     /* a worker is through with an image */
    W_PROBE,     /* …or with a probe picture */
    W_BEAT,
    W_CONNECT,
    W_START, /* a worker process begins */
    W_STORE, /* the store comes to the next write */
    W_TICK,
    W_CHAOS,
    /* in a hostile world */
    W_OBJECT, /* a picture comes to the next step to the disk */
    W_RETRY,  /* a person wants the failed tasks of a batch again */
    W_DOOM,   /* the coordinator dies, at a bad time */
    W_SYNC,   /* the store syncs, and answers */
    W_TRASH,  /* an object of a removed batch is looked at */
    W_OLD,    /* a coordinator that was deposed wakes */
};

struct w_event {
    uint64_t at, seq;
    enum w_event_type type;
    uint32_t worker;
    int instance;
    uint32_t serial;
    uint64_t conn, boot;
    struct farm_event ev;         /* W_TO_FARM; what it points to is in `block` */
    struct farm_effect fx;        /* W_TO_WORKER, W_STORE */
    void *block;                  /* owns */
    uint64_t power, term, digest; /* in a hostile world */
    int stage, code;
};

struct w_write {
    struct farm_effect fx; /* of a void only batch and task */
    bool voids;            /* the object of this task is lost: its record is void */
    uint64_t term;
};

struct world {
    uint64_t seed, rng, now, seq;
    bool chaos;  /* things go wrong; at the end they do not any more */
    bool lossy;  /* single messages are lost too, not only connections */
    bool broken; /* one worker has a defect */
    bool clinic; /* nothing goes wrong but with sick workers and guilty tasks: innocents never fail */
    uint64_t held_batches, grants;
    bool starved; /* memory runs out now and then */
    uint64_t memory_rng, refused;
    bool trace;
    struct farm *farm;
    struct farm_effects fx;
    uint64_t term, boot; /* boot: which life of the coordinator */
    uint64_t next_tick;
    struct w_event **heap; /* owns */
    size_t heap_count, heap_cap;
    struct w_batch batches[W_BATCHES];
    int batch_number;
    struct w_worker *workers; /* owns */
    uint32_t worker_max;
    uint64_t conn;
    struct w_write writes[65536]; /* a ring: writes on their way */
    uint32_t write_head, write_tail;
    bool write_busy;
    uint64_t store_down_until;
    /* a hostile world (world_hostile.c) */
    bool hostile;
    struct w_object objects[16384];
    struct w_batch synced[W_BATCHES]; /* what the store finds after the power failed */
    uint64_t power, rate, lead; /* power: which life of the machine; lead: the term that the store has */
    uint64_t sync_last;
    struct farm *old; /* owns; deposed, and not yet told */
    struct farm_effects old_fx;
    uint64_t old_term, old_rate, powers, takeovers;
    bool old_told;
    uint64_t hash; /* the history's digest: of every effect so far, in order, and of every step's result */
    uint64_t steps, commits, fails, alarms, restarts, deaths, copies, asked, refusals, voided, answers;
};

/* world.c: time, randomness, the coordinator's shell, the person */
uint64_t world_random(struct world *w);
uint32_t world_below(struct world *w, uint32_t n);
bool world_chance(struct world *w, uint32_t percent_of_100);
struct w_event *world_at(struct world *w, uint64_t at, enum w_event_type type);
int world_step(struct world *w, const struct farm_event *ev);
int world_find(const struct world *w, const kn_id id);
void world_id(const struct world *w, int batch, uint8_t *id, size_t size);
void world_run(struct world *w, uint64_t seed, uint64_t steps, uint32_t workers, bool trace);
/* A fleet in which some or all workers are sick, and batches in which some tasks are guilty. No innocent task may fail,
 * and everything ends, or is told to be held as long as nobody is well. */
void world_sick(struct world *w, uint64_t seed, bool trace);
/* A hostile world, for so many steps, and then until everything has ended. */
void world_hostile(struct world *w, uint64_t seed, uint64_t steps, bool trace);
void world_end(struct world *w);
void coordinator_crash(struct world *w);
void coordinator_gone(struct world *w);

/* world_hostile.c; rate: of a clock, in thousandths, 0: exact */
uint64_t world_clock(const struct world *w, uint64_t rate);
void hostile_result(struct world *w, const struct w_event *came);
void hostile_object(struct world *w, const struct w_event *came);
void hostile_removed(struct world *w, int batch, uint64_t term);
void hostile_trash(struct world *w, const struct w_event *e);
void hostile_sync(struct world *w, const struct w_event *e);
void hostile_judge(struct world *w);
void hostile_agree(struct world *w);
void hostile_write(struct world *w, const struct farm_effect *fx); /* is about to be written */
void hostile_kept(struct world *w, const struct farm_effect *e);
void hostile_old_answer(struct world *w, const struct farm_event *ev);
void hostile_old_forget(struct world *w);
void hostile_old(struct world *w, const struct w_event *e);
void hostile_misfortune(struct world *w);

/* world_memory.c: from now on allocations fail now and then; NULL: no more */
void memory_starve(struct world *w);

/* world_store.c */
void store_write(struct world *w, const struct farm_effect *fx);
void store_write_as(struct world *w, const struct farm_effect *fx, uint64_t term);
void store_answer(struct world *w, const struct farm_effect *fx, uint64_t term, int code);
void store_void(struct world *w, int batch, uint32_t task);
void store_next(struct world *w);
void store_crash(struct world *w);
void store_go_on(struct world *w); /* whose writes were asked for by a coordinator that is stopped */
void store_open(struct world *w, int batch); /* tells the coordinator of it */
void store_read_back(struct world *w);       /* …of all */
uint64_t store_pixels(const struct world *w, int batch, uint32_t task, uint32_t backend);

/* world_worker.c */
void worker_begin(struct world *w, uint32_t i);
void worker_die(struct world *w, uint32_t i, bool unlucky, bool comes_back);
void worker_cut(struct world *w, uint32_t i, bool tell);
void worker_connect(struct world *w, uint32_t i);
void worker_receive(struct world *w, uint32_t i, const struct farm_effect *fx);
void worker_image(struct world *w, uint32_t i);
void worker_probe(struct world *w, uint32_t i);
bool worker_sick(const struct world *w, const struct w_worker *v);
void worker_beat(struct world *w, uint32_t i);
void worker_stray(struct world *w, uint32_t i, int batch,
                  uint32_t task); /* brings what nobody asked it for */

#endif
