/* The table of workers: looking them up, and what is known of each. How they come and go is in fleet.h.
 * Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_WORKER_H
#define KILN_COORDINATOR_CORE_WORKER_H

#include "coordinator/core/state.h"

/* NULL: there is none. */
struct worker *worker_by_name(const struct farm *f, const char *name);
struct worker *worker_by_conn(const struct farm *f, uint64_t conn);
struct worker *worker_by_uid(const struct farm *f, uint32_t uid);

/* The worker's entry for a model, or NULL: it does not have the model. */
struct worker_model *worker_model_of(struct worker *w, const struct model *m);
/* The worker's entry for a shape. Where there is none: NULL, or with `make` a new one, for which the entry
 * that was measured longest ago makes room. */
struct worker_shape *worker_shape_of(struct worker *w, uint32_t shape_uid, bool make);

/* Puts the worker into the list of those that may have credit left: the scheduler looks at it at the end of
 * the step. */
void worker_wake(struct farm *f, struct worker *w);
/* Enters the worker into the sums of its pools while it may be given work, and takes it out of them
 * otherwise. To be called after every change of what that depends on. */
void worker_recount(struct farm *f, struct worker *w);
/* True when the worker may be given work, at least in a while. */
static inline bool worker_takes(const struct worker *w) {
    return w->counted;
}
/* True when the worker knows all that such tasks need, and has not refused them since its last hello. */
bool worker_can(struct worker *w, const struct shape *shape);
/* The same of a lane: of one of the groups, at least, that have something queued (the first few are looked at). */
bool worker_can_some(const struct farm *f, struct worker *w, const struct lane *lane);
/* It cannot read or do such tasks. */
void worker_refuses(struct worker *w, uint32_t shape_uid);
/* It took a grant of this shape without a word. True: too often in a row, so that it counts as refused from now on. */
bool worker_unheard(struct worker *w, uint32_t shape_uid);
void worker_heard(struct worker *w, uint32_t shape_uid); /* it began one */
/* Another process, or another connection: what it refused is asked anew. */
void worker_said_hello(struct worker *w);
/* True when it may be given work now: a probe picture comes first, and what it handed back cools off. */
static inline bool worker_ready(const struct farm *f, const struct worker *w) {
    return w->counted && w->held < w->credit && !w->probe && f->now >= w->cool_until;
}
/* How far what a worker charged a task can be relied on. */
enum charge_weight {
    CHARGE_OPEN, /* not known: the worker was not found to be well since */
    CHARGE_GONE, /* it never will be known: the worker is gone, and had done nothing since its fault before */
    CHARGE_HOLDS,  /* the worker is well, as far as its probe tells */
    CHARGE_PROVED, /* it rendered others since; or a probe, and nobody at all renders anything of the batch */
};
enum charge_weight worker_charge(const struct farm *f, const struct batch *b, const struct charger *c);
/* True when this worker need not try a task that gave NaN: it did, or its class is settled, by two workers of whom
 * one is known to be well, or not known yet. */
bool worker_nan(const struct farm *f, const struct batch *b, const struct trouble *x, const struct worker *w);
/* True when a worker other than these could render this task: one that is there or expected back soon, for which
 * worker_nan() does not hold, with memory for one image. Looks at the whole fleet, so it is asked for suspects
 * only. */
bool worker_other_can(const struct farm *f, const struct batch *b, uint32_t t, const uint32_t *uids,
                      uint32_t count);

#endif
