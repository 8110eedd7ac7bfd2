/* Convolution on the CPU: oneDNN in NHWC, one product a shape of input, made while planning. The time
 * embedding goes into the bias, the residual is what y holds before. Upsampling writes the doubled picture to
 * the workspace first. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/context.h"

/* One input shape, for one thread (a lane) or for all. */
struct variant {
    int h, w, threads;
    bool sum;
    struct kx_product *product;
    int packed; /* index of its weights */
    struct variant *next;
};

#define LAYOUTS_MAX 4

struct kx_conv {
    struct kx_conv_shape shape;
    float *plain; /* PyTorch's order, until they are packed for the first time */
    float *bias;  /* out values, zeros if there is none */
    struct kx_weights_packed {
        float *v;
        const struct kx_product *product; /* whose layout it is */
    } packed[LAYOUTS_MAX];
    int packed_count;
    struct variant *variants;
};

int kx_conv_create(struct kx_ctx *ctx, const struct kx_conv_shape *s, const float *weight, const float *bias,
                   struct kx_conv **out, struct kn_err *err) {
    (void)ctx;
    *out = NULL;
    struct kx_conv *c = calloc(1, sizeof *c);
    if (!c) return kn_err_set(err, KN_ENOMEM, "out of memory");
    c->shape = *s;
    size_t n = (size_t)s->out * (size_t)s->in * (size_t)(s->kernel * s->kernel) * sizeof(float);
    c->plain = kx_aligned(n);
    c->bias = kx_aligned((size_t)s->out * sizeof(float));
    if (!c->plain || !c->bias) {
        kx_conv_destroy(c);
        return kn_err_set(err, KN_ENOMEM, "out of memory");
    }
    memcpy(c->plain, weight, n);
    if (bias)
        memcpy(c->bias, bias, (size_t)s->out * sizeof(float));
    else
        memset(c->bias, 0, (size_t)s->out * sizeof(float));
    *out = c;
    return 0;
}

void kx_conv_destroy(struct kx_conv *c) {
    if (!c) return;
    while (c->variants) {
        struct variant *v = c->variants;
        c->variants = v->next;
        kx_product_destroy(v->product);
        free(v);
    }
    for (int i = 0; i < c->packed_count; i++) free(c->packed[i].v);
    free(c->plain);
    free(c->bias);
    free(c);
}

static struct variant *find(const struct kx_conv *c, int h, int w, int threads, bool sum) {
    for (struct variant *v = c->variants; v; v = v->next)
        if (v->h == h && v->w == w && v->threads == threads && v->sum == sum) return v;
    return NULL;
}

/* The weights in the layout that the product wants: ones that are there, or re-laid. */
static int pack(struct kx_conv *c, struct variant *v, struct kn_err *err) {
    for (v->packed = 0; v->packed < c->packed_count; v->packed++)
        if (kx_product_same_weights(v->product, c->packed[v->packed].product)) return 0;
    if (c->packed_count == LAYOUTS_MAX)
        return kn_err_set(err, KN_ELIMIT, "more than %d layouts of weights", LAYOUTS_MAX);
    float *w = kx_aligned(kx_product_weight_bytes(v->product));
    if (!w) return kn_err_set(err, KN_EOOM, "out of memory");
    int rc = c->plain ? kx_product_pack(v->product, NULL, c->plain, w, err)
                      : kx_product_pack(v->product, c->packed[0].product, c->packed[0].v, w, err);
    if (rc) {
        free(w);
        return rc;
    }
    c->packed[c->packed_count++] = (struct kx_weights_packed){w, v->product};
    free(c->plain);
    c->plain = NULL;
    return 0;
}

static void plan(struct kx_ctx *ctx, struct kx_conv *c, int h, int w, bool sum) {
    const struct kx_conv_shape *s = &c->shape;
    struct variant *v = find(c, h, w, ctx->threads, sum);
    if (!v) {
        struct kn_err err = {0};
        if (!(v = calloc(1, sizeof *v))) {
            kx_ctx_fail(ctx, KN_ENOMEM, "out of memory");
            return;
        }
        *v = (struct variant){.h = h, .w = w, .threads = ctx->threads, .sum = sum};
        struct kx_product_shape shape = {.in = s->in,
                                         .out = s->out,
                                         .h = h,
                                         .w = w,
                                         .kernel = s->kernel,
                                         .stride = s->stride,
                                         .bias = true,
                                         .sum = sum};
        int rc = kx_product_create(ctx->dnn, &shape, ctx->threads, &v->product, &err);
        if (!rc) rc = pack(c, v, &err);
        if (rc) {
            kx_product_destroy(v->product);
            free(v);
            kx_ctx_fail(ctx, rc, err.text);
            return;
        }
        v->next = c->variants;
        c->variants = v;
    }
    size_t bytes = kx_product_workspace(v->product) + (((size_t)s->out * sizeof(float) + 63) & ~(size_t)63);
    if (s->upsample) bytes += (size_t)h * (size_t)w * (size_t)s->in * sizeof(float);
    kx_ctx_want(ctx, bytes);
}

struct doubling {
    const struct kx_tensor *x;
    float *y;
};

static void double_row(void *arg, int row) {
    const struct doubling *d = arg;
    size_t c = (size_t)d->x->c, w = (size_t)d->x->w;
    const float *x = d->x->v + (size_t)(row / 2) * w * c;
    float *y = d->y + (size_t)row * 2 * w * c;
    for (size_t i = 0; i < w; i++, x += c, y += 2 * c) {
        memcpy(y, x, c * sizeof *x);
        memcpy(y + c, x, c * sizeof *x);
    }
}

void kx_conv(struct kx_ctx *ctx, struct kx_conv *c, const struct kx_tensor *x, const float *shift,
             const struct kx_tensor *residual, struct kx_tensor *y) {
    const struct kx_conv_shape *s = &c->shape;
    int h = s->upsample ? 2 * x->h : x->h, w = s->upsample ? 2 * x->w : x->w, pad = s->kernel / 2;
    assert(x->n == 1 && y->n == 1 && x->c == s->in && y->c == s->out);
    assert(y->h == (h + 2 * pad - s->kernel) / s->stride + 1 &&
           y->w == (w + 2 * pad - s->kernel) / s->stride + 1);
    if (ctx->planning) {
        plan(ctx, c, h, w, residual);
        return;
    }
    const struct variant *v = find(c, h, w, ctx->threads, residual);
    assert(v);
    char *space = ctx->workspace;
    const float *input = x->v, *bias = c->bias;
    if (shift) {
        float *sum = (float *)space;
        for (int i = 0; i < s->out; i++) sum[i] = c->bias[i] + shift[i];
        bias = sum;
    }
    space += ((size_t)s->out * sizeof(float) + 63) & ~(size_t)63;
    if (s->upsample) {
        struct doubling d = {x, (float *)space};
        kx_parallel(ctx, h, double_row, &d);
        input = d.y;
        space += (size_t)h * (size_t)w * (size_t)s->in * sizeof(float);
        space = (char *)(((uintptr_t)space + 63) & ~(uintptr_t)63);
    }
    if (residual && residual->v != y->v) memcpy(y->v, residual->v, kx_count(y) * sizeof(float));
    if (kx_product_run(v->product, ctx->lane, input, c->packed[v->packed].v, bias, y->v, space))
        kx_ctx_fail(ctx, KN_EINTERNAL, "oneDNN: a convolution failed");
}
