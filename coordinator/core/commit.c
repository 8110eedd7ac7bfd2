/* Results and failures on their way to the store. The contract is commit.h.
 *
 * One question about a task is before the store at a time. What the store could not make durable is asked
 * again after a growing pause: the answer may have been lost and the write not, so asking again is the only
 * way to know; it is idempotent. After STORE_TRIES_MAX a result is given up and its task rendered again
 * (which ends in KN_EEXIST if it was written after all); a failure is asked for as long as it takes.
 *
 * Workers hold the bytes until FX_ACK. Who brings the same image while it is being committed waits for the
 * same answer. */
#include "coordinator/core/commit.h"

#include <stdio.h>
#include <stdlib.h>

#include "coordinator/core/batch.h"
#include "coordinator/core/blame.h"
#include "coordinator/core/shard.h"
#include "coordinator/core/speed.h"
#include "coordinator/core/task.h"
#include "coordinator/core/trouble.h"
#include "coordinator/core/worker.h"

static void ack(struct farm_effects *fx, uint64_t conn, const struct batch *b, const kn_id id, uint32_t t,
                int code) {
    if (!conn) return;
    struct farm_effect *e = fx_add(fx, FX_ACK);
    e->conn = conn;
    memcpy(e->batch, b ? b->id : id, sizeof e->batch);
    e->task = t;
    e->u.ack.code = code;
}

/* ---- the list of those that wait to be asked again */

static void waiting_append(struct farm *f, uint32_t slot) {
    struct pending *p = slab_at(&f->pendings, slot);
    p->prev = f->wait_tail;
    p->next = NONE;
    if (p->prev != NONE)
        ((struct pending *)slab_at(&f->pendings, p->prev))->next = slot;
    else
        f->wait_head = slot;
    f->wait_tail = slot;
}

static void waiting_remove(struct farm *f, uint32_t slot) {
    struct pending *p = slab_at(&f->pendings, slot);
    if (p->prev != NONE)
        ((struct pending *)slab_at(&f->pendings, p->prev))->next = p->next;
    else
        f->wait_head = p->next;
    if (p->next != NONE)
        ((struct pending *)slab_at(&f->pendings, p->next))->prev = p->prev;
    else
        f->wait_tail = p->prev;
}

static void ask(struct pending *p, struct farm_effects *fx) {
    struct farm_effect *e = fx_add(fx, p->fail ? FX_FAIL : FX_COMMIT);
    memcpy(e->batch, p->batch->id, sizeof e->batch);
    e->task = p->task;
    p->flying = true;
    if (p->fail) {
        e->u.fail.code = p->code;
        e->u.fail.attempt = p->attempt;
        e->u.fail.reason = fx_text(fx, p->reason ? p->reason : kn_err_words(p->code));
        e->u.fail.worker = fx_text(fx, p->worker);
        return;
    }
    e->u.commit.attempt = p->attempt;
    e->u.commit.render_ms = p->render_ms;
    e->u.commit.backend = p->backend;
    memcpy(e->u.commit.sha256, p->sha256, sizeof p->sha256);
    memcpy(e->u.commit.pixels, p->pixels, sizeof p->pixels);
    e->u.commit.flat = p->flat;
    e->u.commit.worker = fx_text(fx, p->worker);
    e->u.commit.engine = fx_text(fx, p->engine);
}

static struct pending *pending_create(struct farm *f, struct batch *b, uint32_t t, bool fail) {
    uint32_t slot = slab_take(&f->pendings);
    struct pending *p = slab_at(&f->pendings, slot);
    p->fail = fail;
    p->batch = b;
    p->task = t;
    p->prev = p->next = NONE;
    task_set(f, b, t, fail ? TASK_FAILING : TASK_COMMITTING);
    b->tasks[t].a = slot;
    b->tasks[t].b = NONE;
    return p;
}

static void pending_destroy(struct farm *f, struct batch *b, uint32_t t) {
    struct pending *p = slab_at(&f->pendings, b->tasks[t].a);
    free(p->reason);
    p->reason = NULL;
    slab_give(&f->pendings, b->tasks[t].a);
    b->tasks[t].a = b->tasks[t].b = NONE;
}

void commit_fail(struct farm *f, struct batch *b, uint32_t t, int code, const char *reason,
                 const char *worker, struct farm_effects *fx) {
    struct pending *p = pending_create(f, b, t, true);
    p->code = code;
    p->attempt = b->tasks[t].attempts ? b->tasks[t].attempts : 1;
    p->reason = strdup(reason);
    snprintf(p->worker, sizeof p->worker, "%s", worker);
    if (f->deposed) return;
    if (batch_retry_open(b))
        waiting_append(f, b->tasks[t].a);
    else
        ask(p, fx);
}

static void void_now(struct farm *f, struct batch *b, uint32_t t) {
    pending_destroy(f, b, t);
    b->tasks[t].charges = b->tasks[t].losses = 0;
    trouble_forget(f, b, t);
    task_queue(f, b, t, false);
}

void commit_void(struct farm *f, struct batch *b, uint32_t t) {
    struct pending *p = slab_at(&f->pendings, b->tasks[t].a);
    p->voided = true;
    if (p->flying) return;
    waiting_remove(f, b->tasks[t].a);
    void_now(f, b, t);
}

/* ---- results */

static bool same_pixels(const uint32_t have[2], const kn_digest pixels) {
    return memcmp(have, pixels, sizeof(uint32_t[2])) == 0;
}

/* A second result of one class must have the same pixels: a promise (DESIGN 1.3), and a check of the GPU. */
static void compare(struct farm *f, const struct batch *b, uint32_t t, uint32_t backend, bool same,
                    const struct ev_result *r, struct farm_effects *fx) {
    if (same || backend != r->backend) return;
    fx_note(fx, FX_ALARM, b->id, "duplicate_differs task=%u backend=%s worker=%s", t,
            farm_backend_name(f, r->backend), r->worker ? r->worker : "");
}

int commit_result(struct farm *f, uint64_t conn, const struct ev_result *r, struct farm_effects *fx) {
    int rc = fx_reserve(fx, 16);
    if (rc) return rc;
    struct batch *b = batch_find(f, r->batch);
    struct worker *w = r->worker ? worker_by_name(f, r->worker) : NULL;
    if (w) w->seen_ms = w->lost ? w->seen_ms : f->now;
    if (!b) {
        ack(fx, conn, NULL, r->batch, r->task, KN_EGONE);
        return KN_OK;
    }
    if (r->task >= b->total || r->backend >= f->backend_count ||
        (b->pin != PIN_ANY && b->pin != r->backend)) {
        ack(fx, conn, b, NULL, r->task, KN_EINVAL);
        fx_note(fx, FX_NOTE, b->id,
                "result_dropped task=%u worker=%s: no such task, or not of the class asked for", r->task,
                r->worker ? r->worker : "");
        return KN_OK;
    }
    struct task *task = &b->tasks[r->task];
    switch ((enum farm_task_state)task->state) {
    case TASK_DONE:
        compare(f, b, r->task, task->backend, same_pixels(task->pixels, r->pixels), r, fx);
        ack(fx, conn, b, NULL, r->task, KN_OK);
        return KN_OK;
    case TASK_COMMITTING: {
        struct pending *p = slab_at(&f->pendings, task->a);
        compare(f, b, r->task, p->backend, memcmp(p->pixels, r->pixels, sizeof p->pixels) == 0, r, fx);
        for (uint32_t i = 0; i < p->ack_count; i++)
            if (p->acks[i] == conn) return KN_OK;
        if (p->ack_count < ACKS_MAX && conn)
            p->acks[p->ack_count++] = conn;
        else
            ack(fx, conn, b, NULL, r->task, KN_EAGAIN);
        return KN_OK;
    }
    case TASK_FAILING:
    case TASK_FAILED:
        ack(fx, conn, b, NULL, r->task, KN_ESTATE);
        return KN_OK;
    case TASK_CANCELLED:
        ack(fx, conn, b, NULL, r->task, KN_EGONE);
        return KN_OK;
    case TASK_QUEUED:
    case TASK_GRANTED:
        break;
    }
    rc = slab_reserve(&f->pendings, 1);
    if (rc) return rc;
    if (slab_used(&f->pendings) >= PENDING_MAX || f->deposed) {
        ack(fx, conn, b, NULL, r->task, KN_EAGAIN);
        fx_note(fx, FX_NOTE, b->id, "result_dropped task=%u: too many wait for the store", r->task);
        return KN_OK;
    }
    if (task->state == TASK_QUEUED)
        task_unqueue(f, b, r->task);
    else
        shard_result(f, b, r->task, w, fx);
    blame_result(f, b, r->task, w, fx);
    struct pending *p = pending_create(f, b, r->task, false);
    p->attempt = r->attempt;
    p->render_ms = r->render_ms;
    p->backend = r->backend;
    memcpy(p->sha256, r->sha256, sizeof p->sha256);
    memcpy(p->pixels, r->pixels, sizeof p->pixels);
    p->flat = r->flat;
    snprintf(p->worker, sizeof p->worker, "%s", r->worker ? r->worker : "");
    snprintf(p->engine, sizeof p->engine, "%s", r->engine ? r->engine : "");
    if (conn) p->acks[p->ack_count++] = conn;
    ask(p, fx);
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
    f->backends[p->backend].done++;
    rate_add(&f->rate, f->now, 1);
    rate_add(&b->rate, f->now, 1);
    b->done_here++;
    task->backend = (uint8_t)p->backend;
    memcpy(task->pixels, p->pixels, sizeof task->pixels);
    for (uint32_t i = 0; i < p->ack_count; i++) ack(fx, p->acks[i], b, NULL, t, KN_OK);
    pending_destroy(f, b, t);
    task_set(f, b, t, TASK_DONE);
    batch_check_end(f, b, fx);
}

/* The task is not what we asked for: another one next. */
static void commit_undone(struct farm *f, struct batch *b, struct pending *p, int code,
                          struct farm_effects *fx) {
    uint32_t t = p->task;
    for (uint32_t i = 0; i < p->ack_count; i++) ack(fx, p->acks[i], b, NULL, t, code);
    pending_destroy(f, b, t);
    if (batch_live(b))
        blame_requeue(f, b, &t, 1, fx);
    else
        task_set(f, b, t, TASK_CANCELLED);
}

static void commit_later(struct farm *f, struct pending *p, uint32_t slot) {
    uint64_t pause = (uint64_t)RETRY_MS << (p->tries < 4 ? p->tries : 4);
    p->tries++;
    p->due_ms = f->now + (pause < RETRY_MS_MAX ? pause : RETRY_MS_MAX);
    waiting_append(f, slot);
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
    if (s->code == KN_ETERM) {
        f->deposed = true;
        return KN_OK;
    }
    if (p->voided && batch_live(b) && s->code != KN_EEXIST) { /* whatever it says, the retry came behind */
        void_now(f, b, s->task);
        return KN_OK;
    }
    if (s->code == KN_OK || s->code == KN_EEXIST) {
        if (!p->fail) {
            commit_done(f, b, p, fx);
        } else if (s->code == KN_EEXIST) { /* an earlier commit had been written, its answer was lost */
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
    commit_later(f, p, task->a);
    return KN_OK;
}

void commit_retry(struct farm *f, struct farm_effects *fx) {
    if (f->deposed) return;
    uint32_t next;
    for (uint32_t slot = f->wait_head; slot != NONE; slot = next) {
        struct pending *p = slab_at(&f->pendings, slot);
        next = p->next;
        if (p->due_ms > f->now || (p->fail && batch_retry_open(p->batch))) continue;
        if (fx_reserve(fx, 4)) return;
        waiting_remove(f, slot);
        ask(p, fx);
    }
}
