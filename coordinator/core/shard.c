/* Shards. The contract is shard.h, the data state.h.
 *
 * A shard holds those tasks of its array that are granted and point back at it: taking one out is two
 * assignments. A shard that holds no task any more has no batch; it stays with its worker as long as the
 * worker may still be busy with it, because it uses the worker's credit. */
#include "coordinator/core/shard.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/planted.h"
#include "coordinator/core/batch.h"
#include "coordinator/core/blame.h"
#include "coordinator/core/health.h"
#include "coordinator/core/speed.h"
#include "coordinator/core/task.h"
#include "coordinator/core/worker.h"

int shard_reserve(struct farm *f, struct farm_effects *fx, const struct shard *s) {
    return farm_reserve(f, fx, 3 * s->left + 8, s->left, s->left);
}

bool shard_holds(const struct shard *s, uint32_t t) {
    if (!s->batch) return false;
    const struct task *task = &s->batch->tasks[t];
    return task->state == TASK_GRANTED && (task->a == s->slot || task->b == s->slot);
}

static void shard_take_credit(struct farm *f, struct shard *s, bool take) {
    struct worker *w = s->worker;
    if (take) {
        w->held++;
    } else {
        assert(w->held > 0);
        w->held--;
        worker_wake(f, w);
    }
}

/* Links a new shard to its worker, its batch and its tasks. */
static struct shard *shard_create(struct farm *f, struct worker *w, struct batch *b, const uint32_t *tasks,
                                  uint32_t count) {
    if (slab_reserve(&f->shards, 1)) return NULL;
    uint32_t *copy = malloc(count * sizeof *copy);
    if (!copy) return NULL;
    memcpy(copy, tasks, count * sizeof *copy);
    uint32_t slot = slab_take(&f->shards);
    struct shard *s = slab_at(&f->shards, slot);
    s->slot = slot;
    s->worker = w;
    s->batch = b;
    s->group = b->tasks[tasks[0]].group;
    const struct shape *shape = slab_at(&f->shapes, b->groups[s->group].shape);
    s->shape_uid = shape->uid;
    s->units = shape->units;
    s->model = b->lanes[b->groups[s->group].lane].pool->model;
    s->tasks = copy;
    s->count = s->left = count;
    s->granted_ms = s->alive_ms = f->now;
    s->worker_prev = w->shards_last;
    if (w->shards_last)
        w->shards_last->worker_next = s;
    else
        w->shards = s;
    w->shards_last = s;
    s->batch_next = b->shards;
    if (b->shards) b->shards->batch_prev = s;
    b->shards = s;
    f->shard_count++;
    for (uint32_t i = 0; i < count; i++) {
        struct task *task = &b->tasks[tasks[i]];
        assert(task->group == s->group);
        if (task->trouble != NONE) s->suspect = true;
        if (task->state == TASK_GRANTED && task->a != NONE) {
            assert(task->b == NONE);
            task->b = slot;
            s->copy = true;
        } else {
            if (task->state != TASK_GRANTED) task_set(f, b, tasks[i], TASK_GRANTED);
            task->a = slot;
            task->b = NONE;
        }
        if (task->attempts < UINT8_MAX) task->attempts++;
    }
    return s;
}

struct shard *shard_grant(struct farm *f, struct worker *w, struct batch *b, const uint32_t *tasks,
                          uint32_t count, struct farm_effects *fx) {
    assert(w->conn && w->held < w->credit && count > 0 && count <= KN_SHARD_TASKS_MAX);
    if (fx_reserve(fx, 2)) return NULL;
    uint32_t *listed = fx_bytes(fx, count * sizeof *listed);
    if (!listed) return NULL;
    struct shard *s = shard_create(f, w, b, tasks, count);
    if (!s) return NULL;
    s->id = ++f->shard_seq;
    s->term = f->config.term;
    s->state = SHARD_WAITING;
    shard_take_credit(f, s, true);
    memcpy(listed, tasks, count * sizeof *listed);
    struct farm_effect *e = fx_add(fx, FX_GRANT);
    e->conn = w->conn;
    memcpy(e->batch, b->id, sizeof e->batch);
    e->task = tasks[0];
    e->u.grant.shard = s->id;
    for (uint32_t i = 0; i < count; i++)
        if (b->tasks[tasks[i]].attempts > e->u.grant.attempt)
            e->u.grant.attempt = b->tasks[tasks[i]].attempts;
    const struct shape *shape = slab_at(&f->shapes, b->groups[s->group].shape);
    memcpy(e->u.grant.model, shape->key.model, sizeof e->u.grant.model);
    e->u.grant.tasks = listed;
    e->u.grant.task_count = count;
    if (!b->first_ms) b->first_ms = f->now;
    return s;
}

struct shard *shard_adopt(struct farm *f, struct worker *w, struct batch *b, const struct farm_held *held,
                          const uint32_t *tasks, uint32_t count) {
    struct shard *s = shard_create(f, w, b, tasks, count);
    if (!s) return NULL;
    s->id = held->shard;
    s->term = held->term;
    if (w->held < w->credit) {
        s->state = SHARD_WAITING; /* until a heartbeat names it */
        shard_take_credit(f, s, true);
    } else {
        s->state = SHARD_SENT; /* it can hold no more: only the images are awaited */
        w->sent++;
    }
    if (!b->first_ms) b->first_ms = f->now;
    return s;
}

struct shard *shard_find(const struct worker *w, uint64_t id, uint64_t term) {
    for (struct shard *s = w->shards; s; s = s->worker_next)
        if (s->id == id && s->term == term) return s;
    return NULL;
}

/* A shard that holds no task belongs to no batch. */
static void shard_leave_batch(struct farm *f, struct shard *s) {
    if (!s->batch) return;
    if (s->batch_prev)
        s->batch_prev->batch_next = s->batch_next;
    else
        s->batch->shards = s->batch_next;
    if (s->batch_next) s->batch_next->batch_prev = s->batch_prev;
    s->batch_prev = s->batch_next = NULL;
    s->batch = NULL;
    f->shard_count--;
}

static void shard_close(struct farm *f, struct shard *s) {
    struct worker *w = s->worker;
    assert(s->left == 0);
    shard_leave_batch(f, s);
    if (s->worker_prev)
        s->worker_prev->worker_next = s->worker_next;
    else
        w->shards = s->worker_next;
    if (s->worker_next)
        s->worker_next->worker_prev = s->worker_prev;
    else
        w->shards_last = s->worker_prev;
    if (s->state == SHARD_SENT)
        w->sent--;
    else
        shard_take_credit(f, s, false);
    free(s->tasks);
    s->tasks = NULL;
    slab_give(&f->shards, s->slot);
}

void shard_drop(struct farm *f, struct shard *s, uint32_t t) {
    struct task *task = &s->batch->tasks[t];
    assert(shard_holds(s, t) && s->left > 0);
    if (task->a == s->slot) task->a = task->b;
    task->b = NONE;
    s->left--;
    if (s->left == 0) shard_leave_batch(f, s);
}

void shard_started(struct farm *f, struct shard *s) {
    s->alive_ms = f->now;
    if (s->state != SHARD_WAITING) return;
    s->state = SHARD_STARTED;
    s->started_ms = s->worker->moved_ms = f->now;
    s->began = ++f->turn;
    worker_heard(s->worker, s->shape_uid);
}

/* Where in the shard the task stands; s->count: nowhere. */
static uint32_t place_of(const struct shard *s, uint32_t t) {
    uint32_t i = 0;
    while (i < s->count && s->tasks[i] != t) i++;
    return i;
}

void shard_renewed(struct farm *f, struct shard *s, uint32_t t) {
    s->renewed = ++f->turn;
    s->renewed_at = place_of(s, t);
    s->alive_ms = f->now;
    s->step = 0; /* the next step may be far: a model is loaded first */
}

/* When the worker began this task, in the order of all beginnings and faults. */
static uint64_t began_task(const struct shard *s, uint32_t t) {
    return s->renewed && place_of(s, t) > s->renewed_at ? s->renewed : s->began;
}

/* Lets go of all tasks that the shard holds. */
static void shard_release(struct farm *f, struct shard *s, enum shard_fate fate, int code, const char *reason,
                          struct farm_effects *fx) {
    if (s->left == 0) return;
    struct batch *b = s->batch;
    struct worker *w = s->worker;
    uint32_t missing[KN_SHARD_TASKS_MAX], free_count = 0, total = s->left, last = 0;
    if (fate == FATE_REQUEUE || fate == FATE_LOST) batch_refund_time(b, s->cost / s->count * s->left);
    for (uint32_t i = 0; i < s->count; i++) {
        uint32_t t = s->tasks[i];
        if (!shard_holds(s, t)) continue;
        shard_drop(f, s, t);
        last = t;
        if (b->tasks[t].a == NONE) missing[free_count++] = t;
    }
    assert(s->left == 0 && !s->batch);
    switch (fate) {
    case FATE_CANCEL:
        for (uint32_t i = 0; i < free_count; i++) task_set(f, b, missing[i], TASK_CANCELLED);
        break;
    case FATE_GUILTY:
        if (total == 1)
            blame_task(f, b, last, w, code, reason, fx);
        else
            blame_shard(f, b, missing, free_count, w, code, reason, fx);
        break;
    case FATE_LOST:
        for (uint32_t i = 0; i < free_count; i++)
            if (b->tasks[missing[i]].losses < UINT8_MAX) b->tasks[missing[i]].losses++;
        for (uint32_t i = 0; i < free_count && s->state != SHARD_WAITING; i++)
            blame_attempt(f, b, missing[i], w, KN_EGONE, "lost with its worker, or its picture never came",
                          false, fx);
        blame_requeue(f, b, missing, free_count, fx);
        break;
    case FATE_REQUEUE:
        blame_requeue(f, b, missing, free_count, fx);
        break;
    }
}

void shard_end(struct farm *f, struct shard *s, enum shard_fate fate, int code, const char *reason,
               struct farm_effects *fx) {
    shard_release(f, s, fate, code, reason, fx);
    shard_close(f, s);
}

static void shard_revoke(struct farm *f, struct shard *s, bool abort, struct farm_effects *fx) {
    assert(s->left == 0);
    if (s->state == SHARD_SENT || s->state == SHARD_OWED || !s->worker->conn) {
        shard_close(f, s);
        return;
    }
    s->state = SHARD_REVOKED;
    s->alive_ms = f->now;
    if (KN_PLANTED(LOST_RETRACT)) return;
    struct farm_effect *e = fx_add(fx, FX_REVOKE);
    e->conn = s->worker->conn;
    e->u.revoke.shard = s->id;
    e->u.revoke.term = s->term;
    e->u.revoke.abort = abort;
}

void shard_withdraw(struct farm *f, struct shard *s, bool abort, enum shard_fate fate,
                    struct farm_effects *fx) {
    shard_release(f, s, fate, 0, NULL, fx);
    shard_revoke(f, s, abort, fx);
}

void shard_withdraw_guilty(struct farm *f, struct shard *s, int code, const char *reason,
                           struct farm_effects *fx) {
    shard_release(f, s, FATE_GUILTY, code, reason, fx);
    shard_revoke(f, s, true, fx);
}

void shard_done(struct farm *f, struct shard *s) {
    s->worker->ended_ms = f->now;
    if (s->left == 0) {
        shard_close(f, s);
        return;
    }
    s->state = SHARD_OWED;
    s->alive_ms = f->now;
}

bool shard_result(struct farm *f, struct batch *b, uint32_t t, const struct worker *by,
                  struct farm_effects *fx) {
    bool after_fault = false;
    while (b->tasks[t].a != NONE) {
        struct shard *s = slab_at(&f->shards, b->tasks[t].a);
        shard_drop(f, s, t);
        s->minibatch_step = 0; /* whose step it was is not known any more */
        if (s->worker == by) {
            speed_steps(f, b, s);
            s->delivered++;
            s->alive_ms = s->worker->moved_ms = f->now;
            after_fault = began_task(s, t) > by->fault;
        }
        if (s->left > 0) continue;
        if (s->state == SHARD_SENT || s->state == SHARD_OWED)
            shard_close(f, s);
        else if (s->worker != by)
            shard_revoke(f, s, true, fx); /* all its images came from elsewhere */
    }
    return after_fault;
}

/* How long a shard that runs may be without a sign of life. Before its first step a model may be loading,
 * which can take minutes. Once steps go by, the next sign (a step, or the picture behind the last one) is not
 * far: 20 times as long as a step took so far, or twice as long as all of it, and 15 s at least. */
static uint64_t patience_ms(const struct farm *f, const struct shard *s) {
    if (s->step == 0) return f->config.progress_ms;
    uint64_t spent = s->alive_ms > s->started_ms ? s->alive_ms - s->started_ms : 0;
    uint64_t limit = spent / s->step * 20;
    if (limit < 2 * spent) limit = 2 * spent;
    if (limit < STEP_PATIENCE_MS) limit = STEP_PATIENCE_MS;
    return limit < f->config.progress_ms ? limit : f->config.progress_ms;
}

void shard_sweep(struct farm *f, struct worker *w, struct farm_effects *fx) {
    struct shard *next;
    for (struct shard *s = w->shards; s; s = next) {
        next = s->worker_next;
        uint64_t quiet = f->now - s->alive_ms;
        bool running = w->running == s->id;
        if (shard_reserve(f, fx, s)) return; /* the next sweep tries again */
        switch (s->state) {
        case SHARD_REVOKED:
            if (quiet >= REVOKE_MS && !running)
                shard_end(f, s, FATE_REQUEUE, 0, NULL, fx);
            else if (running && quiet >= patience_ms(f, s) &&
                     w->conn) /* it was to end by itself, and hangs */
                shard_revoke(f, s, true, fx);
            break;
        case SHARD_OWED:
            if (quiet < DELIVER_MS) break;
            fx_note(fx, FX_NOTE, s->batch->id, "not_delivered worker=%s shard=%llu images=%u", w->name,
                    (unsigned long long)s->id, s->left);
            shard_end(f, s, FATE_LOST, 0, NULL, fx);
            health_undelivered(f, w, "it says that shards are done, and their pictures do not come", fx);
            break;
        case SHARD_SENT:
            if (quiet >= SENT_MS) shard_end(f, s, FATE_LOST, 0, NULL, fx);
            break;
        case SHARD_STARTED:
            if (!w->conn) break;
            if (running && quiet >= patience_ms(f, s)) {
                char reason[KN_REASON_MAX];
                snprintf(reason, sizeof reason, "no progress for %llu s on worker %s",
                         (unsigned long long)(quiet / 1000), w->name);
                shard_withdraw_guilty(f, s, KN_ETIMEOUT, reason, fx);
            } else if (!running && quiet >= (s->left > 0 ? SENT_MS : f->config.silence_ms)) {
                /* It executes another: the message of this one's end was lost. */
                shard_withdraw(f, s, true, FATE_LOST, fx);
            }
            break;
        case SHARD_WAITING: /* an idle worker that does not begin it did not get it */
            if (w->conn && w->idle_since && f->now - w->idle_since >= f->config.silence_ms &&
                f->now - s->granted_ms >= f->config.silence_ms) {
                if (worker_unheard(w, s->shape_uid))
                    fx_note(fx, FX_NOTE, s->batch ? s->batch->id : NULL,
                            "unheard worker=%s: it takes such grants without a word, and gets no more",
                            w->name);
                shard_withdraw(f, s, true, FATE_LOST, fx);
            }
            break;
        }
    }
}
