/* Running a network's images: planned once a shape, then on lanes (kernels/ops.h) without allocating. */
#ifndef KILN_KERNELS_MODELS_LANES_H
#define KILN_KERNELS_MODELS_LANES_H

#include "kernels/ops.h"

/* A network's memory, a stretch a lane. All zero: nothing is planned. */
struct kx_lanes {
    int count;
    int minibatch;            /* images in one call */
    struct kx_arena *arenas;  /* owns, `count` of them */
    unsigned plan_generation; /* kx_plan_generation when it was planned */
    unsigned generation; /* changes when an arena is reallocated: recordings (kx_replay) of an earlier one
                                 are made again */
};

/* Whether it is planned, for n images on so many lanes, and the context has not dropped the plans since. */
bool kx_lanes_ready(const struct kx_lanes *l, const struct kx_ctx *ctx, int count, int n);

/* Plans `forward` for n images on `count` lanes; arenas that are large enough stay. On failure nothing is
 * planned. */
KN_MUST_USE int kx_lanes_plan(struct kx_lanes *l, struct kx_ctx *ctx, int count, int n, kx_images forward,
                              void *arg, struct kn_err *err);
/* Bytes of the arena for n images on one lane, without giving it any: what a plan would take. */
KN_MUST_USE int kx_lanes_count(struct kx_ctx *ctx, int n, kx_images forward, void *arg, size_t *bytes,
                               struct kn_err *err);
/* Runs `forward` for all i < n, and asks each lane how it went. */
KN_MUST_USE int kx_lanes_run(struct kx_lanes *l, struct kx_ctx *ctx, int n, kx_images forward, void *arg,
                             struct kn_err *err);
void kx_lanes_fini(struct kx_lanes *l, struct kx_ctx *ctx);

#endif
