/* The device's memory: allocations that are counted, copies through pinned staging memory, the storage types
 * on the host, and the workspace that a plan gives to the ops. See kernels/cuda/context.h.
 *
 * Copies. An upload copies the caller's bytes to one of a few pinned stages and hands that to the device, in
 * the order of the stream: the caller goes on at once, and waits only where all stages are still under way
 * (16 MiB: the noise of a step of 64 pictures of 1024×1024). A stage is made when it is first used: loading a
 * network uses them all. A download fills stages while earlier ones are copied out. Neither may happen while
 * ops are recorded: a replay would copy what lay there then. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/map.h"
#include "kernels/cuda/context.h"

/* ---- allocations */

static size_t round_up(size_t bytes) {
    return bytes ? (bytes + KX_GPU_ALIGN - 1) / KX_GPU_ALIGN * KX_GPU_ALIGN : KX_GPU_ALIGN;
}

/* The map's values are pointers; this one's are byte counts. */
static bool remember(struct kx_gpu_device *d, void *p, size_t bytes) {
    if (kn_map_put(d->blocks, &p, sizeof p, (void *)(uintptr_t)bytes)) return false;
    d->used += bytes;
    return true;
}

void *kx_gpu_take(struct kx_gpu *g, size_t bytes) {
    struct kx_gpu_device *d = g->device;
    void *p = NULL;
    if (bytes > SIZE_MAX - KX_GPU_ALIGN || !kx_gpu_enter(g)) return NULL;
    bytes = round_up(bytes);
    pthread_mutex_lock(&d->lock);
    cudaError_t e = bytes <= d->max - d->used ? cudaMalloc(&p, bytes) : cudaErrorMemoryAllocation;
    if (e == cudaSuccess && !remember(d, p, bytes)) {
        (void)cudaFree(p);
        e = cudaErrorMemoryAllocation;
        p = NULL;
    }
    pthread_mutex_unlock(&d->lock);
    if (e == cudaErrorMemoryAllocation)
        (void)cudaGetLastError(); /* an ordinary answer: the next launch's error is not this one */
    else
        kx_gpu_ok(g, e, "allocating memory");
    return e == cudaSuccess ? p : NULL;
}

void kx_gpu_give(struct kx_gpu_device *d, void *p) {
    if (!p) return;
    pthread_mutex_lock(&d->lock);
    size_t bytes = (size_t)(uintptr_t)kn_map_remove(d->blocks, &p, sizeof p);
    assert(bytes); /* it is one of ours */
    d->used -= bytes;
    pthread_mutex_unlock(&d->lock);
    if (kx_gpu_dead(d)) return;
    /* an earlier kernel's failure may come out here; whoever asks the stream next is told too */
    (void)cudaSetDevice(d->index);
    (void)cudaFree(p);
}

void *kx_gpu_alloc(struct kx_ctx *ctx, size_t bytes) {
    return kx_gpu_take(kx_gpu_of(ctx), bytes);
}

void kx_gpu_free(struct kx_ctx *ctx, void *p) {
    kx_gpu_give(kx_gpu_of(ctx)->device, p);
}

void kx_gpu_memory(struct kx_ctx *ctx, size_t *free_bytes, size_t *total_bytes) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    struct kx_gpu_device *d = g->device;
    size_t there = 0, total = d->facts.memory_bytes;
    if (kx_gpu_enter(g)) kx_gpu_ok(g, cudaMemGetInfo(&there, &total), "asking for the memory");
    pthread_mutex_lock(&d->lock);
    size_t left = d->max - d->used;
    if (there > left) there = left;
    if (total > d->max) total = d->max;
    pthread_mutex_unlock(&d->lock);
    *free_bytes = there;
    *total_bytes = total;
}

/* ---- stages */

void kx_gpu_memory_fini(struct kx_gpu *g) {
    kx_gpu_give(g->device, g->workspace);
    kx_gpu_give(g->device, g->ones);
    for (int i = 0; i < KX_GPU_STAGES && !kx_gpu_dead(g->device); i++) {
        if (g->stages[i].done) (void)cudaEventDestroy(g->stages[i].done);
        if (g->stages[i].v) (void)cudaFreeHost(g->stages[i].v);
    }
}

static bool settle(struct kx_gpu *g, struct kx_gpu_stage *s, const char *op) {
    if (s->busy && kx_gpu_wait(g, s->done, -1, op)) return false;
    s->busy = false;
    return true;
}

static bool mark_busy(struct kx_gpu *g, struct kx_gpu_stage *s, const char *op) {
    return s->busy = kx_gpu_ok(g, cudaEventRecord(s->done, g->stream), op);
}

static bool make(struct kx_gpu *g, struct kx_gpu_stage *s) {
    if (!s->done &&
        !kx_gpu_ok(g, cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming), "making staging memory"))
        return false;
    return s->v || kx_gpu_ok(g, cudaMallocHost(&s->v, KX_GPU_STAGE_BYTES), "making staging memory");
}

struct kx_gpu_stage *kx_gpu_stage(struct kx_gpu *g, const char *op) {
    struct kx_gpu_stage *s = &g->stages[g->next_stage];
    assert(!g->capturing && !g->base.planning);
    if (!kx_gpu_enter(g) || !make(g, s) || !settle(g, s, op)) return NULL;
    g->next_stage = (g->next_stage + 1) % KX_GPU_STAGES;
    return s;
}

void kx_gpu_stage_send(struct kx_gpu *g, struct kx_gpu_stage *s, void *to, size_t bytes, const char *op) {
    if (kx_gpu_ok(g, cudaMemcpyAsync(to, s->v, bytes, cudaMemcpyHostToDevice, g->stream), op))
        mark_busy(g, s, op);
}

void kx_gpu_upload(struct kx_ctx *ctx, void *to, const void *from, size_t bytes) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    for (size_t at = 0, n; at < bytes; at += n) {
        n = bytes - at < KX_GPU_STAGE_BYTES ? bytes - at : KX_GPU_STAGE_BYTES;
        struct kx_gpu_stage *s = kx_gpu_stage(g, "upload");
        if (!s) return;
        memcpy(s->v, (const char *)from + at, n);
        kx_gpu_stage_send(g, s, (char *)to + at, n, "upload");
    }
}

/* Puts a stretch that has arrived in a stage where the caller wants it. */
typedef void (*arrived)(const struct kx_gpu *g, void *to, size_t at, const void *stage, size_t bytes);

static void fetch(struct kx_gpu *g, void *to, const void *from, size_t bytes, arrived fn) {
    enum { S = KX_GPU_STAGE_BYTES, N = KX_GPU_STAGES };
    struct kx_gpu_stage *stages[N] = {0}; /* stretch i is in the i % N-th */
    size_t count = (bytes + S - 1) / S;
    for (size_t i = 0; i < count + N; i++) {
        if (i >= N && i - N < count) {
            size_t at = (i - N) * S;
            struct kx_gpu_stage *s = stages[i % N];
            if (!settle(g, s, "download")) return;
            fn(g, to, at, s->v, bytes - at < S ? bytes - at : S);
        }
        if (i >= count) continue;
        size_t at = i * S, n = bytes - at < S ? bytes - at : S;
        struct kx_gpu_stage *s = stages[i % N] = kx_gpu_stage(g, "download");
        if (!s ||
            !kx_gpu_ok(g,
                       cudaMemcpyAsync(s->v, (const char *)from + at, n, cudaMemcpyDeviceToHost, g->stream),
                       "download") ||
            !mark_busy(g, s, "download"))
            return;
    }
}

static void copy_out(const struct kx_gpu *g, void *to, size_t at, const void *stage, size_t bytes) {
    (void)g;
    memcpy((char *)to + at, stage, bytes);
}

void kx_gpu_download(struct kx_ctx *ctx, void *to, const void *from, size_t bytes) {
    fetch(kx_gpu_of(ctx), to, from, bytes, copy_out);
}

/* ---- the storage types on the host */

static uint32_t bits_of(float v) {
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

static float float_of(uint32_t u) {
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}

/* IEEE 754 binary16. Values below its smallest normal one are rounded by adding 0.5, whose last bit is worth
 * 2^-24, as theirs is. */
static uint16_t half_of(float v) {
    uint32_t u = bits_of(v), sign = u >> 16 & 0x8000, a = u & 0x7fffffff, h;
    if (a > 0x7f800000)
        h = 0x7e00; /* NaN */
    else if (a >= 0x477ff000)
        h = 0x7c00; /* 65520 and above */
    else if (a >= 0x38800000)
        h = (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13;
    else
        h = bits_of(float_of(a) + 0.5f) - bits_of(0.5f);
    return (uint16_t)(sign | h);
}

static float float_of_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, a = h & 0x7fff;
    if (a >= 0x7c00) return float_of(sign | 0x7f800000 | (a & 0x3ff) << 13);
    if (a >= 0x400) return float_of(sign | ((a << 13) + 0x38000000));
    return float_of(sign | bits_of((float)a * 0x1p-24f));
}

static uint16_t bfloat_of(float v) {
    uint32_t u = bits_of(v);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

size_t kx_gpu_values(enum kx_store type, const float *v, size_t step, size_t n, uint16_t *out) {
    size_t bad = n;
    if (type == KX_STORE_F16)
        for (size_t i = n; i-- > 0;) {
            out[i] = half_of(v[i * step]);
            if ((out[i] & 0x7fff) == 0x7c00 && (bits_of(v[i * step]) & 0x7fffffff) != 0x7f800000) bad = i;
        }
    else
        for (size_t i = n; i-- > 0;) {
            out[i] = bfloat_of(v[i * step]);
            if ((out[i] & 0x7fff) == 0x7f80 && (bits_of(v[i * step]) & 0x7fffffff) != 0x7f800000) bad = i;
        }
    return bad;
}

/* A value that the type cannot hold becomes infinite, as on the device. */
void kx_gpu_upload_values(struct kx_ctx *ctx, void *to, const float *from, size_t n) {
    enum { EACH = KX_GPU_STAGE_BYTES / 2 };
    struct kx_gpu *g = kx_gpu_of(ctx);
    for (size_t at = 0, count; at < n; at += count) {
        count = n - at < EACH ? n - at : EACH;
        struct kx_gpu_stage *s = kx_gpu_stage(g, "upload");
        if (!s) return;
        (void)kx_gpu_values(g->type, from + at, 1, count, s->v);
        kx_gpu_stage_send(g, s, (uint16_t *)to + at, 2 * count, "upload");
    }
}

static void widen(const struct kx_gpu *g, void *to, size_t at, const void *stage, size_t bytes) {
    const uint16_t *v = stage;
    float *out = (float *)to + at / 2;
    for (size_t i = 0; i < bytes / 2; i++)
        out[i] = g->type == KX_STORE_F16 ? float_of_half(v[i]) : float_of((uint32_t)v[i] << 16);
}

void kx_gpu_download_values(struct kx_ctx *ctx, float *to, const void *from, size_t n) {
    fetch(kx_gpu_of(ctx), to, from, 2 * n, widen);
}

/* ---- plans: what the ops want of the workspace */

void kx_gpu_want(struct kx_gpu *g, size_t bytes) {
    assert(g->base.planning);
    if (bytes > g->workspace_wanted) g->workspace_wanted = bytes;
}

void kx_gpu_workspace_begin(struct kx_ctx *ctx) {
    kx_gpu_of(ctx)->workspace_wanted = 0;
}

int kx_gpu_workspace_grow(struct kx_gpu *g, struct kn_err *err) {
    size_t had = g->workspace_bytes, want = round_up(g->workspace_wanted);
    int rc = 0;
    if (!kx_gpu_drain(g, "workspace")) return kx_gpu_ctx_error(&g->base, err); /* the old one is in use */
    kx_gpu_give(g->device, g->workspace);
    g->workspace_generation++;
    g->workspace = kx_gpu_take(g, want);
    g->workspace_bytes = g->workspace ? want : 0;
    if (g->workspace) return 0;
    if (had && (g->workspace = kx_gpu_take(g, had)))
        g->workspace_bytes = had;
    else
        g->plan_generation++;
    rc = kx_gpu_ctx_error(&g->base, err);
    return rc ? rc : kn_err_set(err, KN_EOOM, "out of memory for a workspace of %zu MiB", want >> 20);
}

size_t kx_gpu_workspace_wanted(const struct kx_ctx *ctx) {
    return kx_gpu_of(ctx)->workspace_wanted;
}

unsigned kx_gpu_plan_generation(const struct kx_ctx *ctx) {
    return kx_gpu_of(ctx)->plan_generation;
}
