/* Workers: how they come, stay and go. Looking them up is in worker.h. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_FLEET_H
#define KILN_COORDINATOR_CORE_FLEET_H

#include "coordinator/core/state.h"

/* EV_WORKER_HELLO. KN_EAGAIN (older workers are asked first), KN_EINVAL, KN_ESTATE (the connection is another
 * worker's), KN_ELIMIT, KN_ENOMEM. */
int fleet_hello(struct farm *f, uint64_t conn, const struct ev_worker_hello *h, struct farm_effects *fx);
/* EV_WORKER_HEARTBEAT. */
int fleet_heartbeat(struct farm *f, struct worker *w, const struct ev_worker_heartbeat *h,
                    struct farm_effects *fx);
/* EV_WORKER_GONE. */
int fleet_gone(struct farm *f, struct worker *w, const struct farm_event *ev, struct farm_effects *fx);
/* EV_WORKER_DRAIN. KN_ENOENT: nobody of this name is connected. */
int fleet_drain(struct farm *f, const char *name, bool exit, struct farm_effects *fx);
/* Takes their shards back from workers that were put on hold. Part of each step. */
void fleet_holds(struct farm *f, struct farm_effects *fx);
/* Newcomers that want a name which another worker has: tells them what became of it. Part of each step. */
void fleet_rivals(struct farm *f, struct farm_effects *fx);
/* Gives up workers that were silent too long, forgets those lost long ago, and looks at the shards of the
 * others. Part of the tick. */
void fleet_sweep(struct farm *f, struct farm_effects *fx);
/* Frees a worker and gives back its models. It is in no list any more, and has no shard. NULL is fine. */
void fleet_worker_destroy(struct farm *f, struct worker *w);

#endif
