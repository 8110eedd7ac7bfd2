/* Talking to a farm in a test: one line an event, with named arguments; then its effects are looked up by
 * type. After each event farm_check runs. Digests and ids are made of one number.
 *
 *     OPEN(&t, .id = 1, .tasks = 1);
 *     HELLO(&t, .name = "a", .conn = 7);
 *     struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
 *     RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0);
 *     CHECK_INT(talk_task(&t, 1, 0), TASK_DONE); */
#ifndef KN_TESTS_SIM_TALK_H
#define KN_TESTS_SIM_TALK_H

#include <string.h>

#include "coordinator/core/farm.h"
#include "tests/unit/check.h"

struct talk {
    struct farm *farm;
    struct farm_effects fx; /* of the last event, and of the store's answers to it */
    uint64_t now;
    bool store_silent; /* the test answers for the store, with STORED; else the store says yes at once */
    bool
        probes_silent; /* the test answers for probe pictures, with PROBED; else they come out well at once */
    int rc;            /* of the last event */
};

struct talk_batch { /* what is not named is 0: one group of model 1, 64x64, 20 steps */
    int id;
    uint32_t tasks;
    int priority;
    const char *pin;
    uint32_t group_count; /* groups differ in steps (20, 21, …); tasks take turns among them */
    int model;
    uint32_t size;
    const struct farm_done_task *ended;
    uint32_t ended_count;
    const struct farm_charge *charges;
    uint32_t charge_count;
    bool paused, cancelled;
    uint64_t needs; /* features of all groups */
    uint32_t shard_tasks_max;
};

struct talk_worker {
    const char *name;
    uint64_t conn;
    int instance;
    const char *backend; /* "cpu-a" */
    uint32_t credit;     /* 2 */
    uint32_t batch_max;  /* 8 */
    int models[4];       /* {1} */
    bool died_of_memory;
    const struct farm_held *held;
    uint32_t held_count;
    const char *base; /* nobody chose the name, and it is made of this */
    int machine;      /* with base; 0: none */
    bool named;       /* with base: the farm gave `name` before */
    bool mute;        /* of an older kind: it cannot be asked */
    uint64_t features;
    bool no_probes; /* of an older kind: it renders no probe pictures */
};

void talk_begin(struct talk *t);
void talk_begin_with(struct talk *t, const struct farm_config *c);
void talk_end(struct talk *t);
int talk_step(struct talk *t, struct farm_event ev);
void talk_wait(struct talk *t, uint64_t ms);   /* ticks as often as the farm asks for */
void talk_id(int n, uint8_t *id, size_t size); /* the id or digest that stands for n */
int talk_number(const kn_id id);               /* …and back */

/* Events, with named arguments: RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0). An argument that is
 * not named is 0, or as the struct says. */
struct talk_heartbeat {
    uint64_t conn;
    uint64_t shard;  /* 0: idle */
    uint32_t age_ms; /* since it last made progress */
    uint64_t answer; /* the question that it repeats; 0: none */
    uint32_t step, steps, minibatch;
};
struct talk_shard_event {
    uint64_t conn, shard;
    bool out_of_memory; /* RETURNED */
    bool unsupported;   /* RETURNED */
    uint32_t render_ms; /* DONE */
};
struct talk_failure {
    uint64_t conn;
    int batch;
    uint32_t task;
    uint64_t shard;
    int code;
};
struct talk_gone {
    uint64_t conn;
    bool bye; /* it said so; else its connection broke */
};
struct talk_wish {
    int id;
    int priority;
};
struct talk_result {
    uint64_t conn;
    const char *worker;
    const char *backend; /* "cpu-a" */
    int batch;
    uint32_t task;
    int pixels; /* what is in the picture; 0: the picture that every worker makes of this task */
};
struct talk_probed {
    uint64_t conn, probe;
    int code;
};
struct talk_stored {
    int batch;
    uint32_t task;
    int code;
};

#define OPEN(t, ...) talk_open(t, (struct talk_batch){__VA_ARGS__})
#define HELLO(t, ...) talk_hello(t, (struct talk_worker){__VA_ARGS__})
#define HEARTBEAT(t, ...) talk_heartbeat(t, (struct talk_heartbeat){__VA_ARGS__})
#define STARTED(t, ...) talk_shard_event(t, EV_SHARD_STARTED, (struct talk_shard_event){__VA_ARGS__})
#define RETURNED(t, ...) talk_shard_event(t, EV_SHARD_RETURNED, (struct talk_shard_event){__VA_ARGS__})
#define DONE(t, ...) talk_shard_event(t, EV_SHARD_DONE, (struct talk_shard_event){__VA_ARGS__})
#define FAILED(t, ...) talk_failed(t, (struct talk_failure){__VA_ARGS__})
#define PROBED(t, ...) talk_probed(t, (struct talk_probed){__VA_ARGS__})
#define GONE(t, ...) talk_gone(t, (struct talk_gone){__VA_ARGS__})
#define RESULT(t, ...) talk_result(t, (struct talk_result){__VA_ARGS__})
/* A person's wish: BATCH(&t, EV_BATCH_PRIORITY, .id = 1, .priority = 3). */
#define BATCH(t, type, ...) talk_wish(t, type, (struct talk_wish){__VA_ARGS__})
/* The store answers: STORED(&t, FX_COMMIT, .batch = 1, .task = 0, .code = KN_EIO). */
#define STORED(t, what, ...) talk_stored(t, what, (struct talk_stored){__VA_ARGS__})

/* These three return what farm_step returned; with the others the test fails where that is not 0. */
int talk_open(struct talk *t, struct talk_batch b);
int talk_hello(struct talk *t, struct talk_worker w);
int talk_wish(struct talk *t, enum farm_event_type type, struct talk_wish w);
void talk_heartbeat(struct talk *t, struct talk_heartbeat h);
void talk_shard_event(struct talk *t, enum farm_event_type type, struct talk_shard_event e);
void talk_failed(struct talk *t, struct talk_failure e);
void talk_probed(struct talk *t, struct talk_probed p);
void talk_gone(struct talk *t, struct talk_gone g);
void talk_result(struct talk *t, struct talk_result r);
void talk_stored(struct talk *t, enum farm_effect_type what, struct talk_stored s);

/* The n-th effect of a type among those of the last event, or NULL. */
const struct farm_effect *talk_fx(const struct talk *t, enum farm_effect_type type, uint32_t n);
uint32_t talk_count(const struct talk *t, enum farm_effect_type type);
/* The n-th grant to this connection. */
const struct farm_effect *talk_grant(const struct talk *t, uint64_t conn, uint32_t n);
/* The same, and the test fails where there is none. */
const struct farm_effect *talk_must(const struct talk *t, enum farm_effect_type type, uint32_t n);
const struct farm_effect *talk_must_grant(const struct talk *t, uint64_t conn, uint32_t n);
struct farm_worker_view talk_worker(const struct talk *t, const char *name);
struct farm_batch_view talk_view(const struct talk *t, int batch);
enum farm_task_state talk_task(const struct talk *t, int batch, uint32_t task);

/* A shard as granted, kept by a test. */
struct talk_shard {
    uint64_t id;
    uint32_t tasks[KN_SHARD_TASKS_MAX], count;
};
struct talk_shard talk_shard(const struct farm_effect *grant);
/* The way of a shard that goes well: started, all its results, done. */
struct talk_render { /* RENDER */
    uint64_t conn;
    const char *worker;
    const char *backend; /* "cpu-a" */
    int batch;
    struct talk_shard shard;
    uint32_t ms; /* an image; 10 */
};
#define RENDER(t, ...) talk_render(t, (struct talk_render){__VA_ARGS__})
void talk_render(struct talk *t, struct talk_render r);

#endif
