/* The health of workers: who is well, who is in doubt, who is held. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_HEALTH_H
#define KILN_COORDINATOR_CORE_HEALTH_H

#include "coordinator/core/state.h"

/* The worker ended badly at a task of this batch. Holds it where its failures stand out, or asks for a probe
 * picture where it is high time to know. `model` is the task's. */
void health_fault(struct farm *f, struct worker *w, const struct batch *b, const struct model *model,
                  struct farm_effects *fx);
/* A picture of the worker came. `after_fault`: its shard began after the worker's last fault, so that the worker is
 * acquitted. */
void health_picture(struct worker *w, bool after_fault);
/* Asks the worker for a probe picture of this model, unless one is under way. One that renders none (an older
 * program) is taken to have passed. */
void health_probe(struct farm *f, struct worker *w, const kn_digest model, struct farm_effects *fx);
/* EV_PROBED. */
int health_probed(struct farm *f, struct worker *w, const struct ev_probed *e, struct farm_effects *fx);
/* The worker's process has ended: a probe picture that it was at will not come, and may be why. */
void health_ended(struct farm *f, struct worker *w, struct farm_effects *fx);
/* Another process has the worker's name: if it is held, it gets its probe at once. One that renders none is let in
 * when its pause is over. */
void health_restarted(struct farm *f, struct worker *w, struct farm_effects *fx);

/* The worker is there, over a new connection: it is asked for the probe picture that was to come over the one before,
 * or that is due since its process before. */
void health_arrived(struct farm *f, struct worker *w, struct farm_effects *fx);

/* Gives the worker nothing more until a probe picture has come out well, and takes its charges back. fleet_holds()
 * relieves it of its shards before the step ends. */
void health_hold(struct farm *f, struct worker *w, const char *reason, struct farm_effects *fx);
/* A held worker that was given another chance, and was found wanting again; or cannot be given one. */
bool health_hopeless(const struct worker *w);
/* The worker was through with a shard and owed pictures of it that never came, or what came was bad: several times in
 * a row, and it is held for that reason. */
void health_undelivered(struct farm *f, struct worker *w, const char *reason, struct farm_effects *fx);

/* Probe pictures that take too long, and held workers whose pause is over. Part of the tick. */
void health_sweep(struct farm *f, struct farm_effects *fx);

#endif
