/* The device behind the contexts of a family: its facts, the errors that a context notes, and waiting for
 * it. The ground floor (kernels/cuda/context.h): it calls none of the backend's other files but for opening
 * the libraries and the table of variants. */
#include "kernels/cuda/context.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/map.h"
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

int kx_gpu_device_create(const struct kx_cuda_options *o, struct kx_gpu_device **out, struct kn_err *err) {
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

bool kx_gpu_has_sm90(const struct kx_gpu_device *d) {
#ifdef KX_CUDA_SM90
    return d->facts.major == 9 && d->facts.minor == 0;
#else
    (void)d;
    return false;
#endif
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

/* Errors after which every call fails until the process ends. An error that is not in
 * the list shows itself: the runtime forgets it when it is asked for it (cudaGetLastError), unless it sticks.
 */
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
