/* An op's bits do not depend on threads: one image on 1, 2 and 4 threads and on a lane beside three others,
 * for the shapes of Stable Diffusion 1.5 at 512×512, of the shipped model and of the golden pipelines. So
 * an image's pixels cannot depend on what it was rendered beside. Shapes above some work are thinned: the same
 * channels on fewer rows. */
#include "tests/ops/ops.h"

enum kind { CONV, DOUBLED, LINEAR, GELU, GEGLU, GROUP, LAYER, ATTEND, CAUSAL };

struct op_case {
    enum kind kind;
    int in, out;        /* channels; attention: heads, dim */
    int kernel, stride; /* attention: kernel is the number of keys; norms: groups */
    int h, w;
};

static const struct op_case cases[] = {
    /* SD1.5 UNet: 64×64 latents */
    {CONV, 4, 320, 3, 1, 64, 64},
    {CONV, 320, 320, 3, 1, 64, 64},
    {CONV, 320, 4, 3, 1, 64, 64},
    {CONV, 640, 320, 3, 1, 64, 64},
    {CONV, 960, 320, 3, 1, 64, 64},
    {CONV, 960, 320, 1, 1, 64, 64},
    {CONV, 640, 320, 1, 1, 64, 64},
    {CONV, 320, 320, 1, 1, 64, 64},
    {CONV, 320, 320, 3, 2, 64, 64},
    {CONV, 320, 640, 3, 1, 32, 32},
    {CONV, 320, 640, 1, 1, 32, 32},
    {CONV, 640, 640, 3, 1, 32, 32},
    {CONV, 640, 640, 1, 1, 32, 32},
    {CONV, 640, 640, 3, 2, 32, 32},
    {CONV, 1920, 640, 3, 1, 32, 32},
    {CONV, 1920, 640, 1, 1, 32, 32},
    {CONV, 1280, 640, 3, 1, 32, 32},
    {CONV, 1280, 640, 1, 1, 32, 32},
    {CONV, 960, 640, 3, 1, 32, 32},
    {CONV, 960, 640, 1, 1, 32, 32},
    {CONV, 640, 1280, 3, 1, 16, 16},
    {CONV, 640, 1280, 1, 1, 16, 16},
    {CONV, 1280, 1280, 3, 1, 16, 16},
    {CONV, 1280, 1280, 1, 1, 16, 16},
    {CONV, 1280, 1280, 3, 2, 16, 16},
    {CONV, 2560, 1280, 3, 1, 16, 16},
    {CONV, 2560, 1280, 1, 1, 16, 16},
    {CONV, 1920, 1280, 3, 1, 16, 16},
    {CONV, 1920, 1280, 1, 1, 16, 16},
    {CONV, 1280, 1280, 3, 1, 8, 8},
    {CONV, 2560, 1280, 3, 1, 8, 8},
    {CONV, 2560, 1280, 1, 1, 8, 8},
    {DOUBLED, 1280, 1280, 3, 1, 8, 8},
    {DOUBLED, 1280, 1280, 3, 1, 16, 16},
    {DOUBLED, 640, 640, 3, 1, 32, 32},
    {LINEAR, 320, 1280, 1, 1, 1, 1},
    {LINEAR, 1280, 1280, 1, 1, 1, 1},
    {LINEAR, 1280, 320, 1, 1, 1, 1},
    {LINEAR, 1280, 640, 1, 1, 1, 1},
    {LINEAR, 320, 320, 1, 1, 4096, 1},
    {LINEAR, 768, 320, 1, 1, 77, 1},
    {GEGLU, 320, 2560, 1, 1, 4096, 1},
    {LINEAR, 1280, 320, 1, 1, 4096, 1},
    {LINEAR, 640, 640, 1, 1, 1024, 1},
    {LINEAR, 768, 640, 1, 1, 77, 1},
    {GEGLU, 640, 5120, 1, 1, 1024, 1},
    {LINEAR, 2560, 640, 1, 1, 1024, 1},
    {LINEAR, 1280, 1280, 1, 1, 256, 1},
    {LINEAR, 768, 1280, 1, 1, 77, 1},
    {GEGLU, 1280, 10240, 1, 1, 256, 1},
    {LINEAR, 5120, 1280, 1, 1, 256, 1},
    {LINEAR, 1280, 1280, 1, 1, 64, 1},
    {GEGLU, 1280, 10240, 1, 1, 64, 1},
    {LINEAR, 5120, 1280, 1, 1, 64, 1},
    {GROUP, 320, 320, 32, 1, 64, 64},
    {GROUP, 960, 960, 32, 1, 64, 64},
    {GROUP, 2560, 2560, 32, 1, 8, 8},
    {LAYER, 320, 320, 0, 1, 4096, 1},
    {LAYER, 1280, 1280, 0, 1, 64, 1},
    {ATTEND, 8, 40, 4096, 1, 1024, 1},
    {ATTEND, 8, 40, 77, 1, 4096, 1},
    {ATTEND, 8, 80, 1024, 1, 1024, 1},
    {ATTEND, 8, 80, 77, 1, 1024, 1},
    {ATTEND, 8, 160, 256, 1, 256, 1},
    {ATTEND, 8, 160, 77, 1, 64, 1},
    /* its text encoder and VAE decoder */
    {LINEAR, 768, 768, 1, 1, 77, 1},
    {GELU, 768, 3072, 1, 1, 77, 1},
    {LINEAR, 3072, 768, 1, 1, 77, 1},
    {CAUSAL, 12, 64, 77, 1, 77, 1},
    {LAYER, 768, 768, 0, 1, 77, 1},
    {CONV, 4, 4, 1, 1, 64, 64},
    {CONV, 4, 512, 3, 1, 64, 64},
    {CONV, 512, 512, 3, 1, 64, 64},
    {ATTEND, 1, 512, 4096, 1, 256, 1},
    {LINEAR, 512, 512, 1, 1, 4096, 1},
    {DOUBLED, 512, 512, 3, 1, 64, 64},
    {CONV, 512, 512, 3, 1, 128, 128},
    {DOUBLED, 512, 512, 3, 1, 128, 128},
    {CONV, 512, 256, 3, 1, 256, 256},
    {CONV, 512, 256, 1, 1, 256, 256},
    {CONV, 256, 256, 3, 1, 256, 256},
    {DOUBLED, 256, 256, 3, 1, 256, 256},
    {CONV, 256, 128, 3, 1, 512, 512},
    {CONV, 128, 128, 3, 1, 512, 512},
    {CONV, 128, 3, 3, 1, 512, 512},
    {GROUP, 128, 128, 32, 1, 64, 512},
    /* small models */
    {CONV, 4, 48, 3, 1, 32, 32},
    {CONV, 48, 48, 3, 1, 32, 32},
    {CONV, 48, 4, 3, 1, 32, 32},
    {CONV, 96, 48, 3, 1, 32, 32},
    {CONV, 144, 48, 3, 1, 32, 32},
    {CONV, 144, 48, 1, 1, 32, 32},
    {CONV, 48, 48, 3, 2, 32, 32},
    {CONV, 48, 96, 3, 1, 16, 16},
    {CONV, 96, 96, 3, 1, 16, 16},
    {CONV, 288, 96, 3, 1, 16, 16},
    {CONV, 96, 192, 3, 1, 8, 8},
    {CONV, 192, 192, 3, 1, 8, 8},
    {CONV, 384, 192, 3, 1, 8, 8},
    {CONV, 192, 192, 3, 1, 4, 4},
    {DOUBLED, 192, 192, 3, 1, 4, 4},
    {DOUBLED, 96, 96, 3, 1, 16, 16},
    {DOUBLED, 48, 48, 3, 1, 64, 64},
    {CONV, 64, 64, 3, 1, 64, 64},
    {CONV, 32, 32, 3, 1, 128, 128},
    {CONV, 32, 3, 3, 1, 128, 128},
    {CONV, 64, 32, 3, 1, 128, 128},
    {GEGLU, 96, 768, 1, 1, 256, 1},
    {GEGLU, 192, 1536, 1, 1, 64, 1},
    {LINEAR, 192, 192, 1, 1, 64, 1},
    {LINEAR, 48, 192, 1, 1, 1, 1},
    {LINEAR, 192, 192, 1, 1, 1, 1},
    {ATTEND, 4, 24, 256, 1, 256, 1},
    {ATTEND, 4, 48, 64, 1, 64, 1},
    {ATTEND, 4, 24, 77, 1, 256, 1},
    {GROUP, 48, 48, 16, 1, 32, 32},
    /* golden pipelines */
    {CONV, 4, 16, 3, 1, 8, 8},
    {CONV, 16, 16, 3, 1, 8, 8},
    {CONV, 16, 32, 3, 1, 4, 4},
    {CONV, 8, 8, 3, 1, 8, 8},
    {CONV, 24, 16, 3, 1, 2, 2},
    {CONV, 24, 24, 3, 1, 2, 2},
    {CONV, 4, 8, 3, 1, 16, 16},
    {CONV, 8, 4, 3, 1, 16, 16},
    {CONV, 8, 3, 3, 1, 16, 16},
    {CONV, 16, 16, 3, 2, 8, 8},
    {DOUBLED, 32, 32, 3, 1, 4, 4},
    {DOUBLED, 4, 4, 3, 1, 16, 16},
    {LINEAR, 16, 64, 1, 1, 1, 1},
    {LINEAR, 32, 32, 1, 1, 77, 1},
    {GEGLU, 32, 256, 1, 1, 16, 1},
    {GELU, 40, 80, 1, 1, 32, 1},
    {ATTEND, 4, 8, 77, 1, 16, 1},
    {CAUSAL, 5, 8, 32, 1, 32, 1},
    {GROUP, 16, 16, 4, 1, 8, 8},
    {LAYER, 40, 40, 0, 1, 32, 1},
};

/* One op with its weights, on a context. */
struct op {
    const struct op_case *c;
    struct kx_conv *conv;
    struct kx_linear *linear;
    struct kx_tensor x, y;
    const float *weights, *bias, *keys;
};

static void call(struct kx_ctx *ctx, void *arg) {
    struct op *o = arg;
    const struct op_case *c = o->c;
    size_t width = (size_t)(c->in * c->out);
    struct kx_attention a = {.n = 1,
                             .q = o->x.v,
                             .k = o->keys,
                             .v = o->keys + 7,
                             .out = o->y.v,
                             .q_stride = width,
                             .k_stride = width,
                             .v_stride = width,
                             .out_stride = width,
                             .rows = c->h,
                             .length = c->kernel,
                             .heads = c->in,
                             .dim = c->out,
                             .scale = 0.2f,
                             .causal = c->kind == CAUSAL};
    switch (c->kind) {
    case CONV:
    case DOUBLED:
        kx_conv(ctx, o->conv, &o->x, &(struct kx_rows){o->bias, 0, NULL}, NULL, &o->y);
        break;
    case LINEAR:
    case GELU:
    case GEGLU:
        kx_linear(ctx, o->linear, &o->x, NULL, &o->y);
        break;
    case GROUP:
        kx_group_norm(ctx, &o->x, o->bias, o->bias, c->kernel, 1e-5f, true, &o->y);
        break;
    case LAYER:
        kx_layer_norm(ctx, &o->x, o->bias, o->bias, 1e-5f, &o->y);
        break;
    case ATTEND:
    case CAUSAL:
        kx_attention(ctx, &a);
        break;
    }
}

static void create(struct kx_ctx *ctx, struct op *o) {
    const struct op_case *c = o->c;
    struct kx_conv_shape s = {c->in, c->out, c->kernel, c->stride, c->kind == DOUBLED};
    struct kn_err err;
    int rc = 0;
    if (c->kind == CONV || c->kind == DOUBLED)
        rc = kx_conv_create(ctx, &s, o->weights, o->bias, &o->conv, &err);
    if (c->kind == LINEAR || c->kind == GELU || c->kind == GEGLU)
        rc = kx_linear_create(ctx, c->in, c->out,
                              c->kind == GELU    ? KX_ACT_GELU
                              : c->kind == GEGLU ? KX_ACT_GEGLU
                                                 : KX_ACT_NONE,
                              o->weights, o->bias, &o->linear, &err);
    CHECK_INT(rc, 0);
}

static void destroy(struct op *o) {
    if (o->conv) kx_conv_destroy(o->conv);
    if (o->linear) kx_linear_destroy(o->linear);
    o->conv = NULL;
    o->linear = NULL;
}

/* The op at once on every lane, each with its own output. */
struct beside {
    struct op *op;
    float *y[4];
};

static void call_beside(void *arg, struct kx_ctx *lane, int i, int count) {
    CHECK_INT(count, 1);
    struct beside *b = arg;
    struct op o = *b->op;
    o.y.v = b->y[i];
    call(lane, &o);
}

static void check_lanes(struct op *o, const float *want, size_t n) {
    struct kx_ctx *ctx = ops_ctx(4);
    struct beside b = {o, {0}};
    struct kx_arena arena;
    struct kn_err err;
    create(ctx, o);
    for (int i = 0; i < 4; i++) {
        b.y[i] = ops_random(n, 99);
        kx_plan_begin(kx_ctx_lane(ctx, 4, i), &arena);
        call(kx_ctx_lane(ctx, 4, i), o);
        CHECK_INT(kx_plan_end(kx_ctx_lane(ctx, 4, i), &err), 0);
    }
    kx_ctx_each(ctx, 4, 4, call_beside, &b);
    CHECK_INT(kx_ctx_error(ctx, &err), 0);
    for (int i = 0; i < 4; i++) {
        CHECK_MSG(!memcmp(b.y[i], want, n * sizeof *want),
                  "lane %d: kind %d, %d to %d, kernel %d, %dx%d: other bits", i, (int)o->c->kind, o->c->in,
                  o->c->out, o->c->kernel, o->c->w, o->c->h);
        free(b.y[i]);
    }
    destroy(o);
    kx_ctx_destroy(ctx);
}

static void check_case(const struct op_case *original) {
    static const int threads[] = {1, 2, 4};
    struct op_case c = *original;
    size_t out = (size_t)(c.kind == GEGLU ? c.out / 2 : c.out), in = (size_t)c.in;
    double each = 2.0 * c.in * c.out * c.kernel * c.kernel * c.w; /* a row's work */
    if (c.kind <= DOUBLED)
        while (each * c.h > 2e9 && c.h > 16) c.h /= 2;
    int oh = c.h, ow = c.w, pad = c.kernel / 2;
    if (c.kind == DOUBLED) {
        oh *= 2;
        ow *= 2;
    } else if (c.kind == CONV) {
        oh = (c.h + 2 * pad - c.kernel) / c.stride + 1;
        ow = (c.w + 2 * pad - c.kernel) / c.stride + 1;
    } else if (c.kind >= ATTEND) {
        in = out = (size_t)(c.in * c.out);
    }
    size_t n = (size_t)oh * (size_t)ow * out,
           weights = c.kind <= GEGLU ? in * (size_t)c.out * (size_t)(c.kernel * c.kernel) : 1;
    float *x = ops_random((size_t)c.h * (size_t)c.w * in, 1), *w = ops_random(weights, 2),
          *bias = ops_random(in + out + (size_t)c.out, 3),
          *keys = ops_random(c.kind >= ATTEND ? (size_t)c.kernel * in + 7 : 1, 4), *first = ops_random(n, 5),
          *y = ops_random(n, 6);
    struct op o = {.c = &c,
                   .x = {x, 1, c.h, c.w, (int)in},
                   .y = {first, 1, oh, ow, (int)out},
                   .weights = w,
                   .bias = bias,
                   .keys = keys};
    for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
        struct kx_ctx *ctx = ops_ctx(threads[t]);
        create(ctx, &o);
        OPS_RUN(ctx, call, &o);
        destroy(&o);
        kx_ctx_destroy(ctx);
        if (t && memcmp(y, first, n * sizeof *y)) {
            fprintf(stderr, "%d threads: kind %d, %d to %d, kernel %d, stride %d, %dx%d: other bits\n",
                    threads[t], (int)c.kind, c.in, c.out, c.kernel, c.stride, c.w, c.h);
            check_stop(1);
        }
        o.y.v = y;
    }
    check_lanes(&o, first, n);
    free(x), free(w), free(bias), free(keys), free(first), free(y);
}

TEST(an_op_gives_the_same_bits_on_1_2_and_4_threads_and_on_a_lane) {
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_case(&cases[i]);
}
