/* What a person asked for. The contract is batch.h, the data state.h.
 *
 * A task is in one place at a time: in its group's queue, in a piece (suspects, see blame.c), in one or two
 * shards, in a pending commit, or at its end. Counts follow task_set, task_queue and task_unqueue, nothing
 * else. */
#include "coordinator/core/batch.h"

#include <stdlib.h>

#include "coordinator/core/blame.h"
#include "coordinator/core/commit.h"
#include "coordinator/core/shard.h"
#include "coordinator/core/pool.h"
#include "coordinator/core/trouble.h"

/* ---- lists of tasks, linked through a (next) and b (previous) */

static void list_push(struct batch *b, struct tasklist *l, uint32_t t, bool front) {
    struct task *task = &b->tasks[t];
    task->a = front ? l->head : NONE;
    task->b = front ? NONE : l->tail;
    if (task->a != NONE) b->tasks[task->a].b = t;
    if (task->b != NONE) b->tasks[task->b].a = t;
    if (front || l->head == NONE) l->head = t;
    if (!front || l->tail == NONE) l->tail = t;
    l->count++;
}

static void list_remove(struct batch *b, struct tasklist *l, uint32_t t) {
    struct task *task = &b->tasks[t];
    if (task->b != NONE)
        b->tasks[task->b].a = task->a;
    else
        l->head = task->a;
    if (task->a != NONE)
        b->tasks[task->a].b = task->b;
    else
        l->tail = task->b;
    task->a = task->b = NONE;
    assert(l->count > 0);
    l->count--;
}

/* ---- groups in the list of their lane */

static void group_list(struct batch *b, uint32_t g, bool front) {
    struct group *group = &b->groups[g];
    struct lane *lane = &b->lanes[group->lane];
    if (group->listed) return;
    group->listed = true;
    group->next = front ? lane->head : NONE;
    group->prev = front ? NONE : lane->tail;
    if (group->next != NONE) b->groups[group->next].prev = g;
    if (group->prev != NONE) b->groups[group->prev].next = g;
    if (front || lane->head == NONE) lane->head = g;
    if (!front || lane->tail == NONE) lane->tail = g;
}

static void group_unlist(struct batch *b, uint32_t g) {
    struct group *group = &b->groups[g];
    struct lane *lane = &b->lanes[group->lane];
    if (!group->listed) return;
    group->listed = false;
    if (group->prev != NONE)
        b->groups[group->prev].next = group->next;
    else
        lane->head = group->next;
    if (group->next != NONE)
        b->groups[group->next].prev = group->prev;
    else
        lane->tail = group->prev;
}

/* More or fewer tasks are queued in a group. */
static void group_queued(struct farm *f, struct batch *b, uint32_t g, int change, bool front) {
    struct group *group = &b->groups[g];
    struct lane *lane = &b->lanes[group->lane];
    uint64_t units = ((struct shape *)slab_at(&f->shapes, group->shape))->units;
    if (change > 0) {
        pool_lane_queued(f, lane, change, units * (uint64_t)change);
        group_list(b, g, front);
        f->work_arrived = true;
    } else {
        pool_lane_queued(f, lane, change, units * (uint64_t)-change);
        if (group->queue.count + group->piece_tasks == 0) group_unlist(b, g);
    }
}

/* ---- tasks */

void task_set(struct farm *f, struct batch *b, uint32_t t, enum farm_task_state state) {
    struct task *task = &b->tasks[t];
    assert(b->counts[task->state] > 0);
    assert(task->state < TASK_DONE); /* only a retry leaves an end, and it does so itself */
    b->counts[task->state]--;
    b->counts[state]++;
    task->state = (uint8_t)state;
    if (state < TASK_DONE) return;
    assert(b->log_count < b->total);
    b->log[b->log_count++] = t;
    struct group *group = batch_group_of(b, t);
    b->lanes[group->lane].open_units -= ((struct shape *)slab_at(&f->shapes, group->shape))->units;
    task->a = task->b = NONE;
    trouble_forget(f, b, t);
}

void task_queue(struct farm *f, struct batch *b, uint32_t t, bool front) {
    struct task *task = &b->tasks[t];
    task_set(f, b, t, TASK_QUEUED);
    list_push(b, &b->groups[task->group].queue, t, front);
    group_queued(f, b, task->group, 1, front);
}

void task_queue_piece(struct farm *f, struct batch *b, const uint32_t *tasks, uint32_t count) {
    uint32_t g = b->tasks[tasks[0]].group, slot = slab_take(&f->pieces);
    struct group *group = &b->groups[g];
    struct piece *piece = slab_at(&f->pieces, slot);
    piece->list = (struct tasklist){NONE, NONE, 0};
    for (uint32_t i = 0; i < count; i++) {
        struct task *task = &b->tasks[tasks[i]];
        assert(task->group == g && task->trouble != NONE);
        task_set(f, b, tasks[i], TASK_QUEUED);
        list_push(b, &piece->list, tasks[i], false);
        ((struct trouble *)slab_at(&f->troubles, task->trouble))->piece = slot;
    }
    piece->prev = group->piece_tail;
    piece->next = NONE;
    if (piece->prev != NONE)
        ((struct piece *)slab_at(&f->pieces, piece->prev))->next = slot;
    else
        group->piece_head = slot;
    group->piece_tail = slot;
    group->piece_tasks += count;
    group_queued(f, b, g, (int)count, true);
}

static void piece_free(struct farm *f, struct group *group, uint32_t slot) {
    struct piece *piece = slab_at(&f->pieces, slot);
    if (piece->prev != NONE)
        ((struct piece *)slab_at(&f->pieces, piece->prev))->next = piece->next;
    else
        group->piece_head = piece->next;
    if (piece->next != NONE)
        ((struct piece *)slab_at(&f->pieces, piece->next))->prev = piece->prev;
    else
        group->piece_tail = piece->prev;
    slab_give(&f->pieces, slot);
}

void task_unqueue(struct farm *f, struct batch *b, uint32_t t) {
    struct task *task = &b->tasks[t];
    struct group *group = &b->groups[task->group];
    assert(task->state == TASK_QUEUED);
    struct trouble *trouble = task->trouble == NONE ? NULL : slab_at(&f->troubles, task->trouble);
    if (trouble && trouble->piece != NONE) {
        struct piece *piece = slab_at(&f->pieces, trouble->piece);
        list_remove(b, &piece->list, t);
        group->piece_tasks--;
        if (piece->list.count == 0) piece_free(f, group, trouble->piece);
        trouble->piece = NONE;
    } else {
        list_remove(b, &group->queue, t);
    }
    group_queued(f, b, task->group, -1, false);
}

/* ---- priorities in use, and fair share */

static struct level *level_get(struct farm *f, int priority) {
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

static void level_put(struct farm *f, struct level *l) {
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

static void state_send(struct farm *f, struct batch *b, struct farm_effects *fx) {
    if (b->state_sent || b->state_due) {
        b->state_dirty = true;
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
        b->retried |= b->retried_sent;
        return;
    }
    b->state_tries = 0;
    if (b->state_dirty) state_send(f, b, fx);
}

void batch_state_retry(struct farm *f, struct farm_effects *fx) {
    for (size_t i = 0; f->states_due > 0 && i < f->batch_count; i++) {
        struct batch *b = f->batches[i];
        if (!b->state_due || b->state_due > f->now) continue;
        if (fx_reserve(fx, 1)) return;
        b->state_due = 0;
        f->states_due--;
        state_send(f, b, fx);
    }
}

void batch_check_end(struct farm *f, struct batch *b, struct farm_effects *fx) {
    if (!batch_live(b) || batch_ended_count(b) < b->total) return;
    if (b->paused_since) b->paused_ms += f->now - b->paused_since;
    b->paused_since = 0;
    b->state = KN_BATCH_DONE;
    b->ended_ms = f->now;
    state_send(f, b, fx);
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
        b->group_count++; /* from here on batch_destroy gives the shape back */
        uint32_t l = 0;
        while (l < b->lane_count &&
               memcmp(b->lanes[l].pool->model->digest, ev->groups[g].model, sizeof(kn_digest)) != 0)
            l++;
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
        b->lanes[group->lane].open_units += ((struct shape *)slab_at(&f->shapes, group->shape))->units;
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
    b->pin = PIN_ANY;
    b->state = KN_BATCH_PAUSED; /* not ready while it is filled */
    int rc = KN_OK;
    if (ev->pin_backend && *ev->pin_backend) {
        uint32_t pin;
        rc = farm_backend(f, ev->pin_backend, &pin);
        if (rc) goto fail;
        b->pin = (uint16_t)pin;
    }
    b->level = level_get(f, ev->priority);
    rc = b->level ? open_groups(f, b, ev) : KN_ENOMEM;
    if (rc == 0) rc = open_tasks(f, b, ev);
    if (rc == 0) rc = farm_reserve(f, fx, 4, ev->charge_count, 0);
    if (rc == 0) rc = open_link(f, b);
    if (rc) goto fail;

    b->seq = ++f->batch_seq;
    b->epoch = (f->config.term << 24) + (b->seq << 8); /* another one than before a restart */
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
        if (!ev->cancelled && !ev->done) state_send(f, b, fx);
        return KN_OK;
    }
    b->state = ev->paused ? KN_BATCH_PAUSED : KN_BATCH_ACTIVE;
    if (ev->paused) b->paused_since = f->now;
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
    level_put(f, b->level);
    free(b->tasks);
    free(b->log);
    free(b->groups);
    free(b->lanes);
    free(b);
}

/* ---- what a person may do */

int batch_cancel(struct farm *f, struct batch *b, struct farm_effects *fx) {
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
    state_send(f, b, fx);
    return KN_OK;
}

int batch_pause(struct farm *f, struct batch *b, struct farm_effects *fx) {
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
    for (struct shard *s = b->shards; s; s = next) { /* what runs may finish */
        next = s->batch_next;
        if (s->state == SHARD_WAITING) shard_withdraw(f, s, false, FATE_REQUEUE, fx);
    }
    state_send(f, b, fx);
    return KN_OK;
}

int batch_resume(struct farm *f, struct batch *b, struct farm_effects *fx) {
    if (b->state == KN_BATCH_ACTIVE) return KN_OK;
    if (b->state != KN_BATCH_PAUSED) return KN_ESTATE;
    int rc = farm_reserve(f, fx, 4, 0, 0);
    if (rc) return rc;
    b->state = KN_BATCH_ACTIVE;
    b->paused_ms += f->now - b->paused_since;
    b->paused_since = 0;
    pool_batch_ready(f, b);
    f->work_arrived = f->outranked = true;
    state_send(f, b, fx);
    return KN_OK;
}

int batch_retry(struct farm *f, struct batch *b, struct farm_effects *fx) {
    if (b->state == KN_BATCH_CANCELLED) return KN_ESTATE;
    int rc = farm_reserve(f, fx, 4, 0, 0);
    if (rc) return rc;
    if (b->counts[TASK_FAILED] == 0 && b->counts[TASK_FAILING] == 0) return KN_OK;
    for (uint32_t t = 0; b->counts[TASK_FAILING] > 0 && t < b->total; t++)
        if (b->tasks[t].state == TASK_FAILING) commit_void(f, b, t);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < b->log_count; i++) {
        uint32_t t = b->log[i];
        struct task *task = &b->tasks[t];
        if (task->state != TASK_FAILED) {
            b->log[kept++] = t;
            continue;
        }
        struct group *group = &b->groups[task->group];
        b->lanes[group->lane].open_units += ((struct shape *)slab_at(&f->shapes, group->shape))->units;
        b->counts[TASK_FAILED]--;
        b->counts[TASK_GRANTED]++; /* for a moment, on its way into the queue */
        task->state = TASK_GRANTED;
        task->charges = task->losses = 0;
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
    b->retried = true;
    pool_batch_ready(f, b);
    f->outranked = true;
    state_send(f, b, fx);
    return KN_OK;
}

int batch_priority(struct farm *f, struct batch *b, int priority, struct farm_effects *fx) {
    if (!batch_live(b)) return KN_ESTATE;
    if (b->level->priority == priority) return KN_OK;
    int rc = farm_reserve(f, fx, 4, 0, 0);
    if (rc) return rc;
    struct level *level = level_get(f, priority);
    if (!level) return KN_ENOMEM;
    pool_batch_unready(b);
    level_put(f, b->level);
    b->level = level;
    b->vtime = level->vtime;
    pool_batch_ready(f, b);
    f->work_arrived = f->outranked = true;
    state_send(f, b, fx);
    return KN_OK;
}

int batch_remove(struct farm *f, struct batch *b, struct farm_effects *fx) {
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
