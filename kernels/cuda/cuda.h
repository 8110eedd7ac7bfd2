/* The CUDA backend, as the engine sees it: which devices there are, and a context of kernels/ops.h on one of
 * them. Nothing of CUDA is included here, so that whoever uses it compiles without a toolkit.
 *
 * A context is a stream with its workspace and its staging memory; contexts of one device that were made
 * from one another (`parent`) share the account of memory, the libraries and their fate: an error that
 * sticks to the device sticks to all of them. Layers and tables made from one context may be used on any
 * other of the same family and storage type; what was uploaded on one is there for another after a kx_sync
 * of the first. One thread at a time uses a context; different contexts may be used by different threads.
 *
 * How many images fit. kx_count_begin … kx_count_end give the arena and the workspace of any minibatch (but
 * for what cuDNN asks for) and allocate nothing; kx_memory says what there is. A kx_alloc that fails is an
 * ordinary error: whatever was there before still is. */
#ifndef KILN_KERNELS_CUDA_CUDA_H
#define KILN_KERNELS_CUDA_CUDA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The type of tensors and weights. Accumulators are f32 with either. */
enum kx_store { KX_STORE_F16, KX_STORE_BF16 };

/* How many devices the driver shows; 0 without a driver. */
int kx_cuda_device_count(void);

struct kx_cuda_device_facts {
    char name[128];
    uint8_t uuid[16];
    int major, minor, sm_count;
    size_t memory_bytes;
};
/* KN_ENOENT: there is no such device (the text says why). */
KN_MUST_USE int kx_cuda_device_facts(int device, struct kx_cuda_device_facts *out, struct kn_err *err);

struct kx_cuda_options {
    int device;
    enum kx_store type;
    bool fastest; /* images may depend on their minibatch; false: they do not */
    int priority; /* of the stream: 0 the lowest, greater is more urgent (as far as the device goes) */
    /* A context of the same device whose family the new one joins; borrowed for the call. NULL: it begins a
     * family of its own, which the fields below describe (they are not read with a parent). */
    struct kx_ctx *parent;
    bool own_kernels;  /* do not use cuBLASLt and cuDNN even where they are installed */
    int hang_ms;       /* nothing done for so long, while it is waited for: the device hangs; 0: never */
    size_t memory_max; /* bytes that may be allocated; 0: all that there is */
};

/* KN_ENOENT: no such device; KN_EUNSUPPORTED: older than sm_80; KN_EOOM; KN_EDEVICE. */
KN_MUST_USE int kx_cuda_ctx_create(const struct kx_cuda_options *o, struct kx_ctx **out, struct kn_err *err);

/* Marks the device of the context, and all contexts of the family, as failed (KN_EDEVICE): nothing is asked
 * of it any more, not even to free memory. For a watchdog that has seen a kernel hang; any thread. */
void kx_cuda_give_up(struct kx_ctx *ctx, const char *why);

/* Why the last recording could not be made, so that its ops are run one by one; "" if that never happened. */
const char *kx_cuda_recording_note(const struct kx_ctx *ctx);

#ifdef __cplusplus
}
#endif

#endif
