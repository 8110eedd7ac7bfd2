/* Workers: who is there, what they can do and how fast. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_FLEET_H
#define KILN_COORDINATOR_CORE_FLEET_H

#include "coordinator/core/state.h"

struct worker *fleet_by_name(const struct farm *f, const char *name);
struct worker *fleet_by_conn(const struct farm *f, uint64_t conn);
struct worker *fleet_by_uid(const struct farm *f, uint32_t uid);

int fleet_hello(struct farm *f, uint64_t conn, const struct ev_worker_hello *h, struct farm_effects *fx);
int fleet_heartbeat(struct farm *f, struct worker *w, const struct ev_worker_heartbeat *h,
                    struct farm_effects *fx);
int fleet_gone(struct farm *f, struct worker *w, bool bye, const char *reason, struct farm_effects *fx);
int fleet_drain(struct farm *f, const char *name, bool exit, struct farm_effects *fx);
/* Drains a worker for its faults, and takes its charges back. */
void fleet_bar(struct farm *f, struct worker *w, const char *why, struct farm_effects *fx);
/* Gives up who was silent too long, and sweeps the shards of the others. Part of the tick. */
void fleet_sweep(struct farm *f, struct farm_effects *fx);
void fleet_worker_destroy(struct farm *f, struct worker *w); /* unlinks nothing but its models */

/* It may have credit left: it is looked at at the end of the step. */
void fleet_wake(struct farm *f, struct worker *w);
/* Whether work may be given to it. */
static inline bool fleet_takes(const struct worker *w) {
    return w->counted;
}
struct worker_model *fleet_model(struct worker *w, const struct model *m);
/* Whether a worker other than these could render this task: of a class that did not give NaN for it, with
 * memory for one image; there, or expected back soon. Looks at the whole fleet: for suspects only. */
bool fleet_other_can(const struct farm *f, const struct batch *b, uint32_t t, const uint32_t *uids,
                     uint32_t count);

/* A shard of this many images took this long. */
void fleet_measured(struct worker *w, const struct shard *s, uint32_t render_ms, uint32_t images);
/* Out of memory with so many at a time. */
void fleet_out_of_memory(struct worker *w, uint32_t shape_uid, uint32_t images);
/* Microseconds an image of this shape will take: measured, else from the same model's speed, else from the
 * pool's mean; 0: nothing is known. */
uint64_t fleet_us_per_image(struct worker *w, const struct pool *p, const struct shape *shape);
struct worker_shape *fleet_shape(struct worker *w, uint32_t shape_uid, bool make);
/* Microseconds that all images of a shard take: as measured by now, else as was expected when it was granted.
 */
uint64_t fleet_shard_us(const struct shard *s);
/* Microseconds until it has rendered all that it holds. */
uint64_t fleet_backlog_us(const struct farm *f, const struct worker *w);

void fleet_rate_add(struct rate *r, uint64_t now, uint32_t images);
float fleet_rate(const struct rate *r, uint64_t now, uint64_t since_ms);

#endif
