/* Workers: who is there, what they can do and how fast. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_FLEET_H
#define KILN_COORDINATOR_CORE_FLEET_H

#include "coordinator/core/state.h"

int fleet_hello(struct farm *f, uint64_t conn, const struct ev_worker_hello *h, struct farm_effects *fx);
int fleet_heartbeat(struct farm *f, struct worker *w, const struct ev_worker_heartbeat *h,
                    struct farm_effects *fx);
int fleet_gone(struct farm *f, struct worker *w, bool bye, const char *reason, struct farm_effects *fx);
int fleet_drain(struct farm *f, const char *name, bool exit, struct farm_effects *fx);
/* Gives up who was silent too long, and sweeps the shards of the others. Part of the tick. */
void fleet_sweep(struct farm *f, struct farm_effects *fx);
void fleet_worker_destroy(struct farm *f, struct worker *w); /* unlinks nothing but its models */

#endif
