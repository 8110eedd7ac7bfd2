/* Attention from naive to shipped: what the numbered versions have in common. Each is one file, computes what
 * struct kx_attention says (kernels/ops.h; f16, f32 accumulators, neither causal nor with a kv_index), and
 * says in its head what it changes over the one before. A version answers KX_CUDA_NO for a head size that it
 * does not do. scratch: heads · rows · length f32, for version 1. attention_bench.cc runs them. */
#ifndef KILN_TESTS_BENCH_CUDA_ATTENTION_H
#define KILN_TESTS_BENCH_CUDA_ATTENTION_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t attention_1_naive(cudaStream_t stream, const struct kx_attention *a, float *scratch);
cudaError_t attention_2_online(cudaStream_t stream, const struct kx_attention *a, float *scratch);
cudaError_t attention_3_tiles(cudaStream_t stream, const struct kx_attention *a, float *scratch);
cudaError_t attention_4_mma(cudaStream_t stream, const struct kx_attention *a, float *scratch);
cudaError_t attention_5_pipeline(cudaStream_t stream, const struct kx_attention *a, float *scratch);
cudaError_t attention_6_shipped(cudaStream_t stream, const struct kx_attention *a, float *scratch);
cudaError_t attention_7_sm90(cudaStream_t stream, const struct kx_attention *a, float *scratch);

#ifdef __cplusplus
}
#endif

#endif
