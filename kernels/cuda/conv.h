/* The tiles of op_conv.cu, for its tests and benchmarks; everybody else calls kx_cuda_conv, which chooses. */
#ifndef KILN_KERNELS_CUDA_CONV_H
#define KILN_KERNELS_CUDA_CONV_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows (pixels) × columns (output channels) of y that a block makes. */
enum kx_conv_tile {
    KX_CONV_128X256,
    KX_CONV_128X160,
    KX_CONV_128X128,
    KX_CONV_64X64,
    KX_CONV_128X16,
    KX_CONV_TILES
};

/* The tile that kx_cuda_conv takes for *g. It looks at in, out, kernel, stride and, for kernels larger than
 * 1, at an image's size: never at n, nor at a linear layer's rows. */
enum kx_conv_tile kx_cuda_conv_tile(const struct kx_cuda_gemm *g);
/* kx_cuda_conv with this tile: the same bits. KX_CUDA_NO where x or the weights cannot be read 16 bytes at a
 * time (in is no multiple of 8, or they are not aligned) and the tile is not KX_CONV_64X64, the only one that
 * can do that. */
cudaError_t kx_cuda_conv_with(cudaStream_t stream, const struct kx_cuda_gemm *g, enum kx_conv_tile tile);
/* kx_cuda_conv_fp8 with this tile (KX_CONV_128X16 is done as KX_CONV_64X64): the same bits. */
cudaError_t kx_cuda_conv_fp8_with(cudaStream_t stream, const struct kx_cuda_gemm_fp8 *g,
                                  enum kx_conv_tile tile);

#ifdef __cplusplus
}
#endif

#endif
