/* 2: tiled. A block makes 64 pixels × 64 channels of y: it brings 8 products' worth of both operands to
 * shared memory, as f32, and each of its 64 threads keeps 8 × 8 sums in registers, so that a value that was
 * fetched once is used 64 times from shared memory, and one that was read from there 8 times from a register.
 * The operand a (pixel × tap and channel) is not made in memory: a thread works out which pixel its 8
 * channels are of (this is the implicit GEMM of all that follow).
 *
 * Limited by: the f32 units, a fifteenth of what the tensor cores do, or less. Gain: not measured. */
#include "kernels/cuda/device.cuh"
#include "tests/bench/cuda/conv.h"

enum { TILE = 64, DEPTH = 8 };

static __global__ void __launch_bounds__(64) tiled(const struct conv_problem p) {
    __shared__ float a[DEPTH][TILE + 4], b[DEPTH][TILE + 4];
    const int t = (int)threadIdx.x, rows = p.n * p.h * p.w, pixels = p.h * p.w;
    const int m = (int)blockIdx.x * TILE + t, n = (int)blockIdx.y * TILE + t; /* what this thread fetches */
    const int image = m / pixels, py = m % pixels / p.w, px = m % p.w;
    const int depth = p.kernel * p.kernel * p.in;
    const int i0 = t / 8 * 8, j0 = t % 8 * 8; /* its corner of the tile */
    float sum[8][8] = {};
    for (int k = 0; k < depth; k += DEPTH) {
        const int tap = k / p.in, c = k % p.in;
        const int y = py + tap / p.kernel - p.kernel / 2, x = px + tap % p.kernel - p.kernel / 2;
        kx_vec8<__half> va = {}, vb = {};
        if (m < rows && y >= 0 && y < p.h && x >= 0 && x < p.w)
            va = kx_load8((const __half *)p.x +
                          ((size_t)image * (size_t)pixels + (size_t)(y * p.w + x)) * (size_t)p.in + c);
        if (n < p.out) vb = kx_load8((const __half *)p.weight + (size_t)n * (size_t)depth + k);
        __syncthreads(); /* all have done with the last */
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            a[i][t] = kx_float(va.v[i]);
            b[i][t] = kx_float(vb.v[i]);
        }
        __syncthreads();
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) sum[i][j] = fmaf(a[d][i0 + i], b[d][j0 + j], sum[i][j]);
    }
    const int first = (int)blockIdx.y * TILE + j0;
    if (first >= p.out) return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = (int)blockIdx.x * TILE + i0 + i;
        if (row >= rows) continue;
        kx_vec8<__half> v;
#pragma unroll
        for (int j = 0; j < 8; j++) v.v[j] = kx_value<__half>(sum[i][j] + p.bias[first + j]);
        kx_store8((__half *)p.y + (size_t)row * (size_t)p.out + first, v);
    }
}

extern "C" cudaError_t conv_2_tiled(cudaStream_t stream, const struct conv_problem *p) {
    const int rows = p->n * p->h * p->w;
    return kx_launch(tiled,
                     dim3((unsigned)((rows + TILE - 1) / TILE), (unsigned)((p->out + TILE - 1) / TILE)),
                     dim3(64), 0, stream, *p);
}
