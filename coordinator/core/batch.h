/* Batches and their tasks: queues, counts, the log of ends, and what a person may do with a batch. Private to
 * coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_BATCH_H
#define KILN_COORDINATOR_CORE_BATCH_H

#include "coordinator/core/state.h"

/* ---- tasks */

static inline struct group *batch_group_of(struct batch *b, uint32_t t) {
    return &b->groups[b->tasks[t].group];
}
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

/* Moves a task that is in no queue and no shard to another state; an end goes into the log and frees what was
 * known of its trouble. */
void task_set(struct farm *f, struct batch *b, uint32_t t, enum farm_task_state state);
/* Queues a task that is in no queue and no shard: before or behind the others of its group. */
void task_queue(struct farm *f, struct batch *b, uint32_t t, bool front);
/* Queues tasks of one group that must travel together and alone. Each has a trouble already, and a piece slot
 * is reserved. */
void task_queue_piece(struct farm *f, struct batch *b, const uint32_t *tasks, uint32_t count);
/* Takes a queued task out of its queue or piece; its state is set by who calls. */
void task_unqueue(struct farm *f, struct batch *b, uint32_t t);

/* ---- batches */

struct batch *batch_find(const struct farm *f, const kn_id id);
int batch_open(struct farm *f, const struct ev_batch_open *ev, struct farm_effects *fx);
int batch_cancel(struct farm *f, struct batch *b, struct farm_effects *fx);
int batch_pause(struct farm *f, struct batch *b, struct farm_effects *fx);
int batch_resume(struct farm *f, struct batch *b, struct farm_effects *fx);
int batch_retry(struct farm *f, struct batch *b, struct farm_effects *fx);
int batch_priority(struct farm *f, struct batch *b, int priority, struct farm_effects *fx);
int batch_remove(struct farm *f, struct batch *b, struct farm_effects *fx);
void batch_destroy(struct farm *f, struct batch *b); /* unlinks nothing */
/* The batch is done when its last task has ended. */
void batch_check_end(struct farm *f, struct batch *b, struct farm_effects *fx);
/* The store answered an FX_BATCH_STATE. */
void batch_state_stored(struct farm *f, struct batch *b, int code, struct farm_effects *fx);
/* Asks the store again where it could not write a state; part of the tick. */
void batch_state_retry(struct farm *f, struct farm_effects *fx);
/* Hands out work worth so many microseconds: fair share's clock goes on. */
void batch_charge_time(struct farm *f, struct batch *b, uint64_t us);
void batch_refund_time(struct batch *b, uint64_t us);

#endif
