/* The sampler's kernels (kernels/cuda/op_sample.cu) against doubles: batches that mix samplers, guidance and
 * images that are done, odd sizes, what is not finite, and the same bits in any batch. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/launch.h"
#include "tests/gpu/gpu.h"

enum { STEPS = 6, SLOTS = 4, IMAGES_MAX = 33 };

/* The kinds of samplers that the tables are of, by image % KINDS. */
enum kind { EULER, SECOND_ORDER, MULTISTEP, ANCESTRAL, CLIPPED, SHORT, KINDS };

static const struct kx_step identity = {.timestep = 1,
                                        .in_scale = 1,
                                        .dx = 0,
                                        .dm = 0,
                                        .clip = 0,
                                        .cx = 1,
                                        .cs = 0,
                                        .cd = 0,
                                        .cm = 0,
                                        .cn = 0,
                                        .ch = {0},
                                        .save_x = false,
                                        .store = -1};

static struct kx_step step_of(enum kind kind, int k, struct gpu_random *r) {
    struct kx_step s = identity;
    s.timestep = 900.0f - 100.0f * (float)k;
    s.in_scale = 0.3f + 0.1f * gpu_uniform(r);
    s.cx = 0.9f + 0.05f * gpu_uniform(r);
    switch (kind) {
    case EULER:
        s.cx = 1;
        s.cm = -0.4f + 0.1f * gpu_uniform(r);
        break;
    case SECOND_ORDER:
        s.dx = 0.8f;
        s.dm = -0.5f;
        s.cd = 0.6f;
        s.store = k % 2;
        if (k > 0) s.ch[(k - 1) % 2] = -0.2f;
        break;
    case MULTISTEP: /* d is m */
        s.dm = 1;
        s.store = k % SLOTS;
        s.cd = 0.3f;
        for (int i = 0; i < SLOTS && i < k; i++) s.ch[(k - 1 - i) % SLOTS] += 0.1f * (float)(i + 1);
        s.save_x = k == 0 || k == 3;
        if (k == 1 || k == 5) s.cs = 0.25f;
        break;
    case ANCESTRAL:
        s.cm = -0.3f;
        s.cn = 0.2f;
        break;
    case CLIPPED:
        s.dx = 1.5f;
        s.dm = -0.7f;
        s.clip = 1;
        s.cd = 0.5f;
        break;
    default: /* done after two */
        if (k < 2) {
            s.cx = 1;
            s.cm = -0.4f;
        } else {
            s = identity;
        }
    }
    return s;
}

/* A batch: what the device gets, and the doubles that run beside it. Image i of the batch is picture id[i],
 * which alone decides its inputs. */
struct batch {
    enum kx_store type;
    int n, rows, id[IMAGES_MAX];
    size_t values;
    struct kx_step table[STEPS * IMAGES_MAX];
    float guidance[IMAGES_MAX];
    int32_t row_u[IMAGES_MAX], row_c[IMAGES_MAX], time_rows[STEPS * 2 * IMAGES_MAX];
    struct kx_sampling s;               /* the device's */
    double *x, *saved, *history[SLOTS]; /* n × values */
    float *pred, *noise;                /* rows, n × values: of the step, rounded to type (pred) */
};

static void *zeros_host(size_t bytes) {
    void *p = calloc(1, bytes);
    if (!p) abort();
    return p;
}

static float *download_floats(const float *device, size_t n) {
    float *v = (float *)zeros_host(n * sizeof *v);
    gpu_download(v, device, n * sizeof *v);
    return v;
}

static void batch_open(struct batch *b, enum kx_store type, int n, const int *ids, size_t values,
                       bool guided) {
    memset(b, 0, sizeof *b);
    b->type = type;
    b->n = n;
    b->values = values;
    int order[2 * IMAGES_MAX], rows = 0;
    for (int i = 0; i < n; i++) {
        b->id[i] = ids[i];
        b->guidance[i] = 1.5f + (float)ids[i] * 0.7f;
        b->row_u[i] = ids[i] % 3 == 2 ? -1 : rows++;
        b->row_c[i] = rows++;
        struct gpu_random r = gpu_random_of(1000 + (uint64_t)ids[i]);
        for (int k = 0; k < STEPS; k++) b->table[k * n + i] = step_of((enum kind)(ids[i] % KINDS), k, &r);
    }
    b->rows = rows;
    /* rows in another order than images */
    for (int i = 0; i < rows; i++) order[i] = rows - 1 - i;
    for (int i = 0; i < n; i++) {
        if (b->row_u[i] >= 0) b->row_u[i] = order[b->row_u[i]];
        b->row_c[i] = order[b->row_c[i]];
    }
    for (int i = 0; i < STEPS * rows; i++) b->time_rows[i] = 7 * i + 1;

    size_t all = (size_t)n * values;
    float *x = (float *)zeros_host(all * sizeof *x);
    b->x = (double *)zeros_host(all * sizeof *b->x);
    for (int i = 0; i < n; i++) {
        struct gpu_random r = gpu_random_of(2000 + (uint64_t)ids[i]);
        for (size_t j = 0; j < values; j++)
            b->x[(size_t)i * values + j] = x[(size_t)i * values + j] = 3 * gpu_normal(&r);
    }
    b->saved = (double *)zeros_host(all * sizeof *b->saved);
    for (int k = 0; k < SLOTS; k++) b->history[k] = (double *)zeros_host(all * sizeof(double));
    b->pred = (float *)zeros_host((size_t)rows * values * sizeof *b->pred);
    b->noise = (float *)zeros_host(all * sizeof *b->noise);

    struct kx_sampling *s = &b->s;
    s->n = n;
    s->rows = rows;
    s->values = values;
    s->steps = STEPS;
    s->table = (const struct kx_step *)gpu_upload(b->table, sizeof *b->table * STEPS * (size_t)n);
    s->guidance = (const float *)gpu_upload(b->guidance, sizeof *b->guidance * (size_t)n);
    s->row_u = (const int32_t *)gpu_upload(b->row_u, sizeof *b->row_u * (size_t)n);
    s->row_c = (const int32_t *)gpu_upload(b->row_c, sizeof *b->row_c * (size_t)n);
    s->time_rows = (const int32_t *)gpu_upload(b->time_rows, sizeof(int32_t) * STEPS * (size_t)rows);
    s->time_row = (int32_t *)gpu_poisoned(sizeof(int32_t) * (size_t)rows);
    s->pred = gpu_poisoned((size_t)rows * values * 2);
    s->in = gpu_poisoned((size_t)rows * values * 2);
    s->x = (float *)gpu_upload(x, all * sizeof *x);
    s->saved = (float *)gpu_poisoned(all * sizeof(float));
    for (int k = 0; k < SLOTS; k++) s->history[k] = (float *)gpu_poisoned(all * sizeof(float));
    s->noise = (const float *)gpu_poisoned(all * sizeof(float));
    s->guided = guided ? (float *)gpu_poisoned(all * sizeof(float)) : NULL;
    s->at = (int32_t *)gpu_poisoned(sizeof(int32_t));
    s->bad = (int32_t *)gpu_poisoned(sizeof(int32_t) * (size_t)n);
    free(x);
}

static void batch_close(struct batch *b) {
    struct kx_sampling *s = &b->s;
    gpu_free((void *)s->table);
    gpu_free((void *)s->guidance);
    gpu_free((void *)s->row_u);
    gpu_free((void *)s->row_c);
    gpu_free((void *)s->time_rows);
    gpu_free(s->time_row);
    gpu_free((void *)s->pred);
    gpu_free(s->in);
    gpu_free(s->x);
    gpu_free(s->saved);
    for (int k = 0; k < SLOTS; k++) {
        gpu_free(s->history[k]);
        free(b->history[k]);
    }
    gpu_free((void *)s->noise);
    gpu_free(s->guided);
    gpu_free(s->at);
    gpu_free(s->bad);
    free(b->x);
    free(b->saved);
    free(b->pred);
    free(b->noise);
}

/* The UNet's output and the noise of step k, by picture and step. */
static void batch_feed(struct batch *b, int k) {
    uint16_t *bits = (uint16_t *)zeros_host((size_t)b->rows * b->values * sizeof *bits);
    for (int i = 0; i < b->n; i++)
        for (int half = 0; half < 3; half++) {
            struct gpu_random r = gpu_random_of((uint64_t)(b->id[i] * 100 + k * 3 + half));
            int row = half == 0 ? b->row_c[i] : b->row_u[i];
            for (size_t j = 0; j < b->values; j++) {
                float v = gpu_normal(&r);
                if (half == 2) {
                    b->noise[(size_t)i * b->values + j] = v;
                } else if (row >= 0) {
                    size_t at = (size_t)row * b->values + j;
                    bits[at] = gpu_bits(b->type, v);
                    b->pred[at] = gpu_round(b->type, v);
                }
            }
        }
    gpu_write((void *)b->s.pred, bits, (size_t)b->rows * b->values * sizeof *bits);
    gpu_write((void *)b->s.noise, b->noise, (size_t)b->n * b->values * sizeof(float));
    free(bits);
}

/* The formula of kernels/samplers/step.h, literally. */
static void batch_reference(struct batch *b, int k) {
    for (int i = 0; i < b->n; i++) {
        const struct kx_step *t = &b->table[k * b->n + i];
        for (size_t j = 0; j < b->values; j++) {
            size_t at = (size_t)i * b->values + j;
            double x = b->x[at], m = b->pred[(size_t)b->row_c[i] * b->values + j];
            if (b->row_u[i] >= 0) {
                double u = b->pred[(size_t)b->row_u[i] * b->values + j];
                m = u + (double)b->guidance[i] * (m - u);
            }
            double d = (double)t->dx * x + (double)t->dm * m;
            if (t->clip > 0) d = fmin(fmax(d, -(double)t->clip), (double)t->clip);
            double sum = (double)t->cx * x + (double)t->cd * d + (double)t->cm * m +
                         (double)t->cs * b->saved[at] + (double)t->cn * b->noise[at];
            for (int h = 0; h < SLOTS; h++) sum += (double)t->ch[h] * b->history[h][at];
            if (t->save_x) b->saved[at] = x;
            if (t->store >= 0) b->history[t->store][at] = d;
            b->x[at] = sum;
        }
    }
}

/* `in` and `time_row` are those of step k. */
static void check_input(const struct batch *b, int k) {
    int32_t at = -5, time_row[2 * IMAGES_MAX];
    gpu_download(&at, b->s.at, sizeof at);
    CHECK(at == k);
    if (k == STEPS) k--;
    gpu_download(time_row, b->s.time_row, sizeof(int32_t) * (size_t)b->rows);
    CHECK(memcmp(time_row, b->time_rows + k * b->rows, sizeof(int32_t) * (size_t)b->rows) == 0);
    float *x = download_floats(b->s.x, (size_t)b->n * b->values);
    uint16_t *in = (uint16_t *)zeros_host((size_t)b->rows * b->values * sizeof *in);
    gpu_download(in, b->s.in, (size_t)b->rows * b->values * sizeof *in);
    for (int i = 0; i < b->n; i++)
        for (size_t j = 0; j < b->values; j++) {
            uint16_t want = gpu_bits(b->type, x[(size_t)i * b->values + j] * b->table[k * b->n + i].in_scale);
            CHECK(in[(size_t)b->row_c[i] * b->values + j] == want);
            CHECK(b->row_u[i] < 0 || in[(size_t)b->row_u[i] * b->values + j] == want);
        }
    free(x);
    free(in);
}

static double against(const double *want, const float *device, size_t n) {
    float *got = download_floats(device, n);
    double e = gpu_nmse(want, got, n);
    free(got);
    return e;
}

static void run_steps(struct batch *b, bool look) {
    GPU_OK(kx_cuda_sample_begin(NULL, b->type, &b->s));
    if (look) check_input(b, 0);
    for (int k = 0; k < STEPS; k++) {
        batch_feed(b, k);
        GPU_OK(kx_cuda_sample(NULL, b->type, &b->s));
        if (!look) continue;
        batch_reference(b, k);
        CHECK(against(b->x, b->s.x, (size_t)b->n * b->values) < 1e-12);
        check_input(b, k + 1);
    }
}

static const enum kx_store types[] = {KX_STORE_F16, KX_STORE_BF16};

TEST(sample_follows_the_formula_for_samplers_side_by_side) {
    static const struct {
        int n;
        size_t values;
    } sizes[] = {{1, 1}, {2, 3}, {7, 64}, {6, 1030}, {33, 37}, {12, 2052}};
    for (size_t q = 0; q < sizeof sizes / sizeof *sizes; q++)
        for (int t = 0; t < 2; t++) {
            struct batch b;
            int ids[IMAGES_MAX];
            for (int i = 0; i < sizes[q].n; i++) ids[i] = i;
            batch_open(&b, types[t], sizes[q].n, ids, sizes[q].values, q % 2 == 0);
            run_steps(&b, true);
            /* the slots and saved, of the images that have used them */
            for (int i = 0; i < b.n; i++) {
                size_t at = (size_t)i * b.values;
                if (ids[i] % KINDS == MULTISTEP) {
                    CHECK(against(b.saved + at, b.s.saved + at, b.values) < 1e-12);
                    for (int k = 0; k < SLOTS; k++)
                        CHECK(against(b.history[k] + at, b.s.history[k] + at, b.values) < 1e-12);
                }
            }
            if (b.s.guided) { /* of the last step */
                double *m = (double *)zeros_host((size_t)b.n * b.values * sizeof *m);
                for (int i = 0; i < b.n; i++)
                    for (size_t j = 0; j < b.values; j++) {
                        double c = b.pred[(size_t)b.row_c[i] * b.values + j];
                        double u = b.row_u[i] < 0 ? c : b.pred[(size_t)b.row_u[i] * b.values + j];
                        m[(size_t)i * b.values + j] = u + (double)b.guidance[i] * (c - u);
                    }
                CHECK(against(m, b.s.guided, (size_t)b.n * b.values) < 1e-12);
                free(m);
            }
            int32_t bad[IMAGES_MAX];
            gpu_download(bad, b.s.bad, sizeof(int32_t) * (size_t)b.n);
            for (int i = 0; i < b.n; i++) CHECK(bad[i] == -1);
            batch_close(&b);
        }
}

TEST(sample_gives_an_image_the_same_bits_in_any_batch) {
    enum { VALUES = 132 };
    for (int t = 0; t < 2; t++) {
        float *alone[KINDS];
        for (int i = 0; i < KINDS; i++) {
            struct batch b;
            batch_open(&b, types[t], 1, &i, VALUES, false);
            run_steps(&b, false);
            alone[i] = download_floats(b.s.x, VALUES);
            batch_close(&b);
        }
        static const int ns[] = {2, 3, 8, 33};
        for (int q = 0; q < 4; q++) {
            struct batch b;
            int ids[IMAGES_MAX];
            for (int i = 0; i < ns[q]; i++) ids[i] = (i * 5 + q) % KINDS;
            batch_open(&b, types[t], ns[q], ids, VALUES, false);
            run_steps(&b, false);
            float *x = download_floats(b.s.x, (size_t)ns[q] * VALUES);
            for (int i = 0; i < ns[q]; i++)
                CHECK(memcmp(x + i * VALUES, alone[ids[i]], VALUES * sizeof *x) == 0);
            free(x);
            batch_close(&b);
        }
        for (int i = 0; i < KINDS; i++) free(alone[i]);
    }
}

TEST(sample_reports_the_first_step_that_is_not_finite_image_by_image) {
    enum { VALUES = 300 };
    static const int ids[] = {EULER, SECOND_ORDER, SHORT, ANCESTRAL};
    for (int t = 0; t < 2; t++) {
        struct batch b;
        batch_open(&b, types[t], 4, ids, VALUES, t == 1);
        GPU_OK(kx_cuda_sample_begin(NULL, b.type, &b.s));
        float *before = NULL;
        for (int k = 0; k < STEPS; k++) {
            batch_feed(&b, k);
            uint16_t nan = gpu_bits(b.type, NAN), inf = gpu_bits(b.type, -INFINITY);
            uint16_t *pred = (uint16_t *)b.s.pred;
            if (k == 1 || k == 3)
                gpu_write(pred + (size_t)b.row_c[1] * VALUES + VALUES - 1, &nan, sizeof nan);
            if (k == 2) gpu_write(pred + (size_t)b.row_c[0] * VALUES + 17, &inf, sizeof inf);
            if (k == 4) gpu_write(pred + (size_t)b.row_c[2] * VALUES, &nan, sizeof nan); /* it is done */
            GPU_OK(kx_cuda_sample(NULL, b.type, &b.s));
            if (k == 1) before = download_floats(b.s.x + 2 * VALUES, VALUES);
        }
        int32_t bad[4];
        gpu_download(bad, b.s.bad, sizeof bad);
        CHECK(bad[0] == 2);
        CHECK(bad[1] == 1);
        CHECK(bad[2] == -1);
        CHECK(bad[3] == -1);
        float *x = download_floats(b.s.x, 4 * VALUES);
        CHECK(memcmp(x + 2 * VALUES, before, VALUES * sizeof *x) == 0);
        for (int j = 0; j < VALUES; j++) CHECK(isfinite(x[3 * VALUES + j])); /* its neighbours' are theirs */
        free(before);
        free(x);
        /* beginning again forgets */
        GPU_OK(kx_cuda_sample_begin(NULL, b.type, &b.s));
        gpu_download(bad, b.s.bad, sizeof bad);
        for (int i = 0; i < 4; i++) CHECK(bad[i] == -1);
        batch_close(&b);
    }
}

TEST(sample_past_the_last_step_leaves_all_as_it_is) {
    struct batch b;
    int ids[] = {EULER, MULTISTEP};
    batch_open(&b, KX_STORE_F16, 2, ids, 20, false);
    run_steps(&b, true);
    float *x = download_floats(b.s.x, 40);
    GPU_OK(kx_cuda_sample(NULL, b.type, &b.s));
    float *y = download_floats(b.s.x, 40);
    CHECK(memcmp(x, y, 40 * sizeof *x) == 0);
    check_input(&b, STEPS);
    free(x);
    free(y);
    batch_close(&b);
}
