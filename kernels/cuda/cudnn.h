/* Convolutions by cuDNN's graph API: y = conv(x) + add + residual as one operation graph, NHWC tensors, KRSC
 * filters, f16 or bf16 with f32 accumulators.
 *
 * Same bits. The engine and its knobs are chosen once for a layer and an image's size, from the library's
 * heuristic (mode A) for KX_DNN_IMAGES images, among engines that are deterministic, accumulate in f32 and do
 * not split the sum; they are used for any number of images. In the mode "fastest" the choice is made for the
 * images at hand.
 *
 * Upsampling is not fused (kx_cuda_upsample first; our own kernel fuses it). Bias and residual are. A
 * time_proj is where the library can add a row an image, which 9.19 cannot: then the convolution is bare
 * and kx_cuda_finish_conv adds all.
 *
 * Life: kx_cudnn_create for a context (one stream); plans while a context plans (a plan may compile a kernel:
 * up to seconds); a run takes no device memory, waits for nothing and may be captured in a CUDA graph. One
 * thread. Not measured: nobody has run this on a GPU yet. */
#ifndef KILN_KERNELS_CUDA_CUDNN_H
#define KILN_KERNELS_CUDA_CUDNN_H

#include <stdbool.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/library.h"

#define KX_DNN_IMAGES 16 /* the heuristic's number of images */

struct kx_cudnn;
struct kx_dnn_plan;

/* KN_EUNSUPPORTED: the library is absent or does not work here; KN_ENOMEM. */
KN_MUST_USE int kx_cudnn_create(const struct kx_library *library, enum kx_store type, cudaStream_t stream,
                                struct kx_cudnn **out, struct kn_err *err);
void kx_cudnn_destroy(struct kx_cudnn *d); /* and its plans; NULL is fine */

struct kx_dnn_shape {
    int h, w, in, out; /* x's */
    int kernel, stride;
    bool bias, time_proj, residual;
};
/* The plan for n images of a layer of this shape: made the first time, then found. Belongs to d until
 * kx_dnn_trim or kx_cudnn_destroy.
 * KN_EUNSUPPORTED: not a layer for this library. Without `fastest` that is so for every n, and the caller
 * uses its own kernel for this shape, always. KN_ELIMIT: the layer's engine does not do n images; another
 * would give other bits. KN_ENOMEM, KN_EOOM, KN_EDEVICE. */
KN_MUST_USE int kx_dnn_plan(struct kx_cudnn *d, const struct kx_dnn_shape *s, int n, bool fastest,
                            struct kx_dnn_plan **out, struct kn_err *err);
void kx_dnn_trim(struct kx_cudnn *d); /* drops all plans */
/* Bytes of the device that a run wants as `scratch`, aligned to 256. */
size_t kx_dnn_scratch_bytes(const struct kx_dnn_plan *p);

struct kx_dnn_call {
    const void *x;            /* n × h × w × in */
    const void *weight;       /* out × kernel × kernel × in, of the storage type */
    const float *bias;        /* out, or NULL: as the shape said */
    const void *bias_value;   /* the same in the storage type, or NULL: then a run makes it */
    struct kx_rows time_proj; /* v NULL for none: as the shape said */
    const void *residual;     /* y's shape, may be y, or NULL: as the shape said */
    void *y;
    void *scratch;
};
/* Pointers are aligned to 16 bytes. cudaErrorUnknown where the library failed without a CUDA error. */
cudaError_t kx_dnn_run(struct kx_cudnn *d, struct kx_dnn_plan *p, const struct kx_dnn_call *c);
/* "engine 3 knobs 2=5 14=4 …" of a plan, for reports. */
void kx_dnn_describe(const struct kx_dnn_plan *p, char *out, size_t size);

#endif
