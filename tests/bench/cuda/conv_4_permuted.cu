/* 4: permuted. As 3, but the four chunks of 16 bytes of a row lie in shared memory in an order that depends
 * on the row: chunk c of row r at place c ^ (r / 2 % 4). The eight rows that an ldmatrix reads are then in
 * all 32 banks, with no room lost to padding; and it asks for two matrices of b's rows at a time. What a
 * thread's pixel is it works out once, not at each step.
 *
 * Limited by: still everybody waits for global memory at each step. Gain: not measured. */
#include "kernels/cuda/device.cuh"
#include "tests/bench/cuda/conv.h"

enum { TILE = 64, DEPTH = 32 };

/* Where chunk c of row r lies, in values. */
static __device__ __forceinline__ int at(int r, int c) {
    return r * DEPTH + ((c ^ (r / 2 % 4)) << 3);
}

static __global__ void __launch_bounds__(128) permuted(const struct conv_problem p) {
    alignas(16) __shared__ __half a[TILE * DEPTH], b[TILE * DEPTH];
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
    float sum[2][4][4] = {};
    for (int k0 = 0; k0 < depth; k0 += DEPTH) {
        uint4 va[2], vb[2];
#pragma unroll
        for (int i = 0; i < 2; i++) { /* 64 rows of four chunks of 8 values: two a thread */
            const int n = n0 + t / 4 + i * 32, k = k0 + t % 4 * 8;
            const int tap = k / p.in, c = k % p.in;
            const int y = py[i] + tap / p.kernel, x = px[i] + tap % p.kernel;
            va[i] = vb[i] = make_uint4(0, 0, 0, 0);
            if (k < depth && y >= 0 && y < p.h && x >= 0 && x < p.w)
                va[i] = *(const uint4 *)((const __half *)p.x +
                                         (size_t)(image[i] + y * p.w + x) * (size_t)p.in + c);
            if (k < depth && n < p.out)
                vb[i] = *(const uint4 *)((const __half *)p.weight + (size_t)n * (size_t)depth + k);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            *(uint4 *)(a + at(t / 4 + i * 32, t % 4)) = va[i];
            *(uint4 *)(b + at(t / 4 + i * 32, t % 4)) = vb[i];
        }
        __syncthreads();
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

extern "C" cudaError_t conv_4_permuted(cudaStream_t stream, const struct conv_problem *p) {
    const int rows = p->n * p->h * p->w;
    return kx_launch(permuted,
                     dim3((unsigned)((rows + TILE - 1) / TILE), (unsigned)((p->out + TILE - 1) / TILE)),
                     dim3(128), 0, stream, *p);
}
