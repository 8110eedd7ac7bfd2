/* Models, shapes and pools. The contract is pool.h, the data state.h.
 *
 * A pool stands for "workers that have this model (and are of this class)". Batches wait in it in the order
 * in which they are to be served; a worker looks at the heads of its few pools. Sums of speed over a pool's
 * workers are kept up to date, so that a shard can be sized without looking at the fleet. */
#include "coordinator/core/pool.h"

#include <stdlib.h>

/* ---- shared and counted: models, shapes, pools */

int pool_model_get(struct farm *f, const kn_digest digest, struct model **out) {
    struct model *m = kn_map_get(f->model_by_digest, digest, KN_SHA256_BYTES);
    if (!m) {
        m = calloc(1, sizeof *m);
        if (!m) return KN_ENOMEM;
        memcpy(m->digest, digest, sizeof m->digest);
        int rc = kn_map_put(f->model_by_digest, digest, KN_SHA256_BYTES, m);
        if (rc) {
            free(m);
            return rc;
        }
    }
    m->refs++;
    *out = m;
    return KN_OK;
}

void pool_model_put(struct farm *f, struct model *m) {
    if (--m->refs > 0) return;
    assert(!m->pools);
    kn_map_remove(f->model_by_digest, m->digest, KN_SHA256_BYTES);
    free(m);
}

int pool_shape_get(struct farm *f, const struct farm_group *key, uint32_t *slot) {
    struct shape *s = kn_map_get(f->shape_by_key, key, FARM_GROUP_BYTES);
    if (!s) {
        int rc = slab_reserve(&f->shapes, 1);
        if (rc) return rc;
        uint32_t taken = slab_take(&f->shapes);
        s = slab_at(&f->shapes, taken);
        *s = (struct shape){.key = *key, .slot = taken, .uid = ++f->shape_uid};
        s->units = (uint64_t)key->steps * key->width * key->height;
        if (s->units == 0) s->units = 1;
        rc = kn_map_put(f->shape_by_key, key, FARM_GROUP_BYTES, s);
        if (rc) {
            slab_give(&f->shapes, taken);
            return rc;
        }
    }
    s->refs++;
    *slot = s->slot;
    return KN_OK;
}

void pool_shape_put(struct farm *f, uint32_t slot) {
    struct shape *s = slab_at(&f->shapes, slot);
    if (--s->refs > 0) return;
    kn_map_remove(f->shape_by_key, &s->key, FARM_GROUP_BYTES);
    slab_give(&f->shapes, slot);
}

static void pool_count(struct pool *p, const struct worker *w, uint64_t speed, bool enter) {
    if (!pool_serves(p, w)) return;
    assert(enter || p->able > 0);
    p->able += enter ? 1u : -1u;
    if (speed == 0) return;
    p->known += enter ? 1u : -1u;
    if (enter)
        p->speed += speed;
    else
        p->speed -= speed;
}

int pool_get(struct farm *f, const kn_digest digest, const struct pin *pin, struct pool **out) {
    struct model *m;
    int rc = pool_model_get(f, digest, &m);
    if (rc) return rc;
    struct pool *p = m->pools;
    while (p && p->pin != pin) p = p->next;
    if (!p) {
        p = calloc(1, sizeof *p);
        if (!p) {
            pool_model_put(f, m);
            return KN_ENOMEM;
        }
        p->model = m;
        p->pin = pin;
        m->refs++;
        for (size_t i = 0; i < f->worker_count; i++) {
            struct worker *w = f->workers[i];
            for (uint32_t k = 0; w->counted && k < w->model_count; k++)
                if (w->models[k].model == m) pool_count(p, w, w->models[k].speed, true);
        }
        p->next = m->pools;
        m->pools = p;
    }
    if (p->refs == p->ready_cap) { /* a place for each lane, so that entering never fails */
        uint32_t cap = p->ready_cap ? p->ready_cap * 2 : 4;
        struct lane **ready = realloc(p->ready, cap * sizeof *ready);
        if (ready) {
            p->ready = ready;
            p->ready_cap = cap;
        } else {
            rc = KN_ENOMEM;
        }
    }
    p->refs++;
    pool_model_put(f, m); /* the pool holds the model */
    if (rc) {
        pool_put(f, p);
        return rc;
    }
    *out = p;
    return KN_OK;
}

void pool_put(struct farm *f, struct pool *p) {
    if (--p->refs > 0) return;
    struct model *m = p->model;
    struct pool **at = &m->pools;
    while (*at != p) at = &(*at)->next;
    *at = p->next;
    assert(p->ready_count == 0);
    free(p->ready);
    free(p);
    pool_model_put(f, m);
}

/* ---- workers in the sums */

static void pools_count(struct worker *w, const struct worker_model *wm, bool enter) {
    for (struct pool *p = wm->model->pools; p; p = p->next) pool_count(p, w, wm->speed, enter);
}

void pool_worker_enter(struct worker *w) {
    if (w->counted) return;
    w->counted = true;
    for (uint32_t k = 0; k < w->model_count; k++) pools_count(w, &w->models[k], true);
}

void pool_worker_leave(struct worker *w) {
    if (!w->counted) return;
    w->counted = false;
    for (uint32_t k = 0; k < w->model_count; k++) pools_count(w, &w->models[k], false);
}

void pool_worker_speed(struct worker *w, struct worker_model *wm, uint64_t speed) {
    if (w->counted) pools_count(w, wm, false);
    wm->speed = speed;
    if (w->counted) pools_count(w, wm, true);
}

/* ---- lanes in the order of their pool */

bool pool_lane_before(const struct lane *a, const struct lane *b) {
    const struct batch *x = a->batch, *y = b->batch;
    if (x->level != y->level) return x->level->priority > y->level->priority;
    if (x->vtime != y->vtime) return x->vtime < y->vtime;
    return x->seq < y->seq;
}

/* The place in the pool's order where a lane stands, or belongs. */
static uint32_t lane_place(const struct pool *p, const struct lane *lane) {
    uint32_t low = 0, high = p->ready_count;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (pool_lane_before(p->ready[mid], lane))
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static void lane_insert(struct lane *lane) {
    struct pool *p = lane->pool;
    assert(!lane->ready && p->ready_count < p->ready_cap);
    uint32_t i = lane_place(p, lane);
    memmove(&p->ready[i + 1], &p->ready[i], (p->ready_count - i) * sizeof *p->ready);
    p->ready[i] = lane;
    p->ready_count++;
    p->ready_units += lane->queued_units;
    lane->ready = true;
}

static void lane_remove(struct lane *lane) {
    struct pool *p = lane->pool;
    uint32_t i = lane_place(p, lane);
    assert(lane->ready && p->ready[i] == lane);
    p->ready_count--;
    memmove(&p->ready[i], &p->ready[i + 1], (p->ready_count - i) * sizeof *p->ready);
    p->ready_units -= lane->queued_units;
    lane->ready = false;
}

void pool_batch_unready(struct batch *b) {
    for (uint32_t l = 0; l < b->lane_count; l++)
        if (b->lanes[l].ready) lane_remove(&b->lanes[l]);
}

void pool_batch_rekey(struct batch *b, uint64_t vtime) {
    uint64_t ready = 0;
    for (uint32_t l = 0; l < b->lane_count; l++) {
        if (!b->lanes[l].ready) continue;
        ready |= UINT64_C(1) << l;
        lane_remove(&b->lanes[l]);
    }
    b->vtime = vtime;
    for (uint32_t l = 0; l < b->lane_count; l++)
        if (ready >> l & 1) lane_insert(&b->lanes[l]);
}
_Static_assert(KN_MODELS_PER_BATCH_MAX <= 64, "a bit for each lane");

/* A batch gets something ready. While it had nothing, it had no claim on the time that others used. */
static void batch_awake(struct farm *f, struct batch *b) {
    for (uint32_t l = 0; l < b->lane_count; l++)
        if (b->lanes[l].ready) return;
    if (b->vtime < b->level->vtime) b->vtime = b->level->vtime;
    b->starved_since = f->now;
}

void pool_batch_ready(struct farm *f, struct batch *b) {
    if (b->state != KN_BATCH_ACTIVE) return;
    for (uint32_t l = 0; l < b->lane_count; l++) {
        struct lane *lane = &b->lanes[l];
        if (lane->ready || lane->queued == 0) continue;
        batch_awake(f, b);
        lane_insert(lane);
    }
}

void pool_lane_queued(struct farm *f, struct lane *lane, int tasks, uint64_t units) {
    if (tasks >= 0) {
        lane->queued += (uint32_t)tasks;
        lane->queued_units += units;
        if (lane->ready) lane->pool->ready_units += units;
    } else {
        assert(lane->queued >= (uint32_t)-tasks);
        lane->queued -= (uint32_t)-tasks;
        lane->queued_units -= units;
        if (lane->ready) lane->pool->ready_units -= units;
    }
    if (lane->ready && lane->queued == 0) lane_remove(lane);
    if (!lane->ready && lane->queued > 0 && lane->batch->state == KN_BATCH_ACTIVE) {
        batch_awake(f, lane->batch);
        lane_insert(lane);
    }
}
