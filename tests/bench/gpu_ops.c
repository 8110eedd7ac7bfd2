/* Where the time of a batch goes on a GPU, op by op: renders one batch with nothing recorded, a mark in the
 * stream before and behind each op, and adds up by kind and shape: milliseconds, share, TFLOP/s of the plain
 * algorithm, and that as a share of the ceiling. The ops are wrapped by the linker (CMakeLists.txt), so that
 * the engine measured is the engine that ships; but one by one, so that what a recording hides (launches,
 * gaps) is in it: the whole is what bench-gpu-engine says.
 *
 *     bench-gpu-ops --model DIR [--batch N] [--steps N] [--size WxH] [--cfg X] [--precision TYPE]
 * [--own-kernels]
 *                   [--ceiling TFLOPS] [--top N]
 *
 * A line of JSON for each kind and shape, the most expensive first; then one for all of a stage. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/spec.h"
#include "kernels/backend.h"
#include "kernels/cuda/layer.h"
#include "kernels/engine.h"
#include "kernels/models/models.h"

enum { MARKS_MAX = 8192, ROWS_MAX = 2048 };

struct row {
    char name[96];
    bool loop; /* of the denoising loop; else of the decoder */
    long calls;
    double ms, flops;
};

static struct row rows[ROWS_MAX];
static int row_count;
static struct pending {
    struct kx_event *from, *to;
    struct row *row;
    double flops;
} pending[MARKS_MAX];
static int pending_count;
static struct kx_ctx *marked; /* whose marks they are */
static bool on, loop;         /* ops are noted now */

static struct row *row_of(const char *name) {
    for (int i = 0; i < row_count; i++)
        if (rows[i].loop == loop && !strcmp(rows[i].name, name)) return &rows[i];
    if (row_count == ROWS_MAX) abort();
    struct row *r = &rows[row_count++];
    *r = (struct row){.loop = loop};
    snprintf(r->name, sizeof r->name, "%s", name);
    return r;
}

/* Waits, and adds up what is pending. */
static void settle(struct kx_ctx *ctx) {
    struct kn_err err;
    if (kx_sync(ctx, &err)) {
        fprintf(stderr, "bench-gpu-ops: %s\n", err.text);
        exit(2);
    }
    for (int i = 0; i < pending_count; i++) {
        struct pending *p = &pending[i];
        p->row->ms += kx_event_ms(ctx, p->from, p->to);
        p->row->flops += p->flops;
        p->row->calls++;
    }
    pending_count = 0;
}

/* NULL: not noted now. */
static struct pending *begin(struct kx_ctx *ctx, const char *name, double flops) {
    if (!on || kx_planning(ctx)) return NULL;
    if (pending_count == MARKS_MAX) settle(ctx);
    struct pending *p = &pending[pending_count++];
    struct kn_err err;
    if (marked != ctx && marked) { /* events belong to a context */
        for (int i = 0; i < MARKS_MAX && pending[i].from; i++) {
            kx_event_destroy(marked, pending[i].from);
            kx_event_destroy(marked, pending[i].to);
            pending[i].from = pending[i].to = NULL;
        }
    }
    marked = ctx;
    if (!p->from && (kx_event_create(ctx, &p->from, &err) || kx_event_create(ctx, &p->to, &err))) exit(2);
    p->row = row_of(name);
    p->flops = flops;
    kx_event_set(ctx, p->from);
    return p;
}

static void end(struct kx_ctx *ctx, struct pending *p) {
    if (p) kx_event_set(ctx, p->to);
}

static const struct kx_conv_shape *shape_of(const void *layer) {
    return &((const struct kx_gpu_layer *)layer)->shape;
}

static double pixels(const struct kx_tensor *t) {
    return (double)t->n * t->h * t->w;
}

static double product(const void *layer, const struct kx_tensor *y) {
    const struct kx_conv_shape *s = shape_of(layer);
    return 2 * pixels(y) * s->in * s->out * s->kernel * s->kernel;
}

/* The line of an op, by its kind (kernels/backend.h), and its operations. */
#define TEXT_CONV(name, ctx, c, x, time_proj, residual, y)                                                   \
    "convolution %dx%d%s%s %d to %d at %dx%d", shape_of(c)->kernel, shape_of(c)->kernel,                     \
        shape_of(c)->stride > 1 ? " stride 2" : "", shape_of(c)->upsample ? " doubled" : "", (x)->c, (y)->c, \
        (y)->w, (y)->h
#define TEXT_MATMUL(name, ctx, l, x, residual, y)                                                            \
    "linear %d to %d%s, %d rows an image", shape_of(l)->in, shape_of(l)->out,                                \
        ((const struct kx_gpu_layer *)(const void *)(l))->act == KX_ACT_GEGLU ? " geglu" : "",               \
        (x)->h *(x)->w
#define TEXT_ATTENTION(name, ctx, a)                                                                         \
    "attention %d heads of %d, %d rows, %d keys", (a)->heads, (a)->dim, (a)->rows, (a)->length
#define TEXT_NORM(name, ...) name " of %d at %dx%d", x->c, x->w, x->h
#define TEXT_VALUES(name, ...) name " of %d at %dx%d", y->c, y->w, y->h
#define TEXT_PICTURE(name, ...) name

#define FLOPS_CONV(ctx, c, x, time_proj, residual, y) product(c, y)
#define FLOPS_MATMUL(ctx, l, x, residual, y) product(l, y)
#define FLOPS_ATTENTION(ctx, a) 4.0 * (a)->n *(a)->rows *(a)->length *(a)->heads *(a)->dim
#define FLOPS_NORM(...) 0
#define FLOPS_VALUES(...) 0
#define FLOPS_PICTURE(...) 0

/* clang-format off */
#define WITHOUT_BRACKETS(...) __VA_ARGS__
#define TEXT(kind, ...) TEXT_##kind(__VA_ARGS__)
#define WRAP(name, kind, parameters, arguments)                                                              \
    void __real_kx_##name parameters;                                                                        \
    void __wrap_kx_##name parameters;                                                                        \
    void __wrap_kx_##name parameters {                                                                       \
        char text[96];                                                                                       \
        snprintf(text, sizeof text, TEXT(kind, #name, WITHOUT_BRACKETS arguments));                          \
        struct pending *p_ = begin(ctx, text, FLOPS_##kind arguments);                                       \
        __real_kx_##name arguments;                                                                          \
        end(ctx, p_);                                                                                        \
    }
/* clang-format on */
KX_COMPUTING_OPS(WRAP)

/* A step of the loop: nothing is recorded. */
void __wrap_kx_replay(struct kx_ctx *ctx, struct kx_recording **r, void (*fn)(void *arg), void *arg);
void __wrap_kx_replay(struct kx_ctx *ctx, struct kx_recording **r, void (*fn)(void *arg), void *arg) {
    (void)r;
    loop = true;
    fn(arg);
    if (on) settle(ctx);
}

int __real_kx_vae_decode(struct kx_vae *v, const float *latents, int n, int h, int w, float *rgb,
                         uint8_t *bytes, int32_t *finite, struct kn_err *err);
int __wrap_kx_vae_decode(struct kx_vae *v, const float *latents, int n, int h, int w, float *rgb,
                         uint8_t *bytes, int32_t *finite, struct kn_err *err);
int __wrap_kx_vae_decode(struct kx_vae *v, const float *latents, int n, int h, int w, float *rgb,
                         uint8_t *bytes, int32_t *finite, struct kn_err *err) {
    loop = false;
    int rc = __real_kx_vae_decode(v, latents, n, h, w, rgb, bytes, finite, err);
    if (on && !rc && marked) settle(marked);
    return rc;
}

static int on_image(void *ctx, const struct kiln_image *im) {
    (void)ctx;
    return im->status && im->status != KN_ENAN; /* random weights may do that */
}

static int by_time(const void *a, const void *b) {
    double x = ((const struct row *)a)->ms, y = ((const struct row *)b)->ms;
    return (x < y) - (x > y);
}

static void put(const struct row *r, const char *kind, double all, double ceiling, int batch) {
    double tflops = r->ms > 0 ? r->flops / r->ms / 1e9 : 0;
    printf(
        "{\"bench\": \"%s\", \"stage\": \"%s\", \"name\": \"%s\", \"batch\": %d, \"calls\": %ld, \"ms\": "
        "%.4f, "
        "\"share\": %.4f",
        kind, r->loop ? "loop" : "decode", r->name, batch, r->calls, r->ms, all > 0 ? r->ms / all : 0);
    if (r->flops > 0) printf(", \"tflops\": %.1f", tflops);
    if (r->flops > 0 && ceiling > 0) printf(", \"of_ceiling\": %.3f", tflops / ceiling);
    puts("}");
}

int main(int argc, char **argv) {
    static const struct option table[] = {
        {"model", required_argument, NULL, 'm'},   {"batch", required_argument, NULL, 'b'},
        {"steps", required_argument, NULL, 's'},   {"size", required_argument, NULL, 'z'},
        {"cfg", required_argument, NULL, 'c'},     {"precision", required_argument, NULL, 'p'},
        {"ceiling", required_argument, NULL, 'g'}, {"top", required_argument, NULL, 't'},
        {"own-kernels", no_argument, NULL, 'o'},   {NULL, 0, NULL, 0}};
    struct kiln_engine_options eo = {.device = KILN_DEVICE_CUDA};
    struct kn_task t = {.sampler = KN_SAMPLER_EULER, .schedule = KN_SCHEDULE_NORMAL, .steps = 3, .cfg = 7.5f};
    const char *model = NULL;
    int batch = 8, top = 30, opt;
    double ceiling = 0;
    while ((opt = getopt_long(argc, argv, "", table, NULL)) != -1) switch (opt) {
        case 'm':
            model = optarg;
            break;
        case 'b':
            batch = atoi(optarg);
            break;
        case 's':
            t.steps = (uint32_t)atoi(optarg);
            break;
        case 'z':
            if (kn_size_parse(optarg, &t.width, &t.height, NULL)) return 1;
            break;
        case 'c':
            t.cfg = strtof(optarg, NULL);
            break;
        case 'p':
            eo.precision = !strcmp(optarg, "f16")    ? KILN_PRECISION_F16
                           : !strcmp(optarg, "bf16") ? KILN_PRECISION_BF16
                           : !strcmp(optarg, "fp8")  ? KILN_PRECISION_FP8
                                                     : KILN_PRECISION_AUTO;
            break;
        case 'g':
            ceiling = strtod(optarg, NULL);
            break;
        case 't':
            top = atoi(optarg);
            break;
        case 'o':
            eo.own_kernels = true;
            break;
        default:
            return 1;
        }
    if (!model || batch < 1 || batch > 256 || t.steps < 1) {
        fputs("bench-gpu-ops: --model DIR is needed; --batch 1 to 256\n", stderr);
        return 1;
    }
    struct kiln_engine *e = NULL;
    struct kiln_model *m = NULL;
    struct kn_model_info info;
    struct kn_err err = {0};
    int rc = kiln_model_describe(model, NULL, &info, &err);
    if (!rc) rc = kiln_engine_create(&eo, &e, &err);
    if (!rc) rc = kiln_model_load(e, model, &m, &err);
    struct kn_task *tasks = calloc((size_t)batch, sizeof *tasks);
    if (!rc && tasks) {
        if (!t.width) t.width = info.defaults.width, t.height = info.defaults.height;
        t.prompt = (char *)(uintptr_t) "a red circle";
        t.negative = (char *)(uintptr_t) "";
        t.set = KN_SET_ALL;
        for (int i = 0; i < batch; i++) {
            tasks[i] = t;
            tasks[i].seed = (uint64_t)i;
        }
        struct kiln_callbacks cb = {.image = on_image};
        for (int round = 0; round < 2 && !rc; round++) { /* kernels are loaded and plans made in the first */
            on = round == 1;
            rc = kiln_render(m, tasks, batch, &cb, &err);
        }
    }
    if (!rc) {
        struct row sum[2] = {{.name = "all", .loop = false}, {.name = "all", .loop = true}};
        qsort(rows, (size_t)row_count, sizeof *rows, by_time);
        for (int i = 0; i < row_count; i++) {
            struct row *s = &sum[rows[i].loop];
            s->ms += rows[i].ms, s->flops += rows[i].flops, s->calls += rows[i].calls;
        }
        for (int i = 0; i < row_count && i < top; i++)
            put(&rows[i], "op", sum[rows[i].loop].ms, ceiling, batch);
        for (int i = 1; i >= 0; i--) put(&sum[i], "ops", sum[i].ms, ceiling, batch);
    } else {
        fprintf(stderr, "bench-gpu-ops: %s\n", err.text);
    }
    for (int i = 0; i < MARKS_MAX && marked && pending[i].from; i++) {
        kx_event_destroy(marked, pending[i].from);
        kx_event_destroy(marked, pending[i].to);
    }
    free(tasks);
    kiln_model_destroy(m);
    kiln_engine_destroy(e);
    return rc ? 2 : 0;
}
