/* GroupNorm and LayerNorm on the CPU. Built once for each instruction set (simd.h): the order of a sum
 * depends on the vector's width, so the set's name is part of the backend class.
 *
 * GroupNorm: per-channel sums of each stretch of pixels, then each group's mean and variance, then a scale
 * and a shift a channel. The sums are of the distance to the group's mean at the first pixel, so that a
 * mean far from zero costs no digits. Sums are f32 over 32 pixels and f64 beyond. Stretches depend on the
 * shape alone, so that a sum has the same order on any number of threads.
 *
 * LayerNorm: row by row, the mean first, then the squares of the distances to it, in f32. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/context.h"
#include "kernels/cpu/simd.h"

/* ---- the inner loops */

enum { CHUNK = 32 };

KX_INLINE void widen(vf v, double *to, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] += (double)v[i];
}

/* Per-channel sums of x - pivot[c] and of its square over `pixels` rows of c values, added to what is there:
 * 32 pixels in f32, then f64. */
static void sums(const float *x, size_t pixels, size_t c, const float *pivot, double *sum, double *square) {
    for (size_t at = 0; at < pixels; at += CHUNK) {
        size_t count = pixels - at < CHUNK ? pixels - at : CHUNK;
        const float *rows = x + at * c;
        size_t i = 0;
        for (; i + W <= c; i += W) {
            vf s = {0}, q = {0}, base = load(pivot + i);
            for (size_t p = 0; p < count; p++) {
                vf d = load(rows + p * c + i) - base;
                s += d;
                q = muladd(d, d, q);
            }
            widen(s, sum + i, W);
            widen(q, square + i, W);
        }
        if (i < c) {
            vf s = {0}, q = {0}, base = load_part(pivot + i, c - i);
            for (size_t p = 0; p < count; p++) {
                vf d = load_part(rows + p * c + i, c - i) - base;
                s += d;
                q = muladd(d, d, q);
            }
            widen(s, sum + i, c - i);
            widen(q, square + i, c - i);
        }
    }
}

/* y = x · scale[c] + shift[c], then SiLU if asked for. */
static void scale_shift(const float *x, float *y, size_t pixels, size_t c, const float *scale,
                        const float *shift, bool silu) {
    for (size_t p = 0; p < pixels; p++, x += c, y += c) {
        size_t i = 0;
        for (; i + W <= c; i += W) {
            vf v = muladd(load(x + i), load(scale + i), load(shift + i));
            store(y + i, silu ? vsilu(v) : v);
        }
        if (i < c) {
            vf v = muladd(load_part(x + i, c - i), load_part(scale + i, c - i), load_part(shift + i, c - i));
            store_part(y + i, silu ? vsilu(v) : v, c - i);
        }
    }
}

static void layer_norm(const float *x, float *y, size_t rows, size_t c, const float *gamma, const float *beta,
                       float eps) {
    for (size_t r = 0; r < rows; r++, x += c, y += c) {
        vf s = {0}, q = {0};
        size_t i = 0;
        for (; i + W <= c; i += W) s += load(x + i);
        if (i < c) s += load_part(x + i, c - i);
        vf mean = splat(total(s) / (float)c);
        for (i = 0; i + W <= c; i += W) {
            vf d = load(x + i) - mean;
            q = muladd(d, d, q);
        }
        float square = total(q);
        for (; i < c; i++) {
            float d = x[i] - mean[0];
            square += d * d;
        }
        vf inv = splat(1.0f / sqrtf(square / (float)c + eps));
        for (i = 0; i + W <= c; i += W)
            store(y + i, muladd((load(x + i) - mean) * inv, load(gamma + i), load(beta + i)));
        if (i < c)
            store_part(y + i,
                       muladd((load_part(x + i, c - i) - mean) * inv, load_part(gamma + i, c - i),
                              load_part(beta + i, c - i)),
                       c - i);
    }
}

/* ---- GroupNorm */

enum { SUM_STRETCHES_MAX = 64, SUM_PIXELS = 128 };

struct norm {
    struct kx_cpu *ctx;
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
    sums(n->x + from * n->c, kx_least(n->each, n->pixels - from), n->c, n->pivot, sum, square);
}

static void norm_apply(void *arg, int i, const struct kx_seat *seat) {
    (void)seat;
    const struct norm *n = arg;
    size_t from = (size_t)i * n->each;
    scale_shift(n->x + from * n->c, n->y + from * n->c, kx_least(n->each, n->pixels - from), n->c, n->scale,
                n->shift, n->silu);
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

void KX_GLUE(kx_cpu_group_norm_, KX_ISA)(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma,
                                         const float *beta, int groups, float eps, bool silu,
                                         struct kx_tensor *y) {
    struct kx_cpu *cpu = kx_cpu_of(ctx);
    struct norm n = {.ctx = cpu,
                     .gamma = gamma,
                     .beta = beta,
                     .pixels = (size_t)x->h * (size_t)x->w,
                     .c = (size_t)x->c,
                     .groups = groups,
                     .eps = eps,
                     .silu = silu};
    assert(x->c % groups == 0 && y->c == x->c && kx_count(y) == kx_count(x));
    size_t each = kx_stretches(kx_stretches(n.pixels, SUM_STRETCHES_MAX), SUM_PIXELS) * SUM_PIXELS,
           stretches = kx_stretches(n.pixels, each);
    if (ctx->planning) {
        kx_want(cpu, stretches * n.c * 2 * sizeof(double) + 3 * n.c * sizeof(float), 0);
        return;
    }
    n.sum = cpu->workspace;
    n.square = n.sum + stretches * n.c;
    n.pivot = (float *)(n.square + stretches * n.c);
    n.scale = n.pivot + n.c;
    n.shift = n.scale + n.c;
    for (int i = 0; i < x->n; i++) {
        n.x = (const float *)x->v + (size_t)i * n.pixels * n.c;
        n.y = (float *)y->v + (size_t)i * n.pixels * n.c;
        n.each = each;
        norm_pivots(&n);
        kx_parallel(cpu, (int)stretches, norm_sums, &n);
        norm_groups(&n, stretches);
        n.each = kx_rows_each(n.c);
        kx_parallel(cpu, (int)kx_stretches(n.pixels, n.each), norm_apply, &n);
    }
}

/* ---- LayerNorm */

static void norm_rows(void *arg, int i, const struct kx_seat *seat) {
    (void)seat;
    const struct norm *n = arg;
    size_t from = (size_t)i * n->each;
    layer_norm(n->x + from * n->c, n->y + from * n->c, kx_least(n->each, n->pixels - from), n->c, n->gamma,
               n->beta, n->eps);
}

void KX_GLUE(kx_cpu_layer_norm_, KX_ISA)(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma,
                                         const float *beta, float eps, struct kx_tensor *y) {
    assert(y->c == x->c && kx_count(y) == kx_count(x));
    if (ctx->planning) return;
    struct norm n = {.ctx = kx_cpu_of(ctx),
                     .x = x->v,
                     .y = y->v,
                     .gamma = gamma,
                     .beta = beta,
                     .c = (size_t)x->c,
                     .eps = eps,
                     .each = kx_rows_each((size_t)x->c),
                     .pixels = (size_t)x->n * (size_t)x->h * (size_t)x->w};
    kx_parallel(n.ctx, (int)kx_stretches(n.pixels, n.each), norm_rows, &n);
}
