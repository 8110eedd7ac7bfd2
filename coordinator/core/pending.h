/* Results and failures on their way to the store: a `pending` for each that is not durable yet. Private to
 * coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_PENDING_H
#define KILN_COORDINATOR_CORE_PENDING_H

#include "coordinator/core/state.h"

/* Tells a connection (0: nobody) what became of the result it brought; `b` or, where there is no such batch,
 * `id` names the batch. */
void pending_ack(struct farm_effects *fx, uint64_t conn, const struct batch *b, const kn_id id, uint32_t t,
                 int code);

/* This task, in no queue and no shard, is committing (or failing) from now on. A slot is reserved by the
 * caller. */
struct pending *pending_create(struct farm *f, struct batch *b, uint32_t t, bool fail);
/* Frees the task's pending; the caller sets the task's next state. */
void pending_destroy(struct farm *f, struct batch *b, uint32_t t);

/* Asks the store. */
void pending_ask(struct pending *p, struct farm_effects *fx);
/* The store refused: it is asked again after a pause that doubles. */
void pending_later(struct farm *f, struct pending *p, uint32_t slot);
/* Asks the store again where a pause is over. Part of the tick. */
void pending_retry(struct farm *f, struct farm_effects *fx);

/* This task, in no queue and no shard, is failed as soon as the store knows. */
void pending_fail(struct farm *f, struct batch *b, uint32_t t, int code, const char *reason,
                  const char *worker, struct farm_effects *fx);
/* A retry came while this task was failing: it is queued again as soon as no question about it is open. */
void pending_void(struct farm *f, struct batch *b, uint32_t t);
/* A failure that a retry has overtaken: the task is queued again, and nothing is held against it. */
void pending_requeue(struct farm *f, struct batch *b, uint32_t t);

#endif
