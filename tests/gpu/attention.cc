/* Attention (kernels/cuda/op_attention*.cu) against doubles: every head size and tile, tails of rows and of
 * keys, strides of fused projections, shared keys, the diagonal, scores far apart, and the same bits in any
 * batch. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/op_attention.h"
#include "tests/gpu/gpu.h"

static const enum kx_store types[2] = {KX_STORE_F16, KX_STORE_BF16};
static const double bounds[2] = {2e-7, 1e-5}; /* NMSE */

enum variant { DEFAULT, SIMPLE, TILED, WIDE_128, WIDE_64, SM90 };
static const char *const variant_names[] = {"default", "simple", "tiled", "wide 128", "wide 64", "sm90"};

/* How rows lie in memory. */
enum lay {
    APART, /* q alone; k and v side by side, as the cross-attention's cached projection */
    FUSED, /* q, k, v side by side in one tensor; rows is length */
    ODD    /* as APART, strides that are no multiple of 8 and pointers that are not aligned to 16 */
};

struct shape {
    int n, rows, length, heads, dim;
    bool causal;
    enum lay lay;
};

/* Inputs of a call, rounded, and where they are. kv: how many images keys and values are of. */
struct input {
    struct shape s;
    enum kx_store type;
    float scale;
    int kv;
    int every;                                     /* only every such row is compared */
    int32_t *index;                                /* NULL: none */
    float *q, *k, *v;                              /* dense: image, row, head, dim */
    size_t q_stride, kv_stride, out_stride, shift; /* as they lie; shift: values before the first */
};

static size_t width(const struct input *in) {
    return (size_t)(in->s.heads * in->s.dim);
}

static void *want_memory(size_t bytes) {
    void *p = calloc(1, bytes ? bytes : 1);
    if (!p) exit(1);
    return p;
}

/* spread: the scores' standard deviation, about. */
static void open_input(struct input *in, const struct shape *s, enum kx_store type, float spread, int kv,
                       uint64_t seed) {
    memset(in, 0, sizeof *in);
    in->s = *s;
    in->type = type;
    in->kv = kv;
    in->every = 1;
    in->scale = 1 / sqrtf((float)s->dim);
    size_t w = width(in), nq = (size_t)(s->n * s->rows) * w, nk = (size_t)(kv * s->length) * w;
    in->q = (float *)want_memory(nq * sizeof(float));
    in->k = (float *)want_memory(nk * sizeof(float));
    in->v = (float *)want_memory(nk * sizeof(float));
    struct gpu_random r = gpu_random_of(seed);
    for (size_t i = 0; i < nq; i++) in->q[i] = gpu_round(type, spread * gpu_normal(&r));
    for (size_t i = 0; i < nk; i++) in->k[i] = gpu_round(type, gpu_normal(&r));
    for (size_t i = 0; i < nk; i++) in->v[i] = gpu_round(type, gpu_normal(&r));
    in->q_stride = s->lay == FUSED ? 3 * w : s->lay == ODD ? w + 3 : w;
    in->kv_stride = s->lay == FUSED ? 3 * w : s->lay == ODD ? 2 * w + 5 : 2 * w;
    in->out_stride = s->lay == ODD ? w + 1 : s->lay == FUSED ? w + 8 : w;
    in->shift = s->lay == ODD ? 1 : 0;
}

static void close_input(struct input *in) {
    free(in->q);
    free(in->k);
    free(in->v);
    free(in->index);
}

/* n rows of w values into bits at a stride. */
static void lay_out(enum kx_store type, const float *from, size_t n, size_t w, uint16_t *to, size_t stride) {
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < w; j++) to[i * stride + j] = gpu_bits(type, from[i * w + j]);
}

/* The bits of the output, dense; what lies between its rows must be as it was. False: the call failed. */
static bool run(const struct input *in, enum variant variant, uint16_t *out) {
    const struct shape *s = &in->s;
    size_t w = width(in), nq = (size_t)(s->n * s->rows), nk = (size_t)(in->kv * s->length);
    size_t q_room = nq * in->q_stride + in->shift, kv_room = nk * in->kv_stride + in->shift;
    size_t out_room = nq * in->out_stride + in->shift;
    uint16_t *q = (uint16_t *)want_memory(q_room * 2), *kv = (uint16_t *)want_memory(kv_room * 2);
    uint16_t *got = (uint16_t *)want_memory(out_room * 2);
    memset(q, 0xff, q_room * 2); /* NaN: what is none of its business must not be read as a value */
    memset(kv, 0xff, kv_room * 2);
    lay_out(in->type, in->q, nq, w, q + in->shift, in->q_stride);
    uint16_t *keys = s->lay == FUSED ? q + w : kv + in->shift, *values = keys + w;
    lay_out(in->type, in->k, nk, w, keys, in->kv_stride);
    lay_out(in->type, in->v, nk, w, values, in->kv_stride);

    uint16_t *dq = (uint16_t *)gpu_upload(q, q_room * 2), *dkv = (uint16_t *)gpu_upload(kv, kv_room * 2);
    uint16_t *dout = (uint16_t *)gpu_poisoned(out_room * 2);
    int32_t *dindex = in->index ? (int32_t *)gpu_upload(in->index, (size_t)s->n * sizeof(int32_t)) : NULL;
    gpu_download(got, dout, out_room * 2);
    uint16_t poison = got[0];

    struct kx_attention a;
    memset(&a, 0, sizeof a);
    a.q = dq + in->shift;
    a.k = s->lay == FUSED ? dq + w : dkv + in->shift;
    a.v = (const uint16_t *)a.k + w;
    a.out = dout + in->shift;
    a.q_stride = in->q_stride;
    a.k_stride = a.v_stride = in->kv_stride;
    a.out_stride = in->out_stride;
    a.kv_image = (size_t)s->length * in->kv_stride;
    a.kv_index = dindex;
    a.n = s->n;
    a.rows = s->rows;
    a.length = s->length;
    a.heads = s->heads;
    a.dim = s->dim;
    a.scale = in->scale;
    a.causal = s->causal;
    cudaError_t e = variant == SIMPLE     ? kx_cuda_attention_simple(NULL, in->type, &a)
                    : variant == TILED    ? kx_cuda_attention_tiled(NULL, in->type, &a)
                    : variant == WIDE_128 ? kx_cuda_attention_wide(NULL, in->type, &a, 128)
                    : variant == SM90     ? kx_cuda_attention_sm90(NULL, in->type, &a)
                    : variant == WIDE_64  ? kx_cuda_attention_wide(NULL, in->type, &a, 64)
                                          : kx_cuda_attention(NULL, in->type, &a);
    gpu_download(got, dout, out_room * 2);
    bool fine = e == cudaSuccess;
    if (!fine) fprintf(stderr, "%s: %s\n", variant_names[variant], cudaGetErrorString(e));
    for (size_t i = 0; i < in->shift; i++) fine = fine && got[i] == poison;
    for (size_t i = 0; i < nq; i++) {
        memcpy(out + i * w, got + in->shift + i * in->out_stride, w * 2);
        for (size_t j = w; j < in->out_stride; j++)
            fine = fine && got[in->shift + i * in->out_stride + j] == poison;
    }
    gpu_free(dindex);
    gpu_free(dout);
    gpu_free(dkv);
    gpu_free(dq);
    free(got);
    free(kv);
    free(q);
    return fine;
}

/* The rows that are compared, of all images: in->every-th ones. */
static void reference(const struct input *in, double *out) {
    const struct shape *s = &in->s;
    size_t w = width(in);
    double *p = (double *)want_memory((size_t)s->length * sizeof *p);
    for (int i = 0; i < s->n; i++)
        for (int row = 0; row < s->rows; row += in->every, out += w)
            for (int head = 0; head < s->heads; head++) {
                size_t at = (size_t)(head * s->dim),
                       from = (size_t)((in->index ? in->index[i] : i) * s->length);
                const float *q = in->q + (size_t)(i * s->rows + row) * w + at;
                int seen = s->causal && row + 1 < s->length ? row + 1 : s->length;
                double max = -INFINITY, sum = 0;
                for (int j = 0; j < seen; j++) {
                    const float *k = in->k + (from + (size_t)j) * w + at;
                    p[j] = 0;
                    for (int d = 0; d < s->dim; d++) p[j] += (double)q[d] * (double)k[d];
                    p[j] *= (double)in->scale;
                    if (p[j] > max) max = p[j];
                }
                for (int j = 0; j < seen; j++) sum += p[j] = exp(p[j] - max);
                double *o = out + at;
                for (int d = 0; d < s->dim; d++) o[d] = 0;
                for (int j = 0; j < seen; j++)
                    for (int d = 0; d < s->dim; d++)
                        o[d] += p[j] / sum * (double)in->v[(from + (size_t)j) * w + at + (size_t)d];
            }
    free(p);
}

/* The worst image's NMSE; INFINITY when the call failed. */
static double error_of(const struct input *in, enum variant variant) {
    size_t w = width(in), all = (size_t)(in->s.n * in->s.rows) * w;
    size_t kept = (size_t)((in->s.rows + in->every - 1) / in->every), image = kept * w;
    uint16_t *bits = (uint16_t *)want_memory(all * 2);
    double *want = (double *)want_memory((size_t)in->s.n * image * sizeof *want), worst = 0;
    float *got = (float *)want_memory(image * sizeof *got);
    reference(in, want);
    if (!run(in, variant, bits)) worst = INFINITY;
    for (int i = 0; i < in->s.n; i++) {
        for (size_t j = 0; j < image; j++) {
            size_t row = (size_t)(i * in->s.rows) + j / w * (size_t)in->every;
            got[j] = gpu_unbits(in->type, bits[row * w + j % w]);
        }
        double e = gpu_nmse(want + (size_t)i * image, got, image);
        if (!(e <= worst)) worst = e;
    }
    free(got);
    free(want);
    free(bits);
    return worst;
}

static bool near(const struct input *in, enum variant variant, double bound) {
    const struct shape *s = &in->s;
    double e = error_of(in, variant);
    if (getenv("VERBOSE") || !(e <= bound))
        fprintf(stderr,
                "%s, %s, n %d, %d rows, %d keys, %d heads of %d, layout %d%s: NMSE %.2g, bound %.2g\n",
                variant_names[variant], in->type == KX_STORE_F16 ? "f16" : "bf16", s->n, s->rows, s->length,
                s->heads, s->dim, (int)s->lay, s->causal ? ", causal" : "", e, bound);
    return e <= bound;
}

/* True if the device runs Hopper's variant. */
static bool sm90(void) {
    struct kx_attention a;
    memset(&a, 0, sizeof a);
    a.n = a.rows = a.length = a.heads = 1;
    a.dim = 40;
    a.scale = 1;
    a.q_stride = a.k_stride = a.v_stride = a.out_stride = a.kv_image = 40;
    void *p = gpu_poisoned(4 * 80);
    a.q = p, a.k = (uint16_t *)p + 40, a.v = (uint16_t *)p + 80, a.out = (uint16_t *)p + 120;
    cudaError_t e = kx_cuda_attention_sm90(NULL, KX_STORE_F16, &a);
    gpu_sync();
    gpu_free(p);
#ifdef KX_CUDA_SM90
    CHECK_MSG(e != KX_CUDA_NO || gpu_capability() != 90,
              "a Hopper that says no: has TMA refused its descriptors?");
#endif
    return e != KX_CUDA_NO;
}

/* A shape in both types (the second only where `both`). */
static bool shape_near(const struct shape *s, enum variant variant, bool both, uint64_t seed) {
    bool fine = true;
    for (int t = both ? 0 : (int)seed % 2; t < (both ? 2 : (int)seed % 2 + 1); t++) {
        struct input in;
        open_input(&in, s, types[t], 2, s->n, seed);
        fine = near(&in, variant, bounds[t]) && fine;
        close_input(&in);
    }
    return fine;
}

TEST(attention_of_every_tuned_head_size) {
    static const int dims[] = {32, 40, 64, 80, 128, 160, 512};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        struct shape s = {1, 70, 77, 2, dims[i], false, APART};
        if (dims[i] == 512) s.heads = 1;
        CHECK(shape_near(&s, DEFAULT, true, i));
    }
}

/* The sizes between the tuned ones are filled up with zeros. */
TEST(attention_of_multiples_of_8_between) {
    static const int dims[] = {8, 16, 24, 48, 56, 72, 88, 96, 120, 136, 152, 168, 256, 320, 504};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        struct shape s = {1, 9, 33, dims[i] > 160 ? 1 : 2, dims[i], false, i % 2 ? FUSED : APART};
        if (s.lay == FUSED) s.length = s.rows;
        CHECK(shape_near(&s, DEFAULT, false, i));
    }
}

TEST(attention_of_odd_head_sizes_and_strides) {
    static const struct shape shapes[] = {
        {1, 1, 1, 1, 1, false, APART},   {2, 5, 9, 2, 4, false, APART},  {1, 33, 33, 5, 12, false, FUSED},
        {1, 6, 70, 1, 7, false, ODD},    {2, 9, 9, 3, 17, false, FUSED}, {1, 3, 40, 1, 511, false, APART},
        {2, 6, 35, 2, 40, false, ODD},   {1, 5, 31, 1, 512, false, ODD}, {1, 40, 40, 2, 12, true, FUSED},
        {1, 35, 20, 2, 33, true, APART}, {1, 20, 35, 1, 100, true, ODD},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        CHECK(shape_near(&shapes[i], DEFAULT, true, i));
}

/* Tails: rows and keys around the tiles' borders, for each tile that there is. */
TEST(attention_at_the_tiles_borders) {
    static const struct {
        int dim, rows[3], keys[4];
    } cases[] = {
        {32, {1, 128, 129}, {1, 63, 64, 65}},    {40, {1, 127, 130}, {47, 48, 49, 97}},
        {64, {15, 128, 129}, {79, 80, 81, 161}}, {80, {16, 17, 129}, {48, 95, 96, 145}},
        {128, {63, 64, 65}, {63, 64, 65, 129}},  {160, {1, 64, 65}, {31, 32, 33, 65}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int j = 0; j < 4; j++) {
            struct shape s = {1, cases[i].rows[j % 3], cases[i].keys[j], 1, cases[i].dim, false, APART};
            CHECK(shape_near(&s, TILED, false, i + (size_t)j));
        }
}

TEST(attention_wide_at_the_tiles_borders) {
    static const struct {
        int rows, keys, dim;
    } cases[] = {{1, 1, 512},    {64, 64, 512}, {65, 65, 512}, {63, 127, 512}, {3, 129, 512},
                 {33, 257, 512}, {5, 130, 168}, {5, 200, 296}, {9, 140, 64},   {9, 70, 8}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct shape s = {1, cases[i].rows, cases[i].keys, 1, cases[i].dim, false, APART};
        CHECK(shape_near(&s, WIDE_128, false, i));
        CHECK(shape_near(&s, WIDE_64, false, i + 1));
    }
}

TEST(attention_causal_sees_no_later_key) {
    static const struct {
        struct shape s;
        enum variant variant;
    } cases[] = {
        {{2, 77, 77, 2, 64, true, FUSED}, DEFAULT},     {{1, 77, 77, 1, 80, true, FUSED}, DEFAULT},
        {{1, 32, 32, 4, 32, true, FUSED}, DEFAULT},     {{1, 150, 150, 1, 40, true, FUSED}, TILED},
        {{1, 130, 50, 1, 40, true, APART}, TILED},      {{1, 50, 130, 1, 64, true, APART}, TILED},
        {{1, 70, 70, 1, 128, true, FUSED}, TILED},      {{1, 70, 70, 1, 160, true, FUSED}, TILED},
        {{1, 77, 77, 2, 8, true, FUSED}, SIMPLE},       {{1, 77, 77, 1, 512, true, FUSED}, WIDE_128},
        {{1, 140, 140, 1, 192, true, FUSED}, WIDE_128}, {{1, 70, 140, 1, 512, true, APART}, WIDE_64},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK(shape_near(&cases[i].s, cases[i].variant, i < 2, i));
}

/* Four images whose keys are those of two. */
TEST(attention_takes_keys_and_values_by_index) {
    static const int dims[] = {12, 40, 64, 512};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        struct shape s = {4, 17, 77, 1, dims[i], false, APART};
        struct input in;
        open_input(&in, &s, types[i % 2], 2, 2, 40 + i);
        in.index = (int32_t *)want_memory(4 * sizeof(int32_t));
        in.index[0] = 1, in.index[1] = 0, in.index[2] = 0, in.index[3] = 1;
        CHECK(near(&in, DEFAULT, bounds[i % 2]));
        close_input(&in);
    }
}

/* The same image alone, and at each place of a batch of 2, 3 and 8: the same bits. */
TEST(attention_gives_the_same_bits_in_any_batch) {
    static const struct {
        int rows, length, heads, dim;
    } shapes[] = {{70, 77, 2, 40}, {33, 90, 1, 64}, {20, 49, 1, 80},
                  {9, 70, 1, 160}, {9, 70, 1, 512}, {5, 40, 1, 12}};
    static const int ns[] = {2, 3, 8};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct shape s = {1, shapes[i].rows, shapes[i].length, shapes[i].heads, shapes[i].dim, false, APART};
        struct input one;
        open_input(&one, &s, types[i % 2], 3, 1, 90 + i);
        size_t w = width(&one), image = (size_t)s.rows * w, kv = (size_t)s.length * w;
        uint16_t *alone = (uint16_t *)want_memory(image * 2), *all = (uint16_t *)want_memory(8 * image * 2);
        CHECK(run(&one, DEFAULT, alone));
        for (int k = 0; k < 3; k++) {
            if (ns[k] == 8 && i > 0 && !gpu_real()) continue;
            struct input many;
            s.n = ns[k];
            open_input(&many, &s, types[i % 2], 3, s.n, 900 + i);
            int place = k == 0 ? 1 : k == 1 ? 0 : 5; /* and once more, at the end */
            for (int at = place; at<s.n; at += s.n - 1 - place> 0 ? s.n - 1 - place : 1) {
                memcpy(many.q + (size_t)at * image, one.q, image * sizeof(float));
                memcpy(many.k + (size_t)at * kv, one.k, kv * sizeof(float));
                memcpy(many.v + (size_t)at * kv, one.v, kv * sizeof(float));
            }
            CHECK(run(&many, DEFAULT, all));
            CHECK_MSG(memcmp(all + (size_t)place * image, alone, image * 2) == 0,
                      "head size %d, place %d of %d", s.dim, place, s.n);
            CHECK_MSG(memcmp(all + (size_t)(s.n - 1) * image, alone, image * 2) == 0,
                      "head size %d, last of %d", s.dim, s.n);
            close_input(&many);
        }
        free(all);
        free(alone);
        close_input(&one);
    }
}

/* Scores of ±10,000: without the running maximum 2^x is infinite; with it, a row is its best key's value. The
 * best key comes late for some rows and first for others, so that the maximum rises in both ways. */
TEST(attention_of_scores_far_apart) {
    static const struct {
        int dim;
        enum variant variant;
    } cases[] = {{12, SIMPLE}, {40, TILED}, {64, TILED}, {160, TILED}, {512, WIDE_128}, {512, WIDE_64}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct shape s = {1, 20, 300, 1, cases[i].dim, false, APART};
        struct input in;
        open_input(&in, &s, types[i % 2], 1, 1, 300 + i);
        for (int row = 0; row < s.rows;
             row++) /* along the first axis: key j scores row's sign · 10000 · (its rank) */
            for (int d = 0; d < s.dim; d++)
                in.q[row * s.dim + d] = d == 0 ? (row % 2 ? 100.0f : -100.0f) : 0.0f;
        for (int j = 0; j < s.length; j++)
            for (int d = 0; d < s.dim; d++)
                in.k[j * s.dim + d] = d == 0 ? (float)(j - 150) * 0.5f : 0.0f; /* 50 apart: one key has all */
        in.scale = 10000.0f / (100.0f * 75.0f);
        uint16_t *bits = (uint16_t *)want_memory((size_t)(s.rows * s.dim) * 2);
        CHECK(run(&in, cases[i].variant, bits));
        for (int row = 0; row < s.rows; row++) {
            int best = row % 2 ? s.length - 1 : 0;
            for (int d = 0; d < s.dim; d++)
                CHECK_MSG(bits[row * s.dim + d] == gpu_bits(in.type, in.v[best * s.dim + d]),
                          "%s, row %d, value %d", variant_names[cases[i].variant], row, d);
        }
        free(bits);
        close_input(&in);
    }
}

TEST(attention_with_a_scale_that_is_not_positive) {
    for (int k = 0; k < 2; k++) {
        struct shape s = {1, 10, 50, 2, 40, false, APART};
        struct input in;
        open_input(&in, &s, KX_STORE_F16, 2, 1, 7);
        in.scale = k ? 0.0f : -0.3f;
        CHECK(near(&in, DEFAULT, bounds[0]));
        close_input(&in);
    }
}

TEST(a_nan_in_a_query_spoils_its_row_and_no_other) {
    static const int dims[] = {12, 40, 64, 512};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        struct shape s = {1, 20, 50, 1, dims[i], false, APART};
        struct input in;
        open_input(&in, &s, types[i % 2], 1, 1, 60 + i);
        in.q[7 * s.dim + 3] = NAN;
        uint16_t *bits = (uint16_t *)want_memory((size_t)(s.rows * s.dim) * 2);
        CHECK(run(&in, DEFAULT, bits));
        for (int j = 0; j < s.rows * s.dim; j++)
            CHECK((isnan(gpu_unbits(in.type, bits[j])) != 0) == (j / s.dim == 7));
        free(bits);
        close_input(&in);
    }
}

TEST(attention_says_no_to_what_it_cannot_do) {
    struct kx_attention a;
    memset(&a, 0, sizeof a);
    a.n = a.rows = a.length = a.heads = 1;
    a.scale = 1;
    a.dim = 513;
    CHECK(kx_cuda_attention(NULL, KX_STORE_F16, &a) == KX_CUDA_NO);
    a.dim = 0;
    CHECK(kx_cuda_attention(NULL, KX_STORE_F16, &a) == KX_CUDA_NO);
    a.dim = 168;
    CHECK(kx_cuda_attention_tiled(NULL, KX_STORE_F16, &a) == KX_CUDA_NO);
    CHECK(kx_cuda_attention_wide(NULL, KX_STORE_F16, &a, 32) == KX_CUDA_NO);
    a.dim = 12;
    CHECK(kx_cuda_attention_tiled(NULL, KX_STORE_F16, &a) == KX_CUDA_NO);
    CHECK(kx_cuda_attention_wide(NULL, KX_STORE_F16, &a, 128) == KX_CUDA_NO);
    a.dim = 40;
    a.rows = 0;
    CHECK(kx_cuda_attention(NULL, KX_STORE_F16, &a) == cudaErrorInvalidValue);
}

/* The shapes of the models, on a device: the shim would take minutes. Every 17th row is compared. */
static bool models_near(enum variant variant) {
    static const struct shape shapes[] = {
        {2, 4096, 4096, 8, 40, false, FUSED},  {2, 4096, 77, 8, 40, false, APART},
        {3, 1024, 1024, 8, 80, false, FUSED},  {3, 256, 256, 8, 160, false, FUSED},
        {3, 64, 64, 8, 160, false, FUSED},     {1, 2304, 2304, 10, 64, false, FUSED},
        {2, 1024, 1024, 20, 64, false, FUSED}, {2, 4096, 77, 10, 64, false, APART},
        {8, 77, 77, 12, 64, true, FUSED},      {1, 4096, 4096, 1, 512, false, APART},
    };
    bool fine = true;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int t = 0; t < 2; t++) {
            if (variant == SM90 && shapes[i].dim > 160) continue;
            struct input in;
            open_input(&in, &shapes[i], types[t], 2, shapes[i].n, i);
            in.every = 17;
            fine = near(&in, variant, bounds[t]) && fine;
            close_input(&in);
        }
    return fine;
}

TEST(attention_of_the_models) {
    if (!gpu_real()) SKIP("on a device: minutes on the shim");
    CHECK(models_near(DEFAULT));
}

/* Hopper's variant: here with its instructions emulated, on a device where it is one and is built for it. */
TEST(attention_sm90_is_like_the_others) {
    static const struct shape shapes[] = {
        {1, 130, 77, 2, 40, false, APART},  {1, 70, 300, 1, 64, false, APART},
        {2, 140, 140, 1, 64, true, FUSED},  {1, 9, 129, 2, 80, false, APART},
        {1, 65, 385, 1, 128, false, APART}, {1, 20, 200, 1, 160, false, APART},
        {1, 200, 200, 1, 40, true, FUSED},  {1, 1, 1, 1, 80, false, APART},
    };
    if (!sm90()) SKIP("no device of capability 9.0, or not built for it");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) CHECK(shape_near(&shapes[i], SM90, false, i));
    struct shape s = {4, 17, 150, 1, 64, false, APART};
    struct input in;
    open_input(&in, &s, KX_STORE_BF16, 2, 2, 5);
    in.index = (int32_t *)want_memory(4 * sizeof(int32_t));
    in.index[0] = 1, in.index[1] = 0, in.index[2] = 0, in.index[3] = 1;
    CHECK(near(&in, SM90, bounds[1]));
    close_input(&in);
    if (gpu_real()) CHECK(models_near(SM90));
}
