/* The two kinds of layer that kernels/ops.h has. */
#include <assert.h>

#include "kernels/cpu/layer.h"

/* Each is a layer; the types keep them apart. */
static struct kx_layer *of_conv(struct kx_conv *c) {
    return (struct kx_layer *)c;
}
static struct kx_layer *of_linear(struct kx_linear *l) {
    return (struct kx_layer *)l;
}

/* The one image's shift; NULL: none. */
static const float *shift_of(const struct kx_rows *r) {
    if (!r || !r->v) return NULL;
    return (const float *)r->v + (r->index ? (size_t)r->index[0] * r->stride : 0);
}

int kx_cpu_conv_create(struct kx_ctx *ctx, const struct kx_conv_shape *s, const float *weight,
                       const float *bias, struct kx_conv **out, struct kn_err *err) {
    struct kx_layer *l;
    int rc = kx_layer_create(
        kx_cpu_of(ctx),
        &(struct kx_layer_shape){s->in, s->out, s->kernel, s->stride, s->upsample, KX_ACT_NONE}, weight, bias,
        &l, err);
    *out = (struct kx_conv *)l;
    return rc;
}

int kx_cpu_conv_set(struct kx_ctx *ctx, struct kx_conv *c, const float *weight, struct kn_err *err) {
    (void)ctx;
    return kx_layer_set(of_conv(c), weight, err);
}

void kx_cpu_conv_destroy(struct kx_conv *c) {
    kx_layer_destroy(of_conv(c));
}

void kx_cpu_conv(struct kx_ctx *ctx, struct kx_conv *c, const struct kx_tensor *x,
                 const struct kx_rows *shift, const struct kx_tensor *residual, struct kx_tensor *y) {
    const struct kx_layer_shape *s = kx_layer_shape(of_conv(c));
    int h = s->upsample ? 2 * x->h : x->h, w = s->upsample ? 2 * x->w : x->w, pad = s->kernel / 2;
    assert(x->n == 1 && y->n == 1 && x->c == s->in && y->c == s->out);
    assert(y->h == (h + 2 * pad - s->kernel) / s->stride + 1 &&
           y->w == (w + 2 * pad - s->kernel) / s->stride + 1);
    assert(!residual || kx_count(residual) == kx_count(y));
    kx_layer_run(kx_cpu_of(ctx), of_conv(c), x->v, x->h, x->w, ctx->planning ? NULL : shift_of(shift),
                 residual ? residual->v : NULL, y->v);
}

int kx_cpu_linear_create(struct kx_ctx *ctx, int in, int out, enum kx_act act, const float *weight,
                         const float *bias, struct kx_linear **out_linear, struct kn_err *err) {
    struct kx_layer *l;
    int rc = kx_layer_create(kx_cpu_of(ctx), &(struct kx_layer_shape){in, out, 1, 1, false, act}, weight,
                             bias, &l, err);
    *out_linear = (struct kx_linear *)l;
    return rc;
}

int kx_cpu_linear_set(struct kx_ctx *ctx, struct kx_linear *l, const float *weight, struct kn_err *err) {
    (void)ctx;
    return kx_layer_set(of_linear(l), weight, err);
}

void kx_cpu_linear_destroy(struct kx_linear *l) {
    kx_layer_destroy(of_linear(l));
}

void kx_cpu_linear(struct kx_ctx *ctx, struct kx_linear *l, const struct kx_tensor *x,
                   const struct kx_tensor *residual, struct kx_tensor *y) {
    const struct kx_layer_shape *s = kx_layer_shape(of_linear(l));
    int rows = x->h * x->w;
    assert(x->n == 1 && x->c == s->in && y->c == (s->act == KX_ACT_GEGLU ? s->out / 2 : s->out) &&
           kx_count(y) == (size_t)rows * (size_t)y->c);
    assert(!residual || kx_count(residual) == kx_count(y));
    kx_layer_run(kx_cpu_of(ctx), of_linear(l), x->v, rows, 1, NULL, residual ? residual->v : NULL, y->v);
}
