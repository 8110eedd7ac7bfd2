/* 2: no score matrix. A warp takes a row and goes through the keys once, 32 at a time, with a running maximum
 * m and sum l (Milakov and Gimelshein 2018): when a larger score comes, what was added so far is multiplied
 * by e^(m_old - m_new). Traffic falls from rows · length to what fits in L2; each row still reads all keys
 * and values.
 *
 * Gain: not measured. */
#include "kernels/cuda/device.cuh"
#include "tests/bench/cuda/attention.h"

enum { DIM_MAX = 512 };

static __global__ void __launch_bounds__(32) online(const struct kx_attention a) {
    __shared__ float q[DIM_MAX], p[32];
    int lane = (int)threadIdx.x, row = (int)blockIdx.x;
    size_t head = (size_t)((int)blockIdx.y * a.dim), pixel = (size_t)((int)blockIdx.z * a.rows + row);
    const __half *k = (const __half *)a.k + blockIdx.z * a.kv_image + head;
    const __half *v = (const __half *)a.v + blockIdx.z * a.kv_image + head;
    for (int d = lane; d < a.dim; d += 32)
        q[d] = kx_float(((const __half *)a.q)[pixel * a.q_stride + head + d]);
    __syncwarp();

    float o[DIM_MAX / 32] = {0}, m = -INFINITY, l = 0;
    for (int at = 0; at < a.length; at += 32) {
        float s = -INFINITY; /* of key at + lane */
        if (at + lane < a.length) {
            s = 0;
            for (int d = 0; d < a.dim; d++) s += q[d] * kx_float(k[(size_t)(at + lane) * a.k_stride + d]);
            s *= a.scale;
        }
        float high = s;
        for (int i = 16; i; i /= 2) high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, i));
        high = fmaxf(high, m);
        float fade = expf(m - high);
        m = high;
        p[lane] = expf(s - m);
        l = l * fade + p[lane];
        __syncwarp();
#pragma unroll
        for (int i = 0; i < DIM_MAX / 32; i++) {
            int d = 32 * i + lane;
            if (d >= a.dim) break;
            o[i] *= fade;
            for (int j = 0; j < 32 && at + j < a.length; j++)
                o[i] += p[j] * kx_float(v[(size_t)(at + j) * a.v_stride + d]);
        }
        __syncwarp();
    }
    for (int i = 16; i; i /= 2) l += __shfl_xor_sync(0xffffffffu, l, i);
#pragma unroll
    for (int i = 0; i < DIM_MAX / 32; i++)
        if (32 * i + lane < a.dim)
            ((__half *)a.out)[pixel * a.out_stride + head + 32 * i + lane] = kx_value<__half>(o[i] / l);
}

extern "C" cudaError_t attention_2_online(cudaStream_t stream, const struct kx_attention *a, float *scratch) {
    (void)scratch;
    if (a->dim > DIM_MAX) return KX_CUDA_NO;
    return kx_launch(online, dim3((unsigned)a->rows, (unsigned)a->heads, (unsigned)a->n), dim3(32), 0, stream,
                     *a);
}
