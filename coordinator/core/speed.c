/* How fast workers are: measured for each worker and shape, from the images that came of a shard and the time that
 * it took. The contract is speed.h. */
#include "coordinator/core/speed.h"

#include "coordinator/core/pool.h"
#include "coordinator/core/worker.h"

#define BELIEVED                                                                                             \
    4 /* a worker may be so much faster than we have seen: images wait for the disk and the store */

void speed_measured(struct farm *f, struct worker *w, const struct shard *s, uint32_t render_ms) {
    uint32_t images = s->delivered;
    if (images == 0) return;
    uint64_t since = s->started_ms > w->ended_ms ? s->started_ms : w->ended_ms;
    uint64_t seen = s->state == SHARD_STARTED ? (f->now - since) * 1000 / BELIEVED : 0;
    uint64_t us = (uint64_t)render_ms * 1000;
    if (us < seen) us = seen;
    us /= images;
    if (us < 1) us = 1;
    if (us > UINT32_MAX) us = UINT32_MAX;
    struct worker_shape *ws = worker_shape_of(w, s->shape_uid, true);
    /* A larger shard tells more than the small ones before it: an image is cheaper in a large minibatch. */
    if (ws->us_per_image == 0 || images > ws->last_count)
        ws->us_per_image = (uint32_t)us;
    else
        ws->us_per_image = (uint32_t)((3 * (uint64_t)ws->us_per_image + us) / 4);
    if (ws->us_per_image == 0) ws->us_per_image = 1;
    if (images > ws->last_count) ws->last_count = (uint16_t)images;
    if (s->units == 0) return;
    struct worker_model *wm = NULL;
    for (uint32_t k = 0; k < w->model_count && !wm; k++)
        if (w->models[k].model == s->model) wm = &w->models[k];
    if (!wm) return;
    uint64_t speed = s->units * 1000000 / ws->us_per_image;
    pool_worker_speed(w, wm, speed ? speed : 1);
}

void speed_out_of_memory(struct worker *w, uint32_t shape_uid, uint32_t images) {
    struct worker_shape *ws = worker_shape_of(w, shape_uid, true);
    uint32_t half = images / 2;
    if (half < ws->limit) ws->limit = (uint16_t)half;
}

uint64_t speed_us_per_image(struct worker *w, const struct pool *p, const struct shape *shape) {
    const struct worker_shape *ws = worker_shape_of(w, shape->uid, false);
    if (ws && ws->us_per_image) return ws->us_per_image;
    const struct worker_model *wm = worker_model_of(w, p->model);
    uint64_t speed = wm ? wm->speed : 0;
    if (speed == 0 && p->known > 0) speed = p->speed / p->known;
    if (speed == 0) return 0;
    uint64_t us = shape->units * 1000000 / speed;
    return us ? us : 1;
}

uint64_t speed_shard_us(const struct shard *s) {
    const struct worker_shape *ws = worker_shape_of(s->worker, s->shape_uid, false);
    return ws && ws->us_per_image ? (uint64_t)ws->us_per_image * s->count : s->cost;
}

uint64_t speed_backlog_us(const struct farm *f, const struct worker *w) {
    uint64_t sum = 0;
    for (const struct shard *s = w->shards; s; s = s->worker_next) {
        uint64_t cost = speed_shard_us(s);
        if (s->state == SHARD_WAITING) {
            sum += cost;
        } else if (s->state == SHARD_STARTED && s->left > 0) {
            uint64_t spent = (f->now - s->started_ms) * 1000;
            sum += spent < cost ? cost - spent : cost / 8;
        }
    }
    return sum;
}

uint32_t speed_minibatch(const struct shard *s) {
    return s->minibatch < s->left ? s->minibatch : s->left;
}

static void steps_add(struct step_rate *r, uint64_t now, uint32_t steps) {
    if (!r->since || now - r->last > RATE_WINDOW_S * 1000) { /* the first, or the first after a pause */
        *r = (struct step_rate){.since = now, .last = now};
        return;
    }
    r->last = now;
    rate_add(&r->rate, now, steps);
}

void speed_steps(struct farm *f, struct batch *b, struct shard *s) {
    const struct shape *shape = slab_at(&f->shapes, b->groups[s->group].shape);
    uint32_t steps = shape->key.steps, step = s->minibatch_step < steps ? s->minibatch_step : steps;
    uint64_t made = (uint64_t)(s->count - s->left) * steps + (uint64_t)speed_minibatch(s) * step;
    if (made <= s->counted) return;
    uint32_t more = (uint32_t)(made - s->counted);
    s->counted = made;
    steps_add(&s->worker->steps_made, f->now, more);
    if (!s->copy) steps_add(&b->steps, f->now, more); /* the first of the two shards counts for the batch */
}

float speed_steps_per_s(const struct step_rate *r, uint64_t now) {
    return r->since && now - r->since >= 500 ? rate_per_s(&r->rate, now, r->since) : 0;
}

void rate_add(struct rate *r, uint64_t now, uint32_t images) {
    uint64_t second = now / 1000;
    if (second > r->second + RATE_WINDOW_S || r->second > second) {
        memset(r->bucket, 0, sizeof r->bucket);
    } else {
        for (uint64_t s = r->second + 1; s <= second; s++) r->bucket[s % (RATE_WINDOW_S + 1)] = 0;
    }
    r->second = second;
    r->bucket[second % (RATE_WINDOW_S + 1)] += images;
}

float rate_per_s(const struct rate *r, uint64_t now, uint64_t since_ms) {
    uint64_t second = now / 1000, first = second >= RATE_WINDOW_S ? second - RATE_WINDOW_S : 0, sum = 0;
    for (uint64_t s = r->second; s + RATE_WINDOW_S >= r->second && s >= first && s <= second; s--) {
        sum += r->bucket[s % (RATE_WINDOW_S + 1)];
        if (s == 0) break;
    }
    uint64_t begin = first * 1000 > since_ms ? first * 1000 : since_ms;
    uint64_t span = now > begin + 1000 ? now - begin : 1000;
    return (float)sum * 1000.0f / (float)span;
}
