/* Who could render what: models, shapes, and the pools in which batches wait for workers. Private to
 * coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_POOL_H
#define KILN_COORDINATOR_CORE_POOL_H

#include "coordinator/core/state.h"

/* Models, shapes and pools are shared and counted: each get takes a reference, each put gives one back, the
 * last put frees. KN_ENOMEM, KN_ELIMIT. */
int pool_model_get(struct farm *f, const kn_digest digest, struct model **out);
void pool_model_put(struct farm *f, struct model *m);
int pool_shape_get(struct farm *f, const struct farm_group *key, uint32_t *slot);
void pool_shape_put(struct farm *f, uint32_t slot);
int pool_get(struct farm *f, const kn_digest model, const struct pin *pin, struct pool **out);
void pool_put(struct farm *f, struct pool *p);

/* True when the pool's batches may be rendered by this worker's class. */
static inline bool pool_serves(const struct pool *p, const struct worker *w) {
    return !p->pin || p->pin->backend == w->backend;
}

/* The worker begins, or ceases, to count in the sums of the pools that it serves. */
void pool_worker_enter(struct worker *w);
void pool_worker_leave(struct worker *w);
/* The worker's speed for a model was measured. */
void pool_worker_speed(struct worker *w, struct worker_model *wm, uint64_t speed);

/* Enters the lanes of an active batch that have something queued into the order of their pools. */
void pool_batch_ready(struct farm *f, struct batch *b);
/* Takes all lanes of a batch out of the order of their pools. */
void pool_batch_unready(struct batch *b);
/* Sets the batch's virtual time, and moves its lanes to where they belong then. */
void pool_batch_rekey(struct batch *b, uint64_t vtime);
/* Queued tasks came to a lane (`tasks` above 0) or left it (below 0); enters it into its pool's order, or
 * takes it out. */
void pool_lane_queued(struct farm *f, struct lane *lane, int tasks, uint64_t units);
/* True when a is to be served before b: by priority, then by fair share, then by age. */
bool pool_lane_before(const struct lane *a, const struct lane *b);

#endif
