/* The small ops on the CPU: concatenation, embeddings, gather, conversions. Their work is little beside the
 * others', so that concatenation alone is spread over threads. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/context.h"

struct joining {
    const float *a, *b;
    float *y;
    size_t ca, cb, pixels, each;
};

static void join_rows(void *arg, int i, const struct kx_seat *seat) {
    (void)seat;
    const struct joining *j = arg;
    size_t a = j->ca, b = j->cb, from = (size_t)i * j->each, to = kx_least(from + j->each, j->pixels);
    for (size_t p = from; p < to; p++) {
        memcpy(j->y + p * (a + b), j->a + p * a, a * sizeof(float));
        memcpy(j->y + p * (a + b) + a, j->b + p * b, b * sizeof(float));
    }
}

void kx_cpu_concat(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b,
                   struct kx_tensor *y) {
    assert(a->n == b->n && a->h == b->h && a->w == b->w && y->c == a->c + b->c);
    assert(kx_count(y) == kx_count(a) + kx_count(b));
    if (ctx->planning) return;
    struct joining j = {a->v,
                        b->v,
                        y->v,
                        (size_t)a->c,
                        (size_t)b->c,
                        (size_t)a->n * (size_t)a->h * (size_t)a->w,
                        kx_rows_each((size_t)y->c)};
    kx_parallel(kx_cpu_of(ctx), (int)kx_stretches(j.pixels, j.each), join_rows, &j);
}

void kx_cpu_timestep(struct kx_ctx *ctx, const float *timesteps, int n, bool flip_sin_to_cos,
                     float freq_shift, struct kx_tensor *y) {
    assert(y->n == n && y->h == 1 && y->w == 1 && y->c % 2 == 0);
    if (ctx->planning) return;
    int half = y->c / 2;
    for (int k = 0; k < n; k++) {
        float *out = (float *)y->v + (size_t)k * (size_t)y->c;
        for (int i = 0; i < half; i++) {
            float exponent = -logf(10000.0f) * (float)i / ((float)half - freq_shift);
            float x = timesteps[k] * expf(exponent);
            out[flip_sin_to_cos ? i : half + i] = cosf(x);
            out[flip_sin_to_cos ? half + i : i] = sinf(x);
        }
    }
}

void kx_cpu_add_silu(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b,
                     struct kx_tensor *y) {
    size_t c = (size_t)a->c, rows = kx_count(a) / c, others = b ? kx_count(b) / c : 1;
    assert((!b || b->c == a->c) && y->c == a->c && kx_count(y) == rows * others * c);
    if (ctx->planning) return;
    const struct kx_vector *vector = kx_cpu_of(ctx)->vector;
    if (!b) {
        vector->silu(a->v, y->v, kx_count(a));
        return;
    }
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < others; j++) {
            float *to = (float *)y->v + (i * others + j) * c;
            vector->add((const float *)a->v + i * c, (const float *)b->v + j * c, to, c);
            vector->silu(to, to, c);
        }
}

struct kx_table {
    struct kx_made made; /* first */
    size_t rows, c;
    float v[];
};

int kx_cpu_table_create(struct kx_ctx *ctx, int rows, int c, const float *v, struct kx_table **out,
                        struct kn_err *err) {
    size_t n = (size_t)rows * (size_t)c;
    *out = malloc(sizeof **out + n * sizeof *v);
    if (!*out) return kn_err_set(err, KN_EOOM, "out of memory for a table of %d × %d", rows, c);
    (*out)->made.backend = ctx->backend;
    (*out)->rows = (size_t)rows;
    (*out)->c = (size_t)c;
    memcpy((*out)->v, v, n * sizeof *v);
    return 0;
}

void kx_cpu_table_destroy(struct kx_table *t) {
    free(t);
}

void kx_cpu_embed(struct kx_ctx *ctx, const struct kx_table *tokens, const struct kx_table *places,
                  const int32_t *ids, struct kx_tensor *y) {
    size_t c = (size_t)y->c, positions = (size_t)y->h * (size_t)y->w, rows = kx_count(y) / c;
    assert(tokens->c == c && places->c == c && positions <= places->rows);
    if (ctx->planning) return;
    for (size_t i = 0; i < rows; i++) {
        const float *token = tokens->v + (size_t)ids[i] * c, *place = places->v + i % positions * c;
        for (size_t k = 0; k < c; k++) ((float *)y->v)[i * c + k] = token[k] + place[k];
    }
}

void kx_cpu_gather(struct kx_ctx *ctx, const struct kx_tensor *x, const int32_t *at, struct kx_tensor *y) {
    size_t c = (size_t)x->c, positions = (size_t)x->h * (size_t)x->w;
    assert(y->n == x->n && y->c == x->c && kx_count(y) == (size_t)y->n * c);
    if (ctx->planning) return;
    for (size_t i = 0; i < (size_t)x->n; i++)
        memcpy((float *)y->v + i * c, (const float *)x->v + (i * positions + (size_t)at[i]) * c,
               c * sizeof(float));
}

void kx_cpu_from_f32(struct kx_ctx *ctx, const float *x, struct kx_tensor *y) {
    if (!ctx->planning) memcpy(y->v, x, kx_count(y) * sizeof *x);
}

void kx_cpu_to_rgb(struct kx_ctx *ctx, const struct kx_tensor *x, float *rgb, uint8_t *bytes,
                   int32_t *finite) {
    if (ctx->planning) return;
    size_t n = kx_count(x) / (size_t)x->n;
    for (size_t i = 0; i < (size_t)x->n; i++) {
        const float *from = (const float *)x->v + i * n;
        bool bad = false;
        for (size_t k = 0; k < n; k++) {
            float v = from[k] * 0.5f + 0.5f;
            bad |= v != v;
            v = v < 0 ? 0 : v > 1 ? 1 : v;
            if (rgb) rgb[i * n + k] = v;
            if (bytes) bytes[i * n + k] = v == v ? (uint8_t)rintf(v * 255.0f) : 0;
        }
        finite[i] = !bad;
    }
}
