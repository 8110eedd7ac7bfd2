/* A person's wishes about a batch: cancel, pause, resume, retry, priority, remove. Private to
 * coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_CONTROL_H
#define KILN_COORDINATOR_CORE_CONTROL_H

#include "coordinator/core/state.h"

/* Each returns 0 when there is nothing to do, KN_ESTATE when the batch's state does not allow it, or
 * KN_ENOMEM, when nothing was changed. Each tells the store of the new state. */

/* Takes back every shard, running ones too, and cancels all that has not ended. */
int control_cancel(struct farm *f, struct batch *b, struct farm_effects *fx);
/* Takes back the shards that have not begun; running ones are finished. */
int control_pause(struct farm *f, struct batch *b, struct farm_effects *fx);
int control_resume(struct farm *f, struct batch *b, struct farm_effects *fx);
/* Queues failed tasks again, uncharged; of a cancelled batch also those that were cancelled. */
int control_retry(struct farm *f, struct batch *b, struct farm_effects *fx);
/* No wish: the store has voided the records of these tasks, whose objects are lost. Those that are done are
 * queued again, or cancelled where the batch is. */
int control_lost(struct farm *f, struct batch *b, const uint32_t *tasks, uint32_t count,
                 struct farm_effects *fx);
int control_priority(struct farm *f, struct batch *b, int priority, struct farm_effects *fx);
/* The batch must have ended; it is freed. */
int control_remove(struct farm *f, struct batch *b, struct farm_effects *fx);

#endif
