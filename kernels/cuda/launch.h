/* The launchers of the CUDA kernels: plain C, one a kernel or family of kernels. kernels/ops.h says what each
 * computes; this says how it is handed over.
 *
 * For all of them: pointers are the device's; nothing is allocated, nothing waits, all work goes to `stream`,
 * and the launch's error is returned (cudaSuccess or what the launch gave; KX_CUDA_NO when a variant cannot
 * do the shape, and then nothing was launched). `type` is that of tensors and weights; accumulators are f32.
 * Tensors are dense NHWC. A result for one image depends on neither n nor its place among the n: a launcher
 * chooses its geometry and its variant by an image's shape alone, never by n. Pointers are aligned to 16
 * bytes where c (or the stride) is a multiple of 8, and to the value's size else: launchers look. */
#ifndef KILN_KERNELS_CUDA_LAUNCH_H
#define KILN_KERNELS_CUDA_LAUNCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus /* g++ takes kx_conv, the function, to hide a constructor of kx_conv, the struct */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#endif
#include "kernels/cuda/cuda.h" /* enum kx_store */
#include "kernels/ops.h"
#ifdef __cplusplus
#pragma GCC diagnostic pop
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define KX_CUDA_NO cudaErrorNotSupported

/* ---- norms (op_norm.cu) */

/* Bytes of workspace that group_norm wants (0 is fine). */
size_t kx_cuda_group_norm_workspace(int n, int pixels, int c, int groups);
cudaError_t kx_cuda_group_norm(cudaStream_t stream, enum kx_store type, const void *x, const float *gamma,
                               const float *beta, void *y, int n, int pixels, int c, int groups, float eps,
                               bool silu, void *workspace);
/* op_norm_sm90.cu: in one pass by clusters of blocks, where one cannot hold an image. Compute capability 9.0
 * alone, and not the default. */
cudaError_t kx_cuda_group_norm_cluster(cudaStream_t stream, enum kx_store type, const void *x,
                                       const float *gamma, const float *beta, void *y, int n, int pixels,
                                       int c, int groups, float eps, bool silu);
cudaError_t kx_cuda_layer_norm(cudaStream_t stream, enum kx_store type, const void *x, const float *gamma,
                               const float *beta, void *y, int64_t rows, int c, float eps);

/* ---- small (op_small.cu) */

cudaError_t kx_cuda_concat(cudaStream_t stream, enum kx_store type, const void *a, int ca, const void *b,
                           int cb, void *y, int64_t pixels);
cudaError_t kx_cuda_timestep(cudaStream_t stream, enum kx_store type, const float *timesteps, int n, int dim,
                             bool flip_sin_to_cos, float freq_shift, void *y);
/* b: nb rows of c, or NULL with nb 1. */
cudaError_t kx_cuda_add_silu(cudaStream_t stream, enum kx_store type, const void *a, int na, const void *b,
                             int nb, int c, void *y);
cudaError_t kx_cuda_embed(cudaStream_t stream, enum kx_store type, const void *tokens, const void *places,
                          const int32_t *ids, int n, int positions, int c, void *y);
cudaError_t kx_cuda_gather(cudaStream_t stream, enum kx_store type, const void *x, const int32_t *at, int n,
                           int positions, int c, void *y);
/* x: rows of 2 · inner: y = first · gelu(second), exact (erf). */
cudaError_t kx_cuda_geglu(cudaStream_t stream, enum kx_store type, const void *x, int64_t rows, int inner,
                          void *y);
/* y = act(x) + residual (NULL for none), for products whose library has no such epilogue. bias: c, or NULL,
 * added before act. act is not GEGLU. y may be x or residual. */
cudaError_t kx_cuda_finish(cudaStream_t stream, enum kx_store type, const void *x, const float *bias,
                           enum kx_act act, const void *residual, void *y, int64_t rows, int c);
/* The same with a time_proj an image (kx_rows), pixels rows an image. */
cudaError_t kx_cuda_finish_conv(cudaStream_t stream, enum kx_store type, const void *x, const float *bias,
                                const struct kx_rows *time_proj, const void *residual, void *y, int n,
                                int pixels, int c);
/* Nearest, doubled: for convolutions whose library cannot fuse it. */
cudaError_t kx_cuda_upsample(cudaStream_t stream, enum kx_store type, const void *x, int n, int h, int w,
                             int c, void *y);
cudaError_t kx_cuda_to_rgb(cudaStream_t stream, enum kx_store type, const void *x, int n, int pixels,
                           float *rgb, uint8_t *bytes, int32_t *finite);
cudaError_t kx_cuda_from_f32(cudaStream_t stream, enum kx_store type, const float *x, void *y, size_t n);
cudaError_t kx_cuda_to_f32(cudaStream_t stream, enum kx_store type, const void *x, float *y, size_t n);

/* ---- the sampler (op_sample.cu): kx_sampling as kernels/ops.h has it, all pointers the device's */

cudaError_t kx_cuda_sample_begin(cudaStream_t stream, enum kx_store type, const struct kx_sampling *s);
cudaError_t kx_cuda_sample(cudaStream_t stream, enum kx_store type, const struct kx_sampling *s);

/* ---- attention (op_attention.cu). Head sizes 1 … 512; variants beside it have their own launchers */

cudaError_t kx_cuda_attention(cudaStream_t stream, enum kx_store type, const struct kx_attention *a);

/* ---- convolution and linear (op_conv.cu): an implicit GEMM on tensor cores (mma.sync)
 *
 * rows: the pixels of y. Weights: out × kernel × kernel × in (that is KRSC), of `type`; for GEGLU the rows of
 * both halves interleaved as kx_cuda_geglu_row has it, so that one tile holds both. */
struct kx_cuda_gemm {
    enum kx_store type;
    int n, h, w, in, out; /* h × w: x's; a linear layer is n = 1, h = rows, w = 1, kernel 1 */
    int kernel, stride;
    bool upsample;
    const void *x, *weight;
    const float *bias; /* out (interleaved as the weights), or NULL */
    enum kx_act act;
    struct kx_rows time_proj; /* v NULL for none; in values of `type`, out an image */
    const void *residual;     /* y's shape, or NULL; may be y */
    void *y;
};
/* Row r of a GEGLU layer's weights and bias, as they are laid out, is row kx_cuda_geglu_row(r, out) of the
 * original (out counts both halves). */
int kx_cuda_geglu_row(int r, int out);
cudaError_t kx_cuda_conv(cudaStream_t stream, const struct kx_cuda_gemm *g);
/* op_conv_sm90.cu: by wgmma and TMA, kernels of odd sides with stride 1 and without upsampling. Compute
 * capability 9.0, and only where the backend is built for 90a; KX_CUDA_NO elsewhere. Not the default. */
cudaError_t kx_cuda_conv_sm90(cudaStream_t stream, const struct kx_cuda_gemm *g);

/* The same with e4m3 operands, sm_89 and later (op_conv_fp8.cu): y = act(Σ x · w · weight_scale[n] ·
 * x_scale + bias + time_proj) + residual. gemm.x and gemm.weight are e4m3, a byte a value, laid out as
 * above; gemm.type is that of the rest. KX_CUDA_NO where `in` is no multiple of 16 or x or the weights are
 * not aligned to 16 bytes. */
struct kx_cuda_gemm_fp8 {
    struct kx_cuda_gemm gemm;
    const float *weight_scale; /* out, one a row of the weights as they are laid out */
    float x_scale;             /* one for all of x, found by calibration */
};
cudaError_t kx_cuda_conv_fp8(cudaStream_t stream, const struct kx_cuda_gemm_fp8 *g);
/* y = e4m3(x · (1 / x_scale)), round to nearest even, clamped to ±448; NaN stays NaN. y: n bytes. */
cudaError_t kx_cuda_quantize_e4m3(cudaStream_t stream, enum kx_store type, const void *x, float x_scale,
                                  void *y, size_t n);

/* op_amax.cu: *bits = max(*bits, |x|), as the bits of a f32 that is not negative. */
cudaError_t kx_cuda_amax(cudaStream_t stream, enum kx_store type, const void *x, size_t n, int32_t *bits);

#ifdef __cplusplus
}
#endif

#endif
