/* The tail of the work. The contract is tail.h.
 *
 * Shards that wait at a busy (or frozen) worker are taken back and given to the idle one. Tasks that a slow or silent
 * worker executes, or whose pictures are owed, are rendered a second time on the fastest idle workers that are expected to be sooner, a
 * share each: the last images first, so that the two meet. The first bytes win, and a worker that has nothing left to win
 * is told to stop. Suspects are never rendered twice at a time: one killer should not take two workers with
 * it. */
#include "coordinator/core/tail.h"

#include <stdlib.h>

#include "coordinator/core/batch.h"
#include "coordinator/core/pool.h"
#include "coordinator/core/sched.h"
#include "coordinator/core/shard.h"
#include "coordinator/core/speed.h"
#include "coordinator/core/worker.h"

#define TAIL_WORKERS 64 /* idle workers served in one look */
#define UNREACHABLE_US 3600000000u

struct tail_shard {
    struct shard *shard;
    uint64_t remaining_us;
};

/* True when the worker missed a heartbeat, by half of another: it may be frozen, or its machine gone. Where it is
 * merely late, an idle worker has rendered some images for nothing. */
static bool is_silent(const struct farm *f, const struct worker *w) {
    return !w->conn || f->now - w->seen_ms >= f->config.ask_ms / 4 * 3;
}

/* Expected time until the shard is through. A shard that took longer than expected, or that did not begin when it
 * should have, is expected to take longer still; so are pictures that their worker said it had sent. */
static uint64_t remaining_us(const struct farm *f, const struct shard *s) {
    const struct worker *w = s->worker;
    if (is_silent(f, w)) return UNREACHABLE_US;
    if (s->state == SHARD_OWED) return (f->now - s->alive_ms) * 1000;
    uint64_t before = 0;
    for (const struct shard *x = w->shards; x != s; x = x->worker_next)
        if (x->state == SHARD_WAITING || x->state == SHARD_STARTED)
            before += speed_shard_us(x) / x->count * x->left;
    uint64_t cost = speed_shard_us(s);
    if (s->state == SHARD_WAITING) {
        uint64_t moved = s->granted_ms > w->moved_ms ? s->granted_ms : w->moved_ms;
        uint64_t idle = (f->now - moved) * 1000;
        return before + cost + (idle > before ? idle - before : 0);
    }
    uint64_t spent = (f->now - s->started_ms) * 1000, left = cost / s->count * s->left;
    if (spent <= cost) return left < cost - spent ? left : cost - spent;
    return spent - cost > left / 4 ? spent - cost : left / 4;
}

static int tail_order(const void *x, const void *y) {
    const struct tail_shard *a = x, *b = y;
    if (a->remaining_us != b->remaining_us) return a->remaining_us > b->remaining_us ? -1 : 1;
    return a->shard->slot < b->shard->slot ? -1 : 1;
}

/* True when the shard holds the task, no other does, and it never failed. */
static bool copyable(const struct shard *s, uint32_t t) {
    return shard_holds(s, t) && s->batch->tasks[t].b == NONE && s->batch->tasks[t].trouble == NONE;
}

static bool tail_candidate(const struct shard *s) {
    if (!s->batch || s->batch->state != KN_BATCH_ACTIVE || s->suspect || s->copy) return false;
    if (s->state == SHARD_STARTED || s->state == SHARD_OWED) {
        for (uint32_t i = 0; i < s->count; i++)
            if (copyable(s, s->tasks[i])) return true;
        return false;
    }
    return s->state == SHARD_WAITING;
}

static bool tail_collect(struct farm *f, size_t *count) {
    if (f->shard_count > f->tail_cap) {
        size_t cap = f->tail_cap ? f->tail_cap : 64;
        while (cap < f->shard_count) cap *= 2;
        struct tail_shard *v = realloc(f->tail, cap * sizeof *v);
        if (!v) return false;
        f->tail = v;
        f->tail_cap = cap;
    }
    *count = 0;
    for (size_t i = 0; i < f->worker_count; i++)
        for (struct shard *s = f->workers[i]->shards; s; s = s->worker_next)
            if (tail_candidate(s)) f->tail[(*count)++] = (struct tail_shard){s, remaining_us(f, s)};
    return true;
}

/* Images of the shard that nobody else renders yet. */
static uint32_t copyable_count(const struct shard *s) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->count; i++) count += copyable(s, s->tasks[i]);
    return count;
}

/* Grants a second copy of so many tasks that the shard still holds, beginning with the last. */
static bool tail_copy(struct farm *f, struct worker *w, struct shard *s, uint32_t share,
                      struct farm_effects *fx) {
    struct batch *b = s->batch;
    struct group *group = &b->groups[s->group];
    const struct pool *p = b->lanes[group->lane].pool;
    const struct shape *shape = slab_at(&f->shapes, group->shape);
    const struct worker_shape *ws = worker_shape_of(w, shape->uid, false);
    uint32_t limit = share < w->batch_max ? share : w->batch_max, tasks[KN_SHARD_TASKS_MAX], count = 0;
    if (ws && ws->limit < limit) limit = ws->limit;
    if (b->shard_tasks_max < limit) limit = b->shard_tasks_max;
    for (uint32_t i = s->count; i-- > 0 && count < limit;)
        if (copyable(s, s->tasks[i])) tasks[count++] = s->tasks[i];
    if (count == 0) return false;
    uint64_t us = speed_us_per_image(w, p, shape);
    struct shard *copy = shard_grant(f, w, b, tasks, count, fx);
    if (!copy) return false;
    copy->cost = us * count;
    batch_charge_time(f, b, copy->cost);
    w->loaded = p->model;
    w->last_shape = shape->uid;
    return true;
}

/* Gives one idle worker something to do; `idle` are left to be served, it included. */
static bool tail_serve(struct farm *f, struct worker *w, uint32_t idle, size_t count,
                       struct farm_effects *fx) {
    for (size_t i = 0; i < count; i++) {
        struct shard *s = f->tail[i].shard;
        uint64_t remaining = f->tail[i].remaining_us;
        if (remaining < TAIL_MIN_MS * 1000) return false; /* in order: none of the others is worth it */
        if (!s || s->worker == w) continue;
        const struct batch *b = s->batch;
        const struct group *group = &b->groups[s->group];
        const struct pool *p = b->lanes[group->lane].pool;
        if (!pool_serves(p, w) || !worker_model_of(w, p->model)) continue;
        if (!worker_can(w, slab_at(&f->shapes, group->shape))) continue;
        uint64_t us = speed_us_per_image(w, p, slab_at(&f->shapes, group->shape));
        if (us == 0 && remaining != UNREACHABLE_US) continue; /* nothing is known of either */
        uint32_t missing = s->state == SHARD_WAITING ? s->left : copyable_count(s);
        uint32_t share = (missing + idle - 1) / idle;
        uint64_t mine = us * (s->state == SHARD_WAITING ? s->left : share);
        if (mine > remaining - remaining / 5) continue; /* would not be sooner by a fifth */
        if (s->state == SHARD_WAITING) {
            if (shard_reserve(f, fx, s)) return false;
            f->tail[i].shard = NULL;
            shard_withdraw(f, s, false, FATE_REQUEUE, fx);
            return sched_grant(f, w, fx);
        }
        if (share > 0 && tail_copy(f, w, s, share, fx)) return true;
    }
    return false;
}

void tail_run(struct farm *f, struct farm_effects *fx) {
    if (f->deposed || f->now < f->tail_due || f->shard_count == 0) return;
    f->tail_due = f->now + TAIL_EVERY_MS;
    bool collected = false;
    size_t count = 0;
    struct worker *idle[TAIL_WORKERS];
    uint32_t idle_count = 0;
    for (size_t i = 0; i < f->worker_count && idle_count < TAIL_WORKERS; i++) {
        struct worker *w = f->workers[i];
        if (!worker_ready(f, w) || w->held > 0 || is_silent(f, w)) continue;
        if (!collected && !tail_collect(f, &count)) return;
        collected = true;
        if (count == 0) return;
        idle[idle_count++] = w;
    }
    if (idle_count == 0) return;
    qsort(f->tail, count, sizeof *f->tail, tail_order);
    sched_sort(idle, idle_count);
    for (uint32_t i = 0; i < idle_count; i++) (void)tail_serve(f, idle[i], idle_count - i, count, fx);
}
