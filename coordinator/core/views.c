/* Looking at the farm; nothing here changes anything. The contract is farm.h. */
#include <stdlib.h>

#include "coordinator/core/batch.h"
#include "coordinator/core/speed.h"
#include "coordinator/core/state.h"

/* The time for what is left: at the speed of the last seconds, or before there is one at the measured speeds
 * of the workers. -1: unknown. */
static int64_t batch_eta(const struct batch *b, uint64_t now, float images_per_s) {
    if (!batch_live(b)) return 0;
    if (b->state == KN_BATCH_PAUSED) return -1;
    uint32_t left = b->total - batch_ended_count(b);
    double by_rate = images_per_s > 0 ? (double)left * 1000.0 / (double)images_per_s : -1;
    if (by_rate >= 0 && b->first_ms && now - b->first_ms >= 3000) return (int64_t)by_rate;
    double sum = 0;
    for (uint32_t l = 0; l < b->lane_count; l++) {
        const struct pool *p = b->lanes[l].pool;
        if (b->lanes[l].open_units == 0) continue;
        if (p->known == 0) return by_rate >= 0 ? (int64_t)by_rate : -1;
        double speed = (double)p->speed * p->able / p->known;
        sum += (double)b->lanes[l].open_units * 1000.0 / speed;
    }
    return (int64_t)sum;
}

static void view_batch(const struct batch *b, uint64_t now, struct farm_batch_view *v) {
    *v = (struct farm_batch_view){
        .state = b->state,
        .total = b->total,
        .done = b->counts[TASK_DONE],
        .failed = b->counts[TASK_FAILED],
        .cancelled = b->counts[TASK_CANCELLED],
        .queued = b->counts[TASK_QUEUED],
        .running = b->counts[TASK_GRANTED] + b->counts[TASK_COMMITTING] + b->counts[TASK_FAILING],
        .ended = b->log_count,
        .priority = b->level->priority,
        .cancelled_by_person = b->cancelled_by_person,
    };
    memcpy(v->id, b->id, sizeof v->id);
    v->images_per_s = b->first_ms ? rate_per_s(&b->rate, now, b->first_ms) : 0;
    if (b->first_ms) {
        uint64_t end = b->ended_ms ? b->ended_ms : now, paused = b->paused_ms;
        if (b->paused_since) paused += now - b->paused_since;
        uint64_t span = end > b->first_ms + paused ? end - b->first_ms - paused : 1;
        v->images_per_s_mean = (float)b->done_here * 1000.0f / (float)span;
    }
    v->eta_ms = batch_eta(b, now, v->images_per_s);
}

int farm_batch_view(const struct farm *f, const kn_id id, uint64_t now_ms, struct farm_batch_view *out) {
    const struct batch *b = batch_find(f, id);
    if (!b) return KN_ENOENT;
    view_batch(b, now_ms, out);
    return KN_OK;
}

size_t farm_batch_count(const struct farm *f) {
    return f->batch_count;
}

int farm_batch_at(const struct farm *f, size_t i, uint64_t now_ms, struct farm_batch_view *out) {
    if (i >= f->batch_count) return KN_ENOENT;
    view_batch(f->batches[i], now_ms, out);
    return KN_OK;
}

int farm_batch_ended(const struct farm *f, const kn_id id, uint32_t from, uint32_t max, uint32_t *tasks,
                     uint32_t *count, uint64_t *epoch) {
    const struct batch *b = batch_find(f, id);
    if (!b) return KN_ENOENT;
    uint32_t n = from < b->log_count ? b->log_count - from : 0;
    if (n > max) n = max;
    if (n > 0) memcpy(tasks, b->log + from, n * sizeof *tasks);
    *count = n;
    *epoch = b->epoch;
    return KN_OK;
}

int farm_task_state(const struct farm *f, const kn_id id, uint32_t task, enum farm_task_state *out) {
    const struct batch *b = batch_find(f, id);
    if (!b || task >= b->total) return KN_ENOENT;
    *out = (enum farm_task_state)b->tasks[task].state;
    return KN_OK;
}

int farm_wants(const struct farm *f, const kn_id id, uint32_t task) {
    const struct batch *b = batch_find(f, id);
    if (!b || !batch_live(b) || task >= b->total) return KN_EGONE;
    switch ((enum farm_task_state)b->tasks[task].state) {
    case TASK_DONE:
        return KN_EEXIST;
    case TASK_FAILING:
    case TASK_FAILED:
    case TASK_CANCELLED:
        return KN_EGONE;
    default:
        return KN_OK;
    }
}

/* ---- workers */

size_t farm_worker_count(const struct farm *f) {
    return f->worker_count;
}

int farm_worker_at(const struct farm *f, size_t i, uint64_t now_ms, struct farm_worker_view *out) {
    if (i >= f->worker_count) return KN_ENOENT;
    const struct worker *w = f->workers[i];
    *out = (struct farm_worker_view){
        .worker = w->name,
        .backend = farm_backend_name(f, w->backend),
        .conn = w->conn,
        .step = w->step,
        .steps = w->steps,
        .done = w->done,
        .failed = w->failed,
        .last_seen_ms = (uint32_t)(now_ms - w->seen_ms),
        .images_per_s = rate_per_s(&w->rate, now_ms, 0),
    };
    const struct shard *running = NULL;
    uint32_t shards = 0;
    for (const struct shard *s = w->shards; s; s = s->worker_next) {
        if (s->state == SHARD_SENT) continue;
        shards++;
        if (s->state == SHARD_STARTED && (!running || s->id == w->running)) running = s;
    }
    out->shards = shards;
    if (running && running->batch) {
        out->has_batch = true;
        memcpy(out->batch, running->batch->id, sizeof out->batch);
    }
    if (running) out->tasks = running->count;
    if (w->loaded) {
        out->has_model = true;
        memcpy(out->model, w->loaded->digest, sizeof out->model);
    }
    if (w->lost || !w->conn)
        out->state = KN_WORKER_LOST;
    else if (w->drain_wish || w->drain_said || w->barred)
        out->state = KN_WORKER_DRAINING;
    else
        out->state = shards > 0 ? KN_WORKER_BUSY : KN_WORKER_IDLE;
    return KN_OK;
}

float farm_images_per_s(const struct farm *f, uint64_t now_ms) {
    return rate_per_s(&f->rate, now_ms, 0);
}
