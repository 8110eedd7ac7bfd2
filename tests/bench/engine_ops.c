/* How fast the ops are, on the shapes of Stable Diffusion 1.5 at 512×512 and of a small model, beside what
 * oneDNN reaches by itself on the largest convolution.
 *
 *     bench-ops [THREADS] [WORD]                              only ops whose line has WORD
 *     bench-ops --alone IN OUT HEIGHT WIDTH KERNEL THREADS    oneDNN's GFLOP/s for one convolution, the
 * number alone
 *
 * With one thread the time is the processor's, so that what else runs on the machine counts less.
 *
 * Two columns: one image on all threads, and as many images as there are threads, each on its lane (the time
 * is then an image's share). GFLOP/s count two a multiply-add of the plain algorithm; GB/s count what is read
 * and written once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "kernels/cpu/context.h"
#include "tests/bench/onednn_alone.h"

#define THREADS_MAX 64

enum kind { CONV, DOUBLED, LINEAR, GEGLU, ATTEND, GROUP, LAYER, CONCAT };
static const char *const names[] = {"conv",      "doubled conv", "linear",     "geglu",
                                    "attention", "group norm",   "layer norm", "concat"};

struct shape {
    enum kind kind;
    int in, out;        /* attention: heads, dim */
    int kernel, stride; /* attention: kernel is the number of keys; norm: groups */
    int h, w;
};

static const struct shape shapes[] = {
    {CONV, 4, 320, 3, 1, 64, 64},
    {CONV, 320, 320, 3, 1, 64, 64},
    {CONV, 960, 320, 3, 1, 64, 64},
    {CONV, 640, 320, 1, 1, 64, 64},
    {CONV, 320, 320, 3, 2, 64, 64},
    {CONV, 640, 640, 3, 1, 32, 32},
    {CONV, 1920, 640, 3, 1, 32, 32},
    {CONV, 1280, 1280, 3, 1, 16, 16},
    {CONV, 2560, 1280, 3, 1, 16, 16},
    {CONV, 1280, 1280, 3, 1, 8, 8},
    {CONV, 2560, 1280, 3, 1, 8, 8},
    {CONV, 320, 4, 3, 1, 64, 64},
    {DOUBLED, 640, 640, 3, 1, 32, 32},
    {DOUBLED, 1280, 1280, 3, 1, 8, 8},
    {LINEAR, 320, 320, 1, 1, 4096, 1},
    {GEGLU, 320, 2560, 1, 1, 4096, 1},
    {LINEAR, 1280, 320, 1, 1, 4096, 1},
    {LINEAR, 640, 640, 1, 1, 1024, 1},
    {GEGLU, 640, 5120, 1, 1, 1024, 1},
    {LINEAR, 2560, 640, 1, 1, 1024, 1},
    {LINEAR, 1280, 1280, 1, 1, 256, 1},
    {GEGLU, 1280, 10240, 1, 1, 256, 1},
    {LINEAR, 5120, 1280, 1, 1, 256, 1},
    {LINEAR, 1280, 1280, 1, 1, 64, 1},
    {LINEAR, 768, 320, 1, 1, 77, 1},
    {LINEAR, 1280, 320, 1, 1, 1, 1},
    {ATTEND, 8, 40, 4096, 1, 4096, 1},
    {ATTEND, 8, 80, 1024, 1, 1024, 1},
    {ATTEND, 8, 160, 256, 1, 256, 1},
    {ATTEND, 8, 40, 77, 1, 4096, 1},
    {ATTEND, 8, 80, 77, 1, 1024, 1},
    {ATTEND, 1, 512, 4096, 1, 4096, 1},
    {GROUP, 320, 320, 32, 1, 64, 64},
    {GROUP, 960, 960, 32, 1, 64, 64},
    {GROUP, 2560, 2560, 32, 1, 8, 8},
    {LAYER, 320, 320, 0, 1, 4096, 1},
    {CONCAT, 320, 640, 0, 1, 64, 64},
    /* a small UNet: 32×32 latents */
    {CONV, 48, 48, 3, 1, 32, 32},
    {CONV, 96, 48, 3, 1, 32, 32},
    {CONV, 96, 96, 3, 1, 16, 16},
    {CONV, 192, 192, 3, 1, 8, 8},
    {CONV, 384, 192, 3, 1, 8, 8},
    {CONV, 4, 48, 3, 1, 32, 32},
    {LINEAR, 96, 96, 1, 1, 256, 1},
    {GEGLU, 96, 768, 1, 1, 256, 1},
    {LINEAR, 192, 192, 1, 1, 64, 1},
    {LINEAR, 192, 192, 1, 1, 1, 1},
    {ATTEND, 4, 24, 256, 1, 256, 1},
    {ATTEND, 4, 24, 77, 1, 256, 1},
    {ATTEND, 4, 48, 64, 1, 64, 1},
    {GROUP, 48, 48, 16, 1, 32, 32},
    {GROUP, 192, 192, 16, 1, 8, 8},
    {LAYER, 96, 96, 0, 1, 256, 1},
};

struct op {
    const struct shape *s;
    struct kx_conv *conv;
    struct kx_linear *linear;
    int oh, ow, in, out;
    float *weights, *bias;
    float *x[THREADS_MAX], *keys[THREADS_MAX], *y[THREADS_MAX]; /* an image each */
};

static float *numbers(size_t n) {
    float *v = kx_aligned(n * sizeof *v);
    if (!v) exit(1);
    for (size_t i = 0; i < n; i++) v[i] = (float)((i * 2654435761u) % 1009) / 504.5f - 1;
    return v;
}

static void call(void *arg, struct kx_ctx *ctx, int i, int count) {
    (void)count; /* 1: a CPU */
    struct op *o = arg;
    const struct shape *s = o->s;
    struct kx_tensor x = {o->x[i], 1, s->h, s->w, o->in}, y = {o->y[i], 1, o->oh, o->ow, o->out};
    size_t width = (size_t)o->in;
    struct kx_attention a = {.q = o->x[i],
                             .k = o->keys[i],
                             .v = o->keys[i] + width,
                             .out = o->y[i],
                             .q_stride = width,
                             .k_stride = 2 * width,
                             .v_stride = 2 * width,
                             .out_stride = width,
                             .n = 1,
                             .rows = s->h,
                             .length = s->kernel,
                             .heads = s->in,
                             .dim = s->out,
                             .scale = 0.2f};
    switch (s->kind) {
    case CONV:
    case DOUBLED:
        kx_conv(ctx, o->conv, &x, NULL, NULL, &y);
        break;
    case LINEAR:
    case GEGLU:
        kx_linear(ctx, o->linear, &x, NULL, &y);
        break;
    case ATTEND:
        kx_attention(ctx, &a);
        break;
    case GROUP:
        kx_group_norm(ctx, &x, o->bias, o->bias, s->kernel, 1e-5f, true, &y);
        break;
    case LAYER:
        kx_layer_norm(ctx, &x, o->bias, o->bias, 1e-5f, &y);
        break;
    case CONCAT:
        kx_concat(ctx, &x, &(struct kx_tensor){o->keys[i], 1, s->h, s->w, s->out}, &y);
        break;
    }
}

static void prepare(struct kx_ctx *ctx, struct op *o, int images) {
    const struct shape *s = o->s;
    o->oh = s->h, o->ow = s->w, o->in = s->in, o->out = s->out;
    int pad = s->kernel / 2;
    if (s->kind == CONV)
        o->oh = (s->h + 2 * pad - s->kernel) / s->stride + 1,
        o->ow = (s->w + 2 * pad - s->kernel) / s->stride + 1;
    if (s->kind == DOUBLED) o->oh *= 2, o->ow *= 2;
    if (s->kind == GEGLU) o->out /= 2;
    if (s->kind == ATTEND) o->in = o->out = s->in * s->out;
    if (s->kind == CONCAT) o->out = s->in + s->out;
    bool layer = s->kind <= GEGLU;
    o->weights = numbers(layer ? (size_t)(s->in * s->kernel * s->kernel) * (size_t)s->out : 1);
    o->bias = numbers((size_t)s->out + (size_t)o->in);
    for (int i = 0; i < images; i++) {
        o->x[i] = numbers((size_t)(s->h * s->w) * (size_t)o->in);
        o->y[i] = numbers((size_t)(o->oh * o->ow) * (size_t)o->out);
        o->keys[i] = s->kind == ATTEND   ? numbers((size_t)s->kernel * 2 * (size_t)o->in)
                     : s->kind == CONCAT ? numbers((size_t)(s->h * s->w) * (size_t)s->out)
                                         : NULL;
    }
    struct kx_conv_shape c = {s->in, s->out, s->kernel, s->stride, s->kind == DOUBLED};
    struct kn_err err;
    int rc = 0;
    if (s->kind <= DOUBLED) rc = kx_conv_create(ctx, &c, o->weights, o->bias, &o->conv, &err);
    if (s->kind == LINEAR || s->kind == GEGLU)
        rc = kx_linear_create(ctx, s->in, s->out, s->kind == GEGLU ? KX_ACT_GEGLU : KX_ACT_NONE, o->weights,
                              o->bias, &o->linear, &err);
    for (int i = -1; i < images && !rc; i++) {
        struct kx_ctx *at = i < 0 ? ctx : kx_ctx_lane(ctx, images, i);
        struct kx_arena arena;
        kx_plan_begin(at, &arena);
        call(o, at, 0, 1);
        rc = kx_plan_end(at, &err);
        if (images == 1) break;
    }
    if (rc) {
        fprintf(stderr, "bench-ops: %s\n", err.text);
        exit(1);
    }
}

static uint64_t now_us(int threads) {
    struct timespec t;
    if (threads > 1) return kn_clock_us();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* Seconds an image: the fastest of the runs of a third of a second. */
static double measure(struct kx_ctx *ctx, struct op *o, int lanes) {
    double best = 1e9;
    int threads = kx_ctx_threads(ctx);
    uint64_t begun = now_us(threads);
    for (int k = 0; k < 3 || now_us(threads) - begun < 300000; k++) {
        int rounds = 0;
        uint64_t t = now_us(threads), spent;
        do { /* at least half a millisecond: the clock counts microseconds */
            kx_ctx_each(ctx, lanes, lanes, call, o);
            rounds++;
        } while ((spent = now_us(threads) - t) < 500);
        double s = (double)spent * 1e-6 / rounds / lanes;
        if (s < best) best = s;
    }
    return best;
}

static double flops(const struct op *o) {
    const struct shape *s = o->s;
    double pixels = (double)o->oh * o->ow, k = s->kernel * s->kernel;
    if (s->kind <= GEGLU) return 2 * pixels * s->in * s->out * k;
    return s->kind == ATTEND ? 4.0 * s->h * s->kernel * s->in * s->out : 0;
}

static double bytes(const struct op *o) {
    const struct shape *s = o->s;
    return 4.0 * ((double)s->h * s->w * o->in * (s->kind == GROUP ? 2 : 1) + (double)o->oh * o->ow * o->out +
                  (s->kind == CONCAT ? (double)s->h * s->w * s->out : 0));
}

static void one(struct kx_ctx *ctx, const struct shape *s, const char *word) {
    struct op o = {.s = s};
    char line[96];
    if (s->kind == ATTEND)
        snprintf(line, sizeof line, "%s %dx%d, %d heads of %d", names[s->kind], s->h, s->kernel, s->in,
                 s->out);
    else
        snprintf(line, sizeof line, "%s %dx%d %d to %d, kernel %d, stride %d", names[s->kind], s->w, s->h,
                 s->in, s->out, s->kernel, s->stride);
    if (word && !strstr(line, word)) return;
    int threads = kx_ctx_threads(ctx);
    prepare(ctx, &o, threads);
    double alone = measure(ctx, &o, 1), lanes = threads > 1 ? measure(ctx, &o, threads) : alone,
           f = flops(&o);
    double count = f > 0 ? f : bytes(&o);
    printf("%-50s %9.3f ms %7.1f %s %9.3f ms %7.1f %s\n", line, alone * 1e3, count / alone * 1e-9,
           f > 0 ? "GFLOP/s" : "GB/s   ", lanes * 1e3, count / lanes * 1e-9, f > 0 ? "GFLOP/s" : "GB/s");
    fflush(stdout);
    for (int i = 0; i < threads; i++) free(o.x[i]), free(o.y[i]), free(o.keys[i]);
    free(o.weights), free(o.bias);
    if (o.conv) kx_conv_destroy(o.conv);
    if (o.linear) kx_linear_destroy(o.linear);
}

static int alone(char **argv) {
    int v[6];
    for (int i = 0; i < 6; i++)
        if ((v[i] = atoi(argv[i])) < 1) return 1;
    double s = onednn_alone(v[0], v[1], v[2], v[3], v[4], v[5]);
    printf("%.1f\n", 2.0 * v[0] * v[1] * v[2] * v[3] * v[4] * v[4] / s * 1e-9);
    return s < 0;
}

int main(int argc, char **argv) {
    if (argc == 8 && !strcmp(argv[1], "--alone")) return alone(argv + 2);
    int threads = argc > 1 ? atoi(argv[1]) : 0;
    if (threads < 0 || threads > THREADS_MAX) {
        fprintf(stderr, "usage: bench-ops [THREADS] [WORD]      THREADS: up to %d, 0 for all\n", THREADS_MAX);
        return 1;
    }
    struct kx_ctx *ctx;
    struct kn_err err;
    char device[160];
    if (kx_cpu_ctx_create(threads, &ctx, &err)) {
        fprintf(stderr, "bench-ops: %s\n", err.text);
        return 1;
    }
    kx_ctx_describe(ctx, device, sizeof device);
    printf("%s: %s\n", device, kx_ctx_facts(ctx));
    double s = onednn_alone(960, 320, 64, 64, 3, kx_ctx_threads(ctx));
    printf("%-50s %9.3f ms %7.1f GFLOP/s\n", "oneDNN alone, conv 64x64 960 to 320, kernel 3", s * 1e3,
           2.0 * 960 * 320 * 9 * 4096 / s * 1e-9);
    printf("%-50s %28s %28s\n", "", "one image, all threads", "an image a thread");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        one(ctx, &shapes[i], argc > 2 ? argv[2] : NULL);
    kx_ctx_destroy(ctx);
    return 0;
}
