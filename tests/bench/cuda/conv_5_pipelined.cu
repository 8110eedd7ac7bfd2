/* 5: pipelined. As 4, but the operands go from global to shared memory by cp.async, past the registers, into
 * a ring of four stages: while one is multiplied three are on their way, and there is one barrier a step in
 * place of two. Padding is what cp.async fills with zeros.
 *
 * Limited by: a warp's 32 × 32 sums take 4 ldmatrix for 8 mma (the shipped tiles 8 for 32), y is written
 * 4 bytes at a time, and the blocks run in an order that reads x once for each 64 channels. Gain: not
 * measured. */
#include "kernels/cuda/device.cuh"
#include "tests/bench/cuda/conv.h"

enum { TILE = 64, DEPTH = 32, STAGES = 4 };

/* Where chunk c of row r lies, in values. */
static __device__ __forceinline__ int at(int r, int c) {
    return r * DEPTH + ((c ^ (r / 2 % 4)) << 3);
}

static __global__ void __launch_bounds__(128) pipelined(const struct conv_problem p) {
    alignas(16) __shared__ __half ring[STAGES][2][TILE * DEPTH];
    const int t = (int)threadIdx.x, lane = t % 32, warp = t / 32;
    const int rows = p.n * p.h * p.w, pixels = p.h * p.w, depth = p.kernel * p.kernel * p.in;
    const int m0 = (int)blockIdx.x * TILE, n0 = (int)blockIdx.y * TILE;
    const int wm = warp % 2 * 32, wn = warp / 2 * 32;
    int image[2], py[2], px[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int m = m0 + t / 4 + i * 32;
        image[i] = m < rows ? m / pixels * pixels : 0;
        py[i] = (m < rows ? m % pixels / p.w : -p.kernel) - p.kernel / 2; /* outside, where there is no row */
        px[i] = m % p.w - p.kernel / 2;
    }
    auto fetch = [&](int step) {
        const int k = step * DEPTH + t % 4 * 8, tap = k / p.in, c = k % p.in;
#pragma unroll
        for (int i = 0; i < 2; i++) { /* 64 rows of four chunks of 8 values: two a thread */
            const int row = t / 4 + i * 32, n = n0 + row;
            const int y = py[i] + tap / p.kernel, x = px[i] + tap % p.kernel;
            const bool in_x = k < depth && y >= 0 && y < p.h && x >= 0 && x < p.w;
            const bool in_w = k < depth && n < p.out;
            const size_t from_x = in_x ? (size_t)(image[i] + y * p.w + x) * (size_t)p.in + (size_t)c : 0;
            const size_t from_w = in_w ? (size_t)n * (size_t)depth + (size_t)k : 0;
            kx_cp_async16(ring[step % STAGES][0] + at(row, t % 4), (const __half *)p.x + from_x, in_x);
            kx_cp_async16(ring[step % STAGES][1] + at(row, t % 4), (const __half *)p.weight + from_w, in_w);
        }
    };
    float sum[2][4][4] = {};
    const int steps = (depth + DEPTH - 1) / DEPTH;
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) fetch(s);
        kx_cp_async_commit();
    }
    for (int s = 0; s < steps; s++) {
        kx_cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (s + STAGES - 1 < steps) fetch(s + STAGES - 1);
        kx_cp_async_commit();
        const __half *a = ring[s % STAGES][0], *b = ring[s % STAGES][1];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t fa[2][4], fb[4][2];
#pragma unroll
            for (int i = 0; i < 2; i++)
                kx_ldmatrix_x4(fa[i], a + at(wm + i * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                uint32_t r[4];
                kx_ldmatrix_x4(r, b + at(wn + j * 8 + lane / 16 * 8 + lane % 8, half * 2 + lane / 8 % 2));
                fb[j][0] = r[0], fb[j][1] = r[1], fb[j + 1][0] = r[2], fb[j + 1][1] = r[3];
            }
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) kx_mma_16816<__half>(sum[i][j], fa[i], fb[j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int n = n0 + wn + j * 8 + lane % 4 * 2;
            if (n >= p.out) continue;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int m = m0 + wm + i * 16 + lane / 4 + half * 8;
                if (m >= rows) continue;
                *(uint32_t *)((__half *)p.y + (size_t)m * (size_t)p.out + n) = kx_pack2<__half>(
                    sum[i][j][2 * half] + p.bias[n], sum[i][j][2 * half + 1] + p.bias[n + 1]);
            }
        }
}

extern "C" cudaError_t conv_5_pipelined(cudaStream_t stream, const struct conv_problem *p) {
    const int rows = p->n * p->h * p->w;
    return kx_launch(pipelined,
                     dim3((unsigned)((rows + TILE - 1) / TILE), (unsigned)((p->out + TILE - 1) / TILE)),
                     dim3(128), 0, stream, *p);
}
