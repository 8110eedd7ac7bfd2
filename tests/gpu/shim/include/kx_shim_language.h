/* CUDA's device language for g++: qualifiers, vector types, built-in variables, barriers, warp collectives,
 * atomics and device math, as far as kiln uses them. tests/gpu/shim/block.cc runs the threads. */
#ifndef KILN_SHIM_LANGUAGE_H
#define KILN_SHIM_LANGUAGE_H

#include <limits.h>
#include <cmath>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cuda_runtime_api.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
/* One copy a device thread of the shim, which runs one block at a time. */
#define __shared__ static __thread

/* ---- vector types */

#define KX_SHIM_VECTOR(type, name, align1, align2, align4)                                                   \
    struct name##1 {                                                                                         \
        type x;                                                                                              \
    };                                                                                                       \
    struct alignas(align2) name##2 {                                                                         \
        type x, y;                                                                                           \
    };                                                                                                       \
    struct name##3 {                                                                                         \
        type x, y, z;                                                                                        \
    };                                                                                                       \
    struct alignas(align4) name##4 {                                                                         \
        type x, y, z, w;                                                                                     \
    };                                                                                                       \
    static inline name##2 make_##name##2(type x, type y) {                                                   \
        name##2 v = {x, y};                                                                                  \
        return v;                                                                                            \
    }                                                                                                        \
    static inline name##4 make_##name##4(type x, type y, type z, type w) {                                   \
        name##4 v = {x, y, z, w};                                                                            \
        return v;                                                                                            \
    }
KX_SHIM_VECTOR(float, float, 4, 8, 16)
KX_SHIM_VECTOR(int, int, 4, 8, 16)
KX_SHIM_VECTOR(short, short, 2, 4, 8)
KX_SHIM_VECTOR(unsigned short, ushort, 2, 4, 8)
KX_SHIM_VECTOR(signed char, char, 1, 2, 4)
KX_SHIM_VECTOR(unsigned char, uchar, 1, 2, 4)
#undef KX_SHIM_VECTOR
static inline float3 make_float3(float x, float y, float z) {
    float3 v = {x, y, z};
    return v;
}
static inline int3 make_int3(int x, int y, int z) {
    int3 v = {x, y, z};
    return v;
}
struct uint1 {
    unsigned x;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y) {
    uint2 v = {x, y};
    return v;
}
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
    uint3 v = {x, y, z};
    return v;
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    uint4 v = {x, y, z, w};
    return v;
}
struct alignas(16) double2 {
    double x, y;
};
static inline double2 make_double2(double x, double y) {
    double2 v = {x, y};
    return v;
}
struct alignas(16) longlong2 {
    long long x, y;
};

/* ---- the thread that runs */

struct kx_shim_lane {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
extern __thread struct kx_shim_lane *kx_shim_lane_now;
#define threadIdx (kx_shim_lane_now->thread)
#define blockIdx (kx_shim_lane_now->block)
#define blockDim (kx_shim_lane_now->block_size)
#define gridDim (kx_shim_lane_now->grid_size)
static const int warpSize = 32;

template <typename T> struct kx_shim_same { typedef T type; };

extern "C" {
void *kx_shim_dynamic_shared(void);
int kx_shim_is_shared(const void *p, size_t bytes);
/* kind 0: plain; 1: count, 2: and, 3: or of `value`. */
int kx_shim_barrier(int kind, int value, const char *file, int line);
void kx_shim_named_barrier(int id, int threads, const char *file, int line);
/* A warp collective: every lane of the mask gives `bytes` of input; the last one to come calls `compute` with
 * all lanes' inputs and outputs; then each gets its output. */
typedef void (*kx_shim_compute)(unsigned mask, const void *const in[32], void *const out[32]);
void kx_shim_collective(unsigned mask, kx_shim_compute compute, const char *name, const void *in, void *out);
void kx_shim_cp_async(void *shared, const void *global, size_t bytes, size_t valid);
void kx_shim_cp_commit(void);
void kx_shim_cp_wait(int pending);
void kx_shim_trap(const char *what);
}

/* A default argument tells the place of the call, not of this line. */
#define KX_SHIM_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
static inline void __syncthreads(KX_SHIM_HERE) {
    kx_shim_barrier(0, 0, file, line);
}
static inline int __syncthreads_count(int v, KX_SHIM_HERE) {
    return kx_shim_barrier(1, v, file, line);
}
static inline int __syncthreads_and(int v, KX_SHIM_HERE) {
    return kx_shim_barrier(2, v, file, line);
}
static inline int __syncthreads_or(int v, KX_SHIM_HERE) {
    return kx_shim_barrier(3, v, file, line);
}
static inline void __threadfence(void) {
}
static inline void __threadfence_block(void) {
}
static inline void __trap(void) {
    kx_shim_trap("__trap()");
}

/* ---- warp collectives */

static inline void kx_shim_nothing(unsigned, const void *const[32], void *const[32]) {
}
static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    kx_shim_collective(mask, kx_shim_nothing, "__syncwarp", nullptr, nullptr);
}

/* mode: 0 index, 1 up, 2 down, 3 xor. */
template <typename T> struct kx_shim_shuffle_in {
    T v;
    int mode, b, width;
};
template <typename T>
static void kx_shim_shuffle(unsigned mask, const void *const in[32], void *const out[32]) {
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1u)) continue;
        const kx_shim_shuffle_in<T> *me = (const kx_shim_shuffle_in<T> *)in[i];
        int first = i & ~(me->width - 1), last = first + me->width - 1, from = i;
        if (me->mode == 0) from = first + (me->b & (me->width - 1));
        if (me->mode == 1) from = i - me->b < first ? i : i - me->b;
        if (me->mode == 2) from = i + me->b > last ? i : i + me->b;
        if (me->mode == 3) from = (i ^ me->b) > last ? i : i ^ me->b;
        if (from < 0 || from > 31 || !(mask >> from & 1u)) {
            kx_shim_trap("a shuffle reads a lane outside of its mask");
            continue;
        }
        *(T *)out[i] = ((const kx_shim_shuffle_in<T> *)in[from])->v;
    }
}
template <typename T> static inline T kx_shim_shuffled(unsigned mask, T v, int mode, int b, int width) {
    kx_shim_shuffle_in<T> in = {v, mode, b, width};
    T out = v;
    kx_shim_collective(mask, kx_shim_shuffle<T>, "__shfl_sync", &in, &out);
    return out;
}
template <typename T> static inline T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
    return kx_shim_shuffled(mask, v, 0, from, width);
}
template <typename T> static inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
    return kx_shim_shuffled(mask, v, 1, (int)by, width);
}
template <typename T> static inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
    return kx_shim_shuffled(mask, v, 2, (int)by, width);
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32) {
    return kx_shim_shuffled(mask, v, 3, with, width);
}

static inline void kx_shim_ballot(unsigned mask, const void *const in[32], void *const out[32]) {
    unsigned bits = 0;
    for (int i = 0; i < 32; i++) {
        if (mask >> i & 1u && *(const int *)in[i]) bits |= 1u << i;
    }
    for (int i = 0; i < 32; i++) {
        if (mask >> i & 1u) *(unsigned *)out[i] = bits;
    }
}
static inline unsigned __ballot_sync(unsigned mask, int v) {
    unsigned out = 0;
    kx_shim_collective(mask, kx_shim_ballot, "__ballot_sync", &v, &out);
    return out;
}
static inline int __any_sync(unsigned mask, int v) {
    return __ballot_sync(mask, v) != 0;
}
static inline int __all_sync(unsigned mask, int v) {
    return __ballot_sync(mask, v) == mask;
}

#define KX_SHIM_REDUCE(name, type, expression)                                                               \
    static inline void kx_shim##name(unsigned mask, const void *const in[32], void *const out[32]) {         \
        bool first = true;                                                                                   \
        type a = 0;                                                                                          \
        for (int i = 0; i < 32; i++) {                                                                       \
            if (!(mask >> i & 1u)) continue;                                                                 \
            type b = *(const type *)in[i];                                                                   \
            a = first ? b : (type)(expression);                                                              \
            first = false;                                                                                   \
        }                                                                                                    \
        for (int i = 0; i < 32; i++) {                                                                       \
            if (mask >> i & 1u) *(type *)out[i] = a;                                                         \
        }                                                                                                    \
    }                                                                                                        \
    static inline type name(unsigned mask, type v) {                                                         \
        type r = v;                                                                                          \
        kx_shim_collective(mask, kx_shim##name, #name, &v, &r);                                              \
        return r;                                                                                            \
    }
KX_SHIM_REDUCE(__reduce_add_sync, int, a + b)
KX_SHIM_REDUCE(__reduce_max_sync, int, a > b ? a : b)
KX_SHIM_REDUCE(__reduce_min_sync, int, a < b ? a : b)
#undef KX_SHIM_REDUCE

/* ---- atomics: the thread's blocks may run on several host threads */

template <typename T> static inline T atomicAdd(T *p, typename kx_shim_same<T>::type v) {
    T old, next;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do {
        next = (T)(old + v);
    } while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
template <typename T> static inline T atomicSub(T *p, typename kx_shim_same<T>::type v) {
    return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED);
}
template <typename T> static inline T atomicAnd(T *p, typename kx_shim_same<T>::type v) {
    return __atomic_fetch_and(p, v, __ATOMIC_RELAXED);
}
template <typename T> static inline T atomicOr(T *p, typename kx_shim_same<T>::type v) {
    return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}
template <typename T> static inline T atomicExch(T *p, typename kx_shim_same<T>::type v) {
    T old;
    __atomic_exchange(p, &v, &old, __ATOMIC_RELAXED);
    return old;
}
template <typename T>
static inline T atomicCAS(T *p, typename kx_shim_same<T>::type expected, typename kx_shim_same<T>::type v) {
    __atomic_compare_exchange(p, &expected, &v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <typename T> static inline T atomicMin(T *p, typename kx_shim_same<T>::type v) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (v < old && !__atomic_compare_exchange(p, &old, &v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
template <typename T> static inline T atomicMax(T *p, typename kx_shim_same<T>::type v) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (v > old && !__atomic_compare_exchange(p, &old, &v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}

/* ---- loads, bits, arithmetic */

template <typename T> static inline T __ldg(const T *p) {
    return *p;
}
template <typename T> static inline T __ldcg(const T *p) {
    return *p;
}
template <typename T> static inline T __ldcs(const T *p) {
    return *p;
}
template <typename T> static inline void __stcg(T *p, typename kx_shim_same<T>::type v) {
    *p = v;
}
template <typename T> static inline void __stcs(T *p, typename kx_shim_same<T>::type v) {
    *p = v;
}

template <typename To, typename From> static inline To kx_shim_bits(From v) {
    To r;
    static_assert(sizeof r == sizeof v, "the same size");
    memcpy(&r, &v, sizeof r);
    return r;
}
static inline unsigned __float_as_uint(float v) {
    return kx_shim_bits<unsigned>(v);
}
static inline int __float_as_int(float v) {
    return kx_shim_bits<int>(v);
}
static inline float __uint_as_float(unsigned v) {
    return kx_shim_bits<float>(v);
}
static inline float __int_as_float(int v) {
    return kx_shim_bits<float>(v);
}
static inline int __popc(unsigned v) {
    return __builtin_popcount(v);
}
static inline int __clz(int v) {
    return v ? __builtin_clz((unsigned)v) : 32;
}
static inline int __ffs(int v) {
    return __builtin_ffs(v);
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    unsigned long long v = (unsigned long long)b << 32 | a;
    unsigned r = 0;
    for (unsigned i = 0; i < 4; i++) r |= (unsigned)(v >> (8 * (s >> (4 * i) & 7u)) & 0xffu) << (8 * i);
    return r;
}
static inline int __float2int_rn(float v) {
    return (int)lrintf(v);
}
static inline int __float2int_rz(float v) {
    return (int)v;
}
static inline int __float2int_rd(float v) {
    return (int)floorf(v);
}
static inline int __float2int_ru(float v) {
    return (int)ceilf(v);
}
static inline float __int2float_rn(int v) {
    return (float)v;
}

#define KX_SHIM_MIN_MAX(type)                                                                                \
    static inline type min(type a, type b) {                                                                 \
        return a < b ? a : b;                                                                                \
    }                                                                                                        \
    static inline type max(type a, type b) {                                                                 \
        return a > b ? a : b;                                                                                \
    }
KX_SHIM_MIN_MAX(int)
KX_SHIM_MIN_MAX(unsigned)
KX_SHIM_MIN_MAX(long)
KX_SHIM_MIN_MAX(unsigned long)
KX_SHIM_MIN_MAX(long long)
KX_SHIM_MIN_MAX(unsigned long long)
#undef KX_SHIM_MIN_MAX
static inline float min(float a, float b) {
    return fminf(a, b);
}
static inline float max(float a, float b) {
    return fmaxf(a, b);
}

static inline float rsqrtf(float v) {
    return 1.0f / sqrtf(v);
}
static inline float __saturatef(float v) {
    return fminf(fmaxf(v, 0.0f), 1.0f);
}
/* Macros: glibc's headers declare functions of these names for itself. */
#define __expf(v) expf(v)
#define __logf(v) logf(v)
#define __log2f(v) log2f(v)
#define __sinf(v) sinf(v)
#define __cosf(v) cosf(v)
#define __powf(a, b) powf(a, b)
static inline float __fdividef(float a, float b) {
    return a / b;
}
static inline float __frcp_rn(float v) {
    return 1.0f / v;
}
static inline float __fsqrt_rn(float v) {
    return sqrtf(v);
}
static inline float __frsqrt_rn(float v) {
    return 1.0f / sqrtf(v);
}
/* These are never contracted. */
static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline float __fsub_rn(float a, float b) {
    return a - b;
}
static inline float __fmul_rn(float a, float b) {
    return a * b;
}
static inline float __fdiv_rn(float a, float b) {
    return a / b;
}
static inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}

#endif
