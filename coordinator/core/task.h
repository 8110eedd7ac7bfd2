/* Tasks: their states, the queues that they wait in, and the counts of both. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_TASK_H
#define KILN_COORDINATOR_CORE_TASK_H

#include "coordinator/core/state.h"

/* Moves a task that is in no queue and no shard to another state. A task that ends goes into the log of ends,
 * and nothing is held against it any more. */
void task_set(struct farm *f, struct batch *b, uint32_t t, enum farm_task_state state);
/* Queues a task that is in no queue and no shard: before (`front`) or behind the others of its group. */
void task_queue(struct farm *f, struct batch *b, uint32_t t, bool front);
/* Queues tasks of one group as a piece: they travel together and with nobody else. Each has a trouble
 * already, and a slot for the piece is reserved by the caller. */
void task_queue_piece(struct farm *f, struct batch *b, const uint32_t *tasks, uint32_t count);
/* Takes a queued task out of its queue or piece; the caller sets its state. */
void task_unqueue(struct farm *f, struct batch *b, uint32_t t);

#endif
