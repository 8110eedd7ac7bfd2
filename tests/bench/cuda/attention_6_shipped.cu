/* 6: shipped, kernels/cuda/op_attention.cu. As 5, with 32 rows a warp, so that a matrix of keys or values
 * that was read from shared memory serves two products instead of one; queries straight from memory into
 * registers; head size 40 neither filled up to 48 in shared memory nor in the second product; tiles of keys
 * chosen for each head size, so that registers let in two or three blocks; the output in whole chunks of 16
 * bytes; causal, shared keys, bf16. Heads beyond 160 are op_attention_wide.cu's: the output split over the
 * warps of a block.
 *
 * Gain: not measured. */
#include "kernels/cuda/launch.h"
#include "tests/bench/cuda/attention.h"

extern "C" cudaError_t attention_6_shipped(cudaStream_t stream, const struct kx_attention *a,
                                           float *scratch) {
    (void)scratch;
    return kx_cuda_attention(stream, KX_STORE_F16, a);
}
