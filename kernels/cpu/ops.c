/* Norms, attention and the small ops on the CPU: who does which stretch. The stretches depend on the shape
 * alone, so that a sum has the same order on any number of threads. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/context.h"

static size_t blocks(size_t n, size_t each) {
    return (n + each - 1) / each;
}
static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Rows of c floats a stretch: about 32 KiB, in whole multiples of 16 rows. */
static size_t rows_each(size_t c) {
    size_t n = 8192 / (c ? c : 1) / 16 * 16;
    return n < 16 ? 16 : n;
}

/* ---- GroupNorm: per-channel sums of each stretch, then each group's mean and variance, then a scale and a
 * shift a channel. What is summed is the distance to the group's mean at the first pixel, so that a mean far
 * from zero costs no digits. */

enum { SUM_STRETCHES_MAX = 64, SUM_PIXELS = 128 };

struct norm {
    struct kx_ctx *ctx;
    const float *x, *gamma, *beta;
    float *y;
    size_t pixels, c, each; /* each: rows a stretch */
    int groups;
    float eps;
    bool silu;
    double *sum, *square;         /* stretches × c */
    float *pivot, *scale, *shift; /* c */
};

static void norm_sums(void *arg, int i, const struct kx_seat *seat) {
    (void)seat;
    const struct norm *n = arg;
    size_t from = (size_t)i * n->each;
    double *sum = n->sum + (size_t)i * n->c, *square = n->square + (size_t)i * n->c;
    memset(sum, 0, n->c * sizeof *sum);
    memset(square, 0, n->c * sizeof *square);
    n->ctx->vector->sums(n->x + from * n->c, least(n->each, n->pixels - from), n->c, n->pivot, sum, square);
}

static void norm_apply(void *arg, int i, const struct kx_seat *seat) {
    (void)seat;
    const struct norm *n = arg;
    size_t from = (size_t)i * n->each;
    n->ctx->vector->scale_shift(n->x + from * n->c, n->y + from * n->c, least(n->each, n->pixels - from),
                                n->c, n->scale, n->shift, n->silu);
}

static void norm_pivots(struct norm *n) {
    size_t width = n->c / (size_t)n->groups;
    for (size_t g = 0; g < (size_t)n->groups; g++) {
        float sum = 0;
        for (size_t c = g * width; c < (g + 1) * width; c++) sum += n->x[c];
        for (size_t c = g * width; c < (g + 1) * width; c++) n->pivot[c] = sum / (float)width;
    }
}

static void norm_groups(struct norm *n, size_t stretches) {
    size_t width = n->c / (size_t)n->groups;
    for (size_t s = 1; s < stretches; s++)
        for (size_t c = 0; c < n->c; c++) {
            n->sum[c] += n->sum[s * n->c + c];
            n->square[c] += n->square[s * n->c + c];
        }
    for (size_t g = 0; g < (size_t)n->groups; g++) {
        double sum = 0, square = 0, values = (double)(width * n->pixels);
        for (size_t c = g * width; c < (g + 1) * width; c++) {
            sum += n->sum[c];
            square += n->square[c];
        }
        double mean = sum / values, variance = square / values - mean * mean;
        double inv = 1 / sqrt((variance < 0 ? 0 : variance) + (double)n->eps);
        mean += (double)n->pivot[g * width];
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
    size_t each = blocks(blocks(n.pixels, SUM_STRETCHES_MAX), SUM_PIXELS) * SUM_PIXELS,
           stretches = blocks(n.pixels, each);
    if (ctx->planning) {
        kx_want(ctx, stretches * n.c * 2 * sizeof(double) + 3 * n.c * sizeof(float), 0);
        return;
    }
    n.sum = ctx->workspace;
    n.square = n.sum + stretches * n.c;
    n.pivot = (float *)(n.square + stretches * n.c);
    n.scale = n.pivot + n.c;
    n.shift = n.scale + n.c;
    for (int i = 0; i < x->n; i++) {
        n.x = x->v + (size_t)i * n.pixels * n.c;
        n.y = y->v + (size_t)i * n.pixels * n.c;
        n.each = each;
        norm_pivots(&n);
        kx_parallel(ctx, (int)stretches, norm_sums, &n);
        norm_groups(&n, stretches);
        n.each = rows_each(n.c);
        kx_parallel(ctx, (int)blocks(n.pixels, n.each), norm_apply, &n);
    }
}

static void norm_rows(void *arg, int i, const struct kx_seat *seat) {
    (void)seat;
    const struct norm *n = arg;
    size_t from = (size_t)i * n->each;
    n->ctx->vector->layer_norm(n->x + from * n->c, n->y + from * n->c, least(n->each, n->pixels - from), n->c,
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
                     .each = rows_each((size_t)x->c),
                     .pixels = (size_t)x->n * (size_t)x->h * (size_t)x->w};
    kx_parallel(ctx, (int)blocks(n.pixels, n.each), norm_rows, &n);
}

/* ---- attention: each head's keys and values are packed once, then blocks of query rows go over them */

struct attending {
    struct kx_ctx *ctx;
    const struct kx_attention *a;
    size_t key_blocks, row_blocks, width; /* a head */
    float *keys, *values;                 /* heads × … */
};

/* A head's next KX_ATTEND_KEYS keys and values. */
static void attend_pack(void *arg, int i, const struct kx_seat *seat) {
    (void)seat;
    const struct attending *t = arg;
    const struct kx_attention *a = t->a;
    size_t head = (size_t)i / t->key_blocks, from = (size_t)i % t->key_blocks * KX_ATTEND_KEYS,
           dim = (size_t)a->dim, length = (size_t)a->length;
    int n = (int)least(KX_ATTEND_KEYS, length - from);
    t->ctx->vector->pack_keys(a->k + from * a->k_stride + head * dim, a->k_stride, n, a->dim,
                              t->keys + (head * t->key_blocks * KX_ATTEND_KEYS + from) * dim);
    t->ctx->vector->pack_values(a->v + from * a->v_stride + head * dim, a->v_stride, n, a->dim,
                                t->values + (head * length + from) * t->width);
}

static void attend_rows(void *arg, int i, const struct kx_seat *seat) {
    const struct attending *t = arg;
    const struct kx_attention *a = t->a;
    size_t head = (size_t)i / t->row_blocks, from = (size_t)i % t->row_blocks * KX_ATTEND_ROWS,
           dim = (size_t)a->dim;
    struct kx_head h = {.q = a->q + from * a->q_stride + head * dim,
                        .q_stride = a->q_stride,
                        .rows = (int)least(KX_ATTEND_ROWS, (size_t)a->rows - from),
                        .length = a->length,
                        .dim = a->dim,
                        .keys = t->keys + head * t->key_blocks * KX_ATTEND_KEYS * dim,
                        .values = t->values + head * (size_t)a->length * t->width,
                        .seen = a->causal ? (int)from + 1 : a->length,
                        .step = a->causal,
                        .scale = a->scale,
                        .out = a->out + from * a->out_stride + head * dim,
                        .out_stride = a->out_stride,
                        .scratch = seat->scratch};
    t->ctx->vector->attend(&h);
}

void kx_attention(struct kx_ctx *ctx, const struct kx_attention *a) {
    assert(a->rows > 0 && a->length > 0 && a->heads > 0 && a->dim > 0);
    struct attending t = {.ctx = ctx,
                          .a = a,
                          .key_blocks = blocks((size_t)a->length, KX_ATTEND_KEYS),
                          .row_blocks = blocks((size_t)a->rows, KX_ATTEND_ROWS),
                          .width = kx_attend_width(a->dim)};
    size_t heads = (size_t)a->heads, values = heads * (size_t)a->length * t.width,
           keys = heads * t.key_blocks * KX_ATTEND_KEYS * (size_t)a->dim;
    if (ctx->planning) {
        kx_want(ctx, (values + keys) * sizeof(float), kx_attend_scratch(a->dim) * sizeof(float));
        return;
    }
    t.values = ctx->workspace;
    t.keys = t.values + values;
    kx_parallel(ctx, (int)(heads * t.key_blocks), attend_pack, &t);
    kx_parallel(ctx, (int)(heads * t.row_blocks), attend_rows, &t);
}

/* ---- the small ones */

struct joining {
    const struct kx_tensor *a, *b;
    struct kx_tensor *y;
    size_t pixels, each;
};

static void join_rows(void *arg, int i, const struct kx_seat *seat) {
    (void)seat;
    const struct joining *j = arg;
    size_t a = (size_t)j->a->c, b = (size_t)j->b->c, from = (size_t)i * j->each,
           to = least(from + j->each, j->pixels);
    for (size_t p = from; p < to; p++) {
        memcpy(j->y->v + p * (a + b), j->a->v + p * a, a * sizeof(float));
        memcpy(j->y->v + p * (a + b) + a, j->b->v + p * b, b * sizeof(float));
    }
}

void kx_concat(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b,
               struct kx_tensor *y) {
    assert(a->n == b->n && a->h == b->h && a->w == b->w && y->c == a->c + b->c);
    assert(kx_count(y) == kx_count(a) + kx_count(b));
    if (ctx->planning) return;
    struct joining j = {a, b, y, (size_t)a->n * (size_t)a->h * (size_t)a->w, rows_each((size_t)y->c)};
    kx_parallel(ctx, (int)blocks(j.pixels, j.each), join_rows, &j);
}

void kx_timestep(struct kx_ctx *ctx, float timestep, int dim, bool flip_sin_to_cos, float freq_shift,
                 float *out) {
    assert(dim % 2 == 0);
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
