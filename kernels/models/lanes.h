/* Running a network's images: planned once a shape, then on lanes (kernels/ops.h) without allocating. */
#ifndef KILN_KERNELS_MODELS_LANES_H
#define KILN_KERNELS_MODELS_LANES_H

#include "kernels/ops.h"

/* What a network does for image i, its ops on `lane`; while planning i is 0. */
typedef void (*kx_forward)(void *arg, struct kx_ctx *lane, int i);

/* A network's memory, a stretch a lane. All zero: nothing is planned. */
struct kx_lanes {
    int count;
    struct kx_arena *arenas; /* owns, `count` of them */
    unsigned age;            /* kx_plan_age when it was planned */
};

/* Whether it is planned, for so many lanes, and the context has not dropped the plans since. */
bool kx_lanes_ready(const struct kx_lanes *l, const struct kx_ctx *ctx, int count);

/* Plans `forward` on each of `count` lanes, with new arenas. On failure nothing is planned. */
KN_MUST_USE int kx_lanes_plan(struct kx_lanes *l, struct kx_ctx *ctx, int count, kx_forward forward,
                              void *arg, struct kn_err *err);
/* Runs `forward` for i < n, and asks each lane how it went. */
KN_MUST_USE int kx_lanes_run(struct kx_lanes *l, struct kx_ctx *ctx, int n, kx_forward forward, void *arg,
                             struct kn_err *err);
void kx_lanes_fini(struct kx_lanes *l);

#endif
