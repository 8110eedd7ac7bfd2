/* Reports of workers about their shards. The contract is report.h. */
#include "coordinator/core/report.h"

#include <stdio.h>

#include "coordinator/core/blame.h"
#include "coordinator/core/health.h"
#include "coordinator/core/shard.h"
#include "coordinator/core/speed.h"
#include "coordinator/core/worker.h"

static void note_unknown(struct farm_effects *fx, const struct worker *w, const char *what, uint64_t shard) {
    fx_note(fx, FX_NOTE, NULL, "dropped event=%s worker=%s shard=%llu: no such shard any more", what, w->name,
            (unsigned long long)shard);
}

int report_started(struct farm *f, struct worker *w, const struct ev_shard *e, struct farm_effects *fx) {
    struct shard *s = shard_find(w, e->shard, e->term);
    if (s)
        shard_started(f, s);
    else
        note_unknown(fx, w, "started", e->shard);
    return KN_OK;
}

int report_returned(struct farm *f, struct worker *w, const struct ev_shard *e, struct farm_effects *fx) {
    struct shard *s = shard_find(w, e->shard, e->term);
    if (!s) {
        note_unknown(fx, w, "returned", e->shard);
        return KN_OK;
    }
    int rc = shard_reserve(f, fx, s);
    if (rc) return rc;
    if (e->unsupported) {
        worker_refuses(w, s->shape_uid);
        fx_note(fx, FX_NOTE, s->batch ? s->batch->id : NULL,
                "unsupported worker=%s images=%u: it gets no more of this kind", w->name, s->count);
    } else if (e->out_of_memory && s->state != SHARD_REVOKED) {
        speed_out_of_memory(w, s->shape_uid, s->count);
        fx_note(fx, FX_NOTE, s->batch ? s->batch->id : NULL, "out_of_memory worker=%s images=%u", w->name,
                s->count);
        if (s->count == 1) { /* not even one: that is a failure */
            shard_end(f, s, FATE_GUILTY, KN_EOOM, "out of memory for a single image", fx);
            return KN_OK;
        }
    } else if (s->state != SHARD_REVOKED) {
        uint64_t cool_ms = (uint64_t)COOL_MS << (w->returns < 6 ? w->returns : 6);
        w->returns++;
        w->cool_until = f->now + (cool_ms < COOL_MS_MAX ? cool_ms : COOL_MS_MAX);
    }
    shard_end(f, s, FATE_REQUEUE, 0, NULL, fx);
    return KN_OK;
}

int report_done(struct farm *f, struct worker *w, const struct ev_shard *e, struct farm_effects *fx) {
    struct shard *s = shard_find(w, e->shard, e->term);
    if (!s) {
        note_unknown(fx, w, "done", e->shard);
        return KN_OK;
    }
    if (s->state == SHARD_SENT || s->state == SHARD_OWED) return KN_OK; /* said twice */
    int rc = shard_reserve(f, fx, s);
    if (rc) return rc;
    speed_measured(f, w, s, e->render_ms);
    shard_done(f, s);
    return KN_OK;
}

int report_failed(struct farm *f, struct worker *w, const struct ev_task_failed *e, struct farm_effects *fx) {
    struct shard *s = shard_find(w, e->shard, e->term);
    struct batch *b = s ? s->batch : NULL;
    if (!b || memcmp(b->id, e->batch, sizeof b->id) != 0 || e->task >= b->total || !shard_holds(s, e->task)) {
        note_unknown(fx, w, "task_failed", e->shard);
        return KN_OK;
    }
    int rc = shard_reserve(f, fx, s);
    if (rc) return rc;
    uint32_t t = e->task;
    s->alive_ms = f->now;
    if (e->code == KN_EMODEL) { /* it cannot load the model: no task had a part in that */
        char reason[KN_REASON_MAX + 1];
        snprintf(reason, sizeof reason, "%.*s", KN_REASON_MAX,
                 e->reason && *e->reason ? e->reason : kn_err_words(e->code));
        memcpy(w->probe_model, s->model->digest, sizeof w->probe_model);
        health_hold(f, w, reason, fx);
        return KN_OK; /* its shards go back before the step ends */
    }
    bool memory = e->code == KN_EOOM;
    if (memory) speed_out_of_memory(w, s->shape_uid, s->count);
    bool alone = s->count == 1;
    shard_drop(f, s, t);
    if (e->code == KN_ECANCELED || (memory && !alone)) { /* nobody's fault */
        if (b->tasks[t].a == NONE) blame_requeue(f, b, &t, 1, fx);
    } else {
        blame_task(f, b, t, w, e->code ? e->code : KN_EINTERNAL, e->reason, fx);
        if (blame_is_deadly(e->code)) shard_renewed(f, s, t);
    }
    if (s->left == 0 && (s->state == SHARD_SENT || s->state == SHARD_OWED))
        shard_end(f, s, FATE_REQUEUE, 0, NULL, fx);
    return KN_OK;
}

int report_bad(struct farm *f, const struct ev_result_bad *e, struct farm_effects *fx) {
    struct worker *w = worker_by_name(f, e->worker);
    struct shard *s = w ? shard_find(w, e->shard, e->term) : NULL;
    struct batch *b = s ? s->batch : NULL;
    uint32_t t = e->task;
    if (!w) return KN_OK;
    if (b && (memcmp(b->id, e->batch, sizeof b->id) != 0 || t >= b->total || !shard_holds(s, t))) b = NULL;
    int rc = b ? shard_reserve(f, fx, s) : fx_reserve(fx, 8);
    if (rc) return rc;
    if (b) {
        blame_attempt(f, b, t, w, KN_ECORRUPT, e->reason, false, fx);
        shard_drop(f, s, t);
        if (b->tasks[t].a == NONE) blame_requeue(f, b, &t, 1, fx);
        if (s->left == 0 && (s->state == SHARD_SENT || s->state == SHARD_OWED))
            shard_end(f, s, FATE_REQUEUE, 0, NULL, fx);
    }
    health_undelivered(f, w, "it brings pictures that are none, or not those that were asked for", fx);
    return KN_OK;
}
