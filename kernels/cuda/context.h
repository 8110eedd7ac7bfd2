/* The common ground of the CUDA backend's host side: the context behind kernels/ops.h, and the device
 * behind the contexts of a family. Names: kx_gpu_… is the host's side, kx_cuda_… are the launchers (launch.h)
 * and what the engine sees (cuda.h).
 *
 * Floors. Each file calls only files that stand below it (tests/lint/engine_ops.py checks it):
 *
 *     context.c                       a context's life; the table of the backend's functions
 *     layer.c                         convolutions, linear layers, tables: what has weights
 *     product.c                       which variant computes a layer, and how
 *     quantize.c                      layers with eight-bit operands
 *     ops.c  graph.c                  ops without weights; recordings and events
 *     memory.c                        allocations, copies, the workspace
 *     device.c                        the device, errors, waiting
 *     cublaslt.c  cudnn.c             plans and runs of the libraries
 *     table.c  library.c              the table of variants; finding the libraries
 *
 * Errors. The first failure of a context is kept with the op's name until it is asked for. An error that
 * sticks (an illegal address, a launch that failed, memory that lost a bit …) leaves the process without
 * that device for ever: it is kept in the device, every op of every context of the family does nothing from
 * then on, and no call of CUDA is made any more, not even to free: a call on a device that hangs would hang
 * too, and the process ends soon.
 *
 * Waiting. The host never waits in a call that could wait for ever: it asks an event again and again
 * (kx_gpu_wait), with pauses, so that a device that hangs is noticed. It hangs when no context of the family
 * sees anything done: a stream alone may starve for long beside one of a higher priority. */
#ifndef KILN_KERNELS_CUDA_CONTEXT_H
#define KILN_KERNELS_CUDA_CONTEXT_H

#include <pthread.h>
#include <stdatomic.h>

#include "kernels/backend.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"

struct kn_map;
struct kx_library;
struct kx_variants;
struct kx_lt;
struct kx_cudnn;

enum {
    KX_GPU_ALIGN = 256,
    KX_GPU_STAGES = 8,
    KX_GPU_STAGE_BYTES = 2 << 20, /* what an upload or a download moves at once */
    KX_GPU_BLOCKS_MAX = 1 << 20,  /* allocations at a time */
    KX_GPU_CHOICES_MAX = 1 << 17  /* plans of layers at a time */
};

/* The device, shared by the contexts of a family. */
struct kx_gpu_device {
    int index;
    struct kx_cuda_device_facts facts;
    int hang_ms;
    struct kx_library *library;   /* owns; NULL: our own kernels alone */
    struct kx_variants *variants; /* owns */
    atomic_ullong beat_ms;        /* when a context of the family last saw that something was done */
    atomic_int users;             /* contexts and layers; the last frees it */
    atomic_bool dead;
    pthread_mutex_t lock;  /* of what follows */
    char dead_text[256];   /* written once, before `dead` */
    struct kn_map *blocks; /* bytes of each allocation, by its address; owns */
    size_t used, max;      /* bytes */
};

/* Pinned memory on the way to or from the device. */
struct kx_gpu_stage {
    void *v;          /* owns; NULL until it is first used */
    cudaEvent_t done; /* of the copy; owns */
    bool busy;        /* `done` was recorded and not waited for yet */
};

struct kx_gpu {
    struct kx_ctx base;           /* first: a kx_ctx * is a kx_gpu * */
    struct kx_gpu_device *device; /* a share */
    enum kx_store type;
    bool reproducible;
    cudaStream_t stream; /* owns */
    cudaEvent_t mark;    /* of kx_sync; owns */
    struct kx_gpu_stage stages[KX_GPU_STAGES];
    int next_stage;
    void *workspace; /* owns; that of all ops of this stream, one after another */
    size_t workspace_bytes, workspace_wanted;
    float *ones; /* owns, the device's: ones_count of them (quantize.c) */
    size_t ones_count, ones_wanted;
    struct kx_lt *lt;         /* owns; NULL: no cuBLASLt */
    void *lt_workspace;       /* owns: equal bits are promised only to one that no other stream uses */
    struct kx_cudnn *dnn;     /* owns; NULL: no cuDNN */
    struct kn_map *choices;   /* owns: product.c's, by layer and shape */
    unsigned plan_generation; /* changes when plans are dropped */
    unsigned
        workspace_generation; /* changes when the workspace is reallocated: a recording holds its address */
    bool capturing;
    unsigned failures; /* ever: of calls and of ops */
    int error;         /* the first since it was asked for */
    char error_text[256], note[256];
    char name[32], facts[512];
};

static inline struct kx_gpu *kx_gpu_of(const struct kx_ctx *ctx) {
    return (struct kx_gpu *)(uintptr_t)ctx;
}

/* ---- device.c */

static inline bool kx_gpu_dead(const struct kx_gpu_device *d) {
    return atomic_load_explicit(&d->dead, memory_order_acquire);
}
/* Makes the device this thread's. False: it is dead, and nothing more is to be asked of it. */
bool kx_gpu_enter(struct kx_gpu *g);
/* Notes a failure; the first is kept. */
void kx_gpu_fail(struct kx_gpu *g, int code, const char *fmt, ...) KN_PRINTF(3, 4);
/* Notes what a call of CUDA returned, under the op's name. True: cudaSuccess, nothing to note. */
bool kx_gpu_ok(struct kx_gpu *g, cudaError_t e, const char *op);
/* True if this is a Hopper and the kernels for it alone (op_*_sm90.cu) were built. */
bool kx_gpu_has_sm90(const struct kx_gpu_device *d);
/* Waits until e, recorded on this context's stream, is done. 0, KN_ETIMEOUT after timeout_ms (negative: no
 * limit), KN_EDEVICE. */
int kx_gpu_wait(struct kx_gpu *g, cudaEvent_t e, int timeout_ms, const char *op);
/* Waits for all that was asked for. False: the failure is noted. */
bool kx_gpu_drain(struct kx_gpu *g, const char *op);
/* o->device, for the first context of a family. KN_ENOENT, KN_EUNSUPPORTED, KN_ENOMEM, KN_EDEVICE. */
KN_MUST_USE int kx_gpu_device_create(const struct kx_cuda_options *o, struct kx_gpu_device **out,
                                     struct kn_err *err);
void kx_gpu_device_retain(struct kx_gpu_device *d);
void kx_gpu_device_release(struct kx_gpu_device *d);

/* ---- memory.c */

void kx_gpu_memory_fini(struct kx_gpu *g);
/* Device memory, counted. NULL when there is none (nothing is noted). */
void *kx_gpu_take(struct kx_gpu *g, size_t bytes);
void kx_gpu_give(struct kx_gpu_device *d, void *p); /* NULL is fine */
/* Waits until the next stage is free, and hands it out. NULL: the failure is noted. */
struct kx_gpu_stage *kx_gpu_stage(struct kx_gpu *g, const char *op);
/* The stage's first bytes go to `to`. */
void kx_gpu_stage_send(struct kx_gpu *g, struct kx_gpu_stage *s, void *to, size_t bytes, const char *op);
/* n values of v, `step` apart, in the storage type, to nearest even. Returns the first that is finite and
 * that the type cannot hold, or n. */
size_t kx_gpu_values(enum kx_store type, const float *v, size_t step, size_t n, uint16_t *out);

/* While planning: notes that an op will want so many bytes of the workspace. */
void kx_gpu_want(struct kx_gpu *g, size_t bytes);
/* Reallocates the workspace at the size that is wanted. Where there is no memory for it, it keeps its old
 * size; where even that is gone, all plans are dropped (plan_generation). KN_EOOM. */
KN_MUST_USE int kx_gpu_workspace_grow(struct kx_gpu *g, struct kn_err *err);

/* ---- product.c: which variant of a layer */

void kx_gpu_choices_forget(struct kx_gpu *g);

/* ---- the backend's functions, of the types of kernels/ops.h */

#define KX_GPU_DECLARE(op, ...) __typeof__(kx_##op) kx_gpu_##op;
KX_BACKEND_OPS(KX_GPU_DECLARE)
#undef KX_GPU_DECLARE

#endif
