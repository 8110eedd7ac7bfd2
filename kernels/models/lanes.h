/* Runs a network's images on lanes (kernels/ops.h): plans once for each shape, and allocates nothing
 * afterwards. */
#ifndef KILN_KERNELS_MODELS_LANES_H
#define KILN_KERNELS_MODELS_LANES_H

#include "kernels/ops.h"

/* The memory that a network's plan needs: an arena for each lane. All zero: nothing is planned. */
struct kx_lanes {
    int count;
    int minibatch;            /* images in one call */
    struct kx_arena *arenas;  /* owns, `count` of them */
    unsigned plan_generation; /* kx_plan_generation when it was planned */
    unsigned generation; /* changes when an arena is reallocated: recordings (kx_replay) of an earlier one
                                 are made again */
};

/* True if it is planned for n images on `count` lanes, and the context has not dropped the plans since. */
bool kx_lanes_ready(const struct kx_lanes *l, const struct kx_ctx *ctx, int count, int n);

/* Plans `forward` for n images on `count` lanes; arenas that are large enough stay. On failure nothing is
 * planned. */
KN_MUST_USE int kx_lanes_plan(struct kx_lanes *l, struct kx_ctx *ctx, int count, int n, kx_images forward,
                              void *arg, struct kn_err *err);
/* The bytes that a plan for n images on one lane would take (arena and workspace). Allocates nothing. */
KN_MUST_USE int kx_lanes_count(struct kx_ctx *ctx, int n, kx_images forward, void *arg, size_t *bytes,
                               struct kn_err *err);
/* Runs `forward` for all i < n. Returns the first lane's error. */
KN_MUST_USE int kx_lanes_run(struct kx_lanes *l, struct kx_ctx *ctx, int n, kx_images forward, void *arg,
                             struct kn_err *err);
void kx_lanes_fini(struct kx_lanes *l, struct kx_ctx *ctx);

#endif
