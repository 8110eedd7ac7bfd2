/* The ops without weights: each checks its shapes, says while planning what it wants of the workspace, and
 * hands over to its launcher. See kernels/ops.h, kernels/cuda/launch.h. */
#include <assert.h>

#include "kernels/cuda/context.h"
#include "kernels/cuda/op_attention.h"
#include "kernels/cuda/table.h"

/* True if the op is to be launched: not while planning, not on a dead device. */
static bool runs(struct kx_gpu *g) {
    return !g->base.planning && kx_gpu_enter(g);
}

static int64_t pixels(const struct kx_tensor *t) {
    return (int64_t)t->n * t->h * t->w;
}

void kx_gpu_group_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                       int groups, float eps, bool silu, struct kx_tensor *y) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    assert(x->c % groups == 0 && y->c == x->c && kx_count(y) == kx_count(x));
    size_t bytes = kx_cuda_group_norm_workspace(x->n, x->h * x->w, x->c, groups);
    if (g->base.planning) kx_gpu_want(g, bytes);
    if (!runs(g)) return;
    assert(bytes <= g->workspace_bytes); /* planned with this shape */
    kx_gpu_ok(g,
              kx_cuda_group_norm(g->stream, g->type, x->v, gamma, beta, y->v, x->n, x->h * x->w, x->c, groups,
                                 eps, silu, g->workspace),
              "group norm");
}

void kx_gpu_layer_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                       float eps, struct kx_tensor *y) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    assert(y->c == x->c && kx_count(y) == kx_count(x));
    if (runs(g))
        kx_gpu_ok(g, kx_cuda_layer_norm(g->stream, g->type, x->v, gamma, beta, y->v, pixels(x), x->c, eps),
                  "layer norm");
}

/* The kernel for Hopper where the table says so and it can. */
static cudaError_t attend(struct kx_gpu *g, const struct kx_attention *a) {
    cudaError_t e = KX_CUDA_NO;
#ifdef KX_CUDA_SM90
    if (kx_gpu_has_sm90(g->device) &&
        kx_variant_attention(g->device->variants, a->dim, a->rows, a->length) == KX_VARIANT_SM90)
        e = kx_cuda_attention_sm90(g->stream, g->type, a);
#endif
    return e == KX_CUDA_NO ? kx_cuda_attention(g->stream, g->type, a) : e;
}

void kx_gpu_attention(struct kx_ctx *ctx, const struct kx_attention *a) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    assert(a->n > 0 && a->rows > 0 && a->length > 0 && a->heads > 0 && a->dim > 0);
    if (runs(g)) kx_gpu_ok(g, attend(g, a), "attention");
}

void kx_gpu_concat(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b,
                   struct kx_tensor *y) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    assert(a->n == b->n && a->h == b->h && a->w == b->w && y->c == a->c + b->c);
    assert(kx_count(y) == kx_count(a) + kx_count(b));
    if (runs(g))
        kx_gpu_ok(g, kx_cuda_concat(g->stream, g->type, a->v, a->c, b->v, b->c, y->v, pixels(a)), "concat");
}

void kx_gpu_timestep(struct kx_ctx *ctx, const float *timesteps, int n, bool flip_sin_to_cos,
                     float freq_shift, struct kx_tensor *y) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    assert(y->c % 2 == 0 && pixels(y) == n);
    if (runs(g))
        kx_gpu_ok(g,
                  kx_cuda_timestep(g->stream, g->type, timesteps, n, y->c, flip_sin_to_cos, freq_shift, y->v),
                  "timestep embedding");
}

void kx_gpu_add_silu(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b,
                     struct kx_tensor *y) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    int64_t na = pixels(a), nb = b ? pixels(b) : 1;
    assert(a->c == y->c && (!b || b->c == y->c) && pixels(y) == na * nb);
    if (runs(g))
        kx_gpu_ok(g,
                  kx_cuda_add_silu(g->stream, g->type, a->v, (int)na, b ? b->v : NULL, (int)nb, y->c, y->v),
                  "silu");
}

void kx_gpu_gather(struct kx_ctx *ctx, const struct kx_tensor *x, const int32_t *at, struct kx_tensor *y) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    assert(y->n == x->n && y->h == 1 && y->w == 1 && y->c == x->c);
    if (runs(g))
        kx_gpu_ok(g, kx_cuda_gather(g->stream, g->type, x->v, at, x->n, x->h * x->w, x->c, y->v), "gather");
}

void kx_gpu_from_f32(struct kx_ctx *ctx, const float *x, struct kx_tensor *y) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    if (runs(g)) kx_gpu_ok(g, kx_cuda_from_f32(g->stream, g->type, x, y->v, kx_count(y)), "conversion");
}

void kx_gpu_to_rgb(struct kx_ctx *ctx, const struct kx_tensor *x, float *rgb, uint8_t *bytes,
                   int32_t *finite) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    assert(x->c == 3);
    if (runs(g))
        kx_gpu_ok(g, kx_cuda_to_rgb(g->stream, g->type, x->v, x->n, x->h * x->w, rgb, bytes, finite),
                  "picture");
}

void kx_gpu_sample_begin(struct kx_ctx *ctx, const struct kx_sampling *s) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    assert(s->n > 0 && s->rows >= s->n && s->steps > 0);
    if (runs(g)) kx_gpu_ok(g, kx_cuda_sample_begin(g->stream, g->type, s), "first noise");
}

void kx_gpu_sample(struct kx_ctx *ctx, const struct kx_sampling *s) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    assert(s->n > 0 && s->rows >= s->n && s->steps > 0);
    if (runs(g)) kx_gpu_ok(g, kx_cuda_sample(g->stream, g->type, s), "sampler's step");
}
