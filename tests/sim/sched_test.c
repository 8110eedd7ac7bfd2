/* How well the scheduler does in a fleet where nothing fails: the time of a whole batch against the best that
 * the fleet could do, and the shares of batches that compete. Time is virtual; a message takes LATENCY_MS
 * each way. */
#include <stdlib.h>

#include "coordinator/core/farm.h"
#include "tests/unit/check.h"

#define LATENCY_MS 2
#define FLEET_MAX 64
#define QUEUE_MAX 8
#define MODELS 3
#define LOAD_MS 3000 /* a worker that changes its model */

struct sched_worker {
    char name[16];
    double ms_per_image; /* alone */
    double batch_gain;   /* share of the work that a minibatch does once for all its images; a CPU: 0 */
    uint32_t batch_max, credit;
    uint64_t joins_ms;
    bool models[MODELS];
    int loaded;
    struct {
        uint64_t id, ready_ms;
        int batch, model;
        uint32_t tasks[KN_SHARD_TASKS_MAX], count, at;
    } queue[QUEUE_MAX]; /* the first one runs */
    uint32_t queued;
    bool joined, begun;
    bool frozen;              /* it is there, and says and does nothing */
    double next_ms, began_ms; /* when the running image (or minibatch) is through */
    uint32_t images;
};

struct fleet {
    struct farm *farm;
    struct farm_effects fx;
    struct sched_worker workers[FLEET_MAX];
    uint32_t count, credit;
    double now;
    uint64_t tick_ms;
    uint64_t ended_ms[8]; /* by batch: when it was done */
    uint32_t done[8];     /* images */
    int model[8];
    bool by_task; /* images of one batch by one worker come one by one */
};

static void carry_out(struct fleet *t, size_t from);

static void step(struct fleet *t, struct farm_event ev) {
    size_t from = t->fx.count;
    CHECK_INT(farm_step(t->farm, &ev, (uint64_t)t->now, &t->fx), 0);
    carry_out(t, from);
    if (from == 0) farm_effects_clear(&t->fx);
}

static struct sched_worker *worker_of(struct fleet *t, uint64_t conn) {
    CHECK(conn >= 1 && conn <= t->count);
    return &t->workers[conn - 1];
}

/* Begins the first shard in the queue: sets when its next image, or on a GPU its whole minibatch, is
 * through. */
static void begin(struct fleet *t, struct sched_worker *w) {
    if (w->queued == 0 || w->begun) return;
    w->begun = true;
    w->began_ms = t->now > (double)w->queue[0].ready_ms ? t->now : (double)w->queue[0].ready_ms;
    double load = w->loaded == w->queue[0].model ? 0 : LOAD_MS;
    if (w->loaded < 0) load = 0; /* the first one is loaded when it starts */
    w->loaded = w->queue[0].model;
    uint32_t k = w->queue[0].count;
    double work = w->ms_per_image * (w->batch_gain + (1 - w->batch_gain) * (w->batch_gain > 0 ? k : 1));
    w->next_ms = w->began_ms + load + work;
}

static void drop_first(struct sched_worker *w) {
    w->queued--;
    memmove(&w->queue[0], &w->queue[1], w->queued * sizeof w->queue[0]);
    w->begun = false;
}

static void carry_out(struct fleet *t, size_t from) {
    for (size_t i = from; i < t->fx.count; i++) {
        struct farm_effect e = t->fx.v[i];
        struct farm_event ev = {0};
        int batch;
        memcpy(&batch, e.batch, sizeof batch);
        switch (e.type) {
        case FX_GRANT: {
            struct sched_worker *w = worker_of(t, e.conn);
            CHECK(w->queued < QUEUE_MAX);
            w->queue[w->queued].id = e.u.grant.shard;
            w->queue[w->queued].ready_ms = (uint64_t)t->now + LATENCY_MS;
            w->queue[w->queued].batch = batch;
            w->queue[w->queued].model = t->model[batch];
            w->queue[w->queued].at = 0;
            w->queue[w->queued].count = e.u.grant.task_count;
            memcpy(w->queue[w->queued].tasks, e.u.grant.tasks, e.u.grant.task_count * sizeof(uint32_t));
            w->queued++;
            break;
        }
        case FX_REVOKE: {
            struct sched_worker *w = worker_of(t, e.conn);
            for (uint32_t k = 0; k < w->queued; k++) {
                if (w->queue[k].id != e.u.revoke.shard || (k == 0 && w->begun && !e.u.revoke.abort)) continue;
                if (w->frozen) break; /* it does not hear */
                if (k == 0) w->begun = false;
                w->queued--;
                memmove(&w->queue[k], &w->queue[k + 1], (w->queued - k) * sizeof w->queue[0]);
                ev.type = EV_SHARD_RETURNED;
                ev.conn = e.conn;
                ev.u.shard.shard = e.u.revoke.shard;
                ev.u.shard.term = e.u.revoke.term;
                step(t, ev);
                break;
            }
            break;
        }
        case FX_COMMIT:
        case FX_BATCH_STATE:
            ev.type = EV_STORED;
            ev.u.stored.what = e.type;
            ev.u.stored.task = e.task;
            memcpy(ev.u.stored.batch, e.batch, sizeof e.batch);
            if (e.type == FX_COMMIT) t->done[batch]++;
            if (e.type == FX_BATCH_STATE && e.u.batch_state.state == KN_BATCH_DONE)
                t->ended_ms[batch] = (uint64_t)t->now;
            step(t, ev);
            break;
        default:
            break;
        }
    }
}

static void fleet_begin(struct fleet *t) {
    struct farm_config c;
    farm_config_default(&c);
    *t = (struct fleet){.now = 1000, .tick_ms = 1000, .credit = 2};
    CHECK_INT(farm_create(&c, &t->farm), 0);
}

static void fleet_end(struct fleet *t) {
    farm_effects_fini(&t->fx);
    farm_destroy(t->farm);
}

static struct sched_worker *fleet_add(struct fleet *t, double ms_per_image, double batch_gain,
                                      uint32_t batch_max) {
    struct sched_worker *w = &t->workers[t->count++];
    *w = (struct sched_worker){
        .ms_per_image = ms_per_image, .batch_gain = batch_gain, .batch_max = batch_max, .loaded = -1};
    for (int m = 0; m < MODELS; m++) w->models[m] = true;
    snprintf(w->name, sizeof w->name, "n%u", t->count);
    return w;
}

static void hello(struct fleet *t, struct sched_worker *w) {
    kn_digest models[MODELS] = {0};
    struct farm_event ev = {.type = EV_WORKER_HELLO, .conn = (uint64_t)(w - t->workers) + 1};
    struct ev_worker_hello *h = &ev.u.hello;
    h->worker = w->name;
    memcpy(h->instance, w->name, 8);
    h->backend = "cpu-a";
    h->credit = t->credit;
    h->batch_max = w->batch_max;
    h->models = models;
    for (int m = 0; m < MODELS; m++)
        if (w->models[m]) memcpy(models[h->model_count++], &m, sizeof m);
    w->joined = true;
    step(t, ev);
}

static void open_batch(struct fleet *t, int batch, uint32_t tasks, int model, int priority) {
    struct farm_group group = {.width = 512, .height = 512, .steps = 20};
    memcpy(group.model, &model, sizeof model);
    uint16_t *task_group = calloc(tasks, sizeof *task_group);
    struct farm_event ev = {.type = EV_BATCH_OPEN};
    memcpy(ev.u.batch_open.id, &batch, sizeof batch);
    ev.u.batch_open.tasks = tasks;
    ev.u.batch_open.priority = priority;
    ev.u.batch_open.pin_backend = "";
    ev.u.batch_open.groups = &group;
    ev.u.batch_open.group_count = 1;
    ev.u.batch_open.task_group = task_group;
    t->model[batch] = model;
    step(t, ev);
    free(task_group);
}

/* The worker is through with an image, or with the minibatch. */
static void finish(struct fleet *t, struct sched_worker *w) {
    uint64_t conn = (uint64_t)(w - t->workers) + 1, id = w->queue[0].id;
    uint32_t images = w->batch_gain > 0 ? w->queue[0].count : 1;
    for (uint32_t k = 0; k < images; k++) {
        struct farm_event ev = {.type = EV_RESULT, .conn = conn};
        struct ev_result *r = &ev.u.result;
        memcpy(r->batch, &w->queue[0].batch, sizeof(int));
        r->task = w->queue[0].tasks[w->queue[0].at++];
        r->worker = w->name;
        w->images++;
        bool last = w->queue[0].at == w->queue[0].count;
        step(t, ev);
        if (w->queued == 0 || w->queue[0].id != id) return; /* taken back meanwhile */
        if (!last) continue;
        struct farm_event done = {.type = EV_SHARD_DONE, .conn = conn};
        done.u.shard.shard = id;
        done.u.shard.term = 1;
        done.u.shard.render_ms = (uint32_t)(t->now - w->began_ms);
        drop_first(w);
        step(t, done);
        return;
    }
    w->next_ms = t->now + w->ms_per_image;
}

/* Until all batches have ended, or until a time. */
static void run(struct fleet *t, uint64_t until_ms) {
    for (;;) {
        double next = (double)t->tick_ms;
        struct sched_worker *at = NULL;
        for (uint32_t i = 0; i < t->count; i++) {
            struct sched_worker *w = &t->workers[i];
            double when = !w->joined ? (double)w->joins_ms : w->begun && !w->frozen ? w->next_ms : next;
            if (when >= next) continue;
            next = when;
            at = w;
        }
        if (next >= (double)until_ms) return;
        if (next > t->now) t->now = next;
        if (!at) {
            for (uint32_t i = 0; i < t->count; i++) { /* heartbeats, with the tick for simplicity */
                struct sched_worker *w = &t->workers[i];
                if (!w->joined || w->frozen) continue;
                struct farm_event beat = {.type = EV_WORKER_HEARTBEAT, .conn = i + 1};
                if (w->begun) beat.u.heartbeat.shard = w->queue[0].id;
                step(t, beat);
            }
            struct farm_event ev = {.type = EV_TICK};
            step(t, ev);
            t->tick_ms = farm_next_tick(t->farm, (uint64_t)t->now);
        } else if (!at->joined) {
            hello(t, at);
        } else {
            finish(t, at);
        }
        for (uint32_t i = 0; i < t->count; i++) {
            struct sched_worker *w = &t->workers[i];
            if (!w->joined || w->frozen || w->begun || w->queued == 0) continue;
            begin(t, w);
            struct farm_event ev = {.type = EV_SHARD_STARTED, .conn = i + 1};
            ev.u.shard.shard = w->queue[0].id;
            ev.u.shard.term = 1;
            step(t, ev);
        }
        bool all = true;
        for (size_t i = 0; i < farm_batch_count(t->farm); i++) {
            struct farm_batch_view v;
            CHECK_INT(farm_batch_at(t->farm, i, (uint64_t)t->now, &v), 0);
            all &= v.state == KN_BATCH_DONE;
        }
        if (all) return;
    }
}

/* Images a millisecond of the whole fleet, at the largest minibatch of each. */
static double fleet_speed(const struct fleet *t) {
    double speed = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        const struct sched_worker *w = &t->workers[i];
        double k = w->batch_gain > 0 ? w->batch_max : 1;
        speed += k / (w->ms_per_image * (w->batch_gain + (1 - w->batch_gain) * k));
    }
    return speed;
}

/* Makespan of one batch over the best possible. */
static double efficiency(struct fleet *t, uint32_t tasks) {
    for (uint32_t i = 0; i < t->count; i++)
        if (t->workers[i].joins_ms == 0) hello(t, &t->workers[i]);
    uint64_t from = (uint64_t)t->now;
    open_batch(t, 1, tasks, 0, 0);
    run(t, UINT64_MAX);
    CHECK_INT(t->done[1], tasks);
    double ideal = tasks / fleet_speed(t), took = (double)(t->ended_ms[1] - from);
    printf("  %u workers, %u images: %.0f ms, at best %.0f ms: %.3f\n", t->count, tasks, took, ideal,
           took / ideal);
    return took / ideal;
}

TEST(equal_workers_end_together) {
    struct fleet t;
    fleet_begin(&t);
    for (int i = 0; i < 8; i++) fleet_add(&t, 100, 0, 64);
    CHECK(efficiency(&t, 2000) < 1.05);
    fleet_end(&t);
}

TEST(a_fast_worker_never_waits_for_slow_ones) {
    struct fleet t;
    fleet_begin(&t);
    fleet_add(&t, 20, 0, 64);
    fleet_add(&t, 50, 0, 64);
    fleet_add(&t, 500, 0, 64);
    fleet_add(&t, 5000, 0, 64);
    CHECK(efficiency(&t, 2000) < 1.05);
    fleet_end(&t);
}

TEST(a_very_slow_worker_costs_almost_nothing) {
    struct fleet t;
    fleet_begin(&t);
    fleet_add(&t, 100, 0, 64);
    fleet_add(&t, 20000, 0, 64); /* one image takes longer than everything on the other */
    CHECK(efficiency(&t, 100) < 1.05);
    fleet_end(&t);
}

TEST(gpus_and_cpus_together) {
    struct fleet t;
    fleet_begin(&t);
    for (int i = 0; i < 4; i++) fleet_add(&t, 400, 0.6, 16);
    for (int i = 0; i < 4; i++) fleet_add(&t, 900, 0.5, 8);
    for (int i = 0; i < 8; i++) fleet_add(&t, 8000, 0, 4);
    CHECK(efficiency(&t, 3000) < 1.10);
    fleet_end(&t);
}

TEST(a_small_batch_is_spread_over_all) {
    struct fleet t;
    fleet_begin(&t);
    for (int i = 0; i < 4; i++) fleet_add(&t, 1000, 0, 64);
    CHECK(efficiency(&t, 48) < 1.15);
    fleet_end(&t);
}

/* The time of a batch of four seconds' work for four workers, of whom one freezes: before it comes, or in its middle. */
static uint32_t frozen_ms(uint64_t at_ms) {
    struct fleet t;
    fleet_begin(&t);
    for (int i = 0; i < 4; i++) hello(&t, fleet_add(&t, 50, 0, 64));
    open_batch(&t, 1, 320, 0, 0); /* all are known to be equally fast */
    run(&t, UINT64_MAX);
    if (at_ms == 0) t.workers[3].frozen = true;
    uint64_t from = (uint64_t)t.now;
    open_batch(&t, 2, 320, 0, 0);
    if (at_ms > 0) run(&t, from + at_ms);
    t.workers[3].frozen = true;
    run(&t, UINT64_MAX);
    uint32_t took = (uint32_t)(t.ended_ms[2] - from);
    printf("  frozen after %u ms: %u ms, with all four 4000\n", (unsigned)at_ms, took);
    fleet_end(&t);
    return took;
}

TEST(a_frozen_worker_holds_a_batch_no_longer_than_its_shards_would_take) {
    CHECK(frozen_ms(0) < 7500); /* three alone take 5333 */
    CHECK(frozen_ms(500) < 8000);
    CHECK(frozen_ms(2500) < 8000);
}

TEST(random_fleets_stay_within_a_quarter_of_the_best) {
    uint64_t rng = 7;
    double worst = 0;
    for (int trial = 0; trial < 40; trial++) {
        struct fleet t;
        fleet_begin(&t);
        rng = rng * 6364136223846793005u + 1442695040888963407u;
        uint32_t count = 2 + (uint32_t)(rng >> 33) % 30;
        for (uint32_t i = 0; i < count; i++) {
            rng = rng * 6364136223846793005u + 1442695040888963407u;
            double ms = 20.0 + (double)((rng >> 33) % 3000);
            fleet_add(&t, ms, (rng >> 20) % 2 ? 0.5 : 0, 1u << (rng >> 50) % 6);
        }
        rng = rng * 6364136223846793005u + 1442695040888963407u;
        /* Work for some seconds at least: a batch of a few images is a matter of chance. */
        uint32_t tasks = (uint32_t)(fleet_speed(&t) * (20000 + (double)((rng >> 33) % 60000)));
        double e = efficiency(&t, tasks);
        if (e > worst) worst = e;
        fleet_end(&t);
    }
    printf("  worst of 40: %.3f\n", worst);
    CHECK(worst < 1.25);
}

TEST(a_worker_that_joins_late_gets_work) {
    struct fleet t;
    fleet_begin(&t);
    fleet_add(&t, 100, 0, 64);
    fleet_add(&t, 100, 0, 64)->joins_ms = 11000;
    hello(&t, &t.workers[0]);
    open_batch(&t, 1, 300, 0, 0);
    run(&t, UINT64_MAX);
    /* 10 s alone are 100 images; the other 200 take 10 s for two. */
    CHECK_MSG(t.ended_ms[1] < 1000 + 21200, "%llu ms", (unsigned long long)t.ended_ms[1] - 1000);
    fleet_end(&t);
}

/* ---- shares */

TEST(equal_batches_get_equal_shares) {
    struct fleet t;
    fleet_begin(&t);
    for (int i = 0; i < 4; i++) hello(&t, fleet_add(&t, 100, 0, 16));
    open_batch(&t, 1, 2000, 0, 0);
    run(&t, 3000);
    open_batch(&t, 2, 2000, 0, 0); /* comes later and is not let ahead of the line for it */
    uint32_t before = t.done[1];
    run(&t, 43000);
    double share = (double)t.done[2] / (t.done[2] + t.done[1] - before);
    printf("  share %.3f\n", share);
    CHECK(share > 0.42 && share < 0.55);
    fleet_end(&t);
}

TEST(a_batch_of_another_model_gets_its_share_too) {
    struct fleet t;
    fleet_begin(&t);
    for (int i = 0; i < 4; i++) hello(&t, fleet_add(&t, 100, 0, 16));
    open_batch(&t, 1, 4000, 0, 0);
    run(&t, 10000);
    open_batch(&t, 2, 4000, 1, 0);
    uint32_t before = t.done[1];
    run(&t, 110000);
    double share = (double)t.done[2] / (t.done[2] + t.done[1] - before);
    printf("  share %.3f of %u\n", share, t.done[2] + t.done[1] - before);
    CHECK(share > 0.33 && share < 0.60);
    /* 100 s of 4 workers are 4000 images; changing models may cost a fifth. */
    CHECK(t.done[2] + t.done[1] - before > 3200);
    fleet_end(&t);
}

TEST(higher_priority_goes_first) {
    struct fleet t;
    fleet_begin(&t);
    for (int i = 0; i < 4; i++) hello(&t, fleet_add(&t, 100, 0, 16));
    open_batch(&t, 1, 1000, 0, 0);
    run(&t, 5000);
    open_batch(&t, 2, 400, 0, 5);
    run(&t, UINT64_MAX);
    /* 400 images on four workers are 10 s; what runs may finish first: 1.6 s. */
    CHECK_MSG(t.ended_ms[2] - 5000 < 12500, "%llu ms", (unsigned long long)t.ended_ms[2] - 5000);
    fleet_end(&t);
}
