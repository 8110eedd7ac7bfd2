/* Tasks: their states, their queues and the counts of both. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_TASK_H
#define KILN_COORDINATOR_CORE_TASK_H

#include "coordinator/core/state.h"

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

#endif
