/* Where a denoising step's time goes: renders with a model folder and adds up the ops by kind. The ops are
 * wrapped by the linker, each that kernels/backend.h lists (CMakeLists.txt), so that the engine measured is
 * the engine that ships.
 *
 *     bench-step MODEL [WIDTH HEIGHT [STEPS [CFG [THREADS]]]]
 *
 * Each line of standard input renders one picture and answers with one line of JSON: so that another program
 * can measure turn about (engine_vs_diffusers.py). step_ms is the median of all steps but the first; the rest
 * is of the steps alone too, as the share that an op's kind has in the time of all threads, and
 * floating-point operations of the plain algorithms; largest is the
 * convolution with the most work, of the whole picture: in, out, height, width, kernel. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "kernels/backend.h"
#include "kernels/cpu/context.h"
#include "kernels/kiln.h"

enum kind { CONV, MATMUL, ATTENTION, NORM, REST, KINDS, VALUES = REST, PICTURE = REST };
static const char *const names[KINDS] = {"convolution", "matrix_product", "attention", "norm", "rest"};

static _Atomic uint64_t spent_ns[KINDS], operations[KINDS];

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* On a lane an op has one thread, else all of them. */
static void note(const struct kx_ctx *ctx, enum kind kind, uint64_t begun, double flops) {
    atomic_fetch_add(&spent_ns[kind], (now_ns() - begun) * (uint64_t)kx_ctx_threads(ctx));
    atomic_fetch_add(&operations[kind], (uint64_t)flops);
}

/* The shape of the convolution with the most work. */
static struct {
    double flops;
    int in, out, h, w, kernel;
} largest;
static pthread_mutex_t largest_lock = PTHREAD_MUTEX_INITIALIZER;

static void note_largest(double flops, const struct kx_layer_shape *s, const struct kx_tensor *y) {
    pthread_mutex_lock(&largest_lock);
    if (flops > largest.flops && s->stride == 1 && !s->upsample) {
        largest.flops = flops;
        largest.in = s->in, largest.out = s->out, largest.h = y->h, largest.w = y->w,
        largest.kernel = s->kernel;
    }
    pthread_mutex_unlock(&largest_lock);
}

static double layer_flops(const void *layer, const struct kx_tensor *x, const struct kx_tensor *y) {
    const struct kx_layer_shape *s = kx_layer_shape(layer);
    double pixels = s->kernel == 1 && s->stride == 1 ? (double)x->h * x->w : (double)y->h * y->w,
           flops = 2 * pixels * s->in * s->out * s->kernel * s->kernel;
    note_largest(flops, s, y);
    return flops;
}

/* The operations of an op, by its kind (kernels/backend.h). */
#define FLOPS_CONV(ctx, c, x, time_proj, residual, y) layer_flops(c, x, y)
#define FLOPS_MATMUL(ctx, l, x, residual, y) layer_flops(l, x, y)
#define FLOPS_ATTENTION(ctx, a) 4.0 * (a)->rows *(a)->length *(a)->heads *(a)->dim
#define FLOPS_NORM(...) 0
#define FLOPS_VALUES(...) 0
#define FLOPS_PICTURE(...) 0

/* clang-format off */
#define WRAP(name, kind, parameters, arguments)                                                              \
    void __real_kx_##name parameters;                                                                        \
    void __wrap_kx_##name parameters;                                                                        \
    void __wrap_kx_##name parameters {                                                                       \
        uint64_t begun = now_ns();                                                                           \
        __real_kx_##name arguments;                                                                          \
        if (!kx_planning(ctx)) note(ctx, kind, begun, FLOPS_##kind arguments);                               \
    }
/* clang-format on */
KX_COMPUTING_OPS(WRAP)

/* ---- one picture */

#define STEPS_MAX 1000

struct watch {
    uint64_t last_us;
    double step_ms[STEPS_MAX];
    int steps;
    uint64_t spent_ns[KINDS], operations[KINDS]; /* at the end of the first step; at the end: of all others */
};

static int on_step(void *arg, int step, int steps) {
    struct watch *w = arg;
    uint64_t now = kn_clock_us();
    if (step > 1) w->step_ms[w->steps++] = (double)(now - w->last_us) / 1000;
    for (int k = 0; k < KINDS && (step == 1 || step == steps); k++) {
        w->spent_ns[k] = atomic_load(&spent_ns[k]) - (step == 1 ? 0 : w->spent_ns[k]);
        w->operations[k] = atomic_load(&operations[k]) - (step == 1 ? 0 : w->operations[k]);
    }
    w->last_us = kn_clock_us();
    return 0;
}

static int on_image(void *arg, const struct kiln_image *image) {
    (void)arg;
    return image->status;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void answer(struct watch *w, double picture_ms, int threads) {
    double all = 0, sum = 0, flops = 0;
    for (int i = 0; i < w->steps; i++) all += w->step_ms[i];
    qsort(w->step_ms, (size_t)w->steps, sizeof *w->step_ms, by_size);
    printf("{\"step_ms\": %.3f, \"picture_ms\": %.3f, \"threads\": %d", w->step_ms[w->steps / 2], picture_ms,
           threads);
    for (int k = 0; k < KINDS; k++) {
        double share = (double)w->spent_ns[k] * 1e-6 / (all * threads);
        if (k == REST) share = 1 - sum; /* what is in no op as well: waiting */
        sum += share;
        flops += (double)w->operations[k];
        printf(", \"%s\": %.4f", names[k], share);
        if (w->operations[k])
            printf(", \"%s_gflops\": %.1f", names[k],
                   (double)w->operations[k] * threads / ((double)w->spent_ns[k] + 1));
    }
    printf(", \"gflops\": %.1f, \"step_gflop\": %.3f, \"largest\": [%d, %d, %d, %d, %d]}\n",
           flops / (all * 1e6), flops / w->steps * 1e-9, largest.in, largest.out, largest.h, largest.w,
           largest.kernel);
    fflush(stdout);
}

static int number(int argc, char **argv, int i, int otherwise) {
    return argc > i ? atoi(argv[i]) : otherwise;
}

int main(int argc, char **argv) {
    struct kn_err err = {0};
    struct kiln_engine *engine = NULL;
    struct kiln_model *model = NULL;
    int threads = number(argc, argv, 6, 0), rc, c;
    if (argc < 2) {
        fprintf(stderr, "usage: bench-step MODEL [WIDTH HEIGHT [STEPS [CFG [THREADS]]]]\n");
        return 1;
    }
    struct kn_task task = {.prompt = (char *)"a red circle",
                           .negative = (char *)"",
                           .seed = 1,
                           .width = (uint32_t)number(argc, argv, 2, 128),
                           .height = (uint32_t)number(argc, argv, 3, 128),
                           .steps = (uint32_t)number(argc, argv, 4, 20),
                           .cfg = argc > 5 ? strtof(argv[5], NULL) : 7.5f,
                           .sampler = KN_SAMPLER_EULER,
                           .schedule = KN_SCHEDULE_NORMAL,
                           .set = KN_SET_ALL};
    if (task.steps < 3 || task.steps > STEPS_MAX) {
        fprintf(stderr, "bench-step: steps: 3 to %d\n", STEPS_MAX);
        return 1;
    }
    rc = kiln_engine_create(&(struct kiln_engine_options){.threads = threads}, &engine, &err);
    if (!rc) rc = kiln_model_load(engine, argv[1], &model, &err);
    if (!rc && !threads) { /* the engine took all: its name ends with ", N threads" */
        const char *comma = strrchr(kiln_engine_device(engine), ',');
        threads = comma ? atoi(comma + 1) : 1;
    }
    while (!rc && (c = getchar()) != EOF) {
        static struct watch w;
        if (c != '\n') continue;
        w = (struct watch){.last_us = kn_clock_us()};
        largest.flops = 0;
        for (int k = 0; k < KINDS; k++) {
            atomic_store(&spent_ns[k], 0);
            atomic_store(&operations[k], 0);
        }
        uint64_t begun = w.last_us;
        struct kiln_callbacks cb = {.ctx = &w, .step = on_step, .image = on_image};
        rc = kiln_render(model, &task, 1, &cb, &err);
        if (!rc) answer(&w, (double)(kn_clock_us() - begun) / 1000, threads);
    }
    kiln_model_destroy(model);
    kiln_engine_destroy(engine);
    if (rc) fprintf(stderr, "bench-step: %s\n", err.text);
    return rc ? 1 : 0;
}
