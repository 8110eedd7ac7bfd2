/* The implicit GEMM behind op_conv.cu (f16, bf16) and op_conv_fp8.cu (e4m3 operands): the kernel itself.
 * The formula, its geometry and its tolerance are at the head of op_conv.cu.
 *
 * The matrix product is y[m][n] = Σ_k a[m][k] · w[n][k]: row m is a pixel of y, n an output channel, and k
 * runs over the kernel's taps, row by row, and within a tap over the input channels (the weights lie so in
 * memory, and so does a pixel of x: 16 bytes of k are 16 bytes of x). The matrix a is never made: a thread
 * that fetches 16 bytes of it works out which pixel of x they are of, or that they are padding, which
 * cp.async fills with zeros.
 *
 * Shared memory: a ring of STAGES stages, each BM rows of a and BN rows of w of 64 bytes (a "slice": 32
 * values, or 64 of e4m3), the four 16-byte chunks of a row permuted by (row / 2) % 4, so that the eight rows
 * that an ldmatrix reads at one chunk are in all 32 banks, and so are the eight chunks that a quarter of a
 * warp writes.
 *
 * One barrier a slice: at it everybody's copies of this slice have arrived and everybody has done with the
 * slice before, whose stage the next copies then go to.
 *
 * Order of sums: each value of y is one accumulator that takes k in steps of 16 values (32 of e4m3), in
 * ascending order, whatever the tile; it depends on its row of a and its row of w alone. So all tiles give
 * the same bits (tests/gpu/conv.cc). */
#ifndef KILN_KERNELS_CUDA_OP_CONV_CUH
#define KILN_KERNELS_CUDA_OP_CONV_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

#include <string.h>

/* ---- the epilogue */

/* The epilogue's part of a product: how sums become y. */
struct kx_conv_out {
    const float *scale; /* e4m3: a sum's factor is scale[n] · scale_x; else NULL */
    float scale_x;
    const float *bias;
    struct kx_rows time_proj;
    const void *residual;
    void *y;
    int rows, out, pixels; /* rows of y in all, sums a row, rows an image */
    enum kx_act act;
    bool wide; /* 8 channels at a time: out is a multiple of 8 and everything is aligned */
};

static __device__ __forceinline__ float kx_conv_gelu(float v) {
    return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
}

static __device__ __forceinline__ float kx_conv_act(enum kx_act act, float v) {
    switch (act) {
    case KX_ACT_SILU:
        return v / (1.0f + __expf(-v));
    case KX_ACT_QUICK_GELU:
        return v / (1.0f + __expf(-1.702f * v));
    case KX_ACT_GELU:
        return kx_conv_gelu(v);
    default:
        return v;
    }
}

template <typename T> static __device__ __forceinline__ void kx_conv_add8(float (&v)[8], const T *from) {
    const uint4 r = *(const uint4 *)from;
    const float2 r0 = kx_unpack2<T>(r.x), r1 = kx_unpack2<T>(r.y), r2 = kx_unpack2<T>(r.z),
                 r3 = kx_unpack2<T>(r.w);
    v[0] += r0.x, v[1] += r0.y, v[2] += r1.x, v[3] += r1.y;
    v[4] += r2.x, v[5] += r2.y, v[6] += r3.x, v[7] += r3.y;
}

/* y's values of row m that the sums of channels n … n + 7 give (GEGLU: four, of channels n / 2 …). n is a
 * multiple of 8 and below out. */
template <typename T>
static __device__ __forceinline__ void kx_conv_finish(const struct kx_conv_out &o, int m, int n,
                                                      float (&v)[8]) {
    const bool geglu = o.act == KX_ACT_GEGLU;
    const T *time_proj = NULL;
    if (o.time_proj.v) {
        const int image = m / o.pixels;
        const size_t row = o.time_proj.index ? (size_t)o.time_proj.index[image] : (size_t)image;
        time_proj = (const T *)o.time_proj.v + row * o.time_proj.stride + n;
    }
    if (o.wide) {
        if (o.scale) {
            const float4 s0 = *(const float4 *)(o.scale + n), s1 = *(const float4 *)(o.scale + n + 4);
            v[0] *= s0.x * o.scale_x, v[1] *= s0.y * o.scale_x, v[2] *= s0.z * o.scale_x,
                v[3] *= s0.w * o.scale_x;
            v[4] *= s1.x * o.scale_x, v[5] *= s1.y * o.scale_x, v[6] *= s1.z * o.scale_x,
                v[7] *= s1.w * o.scale_x;
        }
        if (o.bias) {
            const float4 b0 = *(const float4 *)(o.bias + n), b1 = *(const float4 *)(o.bias + n + 4);
            v[0] += b0.x, v[1] += b0.y, v[2] += b0.z, v[3] += b0.w;
            v[4] += b1.x, v[5] += b1.y, v[6] += b1.z, v[7] += b1.w;
        }
        if (time_proj) kx_conv_add8<T>(v, time_proj);
        if (geglu) {
            const size_t at = (size_t)m * (size_t)(o.out / 2) + (size_t)(n / 2);
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] = v[2 * i] * kx_conv_gelu(v[2 * i + 1]);
            if (o.residual) {
                const uint2 r = *(const uint2 *)((const T *)o.residual + at);
                const float2 r0 = kx_unpack2<T>(r.x), r1 = kx_unpack2<T>(r.y);
                v[0] += r0.x, v[1] += r0.y, v[2] += r1.x, v[3] += r1.y;
            }
            *(uint2 *)((T *)o.y + at) = make_uint2(kx_pack2<T>(v[0], v[1]), kx_pack2<T>(v[2], v[3]));
            return;
        }
        const size_t at = (size_t)m * (size_t)o.out + (size_t)n;
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = kx_conv_act(o.act, v[i]);
        if (o.residual) kx_conv_add8<T>(v, (const T *)o.residual + at);
        *(uint4 *)((T *)o.y + at) = make_uint4(kx_pack2<T>(v[0], v[1]), kx_pack2<T>(v[2], v[3]),
                                               kx_pack2<T>(v[4], v[5]), kx_pack2<T>(v[6], v[7]));
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (n + i >= o.out) continue;
        if (o.scale) v[i] *= o.scale[n + i] * o.scale_x;
        if (o.bias) v[i] += o.bias[n + i];
        if (time_proj) v[i] += kx_float(time_proj[i]);
    }
    const int width = geglu ? o.out / 2 : o.out, first = geglu ? n / 2 : n;
    const size_t at = (size_t)m * (size_t)width + (size_t)first;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (first + i >= width || (geglu && i >= 4)) continue;
        float r = geglu ? v[(2 * i) % 8] * kx_conv_gelu(v[(2 * i + 1) % 8]) : kx_conv_act(o.act, v[i]);
        if (o.residual) r += kx_float(((const T *)o.residual)[at + (size_t)i]);
        ((T *)o.y)[at + (size_t)i] = kx_value<T>(r);
    }
}

/* ---- the operands */

/* One byte of e4m3: an operand's type where it is not the storage type. */
struct kx_conv_e4m3 {
    uint8_t bits;
};

struct kx_conv_in {
    const void *x, *weight;
    int h, w, in; /* x: an image's pixels and channels */
    int oh, ow;
    int kernel, stride, up; /* up: 1 where x is doubled, else 0 */
    int k;                  /* kernel² · in */
    int tiles_m, tiles_n;
};

/* How a slice is fetched: a row of a is a row of x (1×1); by taps; or value by value, where 16 bytes are not
 * one pixel's or not aligned. */
enum { KX_CONV_ROWS, KX_CONV_TAPS, KX_CONV_VALUES };

enum {
    KX_CONV_ROW_BYTES = 64, /* of a slice */
    KX_CONV_GROUP = 8,      /* rows of tiles that run together, so that they share w and x in L2 */
    KX_CONV_FAR = -0x4000,  /* a coordinate that is outside of every image */
    KX_CONV_SIDE_MAX = 0x3f00
};

static __device__ __forceinline__ void kx_conv_multiply(float (&d)[4], const uint32_t (&a)[4],
                                                        const uint32_t (&b)[2], const __half *) {
    kx_mma_16816<__half>(d, a, b);
}
static __device__ __forceinline__ void kx_conv_multiply(float (&d)[4], const uint32_t (&a)[4],
                                                        const uint32_t (&b)[2], const __nv_bfloat16 *) {
    kx_mma_16816<__nv_bfloat16>(d, a, b);
}
static __device__ __forceinline__ void kx_conv_multiply(float (&d)[4], const uint32_t (&a)[4],
                                                        const uint32_t (&b)[2], const struct kx_conv_e4m3 *) {
    kx_mma_16832_e4m3(d, a, b);
}

/* Where a chunk of a row lies in a stage. */
static __device__ __forceinline__ int kx_conv_chunk(int row, int chunk) {
    return row * KX_CONV_ROW_BYTES + ((chunk ^ ((row >> 1) & 3)) << 4);
}

/* T: storage type; U: the operands' (T or e4m3). A block makes BM × BN of y, each of its (BM / WM) · (BN /
 * WN) warps WM × WN. */
template <typename T, typename U, int BM, int BN, int WM, int WN, int STAGES, int LOAD, int BLOCKS>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * 32, BLOCKS)
    kx_conv_kernel(const struct kx_conv_in p, const struct kx_conv_out o) {
    constexpr int THREADS = BM / WM * (BN / WN) * 32;
    constexpr int VALUES = 16 / (int)sizeof(U); /* of a chunk */
    constexpr int ROWS = THREADS / 4;           /* that all threads fetch at once, four chunks a row */
    constexpr int PASSES_A = (BM + ROWS - 1) / ROWS, PASSES_B = (BN + ROWS - 1) / ROWS;
    constexpr int STAGE = (BM + BN) * KX_CONV_ROW_BYTES;
    constexpr int MT = WM / 16, NT = WN / 8;
    static_assert(BM % WM == 0 && BN % WN == 0 && WM % 16 == 0 && WN % 16 == 0, "whole matrices");
    KX_DYNAMIC_SHARED(unsigned char, ring);

    const int t = (int)threadIdx.x, lane = t % 32, warp = t / 32;
    int m0, n0;
    {
        const int tile = (int)blockIdx.x, group = tile / (KX_CONV_GROUP * p.tiles_n);
        const int first = group * KX_CONV_GROUP, at = tile - first * p.tiles_n;
        const int rows = p.tiles_m - first < KX_CONV_GROUP ? p.tiles_m - first : KX_CONV_GROUP;
        m0 = (first + at % rows) * BM;
        n0 = at / rows * BN;
    }

    /* This thread fetches chunk t % 4 of rows t / 4, t / 4 + ROWS, … of a and w. k, and what it is in
     * taps and channels, go on by a slice at a time. */
    const int chunk = t % 4, row0 = t / 4;
    int k = chunk * VALUES, ky = 0, kx = 0, c = k;
    int base[PASSES_A], corner[PASSES_A]; /* of a row: its image's first pixel; y and x of its first tap */
    if (LOAD != KX_CONV_ROWS) {
#pragma unroll
        for (int i = 0; i < PASSES_A; i++) {
            const int row = row0 + i * ROWS, m = m0 + row;
            int y = KX_CONV_FAR, x = KX_CONV_FAR;
            base[i] = 0;
            if (row < BM && m < o.rows) {
                const int image = m / o.pixels, pixel = m - image * o.pixels;
                y = pixel / p.ow;
                x = (pixel - y * p.ow) * p.stride - p.kernel / 2;
                y = y * p.stride - p.kernel / 2;
                base[i] = image * (p.h * p.w);
            }
            corner[i] = y * 65536 + (x & 0xffff);
        }
        while (c >= p.in) {
            c -= p.in;
            if (++kx == p.kernel) kx = 0, ky++;
        }
    }
    const U *weight = (const U *)p.weight + (size_t)(n0 + row0) * (size_t)p.k;
    const U *rows_x = (const U *)p.x + (size_t)(m0 + row0) * (size_t)p.in; /* KX_CONV_ROWS */

    /* The value of a at (row i of this thread's, tap, channel), or padding. */
    auto pixel_of = [&](int i, int tap_y, int tap_x, bool *inside) {
        const int y = (corner[i] >> 16) + tap_y, x = (int)(int16_t)(corner[i] & 0xffff) + tap_x;
        *inside = (unsigned)y < (unsigned)(p.h << p.up) && (unsigned)x < (unsigned)(p.w << p.up);
        return (size_t)(base[i] + (y >> p.up) * p.w + (x >> p.up));
    };

    auto fetch = [&](int stage) {
        unsigned char *to_a = ring + stage * STAGE, *to_b = to_a + BM * KX_CONV_ROW_BYTES;
        const bool some = k < p.k;
#pragma unroll
        for (int i = 0; i < PASSES_A; i++) {
            const int row = row0 + i * ROWS;
            if (BM % ROWS != 0 && row >= BM) continue;
            unsigned char *to = to_a + kx_conv_chunk(row, chunk);
            if (LOAD == KX_CONV_ROWS) {
                const bool inside = some && m0 + row < o.rows;
                kx_cp_async16(to, inside ? rows_x + (size_t)(i * ROWS) * (size_t)p.in + k : (const U *)p.x,
                              inside);
            } else if (LOAD == KX_CONV_TAPS) {
                bool inside;
                const size_t pixel = pixel_of(i, ky, kx, &inside);
                inside = inside && some;
                kx_cp_async16(to, inside ? (const U *)p.x + pixel * (size_t)p.in + c : (const U *)p.x,
                              inside);
            } else {
                alignas(16) U v[VALUES];
                int vy = ky, vx = kx, vc = c;
#pragma unroll
                for (int j = 0; j < VALUES; j++) {
                    bool inside;
                    const size_t pixel = pixel_of(i, vy, vx, &inside);
                    inside = inside && k + j < p.k;
                    v[j] = inside ? ((const U *)p.x)[pixel * (size_t)p.in + (size_t)vc] : U{};
                    if (++vc == p.in) {
                        vc = 0;
                        if (++vx == p.kernel) vx = 0, vy++;
                    }
                }
                *(uint4 *)to = *(const uint4 *)v;
            }
        }
#pragma unroll
        for (int i = 0; i < PASSES_B; i++) {
            const int row = row0 + i * ROWS;
            if (BN % ROWS != 0 && row >= BN) continue;
            unsigned char *to = to_b + kx_conv_chunk(row, chunk);
            const U *from = weight + (size_t)(i * ROWS) * (size_t)p.k + k;
            if (LOAD != KX_CONV_VALUES) {
                const bool inside = some && n0 + row < o.out;
                kx_cp_async16(to, inside ? from : (const U *)p.weight, inside);
            } else {
                alignas(16) U v[VALUES];
#pragma unroll
                for (int j = 0; j < VALUES; j++) v[j] = n0 + row < o.out && k + j < p.k ? from[j] : U{};
                *(uint4 *)to = *(const uint4 *)v;
            }
        }
        k += 4 * VALUES;
        if (LOAD != KX_CONV_ROWS) {
            c += 4 * VALUES;
            while (c >= p.in) {
                c -= p.in;
                if (++kx == p.kernel) kx = 0, ky++;
            }
        }
    };

    /* This warp multiplies 16 rows of a at each lane % 16, 16 of w as two matrices of 8. A row's place
     * in its group of eight, and so its permutation, is the same for all of them. */
    const int warp_m = warp % (BM / WM) * WM, warp_n = warp / (BM / WM) * WN;
    const int row_a = warp_m + lane % 16, row_b = warp_n + lane % 8 + lane / 16 * 8;
    const int chunk_a = lane / 16, chunk_b = lane / 8 % 2;
    float acc[MT][NT][4];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) acc[i][j][e] = 0.0f;

    const int slices = (p.k + 4 * VALUES - 1) / (4 * VALUES);
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < slices) fetch(s);
        kx_cp_async_commit();
    }
    int stage = 0, free = STAGES - 1;
    for (int s = 0; s < slices; s++) {
        kx_cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (s + STAGES - 1 < slices) fetch(free);
        kx_cp_async_commit(); /* an empty group too: wait counts groups */
        const unsigned char *at_a = ring + stage * STAGE, *at_b = at_a + BM * KX_CONV_ROW_BYTES;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t a[MT][4], b[NT][2];
#pragma unroll
            for (int i = 0; i < MT; i++)
                kx_ldmatrix_x4(a[i], at_a + kx_conv_chunk(row_a + i * 16, chunk_a + half * 2));
#pragma unroll
            for (int j = 0; j < NT; j += 2) {
                uint32_t r[4];
                kx_ldmatrix_x4(r, at_b + kx_conv_chunk(row_b + j * 8, chunk_b + half * 2));
                b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
            }
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int j = 0; j < NT; j++) kx_conv_multiply(acc[i][j], a[i], b[j], (const U *)NULL);
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        free = free + 1 == STAGES ? 0 : free + 1;
    }

    /* 16 rows at a time through shared memory, each warp in its own part, so that a thread holds 8 channels
     * side by side and y is read and written 16 bytes at a time. A row is 8 floats longer than it need be:
     * four rows of pairs are then in all 32 banks. */
    kx_cp_async_wait<0>();
    __syncthreads();
    constexpr int PITCH = WN + 8, EIGHTS = WN / 8;
    float *own = (float *)ring + warp * 16 * PITCH;
    static_assert(BM / WM * (BN / WN) * 16 * PITCH * 4 <= STAGES * STAGE,
                  "the ring holds what the warps put there");
#pragma unroll
    for (int i = 0; i < MT; i++) {
        const int row = lane / 4, col = lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < NT; j++) {
            *(float2 *)(own + row * PITCH + j * 8 + col) = make_float2(acc[i][j][0], acc[i][j][1]);
            *(float2 *)(own + (row + 8) * PITCH + j * 8 + col) = make_float2(acc[i][j][2], acc[i][j][3]);
        }
        __syncwarp();
#pragma unroll 1
        for (int e = lane; e < 16 * EIGHTS; e += 32) {
            const int r = e / EIGHTS, col8 = e % EIGHTS * 8;
            const int m = m0 + warp_m + i * 16 + r, n = n0 + warp_n + col8;
            if (m < o.rows && n < o.out) {
                const float4 lo = *(const float4 *)(own + r * PITCH + col8),
                             hi = *(const float4 *)(own + r * PITCH + col8 + 4);
                float v[8] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
                kx_conv_finish<T>(o, m, n, v);
            }
        }
        __syncwarp();
    }
}

/* Fills p and o for *g; p's tiles are the launch's to fill. */
static inline cudaError_t kx_conv_describe(const struct kx_cuda_gemm *g, struct kx_conv_in *p,
                                           struct kx_conv_out *o) {
    const int up = g->upsample ? 1 : 0, pad = g->kernel / 2;
    const bool geglu = g->act == KX_ACT_GEGLU;
    if (g->n < 0 || g->h < 0 || g->w < 0 || g->in < 1 || g->out < 1 || g->kernel < 1 || g->stride < 1 ||
        (geglu && g->out % 2 != 0) || (int64_t)g->kernel * g->kernel * g->in > INT32_MAX)
        return cudaErrorInvalidValue;
    memset(p, 0, sizeof *p);
    memset(o, 0, sizeof *o);
    if (g->n == 0 || g->h == 0 || g->w == 0) return cudaSuccess;
    const bool rows_only = g->kernel == 1 && g->stride == 1 && !up;
    if (!rows_only && (g->h > (KX_CONV_SIDE_MAX >> up) || g->w > (KX_CONV_SIDE_MAX >> up) || g->kernel > 255))
        return cudaErrorInvalidValue;
    const int64_t oh = (((int64_t)g->h << up) + 2 * pad - g->kernel) / g->stride + 1;
    const int64_t ow = (((int64_t)g->w << up) + 2 * pad - g->kernel) / g->stride + 1;
    const int64_t rows = (int64_t)g->n * oh * ow;
    if (oh < 1 || ow < 1 || rows > INT32_MAX - 256 || (int64_t)g->n * g->h * g->w > INT32_MAX)
        return cudaErrorInvalidValue;
    p->x = g->x;
    p->weight = g->weight;
    p->h = g->h, p->w = g->w, p->in = g->in;
    p->oh = (int)oh, p->ow = (int)ow;
    p->kernel = g->kernel, p->stride = g->stride, p->up = up;
    p->k = g->kernel * g->kernel * g->in;
    o->bias = g->bias;
    o->time_proj = g->time_proj;
    o->residual = g->residual;
    o->y = g->y;
    o->rows = (int)rows, o->out = g->out, o->pixels = (int)(oh * ow);
    o->act = g->act;
    const uintptr_t all =
        (uintptr_t)g->bias | (uintptr_t)g->time_proj.v | (uintptr_t)g->residual | (uintptr_t)g->y;
    o->wide = g->out % 8 == 0 && all % 16 == 0 && (!g->time_proj.v || g->time_proj.stride % 8 == 0);
    return cudaSuccess;
}

/* Dynamic shared memory of a block, bytes. */
#define KX_CONV_SHARED(BM, BN, STAGES) ((size_t)((BM) + (BN)) * KX_CONV_ROW_BYTES * (STAGES))

/* p and o without their tiles, for BM × BN; THREADS a block. */
template <typename T, typename U, int BM, int BN, int WM, int WN, int STAGES, int LOAD, int BLOCKS>
static cudaError_t kx_conv_launch(cudaStream_t stream, struct kx_conv_in p, const struct kx_conv_out &o) {
    const int64_t tiles_m = ((int64_t)o.rows + BM - 1) / BM, tiles_n = ((int64_t)o.out + BN - 1) / BN;
    if (tiles_m * tiles_n > INT32_MAX) return cudaErrorInvalidValue;
    p.tiles_m = (int)tiles_m;
    p.tiles_n = (int)tiles_n;
    return kx_launch(kx_conv_kernel<T, U, BM, BN, WM, WN, STAGES, LOAD, BLOCKS>,
                     dim3((unsigned)(tiles_m * tiles_n)), dim3(BM / WM * (BN / WN) * 32),
                     KX_CONV_SHARED(BM, BN, STAGES), stream, p, o);
}

#endif
