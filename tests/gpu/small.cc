/* The small ops (kernels/cuda/op_small.cu): against doubles where something is computed, bit by bit where
 * values are only moved. Every op with channels that are and are not multiples of 8. An op that takes rows
 * gives a row the same bits wherever it lies: rows repeat in the inputs, and their results must too. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/launch.h"
#include "tests/gpu/gpu.h"

static const enum kx_store types[] = {KX_STORE_F16, KX_STORE_BF16};
static const double bounds[] = {2e-7, 1e-5};
static const int widths[] = {1, 3, 8, 13, 40, 64, 320, 1284};
enum { WIDTHS = sizeof widths / sizeof *widths };

/* A tensor of n values on both sides: random, or poisoned where seed is 0. */
struct both {
    size_t n;
    enum kx_store type;
    float *v;       /* the host's, rounded */
    uint16_t *bits; /* the same */
    void *device;
};

static void *host(size_t bytes) {
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p) abort();
    return p;
}

static struct both both_of(enum kx_store type, size_t n, uint64_t seed) {
    struct both b = {n, type, (float *)host(n * sizeof(float)), (uint16_t *)host(n * 2), NULL};
    if (seed) {
        struct gpu_random r = gpu_random_of(seed);
        for (size_t i = 0; i < n; i++) {
            float v = 2 * gpu_normal(&r);
            b.bits[i] = gpu_bits(type, v);
            b.v[i] = gpu_round(type, v);
        }
        b.device = gpu_upload(b.bits, n * 2);
    } else {
        b.device = gpu_poisoned(n * 2);
    }
    return b;
}

static void both_get(struct both *b) {
    gpu_download(b->bits, b->device, b->n * 2);
    for (size_t i = 0; i < b->n; i++) b->v[i] = gpu_unbits(b->type, b->bits[i]);
}

static void both_free(struct both *b) {
    gpu_free(b->device);
    free(b->v);
    free(b->bits);
}

static double silu(double v) {
    return v / (1 + exp(-v));
}
static double gelu(double v) {
    return 0.5 * v * (1 + erf(v / sqrt(2.0)));
}

/* ---- moved */

TEST(concat_lays_channels_side_by_side) {
    static const struct {
        int ca, cb, pixels;
        bool device_only;
    } cases[] = {{8, 8, 1, false},     {1, 1, 5, false},     {320, 640, 9, false},   {40, 3, 17, false},
                 {3, 40, 17, false},   {64, 8, 300, false},  {1280, 1280, 3, false}, {5, 2, 1000, false},
                 {8, 16, 70000, true}, {1, 2, 3000000, true}};
    for (size_t q = 0; q < sizeof cases / sizeof *cases; q++) {
        if (cases[q].device_only && !gpu_real()) continue;
        size_t ca = (size_t)cases[q].ca, cb = (size_t)cases[q].cb, pixels = (size_t)cases[q].pixels;
        struct both a = both_of(types[q % 2], pixels * ca, 1), b = both_of(types[q % 2], pixels * cb, 2);
        struct both y = both_of(types[q % 2], pixels * (ca + cb), 0);
        GPU_OK(kx_cuda_concat(NULL, types[q % 2], a.device, cases[q].ca, b.device, cases[q].cb, y.device,
                              cases[q].pixels));
        both_get(&y);
        for (size_t p = 0; p < pixels; p++) {
            CHECK(memcmp(y.bits + p * (ca + cb), a.bits + p * ca, ca * 2) == 0);
            CHECK(memcmp(y.bits + p * (ca + cb) + ca, b.bits + p * cb, cb * 2) == 0);
        }
        both_free(&a);
        both_free(&b);
        both_free(&y);
    }
}

TEST(upsample_doubles_every_pixel) {
    static const struct {
        int n, h, w, c;
    } cases[] = {{1, 1, 1, 8},    {2, 3, 5, 8},  {1, 4, 1, 3},   {3, 1, 7, 320},
                 {1, 5, 3, 1284}, {33, 2, 2, 1}, {2, 2, 600, 16}};
    for (size_t q = 0; q < sizeof cases / sizeof *cases; q++) {
        int n = cases[q].n, h = cases[q].h, w = cases[q].w;
        size_t c = (size_t)cases[q].c;
        struct both x = both_of(types[q % 2], (size_t)(n * h * w) * c, 3),
                    y = both_of(types[q % 2], 4 * x.n, 0);
        GPU_OK(kx_cuda_upsample(NULL, types[q % 2], x.device, n, h, w, cases[q].c, y.device));
        both_get(&y);
        for (int i = 0; i < n; i++)
            for (int r = 0; r < 2 * h; r++)
                for (int k = 0; k < 2 * w; k++)
                    CHECK(memcmp(y.bits + (size_t)((i * 2 * h + r) * 2 * w + k) * c,
                                 x.bits + (size_t)((i * h + r / 2) * w + k / 2) * c, c * 2) == 0);
        both_free(&x);
        both_free(&y);
    }
}

TEST(pick_takes_each_image_s_row) {
    for (int q = 0; q < WIDTHS; q++) {
        enum { N = 5, POSITIONS = 11 };
        static const int32_t at[N] = {10, 0, 3, 3, 7};
        size_t c = (size_t)widths[q];
        struct both x = both_of(types[q % 2], N * POSITIONS * c, 4), y = both_of(types[q % 2], N * c, 0);
        int32_t *device = (int32_t *)gpu_upload(at, sizeof at);
        GPU_OK(kx_cuda_gather(NULL, types[q % 2], x.device, device, N, POSITIONS, widths[q], y.device));
        both_get(&y);
        for (size_t i = 0; i < N; i++)
            CHECK(memcmp(y.bits + i * c, x.bits + (i * POSITIONS + (size_t)at[i]) * c, c * 2) == 0);
        gpu_free(device);
        both_free(&x);
        both_free(&y);
    }
}

TEST(conversions_round_to_nearest_even_and_back_exactly) {
    static const size_t ns[] = {1, 7, 8, 1024, 8191, 8193, 20001};
    for (size_t q = 0; q < sizeof ns / sizeof *ns; q++)
        for (int t = 0; t < 2; t++)
            for (size_t shift = 0; shift < 2; shift++) { /* 1: addresses that are not aligned */
                size_t n = ns[q], room = n + shift;
                float *x = (float *)host(room * sizeof *x);
                struct gpu_random r = gpu_random_of(5);
                for (size_t i = 0; i < room; i++) x[i] = 3 * gpu_normal(&r);
                if (n > 8) { /* ties, subnormals, the largest, what is not finite */
                    static const float odd[] = {1.00048828125f, 1.00146484375f, 6e-8f,    3e-8f,
                                                65504,          65520,          INFINITY, 0.0f};
                    memcpy(x + shift, odd, sizeof odd);
                }
                float *from = (float *)gpu_upload(x, room * sizeof *x);
                struct both y = both_of(types[t], room, 0);
                GPU_OK(kx_cuda_from_f32(NULL, types[t], from + shift, (uint16_t *)y.device + shift, n));
                both_get(&y);
                for (size_t i = shift; i < room; i++)
                    CHECK_MSG(y.bits[i] == gpu_bits(types[t], x[i]),
                              "n %zu, type %d, shift %zu: value %zu, %g", n, types[t], shift, i,
                              (double)x[i]);
                float *to = (float *)gpu_poisoned(room * sizeof *x), *back = (float *)host(room * sizeof *x);
                GPU_OK(kx_cuda_to_f32(NULL, types[t], (uint16_t *)y.device + shift, to + shift, n));
                gpu_download(back, to, room * sizeof *x);
                for (size_t i = shift; i < room; i++) CHECK(back[i] == gpu_unbits(types[t], y.bits[i]));
                gpu_free(to);
                gpu_free(from);
                both_free(&y);
                free(back);
                free(x);
            }
    GPU_OK(kx_cuda_from_f32(NULL, KX_STORE_F16, NULL, NULL, 0));
}

/* ---- computed */

TEST(timestep_is_the_sinusoid_of_diffusers) {
    static const float at[] = {999, 0, 1, 500.5f, 21.25f, 999};
    enum { N = sizeof at / sizeof *at };
    static const int dims[] = {2, 6, 32, 320, 1026};
    float *device = (float *)gpu_upload(at, sizeof at);
    for (size_t q = 0; q < sizeof dims / sizeof *dims; q++)
        for (int flags = 0; flags < 4; flags++) {
            int dim = dims[q], half = dim / 2, t = flags & 1;
            bool flip = flags & 2;
            float shift = flags == 1 && dim > 2 ? 1.0f : 0.0f;
            struct both y = both_of(types[t], N * (size_t)dim, 0);
            double *want = (double *)host(y.n * sizeof *want);
            GPU_OK(kx_cuda_timestep(NULL, types[t], device, N, dim, flip, shift, y.device));
            both_get(&y);
            for (int i = 0; i < N; i++)
                for (int k = 0; k < half; k++) {
                    double x = (double)at[i] * exp(-log(10000.0) * k / (half - shift));
                    want[i * dim + (flip ? k : half + k)] = cos(x);
                    want[i * dim + (flip ? half + k : k)] = sin(x);
                }
            double e = gpu_nmse(want, y.v, y.n);
            CHECK_MSG(e < bounds[t], "dim %d, type %d: NMSE %g", dim, types[t], e);
            CHECK(memcmp(y.bits, y.bits + 5 * dim, (size_t)dim * 2) == 0);
            free(want);
            both_free(&y);
        }
    gpu_free(device);
}

TEST(add_silu_of_all_pairs_of_rows) {
    for (int q = 0; q < WIDTHS; q++)
        for (int nb = 0; nb < 4; nb += 3) { /* 0: no b */
            enum { NA = 4 };
            int t = (q + nb) % 2, c = widths[q], rows = nb ? nb : 1;
            struct both a = both_of(types[t], (size_t)(NA * c), 6),
                        b = both_of(types[t], (size_t)(rows * c), 7);
            struct both y = both_of(types[t], (size_t)(NA * rows * c), 0);
            double *want = (double *)host(y.n * sizeof *want);
            GPU_OK(kx_cuda_add_silu(NULL, types[t], a.device, NA, nb ? b.device : NULL, rows, c, y.device));
            both_get(&y);
            for (int i = 0; i < NA; i++)
                for (int j = 0; j < rows; j++)
                    for (int k = 0; k < c; k++)
                        want[(i * rows + j) * c + k] =
                            silu((double)a.v[i * c + k] + (nb ? (double)b.v[j * c + k] : 0.0));
            double e = gpu_nmse(want, y.v, y.n);
            CHECK_MSG(e < bounds[t], "c %d, nb %d, type %d: NMSE %g", c, nb, types[t], e);
            free(want);
            both_free(&a);
            both_free(&b);
            both_free(&y);
        }
}

TEST(embed_adds_tokens_and_places) {
    enum { N = 3, POSITIONS = 7, TOKENS = 20 };
    int32_t ids[N * POSITIONS];
    for (int i = 0; i < N * POSITIONS; i++) ids[i] = (i * 13 + 19) % TOKENS;
    int32_t *device = (int32_t *)gpu_upload(ids, sizeof ids);
    for (int q = 0; q < WIDTHS; q++) {
        int t = q % 2, c = widths[q];
        struct both tokens = both_of(types[t], (size_t)(TOKENS * c), 8);
        struct both places = both_of(types[t], (size_t)(POSITIONS * c), 9);
        struct both y = both_of(types[t], (size_t)(N * POSITIONS * c), 0);
        GPU_OK(
            kx_cuda_embed(NULL, types[t], tokens.device, places.device, device, N, POSITIONS, c, y.device));
        both_get(&y);
        for (int i = 0; i < N * POSITIONS; i++)
            for (int k = 0; k < c; k++)
                CHECK(y.bits[i * c + k] ==
                      gpu_bits(types[t], tokens.v[ids[i] * c + k] + places.v[i % POSITIONS * c + k]));
        both_free(&tokens);
        both_free(&places);
        both_free(&y);
    }
    gpu_free(device);
}

TEST(geglu_gates_the_first_half) {
    static const struct {
        int rows, inner;
        bool device_only;
    } cases[] = {{1, 1, false},    {1, 8, false},    {5, 13, false},   {77, 40, false},
                 {3, 1280, false}, {2, 1285, false}, {70000, 8, true}, {4096, 2560, true}};
    for (size_t q = 0; q < sizeof cases / sizeof *cases; q++) {
        if (cases[q].device_only && !gpu_real()) continue;
        int t = (int)q % 2, rows = cases[q].rows, inner = cases[q].inner;
        struct both x = both_of(types[t], (size_t)rows * 2 * (size_t)inner, 10);
        struct both y = both_of(types[t], (size_t)rows * (size_t)inner, 0);
        double *want = (double *)host(y.n * sizeof *want);
        GPU_OK(kx_cuda_geglu(NULL, types[t], x.device, rows, inner, y.device));
        both_get(&y);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t k = 0; k < inner; k++)
                want[i * inner + k] =
                    (double)x.v[i * 2 * inner + k] * gelu((double)x.v[(i * 2 + 1) * inner + k]);
        double e = gpu_nmse(want, y.v, y.n);
        CHECK_MSG(e < bounds[t], "%d rows of %d, type %d: NMSE %g", rows, inner, types[t], e);
        free(want);
        both_free(&x);
        both_free(&y);
    }
}

/* All of bias, time_proj, act, residual that `with` says, y apart, in x or in the residual. */
static void finish_one(int t, int n, int pixels, int c, enum kx_act act, int with, int place, bool conv) {
    size_t all = (size_t)n * (size_t)pixels * (size_t)c, uc = (size_t)c;
    size_t stride = with & 8 ? uc + 3 : (uc + 7) / 8 * 8;
    struct both x = both_of(types[t], all, 11), add = both_of(types[t], all, 12),
                y = both_of(types[t], all, 0);
    struct both time_proj = both_of(types[t], 3 * stride, 13);
    int32_t index[40];
    float *bias = (float *)host(uc * sizeof *bias);
    struct gpu_random r = gpu_random_of(14);
    for (size_t k = 0; k < uc; k++) bias[k] = gpu_normal(&r);
    for (int i = 0; i < n; i++) index[i] = (2 * i + 1) % 3;
    float *dbias = (float *)gpu_upload(bias, uc * sizeof *bias);
    int32_t *dindex = (int32_t *)gpu_upload(index, sizeof(int32_t) * (size_t)n);
    bool with_bias = with & 1, with_add = with & 2, with_shift = conv && (with & 4),
         by_index = n > 3 || with & 16;
    double *want = (double *)host(all * sizeof *want);
    for (int i = 0; i < n; i++)
        for (int p = 0; p < pixels; p++)
            for (size_t k = 0; k < uc; k++) {
                size_t at = (size_t)(i * pixels + p) * uc + k;
                double v = x.v[at];
                if (with_bias) v += bias[k];
                if (with_shift) v += time_proj.v[(size_t)(by_index ? index[i] : i) * stride + k];
                if (act == KX_ACT_SILU) v = silu(v);
                if (act == KX_ACT_GELU) v = gelu(v);
                if (act == KX_ACT_QUICK_GELU) v = v / (1 + exp(-1.702 * v));
                if (with_add) v += add.v[at];
                want[at] = v;
            }
    void *to = place == 1 ? x.device : place == 2 && with_add ? add.device : y.device;
    struct kx_rows rows = {with_shift ? time_proj.device : NULL, stride, by_index ? dindex : NULL};
    cudaError_t rc = conv ? kx_cuda_finish_conv(NULL, types[t], x.device, with_bias ? dbias : NULL, &rows,
                                                with_add ? add.device : NULL, to, n, pixels, c)
                          : kx_cuda_finish(NULL, types[t], x.device, with_bias ? dbias : NULL, act,
                                           with_add ? add.device : NULL, to, (int64_t)n * pixels, c);
    GPU_OK(rc);
    struct both *got = to == x.device ? &x : to == add.device ? &add : &y;
    both_get(got);
    double e = gpu_nmse(want, got->v, all);
    CHECK_MSG(e < bounds[t], "%d images of %d, c %d, act %d, with %d, place %d, conv %d, type %d: NMSE %g", n,
              pixels, c, act, with, place, conv, types[t], e);
    gpu_free(dbias);
    gpu_free(dindex);
    free(bias);
    free(want);
    both_free(&x);
    both_free(&add);
    both_free(&y);
    both_free(&time_proj);
}

TEST(finish_adds_bias_acts_and_adds_the_residual) {
    for (int q = 0; q < WIDTHS; q++)
        for (int act = KX_ACT_NONE; act <= KX_ACT_QUICK_GELU; act++)
            finish_one((q + act) % 2, 1, 5 + q, widths[q], (enum kx_act)act, q + act, (q + 2 * act) % 3,
                       false);
    CHECK(kx_cuda_finish(NULL, KX_STORE_F16, NULL, NULL, KX_ACT_GEGLU, NULL, NULL, 1, 8) ==
          cudaErrorInvalidValue);
}

/* Each value by itself, from where the sigmoid is nothing to where it is 1. */
TEST(activations_are_right_far_from_zero_too) {
    enum { N = 1600, C = 16 };
    for (int t = 0; t < 2; t++)
        for (int act = KX_ACT_SILU; act <= KX_ACT_QUICK_GELU; act++) {
            struct both x = both_of(types[t], N, 1), y = both_of(types[t], N, 0);
            for (int i = 0; i < N; i++) {
                float v = 0.0125f * (float)(i - N / 2);
                if (i < 8) v = i % 2 ? 60000.0f : -60000.0f;
                x.v[i] = gpu_round(types[t], v);
                x.bits[i] = gpu_bits(types[t], v);
            }
            gpu_write(x.device, x.bits, N * 2);
            GPU_OK(
                kx_cuda_finish(NULL, types[t], x.device, NULL, (enum kx_act)act, NULL, y.device, N / C, C));
            both_get(&y);
            for (int i = 0; i < N; i++) {
                double v = x.v[i], want = act == KX_ACT_SILU   ? silu(v)
                                          : act == KX_ACT_GELU ? gelu(v)
                                                               : v / (1 + exp(-1.702 * v));
                double error = fabs(y.v[i] - want), half = t ? 1.0 / 256 : 1.0 / 2048;
                CHECK_MSG(error <= half * fabs(want) * 1.01 + 4e-7, "act %d, type %d: of %g %g, not %g", act,
                          types[t], v, (double)y.v[i], want);
            }
            both_free(&x);
            both_free(&y);
        }
}

TEST(finish_conv_adds_each_image_s_shift) {
    for (int q = 0; q < WIDTHS; q++)
        for (int with = 0; with < 32; with += q % 3 + 1)
            finish_one((q + with) % 2, 1 + with % 3, 3 + q, widths[q], KX_ACT_NONE, with, with % 3, true);
    finish_one(0, 33, 9, 16, KX_ACT_NONE, 7, 0, true);
    finish_one(1, 33, 4, 5, KX_ACT_NONE, 4, 0, true);
    CHECK(kx_cuda_finish_conv(NULL, KX_STORE_F16, NULL, NULL, NULL, NULL, NULL, 0, 8, 8) ==
          cudaErrorInvalidValue);
    if (gpu_real()) finish_one(0, 2, 70000, 8, KX_ACT_NONE, 7, 0, true);
}

TEST(to_rgb_clamps_rounds_half_to_even_and_finds_nan) {
    static const struct { int n, pixels; } cases[] = {{1, 1}, {3, 7}, {2, 8}, {33, 5}, {2, 2731}, {1, 40000}};
    for (size_t q = 0; q < sizeof cases / sizeof *cases; q++)
        for (int t = 0; t < 2; t++)
            for (int what = 1; what < 4; what++) { /* 1: rgb, 2: bytes, 3: both */
                int n = cases[q].n;
                size_t image = (size_t)cases[q].pixels * 3, all = (size_t)n * image;
                struct both x = both_of(types[t], all, 15);
                float *rgb = (float *)gpu_poisoned(all * sizeof *rgb),
                      *got = (float *)host(all * sizeof *got);
                uint8_t *bytes = (uint8_t *)gpu_poisoned(all), *got8 = (uint8_t *)host(all);
                int32_t *finite = (int32_t *)gpu_poisoned(sizeof(int32_t) * (size_t)n), flags[40];
                for (size_t i = 0; i < all; i++) { /* half of them within the range */
                    x.v[i] = gpu_round(types[t], i % 2 ? x.v[i] * 0.3f : x.v[i]);
                    if (i % 11 == 5) x.v[i] = i % 2 ? INFINITY : -INFINITY; /* as large as any */
                    if (n > 1 && i == image + image / 2) x.v[i] = NAN;
                    x.bits[i] = gpu_bits(types[t], x.v[i]);
                }
                gpu_write(x.device, x.bits, all * 2);
                GPU_OK(kx_cuda_to_rgb(NULL, types[t], x.device, n, cases[q].pixels, what & 1 ? rgb : NULL,
                                      what & 2 ? bytes : NULL, finite));
                gpu_download(flags, finite, sizeof(int32_t) * (size_t)n);
                for (int i = 0; i < n; i++) CHECK(flags[i] == (i == 1 ? 0 : 1));
                if (what & 1) gpu_download(got, rgb, all * sizeof *got);
                if (what & 2) gpu_download(got8, bytes, all);
                for (size_t i = 0; i < all; i++) {
                    float v = x.v[i] * 0.5f + 0.5f;
                    v = v < 0 ? 0 : v > 1 ? 1 : v;
                    if (what & 1) CHECK(isnan(v) ? isnan(got[i]) : got[i] == v);
                    if (what & 2) CHECK(got8[i] == (isnan(v) ? 0 : (uint8_t)rint((double)v * 255)));
                }
                gpu_free(rgb);
                gpu_free(bytes);
                gpu_free(finite);
                free(got);
                free(got8);
                both_free(&x);
            }
    /* halves: v = (2k + 1) / 510 has none that f16 can hold but 0.5 itself: 127.5 goes to 128 */
    uint16_t zero = 0, eight[8 * 3] = {zero};
    uint16_t *device = (uint16_t *)gpu_upload(eight, sizeof eight);
    uint8_t *bytes = (uint8_t *)gpu_poisoned(24), got[24];
    int32_t *finite = (int32_t *)gpu_poisoned(4);
    GPU_OK(kx_cuda_to_rgb(NULL, KX_STORE_F16, device, 1, 8, NULL, bytes, finite));
    gpu_download(got, bytes, sizeof got);
    for (int i = 0; i < 24; i++) CHECK(got[i] == 128);
    gpu_free(device);
    gpu_free(bytes);
    gpu_free(finite);
}

TEST(small_ops_refuse_what_is_no_shape) {
    CHECK(kx_cuda_concat(NULL, KX_STORE_F16, NULL, 0, NULL, 8, NULL, 1) == cudaErrorInvalidValue);
    CHECK(kx_cuda_timestep(NULL, KX_STORE_F16, NULL, 1, 7, true, 0, NULL) == cudaErrorInvalidValue);
    CHECK(kx_cuda_add_silu(NULL, KX_STORE_F16, NULL, 1, NULL, 2, 8, NULL) == cudaErrorInvalidValue);
    CHECK(kx_cuda_geglu(NULL, KX_STORE_F16, NULL, 0, 8, NULL) == cudaErrorInvalidValue);
    CHECK(kx_cuda_upsample(NULL, KX_STORE_F16, NULL, 1, 0, 4, 8, NULL) == cudaErrorInvalidValue);
    CHECK(kx_cuda_to_rgb(NULL, KX_STORE_F16, NULL, 0, 4, NULL, NULL, NULL) == cudaErrorInvalidValue);
}
