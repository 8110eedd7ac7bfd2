/* Who gets what next. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_SCHED_H
#define KILN_COORDINATOR_CORE_SCHED_H

#include "coordinator/core/state.h"

/* At the end of every step: gives work to workers with credit left, and takes back what waits at workers
 * where a higher priority needs the place. */
void sched_run(struct farm *f, struct farm_effects *fx);
/* Grants this worker one shard, if there is one that it should take. */
bool sched_grant(struct farm *f, struct worker *w, struct farm_effects *fx);
/* Sorts idle workers before busy ones, then fast ones before slow ones. */
void sched_sort(struct worker **v, size_t count);
/* How many images of this shape this worker should take at once; shrinks with what is left in the lane. */
uint32_t sched_size(struct farm *f, struct worker *w, const struct lane *lane, const struct shape *shape);

#endif
