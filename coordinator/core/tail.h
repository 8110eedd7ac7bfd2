/* The tail of the work: nothing is queued any more that an idle worker could take, others still render.
 * Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_TAIL_H
#define KILN_COORDINATOR_CORE_TAIL_H

#include "coordinator/core/state.h"

/* The end of every step, behind sched_run: gives workers that are idle what waits at others, or a second copy
 * of what slow or silent ones render. Looks every TAIL_EVERY_MS. */
void tail_run(struct farm *f, struct farm_effects *fx);

#endif
