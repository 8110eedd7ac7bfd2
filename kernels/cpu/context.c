/* The CPU's context: threads, lanes, arenas, workspace. See kernels/ops.h.
 *
 * A lane is a context of one thread. When there are as many images as threads, each thread takes images on
 * its lane and meets no barrier inside of a network; oneDNN's primitives, made for one thread, run inside of
 * the parallel region. */
#define _GNU_SOURCE
#include "kernels/cpu/context.h"

#include <assert.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LANE_BYTES_MAX (96u << 20) /* an image that takes more is worth all threads */

const struct kx_vector *kx_vector_choose(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &kx_vector_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kx_vector_avx2;
    return &kx_vector_sse2;
}

static int cores(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    int n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return n < 1 ? 1 : n;
}

int kx_ctx_create(int threads, struct kx_ctx **out, struct kn_err *err) {
    *out = NULL;
    struct kx_ctx *c = calloc(1, sizeof *c);
    if (!c) return kn_err_set(err, KN_ENOMEM, "out of memory");
    c->root = c;
    c->threads = threads > 0 ? threads : cores();
    c->vector = kx_vector_choose();
    c->lanes = calloc((size_t)c->threads, sizeof *c->lanes);
    int rc =
        c->lanes ? kx_dnn_create(1 + c->threads, &c->dnn, err) : kn_err_set(err, KN_ENOMEM, "out of memory");
    if (rc) {
        kx_ctx_destroy(c);
        return rc;
    }
    for (int i = 0; i < c->threads; i++)
        c->lanes[i] =
            (struct kx_ctx){.root = c, .vector = c->vector, .dnn = c->dnn, .lane = 1 + i, .threads = 1};
    omp_set_num_threads(c->threads);
    snprintf(c->facts, sizeof c->facts, "%s, vectors of %s", kx_dnn_facts(c->dnn), c->vector->name);
    snprintf(c->name, sizeof c->name, "cpu-%s", c->vector->name);
    *out = c;
    return 0;
}

void kx_ctx_destroy(struct kx_ctx *c) {
    if (!c) return;
    for (int i = 0; c->lanes && i < c->threads; i++) free(c->lanes[i].workspace);
    free(c->lanes);
    free(c->workspace);
    kx_dnn_destroy(c->dnn);
    free(c);
}

const char *kx_ctx_class(const struct kx_ctx *ctx) {
    return ctx->name;
}

const char *kx_ctx_facts(const struct kx_ctx *ctx) {
    return ctx->facts;
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
    if (ctx->error) return;
    ctx->error = code;
    snprintf(ctx->error_text, sizeof ctx->error_text, "%s", text);
}

int kx_ctx_error(struct kx_ctx *ctx, struct kn_err *err) {
    int code = ctx->error;
    ctx->error = 0;
    return code ? kn_err_set(err, code, "%s", ctx->error_text) : 0;
}

void *kx_aligned(size_t bytes) {
    return aligned_alloc(64, (bytes + 63) & ~(size_t)63);
}

/* ---- lanes */

int kx_ctx_lanes(const struct kx_ctx *ctx, int n, size_t bytes) {
    return ctx->threads > 1 && n >= ctx->threads && bytes <= LANE_BYTES_MAX ? ctx->threads : 1;
}

struct kx_ctx *kx_ctx_lane(struct kx_ctx *ctx, int lanes, int i) {
    assert(i < lanes && lanes <= ctx->threads);
    return lanes == 1 ? ctx : &ctx->lanes[i];
}

void kx_ctx_each(struct kx_ctx *ctx, int lanes, int n, void (*fn)(void *arg, struct kx_ctx *lane, int i),
                 void *arg) {
    if (lanes == 1) {
        for (int i = 0; i < n; i++) fn(arg, ctx, i);
        return;
    }
#pragma omp parallel for schedule(static, 1) num_threads(lanes)
    for (int l = 0; l < lanes; l++)
        for (int i = l; i < n; i += lanes) fn(arg, &ctx->lanes[l], i);
}

void kx_parallel(struct kx_ctx *ctx, int n, void (*fn)(void *arg, int i), void *arg) {
    if (ctx->threads == 1 || n < 2) {
        for (int i = 0; i < n; i++) fn(arg, i);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int i = 0; i < n; i++) fn(arg, i);
}

/* ---- memory */

int kx_arena_init(struct kx_arena *a, size_t floats) {
    *a = (struct kx_arena){.size = floats, .base = kx_aligned((floats ? floats : 1) * sizeof(float))};
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
    ctx->wanted = 0;
    kx_use(ctx, arena);
}

void kx_ctx_want(struct kx_ctx *ctx, size_t bytes) {
    if (bytes > ctx->wanted) ctx->wanted = bytes;
}

int kx_plan_end(struct kx_ctx *ctx, struct kn_err *err) {
    assert(ctx->planning);
    ctx->planning = false;
    ctx->arena = NULL;
    int rc = kx_ctx_error(ctx, err);
    if (rc || ctx->wanted <= ctx->workspace_bytes) return rc;
    free(ctx->workspace);
    ctx->workspace_bytes = ctx->wanted;
    if ((ctx->workspace = kx_aligned(ctx->wanted))) return 0;
    ctx->workspace_bytes = 0;
    return kn_err_set(err, KN_EOOM, "out of memory for a workspace of %zu MiB", ctx->wanted >> 20);
}

bool kx_planning(const struct kx_ctx *ctx) {
    return ctx->planning;
}
