#include "kernels/models/lanes.h"

#include <assert.h>
#include <stdlib.h>

bool kx_lanes_ready(const struct kx_lanes *l, const struct kx_ctx *ctx, int count) {
    return l->count == count && l->age == kx_plan_age(ctx);
}

void kx_lanes_fini(struct kx_lanes *l) {
    for (int i = 0; l->arenas && i < l->count; i++) kx_arena_fini(&l->arenas[i]);
    free(l->arenas);
    *l = (struct kx_lanes){0};
}

int kx_lanes_plan(struct kx_lanes *l, struct kx_ctx *ctx, int count, kx_forward forward, void *arg,
                  struct kn_err *err) {
    kx_lanes_fini(l); /* first: the old memory may be needed for the new */
    l->arenas = calloc((size_t)count, sizeof *l->arenas);
    if (!l->arenas) return kn_err_set(err, KN_ENOMEM, "out of memory");
    l->count = count;
    l->age = kx_plan_age(ctx);
    int rc = 0;
    for (int i = 0; i < count && !rc; i++) {
        struct kx_ctx *lane = kx_ctx_lane(ctx, count, i);
        struct kx_arena counted;
        kx_plan_begin(lane, &counted);
        forward(arg, lane, 0);
        rc = kx_plan_end(lane, err);
        if (!rc && kx_arena_init(&l->arenas[i], counted.peak))
            rc = kn_err_set(err, KN_EOOM, "out of memory for %zu MiB of activations",
                            counted.peak * sizeof(float) >> 20);
    }
    if (rc) kx_lanes_fini(l);
    return rc;
}

int kx_lanes_run(struct kx_lanes *l, struct kx_ctx *ctx, int n, kx_forward forward, void *arg,
                 struct kn_err *err) {
    assert(kx_lanes_ready(l, ctx, l->count));
    for (int i = 0; i < l->count; i++) kx_use(kx_ctx_lane(ctx, l->count, i), &l->arenas[i]);
    kx_ctx_each(ctx, l->count, n, forward, arg);
    int rc = 0;
    for (int i = 0; i < l->count; i++) { /* every lane is asked, so that none keeps an old failure */
        int e = kx_ctx_error(kx_ctx_lane(ctx, l->count, i), rc ? NULL : err);
        if (!rc) rc = e;
    }
    return rc;
}
