/* The small ops, on every instruction set that this processor has. */
#include "tests/ops/ops.h"

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
            kx_silu(ctx, x, y, n);
            OPS_NEAR(y, want, n, 1e-6, "%s, %zu values", ctx->vector->name, n);
            CHECK(y[n] == 42);
        }
        float edge[6] = {-INFINITY, -1e30f, -100, 100, 1e30f, NAN}, out[6];
        kx_silu(ctx, edge + 1, out + 1, 5);
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
        float shift = k & 2 ? 1.0f : 0.0f, t = 481.25f, out[DIM];
        kx_timestep(ctx, t, DIM, flip, shift, out);
        for (int i = 0; i < HALF; i++) {
            double x = (double)t * pow(10000, -(double)i / ((double)HALF - (double)shift));
            CHECK(fabs((double)out[flip ? HALF + i : i] - sin(x)) < 1e-4);
            CHECK(fabs((double)out[flip ? i : HALF + i] - cos(x)) < 1e-4);
        }
    }
    kx_ctx_destroy(ctx);
}

TEST(to_rgb_clamps_and_lets_nan_through) {
    struct kx_ctx *ctx = ops_ctx(1);
    float x[6] = {-3, -1, 0, 0.5f, 1.25f, NAN}, rgb[6];
    kx_to_rgb(ctx, &(struct kx_tensor){x, 1, 1, 2, 3}, rgb);
    CHECK(rgb[0] == 0 && rgb[1] == 0 && rgb[2] == 0.5f && rgb[3] == 0.75f && rgb[4] == 1 && isnan(rgb[5]));
    kx_ctx_destroy(ctx);
}
