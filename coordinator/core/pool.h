/* Who could render what: models, shapes, and the pools in which batches wait for workers. Private to
 * coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_POOL_H
#define KILN_COORDINATOR_CORE_POOL_H

#include "coordinator/core/state.h"

/* Interned and counted: each get takes a reference, each put gives one back. KN_ENOMEM, KN_ELIMIT. */
int pool_model_get(struct farm *f, const kn_digest digest, struct model **out);
void pool_model_put(struct farm *f, struct model *m);
int pool_shape_get(struct farm *f, const struct farm_group *key, uint32_t *slot);
void pool_shape_put(struct farm *f, uint32_t slot);
int pool_get(struct farm *f, const kn_digest model, uint16_t pin, struct pool **out);
void pool_put(struct farm *f, struct pool *p);

/* Whether this worker may take work of this pool now (connected, not draining, right class). */
static inline bool pool_serves(const struct pool *p, const struct worker *w) {
    return p->pin == PIN_ANY || p->pin == w->backend;
}

/* A worker begins or ceases to count in the sums of the pools that it serves. */
void pool_worker_enter(struct worker *w);
void pool_worker_leave(struct worker *w);
/* Its speed for a model was measured. */
void pool_worker_speed(struct worker *w, struct worker_model *wm, uint64_t speed);

/* The lanes of a batch in the order of their pools: those with something queued, if the batch is active. */
void pool_batch_ready(struct farm *f, struct batch *b);
void pool_batch_unready(struct batch *b);
void pool_batch_rekey(struct batch *b, uint64_t vtime);
/* Queued tasks came to a lane or left it; keeps its readiness right. */
void pool_lane_queued(struct farm *f, struct lane *lane, int tasks, uint64_t units);
/* Whether a is to be served before b: priority, then fair share, then age. */
bool pool_lane_before(const struct lane *a, const struct lane *b);

#endif
