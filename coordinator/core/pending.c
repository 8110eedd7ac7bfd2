/* Results and failures on their way to the store. The contract is pending.h.
 *
 * One question about a task is before the store at a time. When the store could not make it durable it is
 * asked again after a growing pause: the answer may have been lost and the write not, so asking again is the
 * only way to know. The store takes the same question twice without harm. */
#include "coordinator/core/pending.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/planted.h"
#include "coordinator/core/batch.h"
#include "coordinator/core/task.h"
#include "coordinator/core/trouble.h"

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

/* ---- questions and answers */

void pending_ack(struct farm_effects *fx, uint64_t conn, const struct batch *b, const kn_id id, uint32_t t,
                 int code) {
    if (!conn) return;
    struct farm_effect *e = fx_add(fx, FX_ACK);
    e->conn = conn;
    memcpy(e->batch, b ? b->id : id, sizeof e->batch);
    e->task = t;
    e->u.ack.code = code;
}

void pending_ask(struct pending *p, struct farm_effects *fx) {
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

struct pending *pending_create(struct farm *f, struct batch *b, uint32_t t, bool fail) {
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

void pending_destroy(struct farm *f, struct batch *b, uint32_t t) {
    struct pending *p = slab_at(&f->pendings, b->tasks[t].a);
    free(p->reason);
    p->reason = NULL;
    slab_give(&f->pendings, b->tasks[t].a);
    b->tasks[t].a = b->tasks[t].b = NONE;
}

void pending_fail(struct farm *f, struct batch *b, uint32_t t, int code, const char *reason,
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
        pending_ask(p, fx);
}

void pending_requeue(struct farm *f, struct batch *b, uint32_t t) {
    pending_destroy(f, b, t);
    b->tasks[t].charges = b->tasks[t].losses = 0;
    trouble_forget(f, b, t);
    task_queue(f, b, t, false);
}

void pending_void(struct farm *f, struct batch *b, uint32_t t) {
    struct pending *p = slab_at(&f->pendings, b->tasks[t].a);
    p->voided = true;
    if (p->flying) return;
    waiting_remove(f, b->tasks[t].a);
    pending_requeue(f, b, t);
}

void pending_later(struct farm *f, struct pending *p, uint32_t slot) {
    uint64_t pause = (uint64_t)RETRY_MS << (p->tries < 4 ? p->tries : 4);
    p->tries++;
    p->due_ms = f->now + (pause < RETRY_MS_MAX ? pause : RETRY_MS_MAX);
    if (!KN_PLANTED(RESEND_LOST)) waiting_append(f, slot);
}

void pending_retry(struct farm *f, struct farm_effects *fx) {
    if (f->deposed) return;
    uint32_t next;
    for (uint32_t slot = f->wait_head; slot != NONE; slot = next) {
        struct pending *p = slab_at(&f->pendings, slot);
        next = p->next;
        if (p->due_ms > f->now || (p->fail && batch_retry_open(p->batch))) continue;
        if (fx_reserve(fx, 4)) return;
        waiting_remove(f, slot);
        pending_ask(p, fx);
    }
}
