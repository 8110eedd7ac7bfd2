/* The small ops, on every instruction set that this processor has. */
#include "tests/ops/ops.h"

static void silu(struct kx_ctx *ctx, float *x, float *y, size_t n) {
    kx_add_silu(ctx, &(struct kx_tensor){x, 1, 1, 1, (int)n}, NULL, &(struct kx_tensor){y, 1, 1, 1, (int)n});
}

TEST(silu_is_within_1e_6_of_f64_from_end_to_end) {
    struct kx_ctx *ctx = ops_ctx(1);
    for (int isa = 0; ops_isa(isa); isa++) {
        ops_use_isa(ctx, ops_isa(isa));
        for (size_t n = 1; n < 70; n++) {
            float x[70], y[71];
            double want[70];
            for (size_t i = 0; i < n; i++) {
                x[i] = ((float)i - (float)n / 2) * 0.7f;
                want[i] = (double)x[i] / (1 + exp(-(double)x[i]));
            }
            y[n] = 42;
            silu(ctx, x, y, n);
            OPS_NEAR(y, want, n, 1e-6, "%s, %zu values", ops_isa_name(ctx), n);
            CHECK(y[n] == 42);
        }
        float edge[6] = {-INFINITY, -1e30f, -100, 100, 1e30f, NAN}, out[6];
        silu(ctx, edge + 1, out + 1, 5);
        CHECK(fabsf(out[1]) < 1e-6f && fabsf(out[2]) < 1e-6f && out[3] == 100 && out[4] == 1e30f &&
              isnan(out[5]));
    }
    kx_ctx_destroy(ctx);
}

/* e^x itself, through the activations: from the value at which it is nothing to the largest. */
TEST(activations_are_right_over_the_whole_range) {
    enum { N = 4001 };
    static float x[N], y[N];
    static double want[N];
    for (int isa = 0; ops_isa(isa); isa++) {
        const struct kx_vector *v = ops_isa(isa);
        for (int which = 0; which < 3; which++) {
            for (int i = 0; i < N; i++) {
                double a = (i - N / 2) * 0.02;
                x[i] = y[i] = (float)a;
                a = (double)x[i];
                want[i] = which == 0   ? a * 0.5 * erfc(-a / sqrt(2))
                          : which == 1 ? a / (1 + exp(-1.702 * a))
                                       : a / (1 + exp(-a));
            }
            if (which == 0)
                v->gelu(y, N);
            else if (which == 1)
                v->quick_gelu(y, N);
            else
                v->silu(x, y, N);
            for (int i = 0; i < N; i++)
                CHECK_MSG(fabs((double)y[i] - want[i]) <= 4e-7 * (1 + fabs(want[i])),
                          "%s %d at %g: %g, not %g", v->name, which, (double)x[i], (double)y[i], want[i]);
        }
    }
}

struct concat_call {
    struct kx_tensor a, b, y;
};

static void call_concat(struct kx_ctx *ctx, void *arg) {
    struct concat_call *c = arg;
    kx_concat(ctx, &c->a, &c->b, &c->y);
}

TEST(concat_puts_the_channels_of_a_before_those_of_b) {
    static const int shapes[][5] = {{1, 1, 1, 1, 1}, {2, 3, 5, 7, 4}, {1, 64, 33, 48, 24}};
    struct kx_ctx *ctx = ops_ctx(2);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int n = shapes[i][0], h = shapes[i][1], w = shapes[i][2], ca = shapes[i][3], cb = shapes[i][4];
        size_t pixels = (size_t)(n * h * w), a = (size_t)ca, b = (size_t)cb;
        float *va = ops_random(pixels * a, 1), *vb = ops_random(pixels * b, 2),
              *y = ops_random(pixels * (a + b), 3);
        struct concat_call call = {{va, n, h, w, ca}, {vb, n, h, w, cb}, {y, n, h, w, ca + cb}};
        OPS_RUN(ctx, call_concat, &call);
        for (size_t p = 0; p < pixels; p++) {
            CHECK_MEM(y + p * (a + b), va + p * a, a * sizeof *y);
            CHECK_MEM(y + p * (a + b) + a, vb + p * b, b * sizeof *y);
        }
        free(va), free(vb), free(y);
    }
    kx_ctx_destroy(ctx);
}

TEST(timestep_embedding_has_halves_of_sines_and_cosines) {
    struct kx_ctx *ctx = ops_ctx(1);
    for (int k = 0; k < 4; k++) {
        enum { DIM = 320, HALF = DIM / 2 };
        bool flip = k & 1;
        float shift = k & 2 ? 1.0f : 0.0f, t[2] = {3, 481.25f}, both[2 * DIM], *out = both + DIM;
        kx_timestep(ctx, t, 2, flip, shift, &(struct kx_tensor){both, 2, 1, 1, DIM});
        for (int i = 0; i < HALF; i++) {
            double x = (double)t[1] * pow(10000, -(double)i / ((double)HALF - (double)shift));
            CHECK(fabs((double)out[flip ? HALF + i : i] - sin(x)) < 1e-4);
            CHECK(fabs((double)out[flip ? i : HALF + i] - cos(x)) < 1e-4);
        }
    }
    kx_ctx_destroy(ctx);
}

TEST(to_rgb_clamps_and_lets_nan_through) {
    struct kx_ctx *ctx = ops_ctx(1);
    float x[6] = {-3, -1, 0, 0.5f, 1.25f, NAN}, rgb[6];
    uint8_t bytes[6];
    int32_t finite[2];
    kx_to_rgb(ctx, &(struct kx_tensor){x, 2, 1, 1, 3}, rgb, bytes, finite);
    CHECK(bytes[0] == 0 && bytes[1] == 0 && bytes[2] == 128 && bytes[3] == 191 && bytes[4] == 255 &&
          bytes[5] == 0);
    CHECK(finite[0] == 1 && finite[1] == 0);
    CHECK(rgb[0] == 0 && rgb[1] == 0 && rgb[2] == 0.5f && rgb[3] == 0.75f && rgb[4] == 1 && isnan(rgb[5]));
    kx_ctx_destroy(ctx);
}

TEST(add_silu_pairs_every_row_with_every_other) {
    enum { A = 3, B = 2, C = 21 };
    struct kx_ctx *ctx = ops_ctx(1);
    float *a = ops_random(A * C, 1), *b = ops_random(B * C, 2), y[A * B * C];
    double want[A * B * C];
    for (int i = 0; i < A; i++)
        for (int j = 0; j < B; j++)
            for (int c = 0; c < C; c++) {
                double v = (double)a[i * C + c] + (double)b[j * C + c];
                want[(i * B + j) * C + c] = v / (1 + exp(-v));
            }
    kx_add_silu(ctx, &(struct kx_tensor){a, A, 1, 1, C}, &(struct kx_tensor){b, B, 1, 1, C},
                &(struct kx_tensor){y, A * B, 1, 1, C});
    OPS_NEAR(y, want, A * B * C, 1e-6, "%d rows and %d", A, B);
    free(a), free(b);
    kx_ctx_destroy(ctx);
}

TEST(embed_adds_a_place_to_a_token_and_gather_takes_a_row) {
    enum { TOKENS = 5, PLACES = 3, C = 4 };
    struct kx_ctx *ctx = ops_ctx(1);
    struct kn_err err;
    struct kx_table *tokens, *places;
    float *t = ops_random(TOKENS * C, 1), *p = ops_random(PLACES * C, 2), y[2 * PLACES * C], row[2 * C];
    const int32_t ids[2 * PLACES] = {4, 0, 1, 2, 2, 3}, at[2] = {2, 1};
    CHECK_INT(kx_table_create(ctx, TOKENS, C, t, &tokens, &err), 0);
    CHECK_INT(kx_table_create(ctx, PLACES, C, p, &places, &err), 0);
    struct kx_tensor out = {y, 2, 1, PLACES, C}, gathered = {row, 2, 1, 1, C};
    kx_embed(ctx, tokens, places, ids, &out);
    for (int i = 0; i < 2 * PLACES; i++)
        for (int c = 0; c < C; c++) CHECK(y[i * C + c] == t[ids[i] * C + c] + p[i % PLACES * C + c]);
    kx_gather(ctx, &out, at, &gathered);
    CHECK_MEM(row, y + 2 * C, C * sizeof *y);
    CHECK_MEM(row + C, y + (PLACES + 1) * C, C * sizeof *y);
    kx_table_destroy(tokens);
    kx_table_destroy(places);
    free(t), free(p);
    kx_ctx_destroy(ctx);
}

TEST(from_f32_keeps_every_bit_in_a_context_of_f32) {
    struct kx_ctx *ctx = ops_ctx(1);
    const float x[5] = {-0.0f, 1e-42f, 65505, INFINITY, NAN};
    float y[5] = {0};
    CHECK_INT(kx_value_bytes(ctx), sizeof *x);
    kx_from_f32(ctx, x, &(struct kx_tensor){y, 1, 1, 5, 1});
    CHECK_MEM(y, x, sizeof x);
    kx_ctx_destroy(ctx);
}

/* Two images with tables of their own: one guided, with history and noise; one not, that is over after a
 * step. */
TEST(a_sampling_step_is_that_of_each_image_alone) {
    enum { VALUES = 50, STEPS = 2 };
    struct kx_ctx *ctx = ops_ctx(1);
    struct kx_step table[STEPS][2] = {{{.in_scale = 0.5f,
                                        .dx = 1,
                                        .dm = -0.3f,
                                        .cx = 0.7f,
                                        .cd = 0.2f,
                                        .cn = 0.1f,
                                        .ch = {0.4f},
                                        .store = 0,
                                        .save_x = true},
                                       {.in_scale = 2, .dm = 1, .cx = 0.9f, .cm = 0.1f, .store = -1}},
                                      {{.in_scale = 0.25f,
                                        .dx = 0.5f,
                                        .dm = 1,
                                        .clip = 0.5f,
                                        .cx = 0.6f,
                                        .cs = 0.2f,
                                        .cd = 0.3f,
                                        .store = -1},
                                       {.in_scale = 3, .cx = 1, .store = -1}}};
    const float guidance[2] = {3, 1};
    const int32_t row_u[2] = {0, -1}, row_c[2] = {1, 2}, time_rows[STEPS * 3] = {7, 7, 8, 9, 9, 8};
    float *x = ops_random(2 * VALUES, 1), *pred = ops_random(3 * VALUES, 2),
          *noise = ops_random(2 * VALUES, 3), saved[2 * VALUES] = {0}, history[2 * VALUES] = {0},
          in[3 * VALUES], guided[2 * VALUES], want[2 * VALUES];
    int32_t time_row[3], at, bad[2];
    struct kx_sampling s = {.n = 2,
                            .rows = 3,
                            .values = VALUES,
                            .steps = STEPS,
                            .table = table[0],
                            .guidance = guidance,
                            .row_u = row_u,
                            .row_c = row_c,
                            .pred = pred,
                            .in = in,
                            .time_row = time_row,
                            .time_rows = time_rows,
                            .x = x,
                            .saved = saved,
                            .history = {history},
                            .noise = noise,
                            .guided = guided,
                            .at = &at,
                            .bad = bad};
    kx_sample_begin(ctx, &s);
    CHECK(at == 0 && bad[0] == -1 && bad[1] == -1 && time_row[0] == 7 && time_row[2] == 8);
    CHECK(in[3] == x[3] * 0.5f && in[VALUES + 3] == in[3] && in[2 * VALUES + 3] == x[VALUES + 3] * 2);
    for (int i = 0; i < VALUES; i++) {
        float m = pred[i] + 3 * (pred[VALUES + i] - pred[i]), d = x[i] - 0.3f * m;
        want[i] = 0.7f * x[i] + 0.2f * d + 0.4f * history[i] + 0.1f * noise[i];
        want[VALUES + i] = 0.9f * x[VALUES + i] + 0.1f * pred[2 * VALUES + i];
    }
    float before = x[5];
    kx_sample(ctx, &s);
    CHECK(at == 1 && time_row[0] == 9 && time_row[2] == 8 && saved[5] == before);
    for (int i = 0; i < 2 * VALUES; i++) CHECK(fabsf(x[i] - want[i]) < 1e-6f);
    CHECK(in[3] == x[3] * 0.25f && in[2 * VALUES + 3] == x[VALUES + 3] * 3);
    float other = x[VALUES + 7];
    pred[2] = NAN;
    kx_sample(ctx, &s);
    CHECK(at == 2 && bad[0] == 1 && bad[1] == -1); /* the second step of the first image */
    CHECK(x[VALUES + 7] == other);                 /* over: stays as it is */
    free(x), free(pred), free(noise);
    kx_ctx_destroy(ctx);
}
