/* How fast workers are, and how many images came in the last seconds. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_SPEED_H
#define KILN_COORDINATOR_CORE_SPEED_H

#include "coordinator/core/state.h"

/* The worker is through with a shard, and says how long it took. The images that came of it count; its word
 * on the time is taken as far as our own clock bears it out. To be called before shard_done(). */
void speed_measured(struct farm *f, struct worker *w, const struct shard *s, uint32_t render_ms);
/* So many images of this shape at a time were too many for the worker's memory. */
void speed_out_of_memory(struct worker *w, uint32_t shape_uid, uint32_t images);
/* Microseconds that an image of this shape will take: as measured, else by the worker's speed for the model,
 * else by the pool's mean. 0: nothing is known. */
uint64_t speed_us_per_image(struct worker *w, const struct pool *p, const struct shape *shape);
/* Microseconds that all images of a shard take: as measured by now, else as expected when it was granted. */
uint64_t speed_shard_us(const struct shard *s);
/* Microseconds until the worker has rendered all that it holds. */
uint64_t speed_backlog_us(const struct farm *f, const struct worker *w);

/* Counts the steps that a shard of this batch has made since it was looked at last: all those of the images
 * that came, and those of the minibatch that it is at work on. */
void speed_steps(struct farm *f, struct batch *b, struct shard *s);
/* Denoising steps of single images a second, over the last RATE_WINDOW_S; 0: not known. */
float speed_steps_per_s(const struct step_rate *r, uint64_t now);
/* Images that a shard is at work on now. */
uint32_t speed_minibatch(const struct shard *s);

/* Counts images that came now. */
void rate_add(struct rate *r, uint64_t now, uint32_t images);
/* Images a second over the last RATE_WINDOW_S, or since since_ms if that is later. */
float rate_per_s(const struct rate *r, uint64_t now, uint64_t since_ms);

#endif
