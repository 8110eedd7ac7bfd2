/* 3: tiles in shared memory (Dao et al. 2022, FlashAttention). A block takes 128 rows, a thread a row with
 * its query and its output in registers; 32 keys and values at a time stand in shared memory as f32, read by
 * all threads at once (a broadcast). L2 is read once for 128 rows. The products are f32 multiply-adds, a
 * fifteenth of what the tensor cores do, and head sizes are those whose query and output fit in registers.
 *
 * Gain: not measured. */
#include "kernels/cuda/device.cuh"
#include "tests/bench/cuda/attention.h"

enum { ROWS = 128, KEYS = 32 };

template <int DIM> static __global__ void __launch_bounds__(ROWS) tiles(const struct kx_attention a) {
    __shared__ float k[KEYS][DIM], v[KEYS][DIM];
    int row = (int)blockIdx.x * ROWS + (int)threadIdx.x;
    size_t head = (size_t)((int)blockIdx.y * DIM), kv = blockIdx.z * a.kv_image + head;
    size_t pixel = (size_t)((int)blockIdx.z * a.rows + (row < a.rows ? row : a.rows - 1));

    float q[DIM], o[DIM], m = -INFINITY, l = 0;
#pragma unroll
    for (int d = 0; d < DIM; d++) {
        q[d] = kx_float(((const __half *)a.q)[pixel * a.q_stride + head + d]) * a.scale;
        o[d] = 0;
    }
    for (int at = 0; at < a.length; at += KEYS) {
        int keys = a.length - at < KEYS ? a.length - at : KEYS;
        __syncthreads();
        for (int i = (int)threadIdx.x; i < keys * DIM; i += ROWS) {
            int j = i / DIM, d = i % DIM;
            k[j][d] = kx_float(((const __half *)a.k)[kv + (size_t)(at + j) * a.k_stride + d]);
            v[j][d] = kx_float(((const __half *)a.v)[kv + (size_t)(at + j) * a.v_stride + d]);
        }
        __syncthreads();
        for (int j = 0; j < keys; j++) {
            float s = 0;
#pragma unroll
            for (int d = 0; d < DIM; d++) s = fmaf(q[d], k[j][d], s);
            float high = fmaxf(m, s), fade = expf(m - high), p = expf(s - high);
            m = high;
            l = l * fade + p;
#pragma unroll
            for (int d = 0; d < DIM; d++) o[d] = fmaf(p, v[j][d], o[d] * fade);
        }
    }
    if (row >= a.rows) return;
#pragma unroll
    for (int d = 0; d < DIM; d++)
        ((__half *)a.out)[pixel * a.out_stride + head + d] = kx_value<__half>(o[d] / l);
}

extern "C" cudaError_t attention_3_tiles(cudaStream_t stream, const struct kx_attention *a, float *scratch) {
    (void)scratch;
    dim3 grid((unsigned)((a->rows + ROWS - 1) / ROWS), (unsigned)a->heads, (unsigned)a->n);
    if (a->dim == 40) return kx_launch(tiles<40>, grid, dim3(ROWS), 0, stream, *a);
    if (a->dim == 64) return kx_launch(tiles<64>, grid, dim3(ROWS), 0, stream, *a);
    return KX_CUDA_NO;
}
