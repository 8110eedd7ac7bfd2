/* Batches and their tasks: queues, counts, the log of ends, and what a person may do with a batch. Private to
 * coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_BATCH_H
#define KILN_COORDINATOR_CORE_BATCH_H

#include "coordinator/core/state.h"

static inline bool batch_live(const struct batch *b) {
    return b->state == KN_BATCH_ACTIVE || b->state == KN_BATCH_PAUSED;
}
static inline uint32_t batch_ended_count(const struct batch *b) {
    return b->counts[TASK_DONE] + b->counts[TASK_FAILED] + b->counts[TASK_CANCELLED];
}

/* The store does not know yet that what had failed is void: new failures wait, or they would be void too. */
static inline bool batch_retry_open(const struct batch *b) {
    return b->retried || (b->state_sent && b->retried_sent);
}

struct batch *batch_find(const struct farm *f, const kn_id id);
int batch_open(struct farm *f, const struct ev_batch_open *ev, struct farm_effects *fx);
void batch_destroy(struct farm *f, struct batch *b); /* unlinks nothing */
/* The batch is done when its last task has ended. */
void batch_check_end(struct farm *f, struct batch *b, struct farm_effects *fx);
/* The priority, made where no batch has it yet, with a reference to be put back. NULL: out of memory. */
struct level *batch_level_get(struct farm *f, int priority);
void batch_level_put(struct farm *f, struct level *l);
/* Has the store told of the batch's state: now, or once what was told before is answered. Reserved by who
 * calls. */
void batch_state_send(struct farm *f, struct batch *b, struct farm_effects *fx);
/* The store answered an FX_BATCH_STATE. */
void batch_state_stored(struct farm *f, struct batch *b, int code, struct farm_effects *fx);
/* Asks the store again where it could not write a state; part of the tick. */
void batch_state_retry(struct farm *f, struct farm_effects *fx);
/* Hands out work worth so many microseconds: fair share's clock goes on. */
void batch_charge_time(struct farm *f, struct batch *b, uint64_t us);
void batch_refund_time(struct batch *b, uint64_t us);

#endif
