/* Who gets what next. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_SCHED_H
#define KILN_COORDINATOR_CORE_SCHED_H

#include "coordinator/core/state.h"

/* The end of every step: gives work to whoever has credit left, retracts what waits for the sake of a higher
 * priority, and looks after the tail. */
void sched_run(struct farm *f, struct farm_effects *fx);
/* One shard for this worker, if there is one that it should take. */
bool sched_grant(struct farm *f, struct worker *w, struct farm_effects *fx);
/* Idle workers first, fast ones before slow ones. */
void sched_sort(struct worker **v, size_t count);
/* How many images of this group this worker should take at once; shrinks with what is left in the lane. */
uint32_t sched_size(struct farm *f, struct worker *w, const struct lane *lane, const struct shape *shape);

#endif
