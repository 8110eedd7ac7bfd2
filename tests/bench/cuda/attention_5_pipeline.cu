/* 5: pipelined. The feeding of the tensor cores is mended:
 *
 * - ldmatrix hands a warp four 8 × 8 matrices at once, turned for the values; rows in shared memory are an
 * odd number of 16-byte chunks apart, so that the eight rows of a matrix lie in different banks.
 * - cp.async brings the next tile into the other of two buffers while this one is computed; one barrier a
 * tile.
 * - Queries are read from shared memory once and stay in registers.
 * - 2^(s · c − m) with c = scale · log2 e: one multiply-add and one instruction of the special unit.
 *
 * Gain: not measured. */
#include "kernels/cuda/device.cuh"
#include "tests/bench/cuda/attention.h"

enum { WARPS = 4, THREADS = 32 * WARPS, ROWS = 16 * WARPS, KEYS = 64 };
typedef kx_vec8<__half> chunk;

/* `rows` rows of dim values into 64 rows of CHUNKS chunks, zeros around them. */
template <int CHUNKS>
static __device__ __forceinline__ void load(chunk *to, const __half *from, size_t stride, int rows, int dim) {
    for (int i = (int)threadIdx.x; i < 64 * CHUNKS; i += THREADS) {
        int r = i / CHUNKS, c = i % CHUNKS;
        bool valid = r < rows && 8 * c < dim;
        kx_cp_async16(to + r * (CHUNKS | 1) + c, valid ? from + (size_t)r * stride + 8 * c : from, valid);
    }
}

template <int DIM> static __global__ void __launch_bounds__(THREADS) pipeline(const struct kx_attention a) {
    enum { CHUNKS = DIM / 8, PITCH = CHUNKS | 1, TILE = 64 * PITCH };
    KX_DYNAMIC_SHARED(chunk, shared); /* the queries, then twice keys and values */
    int lane = (int)threadIdx.x % 32, mine = (int)threadIdx.x / 32 * 16, first = (int)blockIdx.x * ROWS;
    size_t head = (size_t)((int)blockIdx.y * a.dim), kv = blockIdx.z * a.kv_image + head;
    size_t pixel = (size_t)((int)blockIdx.z * a.rows + first);
    const __half *k = (const __half *)a.k + kv, *v = (const __half *)a.v + kv;
    load<CHUNKS>(shared, (const __half *)a.q + pixel * a.q_stride + head, a.q_stride, a.rows - first, a.dim);
    load<CHUNKS>(shared + TILE, k, a.k_stride, a.length, a.dim);
    load<CHUNKS>(shared + 2 * TILE, v, a.v_stride, a.length, a.dim);
    kx_cp_async_commit();

    uint32_t q[DIM / 16][4];
    float o[CHUNKS][4] = {{0}}, m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0}, scale = a.scale * 1.44269504f;
    for (int at = 0, buffer = 0; at < a.length; at += KEYS, buffer ^= 1) {
        kx_cp_async_wait<0>();
        __syncthreads();
        if (at == 0)
#pragma unroll
            for (int d = 0; d < DIM / 16; d++)
                kx_ldmatrix_x4(q[d], shared + (mine + lane % 16) * PITCH + lane / 16 + 2 * d);
        const chunk *keys = shared + (1 + 2 * buffer) * TILE, *values = keys + TILE;
        int next = at + KEYS;
        if (next < a.length) {
            chunk *to = shared + (3 - 2 * buffer) * TILE;
            load<CHUNKS>(to, k + (size_t)next * a.k_stride, a.k_stride, a.length - next, a.dim);
            load<CHUNKS>(to + TILE, v + (size_t)next * a.v_stride, a.v_stride, a.length - next, a.dim);
            kx_cp_async_commit();
        }

        float s[KEYS / 8][4] = {{0}};
#pragma unroll
        for (int d = 0; d < DIM / 16; d++)
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                uint32_t r[4];
                kx_ldmatrix_x4(r, keys + (16 * j + lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 + 2 * d);
                const uint32_t b0[2] = {r[0], r[1]}, b1[2] = {r[2], r[3]};
                kx_mma_16816<__half>(s[2 * j], q[d], b0);
                kx_mma_16816<__half>(s[2 * j + 1], q[d], b1);
            }
        if (next > a.length)
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    if (at + 8 * j + 2 * (lane % 4) + c % 2 >= a.length) s[j][c] = -INFINITY;

#pragma unroll
        for (int h = 0; h < 2; h++) {
            float high = -INFINITY, sum = 0;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) high = fmaxf(high, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
            high = fmaxf(high * scale, m[h]);
            float fade = kx_ex2(m[h] - high);
            m[h] = high;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int c = 2 * h; c < 2 * h + 2; c++) sum += s[j][c] = kx_ex2(fmaf(s[j][c], scale, -high));
            l[h] = l[h] * fade + sum;
#pragma unroll
            for (int d = 0; d < CHUNKS; d++) {
                o[d][2 * h] *= fade;
                o[d][2 * h + 1] *= fade;
            }
        }

#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            const uint32_t p[4] = {kx_pack2<__half>(s[2 * j][0], s[2 * j][1]),
                                   kx_pack2<__half>(s[2 * j][2], s[2 * j][3]),
                                   kx_pack2<__half>(s[2 * j + 1][0], s[2 * j + 1][1]),
                                   kx_pack2<__half>(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
            for (int d = 0; d < CHUNKS; d += 2) {
                uint32_t r[4];
                kx_ldmatrix_x4_trans(r, values + (16 * j + lane % 16) * PITCH + lane / 16 + d);
                const uint32_t b0[2] = {r[0], r[1]}, b1[2] = {r[2], r[3]};
                kx_mma_16816<__half>(o[d], p, b0);
                kx_mma_16816<__half>(o[d + 1], p, b1);
            }
        }
    }

#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = l[h];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        int row = mine + lane / 4 + 8 * h;
        if (first + row >= a.rows) continue;
        __half *out = (__half *)a.out + (pixel + (size_t)row) * a.out_stride + head + 2 * (lane % 4);
#pragma unroll
        for (int d = 0; d < CHUNKS; d++)
            if (8 * d < a.dim)
                *(uint32_t *)(out + 8 * d) = kx_pack2<__half>(o[d][2 * h] / sum, o[d][2 * h + 1] / sum);
    }
}

template <int DIM> static cudaError_t launch(cudaStream_t stream, const struct kx_attention *a) {
    dim3 grid((unsigned)((a->rows + ROWS - 1) / ROWS), (unsigned)a->heads, (unsigned)a->n);
    return kx_launch(pipeline<DIM>, grid, dim3(THREADS), (size_t)5 * 64 * (DIM / 8 | 1) * 16, stream, *a);
}

extern "C" cudaError_t attention_5_pipeline(cudaStream_t stream, const struct kx_attention *a,
                                            float *scratch) {
    (void)scratch;
    return a->dim == 40 ? launch<48>(stream, a) : a->dim == 64 ? launch<64>(stream, a) : KX_CUDA_NO;
}
