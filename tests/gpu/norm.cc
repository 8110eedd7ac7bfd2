/* GroupNorm and LayerNorm (kernels/cuda/op_norm.cu) against doubles: every way through the kernels (in shared
 * memory, in pieces, folded, odd), means far from zero, and the same bits in any batch. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/launch.h"
#include "tests/gpu/gpu.h"

enum look { PLAIN, FAR, OUTLIER, CONSTANT };

struct group_case {
    int n, pixels, c, groups;
    bool silu;
    enum look look;
    bool device_only; /* too long for the shim */
};

/* The comments say which way of the launcher a case is for: launchers choose by the shape. */
static const struct group_case group_cases[] = {
    /* the slab in shared memory */
    {1, 1, 8, 1, false, PLAIN, false},
    {2, 1, 320, 32, true, PLAIN, false},
    {3, 64, 320, 32, true, PLAIN, false},
    {1, 49, 40, 4, false, PLAIN, false},
    {2, 9, 64, 64, true, PLAIN, false},
    {2, 9, 64, 1, true, PLAIN, false},
    {33, 5, 16, 2, true, PLAIN, false},
    {1, 4, 2560, 32, true, PLAIN, false},
    {1, 3, 2048, 1, false, PLAIN, false},
    {1, 256, 72, 3, true, PLAIN, false},
    {1, 1023, 40, 1, true, PLAIN, false},
    {1, 300, 80, 8, false, FAR, false},
    {1, 300, 80, 8, true, OUTLIER, false},
    {2, 70, 32, 8, false, CONSTANT, false},
    /* in pieces */
    {2, 1100, 80, 2, true, PLAIN, false},
    {1, 1025, 40, 1, false, PLAIN, false},
    {1, 2600, 16, 4, true, PLAIN, false},
    {1, 4096, 24, 3, false, FAR, false},
    {1, 2600, 16, 4, false, OUTLIER, false},
    {1, 1100, 80, 2, false, CONSTANT, false},
    {1, 1793, 1088, 8, true, PLAIN, false}, /* more pixels a thread */
    /* and folded */
    {1, 2113, 240, 8, true, PLAIN, false},
    {1, 2113, 240, 8, false, FAR, false},
    /* value by value */
    {1, 1, 1, 1, false, PLAIN, false},
    {2, 77, 30, 3, true, PLAIN, false},
    {2, 33, 33, 33, false, PLAIN, false},
    {1, 5, 2559, 1, true, PLAIN, false},
    {1, 3, 2560, 1, true, PLAIN, false},
    {1, 9000, 4, 1, false, FAR, false},
    {1, 9000, 4, 2, true, OUTLIER, false},
    {33, 3, 6, 2, false, PLAIN, false},
    /* the shapes of the models */
    {3, 4096, 320, 32, true, PLAIN, true},
    {2, 16384, 320, 32, true, FAR, true},
    {2, 4096, 960, 32, true, PLAIN, true},
    {2, 1024, 640, 32, false, PLAIN, true},
    {2, 1024, 1920, 32, true, FAR, true},
    {2, 1024, 2560, 32, true, PLAIN, true},
    {33, 256, 1280, 32, true, PLAIN, true},
    {1, 1048576, 128, 32, true, FAR, true},
    {1, 262144, 256, 32, true, PLAIN, true},
    {1, 16384, 512, 32, false, OUTLIER, true},
};

static void fill(struct gpu_random *r, enum kx_store type, enum look look, float *x, int pixels, int c) {
    for (int p = 0; p < pixels; p++)
        for (int k = 0; k < c; k++) {
            float v = gpu_normal(r);
            if (look == FAR) v = 100.0f + 0.1f * v;
            if (look == OUTLIER && p == 0) v += 3000.0f;
            if (look == CONSTANT) v = 3.25f;
            x[(size_t)p * (size_t)c + (size_t)k] = gpu_round(type, v);
        }
}

static void group_reference(const struct group_case *t, const float *x, const float *gamma, const float *beta,
                            float eps, double *y) {
    int each = t->c / t->groups;
    for (int g = 0; g < t->groups; g++) {
        double sum = 0, square = 0, count = (double)t->pixels * each;
        for (int p = 0; p < t->pixels; p++)
            for (int k = g * each; k < (g + 1) * each; k++) sum += x[(size_t)p * (size_t)t->c + (size_t)k];
        double mean = sum / count;
        for (int p = 0; p < t->pixels; p++)
            for (int k = g * each; k < (g + 1) * each; k++) {
                double d = x[(size_t)p * (size_t)t->c + (size_t)k] - mean;
                square += d * d;
            }
        double inv = 1 / sqrt(square / count + eps);
        for (int p = 0; p < t->pixels; p++)
            for (int k = g * each; k < (g + 1) * each; k++) {
                size_t i = (size_t)p * (size_t)t->c + (size_t)k;
                double v = (x[i] - mean) * inv * gamma[k] + beta[k];
                y[i] = t->silu ? v / (1 + exp(-v)) : v;
            }
    }
}

/* Runs one call on images that lie at `shift` values from an aligned address. x, y: values on the host. */
static void group_run(const struct group_case *t, enum kx_store type, const float *x, const float *gamma,
                      const float *beta, float eps, bool in_place, int shift, bool cluster, float *y) {
    size_t values = (size_t)t->n * (size_t)t->pixels * (size_t)t->c, room = values + (size_t)shift;
    uint16_t *bits = (uint16_t *)calloc(room, sizeof *bits);
    for (size_t i = 0; i < values; i++) bits[i + (size_t)shift] = gpu_bits(type, x[i]);
    void *dx = gpu_upload(bits, room * 2), *dy = in_place ? dx : gpu_poisoned(room * 2);
    float *dg = (float *)gpu_upload(gamma, (size_t)t->c * 4),
          *db = (float *)gpu_upload(beta, (size_t)t->c * 4);
    size_t bytes = kx_cuda_group_norm_workspace(t->n, t->pixels, t->c, t->groups);
    void *work = bytes ? gpu_poisoned(bytes) : NULL;
    void *from = (uint16_t *)dx + shift, *to = (uint16_t *)dy + shift;
    if (cluster)
        GPU_OK(kx_cuda_group_norm_cluster(NULL, type, from, dg, db, to, t->n, t->pixels, t->c, t->groups, eps,
                                          t->silu));
    else
        GPU_OK(kx_cuda_group_norm(NULL, type, from, dg, db, to, t->n, t->pixels, t->c, t->groups, eps,
                                  t->silu, work));
    gpu_download(bits, dy, room * 2);
    for (size_t i = 0; i < values; i++) y[i] = gpu_unbits(type, bits[i + (size_t)shift]);
    gpu_free(work);
    gpu_free(db);
    gpu_free(dg);
    if (!in_place) gpu_free(dy);
    gpu_free(dx);
    free(bits);
}

static const enum kx_store types[] = {KX_STORE_F16, KX_STORE_BF16};
static const double bounds[] = {2e-7, 1e-5};

static void group_one(const struct group_case *t, int q, enum kx_store type, double bound, bool in_place,
                      int shift, bool cluster) {
    size_t image = (size_t)t->pixels * (size_t)t->c, all = (size_t)t->n * image;
    float *x = (float *)malloc(all * sizeof *x), *y = (float *)malloc(all * sizeof *y);
    double *want = (double *)malloc(image * sizeof *want);
    float *gamma = (float *)malloc((size_t)t->c * sizeof *gamma),
          *beta = (float *)malloc((size_t)t->c * sizeof *beta);
    struct gpu_random r = gpu_random_of(10 + (uint64_t)q);
    for (int k = 0; k < t->c; k++) {
        gamma[k] = 1 + 0.3f * gpu_normal(&r);
        beta[k] = 0.3f * gpu_normal(&r);
    }
    for (int i = 0; i < t->n; i++) fill(&r, type, t->look, x + (size_t)i * image, t->pixels, t->c);
    group_run(t, type, x, gamma, beta, 1e-5f, in_place, shift, cluster, y);
    for (int i = 0; i < t->n; i++) {
        group_reference(t, x + (size_t)i * image, gamma, beta, 1e-5f, want);
        double e = gpu_nmse(want, y + (size_t)i * image, image);
        CHECK_MSG(e < bound,
                  "%d images of %d pixels, %d channels, %d groups, look %d, type %d, image %d: NMSE %g", t->n,
                  t->pixels, t->c, t->groups, t->look, type, i, e);
    }
    free(x);
    free(y);
    free(want);
    free(gamma);
    free(beta);
}

TEST(group_norm_of_every_way_and_look) {
    for (size_t q = 0; q < sizeof group_cases / sizeof *group_cases; q++) {
        if (group_cases[q].device_only && !gpu_real()) continue;
        for (int t = 0; t < 2; t++)
            group_one(&group_cases[q], (int)q, types[t], bounds[t], t == (int)q % 2, 0, false);
    }
}

TEST(group_norm_of_addresses_that_are_not_aligned) {
    struct group_case t = {2, 21, 64, 8, true, PLAIN, false};
    group_one(&t, 3, KX_STORE_F16, bounds[0], false, 1, false);
    struct group_case u = {1, 1100, 80, 2, false, PLAIN, false};
    group_one(&u, 4, KX_STORE_BF16, bounds[1], true, 3, false);
}

/* Every way through the kernels; images 0, 1, 2 in all places of batches of 2, 3, 8 and 33. */
TEST(group_norm_gives_an_image_the_same_bits_in_any_batch) {
    static const struct group_case ways[] = {
        {1, 25, 48, 4, true, PLAIN, false},    {1, 1100, 40, 1, true, FAR, false},
        {1, 2113, 240, 8, true, PLAIN, true},  {1, 31, 21, 3, true, PLAIN, false},
        {1, 4096, 320, 32, true, PLAIN, true},
    };
    static const int ns[] = {2, 3, 8, 33};
    for (size_t q = 0; q < sizeof ways / sizeof *ways; q++) {
        struct group_case t = ways[q];
        if (t.device_only && !gpu_real()) continue;
        enum kx_store type = types[q % 2];
        size_t image = (size_t)t.pixels * (size_t)t.c;
        float *x = (float *)malloc(33 * image * sizeof *x), *y = (float *)malloc(33 * image * sizeof *y);
        float *own = (float *)malloc(3 * image * sizeof *own),
              *alone = (float *)malloc(3 * image * sizeof *alone);
        float gamma[320], beta[320];
        struct gpu_random r = gpu_random_of(77);
        for (int k = 0; k < t.c; k++) {
            gamma[k] = 1 + 0.3f * gpu_normal(&r);
            beta[k] = 0.3f * gpu_normal(&r);
        }
        for (int i = 0; i < 3; i++) {
            fill(&r, type, t.look, own + (size_t)i * image, t.pixels, t.c);
            t.n = 1;
            group_run(&t, type, own + (size_t)i * image, gamma, beta, 1e-6f, false, 0, false,
                      alone + (size_t)i * image);
        }
        for (int j = 0; j < 4; j++) {
            if (ns[j] == 33 && image > 2000 && !gpu_real()) continue;
            t.n = ns[j];
            for (int i = 0; i < t.n; i++)
                memcpy(x + (size_t)i * image, own + (size_t)((i + j) % 3) * image, image * sizeof *x);
            group_run(&t, type, x, gamma, beta, 1e-6f, false, 0, false, y);
            for (int i = 0; i < t.n; i++)
                CHECK_MSG(memcmp(y + (size_t)i * image, alone + (size_t)((i + j) % 3) * image,
                                 image * sizeof *y) == 0,
                          "way %zu, image %d of %d", q, i, t.n);
        }
        free(x);
        free(y);
        free(own);
        free(alone);
    }
}

TEST(group_norm_by_clusters_does_what_the_others_do) {
    static const struct group_case cases[] = {
        {1, 4096, 320, 32, true, PLAIN, true},  {3, 16384, 320, 32, true, FAR, true},
        {2, 4096, 960, 32, false, FAR, true},   {2, 1024, 1280, 32, true, PLAIN, true},
        {1, 1025, 40, 1, false, OUTLIER, true}, {33, 4096, 640, 32, true, PLAIN, true},
    };
    /* what no build with clusters says of a shape that is none */
    cudaError_t rc =
        kx_cuda_group_norm_cluster(NULL, KX_STORE_F16, NULL, NULL, NULL, NULL, 0, 0, 0, 0, 0, false);
    if (gpu_capability() != 90 || rc == KX_CUDA_NO) SKIP("the device or the build has no clusters");
    for (size_t q = 0; q < sizeof cases / sizeof *cases; q++)
        for (int t = 0; t < 2; t++)
            group_one(&cases[q], (int)q, types[t], bounds[t], t == (int)q % 2, 0, true);
}

TEST(group_norm_refuses_what_is_no_shape) {
    CHECK(kx_cuda_group_norm(NULL, KX_STORE_F16, NULL, NULL, NULL, NULL, 1, 4, 10, 3, 0, false, NULL) ==
          cudaErrorInvalidValue);
    CHECK(kx_cuda_group_norm(NULL, KX_STORE_F16, NULL, NULL, NULL, NULL, 1, 0, 8, 1, 0, false, NULL) ==
          cudaErrorInvalidValue);
}

/* ---- LayerNorm */

static void layer_one(enum kx_store type, double bound, int64_t rows, int c, enum look look, int shift,
                      int q) {
    size_t values = (size_t)rows * (size_t)c, room = values + (size_t)shift;
    uint16_t *bits = (uint16_t *)calloc(room, sizeof *bits),
             *one = (uint16_t *)malloc((size_t)c * sizeof *one);
    float *x = (float *)malloc(values * sizeof *x), *y = (float *)malloc(values * sizeof *y);
    double *want = (double *)malloc(values * sizeof *want);
    float *gamma = (float *)malloc((size_t)c * sizeof *gamma),
          *beta = (float *)malloc((size_t)c * sizeof *beta);
    struct gpu_random r = gpu_random_of(500 + (uint64_t)q);
    for (int k = 0; k < c; k++) {
        gamma[k] = 1 + 0.3f * gpu_normal(&r);
        beta[k] = 0.3f * gpu_normal(&r);
    }
    for (int64_t i = 0; i < rows; i++) {
        float *row = x + i * c;
        double sum = 0, square = 0;
        fill(&r, type, look == OUTLIER ? PLAIN : look, row, 1, c);
        if (look == OUTLIER) row[0] = gpu_round(type, 3000.0f);
        for (int k = 0; k < c; k++) sum += row[k];
        for (int k = 0; k < c; k++) square += (row[k] - sum / c) * (row[k] - sum / c);
        for (int k = 0; k < c; k++)
            want[i * c + k] = (row[k] - sum / c) / sqrt(square / c + 1e-5f) * gamma[k] + beta[k];
    }
    for (size_t i = 0; i < values; i++) bits[i + (size_t)shift] = gpu_bits(type, x[i]);
    bool in_place = q % 2;
    void *dx = gpu_upload(bits, room * 2), *dy = in_place ? dx : gpu_poisoned(room * 2);
    float *dg = (float *)gpu_upload(gamma, (size_t)c * 4), *db = (float *)gpu_upload(beta, (size_t)c * 4);
    /* the last row alone, before x may be overwritten */
    void *alone = gpu_upload(bits + shift + (rows - 1) * c, (size_t)c * 2);
    bool same = shift == 0; /* alone it is aligned, and goes another way */
    GPU_OK(kx_cuda_layer_norm(NULL, type, alone, dg, db, alone, 1, c, 1e-5f));
    gpu_download(one, alone, (size_t)c * 2);
    GPU_OK(kx_cuda_layer_norm(NULL, type, (uint16_t *)dx + shift, dg, db, (uint16_t *)dy + shift, rows, c,
                              1e-5f));
    gpu_download(bits, dy, room * 2);
    for (size_t i = 0; i < values; i++) y[i] = gpu_unbits(type, bits[i + (size_t)shift]);
    double e = gpu_nmse(want, y, values);
    CHECK_MSG(e < bound, "%lld rows of %d, look %d, type %d: NMSE %g", (long long)rows, c, look, type, e);
    CHECK(!same || memcmp(one, bits + (rows - 1) * c, (size_t)c * 2) == 0);
    gpu_free(alone);
    gpu_free(db);
    gpu_free(dg);
    if (!in_place) gpu_free(dy);
    gpu_free(dx);
    free(bits);
    free(one);
    free(x);
    free(y);
    free(want);
    free(gamma);
    free(beta);
}

TEST(layer_norm_of_all_widths_and_looks) {
    static const struct {
        int rows, c, shift;
        enum look look;
        bool device_only;
    } cases[] = {
        {1, 8, 0, PLAIN, false},      {9, 8, 0, PLAIN, false},     {77, 320, 0, PLAIN, false},
        {3, 256, 0, FAR, false},      {3, 264, 0, PLAIN, false},   {5, 640, 0, FAR, false},
        {17, 768, 0, PLAIN, false},   {2, 1024, 0, PLAIN, false},  {8, 1280, 0, OUTLIER, false},
        {3, 1288, 0, FAR, false},     {7, 2560, 0, PLAIN, false},  {2, 2568, 0, PLAIN, false},
        {3, 64, 0, CONSTANT, false},  {1, 1, 0, PLAIN, false},     {33, 7, 0, PLAIN, false},
        {5, 1283, 0, FAR, false},     {3, 33, 0, OUTLIER, false},  {6, 64, 1, PLAIN, false},
        {4, 640, 3, PLAIN, false},    {70001, 64, 0, PLAIN, true}, {16384, 640, 0, FAR, true},
        {65537, 320, 0, PLAIN, true}, {1048577, 8, 0, FAR, true},  {1048577, 3, 0, PLAIN, true},
    };
    for (size_t q = 0; q < sizeof cases / sizeof *cases; q++) {
        if (cases[q].device_only && !gpu_real()) continue;
        for (int t = 0; t < 2; t++)
            layer_one(types[t], bounds[t], cases[q].rows, cases[q].c, cases[q].look, cases[q].shift,
                      (int)q * 2 + t / 2 + (int)q % 2 * t);
    }
}
