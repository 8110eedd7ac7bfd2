/* Who is guilty: the task or the worker. The contract is blame.h.
 *
 * A worker keeps its engine in a process of its own, finds out which image ends it, names that one, and renders the
 * others (TaskFailed with KN_EGONE, KN_ETIMEOUT or KN_EDEVICE). One that dies itself, and every worker of before, says
 * nothing about which of its eight images killed it. So a shard of several tasks that ends badly charges nobody: its tasks go back in two halves, each a "piece" that is granted alone, and a
 * half that ends badly is halved again, until a single task is left. Only a task that was alone is charged,
 * or one that the worker named. An innocent task therefore shares at most log2(256) = 8 bad ends with a
 * killer and is charged for none of them.
 *
 * A charged task is tried on another worker than the one that failed it, as long as another can render it. What is
 * enough for a verdict depends on the failure (`enough`): a death or a hang costs a worker, so charges_max of them,
 * of two workers where two can, are enough. A failure that the worker merely reports costs little: charges_max, and
 * nobody may be left who has not tried. NaN is a property of the task and the backend class (an image is a pure
 * function of its request): each class tries it, with two of its workers where there are two.
 *
 * And a verdict needs workers that are well (health.c): each that charged the task must be acquitted since, or have
 * gone for good. Until then nobody is given the task, and they are asked for probe pictures. What a worker charged
 * that turns out to be sick is void, so that nothing durable is ever taken back.
 *
 * Every bad end is also held against its worker, as a `fault` that remembers which tasks were concerned. When
 * all of them were then rendered by others, the fault is disproved: it was not the task. After
 * worker_faults_max disproved faults in a row, with no picture of its own between them, the worker is held. */
#include "coordinator/core/blame.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/planted.h"
#include "coordinator/core/batch.h"
#include "coordinator/core/health.h"
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

static const struct model *model_of(const struct batch *b, uint32_t t) {
    return b->lanes[b->groups[b->tasks[t].group].lane].pool->model;
}

/* The outcome of a task is known as far as its fault is concerned; enough disproved faults hold their worker. */
static void settle(struct farm *f, struct trouble *x, bool other_did_it, struct farm_effects *fx) {
    struct fault fault;
    if (!fault_settle(f, x, other_did_it, &fault)) return;
    struct worker *w = worker_by_uid(f, fault.worker);
    if (!w || w->proved != fault.run || w->on_hold) return;
    w->disproved++;
    if (w->disproved >= f->config.worker_faults_max) health_hold(f, w, "it failed what others then did", fx);
}

/* ---- what becomes of a task */

enum outcome {
    VERDICT_OPEN,  /* it is to be tried (again) */
    VERDICT_WAITS, /* enough have tried it, and some of them are not known to be well */
    VERDICT_FAILED
};

/* True when nobody should try the task any more, if its charges hold. */
static bool enough(const struct farm *f, const struct batch *b, uint32_t t, const struct trouble *x) {
    if (x->by_count == 0) return false; /* charges of before a restart alone are nobody's */
    if (x->by_count == CHARGERS_MAX) return true;
    if (trouble_any_nan(x) && !worker_other_can(f, b, t, NULL, 0)) return true;
    if (b->tasks[t].charges < f->config.charges_max) return false;
    if (x->deadly && x->by_count != 1) return true;
    uint32_t uids[CHARGERS_MAX];
    for (uint32_t i = 0; i < x->by_count; i++) uids[i] = x->by[i].worker;
    return !worker_other_can(f, b, t, uids, x->by_count);
}

static enum outcome task_verdict(const struct farm *f, const struct batch *b, uint32_t t) {
    const struct trouble *x = trouble_of(f, b, t);
    if (!enough(f, b, t, x)) return VERDICT_OPEN;
    for (uint32_t i = 0; i < x->by_count; i++)
        if (worker_charge(f, b, &x->by[i]) <= CHARGE_GONE && !KN_PLANTED(CHARGE_UNACQUITTED))
            return VERDICT_WAITS;
    return VERDICT_FAILED;
}

/* Does what can be done that the verdict need not wait: voids the charges of those who are gone, asks the others for
 * a probe picture. */
static void press(struct farm *f, struct batch *b, uint32_t t, struct farm_effects *fx) {
    struct trouble *x = trouble_of(f, b, t);
    for (uint32_t i = x->by_count; i-- > 0;) {
        enum charge_weight weight = worker_charge(f, b, &x->by[i]);
        struct worker *w = worker_by_uid(f, x->by[i].worker);
        if (weight == CHARGE_GONE) {
            (void)trouble_refund(x, x->by[i].worker);
            f->work_arrived = true;
        } else if (weight == CHARGE_OPEN && w) {
            health_probe(f, w, model_of(b, t)->digest, fx);
        }
    }
}

/* A task with charges, in no queue and no shard: queued to be rendered alone, or failed. */
static void task_judge(struct farm *f, struct batch *b, uint32_t t, struct farm_effects *fx) {
    struct trouble *x = trouble_of(f, b, t);
    enum outcome v = task_verdict(f, b, t);
    if (v == VERDICT_FAILED) {
        struct worker *w = worker_by_uid(f, x->avoid);
        char words[128];
        snprintf(words, sizeof words, "failed %u times: %s", b->tasks[t].charges, kn_err_words(x->code));
        pending_fail(f, b, t, x->code, x->reason ? x->reason : words, w ? w->name : "", fx);
        return;
    }
    task_queue_piece(f, b, &t, 1);
    if (v == VERDICT_WAITS) press(f, b, t, fx);
    if (v == VERDICT_WAITS || trouble_any_nan(x) || b->tasks[t].charges >= f->config.charges_max)
        trouble_wait(f, x);
}

/* Notes that this worker failed the task. run: its acquittals before. */
static void charge(struct batch *b, uint32_t t, struct trouble *x, const struct worker *w, uint32_t run,
                   int code, const char *reason) {
    struct charger *c = trouble_charger(x, w->uid);
    if (!c && x->by_count < CHARGERS_MAX) {
        c = &x->by[x->by_count++];
        *c = (struct charger){.worker = w->uid, .nan = BACKEND_NONE};
    }
    if (c) {
        c->run = run;
        c->proved = w->proved;
        c->done = b->done_here;
        c->firm = w->done > 0 && w->faults == 1;
        if (c->charges < UINT8_MAX) c->charges++;
        if (code == KN_ENAN) c->nan = (uint8_t)w->backend;
    }
    x->deadly |= w->lost || blame_is_deadly(code);
    if (b->tasks[t].charges < UINT8_MAX) b->tasks[t].charges++;
    if (KN_PLANTED(CHARGE_TWICE) && b->tasks[t].charges < UINT8_MAX) b->tasks[t].charges++;
    x->code = (int16_t)code;
    char *copy = strdup(reason && *reason ? reason : kn_err_words(code));
    if (!copy) return;
    free(x->reason);
    x->reason = copy;
}

void blame_task(struct farm *f, struct batch *b, uint32_t t, struct worker *w, int code, const char *reason,
                struct farm_effects *fx) {
    struct trouble *x = trouble_get(f, b, t);
    /* An earlier fault is explained: it is the task, or the same worker again. */
    settle(f, x, false, fx);
    x->avoid = w->uid;
    w->failed++;
    uint32_t run = w->run; /* one that renders no probe pictures is acquitted at once */
    health_fault(f, w, b, model_of(b, t), fx);
    if (!w->on_hold) {
        x->fault = fault_create(f, w, 1);
        charge(b, t, x, w, run, code, reason);
    }
    blame_attempt(f, b, t, w, code, reason, !w->on_hold, fx);
    if (b->tasks[t].a == NONE) task_judge(f, b, t, fx);
}

void blame_shard(struct farm *f, struct batch *b, const uint32_t *tasks, uint32_t count, struct worker *w,
                 int code, const char *reason, struct farm_effects *fx) {
    uint32_t charged[KN_SHARD_TASKS_MAX], suspects[KN_SHARD_TASKS_MAX], charged_count = 0, suspect_count = 0;
    for (uint32_t i = 0; i < count; i++) settle(f, trouble_get(f, b, tasks[i]), false, fx);
    if (count == 0) return;
    health_fault(f, w, b, model_of(b, tasks[0]), fx);
    uint32_t fault = w->on_hold ? NONE : fault_create(f, w, count);
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

bool blame_is_deadly(int code) {
    return code == KN_EGONE || code == KN_ETIMEOUT || code == KN_EDEVICE;
}

bool blame_allows(struct farm *f, struct batch *b, uint32_t t, const struct worker *w) {
    const struct trouble *x = trouble_of(f, b, t);
    if (x->by_count > 0 && (enough(f, b, t, x) || worker_nan(f, b, x, w))) return false;
    uint32_t failed[CHARGERS_MAX + 1], count = 0;
    for (uint32_t i = 0; i < x->by_count; i++) failed[count++] = x->by[i].worker;
    failed[count++] = x->avoid;
    bool once = false;
    for (uint32_t i = 0; i < count; i++) once |= failed[i] == w->uid;
    if (!once) return true;
    if (worker_other_can(f, b, t, failed, count)) return false; /* let one try that never failed it */
    return x->avoid != w->uid || !worker_other_can(f, b, t, &w->uid, 1);
}

void blame_result(struct farm *f, struct batch *b, uint32_t t, struct worker *by, bool after_fault,
                  struct farm_effects *fx) {
    struct trouble *x = trouble_of(f, b, t);
    if (x && x->fault != NONE) {
        const struct fault *fault = slab_at(&f->faults, x->fault);
        settle(f, x, by && by->uid != fault->worker, fx);
    }
    if (by) health_picture(by, after_fault);
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
        if (b->tasks[t].state != TASK_QUEUED || !batch_live(b)) continue;
        enum outcome v = task_verdict(f, b, t);
        if (v == VERDICT_WAITS) press(f, b, t, fx);
        if (v != VERDICT_FAILED) continue;
        task_unqueue(f, b, t);
        task_judge(f, b, t, fx);
        first = NONE; /* the first one may be out of the list now */
    }
}
