/* 3: tensor cores. The tile is the same, 64 × 64, but now of four warps, each of which makes 32 × 32 of it
 * with mma.sync (16 × 8 × 16 products an instruction, f32 accumulators); the operands stay f16 in shared
 * memory, 32 products' worth of each, and come to the registers as ldmatrix lays them out.
 *
 * Limited by: rows of 64 bytes lie at every second row in the same banks, so that the eight rows of an
 * ldmatrix take four times as long as they need to; and everybody waits for global memory at each step. Gain:
 * not measured. */
#include "kernels/cuda/device.cuh"
#include "tests/bench/cuda/conv.h"

enum { TILE = 64, DEPTH = 32 };

static __global__ void __launch_bounds__(128) tensor(const struct conv_problem p) {
    alignas(16) __shared__ __half a[TILE][DEPTH], b[TILE][DEPTH];
    const int t = (int)threadIdx.x, lane = t % 32, warp = t / 32;
    const int rows = p.n * p.h * p.w, pixels = p.h * p.w, depth = p.kernel * p.kernel * p.in;
    const int m0 = (int)blockIdx.x * TILE, n0 = (int)blockIdx.y * TILE;
    const int wm = warp % 2 * 32, wn = warp / 2 * 32;
    float sum[2][4][4] = {};
    for (int k0 = 0; k0 < depth; k0 += DEPTH) {
        uint4 va[2], vb[2];
#pragma unroll
        for (int i = 0; i < 2; i++) { /* 64 rows of four chunks of 8 values: two a thread */
            const int m = m0 + t / 4 + i * 32, n = n0 + t / 4 + i * 32, k = k0 + t % 4 * 8;
            const int tap = k / p.in, c = k % p.in;
            const int y = m % pixels / p.w + tap / p.kernel - p.kernel / 2;
            const int x = m % p.w + tap % p.kernel - p.kernel / 2;
            va[i] = vb[i] = make_uint4(0, 0, 0, 0);
            if (k < depth && m < rows && y >= 0 && y < p.h && x >= 0 && x < p.w)
                va[i] = *(const uint4 *)((const __half *)p.x +
                                         ((size_t)(m / pixels) * (size_t)pixels + (size_t)(y * p.w + x)) *
                                             (size_t)p.in +
                                         c);
            if (k < depth && n < p.out)
                vb[i] = *(const uint4 *)((const __half *)p.weight + (size_t)n * (size_t)depth + k);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            *(uint4 *)&a[t / 4 + i * 32][t % 4 * 8] = va[i];
            *(uint4 *)&b[t / 4 + i * 32][t % 4 * 8] = vb[i];
        }
        __syncthreads();
#pragma unroll
        for (int half = 0; half < DEPTH; half += 16) {
            uint32_t fa[2][4], fb[4][2];
#pragma unroll
            for (int i = 0; i < 2; i++)
                kx_ldmatrix_x4(fa[i], &a[wm + i * 16 + lane % 16][half + lane / 16 * 8]);
#pragma unroll
            for (int j = 0; j < 4; j++)
                kx_ldmatrix_x2(fb[j], &b[wn + j * 8 + lane % 8][half + lane / 8 % 2 * 8]);
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

extern "C" cudaError_t conv_3_tensor(cudaStream_t stream, const struct conv_problem *p) {
    const int rows = p->n * p->h * p->w;
    return kx_launch(tensor,
                     dim3((unsigned)((rows + TILE - 1) / TILE), (unsigned)((p->out + TILE - 1) / TILE)),
                     dim3(128), 0, stream, *p);
}
