/* Who gets what next. The contract is sched.h.
 *
 * A worker with credit left looks at the pools that it serves (its models, of its class or of any) and takes
 * from the lane that is first: the highest priority, then the batch that was handed the least work (in
 * microseconds of estimated rendering: equal shares of time, not of images), then the oldest. A lane of the
 * model that the worker has loaded may go first, as long as the other batch is neither starving (AFFINITY_MS
 * without anything) nor that far behind.
 *
 * A shard is as large as takes shard_target_ms at the measured speed: one image while nothing is known, then
 * at most GROWTH times the size that was measured. Towards the end it shrinks to half the worker's share of
 * what is left (guided self-scheduling), so that all workers end together; and a worker that is busy longer
 * than the others need for all that is queued takes nothing ahead. */
#include "coordinator/core/sched.h"

#include <stdlib.h>

#include "coordinator/core/batch.h"
#include "coordinator/core/blame.h"
#include "coordinator/core/pool.h"
#include "coordinator/core/shard.h"
#include "coordinator/core/speed.h"
#include "coordinator/core/task.h"
#include "coordinator/core/worker.h"

#define PIECES_LOOKED_AT 16
#define FIRST_IMAGES 4    /* first shard of a shape when the model's speed is known from another */
#define GROWTH 4          /* from one shard to the next */
#define GUESS_US 1000000u /* cost of an image while nothing is known at all */

/* ---- how much */

/* Speed of all workers of a pool, those not measured yet taken for average ones. 0: nothing is known. */
static uint64_t pool_speed(const struct pool *p) {
    if (p->known == 0) return 0;
    return p->speed + p->speed / p->known * (p->able - p->known);
}

uint32_t sched_size(struct farm *f, struct worker *w, const struct lane *lane, const struct shape *shape) {
    const struct pool *p = lane->pool;
    const struct worker_shape *ws = worker_shape_of(w, shape->uid, false);
    uint64_t limit = w->batch_max;
    if (ws && ws->limit < limit) limit = ws->limit;
    if (limit > lane->batch->shard_tasks_max) limit = lane->batch->shard_tasks_max;
    if (limit < 1) limit = 1;
    uint64_t us = speed_us_per_image(w, p, shape);
    if (us == 0) return 1;
    uint64_t n = (uint64_t)f->config.shard_target_ms * 1000 / us;
    uint64_t measured = ws ? ws->last_count : 0;
    if (measured == 0 && n > FIRST_IMAGES) n = FIRST_IMAGES;
    if (measured > 0 && n > measured * GROWTH) n = measured * GROWTH;
    uint64_t speed = shape->units * 1000000 / us, all = pool_speed(p);
    if (speed > 0 && all > 0) { /* half of its share of what is left */
        double share = (double)lane->queued * (double)speed / (double)(all > speed ? all : speed) / 2;
        if ((double)n > share) n = (uint64_t)(share + 0.999);
    }
    if (n > limit) n = limit;
    return n < 1 ? 1 : (uint32_t)n;
}

/* True when a worker that has something to do already should take more of this pool ahead: not if the others
 * will have rendered all that is queued before it would begin. */
static bool worth_prefetching(const struct farm *f, const struct worker *w, const struct pool *p) {
    uint64_t backlog = speed_backlog_us(f, w), all = pool_speed(p);
    if (backlog == 0 || p->able <= 1) return true;
    if (all == 0) return p->ready[0]->queued > p->able || p->ready_count > p->able;
    return (double)p->ready_units * 1e6 / (double)all >= (double)backlog;
}

/* ---- what */

/* True when a worker is at suspects of this batch, or is about to be. */
static bool suspects_out(const struct batch *b) {
    for (const struct shard *s = b->shards; s; s = s->batch_next)
        if (s->suspect) return true;
    return false;
}

/* Suspects of a death are tried by one worker at a time, so that the others go on with the rest; and those of a hang, which
 * is the dearest, when nothing else is left. Suspects of what costs little go before the queue. */
static bool piece_now(const struct farm *f, const struct batch *b, const struct piece *piece, bool rest,
                      bool out) {
    const struct trouble *x = slab_at(&f->troubles, b->tasks[piece->list.head].trouble);
    return !rest || !x->deadly || (!out && x->code != KN_ETIMEOUT);
}

/* The piece of a group that this worker may take, or NONE. rest: there is other work in the lane. */
static uint32_t piece_for(struct farm *f, struct batch *b, const struct group *group, const struct worker *w,
                          bool rest) {
    uint32_t slot = group->piece_head;
    bool out = slot != NONE && rest && suspects_out(b);
    for (uint32_t i = 0; slot != NONE && i < PIECES_LOOKED_AT; i++) {
        const struct piece *piece = slab_at(&f->pieces, slot);
        if (piece_now(f, b, piece, rest, out) && blame_allows(f, b, piece->list.head, w)) return slot;
        slot = piece->next;
    }
    return NONE;
}

/* True when the worker has memory for at least one image. If nobody has, all may try (and be charged). */
static bool fits(struct farm *f, struct batch *b, uint32_t t, const struct shape *shape, struct worker *w) {
    const struct worker_shape *ws = worker_shape_of(w, shape->uid, false);
    return !ws || ws->limit > 0 || !worker_other_can(f, b, t, &w->uid, 1);
}

/* Takes a shard for this worker out of a lane. rest: as piece_for() has it. */
static bool lane_take(struct farm *f, struct worker *w, struct lane *lane, bool rest,
                      struct farm_effects *fx) {
    struct batch *b = lane->batch;
    for (uint32_t g = lane->head; g != NONE; g = b->groups[g].next) {
        struct group *group = &b->groups[g];
        const struct shape *shape = slab_at(&f->shapes, group->shape);
        if (!worker_can(w, shape)) continue;
        uint32_t slot = piece_for(f, b, group, w, rest);
        const struct tasklist *list =
            slot == NONE ? &group->queue : &((struct piece *)slab_at(&f->pieces, slot))->list;
        if (list->count == 0 || !fits(f, b, list->head, shape, w)) continue;
        uint32_t n = sched_size(f, w, lane, shape);
        if (n > list->count) n = list->count;
        if (farm_reserve(f, fx, 4, n, n)) return false;
        uint64_t us = speed_us_per_image(w, lane->pool, shape);
        uint64_t cost = (us ? us : GUESS_US) * n;
        uint32_t tasks[KN_SHARD_TASKS_MAX];
        batch_charge_time(f, b, cost); /* while the lane is in order: taking its tasks may close it */
        for (uint32_t i = 0; i < n; i++) {
            tasks[i] = list->head;
            task_unqueue(f, b, tasks[i]); /* the last one of a piece frees the piece */
        }
        for (uint32_t i = 0; i < n; i++) task_set(f, b, tasks[i], TASK_GRANTED);
        struct shard *s = shard_grant(f, w, b, tasks, n, fx);
        if (!s) {
            batch_refund_time(b, cost);
            blame_requeue(f, b, tasks, n, fx);
            return false;
        }
        s->cost = cost;
        w->loaded = lane->pool->model;
        w->last_shape = shape->uid;
        return true;
    }
    return false;
}

/* A shard for this worker: what is to go first, else suspects that were to wait for the rest. */
static bool lane_grant(struct farm *f, struct worker *w, struct lane *lane, struct farm_effects *fx) {
    return lane_take(f, w, lane, true, fx) || lane_take(f, w, lane, false, fx);
}

/* ---- from whom */

struct cursor {
    struct pool *pool;
    uint32_t at;
};

/* The pools with work that this worker should take now, or with `all` at any time. */
static uint32_t cursors_open(const struct farm *f, struct worker *w, bool all, struct cursor *v) {
    uint32_t count = 0;
    for (uint32_t k = 0; k < w->model_count; k++)
        for (struct pool *p = w->models[k].model->pools; p; p = p->next)
            if (p->ready_count > 0 && pool_serves(p, w) && (all || worth_prefetching(f, w, p)))
                v[count++] = (struct cursor){p, 0};
    return count;
}

/* The next lane in the order of all these pools (of one model where `only` is given), or NULL. */
static struct lane *cursors_next(struct cursor *v, uint32_t count, const struct model *only) {
    struct cursor *best = NULL;
    for (uint32_t i = 0; i < count; i++) {
        if (v[i].at >= v[i].pool->ready_count || (only && v[i].pool->model != only)) continue;
        if (!best || pool_lane_before(v[i].pool->ready[v[i].at], best->pool->ready[best->at])) best = &v[i];
    }
    return best ? best->pool->ready[best->at++] : NULL;
}

/* The first lane of the model that is loaded, where it may go before `first`; else NULL. */
static struct lane *loaded_first(struct farm *f, struct worker *w, struct cursor *v, uint32_t count,
                                 const struct lane *first) {
    if (!w->loaded || first->pool->model == w->loaded) return NULL;
    for (uint32_t i = 0; i < count; i++) v[i].at = 0;
    struct lane *lane = cursors_next(v, count, w->loaded);
    for (uint32_t i = 0; i < count; i++) v[i].at = 0;
    if (!lane || lane->batch->level != first->batch->level) return NULL;
    if (f->now - first->batch->starved_since >= AFFINITY_MS) return NULL;
    uint64_t ahead = lane->batch->vtime - first->batch->vtime;
    uint32_t able = lane->pool->able ? lane->pool->able : 1;
    return ahead / able / 1000 < AFFINITY_MS ? lane : NULL;
}

bool sched_grant(struct farm *f, struct worker *w, struct farm_effects *fx) {
    if (slab_used(&f->pendings) >= PENDING_PAUSE) return false; /* the store does not keep up */
    if (f->deposed || !worker_ready(f, w)) return false;
    struct cursor v[2 * KN_MODELS_PER_WORKER_MAX];
    uint32_t count = cursors_open(f, w, false, v);
    struct lane *lane = cursors_next(v, count, NULL);
    if (!lane) return false;
    struct lane *loaded = loaded_first(f, w, v, count, lane);
    if (loaded && lane_grant(f, w, loaded, fx)) return true;
    for (uint32_t i = 0; i < count; i++) v[i].at = 0;
    while ((lane = cursors_next(v, count, NULL)) != NULL)
        if (lane_grant(f, w, lane, fx)) return true;
    return false;
}

static uint64_t worker_speed(const struct worker *w) {
    uint64_t speed = 0;
    for (uint32_t k = 0; k < w->model_count; k++)
        if (w->models[k].speed > speed) speed = w->models[k].speed;
    return speed;
}

static int worker_order(const void *x, const void *y) {
    const struct worker *a = *(struct worker *const *)x, *b = *(struct worker *const *)y;
    if (a->held != b->held) return a->held < b->held ? -1 : 1;
    uint64_t sa = worker_speed(a), sb = worker_speed(b);
    if (sa != sb) return sa > sb ? -1 : 1;
    return a->uid < b->uid ? -1 : 1;
}

void sched_sort(struct worker **v, size_t count) {
    if (count > 1) qsort(v, count, sizeof *v, worker_order);
}

/* Grants one shard to each worker in turn, until nobody takes any more. */
static void grant_all(struct farm *f, struct farm_effects *fx) {
    size_t count = 0;
    if (f->work_arrived) {
        for (size_t i = 0; i < f->worker_count; i++)
            if (worker_ready(f, f->workers[i])) f->order[count++] = f->workers[i];
    } else {
        for (struct worker *w = f->woken; w; w = w->woken_next)
            if (worker_ready(f, w)) f->order[count++] = w;
    }
    while (f->woken) {
        f->woken->woken = false;
        f->woken = f->woken->woken_next;
    }
    f->work_arrived = false;
    sched_sort(f->order, count);
    while (count > 0) {
        size_t kept = 0;
        for (size_t i = 0; i < count; i++)
            if (sched_grant(f, f->order[i], fx) && f->order[i]->held < f->order[i]->credit)
                f->order[kept++] = f->order[i];
        count = kept;
    }
}

/* ---- a higher priority takes back what waits */

/* The best lane that still has something queued for this worker, or NULL. */
static struct lane *worker_first(const struct farm *f, struct worker *w) {
    struct cursor v[2 * KN_MODELS_PER_WORKER_MAX];
    struct lane *lane;
    uint32_t count = cursors_open(f, w, true, v);
    while ((lane = cursors_next(v, count, NULL)) != NULL && !worker_can_some(f, w, lane)) continue;
    return lane;
}

static void retract(struct farm *f, struct farm_effects *fx) {
    /* Images that the higher priority will get from shards taken back already: no more are taken back for
     * them. */
    uint64_t coming = 0;
    for (size_t i = 0; i < f->worker_count; i++) {
        struct worker *w = f->workers[i];
        if (!worker_takes(w) || !w->shards) continue;
        struct lane *lane = worker_first(f, w);
        if (!lane) continue;
        const struct shape *shape = slab_at(&f->shapes, lane->batch->groups[lane->head].shape);
        struct shard *next;
        for (struct shard *s = w->shards; s; s = next) {
            next = s->worker_next;
            if (coming >= lane->queued) break;
            bool outranked = s->state == SHARD_WAITING && s->batch &&
                             s->batch->level->priority < lane->batch->level->priority;
            if (!outranked && s->state != SHARD_REVOKED) continue;
            coming += sched_size(f, w, lane, shape);
            if (!outranked) continue;
            if (shard_reserve(f, fx, s)) return;
            shard_withdraw(f, s, false, FATE_REQUEUE, fx);
        }
    }
}

void sched_run(struct farm *f, struct farm_effects *fx) {
    if (f->deposed) return;
    if (f->work_arrived || f->woken) grant_all(f, fx);
    if (f->outranked) {
        f->outranked = false;
        retract(f, fx);
        if (f->work_arrived || f->woken) grant_all(f, fx);
    }
}
