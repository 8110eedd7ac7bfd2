/* Norms, attention and the small ops on the CPU: who does which stretch. The stretches depend on the shape
 * alone, so that a sum has the same order on any number of threads. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/context.h"

enum { PIXELS = 32, ROWS = 16 };

static size_t blocks(size_t n, size_t each) {
    return (n + each - 1) / each;
}
static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* ---- GroupNorm: sums of each channel over 32 pixels, then of each group over all, then one scale and shift
 * a channel */

struct norm {
    struct kx_ctx *ctx;
    const float *x, *gamma, *beta;
    float *y;
    size_t pixels, c;
    int groups;
    float eps;
    bool silu;
    float *sum, *square;  /* blocks × c */
    float *scale, *shift; /* c */
};

static void norm_sums(void *arg, int i) {
    const struct norm *n = arg;
    size_t from = (size_t)i * PIXELS;
    n->ctx->vector->sums(n->x + from * n->c, least(PIXELS, n->pixels - from), n->c, n->sum + (size_t)i * n->c,
                         n->square + (size_t)i * n->c);
}

static void norm_apply(void *arg, int i) {
    const struct norm *n = arg;
    size_t from = (size_t)i * PIXELS;
    n->ctx->vector->scale_shift(n->x + from * n->c, n->y + from * n->c, least(PIXELS, n->pixels - from), n->c,
                                n->scale, n->shift, n->silu);
}

static void norm_groups(struct norm *n, size_t count) {
    size_t width = n->c / (size_t)n->groups;
    for (size_t g = 0; g < (size_t)n->groups; g++) {
        double sum = 0, square = 0;
        for (size_t b = 0; b < count; b++)
            for (size_t c = g * width; c < (g + 1) * width; c++) {
                sum += (double)n->sum[b * n->c + c];
                square += (double)n->square[b * n->c + c];
            }
        double values = (double)(width * n->pixels), mean = sum / values,
               variance = square / values - mean * mean;
        if (variance < 0) variance = 0;
        double inv = 1 / sqrt(variance + (double)n->eps);
        for (size_t c = g * width; c < (g + 1) * width; c++) {
            n->scale[c] = (float)(inv * (double)n->gamma[c]);
            n->shift[c] = (float)((double)n->beta[c] - mean * inv * (double)n->gamma[c]);
        }
    }
}

void kx_group_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                   int groups, float eps, bool silu, struct kx_tensor *y) {
    struct norm n = {.ctx = ctx,
                     .gamma = gamma,
                     .beta = beta,
                     .pixels = (size_t)x->h * (size_t)x->w,
                     .c = (size_t)x->c,
                     .groups = groups,
                     .eps = eps,
                     .silu = silu};
    assert(x->c % groups == 0 && y->c == x->c && kx_count(y) == kx_count(x));
    size_t count = blocks(n.pixels, PIXELS);
    if (ctx->planning) {
        kx_ctx_want(ctx, (2 * count + 2) * n.c * sizeof(float));
        return;
    }
    n.sum = ctx->workspace;
    n.square = n.sum + count * n.c;
    n.scale = n.square + count * n.c;
    n.shift = n.scale + n.c;
    for (int i = 0; i < x->n; i++) {
        n.x = x->v + (size_t)i * n.pixels * n.c;
        n.y = y->v + (size_t)i * n.pixels * n.c;
        kx_parallel(ctx, (int)count, norm_sums, &n);
        norm_groups(&n, count);
        kx_parallel(ctx, (int)count, norm_apply, &n);
    }
}

static void norm_rows(void *arg, int i) {
    const struct norm *n = arg;
    size_t from = (size_t)i * ROWS;
    n->ctx->vector->layer_norm(n->x + from * n->c, n->y + from * n->c, least(ROWS, n->pixels - from), n->c,
                               n->gamma, n->beta, n->eps);
}

void kx_layer_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                   float eps, struct kx_tensor *y) {
    assert(y->c == x->c && kx_count(y) == kx_count(x));
    if (ctx->planning) return;
    struct norm n = {.ctx = ctx,
                     .x = x->v,
                     .y = y->v,
                     .gamma = gamma,
                     .beta = beta,
                     .c = (size_t)x->c,
                     .eps = eps,
                     .pixels = (size_t)x->n * (size_t)x->h * (size_t)x->w};
    kx_parallel(ctx, (int)blocks(n.pixels, ROWS), norm_rows, &n);
}

/* ---- attention: keys are turned to dim × length once a head, then blocks of query rows go over them */

struct attending {
    struct kx_ctx *ctx;
    const struct kx_attention *a;
    size_t padded, rows_each, per_head, scratch;
    float *packed, *scratches;
};

static void attend_pack(void *arg, int head) {
    const struct attending *t = arg;
    const struct kx_attention *a = t->a;
    t->ctx->vector->pack_keys(a->k + (size_t)head * (size_t)a->dim, a->k_stride, a->length, a->dim,
                              t->packed + (size_t)head * (size_t)a->dim * t->padded, t->padded);
}

static void attend_block(void *arg, int i) {
    const struct attending *t = arg;
    const struct kx_attention *a = t->a;
    size_t head = (size_t)i / t->per_head, from = (size_t)i % t->per_head * t->rows_each,
           to = least(from + t->rows_each, (size_t)a->rows), at = head * (size_t)a->dim;
    for (size_t row = from; row < to; row += KX_ATTEND_ROWS)
        t->ctx->vector->attend(a->q + row * a->q_stride + at, a->q_stride,
                               (int)least(KX_ATTEND_ROWS, to - row), t->packed + at * t->padded, t->padded,
                               a->v + at, a->v_stride, a->length, a->causal ? (int)row + 1 : a->length,
                               a->causal, a->dim, a->scale, a->out + row * a->out_stride + at, a->out_stride,
                               t->scratches + (size_t)i * t->scratch);
}

void kx_attention(struct kx_ctx *ctx, const struct kx_attention *a) {
    struct attending t = {
        .ctx = ctx, .a = a, .rows_each = 64, .scratch = (kx_attend_scratch(a->dim) + 15) & ~(size_t)15};
    t.padded = ((size_t)a->length + 2 * KX_VECTOR_MAX - 1) / (2 * KX_VECTOR_MAX) * (2 * KX_VECTOR_MAX);
    t.per_head = blocks((size_t)a->rows, t.rows_each);
    size_t keys = (size_t)a->heads * (size_t)a->dim * t.padded, count = t.per_head * (size_t)a->heads;
    if (ctx->planning) {
        kx_ctx_want(ctx, (keys + count * t.scratch) * sizeof(float));
        return;
    }
    t.packed = ctx->workspace;
    t.scratches = t.packed + keys;
    kx_parallel(ctx, a->heads, attend_pack, &t);
    kx_parallel(ctx, (int)count, attend_block, &t);
}

/* ---- the small ones */

void kx_concat(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b,
               struct kx_tensor *y) {
    assert(a->n == b->n && a->h == b->h && a->w == b->w && y->c == a->c + b->c);
    if (ctx->planning) return;
    size_t pixels = (size_t)a->n * (size_t)a->h * (size_t)a->w, ac = (size_t)a->c, bc = (size_t)b->c;
    for (size_t i = 0; i < pixels; i++) {
        memcpy(y->v + i * (ac + bc), a->v + i * ac, ac * sizeof(float));
        memcpy(y->v + i * (ac + bc) + ac, b->v + i * bc, bc * sizeof(float));
    }
}

void kx_timestep(struct kx_ctx *ctx, float timestep, int dim, bool flip_sin_to_cos, float freq_shift,
                 float *out) {
    if (ctx->planning) return;
    int half = dim / 2;
    for (int i = 0; i < half; i++) {
        float exponent = -logf(10000.0f) * (float)i / ((float)half - freq_shift);
        float x = timestep * expf(exponent);
        out[flip_sin_to_cos ? i : half + i] = cosf(x);
        out[flip_sin_to_cos ? half + i : i] = sinf(x);
    }
}

void kx_silu(struct kx_ctx *ctx, const float *x, float *y, size_t n) {
    if (!ctx->planning) ctx->vector->silu(x, y, n);
}

void kx_to_rgb(struct kx_ctx *ctx, const struct kx_tensor *x, float *rgb) {
    if (ctx->planning) return;
    size_t n = kx_count(x);
    for (size_t i = 0; i < n; i++) {
        float v = x->v[i] * 0.5f + 0.5f;
        rgb[i] = v < 0 ? 0 : v > 1 ? 1 : v;
    }
}
