/* A CUDA context: its stream, its name and facts, its life, and the table of what it can do. The top floor of
 * kernels/cuda/context.h. */
#include "kernels/cuda/context.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/map.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cudnn.h"
#include "kernels/cuda/layer.h"
#include "kernels/cuda/library.h"
#include "kernels/cuda/table.h"

int kx_gpu_sync(struct kx_ctx *ctx, struct kn_err *err) {
    (void)kx_gpu_drain(kx_gpu_of(ctx), "sync");
    return kx_gpu_ctx_error(ctx, err);
}

/* ---- what it is */

const char *kx_gpu_ctx_class(const struct kx_ctx *ctx) {
    return kx_gpu_of(ctx)->name;
}

const char *kx_gpu_ctx_facts(const struct kx_ctx *ctx) {
    return kx_gpu_of(ctx)->facts;
}

void kx_gpu_ctx_describe(const struct kx_ctx *ctx, char *out, size_t size) {
    const struct kx_gpu *g = kx_gpu_of(ctx);
    snprintf(out, size, "%s, %s%s", g->device->facts.name, g->type == KX_STORE_F16 ? "f16" : "bf16",
             g->reproducible ? "" : ", fastest");
}

int kx_gpu_ctx_threads(const struct kx_ctx *ctx) {
    (void)ctx;
    return 1;
}

const char *kx_cuda_recording_note(const struct kx_ctx *ctx) {
    return kx_gpu_of(ctx)->note;
}

/* True if the kernels were built for this architecture. Where they were not, the driver compiles them, and
 * its version moves bits. */
static bool built_for(const struct kx_cuda_device_facts *f) {
#ifdef KX_CUDA_ARCHITECTURES /* "80 86 89 90a 100 120": code of a major version runs on its later minors */
    for (const char *p = KX_CUDA_ARCHITECTURES; *p; p += strspn(p, " ;,")) {
        char *end;
        long arch = strtol(p, &end, 10);
        if (end == p) break;
        if (arch / 10 == f->major && arch % 10 <= f->minor) return true;
        p = end + strcspn(end, " ;,");
    }
#endif
    (void)f;
    return false;
}

static int write_facts(struct kx_gpu *g, struct kn_err *err) {
    const struct kx_cuda_device_facts *f = &g->device->facts;
    int driver = 0, runtime = 0;
    char compiler[64] = "", libraries[128] = "no libraries";
    if (cudaDriverGetVersion(&driver) != cudaSuccess || cudaRuntimeGetVersion(&runtime) != cudaSuccess)
        return kn_err_set(err, KN_EDEVICE, "the CUDA driver tells no version");
    if (!built_for(f)) snprintf(compiler, sizeof compiler, ", compiled by driver %d", driver);
    if (g->device->library) kx_library_facts(g->device->library, libraries, sizeof libraries);
    snprintf(g->name, sizeof g->name, "cuda-sm%d%d", f->major, f->minor);
    snprintf(g->facts, sizeof g->facts, "sm_%d%d, %d SMs; %s; %s; kernels of cuda %d%s%s; %s%s%s; table %s",
             f->major, f->minor, f->sm_count, g->type == KX_STORE_F16 ? "f16" : "bf16",
             g->reproducible ? "reproducible" : "fastest", runtime,
             kx_gpu_has_sm90(g->device) ? " with sm_90a's" : "", compiler, libraries,
             g->device->library && !g->lt ? ", cublaslt not used" : "",
             g->device->library && !g->dnn ? ", cudnn not used" : "",
             kx_variants_digest(g->device->variants));
    return 0;
}

/* ---- images: all at once, on the one stream */

int kx_gpu_ctx_lanes(const struct kx_ctx *ctx, int n, size_t bytes) {
    (void)ctx, (void)n, (void)bytes;
    return 1;
}

struct kx_ctx *kx_gpu_ctx_lane(struct kx_ctx *ctx, int lanes, int i) {
    assert(lanes == 1 && i == 0);
    return ctx;
}

int kx_gpu_ctx_minibatch(const struct kx_ctx *ctx, int n) {
    (void)ctx;
    return n;
}

void kx_gpu_ctx_each(struct kx_ctx *ctx, int lanes, int n, kx_images fn, void *arg) {
    assert(lanes == 1);
    if (n > 0) fn(arg, ctx, 0, n);
}

/* ---- the end of a plan: what the ops asked for is allocated */

int kx_gpu_workspace_end(struct kx_ctx *ctx, struct kn_err *err) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    int rc = kx_gpu_ctx_error(ctx, err);
    if (!rc) {
        kx_gpu_quantized_ready(g);
        rc = kx_gpu_ctx_error(ctx, err);
    }
    return rc || g->workspace_wanted <= g->workspace_bytes ? rc : kx_gpu_workspace_grow(g, err);
}

/* ---- life */

/* The libraries' parts for this stream. A library that does not work here is left out, and the facts
 * say so. */
static int library_init(struct kx_gpu *g, struct kn_err *err) {
    const struct kx_library *library = g->device->library;
    int rc = 0;
    if (library && library->lt_module) {
        size_t bytes = kx_lt_workspace_bytes(g->device->facts.major);
        if (!(g->lt_workspace = kx_gpu_take(g, bytes)))
            return kn_err_set(err, KN_EOOM, "out of memory for cuBLASLt's workspace of %zu MiB", bytes >> 20);
        rc = kx_lt_create(library, g->type, g->lt_workspace, bytes, &g->lt, err);
        if (rc && rc != KN_EUNSUPPORTED) return rc;
    }
    if (library && library->dnn_module) {
        rc = kx_cudnn_create(library, g->type, g->stream, &g->dnn, err);
        if (rc && rc != KN_EUNSUPPORTED) return rc;
    }
    if (!(g->choices = kn_map_create(KX_GPU_CHOICES_MAX))) return kn_err_set(err, KN_ENOMEM, "out of memory");
    return 0;
}

void kx_gpu_ctx_destroy(struct kx_ctx *ctx) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    struct kx_gpu_device *d = g->device;
    if (g->mark) (void)kx_gpu_drain(g, "end"); /* what is under way may read what is freed now */
    kx_gpu_choices_forget(g);
    if (!kx_gpu_dead(d)) {
        kx_lt_destroy(g->lt);
        kx_cudnn_destroy(g->dnn);
    }
    kx_gpu_give(d, g->lt_workspace);
    kx_gpu_memory_fini(g);
    if (!kx_gpu_dead(d)) {
        if (g->mark) (void)cudaEventDestroy(g->mark);
        if (g->stream) (void)cudaStreamDestroy(g->stream);
    }
    free(g);
    kx_gpu_device_release(d);
}

static const struct kx_backend backend = {
#define KX_ENTRY(op, ...) .op = kx_gpu_##op,
    KX_BACKEND_OPS(KX_ENTRY)
#undef KX_ENTRY
};

static int start(struct kx_gpu *g, const struct kx_cuda_options *o, struct kn_err *err) {
    int least = 0, greatest = 0; /* the lowest priority's number is the larger one */
    if (!kx_gpu_enter(g)) return kx_gpu_ctx_error(&g->base, err);
    if (kx_gpu_ok(g, cudaDeviceGetStreamPriorityRange(&least, &greatest), "stream priorities")) {
        int priority = least - o->priority;
        if (priority < greatest) priority = greatest;
        if (priority > least) priority = least;
        kx_gpu_ok(g, cudaStreamCreateWithPriority(&g->stream, cudaStreamNonBlocking, priority), "stream");
    }
    if (!g->error) kx_gpu_ok(g, cudaEventCreateWithFlags(&g->mark, cudaEventDisableTiming), "event");
    int rc = kx_gpu_ctx_error(&g->base, err);
    if (!rc) rc = library_init(g, err);
    return rc ? rc : write_facts(g, err);
}

int kx_cuda_ctx_create(const struct kx_cuda_options *o, struct kx_ctx **out, struct kn_err *err) {
    *out = NULL;
    struct kx_gpu *g = calloc(1, sizeof *g);
    if (!g) return kn_err_set(err, KN_ENOMEM, "out of memory");
    g->base = (struct kx_ctx){.backend = &backend, .value_bytes = 2, .align = KX_GPU_ALIGN};
    g->type = o->type;
    g->reproducible = !o->fastest;
    int rc = 0;
    if (o->parent) {
        assert(o->parent->backend == &backend && kx_gpu_of(o->parent)->device->index == o->device);
        g->device = kx_gpu_of(o->parent)->device;
        kx_gpu_device_retain(g->device);
    } else {
        rc = kx_gpu_device_create(o, &g->device, err);
    }
    if (rc) {
        free(g);
        return rc;
    }
    if ((rc = start(g, o, err)))
        kx_gpu_ctx_destroy(&g->base);
    else
        *out = &g->base;
    return rc;
}
