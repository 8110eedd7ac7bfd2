/* Attention against f64, on every instruction set that this processor has. Bound: 2e-6. */
#include "tests/ops/ops.h"

static void call_attention(struct kx_ctx *ctx, void *arg) {
    kx_attention(ctx, arg);
}

static void want_attention(const struct kx_attention *a, double *out) {
    const float *a_q = a->q, *a_k = a->k, *a_v = a->v;
    double *p = malloc((size_t)a->length * sizeof *p);
    if (!p) exit(1);
    for (int row = 0; row < a->rows; row++)
        for (int head = 0; head < a->heads; head++) {
            size_t at = (size_t)(head * a->dim);
            int seen = a->causal && row + 1 < a->length ? row + 1 : a->length;
            double max = -INFINITY, sum = 0;
            for (int j = 0; j < seen; j++) {
                p[j] = 0;
                for (int d = 0; d < a->dim; d++)
                    p[j] += (double)a_q[(size_t)row * a->q_stride + at + (size_t)d] *
                            (double)a_k[(size_t)j * a->k_stride + at + (size_t)d];
                p[j] *= (double)a->scale;
                if (p[j] > max) max = p[j];
            }
            for (int j = 0; j < seen; j++) sum += p[j] = exp(p[j] - max);
            for (int d = 0; d < a->dim; d++) {
                double s = 0;
                for (int j = 0; j < seen; j++)
                    s += p[j] * (double)a_v[(size_t)j * a->v_stride + at + (size_t)d];
                out[(size_t)(row * a->heads * a->dim) + at + (size_t)d] = s / sum;
            }
        }
    free(p);
}

/* q, k and v side by side in one tensor, as a fused projection gives them, or apart; spread: how far the
 * scores lie apart. */
static void check_attention(struct kx_ctx *ctx, int rows, int length, int heads, int dim, bool causal,
                            bool fused, float spread) {
    size_t width = (size_t)(heads * dim), stride = fused ? 3 * width + 5 : width, n = (size_t)rows * width;
    float *q = ops_random((size_t)rows * stride, 1), *k = ops_random((size_t)length * stride, 2),
          *v = ops_random((size_t)length * stride, 3), *out = ops_random(n, 4);
    double *want = malloc(n * sizeof *want);
    if (!want) exit(1);
    struct kx_attention a = {.n = 1,
                             .q = q,
                             .k = k,
                             .v = v,
                             .out = out,
                             .q_stride = stride,
                             .k_stride = stride,
                             .v_stride = stride,
                             .out_stride = width,
                             .rows = rows,
                             .length = length,
                             .heads = heads,
                             .dim = dim,
                             .scale = spread / sqrtf((float)dim),
                             .causal = causal};
    want_attention(&a, want);
    OPS_RUN(ctx, call_attention, &a);
    OPS_NEAR(out, want, n, 2e-6, "%s, %d rows, %d keys, %d heads of %d%s, spread %g", ops_isa_name(ctx), rows,
             length, heads, dim, causal ? ", causal" : "", (double)spread);
    free(q), free(k), free(v), free(out), free(want);
}

TEST(attention_is_within_2e_6_of_f64) {
    static const int shapes[][4] = {/* rows, keys, heads, dim */
                                    {1, 1, 1, 1},      {4, 4, 2, 12},    {64, 64, 8, 4},
                                    {16, 77, 3, 40},   {65, 77, 2, 80},  {130, 129, 1, 7},
                                    {100, 300, 2, 64}, {7, 32, 5, 8},    {256, 256, 2, 17},
                                    {9, 31, 1, 160},   {70, 70, 1, 512}, {33, 1000, 1, 24}};
    struct kx_ctx *ctx = ops_ctx(2);
    for (int i = 0; ops_isa(i); i++) {
        ops_use_isa(ctx, ops_isa(i));
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            const int *p = shapes[s];
            check_attention(ctx, p[0], p[1], p[2], p[3], false, s % 2, 1);
            check_attention(ctx, p[0], p[1], p[2], p[3], false, s % 2, 12);
        }
    }
    kx_ctx_destroy(ctx);
}

TEST(causal_attention_sees_no_later_key) {
    static const int shapes[][3] = {/* length, heads, dim */
                                    {1, 1, 8},
                                    {32, 5, 8},
                                    {77, 12, 64},
                                    {77, 4, 8},
                                    {300, 1, 20}};
    struct kx_ctx *ctx = ops_ctx(2);
    for (int i = 0; ops_isa(i); i++) {
        ops_use_isa(ctx, ops_isa(i));
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            check_attention(ctx, shapes[s][0], shapes[s][0], shapes[s][1], shapes[s][2], true, s % 2, 3);
    }
    kx_ctx_destroy(ctx);
}

/* Scores of some hundreds: without the running maximum e^x is infinite. */
TEST(large_scores_do_not_overflow) {
    enum { ROWS = 9, KEYS = 260, DIM = 16 };
    struct kx_ctx *ctx = ops_ctx(1);
    for (int i = 0; ops_isa(i); i++) {
        ops_use_isa(ctx, ops_isa(i));
        float *q = ops_random(ROWS * DIM, 1), *k = ops_random(KEYS * DIM, 2), *v = ops_random(KEYS * DIM, 3),
              out[ROWS * DIM];
        for (int j = 0; j < DIM; j++) k[200 * DIM + j] = 100 * q[3 * DIM + j];
        struct kx_attention a = {q,    k, v,    out,  DIM, DIM, DIM,  DIM,  0,
                                 NULL, 1, ROWS, KEYS, 1,   DIM, 5.0f, false};
        OPS_RUN(ctx, call_attention, &a);
        for (int j = 0; j < DIM; j++) CHECK(fabsf(out[3 * DIM + j] - v[200 * DIM + j]) < 1e-6f);
        for (int j = 0; j < ROWS * DIM; j++) CHECK(isfinite(out[j]));
        free(q), free(k), free(v);
    }
    kx_ctx_destroy(ctx);
}

TEST(a_nan_in_a_query_spoils_its_row_and_no_other) {
    enum { ROWS = 10, KEYS = 50, DIM = 8 };
    struct kx_ctx *ctx = ops_ctx(1);
    for (int i = 0; ops_isa(i); i++) {
        ops_use_isa(ctx, ops_isa(i));
        float *q = ops_random(ROWS * DIM, 1), *k = ops_random(KEYS * DIM, 2), *v = ops_random(KEYS * DIM, 3),
              out[ROWS * DIM];
        q[4 * DIM + 1] = NAN;
        struct kx_attention a = {q,    k, v,    out,  DIM, DIM, DIM,  DIM,  0,
                                 NULL, 1, ROWS, KEYS, 1,   DIM, 1.0f, false};
        OPS_RUN(ctx, call_attention, &a);
        for (int j = 0; j < ROWS * DIM; j++) CHECK_INT(isnan(out[j]) != 0, j / DIM == 4);
        free(q), free(k), free(v);
    }
    kx_ctx_destroy(ctx);
}
