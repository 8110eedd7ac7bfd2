/* Convolutions and linear layers against sums in f64. Bound: 1e-5 of the output's norm (kernels/ops.h). */
#include "tests/ops/ops.h"

struct conv_case {
    struct kx_conv_shape s;
    int h, w;
    bool bias, time_proj, residual, in_place;
};

struct conv_call {
    struct kx_conv *conv;
    struct kx_tensor x, residual, y;
    const float *time_proj;
    bool with_residual;
};

static void call_conv(struct kx_ctx *ctx, void *arg) {
    struct conv_call *c = arg;
    struct kx_rows time_proj = {c->time_proj, 0, NULL};
    kx_conv(ctx, c->conv, &c->x, &time_proj, c->with_residual ? &c->residual : NULL, &c->y);
}

static double *want_conv(const struct conv_case *c, const float *x, const float *w, const float *bias,
                         const float *time_proj, const float *residual, int oh, int ow) {
    const struct kx_conv_shape *s = &c->s;
    int k = s->kernel, pad = k / 2, up = s->upsample ? 2 : 1;
    double *y = malloc((size_t)(oh * ow * s->out) * sizeof *y);
    if (!y) exit(1);
    for (int i = 0; i < oh; i++)
        for (int j = 0; j < ow; j++)
            for (int o = 0; o < s->out; o++) {
                size_t at = (size_t)((i * ow + j) * s->out + o);
                double sum = (bias ? (double)bias[o] : 0) + (time_proj ? (double)time_proj[o] : 0) +
                             (residual ? (double)residual[at] : 0);
                for (int a = 0; a < k; a++)
                    for (int b = 0; b < k; b++) {
                        int yy = i * s->stride + a - pad, xx = j * s->stride + b - pad;
                        if (yy < 0 || xx < 0 || yy >= c->h * up || xx >= c->w * up) continue;
                        const float *p = x + (size_t)((yy / up * c->w + xx / up) * s->in);
                        const float *q = w + (size_t)((o * s->in * k + a) * k + b);
                        for (int n = 0; n < s->in; n++) sum += (double)p[n] * (double)q[n * k * k];
                    }
                y[at] = sum;
            }
    return y;
}

static void check_conv(struct kx_ctx *ctx, const struct conv_case *c) {
    const struct kx_conv_shape *s = &c->s;
    int up = s->upsample ? 2 : 1, pad = s->kernel / 2, oh = (c->h * up + 2 * pad - s->kernel) / s->stride + 1,
        ow = (c->w * up + 2 * pad - s->kernel) / s->stride + 1;
    size_t n = (size_t)(oh * ow * s->out), out = (size_t)s->out;
    float *w = ops_random(out * (size_t)(s->in * s->kernel * s->kernel), 1), *bias = ops_random(out, 2),
          *time_proj = ops_random(out, 3), *x = ops_random((size_t)(c->h * c->w * s->in), 4),
          *residual = ops_random(n, 5), *y = ops_random(n, 6);
    struct kn_err err;
    struct conv_call call = {.x = {x, 1, c->h, c->w, s->in},
                             .residual = {residual, 1, oh, ow, s->out},
                             .y = {y, 1, oh, ow, s->out},
                             .time_proj = c->time_proj ? time_proj : NULL,
                             .with_residual = c->residual};
    double *want =
        want_conv(c, x, w, c->bias ? bias : NULL, call.time_proj, c->residual ? residual : NULL, oh, ow);
    if (c->in_place) call.y.v = residual;
    CHECK_INT(kx_conv_create(ctx, s, w, c->bias ? bias : NULL, &call.conv, &err), 0);
    OPS_RUN(ctx, call_conv, &call);
    OPS_NEAR(call.y.v, want, n, 1e-5, "%d to %d, %dx%d, kernel %d, stride %d%s%s%s%s%s", s->in, s->out, c->w,
             c->h, s->kernel, s->stride, s->upsample ? ", doubled" : "", c->bias ? ", bias" : "",
             c->time_proj ? ", time_proj" : "", c->residual ? ", residual" : "",
             c->in_place ? ", in place" : "");
    kx_conv_destroy(call.conv);
    free(w), free(bias), free(time_proj), free(x), free(residual), free(y), free(want);
}

TEST(convolutions_are_within_1e_5_of_sums_in_f64) {
    static const struct conv_case cases[] = {
        {{3, 5, 3, 1, false}, 7, 9, true, false, false, false},
        {{4, 16, 3, 1, false}, 8, 8, true, true, false, false},
        {{16, 4, 3, 1, false}, 8, 8, true, false, true, false},
        {{8, 8, 3, 1, false}, 1, 1, false, false, false, false},
        {{8, 8, 3, 1, false}, 1, 13, true, true, true, true},
        {{17, 33, 3, 1, false}, 11, 5, true, true, true, false},
        {{24, 24, 3, 2, false}, 8, 8, true, false, false, false},
        {{24, 24, 3, 2, false}, 7, 9, true, false, false, false},
        {{5, 7, 1, 1, false}, 6, 6, true, false, true, false},
        {{48, 96, 1, 1, false}, 16, 16, true, true, true, true},
        {{48, 96, 1, 2, false}, 7, 8, true, false, false, false},
        {{6, 10, 5, 1, false}, 9, 9, true, false, false, false},
        {{48, 48, 3, 1, false}, 33, 31, true, true, true, true}, /* several stripes */
        {{64, 64, 3, 2, false}, 64, 64, true, false, true, false},
        {{320, 384, 3, 1, false}, 9, 8, true, true, true, false}, /* slices */
        {{320, 384, 3, 2, false}, 9, 8, true, true, true, true},
        {{512, 640, 3, 1, false}, 20, 26, true, true, false, false}, /* slices and stripes */
        {{8, 8, 3, 1, true}, 1, 1, true, false, false, false},
        {{5, 6, 3, 1, true}, 4, 7, true, true, true, false},
        {{48, 48, 3, 1, true}, 17, 16, true, false, true, true},
        {{320, 384, 3, 1, true}, 5, 6, false, true, false, false},
    };
    struct kx_ctx *ctx = ops_ctx(2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_conv(ctx, &cases[i]);
    kx_ctx_destroy(ctx);
}

/* ---- linear */

struct linear_call {
    struct kx_linear *linear;
    struct kx_tensor x, residual, y;
    bool with_residual;
};

static void call_linear(struct kx_ctx *ctx, void *arg) {
    struct linear_call *c = arg;
    kx_linear(ctx, c->linear, &c->x, c->with_residual ? &c->residual : NULL, &c->y);
}

static double activated(enum kx_act act, double x) {
    switch (act) {
    case KX_ACT_SILU:
        return x / (1 + exp(-x));
    case KX_ACT_GELU:
    case KX_ACT_GEGLU:
        return x * 0.5 * (1 + erf(x / sqrt(2)));
    case KX_ACT_QUICK_GELU:
        return x / (1 + exp(-1.702 * x));
    case KX_ACT_NONE:
        break;
    }
    return x;
}

static void check_linear(struct kx_ctx *ctx, int in, int out, int rows, enum kx_act act, bool residual,
                         bool in_place) {
    bool glu = act == KX_ACT_GEGLU;
    int c = glu ? out / 2 : out;
    size_t n = (size_t)rows * (size_t)c;
    float *w = ops_random((size_t)in * (size_t)out, 7), *bias = ops_random((size_t)out, 8),
          *x = ops_random((size_t)rows * (size_t)in, 9), *add = ops_random(n, 10), *y = ops_random(n, 11);
    double *sums = malloc((size_t)out * sizeof *sums), *want = malloc(n * sizeof *want);
    if (!sums || !want) exit(1);
    for (int r = 0; r < rows; r++) {
        for (int o = 0; o < out; o++) {
            sums[o] = (double)bias[o];
            for (int i = 0; i < in; i++) sums[o] += (double)x[r * in + i] * (double)w[o * in + i];
        }
        for (int o = 0; o < c; o++)
            want[r * c + o] = glu        ? sums[o] * activated(act, sums[c + o])
                              : residual ? activated(act, sums[o]) + (double)add[r * c + o]
                                         : activated(act, sums[o]);
    }
    struct kn_err err;
    struct linear_call call = {.x = {x, 1, rows, 1, in},
                               .residual = {add, 1, rows, 1, c},
                               .y = {in_place ? add : y, 1, rows, 1, c},
                               .with_residual = residual};
    CHECK_INT(kx_linear_create(ctx, in, out, act, w, bias, &call.linear, &err), 0);
    OPS_RUN(ctx, call_linear, &call);
    OPS_NEAR(call.y.v, want, n, 1e-5, "%d to %d, %d rows, activation %d%s", in, out, rows, (int)act,
             residual ? ", residual" : "");
    kx_linear_destroy(call.linear);
    free(w), free(bias), free(x), free(add), free(y), free(sums), free(want);
}

TEST(linear_layers_are_within_1e_5_of_sums_in_f64) {
    static const int shapes[][3] = {/* in, out, rows */
                                    {32, 64, 1},     {24, 96, 77},   {5, 6, 3},      {320, 1280, 1},
                                    {40, 80, 32},    {77, 130, 257}, {48, 384, 300}, {768, 768, 77},
                                    {896, 1280, 33}, {512, 4096, 5}};
    struct kx_ctx *ctx = ops_ctx(2);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int act = KX_ACT_NONE; act <= KX_ACT_GEGLU; act++)
            for (int residual = 0; residual < (act == KX_ACT_GEGLU ? 1 : 3); residual++)
                check_linear(ctx, shapes[i][0], shapes[i][1], shapes[i][2], (enum kx_act)act, residual > 0,
                             residual == 2);
    kx_ctx_destroy(ctx);
}

/* A layer is used with several sizes in turn: weights are laid out for each that needs it. */
TEST(a_layer_gives_the_same_bits_whatever_sizes_it_was_planned_for_before) {
    enum { IN = 320, OUT = 384, SIZES = 5 };
    static const int sizes[SIZES] = {8, 1, 31, 2, 16};
    float *w = ops_random(IN * OUT * 9, 1), *x = ops_random(31 * 31 * IN, 2),
          *first = ops_random(31 * 31 * OUT, 3), *y = ops_random(31 * 31 * OUT, 4);
    struct kx_conv_shape s = {IN, OUT, 3, 1, false};
    struct kn_err err;
    for (int i = 0; i < SIZES; i++) {
        struct kx_ctx *ctx = ops_ctx(1);
        struct conv_call call = {.x = {x, 1, sizes[i], sizes[i], IN},
                                 .y = {first, 1, sizes[i], sizes[i], OUT}};
        CHECK_INT(kx_conv_create(ctx, &s, w, NULL, &call.conv, &err), 0);
        OPS_RUN(ctx, call_conv, &call);
        kx_conv_destroy(call.conv);
        CHECK_INT(kx_conv_create(ctx, &s, w, NULL, &call.conv, &err), 0);
        for (int k = 0; k <= SIZES; k++) {
            int size = k < SIZES ? sizes[k] : sizes[i];
            call.x.h = call.x.w = call.y.h = call.y.w = size;
            call.y.v = y;
            OPS_RUN(ctx, call_conv, &call);
        }
        CHECK(!memcmp(y, first, (size_t)(sizes[i] * sizes[i] * OUT) * sizeof *y));
        kx_conv_destroy(call.conv);
        kx_ctx_destroy(ctx);
    }
    free(w), free(x), free(first), free(y);
}
