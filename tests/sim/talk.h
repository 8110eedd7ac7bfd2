/* Talking to a farm in a test: one line an event, the effects looked up by type. After each event farm_check
 * runs. Digests and ids are made of one number. */
#ifndef KN_TESTS_SIM_TALK_H
#define KN_TESTS_SIM_TALK_H

#include <string.h>

#include "coordinator/core/farm.h"
#include "tests/unit/check.h"

struct talk {
    struct farm *farm;
    struct farm_effects fx; /* of the last event */
    uint64_t now;
    bool store_silent; /* the test answers for the store itself; else it says yes at once */
    int rc;            /* of the last event */
};

struct talk_batch { /* what is not set is 0: one group of model 1, 64x64, 20 steps */
    int id;
    uint32_t tasks;
    int priority;
    const char *pin;
    uint32_t group_count; /* groups differ in steps: 20, 21, … ; tasks take turns */
    int model;
    uint32_t size;
    const struct farm_done_task *ended;
    uint32_t ended_count;
    const struct farm_charge *charges;
    uint32_t charge_count;
    bool paused, cancelled;
};

struct talk_worker {
    const char *name;
    uint64_t conn;
    int instance;
    const char *backend; /* "cpu-a" */
    uint32_t credit;     /* 2 */
    uint32_t batch_max;  /* 8 */
    int models[4];       /* {1} */
    const struct farm_held *held;
    uint32_t held_count;
};

void talk_begin(struct talk *t);
void talk_begin_with(struct talk *t, const struct farm_config *c);
void talk_end(struct talk *t);
int talk_step(struct talk *t, struct farm_event ev);
void talk_wait(struct talk *t, uint64_t ms); /* ticks as often as the farm asks for */
void talk_id(int n, uint8_t *id, size_t size);

#define OPEN(t, ...) talk_open(t, (struct talk_batch){__VA_ARGS__})
#define HELLO(t, ...) talk_hello(t, (struct talk_worker){__VA_ARGS__})
int talk_open(struct talk *t, struct talk_batch b);
int talk_hello(struct talk *t, struct talk_worker w);
int talk_batch_event(struct talk *t, enum farm_event_type type, int batch, int priority);
void talk_heartbeat(struct talk *t, uint64_t conn, uint64_t shard, uint32_t age_ms);
void talk_started(struct talk *t, uint64_t conn, uint64_t shard);
void talk_returned(struct talk *t, uint64_t conn, uint64_t shard, bool oom);
void talk_done(struct talk *t, uint64_t conn, uint64_t shard, uint32_t ms, uint32_t images);
void talk_failed(struct talk *t, uint64_t conn, int batch, uint32_t task, uint64_t shard, int code);
void talk_gone(struct talk *t, uint64_t conn, bool bye);
/* pixels: what is in the picture; a picture is a function of its task, so pass the task unless it is wrong.
 */
void talk_result(struct talk *t, uint64_t conn, const char *worker, const char *backend, int batch,
                 uint32_t task, int pixels);
void talk_stored(struct talk *t, enum farm_effect_type what, int batch, uint32_t task, int code);

/* The n-th effect of a type among those of the last event, or NULL. */
const struct farm_effect *talk_fx(const struct talk *t, enum farm_effect_type type, uint32_t n);
uint32_t talk_count(const struct talk *t, enum farm_effect_type type);
/* The n-th grant to this connection. */
const struct farm_effect *talk_grant(const struct talk *t, uint64_t conn, uint32_t n);
/* The same, and the test fails where there is none. */
const struct farm_effect *talk_must(const struct talk *t, enum farm_effect_type type, uint32_t n);
const struct farm_effect *talk_must_grant(const struct talk *t, uint64_t conn, uint32_t n);
struct farm_batch_view talk_view(const struct talk *t, int batch);
enum farm_task_state talk_task(const struct talk *t, int batch, uint32_t task);

/* A shard as granted, kept by a test. */
struct talk_shard {
    uint64_t id;
    uint32_t tasks[KN_SHARD_TASKS_MAX], count;
};
struct talk_shard talk_shard(const struct farm_effect *grant);
/* Started, all its results, done: the way of a shard that goes well, 10 ms an image. */
void talk_render(struct talk *t, uint64_t conn, const char *worker, const char *backend, int batch,
                 struct talk_shard s);

#endif
