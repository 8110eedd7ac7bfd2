/* The table of workers. The contract is worker.h, the data state.h. */
#include "coordinator/core/worker.h"

#include "coordinator/core/pool.h"
#include "coordinator/core/trouble.h"

#define GROUPS_LOOKED_AT 64 /* of a lane, for one that a worker can render */

struct worker *worker_by_name(const struct farm *f, const char *name) {
    return name && *name ? kn_map_get(f->worker_by_name, name, strlen(name)) : NULL;
}

struct worker *worker_by_conn(const struct farm *f, uint64_t conn) {
    return kn_map_get(f->worker_by_conn, &conn, sizeof conn);
}

struct worker *worker_by_uid(const struct farm *f, uint32_t uid) {
    for (size_t i = 0; i < f->worker_count; i++)
        if (f->workers[i]->uid == uid) return f->workers[i];
    return NULL;
}

struct worker_model *worker_model_of(struct worker *w, const struct model *m) {
    for (uint32_t k = 0; k < w->model_count; k++)
        if (w->models[k].model == m) return &w->models[k];
    return NULL;
}

struct worker_shape *worker_shape_of(struct worker *w, uint32_t shape_uid, bool make) {
    for (uint32_t i = 0; i < w->shape_count; i++) {
        if (w->shapes[i].shape_uid != shape_uid) continue;
        if (make) w->shapes[i].used = ++w->shape_clock;
        return &w->shapes[i];
    }
    if (!make) return NULL;
    uint32_t at = w->shape_count;
    if (at < SPEEDS_MAX) {
        w->shape_count++;
    } else { /* the one that was measured longest ago makes room */
        at = 0;
        for (uint32_t i = 1; i < SPEEDS_MAX; i++)
            if (w->shapes[i].used < w->shapes[at].used) at = i;
    }
    w->shapes[at] =
        (struct worker_shape){.shape_uid = shape_uid, .limit = UINT16_MAX, .used = ++w->shape_clock};
    return &w->shapes[at];
}

bool worker_can(struct worker *w, const struct shape *shape) {
    if (shape->key.needs & ~w->features) return false;
    const struct worker_shape *ws = worker_shape_of(w, shape->uid, false);
    return !ws || !ws->refused;
}

bool worker_can_some(const struct farm *f, struct worker *w, const struct lane *lane) {
    uint32_t left = GROUPS_LOOKED_AT;
    for (uint32_t g = lane->head; g != NONE && left > 0; g = lane->batch->groups[g].next, left--)
        if (worker_can(w, slab_at(&f->shapes, lane->batch->groups[g].shape))) return true;
    return false;
}

void worker_refuses(struct worker *w, uint32_t shape_uid) {
    worker_shape_of(w, shape_uid, true)->refused = true;
}

bool worker_unheard(struct worker *w, uint32_t shape_uid) {
    struct worker_shape *ws = worker_shape_of(w, shape_uid, true);
    if (ws->unheard < UNHEARD_MAX) ws->unheard++;
    bool over = ws->unheard == UNHEARD_MAX && !ws->refused;
    if (over) ws->refused = true;
    return over;
}

void worker_heard(struct worker *w, uint32_t shape_uid) {
    struct worker_shape *ws = worker_shape_of(w, shape_uid, false);
    if (ws) ws->unheard = 0;
}

void worker_said_hello(struct worker *w) {
    for (uint32_t i = 0; i < w->shape_count; i++) {
        w->shapes[i].refused = false;
        w->shapes[i].unheard = 0;
    }
}

void worker_wake(struct farm *f, struct worker *w) {
    if (w->woken) return;
    w->woken = true;
    w->woken_next = f->woken;
    f->woken = w;
}

void worker_recount(struct farm *f, struct worker *w) {
    if (w->conn && !w->lost && !w->drain_wish && !w->drain_said && !w->on_hold) {
        if (w->counted) return;
        pool_worker_enter(w);
        worker_wake(f, w);
    } else {
        pool_worker_leave(w);
    }
}

#define ONLY_FAILED 3 /* tasks of a batch in a row */

/* True when it may be given work, or is expected back soon. */
static bool is_around(const struct farm *f, const struct worker *w) {
    if (w->left || w->drain_wish || w->drain_said || w->on_hold) return false;
    return w->conn || f->now - w->seen_ms <= 2 * (uint64_t)f->config.silence_ms;
}

/* True when all workers that could render of this batch only failed of it: then a probe is all that can be had. */
static bool nobody_renders(const struct farm *f, const struct batch *b) {
    for (size_t i = 0; i < f->worker_count; i++) {
        struct worker *w = f->workers[i];
        if (!is_around(f, w) || (w->streak_batch == b->seq && w->streak >= ONLY_FAILED)) continue;
        for (uint32_t l = 0; l < b->lane_count; l++)
            if (pool_serves(b->lanes[l].pool, w) && worker_model_of(w, b->lanes[l].pool->model)) return false;
    }
    return true;
}

enum charge_weight worker_charge(const struct farm *f, const struct batch *b, const struct charger *c) {
    const struct worker *w = worker_by_uid(f, c->worker);
    if (!w) return c->firm ? CHARGE_HOLDS : CHARGE_GONE;
    if (w->proved != c->proved) return CHARGE_PROVED;
    if (w->run != c->run)
        return b->done_here == c->done && nobody_renders(f, b) ? CHARGE_PROVED : CHARGE_HOLDS;
    if (w->conn || f->now - w->seen_ms <= 2 * (uint64_t)f->config.silence_ms) return CHARGE_OPEN;
    return c->firm ? CHARGE_HOLDS : CHARGE_GONE;
}

bool worker_nan(const struct farm *f, const struct batch *b, const struct trouble *x,
                const struct worker *w) {
    uint32_t gave = 0;
    bool settled = false;
    for (uint32_t i = 0; i < x->by_count; i++) {
        const struct charger *c = &x->by[i];
        if (c->nan != w->backend) continue;
        if (c->worker == w->uid) return true;
        gave++;
        enum charge_weight weight = worker_charge(f, b, c);
        settled |= weight == CHARGE_PROVED || weight == CHARGE_OPEN; /* what is open is about to be known */
    }
    return gave >= 2 && settled;
}

bool worker_other_can(const struct farm *f, const struct batch *b, uint32_t t, const uint32_t *uids,
                      uint32_t count) {
    const struct task *task = &b->tasks[t];
    const struct group *group = &b->groups[task->group];
    const struct pool *p = b->lanes[group->lane].pool;
    const struct shape *shape = slab_at(&f->shapes, group->shape);
    const struct trouble *x = task->trouble == NONE ? NULL : slab_at(&f->troubles, task->trouble);
    for (size_t i = 0; i < f->worker_count; i++) {
        struct worker *w = f->workers[i];
        bool excluded = !is_around(f, w);
        for (uint32_t k = 0; k < count; k++) excluded |= w->uid == uids[k];
        if (excluded) continue;
        if (!pool_serves(p, w) || !worker_model_of(w, p->model) || !worker_can(w, shape)) continue;
        bool nan = x && trouble_any_nan(x) && worker_nan(f, b, x, w);
        const struct worker_shape *ws = worker_shape_of(w, shape->uid, false);
        if (!nan && !(ws && ws->limit == 0)) return true;
    }
    return false;
}
