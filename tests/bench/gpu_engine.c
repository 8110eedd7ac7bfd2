/* Images a second of the whole engine, texts to pixels, at each batch size: different prompts and seeds in
 * each image, the three stages overlapping as a worker drives them. A line of JSON a batch size, on standard
 * output; progress and errors on standard error. Works on a CPU too.
 *
 *     bench-gpu-engine --model DIR [--device cuda] [--batch 1,4,16,max] [--batches 4] [--warmup 1] [--steps
 * 20] [--size WxH]
 *                      [--cfg 7.5] [--sampler Euler] [--precision auto|f16|bf16|fp8] [--fastest]
 * [--own-kernels]
 *
 * images_per_s: over the timed batches, from the first one's texts to the last one's pixels. steps_per_s:
 * steps of a whole batch in the loop alone (at batch 1 what others call it/s). idle: the share of the time in
 * which the device had no work, by its own events; null on a CPU. Exit: 0, also when a batch does not fit
 * (its line says so); 1 bad usage or no engine; 2 when one failed. */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kernels/kiln.h"

enum { SIZES_MAX = 16, BATCH_MAX = KN_SHARD_TASKS_MAX };

struct options {
    const char *model;
    struct kiln_engine_options engine;
    int sizes[SIZES_MAX], size_count; /* 0: the largest that fits */
    int batches, warmup;
    struct kn_task settings;
};

static const char *const precisions[] = {"auto", "f16", "bf16", "fp8"}; /* as enum kiln_precision */

/* A place for one batch between two stages. */
struct slot {
    struct kiln_minibatch *b;
    bool full, end;
};

struct pipeline {
    const struct options *o;
    struct kiln_model *model;
    int n, count; /* images a batch, batches */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct slot ready, denoised;
    struct kn_task *tasks; /* n × count */
    char (*prompts)[64];
    int rc;
    struct kn_err err;
    uint64_t denoise_us; /* in the loop, by the second stage's thread */
    int images, bad;     /* by the third's */
};

/* ---- options */

static int usage(const char *words, const char *what) {
    fprintf(stderr, "bench-gpu-engine: %s%s%s\n", words, what ? ": " : "", what ? what : "");
    return 1;
}

static bool whole(const char *s, long min, long max, int *out) {
    char *end;
    errno = 0;
    long v = strtol(s, &end, 10);
    if (errno || end == s || *end || v < min || v > max) return false;
    *out = (int)v;
    return true;
}

static bool parse_sizes(struct options *o, char *list) {
    char *rest = NULL;
    o->size_count = 0;
    for (char *word = strtok_r(list, ",", &rest); word; word = strtok_r(NULL, ",", &rest)) {
        if (o->size_count == SIZES_MAX) return false;
        int *size = &o->sizes[o->size_count++];
        if (strcmp(word, "max") == 0)
            *size = 0;
        else if (!whole(word, 1, BATCH_MAX, size))
            return false;
    }
    return o->size_count > 0;
}

static bool parse_device(const char *s, struct kiln_engine_options *e) {
    e->device = strcmp(s, "cpu") == 0 ? KILN_DEVICE_CPU : KILN_DEVICE_CUDA;
    if (e->device == KILN_DEVICE_CPU || strcmp(s, "cuda") == 0) return true;
    return strncmp(s, "cuda:", 5) == 0 && whole(s + 5, 0, 63, &e->device_index);
}

static int parse(struct options *o, int argc, char **argv) {
    static const struct option table[] = {
        {"model", required_argument, NULL, 'm'},   {"device", required_argument, NULL, 'd'},
        {"batch", required_argument, NULL, 'b'},   {"batches", required_argument, NULL, 'n'},
        {"warmup", required_argument, NULL, 'w'},  {"steps", required_argument, NULL, 's'},
        {"size", required_argument, NULL, 'z'},    {"cfg", required_argument, NULL, 'c'},
        {"sampler", required_argument, NULL, 'a'}, {"precision", required_argument, NULL, 'p'},
        {"fastest", no_argument, NULL, 'f'},       {"own-kernels", no_argument, NULL, 'o'},
        {"threads", required_argument, NULL, 't'}, {NULL, 0, NULL, 0}};
    struct kn_task *t = &o->settings;
    int opt, v = 0;
    while ((opt = getopt_long(argc, argv, "", table, NULL)) != -1) {
        bool good = true;
        switch (opt) {
        case 'm':
            o->model = optarg;
            break;
        case 'd':
            good = parse_device(optarg, &o->engine);
            break;
        case 'b':
            good = parse_sizes(o, optarg);
            break;
        case 'n':
            good = whole(optarg, 1, 1000, &o->batches);
            break;
        case 'w':
            good = whole(optarg, 0, 1000, &o->warmup);
            break;
        case 's':
            good = whole(optarg, KN_STEPS_MIN, KN_STEPS_MAX, &v);
            t->steps = (uint32_t)v;
            t->set |= KN_SET_STEPS;
            break;
        case 'z':
            good = kn_size_parse(optarg, &t->width, &t->height, NULL) == 0;
            t->set |= KN_SET_SIZE;
            break;
        case 'c':
            t->cfg = strtof(optarg, NULL);
            t->set |= KN_SET_CFG;
            break;
        case 'a':
            good = kn_sampler_parse(optarg, &t->sampler, NULL) == 0;
            t->set |= KN_SET_SAMPLER;
            break;
        case 'p':
            good = false;
            for (int i = 0; i < 4; i++)
                if (strcmp(optarg, precisions[i]) == 0) {
                    o->engine.precision = (enum kiln_precision)i;
                    good = true;
                }
            break;
        case 'f':
            o->engine.fastest = true;
            break;
        case 'o':
            o->engine.own_kernels = true;
            break;
        case 't':
            good = whole(optarg, 1, 1024, &o->engine.threads);
            break;
        default:
            return 1;
        }
        if (!good) return usage("a wrong value", optarg);
    }
    if (optind < argc) return usage("what is it", argv[optind]);
    return o->model ? 0 : usage("--model is missing", NULL);
}

/* ---- the three stages */

static void give_up(struct pipeline *p, int rc, const struct kn_err *err) {
    pthread_mutex_lock(&p->lock);
    if (!p->rc) {
        p->rc = rc;
        p->err = *err;
    }
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

/* Takes the batch (NULL: there is no more) on success; false: given up, the batch is still the caller's. */
static bool hand_on(struct pipeline *p, struct slot *s, struct kiln_minibatch *b) {
    pthread_mutex_lock(&p->lock);
    while (s->full && !p->rc) pthread_cond_wait(&p->changed, &p->lock);
    bool ok = !p->rc;
    if (ok) *s = (struct slot){b, b != NULL, b == NULL};
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    return ok;
}

static struct kiln_minibatch *take(struct pipeline *p, struct slot *s) {
    pthread_mutex_lock(&p->lock);
    while (!s->full && !s->end && !p->rc) pthread_cond_wait(&p->changed, &p->lock);
    struct kiln_minibatch *b = s->full && !p->rc ? s->b : NULL;
    if (b) s->full = false;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    return b;
}

static int on_image(void *ctx, const struct kiln_image *image) {
    struct pipeline *p = ctx;
    p->images++;
    p->bad += image->status != 0;
    return 0;
}

static void *denoising(void *arg) {
    struct pipeline *p = arg;
    for (struct kiln_minibatch *b; (b = take(p, &p->ready)) != NULL;) {
        struct kn_err err = {0};
        uint64_t begun = kn_clock_us();
        int rc = kiln_minibatch_denoise(b, &err);
        p->denoise_us += kn_clock_us() - begun;
        if (rc) give_up(p, rc, &err);
        if (rc || !hand_on(p, &p->denoised, b)) kiln_minibatch_destroy(b);
    }
    (void)!hand_on(p, &p->denoised, NULL);
    return NULL;
}

static void *decoding(void *arg) {
    struct pipeline *p = arg;
    for (struct kiln_minibatch *b; (b = take(p, &p->denoised)) != NULL;) {
        struct kn_err err = {0};
        int rc = kiln_minibatch_finish(b, &err);
        kiln_minibatch_destroy(b);
        if (rc) give_up(p, rc, &err);
    }
    return NULL;
}

/* `count` batches of n images, one behind another. */
static int run(struct pipeline *p, const struct options *o, struct kiln_model *m, int n, int count) {
    pthread_t threads[2];
    *p = (struct pipeline){.o = o, .model = m, .n = n, .count = count};
    struct kiln_callbacks cb = {.ctx = p, .image = on_image};
    size_t all = (size_t)n * (size_t)count;
    p->tasks = calloc(all, sizeof *p->tasks);
    p->prompts = calloc(all, sizeof *p->prompts);
    if (!p->tasks || !p->prompts) return kn_err_set(&p->err, KN_ENOMEM, "out of memory");
    for (size_t i = 0; i < all; i++) {
        snprintf(p->prompts[i], sizeof p->prompts[i], "a red circle above %zu blue squares", i);
        p->tasks[i] = o->settings;
        p->tasks[i].prompt = p->prompts[i];
        p->tasks[i].seed = 1000 + i;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    if (pthread_create(&threads[0], NULL, denoising, p) || pthread_create(&threads[1], NULL, decoding, p))
        abort();
    for (int i = 0; i < count && !p->rc; i++) {
        struct kiln_minibatch *b = NULL;
        struct kn_err err = {0};
        int rc = kiln_minibatch_create(m, p->tasks + (size_t)i * (size_t)n, n, &cb, &b, &err);
        if (rc)
            give_up(p, rc, &err);
        else if (!hand_on(p, &p->ready, b))
            kiln_minibatch_destroy(b);
    }
    (void)!hand_on(p, &p->ready, NULL);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    if (p->ready.full) kiln_minibatch_destroy(p->ready.b);
    if (p->denoised.full) kiln_minibatch_destroy(p->denoised.b);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    return p->rc;
}

static void fini(struct pipeline *p) {
    free(p->tasks);
    free(p->prompts);
}

/* Text in JSON: what device and error texts have. */
static void put(const char *name, const char *text) {
    printf("\"%s\": \"", name);
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else if ((unsigned char)*text >= ' ')
            putchar(*text);
    fputs("\", ", stdout);
}

static int measure(const struct options *o, struct kiln_engine *e, struct kiln_model *m,
                   const struct kn_model_info *info, int n) {
    struct pipeline p = {0};
    struct kiln_busy busy = {0};
    const struct kn_task *t = &o->settings;
    bool largest = n == 0;
    int max = kiln_model_minibatch_max(m, t->width, t->height);
    if (max > BATCH_MAX) max = BATCH_MAX;
    if (largest) n = max;
    printf("{\"bench\": \"engine\", ");
    put("model", info->name);
    put("device", kiln_engine_device(e));
    put("backend", kiln_engine_backend(e));
    put("mode", o->engine.fastest ? "fastest" : "reproducible");
    put("precision", precisions[o->engine.precision]);
    put("sampler", kn_sampler_name(t->sampler));
    printf(
        "\"own_kernels\": %s, \"width\": %u, \"height\": %u, \"steps\": %u, \"cfg\": %g, \"batch\": %d, "
        "\"batch_max\": %d, ",
        o->engine.own_kernels ? "true" : "false", t->width, t->height, t->steps, (double)t->cfg, n, max);
    fflush(stdout);
    int rc = n > max ? kn_err_set(&p.err, KN_EOOM, "a batch of %d does not fit", n) : 0;
    if (!rc && o->warmup) {
        rc = run(&p, o, m, n, o->warmup);
        fini(&p);
    }
    kiln_engine_busy(e, &busy); /* begins anew */
    uint64_t begun = kn_clock_us();
    if (!rc) {
        rc = run(&p, o, m, n, o->batches);
        fini(&p);
    }
    double s = (double)(kn_clock_us() - begun) / 1e6;
    kiln_engine_busy(e, &busy);
    if (!rc && p.bad) rc = kn_err_set(&p.err, KN_ENAN, "%d of %d images are not numbers", p.bad, p.images);
    if (rc) {
        put("error", p.err.text);
        printf("\"images_per_s\": null}\n");
    } else {
        printf("\"images\": %d, \"seconds\": %.4f, \"images_per_s\": %.4f, \"steps_per_s\": %.3f, ", p.images,
               s, p.images / s, (double)o->batches * t->steps / ((double)p.denoise_us / 1e6));
        if (busy.span_ms > 0)
            printf("\"idle\": %.4f}\n", 1 - busy.busy_ms / busy.span_ms);
        else
            printf("\"idle\": null}\n");
    }
    fflush(stdout);
    return rc;
}

int main(int argc, char **argv) {
    struct options o = {
        .engine = {.device = KILN_DEVICE_CUDA}, .sizes = {1}, .size_count = 1, .batches = 4, .warmup = 1};
    struct kiln_engine *e = NULL;
    struct kiln_model *m = NULL;
    struct kn_model_info info;
    struct kn_err err = {0};
    int failed = 0, rc = parse(&o, argc, argv);
    if (rc) return rc;
    rc = kiln_model_describe(o.model, NULL, &info, &err);
    if (!rc) {
        struct kn_task *t = &o.settings;
        if (!(t->set & KN_SET_STEPS)) t->steps = info.defaults.steps;
        if (!(t->set & KN_SET_SIZE)) t->width = info.defaults.width, t->height = info.defaults.height;
        if (!(t->set & KN_SET_CFG)) t->cfg = info.defaults.cfg;
        if (!(t->set & KN_SET_SAMPLER)) t->sampler = KN_SAMPLER_EULER;
        t->schedule = KN_SCHEDULE_NORMAL;
        t->negative = (char *)(uintptr_t) "";
        t->extra = (char *)(uintptr_t) "";
        t->set = KN_SET_ALL;
        rc = kiln_engine_create(&o.engine, &e, &err);
    }
    if (!rc) rc = kiln_model_load(e, o.model, &m, &err);
    for (int i = 0; !rc && i < o.size_count; i++) {
        int one = measure(&o, e, m, &info, o.sizes[i]);
        if (one && one != KN_EOOM) failed = 2; /* what does not fit is a result */
        if (one == KN_EDEVICE) break;
    }
    if (rc) usage(err.text, NULL);
    kiln_model_destroy(m);
    kiln_engine_destroy(e);
    return rc ? 1 : failed;
}
