/* The largest magnitude of a tensor: what calibration for e4m3 asks of a layer's inputs (kernels/fp8.c).
 *
 *   *bits = max(*bits, |x[i]|), as the bits of a f32: those of numbers that are not negative are in their
 * order, so that an integer maximum does it, whatever the order of the blocks. NaN is passed over.
 *
 * Geometry: blocks of 256 threads, a fixed number at most, each over every so-many-th stretch; 16 bytes a
 * thread where x allows. Only while calibrating, so its speed matters little; not measured. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

static const int AMAX_THREADS = 256;
static const size_t AMAX_BLOCKS = 1024;

template <typename T>
static __global__ void __launch_bounds__(AMAX_THREADS)
    amax(const T *__restrict__ x, size_t n, bool wide, int *__restrict__ bits) {
    const size_t step = (size_t)gridDim.x * blockDim.x, first = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    float most = 0;
    if (wide)
        for (size_t i = first; i < n / 8; i += step) {
            const kx_vec8<T> v = kx_load8(x + i * 8);
#pragma unroll
            for (int k = 0; k < 8; k++) most = fmaxf(most, fabsf(kx_float(v.v[k])));
        }
    else
        for (size_t i = first; i < n; i += step) most = fmaxf(most, fabsf(kx_float(x[i])));
    for (int lane = 16; lane; lane /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, lane));
    if (threadIdx.x % 32 == 0) atomicMax(bits, __float_as_int(most));
}

cudaError_t kx_cuda_amax(cudaStream_t stream, enum kx_store type, const void *x, size_t n, int32_t *bits) {
    if (n == 0) return cudaSuccess;
    const bool wide = n % 8 == 0 && (uintptr_t)x % 16 == 0;
    const size_t blocks = ((wide ? n / 8 : n) + AMAX_THREADS - 1) / AMAX_THREADS;
    KX_DISPATCH(type, T,
                return kx_launch(amax<T>, dim3((unsigned)(blocks < AMAX_BLOCKS ? blocks : AMAX_BLOCKS)),
                                 dim3(AMAX_THREADS), 0, stream, (const T *)x, n, wide, (int *)bits));
}
