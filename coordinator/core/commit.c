/* Results, and answers of the store. The contract is commit.h.
 *
 * Workers hold the bytes of an image until FX_ACK. A connection that brings the same image while it is being
 * committed waits for the same answer.
 *
 * After STORE_TRIES_MAX refusals a result is given up and its task rendered again (which ends in KN_EEXIST if
 * it had been written after all). A failure is asked for as long as it takes. */
#include "coordinator/core/commit.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/planted.h"
#include "coordinator/core/batch.h"
#include "coordinator/core/blame.h"
#include "coordinator/core/pending.h"
#include "coordinator/core/shard.h"
#include "coordinator/core/speed.h"
#include "coordinator/core/task.h"
#include "coordinator/core/trouble.h"
#include "coordinator/core/worker.h"

/* ---- results */

static bool same_pixels(const uint32_t have[2], const kn_digest pixels) {
    return memcmp(have, pixels, sizeof(uint32_t[2])) == 0;
}

/* A second result of the same class must have the same pixels: kiln promises it, and it checks the GPU. */
static void compare(struct farm *f, const struct batch *b, uint32_t t, uint32_t backend, bool same,
                    const struct ev_result *r, struct farm_effects *fx) {
    if (same || backend != r->backend) return;
    fx_note(fx, FX_ALARM, b->id, "duplicate_differs task=%u backend=%s worker=%s", t,
            farm_backend_name(f, r->backend), r->worker ? r->worker : "");
}

/* A result of a task that waits for none any more: another is committed or on its way, or the task is over. */
static void result_unwanted(struct farm *f, uint64_t conn, struct batch *b, const struct ev_result *r,
                            struct farm_effects *fx) {
    struct task *task = &b->tasks[r->task];
    switch ((enum farm_task_state)task->state) {
    case TASK_DONE:
        compare(f, b, r->task, task->backend, same_pixels(task->pixels, r->pixels), r, fx);
        pending_ack(fx, conn, b, NULL, r->task, KN_OK);
        break;
    case TASK_COMMITTING: {
        struct pending *p = slab_at(&f->pendings, task->a);
        compare(f, b, r->task, p->backend, memcmp(p->pixels, r->pixels, sizeof p->pixels) == 0, r, fx);
        for (uint32_t i = 0; i < p->ack_count; i++)
            if (p->acks[i] == conn) return;
        if (p->ack_count < ACKS_MAX && conn)
            p->acks[p->ack_count++] = conn;
        else
            pending_ack(fx, conn, b, NULL, r->task, KN_EAGAIN);
        break;
    }
    case TASK_FAILING:
    case TASK_FAILED:
        pending_ack(fx, conn, b, NULL, r->task, KN_ESTATE);
        break;
    case TASK_CANCELLED:
        pending_ack(fx, conn, b, NULL, r->task, KN_EGONE);
        break;
    case TASK_QUEUED:
    case TASK_GRANTED:
        assert(false); /* it waits for a result */
    }
}

/* The first result of a task: no worker need render it any more, and the store is asked to keep it. */
static void result_first(struct farm *f, uint64_t conn, struct batch *b, struct worker *w,
                         const struct ev_result *r, struct farm_effects *fx) {
    bool after_fault = false;
    if (b->tasks[r->task].state == TASK_QUEUED)
        task_unqueue(f, b, r->task);
    else
        after_fault = shard_result(f, b, r->task, w, fx);
    blame_result(f, b, r->task, w, after_fault, fx);
    struct pending *p = pending_create(f, b, r->task, false);
    p->attempt = r->attempt;
    p->render_ms = r->render_ms;
    p->backend = r->backend;
    memcpy(p->sha256, r->sha256, sizeof p->sha256);
    memcpy(p->pixels, r->pixels, sizeof p->pixels);
    p->flat = r->flat;
    snprintf(p->worker, sizeof p->worker, "%s", r->worker ? r->worker : "");
    snprintf(p->engine, sizeof p->engine, "%s", r->engine ? r->engine : "");
    if (KN_PLANTED(ACK_BEFORE_COMMIT))
        pending_ack(fx, conn, b, NULL, r->task, KN_OK);
    else if (conn)
        p->acks[p->ack_count++] = conn;
    pending_ask(p, fx);
}

int commit_result(struct farm *f, uint64_t conn, const struct ev_result *r, struct farm_effects *fx) {
    int rc = fx_reserve(fx, 16);
    if (rc) return rc;
    struct batch *b = batch_find(f, r->batch);
    struct worker *w = r->worker ? worker_by_name(f, r->worker) : NULL;
    if (w) w->seen_ms = w->lost ? w->seen_ms : f->now;
    if (!b) {
        pending_ack(fx, conn, NULL, r->batch, r->task, KN_EGONE);
        return KN_OK;
    }
    if (r->task >= b->total || r->backend >= f->backend_count ||
        (b->pin && b->pin->backend != r->backend && !KN_PLANTED(PIN_IGNORED))) {
        pending_ack(fx, conn, b, NULL, r->task, KN_EINVAL);
        fx_note(fx, FX_NOTE, b->id,
                "result_dropped task=%u worker=%s: no such task, or not of the class asked for", r->task,
                r->worker ? r->worker : "");
        return KN_OK;
    }
    if (b->tasks[r->task].state != TASK_QUEUED && b->tasks[r->task].state != TASK_GRANTED) {
        result_unwanted(f, conn, b, r, fx);
        return KN_OK;
    }
    rc = slab_reserve(&f->pendings, 1);
    if (rc) return rc;
    if (slab_used(&f->pendings) >= PENDING_MAX || f->deposed) {
        pending_ack(fx, conn, b, NULL, r->task, KN_EAGAIN);
        fx_note(fx, FX_NOTE, b->id, "result_dropped task=%u: too many wait for the store", r->task);
        return KN_OK;
    }
    result_first(f, conn, b, w, r, fx);
    return KN_OK;
}

/* ---- answers of the store */

static void commit_done(struct farm *f, struct batch *b, struct pending *p, struct farm_effects *fx) {
    uint32_t t = p->task;
    struct task *task = &b->tasks[t];
    struct worker *w = worker_by_name(f, p->worker);
    if (w) {
        w->done++;
        rate_add(&w->rate, f->now, 1);
    }
    rate_add(&f->rate, f->now, 1);
    rate_add(&b->rate, f->now, 1);
    b->done_here++;
    task->backend = (uint8_t)p->backend;
    memcpy(task->pixels, p->pixels, sizeof task->pixels);
    for (uint32_t i = 0; i < p->ack_count; i++) pending_ack(fx, p->acks[i], b, NULL, t, KN_OK);
    pending_destroy(f, b, t);
    task_set(f, b, t, TASK_DONE);
    batch_check_end(f, b, fx);
}

/* The result, or failure, will never be in the store: the task is queued again, or cancelled with its
 * batch. */
static void commit_undone(struct farm *f, struct batch *b, struct pending *p, int code,
                          struct farm_effects *fx) {
    uint32_t t = p->task;
    for (uint32_t i = 0; i < p->ack_count; i++) pending_ack(fx, p->acks[i], b, NULL, t, code);
    pending_destroy(f, b, t);
    if (batch_live(b))
        blame_requeue(f, b, &t, 1, fx);
    else
        task_set(f, b, t, TASK_CANCELLED);
}

int commit_stored(struct farm *f, const struct ev_stored *s, struct farm_effects *fx) {
    struct batch *b = batch_find(f, s->batch);
    if (!b || s->task >= b->total) return KN_OK; /* removed meanwhile */
    struct task *task = &b->tasks[s->task];
    enum farm_task_state expected = s->what == FX_FAIL ? TASK_FAILING : TASK_COMMITTING;
    if (task->state != expected) return KN_OK;
    struct pending *p = slab_at(&f->pendings, task->a);
    if (!p->flying) return KN_OK;
    int rc = farm_reserve(f, fx, 16, 1, 1);
    if (rc) return rc;
    p->flying = false;
    if (s->code == KN_ETERM && !KN_PLANTED(TERM_NOT_HEEDED)) {
        f->deposed = true;
        return KN_OK;
    }
    if (p->voided && !KN_PLANTED(RETRY_OVERTAKEN) && batch_live(b) &&
        s->code != KN_EEXIST) { /* whatever the answer, the retry came later */
        pending_requeue(f, b, s->task);
        return KN_OK;
    }
    if (s->code == KN_OK || s->code == KN_EEXIST) {
        if (!p->fail) {
            commit_done(f, b, p, fx);
        } else if (s->code == KN_EEXIST) { /* an earlier commit had been written and its answer lost */
            pending_destroy(f, b, s->task);
            task_set(f, b, s->task, TASK_DONE);
            batch_check_end(f, b, fx);
        } else {
            pending_destroy(f, b, s->task);
            task_set(f, b, s->task, TASK_FAILED);
            batch_check_end(f, b, fx);
        }
        return KN_OK;
    }
    if (s->code == KN_EGONE && !batch_live(b)) {
        commit_undone(f, b, p, KN_EGONE, fx);
        return KN_OK;
    }
    if (!p->fail && p->tries >= STORE_TRIES_MAX) {
        fx_note(fx, FX_NOTE, b->id, "result_given_up task=%u: the store says %s", s->task,
                kn_err_words(s->code));
        commit_undone(f, b, p, KN_EIO, fx);
        return KN_OK;
    }
    if (p->tries == 0)
        fx_note(fx, FX_NOTE, b->id, "store_refused task=%u: %s; asked again later", s->task,
                kn_err_words(s->code));
    pending_later(f, p, task->a);
    return KN_OK;
}
