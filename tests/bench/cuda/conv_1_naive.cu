/* 1: naive. A thread computes one value of y, neighbouring threads neighbouring channels, and reads all that
 * it needs from global memory, 8 channels at a time. Each value of x is read by `out` threads, each weight by
 * every pixel: the caches carry the whole load, and each product is an f32 multiply-add of the ordinary
 * units.
 *
 * Gain: the first; not measured. */
#include "kernels/cuda/device.cuh"
#include "tests/bench/cuda/conv.h"

static __global__ void naive(const struct conv_problem p) {
    const int n = (int)(blockIdx.y * blockDim.x + threadIdx.x), m = (int)blockIdx.x;
    if (n >= p.out) return;
    const int pixels = p.h * p.w, image = m / pixels, py = m % pixels / p.w, px = m % p.w;
    const int k2 = p.kernel * p.kernel;
    float sum = p.bias[n];
    for (int tap = 0; tap < k2; tap++) {
        const int y = py + tap / p.kernel - p.kernel / 2, x = px + tap % p.kernel - p.kernel / 2;
        if (y < 0 || y >= p.h || x < 0 || x >= p.w) continue;
        const __half *from =
            (const __half *)p.x + ((size_t)image * (size_t)pixels + (size_t)(y * p.w + x)) * (size_t)p.in;
        const __half *weight =
            (const __half *)p.weight + ((size_t)n * (size_t)k2 + (size_t)tap) * (size_t)p.in;
        for (int c = 0; c < p.in; c += 8) {
            const kx_vec8<__half> a = *(const kx_vec8<__half> *)(from + c),
                                  b = *(const kx_vec8<__half> *)(weight + c);
#pragma unroll
            for (int i = 0; i < 8; i++) sum = fmaf(kx_float(a.v[i]), kx_float(b.v[i]), sum);
        }
    }
    ((__half *)p.y)[(size_t)m * (size_t)p.out + (size_t)n] = kx_value<__half>(sum);
}

extern "C" cudaError_t conv_1_naive(cudaStream_t stream, const struct conv_problem *p) {
    return kx_launch(naive, dim3((unsigned)(p->n * p->h * p->w), (unsigned)((p->out + 63) / 64)), dim3(64), 0,
                     stream, *p);
}
