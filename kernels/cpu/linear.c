/* Linear layers on the CPU. Many rows: a 1×1 convolution (rows × 1 pixels), whose weights oneDNN packs once
 * where its matrix product would pack them each time. A single row: our own product, whose order of sums is
 * always the same. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/context.h"

struct kx_linear {
    int in, out;
    enum kx_act act;
    float *weight, *bias; /* plain, for single rows; weight is dropped when many rows are planned first */
    struct kx_conv *many; /* made at the first plan with more than a row */
};

int kx_linear_create(struct kx_ctx *ctx, int in, int out, enum kx_act act, const float *weight,
                     const float *bias, struct kx_linear **out_linear, struct kn_err *err) {
    (void)ctx;
    *out_linear = NULL;
    struct kx_linear *l = calloc(1, sizeof *l);
    if (!l) return kn_err_set(err, KN_ENOMEM, "out of memory");
    l->in = in;
    l->out = out;
    l->act = act;
    size_t bytes = (size_t)in * (size_t)out * sizeof(float);
    l->weight = kx_aligned(bytes);
    l->bias = kx_aligned((size_t)out * sizeof(float));
    if (!l->weight || !l->bias) {
        kx_linear_destroy(l);
        return kn_err_set(err, KN_ENOMEM, "out of memory");
    }
    memcpy(l->weight, weight, bytes);
    if (bias)
        memcpy(l->bias, bias, (size_t)out * sizeof(float));
    else
        memset(l->bias, 0, (size_t)out * sizeof(float));
    *out_linear = l;
    return 0;
}

void kx_linear_destroy(struct kx_linear *l) {
    if (!l) return;
    kx_conv_destroy(l->many);
    free(l->weight);
    free(l->bias);
    free(l);
}

struct rows {
    struct kx_ctx *ctx;
    const struct kx_linear *l;
    const float *x;
    float *y;
    size_t each, count;
};

static void product(void *arg, int i) {
    struct rows *r = arg;
    size_t from = (size_t)i * r->each, n = r->count - from < r->each ? r->count - from : r->each,
           in = (size_t)r->l->in;
    r->ctx->vector->product(r->x, r->l->weight + from * in, r->l->bias + from, r->y + from, in, n);
}

static void activate(void *arg, int i) {
    struct rows *r = arg;
    const struct kx_vector *v = r->ctx->vector;
    size_t from = (size_t)i * r->each, n = r->count - from < r->each ? r->count - from : r->each,
           out = (size_t)r->l->out;
    float *y = r->y + from * (r->l->act == KX_ACT_GEGLU ? out / 2 : out);
    switch (r->l->act) {
    case KX_ACT_NONE:
        break;
    case KX_ACT_SILU:
        v->silu(y, y, n * out);
        break;
    case KX_ACT_GELU:
        v->gelu(y, n * out);
        break;
    case KX_ACT_QUICK_GELU:
        v->quick_gelu(y, n * out);
        break;
    case KX_ACT_GEGLU:
        v->geglu(r->x + from * out, y, n, out / 2);
        break;
    }
}

static size_t glu_bytes(const struct kx_linear *l, size_t rows) {
    return l->act == KX_ACT_GEGLU ? (rows * (size_t)l->out * sizeof(float) + 63) & ~(size_t)63 : 0;
}

static void plan(struct kx_ctx *ctx, struct kx_linear *l, struct kx_tensor x,
                 const struct kx_tensor *residual, size_t rows) {
    if (rows > 1 && !l->many) {
        struct kn_err err = {0};
        struct kx_conv_shape s = {.in = l->in, .out = l->out, .kernel = 1, .stride = 1};
        int rc = kx_conv_create(ctx, &s, l->weight, l->bias, &l->many, &err);
        if (rc) {
            kx_ctx_fail(ctx, rc, err.text);
            return;
        }
        free(l->weight);
        l->weight = NULL;
    }
    if (rows == 1 && !l->weight) {
        kx_ctx_fail(ctx, KN_EINTERNAL, "a linear layer is planned for one row after many");
        return;
    }
    struct kx_tensor y = {NULL, 1, (int)rows, 1, l->out};
    if (rows > 1) kx_conv(ctx, l->many, &x, NULL, residual ? &y : NULL, &y);
    /* the convolution's own workspace lies behind the product that GEGLU halves */
    if (glu_bytes(l, rows)) kx_ctx_want(ctx, ctx->wanted + glu_bytes(l, rows));
}

void kx_linear(struct kx_ctx *ctx, struct kx_linear *l, const struct kx_tensor *x,
               const struct kx_tensor *residual, struct kx_tensor *y) {
    size_t rows = (size_t)x->h * (size_t)x->w;
    bool glu = l->act == KX_ACT_GEGLU;
    assert(x->n == 1 && x->c == l->in && y->c == (glu ? l->out / 2 : l->out) &&
           kx_count(y) == rows * (size_t)y->c);
    assert(!(glu && residual));
    struct kx_tensor flat = {x->v, 1, (int)rows, 1, l->in};
    if (ctx->planning) {
        plan(ctx, l, flat, residual, rows);
        return;
    }
    /* GEGLU's product goes to the head of the workspace, and the convolution gets what is behind */
    struct kx_tensor to = {glu ? ctx->workspace : y->v, 1, (int)rows, 1, l->out};
    if (rows == 1) {
        assert(!residual);
        struct rows r = {ctx, l, x->v, to.v, 64, (size_t)l->out};
        kx_parallel(ctx, (l->out + 63) / 64, product, &r);
    } else {
        char *workspace = ctx->workspace;
        ctx->workspace = workspace + glu_bytes(l, rows);
        if (residual && residual->v != to.v) memcpy(to.v, residual->v, kx_count(&to) * sizeof(float));
        kx_conv(ctx, l->many, &flat, NULL, residual ? &to : NULL, &to);
        ctx->workspace = workspace;
    }
    if (l->act == KX_ACT_NONE) return;
    struct rows r = {ctx, l, to.v, y->v, 16, rows};
    kx_parallel(ctx, (int)((rows + 15) / 16), activate, &r);
}
