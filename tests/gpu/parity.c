/* Every op of kernels/ops.h on a CUDA context against the CPU's, with the same drawn inputs: odd sizes and
 * tails, poisoned outputs with guards, both storage types; and bit by bit against itself: an image alone, and
 * in batches of 2, 3 and 8 at every place. A new op is a row of `ops`.
 *
 * Runs on the shim (small shapes) and on a device (77 without one). KILN_PARITY_SEED draws other cases,
 * KILN_PARITY_ROUNDS more of them.
 *
 * Bounds are NMSE of one image: f16 1e-6, bf16 5e-5, and 1e-10 for what is f32 on both sides. */
#include "tests/gpu/parity.h"

/* A drawn case of an op: shape, choices, and the inputs of all images. */
struct scene {
    enum kx_store type;
    int p[12];
    float *v[8];
    int32_t *i[4];
    struct kx_step *steps;
    bool flag[4];
};

struct op {
    const char *name;
    void (*draw)(struct draw *d, struct scene *s);
    void (*run)(struct bench *b, const struct scene *s);
};

#ifdef KX_SHIM
enum { ROUNDS = 5, PIXELS_MAX = 9, CHANNELS_MAX = 80, ROWS_MAX = 70, TURNS = 2 };
#else
enum { ROUNDS = 24, PIXELS_MAX = 40, CHANNELS_MAX = 640, ROWS_MAX = 1100, TURNS = PARITY_IMAGES };
#endif

static size_t times(int a, int b) {
    return (size_t)a * (size_t)b;
}

/* Mostly what networks have (multiples of 8), sometimes not. */
static int draw_channels(struct draw *d) {
    int c = draw_int(d, 0, 2) ? 8 * draw_int(d, 1, CHANNELS_MAX / 8) : draw_int(d, 1, CHANNELS_MAX);
    return c;
}

/* ---- convolution: p = in, out, kernel, stride, upsample, h, w, time_proj (0 none, 1 rows, 2 by index),
 * residual (0 none, 1 apart, 2 y itself), whether its weights are set after it was made with others; shifts
 * of PARITY_IMAGES rows at a stride */

static int out_size(int x, int kernel, int stride, bool upsample) {
    return ((upsample ? 2 * x : x) + 2 * (kernel / 2) - kernel) / stride + 1;
}

static void draw_conv(struct draw *d, struct scene *s) {
    int *p = s->p;
    p[0] = draw_int(d, 0, 4) ? draw_channels(d) : DRAW_OF(d, 3, 4, 9);
    p[1] = draw_int(d, 0, 4) ? draw_channels(d) : DRAW_OF(d, 3, 4);
    p[2] = d->round % 5 == 1 ? 1 : 3;
    p[4] = d->round % 5 == 0;
    p[3] = d->round % 5 == 2 ? 2 : 1;
    p[5] = draw_int(d, 1, PIXELS_MAX);
    p[6] = draw_int(d, 1, PIXELS_MAX);
    p[7] = (d->round + 1) % 3;
    p[8] = draw_int(d, 0, 2);
    size_t taps = times(p[0], p[2] * p[2]),
           pixels = times(out_size(p[5], p[2], p[3], p[4]), out_size(p[6], p[2], p[3], p[4]));
    s->v[0] = draw_values(d, PARITY_IMAGES * times(p[5], p[6]) * (size_t)p[0], 1);
    s->v[1] = draw_values(d, (size_t)p[1] * taps, sqrtf(3 / (float)taps));
    if ((p[9] = d->round % 2)) s->v[5] = draw_values(d, (size_t)p[1] * taps, 1);
    if (draw_int(d, 0, 3)) s->v[2] = draw_numbers(d, (size_t)p[1], 1);
    s->v[3] = draw_values(d, PARITY_IMAGES * times(p[1], 2), 1);
    s->v[4] = draw_values(d, PARITY_IMAGES * pixels * (size_t)p[1], 1);
    s->i[0] = draw_indices(d, PARITY_IMAGES, 0, PARITY_IMAGES - 1);
}

static void run_conv(struct bench *b, const struct scene *s) {
    const int *p = s->p;
    int h = out_size(p[5], p[2], p[3], p[4]), w = out_size(p[6], p[2], p[3], p[4]);
    struct kx_conv_shape shape = {p[0], p[1], p[2], p[3], p[4]};
    struct kx_conv *conv;
    MUST(kx_conv_create(b->ctx, &shape, s->v[p[9] ? 5 : 1], s->v[2], &conv, MUST_ERR));
    if (p[9]) MUST(kx_conv_set(b->ctx, conv, s->v[1], MUST_ERR));
    struct kx_tensor x = give_tensor(b, s->v[0], p[5], p[6], p[0]), residual,
                     y = want_tensor(b, p[8] == 2 ? s->v[4] : NULL, h, w, p[1]);
    residual = p[8] == 1 ? give_tensor(b, s->v[4], h, w, p[1]) : y;
    size_t stride = times(p[1], 2);
    struct kx_rows time_proj = {.stride = stride};
    if (p[7] == 1) time_proj.v = give_images(b, VALUES, s->v[3], stride);
    if (p[7] == 2) {
        time_proj.v = give(b, VALUES, s->v[3], PARITY_IMAGES * stride);
        time_proj.index = give_images(b, I32, s->i[0], 1);
    }
    BENCH_RUN(b, kx_conv(b->ctx, conv, &x, &time_proj, p[8] ? &residual : NULL, &y));
    kx_conv_destroy(conv);
}

/* ---- linear: p = in, out, act, rows, residual and setting as above */

static void draw_linear(struct draw *d, struct scene *s) {
    int *p = s->p;
    p[0] = draw_channels(d);
    p[1] = draw_channels(d);
    p[2] = d->round % (KX_ACT_GEGLU + 1);
    p[3] = draw_int(d, 1, ROWS_MAX);
    p[4] = p[2] == KX_ACT_GEGLU ? 0 : draw_int(d, 0, 2);
    if (p[2] == KX_ACT_GEGLU) p[1] *= 2;
    s->v[0] = draw_values(d, PARITY_IMAGES * times(p[3], p[0]), 1);
    s->v[1] = draw_values(d, times(p[1], p[0]), sqrtf(3 / (float)p[0]));
    p[5] = d->round / (KX_ACT_GEGLU + 1) % 2 || p[2] == KX_ACT_GEGLU || p[2] == KX_ACT_SILU;
    if (p[5]) s->v[4] = draw_values(d, times(p[1], p[0]), 1);
    if (draw_int(d, 0, 3)) s->v[2] = draw_values(d, (size_t)p[1], 1);
    s->v[3] = draw_values(d, PARITY_IMAGES * times(p[3], p[1]), 1);
}

static void run_linear(struct bench *b, const struct scene *s) {
    const int *p = s->p;
    int out = p[2] == KX_ACT_GEGLU ? p[1] / 2 : p[1];
    struct kx_linear *linear;
    MUST(kx_linear_create(b->ctx, p[0], p[1], (enum kx_act)p[2], s->v[p[5] ? 4 : 1], s->v[2], &linear,
                          MUST_ERR));
    if (p[5]) MUST(kx_linear_set(b->ctx, linear, s->v[1], MUST_ERR));
    struct kx_tensor x = give_tensor(b, s->v[0], 1, p[3], p[0]), residual,
                     y = want_tensor(b, p[4] == 2 ? s->v[3] : NULL, 1, p[3], out);
    residual = p[4] == 1 ? give_tensor(b, s->v[3], 1, p[3], out) : y;
    BENCH_RUN(b, kx_linear(b->ctx, linear, &x, p[4] ? &residual : NULL, &y));
    kx_linear_destroy(linear);
}

/* ---- norms: p = c, h, w, groups, silu, y is x. The values lie away from zero, as activations do. */

static void draw_norm_values(struct draw *d, struct scene *s) {
    const int *p = s->p;
    float offset = (float)draw_int(d, -2, 2);
    size_t n = PARITY_IMAGES * times(p[1], p[2]) * (size_t)p[0];
    s->v[0] = draw_numbers(d, n, 1);
    for (size_t i = 0; i < n; i++) s->v[0][i] = stored(d->type, s->v[0][i] + offset);
    s->v[1] = draw_numbers(d, (size_t)p[0], 1);
    s->v[2] = draw_numbers(d, (size_t)p[0], 1);
}

static void draw_norm(struct draw *d, struct scene *s) {
    int *p = s->p;
    p[3] = DRAW_OF(d, 1, 2, 4, 8, 32);
    p[0] = p[3] * draw_int(d, 1, 1 + CHANNELS_MAX / p[3]);
    p[1] = draw_int(d, 1, PIXELS_MAX);
    p[2] = draw_int(d, 1, PIXELS_MAX);
    p[4] = draw_int(d, 0, 1);
    p[5] = draw_int(d, 0, 1);
    draw_norm_values(d, s);
}

/* Every fourth is so large that an image is summed in pieces, in the workspace. */
static void draw_group_norm(struct draw *d, struct scene *s) {
    draw_norm(d, s);
    if (d->round % 4) return;
    for (int i = 0; i < 3; i++) free(s->v[i]);
    s->p[0] = 80;
    s->p[3] = DRAW_OF(d, 1, 2, 8);
    s->p[1] = s->p[2] = draw_int(d, 33, 36);
    draw_norm_values(d, s);
}

static void run_norm(struct bench *b, const struct scene *s, bool group) {
    const int *p = s->p;
    struct kx_tensor y = want_tensor(b, p[5] ? s->v[0] : NULL, p[1], p[2], p[0]),
                     x = p[5] ? y : give_tensor(b, s->v[0], p[1], p[2], p[0]);
    const float *gamma = give(b, F32, s->v[1], (size_t)p[0]), *beta = give(b, F32, s->v[2], (size_t)p[0]);
    if (group)
        BENCH_RUN(b, kx_group_norm(b->ctx, &x, gamma, beta, p[3], 1e-5f, p[4], &y));
    else
        BENCH_RUN(b, kx_layer_norm(b->ctx, &x, gamma, beta, 1e-5f, &y));
}
static void run_group_norm(struct bench *b, const struct scene *s) {
    run_norm(b, s, true);
}
static void run_layer_norm(struct bench *b, const struct scene *s) {
    run_norm(b, s, false);
}

/* ---- attention: p = heads, dim, rows, length, causal, how (0: one fused tensor of q, k and v; 1: keys and
 * values of PARITY_IMAGES texts beside those of another layer, taken by index), score's spread */

static void draw_attention(struct draw *d, struct scene *s) {
    int *p = s->p;
    p[0] = draw_int(d, 1, 3);
    p[1] = draw_int(d, 0, 3) ? DRAW_OF(d, 8, 16, 40, 64, 80) : DRAW_OF(d, 1, 7, 24, 33, 96, 160);
#ifndef KX_SHIM
    if (draw_int(d, 0, 5) == 0) p[1] = 512;
#endif
    p[5] = draw_int(d, 0, 1);
    p[2] = draw_int(d, 1, ROWS_MAX);
    p[4] = !p[5] && draw_int(d, 0, 1);
    p[3] = p[5] ? draw_int(d, 1, 90) : p[2];
    p[6] = DRAW_OF(d, 1, 1, 8);
    int width = p[0] * p[1];
    s->v[0] = draw_values(d, PARITY_IMAGES * times(p[2], 3 * width), 1);
    s->v[1] = draw_values(d, PARITY_IMAGES * times(p[3], 4 * width), 1);
    s->i[0] = draw_indices(d, PARITY_IMAGES, 0, PARITY_IMAGES - 1);
}

static void run_attention(struct bench *b, const struct scene *s) {
    const int *p = s->p;
    size_t width = times(p[0], p[1]);
    struct kx_attention a = {.q_stride = 3 * width,
                             .out_stride = width,
                             .n = b->n,
                             .rows = p[2],
                             .length = p[3],
                             .heads = p[0],
                             .dim = p[1],
                             .scale = (float)p[6] / sqrtf((float)p[1]),
                             .causal = p[4]};
    a.q = give_images(b, VALUES, s->v[0], (size_t)p[2] * a.q_stride);
    if (p[5]) {
        const void *kv = give(b, VALUES, s->v[1], PARITY_IMAGES * (size_t)p[3] * 4 * width);
        a.k_stride = a.v_stride = 4 * width;
        a.kv_image = (size_t)p[3] * a.k_stride;
        a.k = kx_at(b->ctx, kv, width);
        a.v = kx_at(b->ctx, kv, 2 * width);
        a.kv_index = give_images(b, I32, s->i[0], 1);
    } else {
        a.k_stride = a.v_stride = 3 * width;
        a.kv_image = (size_t)p[3] * a.k_stride;
        a.k = kx_at(b->ctx, a.q, width);
        a.v = kx_at(b->ctx, a.q, 2 * width);
    }
    a.out = want(b, VALUES, NULL, (size_t)p[2] * width);
    BENCH_RUN(b, kx_attention(b->ctx, &a));
}

/* ---- the small ones */

static void draw_concat(struct draw *d, struct scene *s) {
    int *p = s->p;
    p[0] = draw_channels(d);
    p[1] = draw_channels(d);
    p[2] = draw_int(d, 1, PIXELS_MAX);
    p[3] = draw_int(d, 1, PIXELS_MAX);
    s->v[0] = draw_values(d, PARITY_IMAGES * times(p[2], p[3]) * (size_t)p[0], 1);
    s->v[1] = draw_values(d, PARITY_IMAGES * times(p[2], p[3]) * (size_t)p[1], 1);
}
static void run_concat(struct bench *b, const struct scene *s) {
    const int *p = s->p;
    struct kx_tensor x = give_tensor(b, s->v[0], p[2], p[3], p[0]),
                     z = give_tensor(b, s->v[1], p[2], p[3], p[1]),
                     y = want_tensor(b, NULL, p[2], p[3], p[0] + p[1]);
    BENCH_RUN(b, kx_concat(b->ctx, &x, &z, &y));
}

static void draw_timestep(struct draw *d, struct scene *s) {
    s->p[0] = 2 * draw_int(d, 1, CHANNELS_MAX / 2);
    s->p[1] = draw_int(d, 0, 1);
    s->p[2] = s->p[0] > 2 && draw_int(d, 0, 1);
    s->v[0] = draw_numbers(d, PARITY_IMAGES, 500);
    for (int i = 0; i < PARITY_IMAGES; i++) s->v[0][i] += 499.5f;
}
static void run_timestep(struct bench *b, const struct scene *s) {
    const float *t = give_images(b, F32, s->v[0], 1);
    struct kx_tensor y = want_tensor(b, NULL, 1, 1, s->p[0]);
    BENCH_RUN(b, kx_timestep(b->ctx, t, b->n, s->p[1], (float)s->p[2], &y));
}

/* p = c, rows of b (0: none) */
static void draw_add_silu(struct draw *d, struct scene *s) {
    s->p[0] = draw_channels(d);
    s->p[1] = draw_int(d, 0, 3);
    s->v[0] = draw_values(d, PARITY_IMAGES * (size_t)s->p[0], 4);
    s->v[1] = draw_values(d, times(s->p[1], s->p[0]), 4);
}
static void run_add_silu(struct bench *b, const struct scene *s) {
    int rows = s->p[1] ? s->p[1] : 1, c = s->p[0];
    struct kx_tensor x = give_tensor(b, s->v[0], 1, 1, c), z = {NULL, rows, 1, 1, c},
                     y = want_tensor(b, NULL, rows, 1, c);
    y = (struct kx_tensor){y.v, b->n * rows, 1, 1, c};
    if (s->p[1]) z.v = give(b, VALUES, s->v[1], times(rows, c));
    BENCH_RUN(b, kx_add_silu(b->ctx, &x, s->p[1] ? &z : NULL, &y));
}

/* p = tokens, c, positions, most positions */
static void draw_embed(struct draw *d, struct scene *s) {
    int *p = s->p;
    p[0] = draw_int(d, 1, 60);
    p[1] = draw_channels(d);
    p[2] = draw_int(d, 1, 40);
    p[3] = p[2] + draw_int(d, 0, 3);
    s->v[0] = draw_values(d, times(p[0], p[1]), 1);
    s->v[1] = draw_values(d, times(p[3], p[1]), 1);
    s->i[0] = draw_indices(d, PARITY_IMAGES * (size_t)p[2], 0, p[0] - 1);
}
static void run_embed(struct bench *b, const struct scene *s) {
    const int *p = s->p;
    struct kx_table *tokens, *places;
    MUST(kx_table_create(b->ctx, p[0], p[1], s->v[0], &tokens, MUST_ERR));
    MUST(kx_table_create(b->ctx, p[3], p[1], s->v[1], &places, MUST_ERR));
    const int32_t *ids = give_images(b, I32, s->i[0], (size_t)p[2]);
    struct kx_tensor y = want_tensor(b, NULL, 1, p[2], p[1]);
    BENCH_RUN(b, kx_embed(b->ctx, tokens, places, ids, &y));
    kx_table_destroy(tokens);
    kx_table_destroy(places);
}

static void draw_gather(struct draw *d, struct scene *s) {
    s->p[0] = draw_channels(d);
    s->p[1] = draw_int(d, 1, 77);
    s->v[0] = draw_values(d, PARITY_IMAGES * times(s->p[0], s->p[1]), 1);
    s->i[0] = draw_indices(d, PARITY_IMAGES, 0, s->p[1] - 1);
}
static void run_gather(struct bench *b, const struct scene *s) {
    struct kx_tensor x = give_tensor(b, s->v[0], 1, s->p[1], s->p[0]),
                     y = want_tensor(b, NULL, 1, 1, s->p[0]);
    const int32_t *at = give_images(b, I32, s->i[0], 1);
    BENCH_RUN(b, kx_gather(b->ctx, &x, at, &y));
}

/* p = c, pixels. Of all sizes that f16 can hold, and below. */
static void draw_from_f32(struct draw *d, struct scene *s) {
    s->p[0] = draw_channels(d);
    s->p[1] = draw_int(d, 1, ROWS_MAX);
    size_t n = PARITY_IMAGES * times(s->p[0], s->p[1]);
    s->v[0] = draw_numbers(d, n, 1);
    for (size_t i = 0; i < n; i++) s->v[0][i] *= ldexpf(1, draw_int(d, -20, 10));
}
static void run_from_f32(struct bench *b, const struct scene *s) {
    const float *x = give_images(b, F32, s->v[0], times(s->p[0], s->p[1]));
    struct kx_tensor y = want_tensor(b, NULL, 1, s->p[1], s->p[0]);
    BENCH_RUN(b, kx_from_f32(b->ctx, x, &y));
}

/* p = h, w, what is asked for (1 rgb, 2 bytes, 3 both). One image holds a NaN. */
static void draw_to_rgb(struct draw *d, struct scene *s) {
    s->p[0] = draw_int(d, 1, PIXELS_MAX);
    s->p[1] = draw_int(d, 1, PIXELS_MAX);
    s->p[2] = draw_int(d, 1, 3);
    size_t values = 3 * times(s->p[0], s->p[1]);
    s->v[0] = draw_values(d, PARITY_IMAGES * values, 1.5f);
    s->v[0][times(draw_int(d, 0, PARITY_IMAGES - 1), (int)values) + (size_t)draw_int(d, 0, (int)values - 1)] =
        NAN;
}
static void run_to_rgb(struct bench *b, const struct scene *s) {
    size_t values = 3 * times(s->p[0], s->p[1]);
    struct kx_tensor x = give_tensor(b, s->v[0], s->p[0], s->p[1], 3);
    float *rgb = s->p[2] & 1 ? want(b, F32, NULL, values) : NULL;
    uint8_t *bytes = s->p[2] & 2 ? want(b, U8, NULL, values) : NULL;
    int32_t *finite = want(b, I32, NULL, 1);
    BENCH_RUN(b, kx_to_rgb(b->ctx, &x, rgb, bytes, finite));
}

/* ---- the sampler: p = values, steps, history slots, noise, a dump of m. An image's rows are 2i (with the
 * prompt) and 2i + 1 (without, where it has guidance). The noise is the same at each step. */

enum { SAMPLE_STEPS = 4 };

static void draw_sample(struct draw *d, struct scene *s) {
    int *p = s->p;
    p[0] = draw_int(d, 0, 2) ? 4 * draw_int(d, 1, PIXELS_MAX * PIXELS_MAX) : draw_int(d, 1, 50);
    p[1] = draw_int(d, 1, SAMPLE_STEPS);
    p[2] = draw_int(d, 0, KX_HISTORY_MAX);
    p[3] = draw_int(d, 0, 1);
    p[4] = draw_int(d, 0, 1);
    s->steps = must(calloc(times(p[1], PARITY_IMAGES), sizeof *s->steps));
    for (int k = 0; k < p[1] * PARITY_IMAGES; k++) {
        float *c = draw_numbers(d, 16, 1);
        s->steps[k] = (struct kx_step){.timestep = 500 + 400 * c[0],
                                       .in_scale = c[1],
                                       .dx = c[2],
                                       .dm = c[3],
                                       .clip = draw_int(d, 0, 1) ? fabsf(c[4]) : 0,
                                       .cx = c[5],
                                       .cs = c[6],
                                       .cd = c[7],
                                       .cm = c[8],
                                       .cn = p[3] ? c[9] : 0,
                                       .save_x = draw_int(d, 0, 1),
                                       .store = draw_int(d, -1, p[2] - 1)};
        for (int h = 0; h < p[2]; h++) s->steps[k].ch[h] = draw_int(d, 0, 1) ? c[10 + h] : 0;
        free(c);
    }
    size_t n = PARITY_IMAGES * (size_t)p[0];
    s->v[0] = draw_values(d, times(p[1], 2) * n, 1); /* prediction */
    s->v[1] = draw_numbers(d, n, 1);                 /* x */
    s->v[2] = draw_numbers(d, n, 1);                 /* saved, and the history to begin with */
    s->v[3] = draw_numbers(d, n, 1);                 /* noise */
    s->v[4] = draw_numbers(d, PARITY_IMAGES, 8);     /* guidance */
    s->v[5] = draw_values(d, 2 * n, 0);              /* rows of `in` that nobody has */
    s->i[0] = draw_indices(d, PARITY_IMAGES, 0, 1);  /* whether it has guidance */
    s->i[1] = draw_indices(d, times(p[1], 2 * PARITY_IMAGES), 0, 50); /* time rows, by image */
    if (draw_int(d, 0, 1)) s->v[0][draw_int(d, 0, p[0] - 1)] = INFINITY;
}

/* The bench's images of a table of steps × all images, as a table of steps × those. */
static void *gather_steps(const struct bench *b, const void *all, int steps, size_t bytes) {
    char *v = must(malloc(times(steps, b->n) * bytes));
    for (int k = 0; k < steps; k++)
        for (int i = 0; i < b->n; i++)
            memcpy(v + times(k * b->n + i, (int)bytes),
                   (const char *)all + times(k * PARITY_IMAGES + b->order[i], (int)bytes), bytes);
    return v;
}

/* A step spends its prediction: each has its own. */
static void sample_all(struct kx_ctx *ctx, struct kx_sampling *sampling, void *const *preds) {
    kx_sample_begin(ctx, sampling);
    for (int k = 0; k < sampling->steps; k++) {
        sampling->pred = preds[k];
        kx_sample(ctx, sampling);
    }
}

static void run_sample(struct bench *b, const struct scene *s) {
    const int *p = s->p;
    size_t values = (size_t)p[0];
    int32_t row_u[PARITY_IMAGES], row_c[PARITY_IMAGES];
    for (int i = 0; i < b->n; i++) {
        row_c[i] = 2 * i;
        row_u[i] = s->i[0][b->order[i]] ? 2 * i + 1 : -1;
    }
    struct kx_step *table = gather_steps(b, s->steps, p[1], sizeof *table);
    int32_t *time_rows = gather_steps(b, s->i[1], p[1], 2 * sizeof *time_rows);
    struct kx_sampling g = {.n = b->n, .rows = 2 * b->n, .values = values, .steps = p[1]};
    g.table = give(b, U8, table, times(p[1], b->n) * sizeof *table);
    g.guidance = give_images(b, F32, s->v[4], 1);
    g.row_u = give(b, I32, row_u, (size_t)b->n);
    g.row_c = give(b, I32, row_c, (size_t)b->n);
    void *preds[SAMPLE_STEPS];
    for (int k = 0; k < p[1]; k++)
        preds[k] = give_images(b, VALUES, s->v[0] + (size_t)k * PARITY_IMAGES * 2 * values, 2 * values);
    g.in = want(b, VALUES, s->v[5], 2 * values);
    g.time_row = want(b, I32, NULL, 2);
    g.time_rows = give(b, I32, time_rows, times(p[1], 2 * b->n));
    g.x = want(b, F32, s->v[1], values);
    g.saved = want(b, F32, s->v[2], values);
    for (int h = 0; h < p[2]; h++) g.history[h] = want(b, F32, s->v[2], values);
    if (p[3]) g.noise = give_images(b, F32, s->v[3], values);
    if (p[4]) g.guided = want(b, F32, NULL, values);
    g.bad = want(b, I32, NULL, 1);
    int32_t at = 99;
    g.at = give(b, I32, &at, 1);
    BENCH_RUN(b, sample_all(b->ctx, &g, preds));
    kx_download(b->ctx, &at, g.at, sizeof at);
    CHECK_INT(at, p[1]);
    free(table);
    free(time_rows);
}

/* ---- all of them */

static const struct op ops[] = {
    {"conv", draw_conv, run_conv},
    {"linear", draw_linear, run_linear},
    {"group_norm", draw_group_norm, run_group_norm},
    {"layer_norm", draw_norm, run_layer_norm},
    {"attention", draw_attention, run_attention},
    {"concat", draw_concat, run_concat},
    {"timestep", draw_timestep, run_timestep},
    {"add_silu", draw_add_silu, run_add_silu},
    {"embed", draw_embed, run_embed},
    {"gather", draw_gather, run_gather},
    {"from_f32", draw_from_f32, run_from_f32},
    {"to_rgb", draw_to_rgb, run_to_rgb},
    {"sample", draw_sample, run_sample},
};
enum { OPS = sizeof ops / sizeof *ops };

static struct kx_ctx *cpu, *cuda[2];

static void contexts(void) {
    if (cpu) return;
    if (!kx_cuda_device_count()) SKIP("no CUDA device");
    MUST(kx_cpu_ctx_create(1, &cpu, MUST_ERR));
    for (int type = KX_STORE_F16; type <= KX_STORE_BF16; type++) {
        struct kx_cuda_options o = {.type = (enum kx_store)type};
        MUST(kx_cuda_ctx_create(&o, &cuda[type], MUST_ERR));
    }
}

static long long setting(const char *name, long long otherwise) {
    const char *v = getenv(name);
    return v && *v ? strtoll(v, NULL, 10) : otherwise;
}

/* The op, type and case that a failure is of. */
struct label {
    const struct op *op;
    const struct scene *s;
    uint64_t seed;
};

static const char *say(const struct label *l) {
    static char text[512];
    int n = snprintf(text, sizeof text, "%s, %s, seed %llu, p =", l->op->name,
                     l->s->type == KX_STORE_F16 ? "f16" : "bf16", (unsigned long long)l->seed);
    for (int i = 0; i < 10; i++) n += snprintf(text + n, sizeof text - (size_t)n, " %d", l->s->p[i]);
    return text;
}

static void run_images(struct bench *b, struct kx_ctx *ctx, const struct label *l, const int *order, int n) {
    *b = (struct bench){.ctx = ctx, .order = order, .n = n};
    l->op->run(b, l->s);
    bench_finish(b);
}

static double bound(enum kind kind, enum kx_store type) {
    return kind == F32 ? 1e-10 : kind != VALUES ? 0 : type == KX_STORE_F16 ? 1e-6 : 5e-5;
}

static double worst[OPS][2];

static void check_cpu(const struct label *l, const struct bench *alone, int image) {
    struct bench c;
    run_images(&c, cpu, l, &image, 1);
    for (int i = 0; i < c.results_count; i++) {
        const struct result *got = &alone->results[i], *wanted = &c.results[i];
        double e = nmse(got->f, wanted->f, wanted->per_image), *w = &worst[l->op - ops][l->s->type];
        if (wanted->kind == VALUES && e > *w) *w = e;
        CHECK_MSG(e <= bound(wanted->kind, l->s->type), "%s: result %d of image %d is %g from the CPU's",
                  say(l), i, image, e);
    }
    bench_free(&c);
}

static void check_batch(const struct label *l, const struct bench *alone, const int *order, int n) {
    struct bench b;
    run_images(&b, cuda[l->s->type], l, order, n);
    for (int i = 0; i < b.results_count; i++) {
        size_t bytes = b.results[i].per_image * kind_bytes(&b, b.results[i].kind);
        for (int k = 0; k < n; k++)
            CHECK_MSG(!memcmp(b.results[i].raw + (size_t)k * bytes, alone[order[k]].results[i].raw, bytes),
                      "%s: result %d of image %d has other bits as number %d of %d", say(l), i, order[k], k,
                      n);
    }
    bench_free(&b);
}

static void check_op(const struct op *op, enum kx_store type, uint64_t seed, int round) {
    struct scene s = {.type = type};
    struct draw d = {.s = seed, .type = type, .round = round};
    struct label l = {op, &s, seed};
    struct bench alone[PARITY_IMAGES];
    op->draw(&d, &s);
    for (int i = 0; i < PARITY_IMAGES; i++) {
        run_images(&alone[i], cuda[type], &l, &i, 1);
        check_cpu(&l, &alone[i], i);
    }
    static const int sizes[] = {2, 3, PARITY_IMAGES};
    for (int k = 0; k < 3; k++)
        for (int turn = 0; turn < TURNS && turn < sizes[k]; turn++) {
            int order[PARITY_IMAGES], first = draw_int(&d, 0, PARITY_IMAGES - 1);
            for (int i = 0; i < sizes[k]; i++) order[i] = (first + (i + turn) % sizes[k]) % PARITY_IMAGES;
            check_batch(&l, alone, order, sizes[k]);
        }
    for (int i = 0; i < PARITY_IMAGES; i++) bench_free(&alone[i]);
    for (int i = 0; i < 8; i++) free(s.v[i]);
    for (int i = 0; i < 4; i++) free(s.i[i]);
    free(s.steps);
}

TEST(every_op_agrees_with_the_cpu_and_does_not_depend_on_the_batch) {
    contexts();
    uint64_t first = (uint64_t)setting("KILN_PARITY_SEED", 1);
    int rounds = (int)setting("KILN_PARITY_ROUNDS", ROUNDS);
    for (int i = 0; i < OPS; i++) {
        for (int round = 0; round < rounds; round++)
            for (int type = KX_STORE_F16; type <= KX_STORE_BF16; type++)
                check_op(&ops[i], (enum kx_store)type, first + (uint64_t)(round * OPS + i), round);
        printf("%-12s %d rounds, at worst NMSE %.2g in f16, %.2g in bf16\n", ops[i].name, rounds, worst[i][0],
               worst[i][1]);
    }
    for (int type = 0; type < 2; type++) kx_ctx_destroy(cuda[type]);
    kx_ctx_destroy(cpu);
    cpu = NULL;
}
