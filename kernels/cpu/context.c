/* The CPU's context: threads, lanes, arenas, workspace. See kernels/ops.h.
 *
 * A lane is a context of one thread. When there are as many images as threads, each thread takes images on
 * its lane, and nobody waits for anybody inside of a network. */
#include "kernels/cpu/context.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/machine.h"

static const struct kx_backend backend;

#define THREADS_MAX 256
#define PRODUCTS_MAX 1000 /* eight sizes of a picture or so; each takes 100 to 200 KiB */

#if defined(__x86_64__)
/* oneDNN chooses the size of its blocks, and with it the order of sums, by the caches: each level's
 * size, and how many share it, as cpuid says: " 48K/1 1024K/1 32768K/2". */
static void describe_caches(char *out, size_t size) {
    unsigned a, b, c, d, leaf = 4;
    char vendor[13] = "";
    *out = 0;
    if (__get_cpuid(0, &a, (unsigned *)(void *)vendor, (unsigned *)(void *)(vendor + 8),
                    (unsigned *)(void *)(vendor + 4)) &&
        !strcmp(vendor, "AuthenticAMD"))
        leaf = 0x8000001d;
    for (unsigned i = 0; i < 8 && __get_cpuid_count(leaf, i, &a, &b, &c, &d) && (a & 31); i++) {
        if ((a & 31) == 2) continue; /* instructions */
        unsigned long bytes =
            (unsigned long)((b >> 22) + 1) * (((b >> 12) & 1023) + 1) * ((b & 4095) + 1) * (c + 1);
        size_t n = strlen(out);
        snprintf(out + n, size - n, " %luK/%u", bytes >> 10, ((a >> 14) & 4095) + 1);
    }
}
#else
static void describe_caches(char *out, size_t size) {
    snprintf(out, size, " %ldK %ldK", sysconf(_SC_LEVEL1_DCACHE_SIZE) >> 10,
             sysconf(_SC_LEVEL2_CACHE_SIZE) >> 10);
}
#endif

static int cores(const struct kn_machine *m) {
    return m->cores > THREADS_MAX ? THREADS_MAX : m->cores;
}

static int create_seats(struct kx_cpu *c, int first) {
    c->seats = calloc((size_t)c->threads, sizeof *c->seats);
    for (int i = 0; c->seats && i < c->threads; i++) c->seats[i].number = first + i;
    return c->seats ? 0 : KN_ENOMEM;
}

static int create(struct kx_cpu *c, struct kn_err *err) {
    c->lanes = calloc((size_t)c->threads, sizeof *c->lanes);
    if (!c->lanes || create_seats(c, 0)) return kn_err_set(err, KN_ENOMEM, "out of memory");
    int rc = kx_pool_create(c->threads, &c->pool, err);
    if (!rc) rc = kx_dnn_create(c->threads, &c->dnn, err);
    if (rc) return rc;
    for (int i = 0; i < c->threads; i++) {
        struct kx_cpu *lane = &c->lanes[i];
        *lane = (struct kx_cpu){.base = c->base, .root = c, .vector = c->vector, .dnn = c->dnn, .threads = 1};
        if (create_seats(lane, i)) return kn_err_set(err, KN_ENOMEM, "out of memory");
    }
    char caches[128];
    const char *fma = ""; /* libm has other functions with it */
#if defined(__x86_64__)
    if (__builtin_cpu_supports("fma")) fma = " fma";
#endif
    describe_caches(caches, sizeof caches);
    snprintf(c->name, sizeof c->name, "cpu-%s", c->vector->name);
    snprintf(c->facts, sizeof c->facts, "%s; vectors %s%s; caches%s", kx_dnn_facts(c->dnn), c->vector->name,
             fma, caches);
    return 0;
}

int kx_cpu_ctx_create(int threads, struct kx_ctx **out, struct kn_err *err) {
    *out = NULL;
    if (threads > THREADS_MAX)
        return kn_err_set(err, KN_EINVAL, "threads: %d is more than %d", threads, THREADS_MAX);
    struct kx_cpu *c = calloc(1, sizeof *c);
    if (!c) return kn_err_set(err, KN_ENOMEM, "out of memory");
    struct kn_machine machine;
    kn_machine_read("", &machine);
    pthread_mutex_init(&c->lock, NULL);
    c->base = (struct kx_ctx){.backend = &backend, .value_bytes = sizeof(float), .align = 64};
    c->room = (size_t)machine.memory_free;
    c->root = c;
    c->threads = threads > 0 ? threads : cores(&machine);
    c->vector = kx_vector_choose();
    int rc = create(c, err);
    if (rc)
        kx_cpu_ctx_destroy(&c->base);
    else
        *out = &c->base;
    return rc;
}

void kx_cpu_ctx_destroy(struct kx_ctx *ctx) {
    struct kx_cpu *c = kx_cpu_of(ctx);
    for (int i = 0; c->lanes && i < c->threads; i++) {
        free(c->lanes[i].workspace);
        free(c->lanes[i].seats);
    }
    free(c->lanes);
    free(c->workspace);
    free(c->seats);
    kx_pool_destroy(c->pool);
    kx_dnn_destroy(c->dnn);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static const struct kx_cpu *of(const struct kx_ctx *ctx) {
    return (const struct kx_cpu *)ctx;
}

const char *kx_cpu_ctx_class(const struct kx_ctx *ctx) {
    return of(ctx)->root->name;
}

const char *kx_cpu_ctx_facts(const struct kx_ctx *ctx) {
    return of(ctx)->root->facts;
}

int kx_cpu_ctx_threads(const struct kx_ctx *ctx) {
    return of(ctx)->threads;
}

void kx_cpu_ctx_describe(const struct kx_ctx *ctx, char *out, size_t size) {
    char line[256], model[128] = "CPU";
    int threads = of(ctx)->threads;
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "model name : %127[^\n]", model) == 1) break;
    if (f) fclose(f);
    snprintf(out, size, "%s, %d thread%s", model, threads, threads == 1 ? "" : "s");
}

void kx_cpu_fail(struct kx_cpu *ctx, int code, const char *text) {
    struct kx_cpu *root = ctx->root;
    pthread_mutex_lock(&root->lock);
    if (!root->error) {
        root->error = code;
        snprintf(root->error_text, sizeof root->error_text, "%s", text);
    }
    pthread_mutex_unlock(&root->lock);
}

int kx_cpu_ctx_error(struct kx_ctx *ctx, struct kn_err *err) {
    struct kx_cpu *root = kx_cpu_of(ctx)->root;
    pthread_mutex_lock(&root->lock);
    int code = root->error;
    root->error = 0;
    if (code) kn_err_set(err, code, "%s", root->error_text);
    pthread_mutex_unlock(&root->lock);
    return code;
}

int kx_cpu_sync(struct kx_ctx *ctx, struct kn_err *err) {
    return kx_cpu_ctx_error(ctx, err); /* everything is done when its call returns */
}

void *kx_aligned(size_t bytes) {
    return aligned_alloc(64, kx_round64(bytes ? bytes : 1));
}

/* ---- lanes */

int kx_cpu_ctx_lanes(const struct kx_ctx *ctx, int n, size_t bytes) {
    int threads = of(ctx)->threads;
    if (threads == 1 || n < threads) return 1;
    /* half of the room each for the UNet and the autoencoder, whose arenas stay */
    return bytes <= of(ctx)->room / 2 / (size_t)threads ? threads : 1;
}

void kx_cpu_ctx_room(struct kx_ctx *ctx, uint64_t bytes) {
    kx_cpu_of(ctx)->room = bytes < SIZE_MAX ? (size_t)bytes : SIZE_MAX;
}

uint64_t kx_cpu_ctx_room_get(const struct kx_ctx *ctx) {
    return of(ctx)->room;
}

struct kx_ctx *kx_cpu_ctx_lane(struct kx_ctx *ctx, int lanes, int i) {
    assert(i >= 0 && i < lanes && lanes <= of(ctx)->threads);
    return lanes == 1 ? ctx : &kx_cpu_of(ctx)->lanes[i].base;
}

int kx_cpu_ctx_minibatch(const struct kx_ctx *ctx, int n) {
    (void)ctx;
    (void)n;
    return 1;
}

struct each {
    struct kx_cpu *ctx;
    int lanes, n;
    kx_images fn;
    void *arg;
};

static void run_lane(void *arg, int lane, int thread) {
    (void)thread;
    const struct each *e = arg;
    for (int i = lane; i < e->n; i += e->lanes) e->fn(e->arg, &e->ctx->lanes[lane].base, i, 1);
}

void kx_cpu_ctx_each(struct kx_ctx *ctx, int lanes, int n, kx_images fn, void *arg) {
    struct kx_cpu *c = kx_cpu_of(ctx);
    assert(c->pool && lanes >= 1 && lanes <= c->threads);
    if (lanes == 1) {
        for (int i = 0; i < n; i++) fn(arg, ctx, i, 1);
        return;
    }
    struct each e = {c, lanes, n, fn, arg};
    kx_pool_run(c->pool, lanes, run_lane, &e);
}

struct items {
    struct kx_cpu *ctx;
    kx_item *fn;
    void *arg;
};

static void run_item(void *arg, int i, int thread) {
    const struct items *it = arg;
    it->fn(it->arg, i, &it->ctx->seats[thread]);
}

void kx_parallel(struct kx_cpu *ctx, int n, kx_item *fn, void *arg) {
    if (ctx->threads == 1) {
        for (int i = 0; i < n; i++) fn(arg, i, ctx->seats);
        return;
    }
    struct items it = {ctx, fn, arg};
    kx_pool_run(ctx->pool, n, run_item, &it);
}

/* ---- memory */

void *kx_cpu_alloc(struct kx_ctx *ctx, size_t bytes) {
    (void)ctx;
    return kx_aligned(bytes);
}

void kx_cpu_free(struct kx_ctx *ctx, void *p) {
    (void)ctx;
    free(p);
}

void kx_cpu_upload(struct kx_ctx *ctx, void *to, const void *from, size_t bytes) {
    (void)ctx;
    memcpy(to, from, bytes);
}

void kx_cpu_download(struct kx_ctx *ctx, void *to, const void *from, size_t bytes) {
    kx_cpu_upload(ctx, to, from, bytes);
}

void kx_cpu_upload_values(struct kx_ctx *ctx, void *to, const float *from, size_t n) {
    kx_cpu_upload(ctx, to, from, n * sizeof *from);
}

void kx_cpu_download_values(struct kx_ctx *ctx, float *to, const void *from, size_t n) {
    kx_cpu_upload(ctx, to, from, n * sizeof *to);
}

void kx_cpu_memory(struct kx_ctx *ctx, size_t *free_bytes, size_t *total_bytes) {
    (void)ctx;
    struct kn_machine m;
    kn_machine_read("", &m);
    *free_bytes = (size_t)m.memory_free;
    *total_bytes = (size_t)m.memory_total;
}

/* ---- planning */

void kx_cpu_workspace_begin(struct kx_ctx *ctx) {
    struct kx_cpu *c = kx_cpu_of(ctx);
    c->shared_wanted = c->scratch_wanted = 0;
}

void kx_want(struct kx_cpu *ctx, size_t shared_bytes, size_t scratch_bytes) {
    assert(ctx->base.planning);
    if (shared_bytes > ctx->shared_wanted) ctx->shared_wanted = shared_bytes;
    if (scratch_bytes > ctx->scratch_wanted) ctx->scratch_wanted = scratch_bytes;
}

int kx_cpu_workspace_end(struct kx_ctx *base, struct kn_err *err) {
    struct kx_cpu *ctx = kx_cpu_of(base);
    int rc = kx_cpu_ctx_error(base, err);
    if (rc || (ctx->shared_wanted <= ctx->shared_bytes && ctx->scratch_wanted <= ctx->scratch_bytes))
        return rc;
    if (ctx->shared_wanted > ctx->shared_bytes) ctx->shared_bytes = kx_round64(ctx->shared_wanted);
    if (ctx->scratch_wanted > ctx->scratch_bytes) ctx->scratch_bytes = kx_round64(ctx->scratch_wanted);
    size_t bytes = ctx->shared_bytes + (size_t)ctx->threads * ctx->scratch_bytes;
    free(ctx->workspace);
    if (!(ctx->workspace = kx_aligned(bytes))) {
        ctx->shared_bytes = ctx->scratch_bytes = 0;
        return kn_err_set(err, KN_EOOM, "out of memory for a workspace of %zu MiB", bytes >> 20);
    }
    for (int i = 0; i < ctx->threads; i++)
        ctx->seats[i].scratch = (char *)ctx->workspace + ctx->shared_bytes + (size_t)i * ctx->scratch_bytes;
    return 0;
}

size_t kx_cpu_workspace_wanted(const struct kx_ctx *ctx) {
    (void)ctx; /* small, and each thread's */
    return 0;
}

void kx_cpu_plan_trim(struct kx_ctx *ctx) {
    struct kx_cpu *root = kx_cpu_of(ctx)->root;
    if (kx_dnn_count(root->dnn) <= PRODUCTS_MAX) return;
    kx_layers_forget(root);
    kx_dnn_forget(root->dnn);
    root->plan_generation++;
}

unsigned kx_cpu_plan_generation(const struct kx_ctx *ctx) {
    return of(ctx)->root->plan_generation;
}

/* ---- order: everything is done when its call returns */

void kx_cpu_replay(struct kx_ctx *ctx, struct kx_recording **r, void (*fn)(void *arg), void *arg) {
    (void)ctx;
    (void)r;
    fn(arg);
}

void kx_cpu_recording_destroy(struct kx_ctx *ctx, struct kx_recording *r) {
    (void)ctx;
    (void)r;
}

int kx_cpu_event_create(struct kx_ctx *ctx, struct kx_event **out, struct kn_err *err) {
    (void)ctx;
    (void)err;
    *out = NULL;
    return 0;
}

void kx_cpu_event_destroy(struct kx_ctx *ctx, struct kx_event *e) {
    (void)ctx;
    (void)e;
}

void kx_cpu_event_set(struct kx_ctx *ctx, struct kx_event *e) {
    (void)ctx;
    (void)e;
}

double kx_cpu_event_ms(struct kx_ctx *ctx, struct kx_event *from, struct kx_event *to) {
    (void)ctx;
    (void)from;
    (void)to;
    return 0;
}

int kx_cpu_event_wait(struct kx_ctx *ctx, struct kx_event *e, int timeout_ms, struct kn_err *err) {
    (void)ctx;
    (void)e;
    (void)timeout_ms;
    (void)err;
    return 0;
}

/* ---- what a CPU has not */

int kx_cpu_quantize(struct kx_ctx *ctx, void *layer, const float *weight, float x_max, struct kn_err *err) {
    (void)ctx;
    (void)layer;
    (void)weight;
    (void)x_max;
    return kn_err_set(err, KN_EUNSUPPORTED, "a CPU computes with no eight-bit floats");
}

int kx_cpu_amax_record(struct kx_ctx *ctx, void *layer, bool on, struct kn_err *err) {
    (void)ctx;
    (void)layer;
    (void)on;
    return kn_err_set(err, KN_EUNSUPPORTED, "a CPU computes with no eight-bit floats");
}

float kx_cpu_amax(struct kx_ctx *ctx, void *layer) {
    (void)ctx;
    (void)layer;
    return 0;
}

static const struct kx_backend backend = {
#define KX_ENTRY(op, ...) .op = kx_cpu_##op,
    KX_BACKEND_OPS(KX_ENTRY)
#undef KX_ENTRY
};
