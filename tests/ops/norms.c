/* GroupNorm and LayerNorm against f64, on every instruction set that this processor has. Bound: 2e-6. */
#include "tests/ops/ops.h"

struct norm_call {
    struct kx_tensor x, y;
    const float *gamma, *beta;
    int groups; /* 0: LayerNorm */
    float eps;
    bool silu;
};

static void call_norm(struct kx_ctx *ctx, void *arg) {
    struct norm_call *c = arg;
    if (c->groups)
        kx_group_norm(ctx, &c->x, c->gamma, c->beta, c->groups, c->eps, c->silu, &c->y);
    else
        kx_layer_norm(ctx, &c->x, c->gamma, c->beta, c->eps, &c->y);
}

/* One group that is normalised together: `count` stretches of `width` values, `step` apart. */
static void want_one(const struct norm_call *c, const float *x, size_t count, size_t step, size_t width,
                     size_t channel, double *y) {
    double mean = 0, variance = 0, n = (double)(count * width);
    for (size_t p = 0; p < count; p++)
        for (size_t i = 0; i < width; i++) mean += (double)x[p * step + i] / n;
    for (size_t p = 0; p < count; p++)
        for (size_t i = 0; i < width; i++) {
            double d = (double)x[p * step + i] - mean;
            variance += d * d / n;
        }
    for (size_t p = 0; p < count; p++)
        for (size_t i = 0; i < width; i++) {
            double v = ((double)x[p * step + i] - mean) / sqrt(variance + (double)c->eps) *
                           (double)c->gamma[channel + i] +
                       (double)c->beta[channel + i];
            y[p * step + i] = c->silu ? v / (1 + exp(-v)) : v;
        }
}

static void check_norm(struct kx_ctx *ctx, int n, int h, int w, int c, int groups, bool silu, float offset,
                       bool in_place, double bound) {
    size_t pixels = (size_t)(h * w), channels = (size_t)c, total = (size_t)n * pixels * channels;
    float *x = ops_random(total, 1), *y = ops_random(total, 2), *gamma = ops_random(channels, 3),
          *beta = ops_random(channels, 4);
    double *want = malloc(total * sizeof *want);
    if (!want) exit(1);
    for (size_t i = 0; i < total; i++) x[i] += offset;
    struct norm_call call = {
        {x, n, h, w, c}, {in_place ? x : y, n, h, w, c}, gamma, beta, groups, 1e-5f, silu};
    if (groups) {
        size_t width = channels / (size_t)groups;
        for (int i = 0; i < n; i++)
            for (size_t g = 0; g < channels; g += width) {
                size_t at = (size_t)i * pixels * channels + g;
                want_one(&call, x + at, pixels, channels, width, g, want + at);
            }
    } else {
        for (size_t i = 0; i < total; i += channels) want_one(&call, x + i, 1, 0, channels, 0, want + i);
    }
    OPS_RUN(ctx, call_norm, &call);
    OPS_NEAR(call.y.v, want, total, bound, "%s, %d x %dx%d of %d channels, %d groups%s, offset %g",
             ops_isa_name(ctx), n, w, h, c, groups, silu ? ", silu" : "", (double)offset);
    free(x), free(y), free(gamma), free(beta), free(want);
}

static void each_isa(void (*check)(struct kx_ctx *ctx)) {
    struct kx_ctx *ctx = ops_ctx(2);
    for (int i = 0; ops_isa(i); i++) {
        ops_use_isa(ctx, ops_isa(i));
        check(ctx);
    }
    kx_ctx_destroy(ctx);
}

static void group_norms(struct kx_ctx *ctx) {
    static const int shapes[][5] = {/* n, h, w, c, groups */
                                    {1, 1, 1, 4, 2},     {1, 7, 5, 6, 3},    {2, 8, 8, 8, 1},
                                    {1, 8, 8, 24, 4},    {1, 33, 9, 33, 11}, {1, 4, 4, 320, 32},
                                    {3, 40, 40, 48, 16}, {1, 65, 64, 20, 5}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int k = 0; k < 4; k++)
            check_norm(ctx, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], shapes[i][4], k & 1, 0.3f,
                       k & 2, 2e-6);
}

TEST(group_norm_is_within_2e_6_of_f64) {
    each_isa(group_norms);
}

static void far_means(struct kx_ctx *ctx) {
    /* x · scale + shift rounds at the size of x · scale, 170: 1e-5. Sums of squares would leave 1e-3. */
    check_norm(ctx, 1, 16, 16, 32, 4, false, 100, false, 1e-5);
    check_norm(ctx, 1, 3, 5, 96, 0, false, 100, false, 1e-5);
}

TEST(a_mean_far_from_zero_costs_hardly_a_digit) {
    each_isa(far_means);
}

static void layer_norms(struct kx_ctx *ctx) {
    static const int widths[] = {1, 3, 8, 17, 24, 40, 64, 320, 768, 1283};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        for (int k = 0; k < 2; k++) {
            check_norm(ctx, 1, 77, 1, widths[i], 0, false, 0.5f, k, 2e-6);
            check_norm(ctx, 2, 3, 3, widths[i], 0, false, -0.5f, k, 2e-6);
        }
}

TEST(layer_norm_is_within_2e_6_of_f64) {
    each_isa(layer_norms);
}

TEST(a_constant_group_gives_beta) {
    struct kx_ctx *ctx = ops_ctx(1);
    float x[64], y[64], gamma[4] = {1, 2, 3, 4}, beta[4] = {5, 6, 7, 8};
    for (int i = 0; i < 64; i++) x[i] = 3.25f;
    struct norm_call call = {{x, 1, 4, 4, 4}, {y, 1, 4, 4, 4}, gamma, beta, 2, 1e-6f, false};
    OPS_RUN(ctx, call_norm, &call);
    for (int i = 0; i < 64; i++) CHECK(y[i] == beta[i % 4]);
    kx_ctx_destroy(ctx);
}

TEST(a_nan_spreads_over_its_group_and_no_further) {
    struct kx_ctx *ctx = ops_ctx(2);
    for (int isa = 0; ops_isa(isa); isa++) {
        ops_use_isa(ctx, ops_isa(isa));
        float *x = ops_random(64 * 8, 1), *y = ops_random(64 * 8, 2), *one = ops_random(8, 3);
        x[8 * 17 + 2] = NAN;
        struct norm_call call = {{x, 1, 8, 8, 8}, {y, 1, 8, 8, 8}, one, one, 2, 1e-5f, true};
        OPS_RUN(ctx, call_norm, &call);
        for (int i = 0; i < 64 * 8; i++) CHECK_INT(isnan(y[i]) != 0, i % 8 < 4);
        free(x), free(y), free(one);
    }
    kx_ctx_destroy(ctx);
}
