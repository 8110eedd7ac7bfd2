/* A CUDA context: stream, name and facts, errors, waiting. See kernels/cuda/context.h. */
#include "kernels/cuda/context.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/map.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cudnn.h"
#include "kernels/cuda/library.h"
#include "kernels/cuda/table.h"

/* ---- devices */

int kx_cuda_device_count(void) {
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess) return n;
    (void)cudaGetLastError(); /* no driver, or no device: no error of ours */
    return 0;
}

int kx_cuda_device_facts(int device, struct kx_cuda_device_facts *out, struct kn_err *err) {
    struct cudaDeviceProp p;
    int n = 0;
    *out = (struct kx_cuda_device_facts){0};
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        return kn_err_set(err, KN_ENOENT, "no CUDA device: %s", cudaGetErrorString(e));
    }
    if (device < 0 || device >= n)
        return kn_err_set(err, KN_ENOENT, "there is no CUDA device %d, but %d of them", device, n);
    if ((e = cudaGetDeviceProperties(&p, device)) != cudaSuccess) {
        (void)cudaGetLastError();
        return kn_err_set(err, KN_EDEVICE, "CUDA device %d: %s", device, cudaGetErrorString(e));
    }
    snprintf(out->name, sizeof out->name, "%.127s", p.name);
    memcpy(out->uuid, &p.uuid, sizeof out->uuid);
    out->major = p.major;
    out->minor = p.minor;
    out->sm_count = p.multiProcessorCount;
    out->memory_bytes = p.totalGlobalMem;
    return 0;
}

static void device_free(struct kx_gpu_device *d) {
    if (!d) return;
    kx_variants_destroy(d->variants);
    kx_library_close(d->library);
    kn_map_destroy(d->blocks);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static int device_create(const struct kx_cuda_options *o, struct kx_gpu_device **out, struct kn_err *err) {
    struct kx_gpu_device *d = calloc(1, sizeof *d);
    *out = NULL;
    if (!d) return kn_err_set(err, KN_ENOMEM, "out of memory");
    pthread_mutex_init(&d->lock, NULL);
    atomic_init(&d->users, 1);
    atomic_init(&d->dead, false);
    atomic_init(&d->beat_ms, 0);
    d->index = o->device;
    d->hang_ms = o->hang_ms;
    d->max = o->memory_max ? o->memory_max : SIZE_MAX;
    int rc = kx_cuda_device_facts(o->device, &d->facts, err);
    if (!rc && d->facts.major < 8)
        rc = kn_err_set(err, KN_EUNSUPPORTED, "%s is sm_%d%d, older than sm_80", d->facts.name,
                        d->facts.major, d->facts.minor);
    if (!rc && !(d->blocks = kn_map_create(KX_GPU_BLOCKS_MAX)))
        rc = kn_err_set(err, KN_ENOMEM, "out of memory");
    if (!rc) rc = kx_variants_create(10 * d->facts.major + d->facts.minor, &d->variants, err);
    if (!rc && !o->own_kernels) rc = kx_library_open(&d->library, err);
    if (rc)
        device_free(d);
    else
        *out = d;
    return rc;
}

void kx_gpu_device_retain(struct kx_gpu_device *d) {
    atomic_fetch_add(&d->users, 1);
}

void kx_gpu_device_release(struct kx_gpu_device *d) {
    if (atomic_fetch_sub(&d->users, 1) > 1) return;
    assert(kx_gpu_dead(d) || kn_map_count(d->blocks) == 0); /* all that was allocated was freed */
    device_free(d);
}

/* ---- errors */

static void bury(struct kx_gpu_device *d, const char *text) {
    pthread_mutex_lock(&d->lock);
    if (!kx_gpu_dead(d)) {
        snprintf(d->dead_text, sizeof d->dead_text, "%s", text);
        atomic_store_explicit(&d->dead, true, memory_order_release);
    }
    pthread_mutex_unlock(&d->lock);
}

void kx_cuda_give_up(struct kx_ctx *ctx, const char *why) {
    bury(kx_gpu_of(ctx)->device, why);
}

bool kx_gpu_enter(struct kx_gpu *g) {
    if (kx_gpu_dead(g->device)) return false;
    return kx_gpu_ok(g, cudaSetDevice(g->device->index), "choosing the device");
}

void kx_gpu_fail(struct kx_gpu *g, int code, const char *fmt, ...) {
    g->failures++;
    if (g->error) return;
    va_list args;
    va_start(args, fmt);
    vsnprintf(g->error_text, sizeof g->error_text, fmt, args);
    va_end(args);
    g->error = code;
}

/* Errors after which every call fails until the process ends. What is in no list shows itself: the runtime
 * forgets an error when it is asked for it (cudaGetLastError), unless it sticks. */
static bool sticks(cudaError_t e) {
    switch ((int)e) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
        (void)cudaGetLastError();
        return true;
    default:
        (void)cudaGetLastError();
        return cudaGetLastError() != cudaSuccess;
    }
}

bool kx_gpu_ok(struct kx_gpu *g, cudaError_t e, const char *op) {
    if (e == cudaSuccess) return true;
    g->failures++;
    if (kx_gpu_dead(g->device)) return false;
    if (sticks(e)) {
        char text[256];
        snprintf(text, sizeof text, "%s (device %d), noticed at: %s: %s (%s)", g->device->facts.name,
                 g->device->index, op, cudaGetErrorString(e), cudaGetErrorName(e));
        bury(g->device, text);
    } else if (e == cudaErrorMemoryAllocation) {
        kx_gpu_fail(g, KN_EOOM, "%s: out of device memory", op);
    } else if (e == KX_CUDA_NO) {
        kx_gpu_fail(g, KN_EUNSUPPORTED, "%s: no kernel for this shape", op);
    } else {
        kx_gpu_fail(g, KN_EINTERNAL, "%s: %s (%s)", op, cudaGetErrorString(e), cudaGetErrorName(e));
    }
    return false;
}

int kx_gpu_ctx_error(struct kx_ctx *ctx, struct kn_err *err) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    int code = g->error;
    g->error = 0;
    if (kx_gpu_dead(g->device)) return kn_err_set(err, KN_EDEVICE, "%s", g->device->dead_text);
    return code ? kn_err_set(err, code, "%s", g->error_text) : 0;
}

/* ---- waiting */

int kx_gpu_wait(struct kx_gpu *g, cudaEvent_t e, int timeout_ms, const char *op) {
    enum { EAGER = 64, PAUSE_NS = 20000, PAUSE_NS_MAX = 200000 };
    struct kx_gpu_device *d = g->device;
    uint64_t begun = kn_clock_ms();
    long pause_ns = PAUSE_NS;
    for (int i = 0;; i++) {
        if (!kx_gpu_enter(g)) return KN_EDEVICE;
        cudaError_t state = cudaEventQuery(e);
        uint64_t now = kn_clock_ms(), beat = atomic_load(&d->beat_ms);
        if (state == cudaSuccess) {
            atomic_store(&d->beat_ms, now);
            return 0;
        }
        if (state != cudaErrorNotReady) {
            kx_gpu_ok(g, state, op);
            return kx_gpu_dead(d) ? KN_EDEVICE : g->error;
        }
        (void)cudaGetLastError(); /* the runtime remembers that answer as if it were a failure */
        if (timeout_ms >= 0 && now - begun >= (uint64_t)timeout_ms) return KN_ETIMEOUT;
        if (beat < begun) beat = begun;
        if (d->hang_ms > 0 && now >= beat && now - beat >= (uint64_t)d->hang_ms) {
            char text[256];
            snprintf(text, sizeof text, "%s (device %d) hangs: %s: no answer for %d ms", d->facts.name,
                     d->index, op, d->hang_ms);
            bury(d, text);
            return KN_EDEVICE;
        }
        if (i < EAGER) continue;
        nanosleep(&(struct timespec){0, pause_ns}, NULL);
        if ((pause_ns += PAUSE_NS) > PAUSE_NS_MAX) pause_ns = PAUSE_NS_MAX;
    }
}

bool kx_gpu_drain(struct kx_gpu *g, const char *op) {
    assert(!g->capturing);
    return kx_gpu_enter(g) && kx_gpu_ok(g, cudaEventRecord(g->mark, g->stream), op) &&
           !kx_gpu_wait(g, g->mark, -1, op);
}

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

/* Whether the kernels were built for this architecture. Where they were not, the driver compiles them, and
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

bool kx_gpu_has_sm90(const struct kx_gpu_device *d) {
#ifdef KX_CUDA_SM90
    return d->facts.major == 9 && d->facts.minor == 0;
#else
    (void)d;
    return false;
#endif
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

/* ---- life */

/* The libraries' parts for this stream. What does not work here is left out, and the facts say so. */
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
#define KX_ENTRY(op) .op = kx_gpu_##op,
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
        rc = device_create(o, &g->device, err);
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
