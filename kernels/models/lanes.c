#include "kernels/models/lanes.h"

#include <assert.h>
#include <stdlib.h>

bool kx_lanes_ready(const struct kx_lanes *l, const struct kx_ctx *ctx, int count, int n) {
    return l->count == count && l->minibatch == kx_ctx_minibatch(ctx, n) &&
           l->plan_generation == kx_plan_generation(ctx);
}

void kx_lanes_fini(struct kx_lanes *l, struct kx_ctx *ctx) {
    for (int i = 0; l->arenas && i < l->count; i++) kx_arena_fini(ctx, &l->arenas[i]);
    free(l->arenas);
    *l = (struct kx_lanes){.generation = l->generation + 1};
}

/* Plans on one lane; its arena is as large as it must be. */
static int plan_one(struct kx_ctx *ctx, struct kx_ctx *lane, int minibatch, struct kx_arena *arena,
                    unsigned *generation, kx_images forward, void *arg, struct kn_err *err) {
    struct kx_arena counted;
    kx_plan_begin(lane, &counted);
    forward(arg, lane, 0, minibatch);
    int rc = kx_plan_end(lane, err);
    if (rc || (arena->base && counted.peak <= arena->size)) return rc;
    kx_arena_fini(ctx, arena); /* first: the old memory may be needed for the new */
    ++*generation;
    if (kx_arena_init(ctx, arena, counted.peak))
        rc = kn_err_set(err, KN_EOOM, "out of memory for %zu MiB of activations", counted.peak >> 20);
    return rc;
}

int kx_lanes_plan(struct kx_lanes *l, struct kx_ctx *ctx, int count, int n, kx_images forward, void *arg,
                  struct kn_err *err) {
    if (l->count != count) {
        kx_lanes_fini(l, ctx);
        l->arenas = calloc((size_t)count, sizeof *l->arenas);
        if (!l->arenas) return kn_err_set(err, KN_ENOMEM, "out of memory");
        l->count = count;
    }
    l->minibatch = kx_ctx_minibatch(ctx, n);
    int rc = 0;
    for (int i = 0; i < count && !rc; i++)
        rc = plan_one(ctx, kx_ctx_lane(ctx, count, i), l->minibatch, &l->arenas[i], &l->generation, forward,
                      arg, err);
    l->plan_generation = kx_plan_generation(ctx);
    if (rc) kx_lanes_fini(l, ctx);
    return rc;
}

int kx_lanes_count(struct kx_ctx *ctx, int n, kx_images forward, void *arg, size_t *bytes,
                   struct kn_err *err) {
    struct kx_arena counted;
    kx_count_begin(ctx, &counted);
    forward(arg, ctx, 0, kx_ctx_minibatch(ctx, n));
    size_t workspace;
    int rc = kx_count_end(ctx, &workspace, err);
    *bytes = counted.peak + workspace;
    return rc;
}

int kx_lanes_run(struct kx_lanes *l, struct kx_ctx *ctx, int n, kx_images forward, void *arg,
                 struct kn_err *err) {
    assert(kx_lanes_ready(l, ctx, l->count, n));
    for (int i = 0; i < l->count; i++) kx_use(kx_ctx_lane(ctx, l->count, i), &l->arenas[i]);
    kx_ctx_each(ctx, l->count, n, forward, arg);
    int rc = 0;
    for (int i = 0; i < l->count; i++) { /* every lane is asked, so that none keeps an old failure */
        int e = kx_ctx_error(kx_ctx_lane(ctx, l->count, i), rc ? NULL : err);
        if (!rc) rc = e;
    }
    return rc;
}
