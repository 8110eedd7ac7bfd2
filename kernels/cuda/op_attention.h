/* The variants behind kx_cuda_attention, for the launchers themselves, the tests and the bench: each can be
 * asked for alone, and answers KX_CUDA_NO for a shape that it cannot do. */
#ifndef KILN_KERNELS_CUDA_OP_ATTENTION_H
#define KILN_KERNELS_CUDA_OP_ATTENTION_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Any head size 1 … 512, any alignment: a warp a row, no tensor cores (op_attention.cu). */
cudaError_t kx_cuda_attention_simple(cudaStream_t stream, enum kx_store type, const struct kx_attention *a);
/* Head sizes 8 … 160 (op_attention.cu) and 8 … 512 (op_attention_wide.cu), multiples of 8, all strides too,
 * pointers aligned to 16, scale > 0. */
cudaError_t kx_cuda_attention_tiled(cudaStream_t stream, enum kx_store type, const struct kx_attention *a);
/* keys: a tile's, 128 (that many bytes of shared memory a block) or 64 (below the 99 KB that all devices
 * have). */
#define KX_ATTENTION_WIDE_128_BYTES 158720
cudaError_t kx_cuda_attention_wide(cudaStream_t stream, enum kx_store type, const struct kx_attention *a,
                                   int keys);
/* op_attention_sm90.cu: wgmma and TMA, head sizes 40, 64, 80, 128, 160, strides that are multiples of the
 * head size. Compute capability 9.0, and only where the backend is built for 90a; KX_CUDA_NO elsewhere. Not
 * the default. */
cudaError_t kx_cuda_attention_sm90(cudaStream_t stream, enum kx_store type, const struct kx_attention *a);
/* True if 16-byte accesses and strides of 32 bits reach all of it, as all variants but the simple one need.
 */
bool kx_cuda_attention_aligned(const struct kx_attention *a);

#ifdef __cplusplus
}
#endif

#endif
