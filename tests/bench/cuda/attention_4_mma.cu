/* 4: tensor cores (mma.sync m16n8k16). A block of four warps takes 64 rows, a warp 16 of them; both products
 * run as 16 × 8 × 16 matrices. The scores come out of the first in the very registers in which the second
 * wants its left operand, when two neighbouring 8-wide tiles are read as one 16-wide: the weights never leave
 * the registers (Dao 2023, FlashAttention-2). Tiles are loaded value by value between two barriers, and
 * operands are gathered word by word from rows of shared memory that begin in the same banks.
 *
 * Gain: not measured. */
#include "kernels/cuda/device.cuh"
#include "tests/bench/cuda/attention.h"

enum { WARPS = 4, ROWS = 16 * WARPS, KEYS = 64 };

/* Two neighbouring values as an operand's register. */
static __device__ __forceinline__ uint32_t two(const __half *v) {
    return kx_pack2<__half>(kx_float(v[0]), kx_float(v[1]));
}

/* DIM is dim, filled up with zeros to a multiple of 16. */
template <int DIM> static __global__ void __launch_bounds__(32 * WARPS) mma(const struct kx_attention a) {
    alignas(16) __shared__ __half q[ROWS][DIM], k[KEYS][DIM], v[KEYS][DIM];
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int first = (int)blockIdx.x * ROWS, mine = 16 * warp;
    size_t head = (size_t)((int)blockIdx.y * a.dim), kv = blockIdx.z * a.kv_image + head;
    size_t pixel = (size_t)((int)blockIdx.z * a.rows + first);
    for (int i = (int)threadIdx.x; i < ROWS * DIM; i += 32 * WARPS) {
        int r = i / DIM, d = i % DIM;
        bool valid = first + r < a.rows && d < a.dim;
        q[r][d] =
            valid ? ((const __half *)a.q)[(pixel + (size_t)r) * a.q_stride + head + d] : kx_value<__half>(0);
    }

    float o[DIM / 8][4] = {{0}}, m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
    for (int at = 0; at < a.length; at += KEYS) {
        __syncthreads();
        for (int i = (int)threadIdx.x; i < KEYS * DIM; i += 32 * WARPS) {
            int j = i / DIM, d = i % DIM;
            bool valid = at + j < a.length && d < a.dim;
            size_t key = (size_t)(at + j);
            k[j][d] = valid ? ((const __half *)a.k)[kv + key * a.k_stride + d] : kx_value<__half>(0);
            v[j][d] = valid ? ((const __half *)a.v)[kv + key * a.v_stride + d] : kx_value<__half>(0);
        }
        __syncthreads();

        float s[KEYS / 8][4] = {{0}};
#pragma unroll
        for (int d = 0; d < DIM; d += 16) {
            const uint32_t x[4] = {two(&q[mine + g][d + 2 * t]), two(&q[mine + g + 8][d + 2 * t]),
                                   two(&q[mine + g][d + 2 * t + 8]), two(&q[mine + g + 8][d + 2 * t + 8])};
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                const uint32_t y[2] = {two(&k[8 * j + g][d + 2 * t]), two(&k[8 * j + g][d + 2 * t + 8])};
                kx_mma_16816<__half>(s[j], x, y);
            }
        }

        /* s[j][0, 1] are of row g, s[j][2, 3] of row g + 8. */
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float high = -INFINITY, sum = 0;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int c = 2 * h; c < 2 * h + 2; c++) {
                    s[j][c] = at + 8 * j + 2 * t + c % 2 < a.length ? s[j][c] * a.scale : -INFINITY;
                    high = fmaxf(high, s[j][c]);
                }
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
            high = fmaxf(high, m[h]);
            float fade = expf(m[h] - high);
            m[h] = high;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int c = 2 * h; c < 2 * h + 2; c++) sum += s[j][c] = expf(s[j][c] - high);
            l[h] = l[h] * fade + sum;
#pragma unroll
            for (int d = 0; d < DIM / 8; d++) {
                o[d][2 * h] *= fade;
                o[d][2 * h + 1] *= fade;
            }
        }

#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            const uint32_t x[4] = {kx_pack2<__half>(s[2 * j][0], s[2 * j][1]),
                                   kx_pack2<__half>(s[2 * j][2], s[2 * j][3]),
                                   kx_pack2<__half>(s[2 * j + 1][0], s[2 * j + 1][1]),
                                   kx_pack2<__half>(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
            for (int d = 0; d < DIM / 8; d++) {
                uint32_t y[2];
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const __half *value = &v[16 * j + 8 * r + 2 * t][8 * d + g];
                    y[r] = kx_pack2<__half>(kx_float(value[0]), kx_float(value[DIM]));
                }
                kx_mma_16816<__half>(o[d], x, y);
            }
        }
    }

#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = l[h];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        int row = mine + g + 8 * h;
        if (first + row >= a.rows) continue;
#pragma unroll
        for (int d = 0; d < DIM / 8; d++)
            if (8 * d < a.dim)
                *(uint32_t *)((__half *)a.out + (pixel + (size_t)row) * a.out_stride + head + 8 * d + 2 * t) =
                    kx_pack2<__half>(o[d][2 * h] / sum, o[d][2 * h + 1] / sum);
    }
}

extern "C" cudaError_t attention_4_mma(cudaStream_t stream, const struct kx_attention *a, float *scratch) {
    (void)scratch;
    dim3 grid((unsigned)((a->rows + ROWS - 1) / ROWS), (unsigned)a->heads, (unsigned)a->n), block(32 * WARPS);
    if (a->dim == 40) return kx_launch(mma<48>, grid, block, 0, stream, *a);
    if (a->dim == 64) return kx_launch(mma<64>, grid, block, 0, stream, *a);
    return KX_CUDA_NO;
}
