/* The life of a batch: opening, its state in the store, its end, and its share of the fleet's time. Its tasks
 * are in task.h, a person's wishes about it in control.h. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_BATCH_H
#define KILN_COORDINATOR_CORE_BATCH_H

#include "coordinator/core/state.h"

/* Its tasks may still be handed out, now or once it is resumed. */
static inline bool batch_live(const struct batch *b) {
    return b->state == KN_BATCH_ACTIVE || b->state == KN_BATCH_PAUSED;
}
static inline uint32_t batch_ended_count(const struct batch *b) {
    return b->counts[TASK_DONE] + b->counts[TASK_FAILED] + b->counts[TASK_CANCELLED];
}
/* The store has not confirmed yet that all failures recorded before a retry are void. New failures wait until
 * it has, or they would be void too. */
static inline bool batch_retry_open(const struct batch *b) {
    return b->retried || (b->state_sent && b->retried_sent);
}

/* NULL: there is none. */
struct batch *batch_find(const struct farm *f, const kn_id id);
/* EV_BATCH_OPEN. */
int batch_open(struct farm *f, const struct ev_batch_open *ev, struct farm_effects *fx);
/* Frees the batch and gives back its models and shapes. It is in no list any more, and has no shard. NULL is
 * fine. */
void batch_destroy(struct farm *f, struct batch *b);
/* Ends the batch if its last task has ended. */
void batch_check_end(struct farm *f, struct batch *b, struct farm_effects *fx);

/* A priority in use, made where no batch has it yet. Each get takes a reference that a put gives back. NULL:
 * out of memory. */
struct level *batch_level_get(struct farm *f, int priority);
void batch_level_put(struct farm *f, struct level *l);

/* Tells the store of the batch's state: at once, or when the question before it is answered. Room for one
 * effect is reserved by the caller. */
void batch_state_send(struct farm *f, struct batch *b, struct farm_effects *fx);
/* The store answered an FX_BATCH_STATE. */
void batch_state_stored(struct farm *f, struct batch *b, int code, struct farm_effects *fx);
/* Asks the store again where it could not write a state. Part of the tick. */
void batch_state_retry(struct farm *f, struct farm_effects *fx);

/* Work worth so many microseconds is handed out, or comes back unrendered: the batch moves back, or ahead, in
 * the order in which batches of its priority are served. */
void batch_charge_time(struct farm *f, struct batch *b, uint64_t us);
void batch_refund_time(struct batch *b, uint64_t us);

#endif
