/* The shim's own tests: what it computes is compared with plain loops, and what it is to find is done wrong.
 */
#include "kernels/cuda/device.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "tests/gpu/shim/shim.h"
#include "tests/unit/check.h"

#define OK(call) CHECK_INT(call, cudaSuccess)

template <typename T> static T *device(size_t n) {
    T *p = nullptr;
    OK(cudaMalloc((void **)&p, n * sizeof(T)));
    return p;
}
template <typename T> static T *device(const T *from, size_t n) {
    T *p = device<T>(n);
    OK(cudaMemcpy(p, from, n * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
template <typename T> static void host(T *to, const T *from, size_t n) {
    OK(cudaMemcpy(to, from, n * sizeof(T), cudaMemcpyDeviceToHost));
}

/* The launch ran into a fault whose text holds those words. */
static void fault_is(cudaError_t launched, const char *words) {
    OK(launched);
    CHECK(cudaDeviceSynchronize() != cudaSuccess);
    CHECK(cudaGetLastError() != cudaSuccess);
    CHECK(cudaGetLastError() != cudaSuccess); /* it sticks */
    CHECK_MSG(strstr(kx_shim_fault(), words), "%s", kx_shim_fault());
    CHECK_MSG(strstr(kx_shim_fault(), "kernel "), "%s", kx_shim_fault());
    kx_shim_reset();
}

/* ---- conversions */

TEST(half_and_bfloat16_are_exact_both_ways) {
    for (unsigned h = 0; h < 65536; h++) {
        float f = __half2float(__ushort_as_half((unsigned short)h));
        int e = (int)(h >> 10 & 31), m = (int)(h & 1023);
        double want = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
        if (h & 0x8000) want = -want;
        CHECK(isnan(want) ? isnan(f) : (double)f == want && !signbit(f) == !(h & 0x8000));
        unsigned back = __half_as_ushort(__float2half_rn(f));
        CHECK(isnan(want) ? back == 0x7fff : back == h);
        /* The middle of two neighbours goes to the even one, what lies beside it to the nearer. */
        if (e == 31 || (h & 0x7fff) == 0x7bff) continue;
        float up = __half2float(__ushort_as_half((unsigned short)(h + 1))), middle = (f + up) / 2;
        CHECK_INT(__half_as_ushort(__float2half_rn(middle)), h & 1 ? h + 1 : h);
        CHECK_INT(__half_as_ushort(__float2half_rn(nextafterf(middle, f))), h);
        CHECK_INT(__half_as_ushort(__float2half_rn(nextafterf(middle, up))), h + 1);
    }
    CHECK_INT(__half_as_ushort(__float2half_rn(65519.996f)), 0x7bff);
    CHECK_INT(__half_as_ushort(__float2half_rn(65520.0f)), 0x7c00);
    for (unsigned b = 0; b < 65536; b++) {
        float f = __bfloat162float(__ushort_as_bfloat16((unsigned short)b));
        unsigned back = __bfloat16_as_ushort(__float2bfloat16_rn(f));
        CHECK(isnan(f) ? back == 0x7fff : back == b);
        if ((b & 0x7fff) >= 0x7f7f) continue;
        unsigned bits = b << 16 | 0x8000u;
        CHECK_INT(__bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(bits))), b & 1 ? b + 1 : b);
        CHECK_INT(__bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(bits - 1))), b);
        CHECK_INT(__bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(bits + 1))), b + 1);
    }
}

TEST(e4m3_is_exact_both_ways) {
    for (unsigned v = 0; v < 256; v++) {
        float f = kx_shim_from_e4m3((uint8_t)v);
        if ((v & 0x7f) == 0x7f) {
            CHECK(isnan(f));
            continue;
        }
        CHECK_INT(kx_e4m3(f), v);
        if ((v & 0x7f) == 0x7e) continue;
        float up = kx_shim_from_e4m3((uint8_t)(v + 1)), middle = (f + up) / 2;
        CHECK_INT(kx_e4m3(middle), v & 1 ? v + 1 : v);
        CHECK_INT(kx_e4m3(nextafterf(middle, f)), v);
        CHECK_INT(kx_e4m3(nextafterf(middle, up)), v + 1);
    }
    CHECK(kx_shim_from_e4m3(0x7e) == 448.0f && kx_shim_from_e4m3(0x01) == 0.001953125f);
    CHECK_INT(kx_e4m3(1e9f), 0x7e);
    CHECK_INT(kx_e4m3(-1e9f), 0xfe);
}

/* ---- threads and barriers */

static __global__ void places(int *out) {
    int block = (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    int thread = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    int n = (int)(blockDim.x * blockDim.y * blockDim.z);
    out[block * n + thread] += 1 + block * 1000 + thread;
}

TEST(every_thread_of_every_block_runs_once) {
    enum { BLOCKS = 2 * 3 * 4, THREADS = 5 * 3 * 2 };
    int v[BLOCKS * THREADS] = {};
    int *d = device(v, BLOCKS * THREADS);
    OK(kx_launch(places, dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, d));
    host(v, d, BLOCKS * THREADS);
    for (int i = 0; i < BLOCKS * THREADS; i++) CHECK_INT(v[i], 1 + i / THREADS * 1000 + i % THREADS);
    OK(cudaFree(d));
}

static __global__ void prefix_sums(int *v, int *counts) {
    __shared__ int a[2][96];
    int i = (int)threadIdx.x, from = 0, n = (int)blockDim.x;
    a[0][i] = v[i];
    __syncthreads();
    for (int by = 1; by < n; by *= 2, from = !from) {
        a[!from][i] = a[from][i] + (i >= by ? a[from][i - by] : 0);
        __syncthreads();
    }
    v[i] = a[from][i];
    int count = __syncthreads_count(i % 3 == 0), all = __syncthreads_and(i < n),
        any = __syncthreads_or(i == 95);
    counts[i] = count * 100 + all * 10 + any;
}

TEST(barriers_order_shared_memory) {
    int v[96], counts[96], sum = 0;
    for (int n : {1, 31, 32, 33, 96}) {
        for (int i = 0; i < n; i++) v[i] = i * i + 1;
        int *d = device(v, (size_t)n), *c = device<int>((size_t)n);
        OK(kx_launch(prefix_sums, 1, (unsigned)n, 0, nullptr, d, c));
        host(v, d, (size_t)n);
        host(counts, c, (size_t)n);
        sum = 0;
        for (int i = 0; i < n; i++) {
            CHECK_INT(v[i], sum += i * i + 1);
            CHECK_INT(counts[i], (n + 2) / 3 * 100 + 10 + (n == 96));
        }
        OK(cudaFree(d));
        OK(cudaFree(c));
    }
}

static __global__ void no_barrier(int *v) {
    __shared__ int a[64];
    a[threadIdx.x] = (int)threadIdx.x;
    v[blockIdx.x * 64 + threadIdx.x] = a[(threadIdx.x + 1) % 64];
}

TEST(a_missing_barrier_shows) {
    int v[64 * 8], wrong = 0;
    int *d = device<int>(64 * 8);
    OK(kx_launch(no_barrier, 8, 64, 0, nullptr, d));
    host(v, d, 64 * 8);
    for (int i = 0; i < 64 * 8; i++) wrong += v[i] != (i + 1) % 64;
    CHECK(wrong > 0);
    OK(cudaFree(d));
}

static __global__ void leaves_early(int n) {
    if ((int)threadIdx.x >= n) return;
    __syncthreads();
}
static __global__ void two_barriers(void) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
static __global__ void lonely_shuffle(int *v) {
    if (threadIdx.x < 16) v[threadIdx.x] = __shfl_xor_sync(0xffffffffu, v[threadIdx.x], 1);
}
static __global__ void two_masks(int *v) {
    v[threadIdx.x] = __shfl_xor_sync(threadIdx.x < 8 ? 0xffffffffu : 0xffff00ffu, v[threadIdx.x], 1);
}
static __global__ void foreign_lane(int *v) {
    if (threadIdx.x < 16) v[threadIdx.x] = __shfl_xor_sync(0xffffu, v[threadIdx.x], 16);
}

TEST(divergence_is_found) {
    int *d = device<int>(32);
    kx_shim_quiet(true);
    fault_is(kx_launch(leaves_early, 1, 64, 0, nullptr, 63), "divergence");
    kx_shim_quiet(true);
    fault_is(kx_launch(two_barriers, 1, 64, 0, nullptr), "divergence");
    kx_shim_quiet(true);
    fault_is(kx_launch(lonely_shuffle, 1, 32, 0, nullptr, d), "__shfl_sync");
    kx_shim_quiet(true);
    fault_is(kx_launch(two_masks, 1, 32, 0, nullptr, d), "__shfl_sync");
    kx_shim_quiet(true);
    fault_is(kx_launch(foreign_lane, 1, 32, 0, nullptr, d), "outside of its mask");
    kx_shim_quiet(true);
    fault_is(kx_launch(lonely_shuffle, 1, 16, 0, nullptr, d), "a warp of 16 lanes");
    OK(kx_launch(leaves_early, 1, 64, 0, nullptr, 64)); /* and goes on */
    OK(cudaFree(d));
}

/* ---- warps */

static __global__ void shuffles(int *out, int width) {
    int lane = (int)threadIdx.x % 32, *o = out + (size_t)threadIdx.x * 6;
    o[0] = __shfl_sync(0xffffffffu, 100 + lane, 5, width);
    o[1] = __shfl_up_sync(0xffffffffu, 100 + lane, 3, width);
    o[2] = __shfl_down_sync(0xffffffffu, 100 + lane, 3, width);
    o[3] = __shfl_xor_sync(0xffffffffu, 100 + lane, 6, width);
    o[4] = (int)__ballot_sync(0xffffffffu, lane % 5 == 0);
    o[5] = 0;
    if (lane % 2) {
        o[5] = __reduce_add_sync(0xaaaaaaaau, lane);
    } else {
        o[5] = __any_sync(0x55555555u, lane == 30) * 2 + __all_sync(0x55555555u, lane < 30);
    }
}

TEST(warp_collectives_move_what_they_should) {
    enum { N = 96 };
    int v[N * 6];
    for (int width : {32, 16, 8}) {
        int *d = device<int>(N * 6);
        OK(kx_launch(shuffles, 1, N, 0, nullptr, d, width));
        host(v, d, N * 6);
        unsigned fives = 0;
        for (int i = 0; i < 32; i += 5) fives |= 1u << i;
        for (int i = 0; i < N; i++) {
            int lane = i % 32, first = lane / width * width, *o = v + i * 6;
            CHECK_INT(o[0], 100 + first + 5 % width);
            CHECK_INT(o[1], 100 + (lane - 3 < first ? lane : lane - 3));
            CHECK_INT(o[2], 100 + (lane + 3 >= first + width ? lane : lane + 3));
            CHECK_INT(o[3], 100 + (lane ^ 6));
            CHECK_INT(o[4], (int)fives);
            CHECK_INT(o[5], lane % 2 ? 256 : 2);
        }
        OK(cudaFree(d));
    }
}

/* Fragments after the table at the head of device.cuh. */
template <typename T> static __global__ void product(const T *a, const T *b, const float *c, float *out) {
    int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
    uint32_t fa[4], fb[2];
    float d[4];
    for (int i = 0; i < 4; i++) {
        int row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
        fa[i] = kx_pack2<T>(kx_float(a[row * 16 + column]), kx_float(a[row * 16 + column + 1]));
        d[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    }
    for (int i = 0; i < 2; i++) {
        int k = 2 * t + i * 8;
        fb[i] = kx_pack2<T>(kx_float(b[k * 8 + g]), kx_float(b[(k + 1) * 8 + g]));
    }
    kx_mma_16816<T>(d, fa, fb);
    for (int i = 0; i < 4; i++) out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

static uint32_t seed = 12345;
static float drawn(void) {
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 8) * 0x1p-23f - 1.0f;
}

template <typename T> static void check_product(void) {
    T a[16 * 16], b[16 * 8];
    float c[16 * 8], d[16 * 8];
    for (T &v : a) v = kx_value<T>(drawn());
    for (T &v : b) v = kx_value<T>(drawn());
    for (float &v : c) v = drawn();
    T *da = device(a, 256), *db = device(b, 128);
    float *dc = device(c, 128), *dd = device<float>(128);
    OK(kx_launch(product<T>, 1, 32, 0, nullptr, da, db, dc, dd));
    host(d, dd, 128);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 8; j++) {
            double sum = c[i * 8 + j];
            for (int k = 0; k < 16; k++)
                sum += (double)kx_float(a[i * 16 + k]) * (double)kx_float(b[k * 8 + j]);
            CHECK(fabs(d[i * 8 + j] - sum) < 1e-6);
        }
    }
    OK(cudaFree(da));
    OK(cudaFree(db));
    OK(cudaFree(dc));
    OK(cudaFree(dd));
}

static __global__ void product_e4m3(const uint8_t *a, const uint8_t *b, float *out) {
    int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
    uint32_t fa[4] = {}, fb[2] = {};
    float d[4] = {};
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            fa[i] |= (uint32_t)a[(g + i % 2 * 8) * 32 + 4 * t + i / 2 * 16 + j] << (8 * j);
        }
    }
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 4; j++) fb[i] |= (uint32_t)b[(4 * t + i * 16 + j) * 8 + g] << (8 * j);
    }
    kx_mma_16832_e4m3(d, fa, fb);
    for (int i = 0; i < 4; i++) out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

TEST(mma_is_a_plain_sum_of_products) {
    check_product<__half>();
    check_product<__nv_bfloat16>();
    uint8_t a[16 * 32], b[32 * 8];
    float d[128];
    for (uint8_t &v : a) v = kx_e4m3(drawn() * 4);
    for (uint8_t &v : b) v = kx_e4m3(drawn() * 4);
    uint8_t *da = device(a, sizeof a), *db = device(b, sizeof b);
    float *dd = device<float>(128);
    OK(kx_launch(product_e4m3, 1, 32, 0, nullptr, da, db, dd));
    host(d, dd, 128);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 8; j++) {
            double sum = 0;
            for (int k = 0; k < 32; k++) {
                sum += (double)kx_shim_from_e4m3(a[i * 32 + k]) * (double)kx_shim_from_e4m3(b[k * 8 + j]);
            }
            CHECK(fabs(d[i * 8 + j] - sum) < 1e-4);
        }
    }
    OK(cudaFree(da));
    OK(cudaFree(db));
    OK(cudaFree(dd));
}

/* Four matrices of 8 × 8, value = matrix · 64 + row · 8 + column. */
static __global__ void matrices(uint32_t *out) {
    alignas(16) __shared__ uint16_t m[256];
    int lane = (int)threadIdx.x;
    for (int i = lane; i < 256; i += 32) m[i] = (uint16_t)i;
    __syncwarp();
    uint32_t r[4], s[2];
    uint32_t *o = out + lane * 12;
    kx_ldmatrix_x4(r, m + lane * 8);
    for (int i = 0; i < 4; i++) o[i] = r[i];
    kx_ldmatrix_x4_trans(r, m + lane * 8);
    for (int i = 0; i < 4; i++) o[4 + i] = r[i];
    kx_ldmatrix_x2(s, m + lane % 16 * 8);
    for (int i = 0; i < 2; i++) o[8 + i] = s[i];
    kx_ldmatrix_x2_trans(s, m + lane % 16 * 8);
    for (int i = 0; i < 2; i++) o[10 + i] = s[i];
}
static __global__ void crooked_matrix(void) {
    alignas(16) __shared__ uint16_t m[256];
    uint32_t r[4];
    kx_ldmatrix_x4(r, m + (int)threadIdx.x % 8 * 8 + 1);
}
static __global__ void foreign_matrix(const uint16_t *m) {
    uint32_t r[4];
    kx_ldmatrix_x4(r, m);
}

TEST(ldmatrix_hands_out_rows_and_columns) {
    uint32_t v[32 * 12];
    uint32_t *d = device<uint32_t>(32 * 12);
    OK(kx_launch(matrices, 1, 32, 0, nullptr, d));
    host(v, d, 32 * 12);
    for (uint32_t lane = 0; lane < 32; lane++) {
        uint32_t g = lane / 4, t = lane % 4;
        for (uint32_t m = 0; m < 4; m++) {
            uint32_t straight = (m * 64 + g * 8 + 2 * t) | (m * 64 + g * 8 + 2 * t + 1) << 16;
            uint32_t across = (m * 64 + 2 * t * 8 + g) | (m * 64 + (2 * t + 1) * 8 + g) << 16;
            CHECK_U64(v[lane * 12 + m], straight);
            CHECK_U64(v[lane * 12 + 4 + m], across);
            if (m > 1) continue;
            CHECK_U64(v[lane * 12 + 8 + m], straight);
            CHECK_U64(v[lane * 12 + 10 + m], across);
        }
    }
    kx_shim_quiet(true);
    fault_is(kx_launch(crooked_matrix, 1, 32, 0, nullptr), "not aligned");
    kx_shim_quiet(true);
    fault_is(kx_launch(foreign_matrix, 1, 32, 0, nullptr, (const uint16_t *)d), "outside of shared memory");
    OK(cudaFree(d));
}

/* ---- asynchronous copies */

static __global__ void copies(const uint4 *from, uint4 *to, int n, int waits) {
    KX_DYNAMIC_SHARED(uint4, room);
    int i = (int)threadIdx.x;
    kx_cp_async16(room + i, from + (i < n ? i : 0), i < n);
    kx_cp_async_commit();
    kx_cp_async16(room + 32 + i, from + i % 4, true);
    kx_cp_async_commit();
    if (waits) kx_cp_async_wait<1>();
    __syncthreads();
    to[blockIdx.x * 32 + threadIdx.x] = room[31 - i];
}

TEST(asynchronous_copies_fill_with_zeros_and_want_a_wait) {
    enum { N = 32, BLOCKS = 16 };
    uint4 v[N], r[N * BLOCKS];
    for (unsigned i = 0; i < N; i++) v[i] = make_uint4(i + 1, i + 2, i + 3, i + 4);
    uint4 *from = device(v, 20), *to = device<uint4>(N * BLOCKS); /* what is not valid is not there */
    OK(kx_launch(copies, BLOCKS, N, 2 * N * 16, nullptr, from, to, 20, 1));
    host(r, to, N * BLOCKS);
    for (int i = 0; i < N * BLOCKS; i++) {
        unsigned at = 31 - (unsigned)i % N;
        CHECK_U64(r[i].x, at < 20 ? at + 1 : 0);
        CHECK_U64(r[i].w, at < 20 ? at + 4 : 0);
    }
    OK(kx_launch(copies, BLOCKS, N, 2 * N * 16, nullptr, from, to, 20, 0));
    host(r, to, N * BLOCKS);
    int missing = 0;
    for (int i = 0; i < N * BLOCKS; i++) missing += r[i].x == 0xffffffffu;
    CHECK(missing > 0); /* in the blocks whose copies come late */
    OK(cudaFree(from));
    OK(cudaFree(to));
}

/* ---- shared memory */

static __global__ void touches_dynamic(int at) {
    KX_DYNAMIC_SHARED(char, room);
    if (threadIdx.x == 0) room[at] = 1;
}
static __global__ void reads_shared(float *out, int write) {
    __shared__ float fixed[8];
    KX_DYNAMIC_SHARED(float, room);
    int i = (int)threadIdx.x;
    out[blockIdx.x * 16 + threadIdx.x] = fixed[i];
    out[blockIdx.x * 16 + 8 + threadIdx.x] = room[i];
    if (write) fixed[i] = room[i] = 1.0f;
}

TEST(shared_memory_starts_as_nan_in_every_block) {
    float v[16 * 3];
    float *d = device<float>(16 * 3);
    for (int i = 0; i < 3; i++) {
        OK(kx_launch(reads_shared, 3, 8, 32, nullptr, d, 1));
        host(v, d, 16 * 3);
#ifndef __SANITIZE_ADDRESS__
        for (float f : v) CHECK(isnan(f));
#endif
    }
    OK(cudaFree(d));
}

static __global__ void fixed_index(int *out, int at) {
    __shared__ int fixed[16];
    fixed[at + (int)threadIdx.x] = 1;
    *out = fixed[0];
}
#ifndef KX_SHIM_NO_TRAPS
static __global__ void crooked(uint4 *p) {
    uint4 *at = (uint4 *)((char *)p + 8);
#ifdef __clang__ /* which does not look at copies of whole structures */
    at->x = 1;
#else
    *at = make_uint4(1, 2, 3, 4);
#endif
}
#endif
#ifdef __SANITIZE_ADDRESS__
__attribute__((no_sanitize("null"))) /* it is the shim that must find this one */
#endif
static __global__ void
stray(int *p, long at) {
    p[at] = 1;
}

TEST(stray_accesses_are_found) {
    int *d = device<int>(64);
    OK(kx_launch(touches_dynamic, 1, 32, 100, nullptr, 99));
    OK(cudaDeviceSynchronize());
    kx_shim_quiet(true);
    fault_is(kx_launch(touches_dynamic, 1, 32, 100, nullptr, 100), "100 bytes after its start");
    kx_shim_quiet(true);
    fault_is(kx_launch(touches_dynamic, 1, 32, 100, nullptr, 200), "200 bytes after its start");
    kx_shim_quiet(true);
    fault_is(kx_launch(touches_dynamic, 1, 32, 128, nullptr, -1), "1 bytes before its start");
    kx_shim_quiet(true);
    fault_is(kx_launch(stray, 1, 1, 0, nullptr, d, 64), "no memory of the device"); /* a page's end */
    kx_shim_quiet(true);
    fault_is(kx_launch(stray, 1, 1, 0, nullptr, (int *)nullptr, 0), "no memory of the device");
    kx_shim_quiet(true);
    int here = 0;
    fault_is(kx_launch(stray, 1, 1, 0, nullptr, &here, 0), "no memory of the device");
    CHECK(here == 0);
#ifndef KX_SHIM_NO_TRAPS
    kx_shim_quiet(true);
    fault_is(kx_launch(fixed_index, 1, 16, 0, nullptr, d, 8), "outside of its array");
    kx_shim_quiet(true);
    fault_is(kx_launch(crooked, 1, 1, 0, nullptr, (uint4 *)d), "misaligned");
#endif
    OK(kx_launch(fixed_index, 1, 16, 0, nullptr, d, 0));
    OK(cudaDeviceSynchronize());
    OK(cudaFree(d));
}

TEST(writes_beside_an_allocation_are_found) {
    for (long at : {25L, -1L}) {
        int *d = device<int>(25);
        OK(kx_launch(stray, 1, 1, 0, nullptr, d, 24));
        CHECK(kx_shim_guards_intact());
        OK(kx_launch(stray, 1, 1, 0, nullptr, d, at));
        kx_shim_quiet(true);
        CHECK(!kx_shim_guards_intact());
        CHECK(strstr(kx_shim_fault(), at > 0 ? "100 bytes after its start" : "before its start"));
        CHECK(cudaFree(d) != cudaSuccess);
        kx_shim_reset();
    }
}

TEST(launches_that_a_device_refuses) {
    struct {
        dim3 grid, block;
        size_t shared;
        cudaError_t want;
    } cases[] = {
        {1, 1024, 0, cudaSuccess},
        {1, 1025, 0, cudaErrorInvalidConfiguration},
        {1, dim3(512, 4), 0, cudaErrorInvalidConfiguration},
        {1, dim3(1, 1, 65), 0, cudaErrorInvalidConfiguration},
        {0, 32, 0, cudaErrorInvalidConfiguration},
        {1, 0, 0, cudaErrorInvalidConfiguration},
        {dim3(1, 65536), 1, 0, cudaErrorInvalidConfiguration},
        {dim3(1, 1, 65536), 1, 0, cudaErrorInvalidConfiguration},
        {1, 32, 227 << 10, cudaSuccess},
        {1, 32, (227 << 10) + 1, cudaErrorInvalidValue},
    };
    for (auto &c : cases) {
        CHECK_INT(kx_launch(leaves_early, c.grid, c.block, c.shared, nullptr, 1024), c.want);
        CHECK_INT(cudaGetLastError(), c.want);
        CHECK_INT(cudaGetLastError(), cudaSuccess);
    }
}

/* ---- memory */

TEST(memory_is_counted_and_runs_out) {
    size_t alive, bytes, before, free_bytes, total;
    alive = kx_shim_alive(&before);
    kx_shim_memory(before + 1000);
    void *p = nullptr, *q = nullptr;
    OK(cudaMalloc(&p, 600));
    CHECK((uintptr_t)p % 256 == 0);
    CHECK_INT(cudaMalloc(&q, 401), cudaErrorMemoryAllocation);
    CHECK_INT(cudaGetLastError(), cudaErrorMemoryAllocation);
    CHECK(q == nullptr);
    OK(cudaMalloc(&q, 400));
    OK(cudaMemGetInfo(&free_bytes, &total));
    CHECK_U64(free_bytes, 0);
    CHECK_U64(total, before + 1000);
    CHECK_U64(kx_shim_alive(&bytes), alive + 2);
    CHECK_U64(bytes, before + 1000);
    unsigned char v[400];
    host(v, (unsigned char *)q, 400);
    for (unsigned char c : v) CHECK_INT(c, 0xff);
    CHECK_INT(cudaMemcpy(q, v, 401, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    CHECK_INT(cudaMemcpy(v, v, 4, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    CHECK_INT(cudaMemset((char *)q + 100, 0, 301), cudaErrorInvalidValue);
    OK(cudaFree(q));
    OK(cudaFree(p));
    CHECK_INT(cudaFree(p), cudaErrorInvalidValue);
    CHECK_U64(kx_shim_alive(NULL), alive);
    kx_shim_reset();
}

/* ---- streams, events, graphs */

static __global__ void increment(int *v) {
    v[threadIdx.x]++;
}
static void add_seven(void *v) {
    *(int *)v += 7;
}

TEST(work_of_a_stream_is_done_when_somebody_waits) {
    if (getenv("KX_SHIM_EAGER")) SKIP("KX_SHIM_EAGER is set");
    cudaStream_t a, b;
    cudaEvent_t e;
    int *pinned, *d = device<int>(1);
    OK(cudaHostAlloc((void **)&pinned, 2 * sizeof *pinned, 0));
    OK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithPriority(&b, cudaStreamNonBlocking, -1));
    OK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    pinned[0] = 5;
    pinned[1] = 0;
    OK(cudaMemcpyAsync(d, pinned, sizeof *d, cudaMemcpyHostToDevice, a));
    OK(kx_launch(increment, 1, 1, 0, a, d));
    OK(cudaEventRecord(e, a));
    OK(cudaStreamWaitEvent(b, e, 0));
    OK(cudaMemcpyAsync(pinned + 1, d, sizeof *d, cudaMemcpyDeviceToHost, b));
    OK(cudaLaunchHostFunc(b, add_seven, pinned + 1));
    CHECK_INT(pinned[1], 0);
    CHECK_INT(cudaStreamQuery(a), cudaErrorNotReady);
    (void)cudaGetLastError();
    OK(cudaStreamSynchronize(b));
    CHECK_INT(pinned[1], 13);
    OK(cudaEventQuery(e));
    pinned[0] = 1; /* too early: read when the copy is done */
    OK(cudaMemcpyAsync(d, pinned, sizeof *d, cudaMemcpyHostToDevice, a));
    pinned[0] = 2;
    OK(cudaMemcpyAsync(pinned + 1, d, sizeof *d, cudaMemcpyDeviceToHost, a));
    OK(cudaStreamSynchronize(a));
    CHECK_INT(pinned[1], 2);
    OK(cudaEventDestroy(e));
    OK(cudaStreamDestroy(a));
    OK(cudaStreamDestroy(b));
    CHECK_INT(cudaStreamSynchronize(b), cudaErrorInvalidResourceHandle);
    (void)cudaGetLastError();
    OK(cudaFreeHost(pinned));
    OK(cudaFree(d));
}

TEST(events_time_and_are_in_order) {
    cudaStream_t s;
    cudaEvent_t a, b;
    float ms = -1;
    OK(cudaStreamCreate(&s));
    OK(cudaEventCreate(&a));
    OK(cudaEventCreate(&b));
    CHECK_INT(cudaEventElapsedTime(&ms, a, b), cudaErrorInvalidResourceHandle);
    OK(cudaEventRecord(a, s));
    OK(kx_launch(leaves_early, 100, 256, 0, s, 256));
    OK(cudaEventRecord(b, s));
    OK(cudaEventSynchronize(b));
    OK(cudaEventElapsedTime(&ms, a, b));
    CHECK(ms > 0 && ms < 10000);
    OK(cudaEventDestroy(a));
    OK(cudaEventDestroy(b));
    OK(cudaStreamDestroy(s));
    (void)cudaGetLastError();
}

TEST(a_graph_records_without_running_and_replays) {
    cudaStream_t s, t;
    cudaEvent_t fork, join;
    cudaGraph_t g;
    cudaGraphExec_t x;
    enum cudaStreamCaptureStatus status;
    size_t nodes;
    int v[3] = {1, 2, 3}, w[3];
    int *d = device(v, 3), *c = device<int>(3);
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
    OK(cudaEventCreate(&fork));
    OK(cudaEventCreate(&join));
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    OK(kx_launch(increment, 1, 3, 0, s, d));
    OK(cudaEventRecord(fork, s));
    OK(cudaStreamWaitEvent(t, fork, 0));
    OK(cudaMemcpyAsync(c, d, sizeof v, cudaMemcpyDeviceToDevice, t));
    OK(cudaEventRecord(join, t));
    OK(cudaStreamWaitEvent(s, join, 0));
    OK(cudaStreamIsCapturing(t, &status));
    CHECK_INT(status, cudaStreamCaptureStatusActive);
    OK(cudaStreamEndCapture(s, &g));
    OK(cudaGraphGetNodes(g, NULL, &nodes));
    CHECK_U64(nodes, 2);
    OK(cudaGraphInstantiate(&x, g, 0));
    OK(cudaGraphDestroy(g));
    host(w, d, 3);
    CHECK_INT(w[0], 1); /* nothing ran */
    for (int i = 0; i < 5; i++) OK(cudaGraphLaunch(x, s));
    OK(cudaGraphExecDestroy(x));
    OK(cudaStreamSynchronize(s));
    host(w, c, 3);
    for (int i = 0; i < 3; i++) CHECK_INT(w[i], v[i] + 5);

    /* Calls that spoil a capture. */
    void *p;
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    CHECK_INT(cudaMalloc(&p, 16), cudaErrorStreamCaptureUnsupported);
    CHECK_INT(cudaStreamEndCapture(s, &g), cudaErrorStreamCaptureInvalidated);
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    CHECK_INT(cudaStreamSynchronize(s), cudaErrorStreamCaptureUnsupported);
    CHECK_INT(cudaStreamEndCapture(s, &g), cudaErrorStreamCaptureInvalidated);
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    OK(cudaEventRecord(fork, s));
    OK(cudaStreamWaitEvent(t, fork, 0));
    OK(kx_launch(increment, 1, 3, 0, t, d));
    CHECK_INT(cudaStreamEndCapture(s, &g), cudaErrorStreamCaptureUnjoined);
    CHECK_INT(cudaStreamEndCapture(s, &g), cudaErrorStreamCaptureUnmatched);
    (void)cudaGetLastError();
    OK(cudaEventDestroy(fork));
    OK(cudaEventDestroy(join));
    OK(cudaStreamDestroy(s));
    OK(cudaStreamDestroy(t));
    OK(cudaFree(d));
    OK(cudaFree(c));
}

/* ---- failures that tests ask for */

TEST(the_call_that_a_test_names_fails) {
    void *p = nullptr;
    kx_shim_fail("cudaMalloc", 2, cudaErrorMemoryAllocation, false);
    OK(cudaMalloc(&p, 16));
    OK(cudaFree(p));
    CHECK_INT(cudaMalloc(&p, 16), cudaErrorMemoryAllocation);
    OK(cudaMalloc(&p, 16));
    OK(cudaFree(p));
    (void)cudaGetLastError();
    kx_shim_fail("kx_launch", 1, cudaErrorIllegalAddress, true);
    OK(cudaMalloc(&p, 16));
    CHECK_INT(kx_launch(leaves_early, 1, 32, 0, nullptr, 32), cudaErrorIllegalAddress);
    CHECK_INT(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    CHECK_INT(cudaFree(p), cudaErrorIllegalAddress);
    kx_shim_reset();
    OK(cudaFree(p));
}

TEST(nothing_is_left) {
    size_t bytes;
    CHECK_U64(kx_shim_alive(&bytes), 0);
    CHECK_U64(bytes, 0);
    CHECK_STR(cudaGetErrorName(cudaErrorMemoryAllocation), "cudaErrorMemoryAllocation");
}
