/* The bookkeeping of suspicion. The contract is trouble.h, the data state.h. */
#include "coordinator/core/trouble.h"

#include <stdlib.h>

struct trouble *trouble_of(const struct farm *f, const struct batch *b, uint32_t t) {
    return b->tasks[t].trouble == NONE ? NULL : slab_at(&f->troubles, b->tasks[t].trouble);
}

struct trouble *trouble_get(struct farm *f, struct batch *b, uint32_t t) {
    if (b->tasks[t].trouble != NONE) return trouble_of(f, b, t);
    b->tasks[t].trouble = slab_take(&f->troubles);
    struct trouble *x = trouble_of(f, b, t);
    x->piece = x->fault = x->avoid = x->prev = x->next = NONE;
    x->batch = b;
    x->task = t;
    return x;
}

/* ---- the list of tasks that may be left with nobody to render them */

static void trouble_unwait(struct farm *f, struct trouble *x) {
    if (!x->waits) return;
    x->waits = false;
    if (x->prev != NONE)
        ((struct trouble *)slab_at(&f->troubles, x->prev))->next = x->next;
    else
        f->trouble_head = x->next;
    if (x->next != NONE)
        ((struct trouble *)slab_at(&f->troubles, x->next))->prev = x->prev;
    else
        f->trouble_tail = x->prev;
}

void trouble_wait(struct farm *f, struct trouble *x) {
    trouble_unwait(f, x);
    uint32_t slot = x->batch->tasks[x->task].trouble;
    x->waits = true;
    x->prev = f->trouble_tail;
    x->next = NONE;
    if (x->prev != NONE)
        ((struct trouble *)slab_at(&f->troubles, x->prev))->next = slot;
    else
        f->trouble_head = slot;
    f->trouble_tail = slot;
}

/* ---- faults of workers */

uint32_t fault_create(struct farm *f, const struct worker *w, uint32_t tasks) {
    if (tasks == 0) return NONE;
    uint32_t slot = slab_take(&f->faults);
    *(struct fault *)slab_at(&f->faults, slot) =
        (struct fault){.worker = w->uid, .run = w->proved, .left = tasks};
    return slot;
}

bool fault_settle(struct farm *f, struct trouble *x, bool other_did_it, struct fault *disproved) {
    if (x->fault == NONE) return false;
    struct fault *fault = slab_at(&f->faults, x->fault);
    if (!other_did_it) fault->explained = true;
    assert(fault->left > 0);
    bool last = --fault->left == 0;
    *disproved = *fault;
    if (last) slab_give(&f->faults, x->fault);
    x->fault = NONE;
    return last && !disproved->explained;
}

void trouble_forget(struct farm *f, struct batch *b, uint32_t t) {
    struct trouble *x = trouble_of(f, b, t);
    if (!x) return;
    assert(x->piece == NONE || b->tasks[t].state == TASK_QUEUED);
    struct fault disproved;
    (void)fault_settle(f, x, false, &disproved); /* explained, so never disproved */
    trouble_unwait(f, x);
    free(x->reason);
    x->batch = NULL; /* health_hold looks at every slot, and tells free ones by this */
    slab_give(&f->troubles, b->tasks[t].trouble);
    b->tasks[t].trouble = NONE;
}

void trouble_restore(struct farm *f, struct batch *b, uint32_t t, uint32_t charges) {
    if (b->tasks[t].state != TASK_QUEUED || charges == 0) return;
    struct trouble *x = trouble_get(f, b, t);
    b->tasks[t].charges = charges < UINT8_MAX ? (uint8_t)charges : UINT8_MAX;
    b->tasks[t].attempts = b->tasks[t].charges;
    x->code = KN_EINTERNAL;
    if (charges >= f->config.charges_max) trouble_wait(f, x);
}

/* ---- charges, and who made them */

struct charger *trouble_charger(struct trouble *x, uint32_t worker) {
    for (uint32_t i = 0; i < x->by_count; i++)
        if (x->by[i].worker == worker) return &x->by[i];
    return NULL;
}

bool trouble_any_nan(const struct trouble *x) {
    for (uint32_t i = 0; i < x->by_count; i++)
        if (x->by[i].nan != BACKEND_NONE) return true;
    return false;
}

bool trouble_refund(struct trouble *x, uint32_t worker) {
    struct task *task = &x->batch->tasks[x->task];
    struct charger *c = trouble_charger(x, worker);
    if (!c) return false;
    uint32_t back = c->charges < task->charges ? c->charges : task->charges;
    *c = x->by[--x->by_count];
    task->charges = (uint8_t)(task->charges - back);
    return back > 0;
}
