/* A million tasks and a thousand workers: what a step costs, and how much memory a task takes. Times are of
 * this thread's processor time, so that a busy machine does not fail the test; memory is what malloc says. */
#include <malloc.h>
#include <stdlib.h>
#include <time.h>

#include "coordinator/core/farm.h"
#include "tests/unit/check.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define TASKS (SANITIZED ? 100000u : 1000000u)
#define WORKERS 1000u
#define QUEUE 4

struct scale_worker {
    char name[16];
    uint64_t next_ms; /* when the running shard is through */
    struct {
        uint64_t id;
        kn_id batch;
        uint32_t tasks[16], count;
    } queue[QUEUE];
    uint32_t queued;
};

static struct farm *farm;
static struct farm_effects fx;
static struct scale_worker workers[WORKERS + 1]; /* by connection, from 1 */
static uint64_t now = 1000;
static struct {
    const char *name;
    uint64_t count, sum_ns, max_ns;
} cost[EV_STORED + 1];
static kn_id id;

static uint64_t cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void step(struct farm_event ev) {
    uint64_t from = cpu_ns();
    CHECK_INT(farm_step(farm, &ev, now, &fx), 0);
    uint64_t took = cpu_ns() - from;
    cost[ev.type].count++;
    cost[ev.type].sum_ns += took;
    if (took > cost[ev.type].max_ns) cost[ev.type].max_ns = took;
}

/* Carries the effects out, those of the store's answers too. */
static void settle(void) {
    for (size_t i = 0; i < fx.count; i++) {
        struct farm_effect e = fx.v[i];
        if (e.type == FX_GRANT) {
            struct scale_worker *w = &workers[e.conn];
            CHECK(w->queued < QUEUE && e.u.grant.task_count <= 16);
            w->queue[w->queued].id = e.u.grant.shard;
            memcpy(w->queue[w->queued].batch, e.batch, sizeof e.batch);
            w->queue[w->queued].count = e.u.grant.task_count;
            memcpy(w->queue[w->queued].tasks, e.u.grant.tasks, e.u.grant.task_count * sizeof(uint32_t));
            w->queued++;
        } else if (e.type == FX_REVOKE) {
            struct scale_worker *w = &workers[e.conn];
            for (uint32_t k = 0; k < w->queued; k++) {
                if (w->queue[k].id != e.u.revoke.shard) continue;
                if (k == 0) w->next_ms = 0;
                w->queued--;
                memmove(&w->queue[k], &w->queue[k + 1], (w->queued - k) * sizeof w->queue[0]);
                struct farm_event ev = {.type = EV_SHARD_RETURNED, .conn = e.conn};
                ev.u.shard.shard = e.u.revoke.shard;
                ev.u.shard.term = e.u.revoke.term;
                step(ev);
                break;
            }
        } else if (e.type == FX_COMMIT || e.type == FX_BATCH_STATE) {
            struct farm_event ev = {.type = EV_STORED};
            ev.u.stored.what = e.type;
            ev.u.stored.task = e.task;
            memcpy(ev.u.stored.batch, e.batch, sizeof e.batch);
            step(ev);
        }
    }
    farm_effects_clear(&fx);
}

static uint64_t allocated(void) {
    struct mallinfo2 m = mallinfo2();
    return (uint64_t)m.uordblks + (uint64_t)m.hblkhd;
}

static void open_batch(void) {
    static struct farm_group groups[64];
    for (uint32_t g = 0; g < 64; g++)
        groups[g] = (struct farm_group){.width = 64, .height = 64, .steps = 20 + g};
    uint16_t *task_group = malloc(TASKS * sizeof *task_group);
    CHECK(task_group);
    for (uint32_t t = 0; t < TASKS; t++) task_group[t] = (uint16_t)(t / 1000 % 64);
    struct farm_event ev = {.type = EV_BATCH_OPEN};
    ev.u.batch_open.tasks = TASKS;
    ev.u.batch_open.pin_backend = "";
    ev.u.batch_open.groups = groups;
    ev.u.batch_open.group_count = 64;
    ev.u.batch_open.task_group = task_group;
    uint64_t before = allocated();
    step(ev);
    uint64_t bytes = allocated() - before;
    if (!SANITIZED) {
        printf("  %.1f bytes a task\n", (double)bytes / TASKS);
        CHECK(bytes < 32ull * TASKS + 200000);
    }
    free(task_group);
}

static void hello(uint64_t conn) {
    kn_digest model = {0};
    struct farm_event ev = {.type = EV_WORKER_HELLO, .conn = conn};
    snprintf(workers[conn].name, sizeof workers[conn].name, "n%u", (unsigned)conn);
    ev.u.hello = (struct ev_worker_hello){.worker = workers[conn].name,
                                          .backend = "cpu-a",
                                          .credit = 2,
                                          .batch_max = 16,
                                          .models = &model,
                                          .model_count = 1};
    memcpy(ev.u.hello.instance, &conn, sizeof conn);
    step(ev);
    settle();
}

static void run_shard(struct scale_worker *w, uint64_t conn) {
    uint64_t shard = w->queue[0].id;
    uint32_t count = w->queue[0].count, tasks[16];
    kn_id batch;
    memcpy(tasks, w->queue[0].tasks, sizeof tasks);
    memcpy(batch, w->queue[0].batch, sizeof batch);
    w->queued--;
    memmove(&w->queue[0], &w->queue[1], w->queued * sizeof w->queue[0]);
    for (uint32_t i = 0; i < count; i++) {
        struct farm_event ev = {.type = EV_RESULT, .conn = conn};
        ev.u.result.task = tasks[i];
        ev.u.result.worker = w->name;
        memcpy(ev.u.result.batch, batch, sizeof batch);
        step(ev);
        settle();
    }
    struct farm_event ev = {.type = EV_SHARD_DONE, .conn = conn};
    ev.u.shard.shard = shard;
    ev.u.shard.term = 1;
    ev.u.shard.render_ms = 50 * count;
    step(ev);
    settle();
}

TEST(a_million_tasks_and_a_thousand_workers) {
    static const char *names[EV_STORED + 1] = {
        [EV_TICK] = "tick",       [EV_BATCH_OPEN] = "batch_open",      [EV_WORKER_HELLO] = "hello",
        [EV_RESULT] = "result",   [EV_WORKER_HEARTBEAT] = "heartbeat", [EV_SHARD_STARTED] = "started",
        [EV_SHARD_DONE] = "done", [EV_SHARD_RETURNED] = "returned",    [EV_STORED] = "stored",
    };
    struct farm_config c;
    farm_config_default(&c);
    CHECK_INT(farm_create(&c, &farm), 0);
    open_batch();
    for (uint64_t conn = 1; conn <= WORKERS; conn++) hello(conn);
    struct farm_batch_view v;
    uint64_t tick_ms = now, beat_ms = now + 2000;
    for (;;) {
        CHECK_INT(farm_batch_view(farm, id, now, &v), 0);
        if (v.state == KN_BATCH_DONE) break;
        now += 10;
        for (uint64_t conn = 1; conn <= WORKERS; conn++) {
            struct scale_worker *w = &workers[conn];
            if (w->next_ms && w->next_ms <= now && w->queued) {
                w->next_ms = 0;
                run_shard(w, conn);
            }
            if (w->next_ms || !w->queued) continue;
            w->next_ms = now + 50 * w->queue[0].count;
            struct farm_event ev = {.type = EV_SHARD_STARTED, .conn = conn};
            ev.u.shard.shard = w->queue[0].id;
            ev.u.shard.term = 1;
            step(ev);
            settle();
        }
        for (uint64_t conn = 1; now >= beat_ms && conn <= WORKERS; conn++) {
            struct farm_event ev = {.type = EV_WORKER_HEARTBEAT, .conn = conn};
            if (workers[conn].queued) ev.u.heartbeat.shard = workers[conn].queue[0].id;
            step(ev);
            settle();
        }
        if (now >= beat_ms) beat_ms = now + 2000;
        if (now < tick_ms) continue;
        struct farm_event ev = {.type = EV_TICK};
        step(ev);
        settle();
        tick_ms = farm_next_tick(farm, now);
    }
    CHECK_INT(v.done, TASKS);
    farm_check(farm);
    uint64_t from = cpu_ns();
    CHECK_INT(farm_batch_view(farm, id, now, &v), 0);
    printf("  view: %llu ns; %llu ms of virtual time\n", (unsigned long long)(cpu_ns() - from),
           (unsigned long long)now);
    for (int i = 0; i <= EV_STORED; i++) {
        if (!cost[i].count) continue;
        double mean = (double)cost[i].sum_ns / (double)cost[i].count / 1000;
        printf("  %-10s %8llu steps, %9.2f us each, %9.1f us at most\n", names[i],
               (unsigned long long)cost[i].count, mean, (double)cost[i].max_ns / 1000);
        /* Generous: the slowest machine, with other things on its mind. None of them looks at all tasks. */
        if (!SANITIZED && i != EV_BATCH_OPEN) CHECK(mean < (i == EV_TICK ? 3000 : 50));
    }
    farm_effects_fini(&fx);
    farm_destroy(farm);
}

TEST(ten_thousand_batches) {
    struct farm_config c;
    farm_config_default(&c);
    CHECK_INT(farm_create(&c, &farm), 0);
    memset(cost, 0, sizeof cost);
    memset(workers, 0, sizeof workers);
    const uint32_t batches = SANITIZED ? 500 : KN_BATCHES_MAX;
    for (uint32_t b = 1; b <= batches; b++) {
        const struct farm_group group = {.width = 64, .height = 64, .steps = 20};
        const uint16_t task_group[4] = {0};
        struct farm_event ev = {.type = EV_BATCH_OPEN};
        ev.u.batch_open = (struct ev_batch_open){
            .tasks = 4, .pin_backend = "", .groups = &group, .group_count = 1, .task_group = task_group};
        memcpy(ev.u.batch_open.id, &b, sizeof b);
        step(ev);
        settle();
    }
    for (uint64_t conn = 1; conn <= 8; conn++) hello(conn);
    uint32_t done = 0;
    while (done < 4 * batches) {
        now += 10;
        for (uint64_t conn = 1; conn <= 8; conn++) {
            struct scale_worker *w = &workers[conn];
            if (w->queued == 0) continue;
            done += w->queue[0].count;
            run_shard(w, conn);
        }
        if (now % 100 == 0) {
            step((struct farm_event){.type = EV_TICK});
            settle();
        }
    }
    farm_check(farm);
    for (int i = 0; i <= EV_STORED; i++) {
        if (!cost[i].count) continue;
        double mean = (double)cost[i].sum_ns / (double)cost[i].count / 1000;
        printf("  event %-2d %8llu steps, %9.2f us each, %9.1f us at most\n", i,
               (unsigned long long)cost[i].count, mean, (double)cost[i].max_ns / 1000);
        if (!SANITIZED) CHECK(mean < 200);
    }
    farm_effects_fini(&fx);
    farm_destroy(farm);
}
