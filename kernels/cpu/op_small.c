/* Norms, attention and the small ops on the CPU: who does which stretch. The stretches depend on the shape
 * alone, so that a sum has the same order on any number of threads. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
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

void kx_cpu_group_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                       int groups, float eps, bool silu, struct kx_tensor *y) {
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
    size_t each = blocks(blocks(n.pixels, SUM_STRETCHES_MAX), SUM_PIXELS) * SUM_PIXELS,
           stretches = blocks(n.pixels, each);
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
        n.each = rows_each(n.c);
        kx_parallel(cpu, (int)blocks(n.pixels, n.each), norm_apply, &n);
    }
}

static void norm_rows(void *arg, int i, const struct kx_seat *seat) {
    (void)seat;
    const struct norm *n = arg;
    size_t from = (size_t)i * n->each;
    n->ctx->vector->layer_norm(n->x + from * n->c, n->y + from * n->c, least(n->each, n->pixels - from), n->c,
                               n->gamma, n->beta, n->eps);
}

void kx_cpu_layer_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                       float eps, struct kx_tensor *y) {
    assert(y->c == x->c && kx_count(y) == kx_count(x));
    if (ctx->planning) return;
    struct norm n = {.ctx = kx_cpu_of(ctx),
                     .x = x->v,
                     .y = y->v,
                     .gamma = gamma,
                     .beta = beta,
                     .c = (size_t)x->c,
                     .eps = eps,
                     .each = rows_each((size_t)x->c),
                     .pixels = (size_t)x->n * (size_t)x->h * (size_t)x->w};
    kx_parallel(n.ctx, (int)blocks(n.pixels, n.each), norm_rows, &n);
}

/* ---- attention: each head's keys and values are packed once, then blocks of query rows go over them */

struct attending {
    struct kx_cpu *ctx;
    const struct kx_attention *a;
    const float *q, *k, *v; /* of the image */
    float *out;
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
    t->ctx->vector->pack_keys(t->k + from * a->k_stride + head * dim, a->k_stride, n, a->dim,
                              t->keys + (head * t->key_blocks * KX_ATTEND_KEYS + from) * dim);
    t->ctx->vector->pack_values(t->v + from * a->v_stride + head * dim, a->v_stride, n, a->dim,
                                t->values + (head * length + from) * t->width);
}

static void attend_rows(void *arg, int i, const struct kx_seat *seat) {
    const struct attending *t = arg;
    const struct kx_attention *a = t->a;
    size_t head = (size_t)i / t->row_blocks, from = (size_t)i % t->row_blocks * KX_ATTEND_ROWS,
           dim = (size_t)a->dim;
    struct kx_head h = {.q = t->q + from * a->q_stride + head * dim,
                        .q_stride = a->q_stride,
                        .rows = (int)least(KX_ATTEND_ROWS, (size_t)a->rows - from),
                        .length = a->length,
                        .dim = a->dim,
                        .keys = t->keys + head * t->key_blocks * KX_ATTEND_KEYS * dim,
                        .values = t->values + head * (size_t)a->length * t->width,
                        .seen = a->causal ? (int)from + 1 : a->length,
                        .step = a->causal,
                        .scale = a->scale,
                        .out = t->out + from * a->out_stride + head * dim,
                        .out_stride = a->out_stride,
                        .scratch = seat->scratch};
    t->ctx->vector->attend(&h);
}

void kx_cpu_attention(struct kx_ctx *ctx, const struct kx_attention *a) {
    assert(a->rows > 0 && a->length > 0 && a->heads > 0 && a->dim > 0);
    struct kx_cpu *cpu = kx_cpu_of(ctx);
    struct attending t = {.ctx = cpu,
                          .a = a,
                          .key_blocks = blocks((size_t)a->length, KX_ATTEND_KEYS),
                          .row_blocks = blocks((size_t)a->rows, KX_ATTEND_ROWS),
                          .width = kx_attend_width(a->dim)};
    size_t heads = (size_t)a->heads, values = heads * (size_t)a->length * t.width,
           keys = heads * t.key_blocks * KX_ATTEND_KEYS * (size_t)a->dim;
    if (ctx->planning) {
        kx_want(cpu, (values + keys) * sizeof(float), kx_attend_scratch(a->dim) * sizeof(float));
        return;
    }
    t.values = cpu->workspace;
    t.keys = t.values + values;
    for (int i = 0; i < a->n; i++) {
        size_t of = (size_t)(a->kv_index ? a->kv_index[i] : i) * a->kv_image,
               rows = (size_t)i * (size_t)a->rows;
        t.q = (const float *)a->q + rows * a->q_stride;
        t.out = (float *)a->out + rows * a->out_stride;
        t.k = (const float *)a->k + of;
        t.v = (const float *)a->v + of;
        kx_parallel(cpu, (int)(heads * t.key_blocks), attend_pack, &t);
        kx_parallel(cpu, (int)(heads * t.row_blocks), attend_rows, &t);
    }
}

/* ---- the small ones */

struct joining {
    const float *a, *b;
    float *y;
    size_t ca, cb, pixels, each;
};

static void join_rows(void *arg, int i, const struct kx_seat *seat) {
    (void)seat;
    const struct joining *j = arg;
    size_t a = j->ca, b = j->cb, from = (size_t)i * j->each, to = least(from + j->each, j->pixels);
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
                        rows_each((size_t)y->c)};
    kx_parallel(kx_cpu_of(ctx), (int)blocks(j.pixels, j.each), join_rows, &j);
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

void kx_cpu_pick(struct kx_ctx *ctx, const struct kx_tensor *x, const int32_t *at, struct kx_tensor *y) {
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

/* ---- the sampler: kernels/samplers/step.c, image by image */

static void sample_input(const struct kx_sampling *s, int k) {
    if (k >= s->steps) k = s->steps - 1;
    for (int i = 0; i < s->n; i++) {
        float *in = (float *)s->in + (size_t)s->row_c[i] * s->values;
        kx_scale(s->x + (size_t)i * s->values, s->table[k * s->n + i].in_scale, in, s->values);
        if (s->row_u[i] >= 0)
            memcpy((float *)s->in + (size_t)s->row_u[i] * s->values, in, s->values * sizeof *in);
    }
    memcpy(s->time_row, s->time_rows + (size_t)k * (size_t)s->rows, (size_t)s->rows * sizeof *s->time_row);
}

void kx_cpu_sample_begin(struct kx_ctx *ctx, const struct kx_sampling *s) {
    if (ctx->planning) return;
    *s->at = 0;
    for (int i = 0; i < s->n; i++) s->bad[i] = -1;
    sample_input(s, 0);
}

void kx_cpu_sample(struct kx_ctx *ctx, const struct kx_sampling *s) {
    if (ctx->planning) return;
    int k = *s->at;
    assert(k >= 0 && k < s->steps);
    for (int i = 0; i < s->n; i++) {
        const struct kx_step *step = &s->table[k * s->n + i];
        if (step->cx == 1 && step->cs == 0 && step->cd == 0 && step->cm == 0 && step->cn == 0 &&
            step->store < 0)
            continue; /* it is over, and stays as it is whatever the prediction (no sampler's step has no
                         data) */
        size_t at = (size_t)i * s->values;
        float *c = (float *)s->pred + (size_t)s->row_c[i] * s->values, /* m takes its place */
            *u = s->row_u[i] < 0 ? NULL : (float *)s->pred + (size_t)s->row_u[i] * s->values;
        struct kx_step_state st = {.x = s->x + at, .saved = s->saved ? s->saved + at : NULL};
        for (int q = 0; q < KX_HISTORY_MAX; q++) st.history[q] = s->history[q] ? s->history[q] + at : NULL;
        if (!kx_guide(u, c, s->guidance[i], c, s->values) && s->bad[i] < 0) s->bad[i] = k;
        if (s->guided) memcpy(s->guided + at, c, s->values * sizeof *c);
        kx_step_apply(step, &st, c, s->noise ? s->noise + at : NULL, s->values);
    }
    sample_input(s, *s->at = k + 1);
}
