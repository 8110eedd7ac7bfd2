/* The life of a batch. The contract is batch.h, the data state.h.
 *
 * The store hears of one state at a time (state_sent). A state that changes meanwhile is told behind it
 * (state_dirty); one that could not be written is told again after a pause (state_due). */
#include "coordinator/core/batch.h"

#include <assert.h>
#include <stdlib.h>

#include "base/planted.h"
#include "coordinator/core/pool.h"
#include "coordinator/core/task.h"
#include "coordinator/core/trouble.h"

/* ---- priorities in use, and fair share */

struct level *batch_level_get(struct farm *f, int priority) {
    for (uint32_t i = 0; i < f->level_count; i++) {
        if (f->levels[i]->priority != priority) continue;
        f->levels[i]->batches++;
        return f->levels[i];
    }
    if (f->level_count == f->level_cap) {
        uint32_t cap = f->level_cap ? f->level_cap * 2 : 8;
        struct level **levels = realloc(f->levels, cap * sizeof *levels);
        if (!levels) return NULL;
        f->levels = levels;
        f->level_cap = cap;
    }
    struct level *l = calloc(1, sizeof *l);
    if (!l) return NULL;
    l->priority = priority;
    l->batches = 1;
    f->levels[f->level_count++] = l;
    return l;
}

void batch_level_put(struct farm *f, struct level *l) {
    if (!l || --l->batches > 0) return;
    for (uint32_t i = 0; i < f->level_count; i++) {
        if (f->levels[i] != l) continue;
        f->levels[i] = f->levels[--f->level_count];
        free(l);
        return;
    }
}

void batch_charge_time(struct farm *f, struct batch *b, uint64_t us) {
    if (b->vtime > b->level->vtime) b->level->vtime = b->vtime;
    b->starved_since = f->now;
    pool_batch_rekey(b, b->vtime + us);
}

void batch_refund_time(struct batch *b, uint64_t us) {
    pool_batch_rekey(b, us < b->vtime ? b->vtime - us : 0);
}

/* ---- the state in the store */

void batch_state_send(struct farm *f, struct batch *b, struct farm_effects *fx) {
    if (b->state_sent || b->state_due) {
        b->state_dirty = !KN_PLANTED(WISH_DROPPED);
        return;
    }
    if (f->deposed) return;
    struct farm_effect *e = fx_add(fx, FX_BATCH_STATE);
    memcpy(e->batch, b->id, sizeof e->batch);
    e->u.batch_state.state = b->state;
    e->u.batch_state.priority = b->level->priority;
    e->u.batch_state.retried = b->retried;
    b->retried_sent = b->retried;
    b->retried = false;
    b->state_sent = true;
    b->state_dirty = false;
}

void batch_state_stored(struct farm *f, struct batch *b, int code, struct farm_effects *fx) {
    if (!b->state_sent) return;
    b->state_sent = false;
    if (code != 0 && code != KN_EEXIST && code != KN_EGONE && code != KN_ETERM) {
        uint32_t doubled = b->state_tries < 4 ? b->state_tries : 4;
        b->state_tries++;
        b->state_due = f->now + ((uint64_t)RETRY_MS << doubled);
        f->states_due++;
        if (!KN_PLANTED(RETRY_FORGOTTEN)) b->retried |= b->retried_sent;
        return;
    }
    b->state_tries = 0;
    if (b->state_dirty) batch_state_send(f, b, fx);
}

void batch_state_retry(struct farm *f, struct farm_effects *fx) {
    for (size_t i = 0; f->states_due > 0 && i < f->batch_count; i++) {
        struct batch *b = f->batches[i];
        if (!b->state_due || b->state_due > f->now) continue;
        if (fx_reserve(fx, 1)) return;
        b->state_due = 0;
        f->states_due--;
        batch_state_send(f, b, fx);
    }
}

void batch_check_end(struct farm *f, struct batch *b, struct farm_effects *fx) {
    if (!batch_live(b) || batch_ended_count(b) < b->total) return;
    if (b->paused_since) b->paused_ms += f->now - b->paused_since;
    b->paused_since = 0;
    b->state = KN_BATCH_DONE;
    b->ended_ms = f->now;
    batch_state_send(f, b, fx);
}

/* ---- opening */

struct batch *batch_find(const struct farm *f, const kn_id id) {
    return kn_map_get(f->batch_by_id, id, KN_UUID_BYTES);
}

static int open_groups(struct farm *f, struct batch *b, const struct ev_batch_open *ev) {
    b->groups = calloc(ev->group_count, sizeof *b->groups);
    b->lanes = calloc(ev->group_count < KN_MODELS_PER_BATCH_MAX ? ev->group_count : KN_MODELS_PER_BATCH_MAX,
                      sizeof *b->lanes);
    if (!b->groups || !b->lanes) return KN_ENOMEM;
    for (uint32_t g = 0; g < ev->group_count; g++) {
        struct group *group = &b->groups[g];
        group->queue = (struct tasklist){NONE, NONE, 0};
        group->piece_head = group->piece_tail = group->prev = group->next = NONE;
        int rc = pool_shape_get(f, &ev->groups[g], &group->shape);
        if (rc) return rc;
        b->group_count++; /* batch_destroy gives the shape back from here on */
        uint32_t l = 0;
        for (; l < b->lane_count; l++) {
            assert(b->lanes[l].pool);
            if (memcmp(b->lanes[l].pool->model->digest, ev->groups[g].model, sizeof(kn_digest)) == 0) break;
        }
        if (l == KN_MODELS_PER_BATCH_MAX) return KN_ELIMIT;
        if (l == b->lane_count) {
            struct lane *lane = &b->lanes[l];
            *lane = (struct lane){.batch = b, .head = NONE, .tail = NONE};
            rc = pool_get(f, ev->groups[g].model, b->pin, &lane->pool);
            if (rc) return rc;
            b->lane_count++;
        }
        group->lane = (uint16_t)l;
    }
    return KN_OK;
}

static int open_tasks(struct farm *f, struct batch *b, const struct ev_batch_open *ev) {
    b->tasks = malloc(ev->tasks * sizeof *b->tasks);
    b->log = malloc(ev->tasks * sizeof *b->log);
    if (!b->tasks || !b->log) return KN_ENOMEM;
    for (uint32_t t = 0; t < ev->tasks; t++) {
        struct task *task = &b->tasks[t];
        if (ev->task_group[t] >= ev->group_count) return KN_EINVAL;
        *task = (struct task){.a = NONE, .b = NONE, .trouble = NONE, .state = TASK_QUEUED};
        task->group = ev->task_group[t];
        task->backend = BACKEND_NONE;
        struct group *group = &b->groups[task->group];
        const struct shape *shape = slab_at(&f->shapes, group->shape);
        b->lanes[group->lane].open_units += shape->units;
        b->open_steps += shape->key.steps;
    }
    b->total = ev->tasks;
    b->counts[TASK_QUEUED] = ev->tasks;
    for (uint32_t i = 0; i < ev->ended_count; i++) {
        const struct farm_done_task *e = &ev->ended[i];
        if (e->task >= ev->tasks || e->state < TASK_DONE || e->state > TASK_CANCELLED ||
            b->tasks[e->task].state != TASK_QUEUED)
            return KN_EINVAL;
        task_set(f, b, e->task, e->state);
        if (e->state != TASK_DONE) continue;
        b->tasks[e->task].backend = e->backend < BACKENDS_MAX ? (uint8_t)e->backend : BACKEND_NONE;
        memcpy(b->tasks[e->task].pixels, e->pixels, sizeof b->tasks[0].pixels);
    }
    for (uint32_t i = 0; i < ev->charge_count; i++)
        if (ev->charges[i].task >= ev->tasks) return KN_EINVAL;
    return slab_reserve(&f->troubles, ev->charge_count);
}

static int open_link(struct farm *f, struct batch *b) {
    if (f->batch_count >= KN_BATCHES_MAX) return KN_ELIMIT;
    if (f->batch_count == f->batch_cap) {
        size_t cap = f->batch_cap ? f->batch_cap * 2 : 16;
        struct batch **v = realloc(f->batches, cap * sizeof *v);
        if (!v) return KN_ENOMEM;
        f->batches = v;
        f->batch_cap = cap;
    }
    int rc = kn_map_put(f->batch_by_id, b->id, sizeof b->id, b);
    if (rc) return rc;
    f->batches[f->batch_count++] = b;
    return KN_OK;
}

int batch_open(struct farm *f, const struct ev_batch_open *ev, struct farm_effects *fx) {
    if (batch_find(f, ev->id)) return KN_EEXIST;
    if (ev->tasks == 0 || ev->group_count == 0) return KN_EINVAL;
    if (ev->tasks > KN_TASKS_PER_BATCH_MAX || ev->group_count > KN_GROUPS_PER_BATCH_MAX ||
        f->batch_count >= KN_BATCHES_MAX)
        return KN_ELIMIT;
    struct batch *b = calloc(1, sizeof *b);
    if (!b) return KN_ENOMEM;
    memcpy(b->id, ev->id, sizeof b->id);
    b->shard_tasks_max = ev->shard_tasks_max ? ev->shard_tasks_max : KN_SHARD_TASKS_MAX;
    b->state = KN_BATCH_PAUSED; /* until it is filled: no lane of it is entered into a pool */
    int rc = KN_OK;
    if (ev->pin_backend && *ev->pin_backend) {
        rc = farm_pin_get(f, ev->pin_backend, &b->pin);
        if (rc) goto fail;
    }
    b->level = batch_level_get(f, ev->priority);
    rc = b->level ? open_groups(f, b, ev) : KN_ENOMEM;
    if (rc == 0) rc = open_tasks(f, b, ev);
    if (rc == 0) rc = farm_reserve(f, fx, 4, ev->charge_count, 0);
    if (rc == 0) rc = open_link(f, b);
    if (rc) goto fail;

    b->seq = ++f->batch_seq;
    b->epoch = (f->config.term << 24) + (b->seq << 8); /* different from that before a restart */
    b->cancelled_by_person = ev->cancelled;
    for (uint32_t i = 0; i < ev->charge_count; i++)
        trouble_restore(f, b, ev->charges[i].task, ev->charges[i].charges);
    for (uint32_t t = 0; t < b->total; t++) {
        if (b->tasks[t].state != TASK_QUEUED) continue;
        if (ev->cancelled)
            task_set(f, b, t, TASK_CANCELLED);
        else if (b->tasks[t].trouble != NONE)
            task_queue_piece(f, b, &t, 1);
        else
            task_queue(f, b, t, false);
    }
    if (ev->cancelled || batch_ended_count(b) == b->total) {
        b->state = ev->cancelled ? KN_BATCH_CANCELLED : KN_BATCH_DONE;
        b->ended_ms = f->now;
        if (!ev->cancelled && !ev->done) batch_state_send(f, b, fx);
        return KN_OK;
    }
    b->state = ev->paused ? KN_BATCH_PAUSED : KN_BATCH_ACTIVE;
    if (ev->paused) b->paused_since = f->now;
    if (ev->done && !KN_PLANTED(VOID_LOST_AT_END))
        batch_state_send(f, b, fx); /* an image was voided when its end was on the way to the store */
    pool_batch_ready(f, b);
    f->outranked = true;
    return KN_OK;
fail:
    batch_destroy(f, b);
    return rc;
}

void batch_destroy(struct farm *f, struct batch *b) {
    if (!b) return;
    for (uint32_t t = 0; t < b->total; t++)
        if (b->tasks[t].trouble != NONE) trouble_forget(f, b, t);
    for (uint32_t g = 0; g < b->group_count; g++) pool_shape_put(f, b->groups[g].shape);
    for (uint32_t l = 0; l < b->lane_count; l++) pool_put(f, b->lanes[l].pool);
    batch_level_put(f, b->level);
    farm_pin_put(f, b->pin);
    free(b->tasks);
    free(b->log);
    free(b->groups);
    free(b->lanes);
    free(b);
}
