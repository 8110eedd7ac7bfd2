/* 1: naive. As the formula stands, in three kernels, with the whole score matrix in memory: a thread a score,
 * a block a row's softmax, a thread a value of the output. 4096 rows of 8 heads are 512 MB, written once,
 * read and written by the softmax, read again; a score reads its key value by value.
 *
 * Gain: the others are measured from here. Not measured. */
#include "kernels/cuda/device.cuh"
#include "tests/bench/cuda/attention.h"

static __global__ void scores(const struct kx_attention a, int image, float *s) {
    int key = (int)(blockIdx.x * blockDim.x + threadIdx.x), row = (int)blockIdx.y, head = (int)blockIdx.z;
    if (key >= a.length) return;
    const __half *q = (const __half *)a.q + (size_t)(image * a.rows + row) * a.q_stride + head * a.dim;
    const __half *k =
        (const __half *)a.k + (size_t)image * a.kv_image + (size_t)key * a.k_stride + head * a.dim;
    float sum = 0;
    for (int d = 0; d < a.dim; d++) sum += kx_float(q[d]) * kx_float(k[d]);
    s[((size_t)head * (size_t)a.rows + (size_t)row) * (size_t)a.length + (size_t)key] = sum * a.scale;
}

enum { SOFTMAX_THREADS = 128 };

/* Over the block's threads, by maximum or by sum; all of them get it. */
static __device__ float all(float v, bool sum) {
    __shared__ float part[SOFTMAX_THREADS];
    part[threadIdx.x] = v;
    for (unsigned i = SOFTMAX_THREADS / 2; i; i /= 2) {
        __syncthreads();
        if (threadIdx.x < i) {
            float other = part[threadIdx.x + i];
            part[threadIdx.x] = sum ? part[threadIdx.x] + other : fmaxf(part[threadIdx.x], other);
        }
    }
    __syncthreads();
    v = part[0];
    __syncthreads();
    return v;
}

static __global__ void softmax(float *s, int length) {
    float *row = s + (size_t)blockIdx.x * (size_t)length, top = -INFINITY, sum = 0;
    for (int j = (int)threadIdx.x; j < length; j += SOFTMAX_THREADS) top = fmaxf(top, row[j]);
    top = all(top, false);
    for (int j = (int)threadIdx.x; j < length; j += SOFTMAX_THREADS) sum += row[j] = expf(row[j] - top);
    sum = all(sum, true);
    for (int j = (int)threadIdx.x; j < length; j += SOFTMAX_THREADS) row[j] /= sum;
}

static __global__ void weigh(const struct kx_attention a, int image, const float *s) {
    int d = (int)threadIdx.x, row = (int)blockIdx.x, head = (int)blockIdx.y;
    const float *p = s + ((size_t)head * (size_t)a.rows + (size_t)row) * (size_t)a.length;
    const __half *v = (const __half *)a.v + (size_t)image * a.kv_image + head * a.dim + d;
    float sum = 0;
    for (int j = 0; j < a.length; j++) sum += p[j] * kx_float(v[(size_t)j * a.v_stride]);
    __half *out = (__half *)a.out + (size_t)(image * a.rows + row) * a.out_stride + head * a.dim + d;
    *out = kx_value<__half>(sum);
}

extern "C" cudaError_t attention_1_naive(cudaStream_t stream, const struct kx_attention *a, float *scratch) {
    dim3 keys((unsigned)(a->length + 127) / 128, (unsigned)a->rows, (unsigned)a->heads);
    for (int i = 0; i < a->n; i++) {
        cudaError_t e = kx_launch(scores, keys, dim3(128), 0, stream, *a, i, scratch);
        if (e == cudaSuccess)
            e = kx_launch(softmax, dim3((unsigned)(a->heads * a->rows)), dim3(SOFTMAX_THREADS), 0, stream,
                          scratch, a->length);
        if (e == cudaSuccess)
            e = kx_launch(weigh, dim3((unsigned)a->rows, (unsigned)a->heads), dim3((unsigned)a->dim), 0,
                          stream, *a, i, (const float *)scratch);
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}
