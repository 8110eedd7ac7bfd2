/* The CPU's context: threads, lanes, arenas, workspace. See kernels/ops.h.
 *
 * A lane is a context of one thread. When there are as many images as threads, each thread takes images on
 * its lane, and nobody waits for anybody inside of a network. */
#include "kernels/cpu/context.h"

#include "kernels/cpu/layer.h"

#include <assert.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#define THREADS_MAX 256
#define PRODUCTS_MAX 1000 /* eight sizes of a picture or so; each takes 100 to 200 KiB */

#if defined(__x86_64__)
const struct kx_vector *kx_vector_choose(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &kx_vector_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kx_vector_avx2;
    return &kx_vector_sse2;
}

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
const struct kx_vector *kx_vector_choose(void) {
    return &kx_vector_sse2;
}

static void describe_caches(char *out, size_t size) {
    snprintf(out, size, " %ldK %ldK", sysconf(_SC_LEVEL1_DCACHE_SIZE) >> 10,
             sysconf(_SC_LEVEL2_CACHE_SIZE) >> 10);
}
#endif

static int cores(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    long n = sched_getaffinity(0, sizeof set, &set) ? sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
    return n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : (int)n;
}

static int create_seats(struct kx_ctx *c, int first) {
    c->seats = calloc((size_t)c->threads, sizeof *c->seats);
    for (int i = 0; c->seats && i < c->threads; i++) c->seats[i].number = first + i;
    return c->seats ? 0 : KN_ENOMEM;
}

static int create(struct kx_ctx *c, struct kn_err *err) {
    c->lanes = calloc((size_t)c->threads, sizeof *c->lanes);
    if (!c->lanes || create_seats(c, 0)) return kn_err_set(err, KN_ENOMEM, "out of memory");
    int rc = kx_pool_create(c->threads, &c->pool, err);
    if (!rc) rc = kx_dnn_create(c->threads, &c->dnn, err);
    if (rc) return rc;
    for (int i = 0; i < c->threads; i++) {
        struct kx_ctx *lane = &c->lanes[i];
        *lane = (struct kx_ctx){.root = c, .vector = c->vector, .dnn = c->dnn, .threads = 1};
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

int kx_ctx_create(int threads, struct kx_ctx **out, struct kn_err *err) {
    *out = NULL;
    if (threads > THREADS_MAX)
        return kn_err_set(err, KN_EINVAL, "threads: %d is more than %d", threads, THREADS_MAX);
    struct kx_ctx *c = calloc(1, sizeof *c);
    if (!c) return kn_err_set(err, KN_ENOMEM, "out of memory");
    pthread_mutex_init(&c->lock, NULL);
    c->root = c;
    c->threads = threads > 0 ? threads : cores();
    c->vector = kx_vector_choose();
    int rc = create(c, err);
    if (rc)
        kx_ctx_destroy(c);
    else
        *out = c;
    return rc;
}

void kx_ctx_destroy(struct kx_ctx *c) {
    if (!c) return;
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

const char *kx_ctx_class(const struct kx_ctx *ctx) {
    return ctx->root->name;
}

const char *kx_ctx_facts(const struct kx_ctx *ctx) {
    return ctx->root->facts;
}

int kx_ctx_threads(const struct kx_ctx *ctx) {
    return ctx->threads;
}

void kx_ctx_describe(const struct kx_ctx *ctx, char *out, size_t size) {
    char line[256], model[128] = "CPU";
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "model name : %127[^\n]", model) == 1) break;
    if (f) fclose(f);
    snprintf(out, size, "%s, %d thread%s", model, ctx->threads, ctx->threads == 1 ? "" : "s");
}

void kx_ctx_fail(struct kx_ctx *ctx, int code, const char *text) {
    struct kx_ctx *root = ctx->root;
    pthread_mutex_lock(&root->lock);
    if (!root->error) {
        root->error = code;
        snprintf(root->error_text, sizeof root->error_text, "%s", text);
    }
    pthread_mutex_unlock(&root->lock);
}

int kx_ctx_error(struct kx_ctx *ctx, struct kn_err *err) {
    struct kx_ctx *root = ctx->root;
    pthread_mutex_lock(&root->lock);
    int code = root->error;
    root->error = 0;
    if (code) kn_err_set(err, code, "%s", root->error_text);
    pthread_mutex_unlock(&root->lock);
    return code;
}

void *kx_aligned(size_t bytes) {
    return aligned_alloc(64, kx_round64(bytes ? bytes : 1));
}

/* ---- lanes */

int kx_ctx_lanes(const struct kx_ctx *ctx, int n, size_t bytes) {
    if (ctx->threads == 1 || n < ctx->threads) return 1;
    size_t memory = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    return bytes <= memory / 4 / (size_t)ctx->threads ? ctx->threads : 1;
}

struct kx_ctx *kx_ctx_lane(struct kx_ctx *ctx, int lanes, int i) {
    assert(i >= 0 && i < lanes && lanes <= ctx->threads);
    return lanes == 1 ? ctx : &ctx->lanes[i];
}

struct each {
    struct kx_ctx *ctx;
    int lanes, n;
    void (*fn)(void *arg, struct kx_ctx *lane, int i);
    void *arg;
};

static void run_lane(void *arg, int lane, int thread) {
    (void)thread;
    const struct each *e = arg;
    for (int i = lane; i < e->n; i += e->lanes) e->fn(e->arg, &e->ctx->lanes[lane], i);
}

void kx_ctx_each(struct kx_ctx *ctx, int lanes, int n, void (*fn)(void *arg, struct kx_ctx *lane, int i),
                 void *arg) {
    assert(ctx->pool && lanes >= 1 && lanes <= ctx->threads);
    if (lanes == 1) {
        for (int i = 0; i < n; i++) fn(arg, ctx, i);
        return;
    }
    struct each e = {ctx, lanes, n, fn, arg};
    kx_pool_run(ctx->pool, lanes, run_lane, &e);
}

struct items {
    struct kx_ctx *ctx;
    kx_item *fn;
    void *arg;
};

static void run_item(void *arg, int i, int thread) {
    const struct items *it = arg;
    it->fn(it->arg, i, &it->ctx->seats[thread]);
}

void kx_parallel(struct kx_ctx *ctx, int n, kx_item *fn, void *arg) {
    if (ctx->threads == 1) {
        for (int i = 0; i < n; i++) fn(arg, i, ctx->seats);
        return;
    }
    struct items it = {ctx, fn, arg};
    kx_pool_run(ctx->pool, n, run_item, &it);
}

/* ---- memory */

int kx_arena_init(struct kx_arena *a, size_t floats) {
    *a = (struct kx_arena){.size = floats, .base = kx_aligned(floats * sizeof(float))};
    return a->base ? 0 : KN_EOOM;
}

void kx_arena_fini(struct kx_arena *a) {
    free(a->base);
    *a = (struct kx_arena){0};
}

void kx_use(struct kx_ctx *ctx, struct kx_arena *arena) {
    ctx->arena = arena;
    arena->used = 0;
}

float *kx_take(struct kx_ctx *ctx, size_t floats) {
    struct kx_arena *a = ctx->arena;
    size_t at = a->used;
    a->used += (floats + 15) & ~(size_t)15;
    if (a->used > a->peak) a->peak = a->used;
    if (ctx->planning) return (float *)(uintptr_t)64; /* never followed */
    assert(a->used <= a->size);
    return a->base + at;
}

size_t kx_mark(const struct kx_ctx *ctx) {
    return ctx->arena->used;
}

void kx_release(struct kx_ctx *ctx, size_t mark) {
    assert(mark <= ctx->arena->used);
    ctx->arena->used = mark;
}

struct kx_tensor kx_tensor_take(struct kx_ctx *ctx, int n, int h, int w, int c) {
    struct kx_tensor t = {NULL, n, h, w, c};
    t.v = kx_take(ctx, kx_count(&t));
    return t;
}

/* ---- planning */

void kx_plan_begin(struct kx_ctx *ctx, struct kx_arena *arena) {
    assert(!ctx->planning);
    *arena = (struct kx_arena){0};
    ctx->planning = true;
    ctx->shared_wanted = ctx->scratch_wanted = 0;
    kx_use(ctx, arena);
}

void kx_want(struct kx_ctx *ctx, size_t shared_bytes, size_t scratch_bytes) {
    assert(ctx->planning);
    if (shared_bytes > ctx->shared_wanted) ctx->shared_wanted = shared_bytes;
    if (scratch_bytes > ctx->scratch_wanted) ctx->scratch_wanted = scratch_bytes;
}

int kx_plan_end(struct kx_ctx *ctx, struct kn_err *err) {
    assert(ctx->planning);
    ctx->planning = false;
    ctx->arena = NULL;
    int rc = kx_ctx_error(ctx, err);
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

void kx_plan_trim(struct kx_ctx *ctx) {
    struct kx_ctx *root = ctx->root;
    if (kx_dnn_count(root->dnn) <= PRODUCTS_MAX) return;
    kx_layers_forget(root);
    kx_dnn_forget(root->dnn);
    root->age++;
}

unsigned kx_plan_age(const struct kx_ctx *ctx) {
    return ctx->root->age;
}

bool kx_planning(const struct kx_ctx *ctx) {
    return ctx->planning;
}
