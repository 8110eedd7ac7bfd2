/* 7: for Hopper, kernels/cuda/op_attention_sm90.cu; not the default until this has been measured. As 6, with
 * wgmma, which mma.sync reaches some two thirds of on an H100: operands straight from shared memory, where
 * TMA lays them in the permutation that wgmma reads; one warpgroup copies while two compute; the next tile's
 * scores and this one's values multiply while exponentials run.
 *
 * Gain: not measured. */
#include "kernels/cuda/op_attention.h"
#include "tests/bench/cuda/attention.h"

extern "C" cudaError_t attention_7_sm90(cudaStream_t stream, const struct kx_attention *a, float *scratch) {
    (void)scratch;
    return kx_cuda_attention_sm90(stream, KX_STORE_F16, a);
}
