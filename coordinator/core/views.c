/* Looking at the farm; nothing here changes anything. The contract is farm.h. */
#include <stdlib.h>

#include "coordinator/core/batch.h"
#include "coordinator/core/health.h"
#include "coordinator/core/pool.h"
#include "coordinator/core/shard.h"
#include "coordinator/core/speed.h"
#include "coordinator/core/state.h"
#include "coordinator/core/worker.h"

/* True when the worker is believed to be there: it was heard of in the last seconds. */
static bool heard(const struct worker *w, uint64_t now) {
    return w->conn && !w->lost && now - w->seen_ms < SILENT_MS;
}

static bool has_model(const struct worker *w, const struct model *m) {
    for (uint32_t k = 0; k < w->model_count; k++)
        if (w->models[k].model == m) return true;
    return false;
}

/* A worker that was free has nothing of this lane yet: it is about to get some, unless all that is queued has
 * failed on it and is to be tried by others. */
static bool only_suspects(const struct batch *b, const struct lane *lane) {
    for (uint32_t g = lane->head; g != NONE; g = b->groups[g].next)
        if (b->groups[g].queue.count > 0) return false;
    return true;
}

static void wait_for_worker(struct farm_batch_view *v, enum kn_wait why, const struct worker *w,
                            uint64_t now) {
    if (v->wait != why) v->wait_workers = 0;
    v->wait = why;
    v->wait_workers++;
    v->wait_worker = w->name;
    v->wait_ms = now - w->seen_ms;
}

/* The first group of a lane that this worker cannot render: what it lacks for it. */
static uint64_t lane_lacks(const struct farm *f, const struct worker *w, const struct lane *lane) {
    const struct shape *shape = slab_at(&f->shapes, lane->batch->groups[lane->head].shape);
    return shape->key.needs & ~w->features;
}

/* Why this lane's queued tasks are not being rendered, though nothing else of the batch is either. */
static void lane_wait(const struct farm *f, const struct lane *lane, uint64_t now,
                      struct farm_batch_view *v) {
    const struct pool *p = lane->pool;
    const struct batch *b = lane->batch;
    const struct worker *lost = NULL, *other_class = NULL, *unfit = NULL;
    bool hopeless = true; /* nobody of them is likely to come back */
    memcpy(v->wait_model, p->model->digest, sizeof v->wait_model);
    for (size_t i = 0; i < f->worker_count; i++) {
        struct worker *w = f->workers[i];
        if (!has_model(w, p->model)) continue;
        if (w->lost) {
            if (!lost || w->lost_ms > lost->lost_ms) lost = w;
            continue;
        }
        if (!pool_serves(p, w)) {
            other_class = w;
            continue;
        }
        if (!worker_can_some(f, w, lane)) {
            unfit = w;
            continue;
        }
        /* Of several reasons the one that is nearest to an end is told: a worker that is busy comes free, one
         * that is silent may be heard of again, one that drains will not render. */
        hopeless = hopeless && health_hopeless(w);
        if (w->on_hold) {
            if (v->wait != KN_WAIT_SILENT) wait_for_worker(v, KN_WAIT_HELD, w, now);
            if (v->wait == KN_WAIT_HELD) v->wait_reason = w->hold_reason;
        } else if (!heard(w, now)) {
            if (v->wait != KN_WAIT_DRAINING && v->wait != KN_WAIT_HELD)
                wait_for_worker(v, KN_WAIT_SILENT, w, now);
        } else if (w->drain_wish || w->drain_said) {
            if (v->wait != KN_WAIT_SILENT && v->wait != KN_WAIT_HELD)
                wait_for_worker(v, KN_WAIT_DRAINING, w, now);
        } else {
            const struct shard *s = w->shards;
            while (s && !s->batch) s = s->worker_next;
            v->held = false;
            v->wait = !s ? (only_suspects(b, lane) ? KN_WAIT_OTHER : KN_WAIT_NONE)
                      : s->batch->level->priority > b->level->priority ? KN_WAIT_PRIORITY
                                                                       : KN_WAIT_TURN;
            v->wait_worker = w->name;
            if (s) memcpy(v->wait_batch, s->batch->id, sizeof v->wait_batch);
            return;
        }
    }
    v->held = v->held && v->wait == KN_WAIT_HELD && hopeless;
    if (v->wait) return;
    if (unfit) {
        wait_for_worker(v, KN_WAIT_FEATURE, unfit, now);
        v->wait_lacks = lane_lacks(f, unfit, lane);
        return;
    }
    if (other_class) {
        wait_for_worker(v, KN_WAIT_CLASS, other_class, now);
        v->wait_class = p->pin->name;
        return;
    }
    v->wait = KN_WAIT_NO_WORKER;
    if (!lost) return;
    v->wait_worker = lost->name;
    v->wait_ms = now - lost->seen_ms;
}

static void batch_wait(const struct farm *f, const struct batch *b, uint64_t now, struct farm_batch_view *v) {
    const struct worker *silent = NULL;
    v->wait_worker = v->wait_class = v->wait_reason = "";
    if (!batch_live(b) || b->counts[TASK_COMMITTING] + b->counts[TASK_FAILING] > 0) return;
    for (const struct shard *s = b->shards; s; s = s->batch_next) {
        if (heard(s->worker, now)) return;
        silent = s->worker;
    }
    if (silent) {
        wait_for_worker(v, KN_WAIT_SILENT, silent, now);
    } else if (b->state == KN_BATCH_PAUSED) {
        v->wait = KN_WAIT_PAUSED;
    } else {
        v->held = true; /* unless one of the lanes may go on */
        for (uint32_t l = 0; l < b->lane_count; l++) {
            if (b->lanes[l].queued == 0) continue;
            v->wait = KN_WAIT_NONE;
            lane_wait(f, &b->lanes[l], now, v);
            if (v->wait == KN_WAIT_NONE) break; /* something of it is about to run */
        }
        v->held = v->held && v->wait == KN_WAIT_HELD;
    }
}

/* Steps that are made of tasks which have not ended, and (in *images) how many images they are together. */
static uint64_t steps_under_way(const struct batch *b, double *images) {
    uint64_t sum = 0;
    for (const struct shard *s = b->shards; s; s = s->batch_next) {
        if (s->copy || s->steps == 0) continue;
        uint32_t step = s->minibatch_step < s->steps ? s->minibatch_step : s->steps;
        sum += (uint64_t)speed_minibatch(s) * step;
        *images += (double)speed_minibatch(s) * step / s->steps;
    }
    return sum;
}

/* The time for what is left: at the speed of the last seconds, or before there is one at the measured speeds
 * of the workers. -1: unknown, or some of it cannot be rendered at all now. */
static int64_t batch_eta(const struct batch *b, const struct farm_batch_view *v, uint64_t under_way) {
    if (!batch_live(b)) return 0;
    if (b->state == KN_BATCH_PAUSED || v->wait) return -1;
    for (uint32_t l = 0; l < b->lane_count; l++)
        if (b->lanes[l].queued > 0 && b->lanes[l].pool->able == 0) return -1;
    uint64_t left = b->open_steps > under_way ? b->open_steps - under_way : 0;
    if (v->steps_per_s > 0) return (int64_t)((double)left * 1000.0 / (double)v->steps_per_s);
    double sum = 0;
    for (uint32_t l = 0; l < b->lane_count; l++) {
        const struct pool *p = b->lanes[l].pool;
        if (b->lanes[l].open_units == 0) continue;
        if (p->known == 0 || p->speed == 0) return -1;
        double speed = (double)p->speed * p->able / p->known;
        sum += (double)b->lanes[l].open_units * 1000.0 / speed;
    }
    return (int64_t)sum;
}

static void view_batch(const struct farm *f, const struct batch *b, uint64_t now, struct farm_batch_view *v) {
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
    if (b->first_ms) {
        uint64_t end = b->ended_ms ? b->ended_ms : now, paused = b->paused_ms;
        if (b->paused_since) paused += now - b->paused_since;
        uint64_t span = end > b->first_ms + paused ? end - b->first_ms - paused : 1;
        v->images_per_s_mean = (float)b->done_here * 1000.0f / (float)span;
    }
    double images = v->done + v->failed + v->cancelled + b->counts[TASK_COMMITTING];
    batch_wait(f, b, now, v);
    uint64_t under_way = steps_under_way(b, &images);
    v->progress = v->ended == b->total ? 1 : (float)(images / b->total);
    if (!v->wait && b->first_ms) {
        v->images_per_s = rate_per_s(&b->rate, now, b->first_ms);
        v->steps_per_s = speed_steps_per_s(&b->steps, now);
    }
    v->eta_ms = batch_eta(b, v, under_way);
}

int farm_batch_view(const struct farm *f, const kn_id id, uint64_t now_ms, struct farm_batch_view *out) {
    const struct batch *b = batch_find(f, id);
    if (!b) return KN_ENOENT;
    view_batch(f, b, now_ms, out);
    return KN_OK;
}

size_t farm_batch_count(const struct farm *f) {
    return f->batch_count;
}

bool farm_batch_settled(const struct farm *f, const kn_id id) {
    const struct batch *b = batch_find(f, id);
    return !b || (!f->deposed && !b->state_sent && !b->state_due && !b->state_dirty && !b->retried);
}

int farm_batch_at(const struct farm *f, size_t i, uint64_t now_ms, struct farm_batch_view *out) {
    if (i >= f->batch_count) return KN_ENOENT;
    view_batch(f, f->batches[i], now_ms, out);
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

int farm_task_view(const struct farm *f, const kn_id id, uint32_t task, struct farm_task_view *out) {
    const struct batch *b = batch_find(f, id);
    if (!b || task >= b->total) return KN_ENOENT;
    const struct task *t = &b->tasks[task];
    *out = (struct farm_task_view){.state = (enum farm_task_state)t->state,
                                   .attempts = t->attempts,
                                   .charges = t->charges,
                                   .worker = "",
                                   .suspect = t->trouble != NONE,
                                   .unfit_worker = ""};
    const struct group *group = &b->groups[t->group];
    const struct pool *p = b->lanes[group->lane].pool;
    const struct shape *shape = slab_at(&f->shapes, group->shape);
    for (size_t i = 0; t->state == TASK_QUEUED && i < f->worker_count; i++) {
        struct worker *w = f->workers[i];
        if (w->lost || !has_model(w, p->model) || !pool_serves(p, w) || worker_can(w, shape)) continue;
        out->unfit++;
        out->unfit_worker = w->name;
        out->unfit_lacks = shape->key.needs & ~w->features;
    }
    if (t->state != TASK_GRANTED || t->a == NONE) return KN_OK;
    const struct shard *s = slab_at(&f->shards, t->a);
    out->worker = s->worker->name;
    out->started = s->state != SHARD_WAITING;
    out->step = s->step;
    out->steps = s->steps;
    out->shard_tasks = s->count;
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

bool farm_holds(const struct farm *f, const char *worker, uint64_t shard, uint64_t term, const kn_id batch,
                uint32_t task) {
    const struct worker *w = worker_by_name(f, worker);
    const struct shard *s = w ? shard_find(w, shard, term) : NULL;
    return s && s->batch && memcmp(s->batch->id, batch, sizeof s->batch->id) == 0 && task < s->batch->total &&
           shard_holds(s, task);
}

void farm_task_size(const struct farm *f, const kn_id id, uint32_t task, uint32_t *width, uint32_t *height) {
    const struct batch *b = batch_find(f, id);
    const struct shape *x = NULL;
    if (b && task < b->total) x = slab_at(&f->shapes, b->groups[b->tasks[task].group].shape);
    *width = x ? x->key.width : 0;
    *height = x ? x->key.height : 0;
}

void farm_each_waiting(const struct farm *f, void (*each)(void *ctx, const kn_digest sha256), void *ctx) {
    for (uint32_t slot = f->wait_head; slot != NONE;) {
        const struct pending *p = slab_at(&f->pendings, slot);
        if (!p->fail) each(ctx, p->sha256);
        slot = p->next;
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
        .drains = w->drain_said,
        .step = w->step,
        .steps = w->steps,
        .done = w->done,
        .failed = w->failed,
        .hold_reason = w->hold_reason,
        .last_seen_ms = (uint32_t)(now_ms - w->seen_ms),
        .images_per_s = rate_per_s(&w->rate, now_ms, 0),
        .steps_per_s = speed_steps_per_s(&w->steps_made, now_ms),
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
    else if (w->drain_wish || w->drain_said || w->on_hold)
        out->state = KN_WORKER_DRAINING;
    else
        out->state = shards > 0 ? KN_WORKER_BUSY : KN_WORKER_IDLE;
    return KN_OK;
}

bool farm_worker_is_lost(const struct farm *f, const char *name) {
    const struct worker *w = worker_by_name(f, name);
    return !w || w->lost;
}

float farm_images_per_s(const struct farm *f, uint64_t now_ms) {
    return rate_per_s(&f->rate, now_ms, 0);
}
