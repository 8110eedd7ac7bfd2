/* The bookkeeping of suspicion: a `trouble` for each task under suspicion, a `fault` for each bad end of a
 * shard. The judgement is in blame.c. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_TROUBLE_H
#define KILN_COORDINATOR_CORE_TROUBLE_H

#include "coordinator/core/state.h"

/* The task's trouble, or NULL. */
struct trouble *trouble_of(const struct farm *f, const struct batch *b, uint32_t t);
/* The same; makes one where there is none. A slot is reserved by the caller. */
struct trouble *trouble_get(struct farm *f, struct batch *b, uint32_t t);
/* Charges from before a restart. */
void trouble_restore(struct farm *f, struct batch *b, uint32_t t, uint32_t charges);
/* The task is in trouble no more: it has ended, or was retried. Does nothing where there is none. */
void trouble_forget(struct farm *f, struct batch *b, uint32_t t);

/* Puts it at the end of the list of those that wait for their verdict, or may be left with nobody. */
void trouble_wait(struct farm *f, struct trouble *x);

/* The charge of the worker with this uid, or NULL. */
struct charger *trouble_charger(struct trouble *x, uint32_t worker);
/* True when somebody got NaN for the task. */
bool trouble_any_nan(const struct trouble *x);
/* Takes back what one worker charged; true when that changed the charges. */
bool trouble_refund(struct trouble *x, uint32_t worker);

/* Begins a fault of this worker that concerns so many tasks. Gives its slot (reserved by the caller), or NONE
 * for no task. */
uint32_t fault_create(struct farm *f, const struct worker *w, uint32_t tasks);
/* The outcome of this task is known as far as its fault is concerned. True when it was the fault's last task
 * and other workers did all of them: the fault, given in `disproved`, was the worker's. */
bool fault_settle(struct farm *f, struct trouble *x, bool other_did_it, struct fault *disproved);

#endif
