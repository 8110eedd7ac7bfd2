/* Linear layers by cuBLASLt: y = act(x · Wᵀ + bias) + residual, f16 or bf16 with f32 accumulators.
 *
 * Same bits. A product's algorithm (kernel, tile, stages, cluster; no split of the sum) is chosen once for a
 * layer's shape and an image's number of rows, by the library's heuristic for KX_LT_IMAGES images, and used
 * for any number of images. In the mode "fastest" it is chosen for the rows at hand: faster for one image
 * alone, and an image's bytes then depend on its minibatch.
 *
 * Activations take a pass of their own behind the product (kx_cuda_finish, kx_cuda_geglu): the library's
 * GELU is the tanh approximation, and ours is exact.
 *
 * Life: kx_lt_create for a context (one stream); plans while a context plans; runs then allocate nothing and
 * ask no heuristic. One thread. A 1×1 convolution of stride 1 is a linear layer over pixels and may come here
 * too. Not measured: nobody has run this on a GPU yet. */
#ifndef KILN_KERNELS_CUDA_CUBLASLT_H
#define KILN_KERNELS_CUDA_CUBLASLT_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/library.h"

#define KX_LT_IMAGES 16 /* the heuristic's number of images */

struct kx_lt;
struct kx_lt_plan;

/* Bytes that the library's workspace should have: 32 MiB on Hopper and later, 4 MiB before (cuBLAS' manual,
 * cublasSetWorkspace). One a stream: equal bits are promised only so. */
size_t kx_lt_workspace_bytes(int sm_major);
/* workspace: the device's, aligned to 256, borrowed until destroy. The current device's.
 * KN_EUNSUPPORTED: the library is absent or does not work here; KN_ENOMEM. */
KN_MUST_USE int kx_lt_create(const struct kx_library *library, enum kx_store type, void *workspace,
                             size_t workspace_bytes, struct kx_lt **out, struct kn_err *err);
void kx_lt_destroy(struct kx_lt *lt); /* and its plans; NULL is fine */

struct kx_lt_shape {
    int in, out; /* GEGLU: out counts both halves */
    enum kx_act act;
    bool bias, residual;
    int64_t image_rows; /* rows of one image */
    bool fp8;           /* x and weight are e4m3; see kx_lt_run */
};
/* The plan for `images` images of a layer of this shape: made the first time, then found. Belongs to lt until
 * kx_lt_trim or kx_lt_destroy.
 * KN_EUNSUPPORTED: not a layer for this library. Without `fastest` that is so for every number of images, and
 * the caller uses its own kernel for this shape, always. KN_ELIMIT: the layer's algorithm does not run for as
 * many rows; another would give other bits. KN_ENOMEM, KN_EDEVICE. */
KN_MUST_USE int kx_lt_plan(struct kx_lt *lt, const struct kx_lt_shape *s, int images, bool fastest,
                           struct kx_lt_plan **out, struct kn_err *err);
void kx_lt_trim(struct kx_lt *lt); /* drops all plans */
/* Bytes of the device that a run wants as `scratch` (GEGLU: the product before it; else 0). */
size_t kx_lt_scratch_bytes(const struct kx_lt_plan *p);

struct kx_lt_call {
    const void *x;        /* rows × in */
    const void *weight;   /* out × in, GEGLU not interleaved */
    const void *bias;     /* out values of the STORAGE type (the library adds none of f32; kx_cuda_from_f32
                             makes them), or NULL: as the shape said */
    const void *residual; /* rows × out, may be y, or NULL: as the shape said */
    void *y;              /* rows × out (GEGLU: out / 2) */
    void *scratch;
    const float *weight_scale; /* fp8: out values, y = Σ x · w · weight_scale[o] · x_scale[r] */
    const float *x_scale;      /* fp8: `rows` values (a scale for all is that value, rows times) */
};
/* Pointers are aligned to 16 bytes. cudaErrorUnknown where the library failed without a CUDA error. */
cudaError_t kx_lt_run(struct kx_lt *lt, struct kx_lt_plan *p, const struct kx_lt_call *c,
                      cudaStream_t stream);
/* "algo 66 tile 20 stages 36 cluster 3 …" of a plan, for reports. */
void kx_lt_describe(const struct kx_lt *lt, const struct kx_lt_plan *p, char *out, size_t size);

#endif
