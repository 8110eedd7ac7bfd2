/* Who is guilty: the task or the worker. The contract is blame.h.
 *
 * A worker that dies says nothing about which of its eight images killed it. So a shard of several tasks that
 * ends badly charges nobody: its tasks go back in two halves, each a "piece" that is granted alone, and a
 * half that ends badly is halved again, until a single task is left. Only a task that was alone is charged,
 * or one that the worker named. An innocent task therefore shares at most log2(256) = 8 bad ends with a
 * killer and is charged for none of them.
 *
 * A charged task is tried on another worker than the one that failed it, as long as another can render it,
 * and fails after charges_max charges, of two workers where two can. NaN is a property of the task and the
 * backend class (an image is a pure function of its request): it is tried once on each other class, and
 * fails when there is none.
 *
 * Every bad end is also held against its worker, as a `fault` that remembers which tasks were concerned. When
 * all of them were then rendered by others, the fault is disproved: it was not the task. After
 * worker_faults_max disproved faults in a row, with no result of its own between them, the worker is drained
 * and its charges are taken back. A worker of one class that gives NaN all the time has no tasks that others
 * would do; it is drained after twice as many, if its class does well meanwhile. */
#include "coordinator/core/blame.h"

#include <stdio.h>
#include <stdlib.h>

#include "coordinator/core/batch.h"
#include "coordinator/core/pending.h"
#include "coordinator/core/task.h"
#include "coordinator/core/trouble.h"
#include "coordinator/core/worker.h"

#define SWEEP_TASKS 64 /* tasks looked at in one tick */

void blame_attempt(struct farm *f, struct batch *b, uint32_t t, const struct worker *w, int code,
                   const char *reason, bool charged, struct farm_effects *fx) {
    if (fx_reserve(fx, 1)) return; /* it is for people: nothing is decided by it */
    struct farm_effect *e = fx_add(fx, FX_CHARGE);
    memcpy(e->batch, b->id, sizeof e->batch);
    e->task = t;
    e->u.charge.charges = b->tasks[t].charges;
    e->u.charge.reason = fx_text(fx, reason && *reason ? reason : kn_err_words(code));
    e->u.charge.worker = fx_text(fx, w->name);
    e->u.charge.backend = farm_backend_name(f, w->backend);
    e->u.charge.code = code;
    e->u.charge.charged = charged;
}

/* Drains a worker for its faults, and takes its charges back. */
static void blame_bar(struct farm *f, struct worker *w, const char *why, struct farm_effects *fx) {
    w->barred = true;
    w->barred_until = f->now + BARRED_MS;
    worker_recount(f, w);
    if (w->conn && fx_reserve(fx, 8) == 0) {
        struct farm_effect *e = fx_add(fx, FX_DRAIN);
        e->conn = w->conn;
        e->u.drain.reason = fx_text(fx, why);
    }
    fx_note(fx, FX_ALARM, NULL, "worker_drained worker=%s: %u faults in a row: %s", w->name, w->faults, why);
    for (uint32_t i = 0; i < f->troubles.total; i++) {
        struct trouble *x = slab_at(&f->troubles, i);
        if (!x->batch || x->batch->tasks[x->task].state >= TASK_COMMITTING || fx_reserve(fx, 8)) continue;
        if (!trouble_refund(x, w)) continue;
        struct farm_effect *e = fx_add(fx, FX_CHARGE);
        memcpy(e->batch, x->batch->id, sizeof e->batch);
        e->task = x->task;
        e->u.charge.charges = x->batch->tasks[x->task].charges;
        e->u.charge.reason = "charged by a worker that was drained for its faults";
        e->u.charge.worker = fx_text(fx, w->name);
    }
}

/* The outcome of a task is known as far as its fault is concerned; enough disproved faults drain their
 * worker. */
static void settle(struct farm *f, struct trouble *x, bool other_did_it, struct farm_effects *fx) {
    struct fault fault;
    if (!fault_settle(f, x, other_did_it, &fault)) return;
    struct worker *w = worker_by_uid(f, fault.worker);
    if (!w || w->run != fault.run || w->barred) return;
    w->disproved++;
    if (w->disproved >= f->config.worker_faults_max) blame_bar(f, w, "it failed what others then did", fx);
}

/* ---- what becomes of a task */

/* True when nobody should try the task any more. */
static bool task_is_over(struct farm *f, struct batch *b, uint32_t t) {
    const struct trouble *x = trouble_of(f, b, t);
    if (trouble_any_nan(x) && !worker_other_can(f, b, t, NULL, 0)) return true;
    if (b->tasks[t].charges < f->config.charges_max) return false;
    return x->by_count != 1 || !worker_other_can(f, b, t, x->by, 1);
}

/* A task with charges, in no queue and no shard: queued to be rendered alone, or failed. */
static void task_judge(struct farm *f, struct batch *b, uint32_t t, struct farm_effects *fx) {
    struct trouble *x = trouble_of(f, b, t);
    if (task_is_over(f, b, t)) {
        struct worker *w = worker_by_uid(f, x->avoid);
        char words[128];
        snprintf(words, sizeof words, "failed %u times: %s", b->tasks[t].charges, kn_err_words(x->code));
        pending_fail(f, b, t, x->code, x->reason ? x->reason : words, w ? w->name : "", fx);
        return;
    }
    task_queue_piece(f, b, &t, 1);
    if (trouble_any_nan(x) || b->tasks[t].charges >= f->config.charges_max) trouble_wait(f, x);
}

void blame_task(struct farm *f, struct batch *b, uint32_t t, struct worker *w, int code, const char *reason,
                struct farm_effects *fx) {
    struct task *task = &b->tasks[t];
    struct trouble *x = trouble_get(f, b, t);
    /* An earlier fault is explained: it is the task, or the same worker again. */
    settle(f, x, false, fx);
    x->fault = fault_create(f, w, 1);
    x->avoid = w->uid;
    uint32_t k = 0;
    while (k < x->by_count && x->by[k] != w->uid) k++;
    if (k == x->by_count && k < CHARGERS_MAX) {
        x->by[x->by_count] = w->uid;
        x->by_nan[x->by_count] = BACKEND_NONE;
        x->by_charges[x->by_count++] = 0;
    }
    if (k < CHARGERS_MAX && x->by_charges[k] < UINT8_MAX) x->by_charges[k]++;
    if (task->charges < UINT8_MAX) task->charges++;
    x->code = (int16_t)code;
    char *copy = strdup(reason && *reason ? reason : kn_err_words(code));
    if (copy) {
        free(x->reason);
        x->reason = copy;
    }
    w->failed++;
    blame_attempt(f, b, t, w, code, reason, true, fx);
    if (code == KN_ENAN) {
        if (k < CHARGERS_MAX) x->by_nan[k] = (uint8_t)w->backend;
        uint32_t enough = 2 * f->config.worker_faults_max;
        /* A task that gave NaN elsewhere before says nothing about this worker. */
        if (x->by_count == 1) w->nans++;
        if (w->nans >= enough && f->backends[w->backend].done - w->class_done >= enough && !w->barred)
            blame_bar(f, w, "not a number in every picture, others of its class do well", fx);
    }
    if (task->a == NONE) task_judge(f, b, t, fx);
}

void blame_shard(struct farm *f, struct batch *b, const uint32_t *tasks, uint32_t count, struct worker *w,
                 int code, const char *reason, struct farm_effects *fx) {
    uint32_t charged[KN_SHARD_TASKS_MAX], suspects[KN_SHARD_TASKS_MAX], charged_count = 0, suspect_count = 0;
    for (uint32_t i = 0; i < count; i++) settle(f, trouble_get(f, b, tasks[i]), false, fx);
    uint32_t fault = fault_create(f, w, count);
    for (uint32_t i = 0; i < count; i++) {
        struct trouble *x = trouble_of(f, b, tasks[i]);
        x->fault = fault;
        x->avoid = w->uid;
        blame_attempt(f, b, tasks[i], w, code, reason, false, fx);
        if (b->tasks[tasks[i]].charges > 0)
            charged[charged_count++] = tasks[i];
        else
            suspects[suspect_count++] = tasks[i];
    }
    uint32_t half = (suspect_count + 1) / 2;
    if (half > 0) task_queue_piece(f, b, suspects, half);
    if (suspect_count > half) task_queue_piece(f, b, suspects + half, suspect_count - half);
    for (uint32_t i = 0; i < charged_count; i++) task_judge(f, b, charged[i], fx);
}

void blame_requeue(struct farm *f, struct batch *b, const uint32_t *tasks, uint32_t count,
                   struct farm_effects *fx) {
    uint32_t suspects[KN_SHARD_TASKS_MAX], suspect_count = 0;
    for (uint32_t i = count; i-- > 0;) { /* the first one ends up in front */
        if (b->tasks[tasks[i]].charges > 0)
            task_judge(f, b, tasks[i], fx);
        else if (b->tasks[tasks[i]].trouble == NONE)
            task_queue(f, b, tasks[i], true);
    }
    for (uint32_t i = 0; i < count; i++)
        if (b->tasks[tasks[i]].state == TASK_GRANTED && b->tasks[tasks[i]].trouble != NONE)
            suspects[suspect_count++] = tasks[i];
    if (suspect_count > 0) task_queue_piece(f, b, suspects, suspect_count);
}

bool blame_allows(struct farm *f, struct batch *b, uint32_t t, const struct worker *w) {
    const struct trouble *x = trouble_of(f, b, t);
    if (trouble_nan(x, w->backend)) return false;
    uint32_t failed[CHARGERS_MAX + 1], count = x->by_count;
    memcpy(failed, x->by, count * sizeof *failed);
    failed[count++] = x->avoid;
    bool once = false;
    for (uint32_t i = 0; i < count; i++) once |= failed[i] == w->uid;
    if (!once) return true;
    if (worker_other_can(f, b, t, failed, count)) return false; /* let one try that never failed it */
    return x->avoid != w->uid || !worker_other_can(f, b, t, &w->uid, 1);
}

void blame_result(struct farm *f, struct batch *b, uint32_t t, struct worker *by, struct farm_effects *fx) {
    struct trouble *x = trouble_of(f, b, t);
    if (x && x->fault != NONE) {
        const struct fault *fault = slab_at(&f->faults, x->fault);
        settle(f, x, by && by->uid != fault->worker, fx);
    }
    if (!by) return;
    by->returns = 0;
    if (by->faults > 0) {
        by->run++;
        by->faults = by->disproved = by->nans = 0;
    }
}

void blame_sweep(struct farm *f, struct farm_effects *fx) {
    uint32_t first = f->trouble_head;
    for (uint32_t i = 0; i < SWEEP_TASKS && f->trouble_head != NONE; i++) {
        uint32_t slot = f->trouble_head;
        if (i > 0 && slot == first) return;
        if (farm_reserve(f, fx, 8, 1, 1)) return;
        struct trouble *x = slab_at(&f->troubles, slot);
        struct batch *b = x->batch;
        uint32_t t = x->task;
        trouble_wait(f, x); /* moves it to the end */
        if (b->tasks[t].state != TASK_QUEUED || !batch_live(b) || !task_is_over(f, b, t)) continue;
        task_unqueue(f, b, t);
        task_judge(f, b, t, fx);
        first = NONE; /* the first one may be out of the list now */
    }
}
