/* The implicit GEMM of op_conv.cu with e4m3 operands (mma.sync m16n8k32), and their quantisation.
 *
 *   y = act(Σ x · w · weight_scale[n] · x_scale + bias[n] + time_proj) + residual
 *
 * Each output channel of the weights has a scale of its own, the activations have one, found beforehand by
 * calibration; both multiply the sum, so that nothing but whole sums is ever scaled. Layout, fusions and the
 * kernel itself are op_conv.cu's; a slice is 64 values of k in the same 64 bytes. Tiles: 128×256, 128×160,
 * 128×128 and 64×64, by the same rule.
 *
 * Accumulator: f32 by contract. The tensor cores of sm_89 and sm_90 keep fewer bits of a sum within an
 * instruction than f32's 24; how much that moves is not measured. Tolerance against an f64 sum of the same
 * e4m3 values, on the host: NMSE 1e-6 in f16, 1e-5 in bf16.
 *
 * sm_89 and later; KX_CUDA_NO elsewhere. sm_100 has no such instruction: ptxas makes it of others there, and
 * spills up to 236 bytes; elsewhere nothing is spilled. Speed: not measured. */
#include "kernels/cuda/conv.h"
#include "kernels/cuda/op_conv.cuh"

static bool has_e4m3(void) {
    int device, major, minor;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
           major * 10 + minor >= 89;
}

template <typename T, int LOAD>
static cudaError_t with_tile(cudaStream_t stream, const struct kx_conv_in &p, const struct kx_conv_out &o,
                             enum kx_conv_tile tile) {
    typedef struct kx_conv_e4m3 U;
    switch (tile) {
    case KX_CONV_128X256:
        return kx_conv_launch<T, U, 128, 256, 64, 64, 4, LOAD, 1>(stream, p, o);
    case KX_CONV_128X160:
        return kx_conv_launch<T, U, 128, 160, 32, 80, 4, LOAD, 1>(stream, p, o);
    case KX_CONV_128X128:
        return kx_conv_launch<T, U, 128, 128, 64, 64, 4, LOAD, 2>(stream, p, o);
    default:
        return kx_conv_launch<T, U, 64, 64, 32, 32, 4, LOAD, 3>(stream, p, o);
    }
}

template <typename T>
static cudaError_t with_type(cudaStream_t stream, const struct kx_conv_in &p, const struct kx_conv_out &o,
                             enum kx_conv_tile tile) {
    if (p.kernel == 1 && p.stride == 1 && !p.up) return with_tile<T, KX_CONV_ROWS>(stream, p, o, tile);
    return with_tile<T, KX_CONV_TAPS>(stream, p, o, tile);
}

cudaError_t kx_cuda_conv_fp8_with(cudaStream_t stream, const struct kx_cuda_gemm_fp8 *g,
                                  enum kx_conv_tile tile) {
    struct kx_conv_in p;
    struct kx_conv_out o;
    const struct kx_cuda_gemm *gemm = &g->gemm;
    if (gemm->in % 16 != 0 || (uintptr_t)gemm->x % 16 != 0 || (uintptr_t)gemm->weight % 16 != 0 ||
        !has_e4m3())
        return KX_CUDA_NO;
    const cudaError_t e = kx_conv_describe(gemm, &p, &o);
    if (e != cudaSuccess || o.rows == 0) return e;
    o.scale = g->weight_scale;
    o.scale_x = g->x_scale;
    o.wide = o.wide && (uintptr_t)g->weight_scale % 16 == 0;
    return gemm->type == KX_STORE_F16 ? with_type<__half>(stream, p, o, tile)
                                      : with_type<__nv_bfloat16>(stream, p, o, tile);
}

cudaError_t kx_cuda_conv_fp8(cudaStream_t stream, const struct kx_cuda_gemm_fp8 *g) {
    return kx_cuda_conv_fp8_with(stream, g, kx_cuda_conv_tile(&g->gemm));
}

/* A thread makes 16 bytes of y where that is whole and aligned, else one value. */
template <typename T>
static __global__ void __launch_bounds__(256)
    quantize(const T *__restrict__ x, float factor, uint8_t *__restrict__ y, size_t n, bool wide) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (!wide) {
        if (i < n) y[i] = kx_e4m3(kx_float(x[i]) * factor);
        return;
    }
    if (i >= n / 16) return;
    uint32_t packed[4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const kx_vec8<T> v = kx_load8(x + i * 16 + (size_t)half * 8);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint32_t word = 0;
#pragma unroll
            for (int b = 0; b < 4; b++)
                word |= (uint32_t)kx_e4m3(kx_float(v.v[j * 4 + b]) * factor) << (8 * b);
            packed[half * 2 + j] = word;
        }
    }
    *(uint4 *)(y + i * 16) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
}

cudaError_t kx_cuda_quantize_e4m3(cudaStream_t stream, enum kx_store type, const void *x, float x_scale,
                                  void *y, size_t n) {
    if (n == 0) return cudaSuccess;
    const bool wide = n % 16 == 0 && ((uintptr_t)x | (uintptr_t)y) % 16 == 0;
    const size_t blocks = ((wide ? n / 16 : n) + 255) / 256;
    if (!(x_scale > 0.0f) || blocks > INT32_MAX) return cudaErrorInvalidValue;
    KX_DISPATCH(type, T,
                return kx_launch(quantize<T>, dim3((unsigned)blocks), dim3(256), 0, stream, (const T *)x,
                                 1.0f / x_scale, (uint8_t *)y, n, wide));
}
