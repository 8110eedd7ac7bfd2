/* The 3×3 convolution from naive to shipped: what the numbered versions have in common. Each is one file,
 * computes
 *
 *   y[i, py, px, n] = Σ_{ky, kx, c} x[i, py + ky − k/2, px + kx − k/2, c] · w[n, ky, kx, c] + bias[n]
 *
 * (x outside of the image is 0, stride 1, kernel k = 1 or 3), in f16 with f32 accumulators, NHWC, weights out
 * × k × k × in, channels multiples of 8, and says in its head what it changes over the one before.
 * conv_bench.cc runs them. */
#ifndef KILN_TESTS_BENCH_CUDA_CONV_H
#define KILN_TESTS_BENCH_CUDA_CONV_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

struct conv_problem {
    int n, h, w, in, out, kernel;
    const void *x, *weight;
    const float *bias;
    void *y;
};

cudaError_t conv_1_naive(cudaStream_t stream, const struct conv_problem *p);
cudaError_t conv_2_tiled(cudaStream_t stream, const struct conv_problem *p);
cudaError_t conv_3_tensor(cudaStream_t stream, const struct conv_problem *p);
cudaError_t conv_4_permuted(cudaStream_t stream, const struct conv_problem *p);
cudaError_t conv_5_pipelined(cudaStream_t stream, const struct conv_problem *p);
cudaError_t conv_6_shipped(cudaStream_t stream, const struct conv_problem *p);
/* cudaErrorNotSupported where it cannot run. */
cudaError_t conv_7_sm90(cudaStream_t stream, const struct conv_problem *p);

#ifdef __cplusplus
}
#endif

#endif
