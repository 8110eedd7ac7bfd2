/* The health of workers. The contract is health.h, the data state.h.
 *
 * A failure says little by itself: the task may be bad, or the worker's GPU, its disk, its driver. So a failure
 * puts its worker in doubt (worker.fault), and what it charges its tasks with does not count before the worker is
 * acquitted: by a picture whose shard began after the failure, or by a probe, a tiny picture of the same model
 * that the worker renders for nobody. That needs no second worker, so a farm of one finds its verdicts too.
 *
 *     well ──fault──▶ in doubt ──picture, probe──▶ well
 *       ▲                │ probe fails, or its failures stand out
 *       │                ▼
 *       └──probe─────── held ──probe fails──▶ held, with a pause that doubles
 *
 * A worker is held when its probe fails or never comes, when it cannot load a model, when others have rendered of
 * a batch of which it only failed (worker_faults_max tasks in a row), when others did what it failed, and when it
 * says that shards are done whose pictures never come. A held worker is given nothing; what it had goes back, and
 * what it charged is void, so that no task fails for it. It comes back by itself, with the first probe that comes
 * out well: after HOLD_MS, then twice as long each time, up to HOLD_MS_MAX; at once after a restart. */
#include "coordinator/core/health.h"

#include <stdio.h>

#include "base/planted.h"
#include "coordinator/core/trouble.h"
#include "coordinator/core/worker.h"

#define FAULTS_PROBED 2    /* in a row: then it is asked for a probe, and again at twice as many */
#define UNDELIVERED_HELD 3 /* shards, or bad pictures, in a row */
#define HOPELESS_TRIES 2   /* how often a worker was found wanting before a batch is not waited for */

static void acquit(struct worker *w) {
    if (!w->fault) return;
    w->fault = 0;
    w->run++;
}

/* ---- held */

/* Takes back all that this worker charged tasks which are not on their way to their end. */
static void refund(struct farm *f, const struct worker *w, struct farm_effects *fx) {
    size_t spare = fx->cap - fx->count; /* reserved by whoever is at work, for what comes behind these */
    for (uint32_t i = 0; i < f->troubles.total; i++) {
        struct trouble *x = slab_at(&f->troubles, i);
        if (!x->batch || x->batch->tasks[x->task].state >= TASK_COMMITTING) continue;
        if (!trouble_refund(x, w->uid) || fx_reserve(fx, spare + 1)) continue;
        struct farm_effect *e = fx_add(fx, FX_CHARGE);
        memcpy(e->batch, x->batch->id, sizeof e->batch);
        e->task = x->task;
        e->u.charge.charges = x->batch->tasks[x->task].charges;
        e->u.charge.reason = "charged by a worker that is held for its faults";
        e->u.charge.worker = fx_text(fx, w->name);
    }
    f->work_arrived = true; /* others may try those tasks again */
}

void health_hold(struct farm *f, struct worker *w, const char *reason, struct farm_effects *fx) {
    if (!w->on_hold) {
        w->on_hold = true;
        if (!w->hold_fresh) f->holds_fresh++;
        w->hold_fresh = true;
        worker_recount(f, w);
        fx_note(fx, FX_ALARM, NULL, "worker_held worker=%s reason=\"%s\"", w->name, reason);
    }
    snprintf(w->hold_reason, sizeof w->hold_reason, "%s", reason);
    if (w->hold_tries < UINT32_MAX) w->hold_tries++;
    w->hold_pause = w->hold_pause ? 2 * w->hold_pause : HOLD_MS;
    if (w->hold_pause > HOLD_MS_MAX) w->hold_pause = HOLD_MS_MAX;
    w->hold_due = f->now + w->hold_pause;
    w->probe = 0;
    if (!KN_PLANTED(SICK_BLAMES_TASK)) refund(f, w, fx);
}

static void release(struct farm *f, struct worker *w, struct farm_effects *fx) {
    w->on_hold = false;
    w->hold_reason[0] = '\0';
    w->faults = w->disproved = w->streak = 0;
    worker_recount(f, w);
    fx_note(fx, FX_NOTE, NULL, "worker_released worker=%s", w->name);
}

bool health_hopeless(const struct worker *w) {
    return w->on_hold && (w->hold_tries >= HOPELESS_TRIES || !w->can_probe);
}

/* ---- probes */

void health_probe(struct farm *f, struct worker *w, const kn_digest model, struct farm_effects *fx) {
    if (w->probe || !w->conn || w->lost) return;
    if (!w->can_probe) {
        if (!w->on_hold) acquit(w);
        return;
    }
    if (fx_reserve(fx, 1)) return; /* whoever needs it asks again */
    w->probe = ++f->probe_seq;
    w->probe_ms = f->now;
    memmove(w->probe_model, model, sizeof w->probe_model);
    struct farm_effect *e = fx_add(fx, FX_PROBE);
    e->conn = w->conn;
    e->u.probe.probe = w->probe;
    memcpy(e->u.probe.model, w->probe_model, sizeof e->u.probe.model);
}

int health_probed(struct farm *f, struct worker *w, const struct ev_probed *e, struct farm_effects *fx) {
    if (!w->probe || e->probe != w->probe) return KN_OK; /* of before */
    int rc = fx_reserve(fx, 4);
    if (rc) return rc;
    w->probe = 0;
    worker_wake(f, w);
    if (e->code == KN_OK) {
        acquit(w);
        if (w->on_hold) release(f, w, fx);
        return KN_OK;
    }
    char reason[KN_REASON_MAX + 1];
    snprintf(reason, sizeof reason, "its probe picture failed: %.400s",
             e->reason && *e->reason ? e->reason : kn_err_words(e->code));
    health_hold(f, w, reason, fx);
    return KN_OK;
}

void health_ended(struct farm *f, struct worker *w, struct farm_effects *fx) {
    if (w->probe) health_hold(f, w, "it ended at its probe picture", fx);
}

void health_restarted(struct farm *f, struct worker *w, struct farm_effects *fx) {
    if (!w->on_hold) return;
    if (!w->can_probe && f->now >= w->hold_due)
        release(f, w, fx);
    else if (w->can_probe)
        w->hold_due = f->now;
}

void health_arrived(struct farm *f, struct worker *w, struct farm_effects *fx) {
    bool due = w->probe || (w->fault && w->faults >= FAULTS_PROBED && !w->on_hold);
    w->probe = 0;
    if (due) health_probe(f, w, w->probe_model, fx);
}

/* ---- faults */

/* Others have rendered of this batch all the while that the worker failed one task of it after another. */
static bool stands_out(struct farm *f, struct worker *w, const struct batch *b) {
    if (w->streak == 0 || w->streak_batch != b->seq) {
        w->streak_batch = b->seq;
        w->streak = 0;
        w->streak_done = b->done_here;
    }
    w->streak++;
    uint32_t enough = f->config.worker_faults_max;
    return w->streak >= enough && b->done_here - w->streak_done >= enough;
}

void health_fault(struct farm *f, struct worker *w, const struct batch *b, const struct model *model,
                  struct farm_effects *fx) {
    w->fault = ++f->turn;
    w->faults++;
    memcpy(w->probe_model, model->digest, sizeof w->probe_model);
    bool out = stands_out(f, w, b);
    if (w->on_hold) return;
    if (out)
        health_hold(f, w, "it failed one task after another of a batch that others rendered", fx);
    else if (w->faults >= FAULTS_PROBED && (w->faults & (w->faults - 1)) == 0)
        health_probe(f, w, model->digest, fx);
}

void health_picture(struct worker *w, bool after_fault) {
    w->returns = w->undelivered = 0;
    if (!after_fault || w->on_hold) return;
    acquit(w);
    if (w->faults > 0) w->proved++;
    w->faults = w->disproved = w->streak = 0;
    w->hold_pause = w->hold_tries = 0;
}

void health_undelivered(struct farm *f, struct worker *w, const char *reason, struct farm_effects *fx) {
    uint64_t cool_ms = (uint64_t)COOL_MS << (w->returns < 6 ? w->returns : 6);
    w->returns++;
    w->cool_until = f->now + (cool_ms < COOL_MS_MAX ? cool_ms : COOL_MS_MAX);
    if (++w->undelivered >= UNDELIVERED_HELD && !w->on_hold) health_hold(f, w, reason, fx);
}

/* ---- as time passes */

void health_sweep(struct farm *f, struct farm_effects *fx) {
    for (size_t i = 0; i < f->worker_count; i++) {
        struct worker *w = f->workers[i];
        if (w->probe && w->running) w->probe_ms = f->now; /* the probe waits for what runs */
        if (w->probe && f->now - w->probe_ms >= f->config.progress_ms) {
            if (fx_reserve(fx, 8)) return; /* the next tick tries again */
            health_hold(f, w, "its probe picture did not come", fx);
        }
        if (!w->on_hold || w->probe || !w->conn || w->lost || f->now < w->hold_due) continue;
        if (fx_reserve(fx, 8)) return;
        const struct model *m = kn_map_get(f->model_by_digest, w->probe_model, sizeof w->probe_model);
        if ((!m || !worker_model_of(w, m)) && w->model_count > 0) m = w->models[0].model;
        if (m) health_probe(f, w, m->digest, fx);
    }
}
