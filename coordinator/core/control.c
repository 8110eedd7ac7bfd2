/* A person's wishes about a batch. The contract is control.h. */
#include "coordinator/core/control.h"

#include <stdlib.h>

#include "coordinator/core/batch.h"
#include "coordinator/core/pending.h"
#include "coordinator/core/pool.h"
#include "coordinator/core/shard.h"
#include "coordinator/core/task.h"

int control_cancel(struct farm *f, struct batch *b, struct farm_effects *fx) {
    if (b->state == KN_BATCH_CANCELLED) return KN_OK;
    if (b->state == KN_BATCH_DONE) return KN_ESTATE;
    uint32_t shards = 0;
    for (struct shard *s = b->shards; s; s = s->batch_next) shards++;
    int rc = farm_reserve(f, fx, shards + 4, 0, 0);
    if (rc) return rc;
    pool_batch_unready(b);
    if (b->paused_since) b->paused_ms += f->now - b->paused_since;
    b->paused_since = 0;
    b->state = KN_BATCH_CANCELLED;
    b->cancelled_by_person = true;
    b->ended_ms = f->now;
    while (b->shards) shard_withdraw(f, b->shards, true, FATE_CANCEL, fx);
    for (uint32_t t = 0; t < b->total; t++) {
        if (b->tasks[t].state != TASK_QUEUED) continue;
        task_unqueue(f, b, t);
        task_set(f, b, t, TASK_CANCELLED);
    }
    batch_state_send(f, b, fx);
    return KN_OK;
}

int control_pause(struct farm *f, struct batch *b, struct farm_effects *fx) {
    if (b->state == KN_BATCH_PAUSED) return KN_OK;
    if (b->state != KN_BATCH_ACTIVE) return KN_ESTATE;
    uint32_t shards = 0;
    for (struct shard *s = b->shards; s; s = s->batch_next) shards++;
    int rc = farm_reserve(f, fx, shards + 4, 0, 0);
    if (rc) return rc;
    pool_batch_unready(b);
    b->state = KN_BATCH_PAUSED;
    b->paused_since = f->now;
    struct shard *next;
    for (struct shard *s = b->shards; s; s = next) { /* running ones may finish */
        next = s->batch_next;
        if (s->state == SHARD_WAITING) shard_withdraw(f, s, false, FATE_REQUEUE, fx);
    }
    batch_state_send(f, b, fx);
    return KN_OK;
}

int control_resume(struct farm *f, struct batch *b, struct farm_effects *fx) {
    if (b->state == KN_BATCH_ACTIVE) return KN_OK;
    if (b->state != KN_BATCH_PAUSED) return KN_ESTATE;
    int rc = farm_reserve(f, fx, 4, 0, 0);
    if (rc) return rc;
    b->state = KN_BATCH_ACTIVE;
    b->paused_ms += f->now - b->paused_since;
    b->paused_since = 0;
    pool_batch_ready(f, b);
    f->work_arrived = f->outranked = true;
    batch_state_send(f, b, fx);
    return KN_OK;
}

/* Takes tasks out of the log of ends and queues them again, in the order of their numbers: the failed ones,
 * or with `lost` those that are marked so. */
static void requeue_ended(struct farm *f, struct batch *b, bool lost) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < b->log_count; i++) {
        uint32_t t = b->log[i];
        struct task *task = &b->tasks[t];
        if (lost ? !task->lost : task->state != TASK_FAILED && task->state != TASK_CANCELLED) {
            b->log[kept++] = t;
            continue;
        }
        struct group *group = &b->groups[task->group];
        const struct shape *shape = slab_at(&f->shapes, group->shape);
        b->lanes[group->lane].open_units += shape->units;
        b->open_steps += shape->key.steps;
        b->counts[task->state]--;
        b->counts[TASK_GRANTED]++; /* only until it is queued below */
        task->state = TASK_GRANTED;
        task->charges = task->losses = 0;
        task->lost = false;
        task->backend = BACKEND_NONE;
    }
    for (uint32_t t = 0, left = b->log_count - kept; left > 0 && t < b->total; t++) {
        struct task *task = &b->tasks[t];
        if (task->state != TASK_GRANTED || task->a != NONE) continue;
        task_queue(f, b, t, false);
        left--;
    }
    if (kept != b->log_count) b->epoch++;
    b->log_count = kept;
    if (b->state == KN_BATCH_DONE) b->state = KN_BATCH_ACTIVE;
    b->ended_ms = 0;
    pool_batch_ready(f, b);
    f->outranked = true;
}

int control_retry(struct farm *f, struct batch *b, struct farm_effects *fx) {
    int rc = farm_reserve(f, fx, 4, 0, 0);
    if (rc) return rc;
    bool cancelled = b->state == KN_BATCH_CANCELLED;
    if (b->counts[TASK_FAILED] + b->counts[TASK_FAILING] == 0 && !cancelled) return KN_OK;
    if (cancelled) b->state = KN_BATCH_ACTIVE; /* live from here on: what is queued below is handed out */
    for (uint32_t t = 0; b->counts[TASK_FAILING] > 0 && t < b->total; t++)
        if (b->tasks[t].state == TASK_FAILING) pending_void(f, b, t);
    requeue_ended(f, b, false);
    b->cancelled_by_person = false;
    b->retried = true;
    if (batch_ended_count(b) == b->total) /* it was cancelled when nothing of it was left */
        batch_check_end(f, b, fx);
    else
        batch_state_send(f, b, fx);
    return KN_OK;
}

int control_lost(struct farm *f, struct batch *b, const uint32_t *tasks, uint32_t count,
                 struct farm_effects *fx) {
    int rc = farm_reserve(f, fx, 4, 0, 0);
    if (rc) return rc;
    uint32_t lost = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct task *task = tasks[i] < b->total ? &b->tasks[tasks[i]] : NULL;
        if (!task || task->state != TASK_DONE || task->lost) continue;
        lost++;
        if (b->state != KN_BATCH_CANCELLED) {
            task->lost = true;
            continue;
        }
        task->state = TASK_CANCELLED; /* nothing of a cancelled batch is rendered; it keeps its place */
        task->backend = BACKEND_NONE;
        b->counts[TASK_DONE]--;
        b->counts[TASK_CANCELLED]++;
    }
    fx_note(fx, FX_NOTE, b->id, "objects_lost tasks=%u", lost);
    if (lost == 0) return KN_OK;
    if (b->state == KN_BATCH_CANCELLED) {
        b->epoch++;
        return KN_OK;
    }
    requeue_ended(f, b, true);
    batch_state_send(f, b, fx);
    return KN_OK;
}

int control_priority(struct farm *f, struct batch *b, int priority, struct farm_effects *fx) {
    if (!batch_live(b)) return KN_ESTATE;
    if (b->level->priority == priority) return KN_OK;
    int rc = farm_reserve(f, fx, 4, 0, 0);
    if (rc) return rc;
    struct level *level = batch_level_get(f, priority);
    if (!level) return KN_ENOMEM;
    pool_batch_unready(b);
    batch_level_put(f, b->level);
    b->level = level;
    b->vtime = level->vtime;
    pool_batch_ready(f, b);
    f->work_arrived = f->outranked = true;
    batch_state_send(f, b, fx);
    return KN_OK;
}

int control_remove(struct farm *f, struct batch *b, struct farm_effects *fx) {
    if (batch_live(b) || batch_ended_count(b) < b->total) return KN_ESTATE;
    int rc = farm_reserve(f, fx, 4, 0, 0);
    if (rc) return rc;
    assert(!b->shards);
    if (b->state_due) f->states_due--;
    struct farm_effect *e = fx_add(fx, FX_BATCH_REMOVE);
    memcpy(e->batch, b->id, sizeof e->batch);
    kn_map_remove(f->batch_by_id, b->id, sizeof b->id);
    size_t i = 0;
    while (f->batches[i] != b) i++;
    f->batch_count--;
    memmove(&f->batches[i], &f->batches[i + 1], (f->batch_count - i) * sizeof *f->batches);
    batch_destroy(f, b);
    return KN_OK;
}
