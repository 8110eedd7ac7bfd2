/* The widest vectors that the instruction set has, for the files that are built once for each set
 * (sources.cmake gives KX_ISA and -m flags). Multiply-adds are fused where the set has them, always by name:
 * the compiler may not fuse others, so that the order and rounding of a sum is what is written. */
#ifndef KILN_KERNELS_CPU_SIMD_H
#define KILN_KERNELS_CPU_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX2__)
#define W 8
#else
#define W 4
#endif

#define KX_INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef float vfu __attribute__((vector_size(W * 4), aligned(4), may_alias));

KX_INLINE vf load(const float *p) {
    return *(const vfu *)p;
}
KX_INLINE void store(float *p, vf v) {
    *(vfu *)p = v;
}
KX_INLINE vf splat(float x) {
    return x - (vf){0};
}
KX_INLINE vf choose(vi mask, vf a, vf b) {
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}

#if defined(__AVX512F__)
KX_INLINE vf muladd(vf a, vf b, vf c) { /* a·b + c */
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
KX_INLINE vf mulsub(vf a, vf b, vf c) { /* c - a·b */
    return (vf)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
KX_INLINE vf larger(vf a, vf b) {
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
}
KX_INLINE vf load_part(const float *p, size_t n) { /* n < W; zeros behind */
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
KX_INLINE void store_part(float *p, vf v, size_t n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
#elif defined(__AVX2__)
KX_INLINE vf muladd(vf a, vf b, vf c) {
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
KX_INLINE vf mulsub(vf a, vf b, vf c) {
    return (vf)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
KX_INLINE vf larger(vf a, vf b) {
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
}
KX_INLINE __m256i first(size_t n) {
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return (__m256i)(lane < (int32_t)n - (vi){0});
}
KX_INLINE vf load_part(const float *p, size_t n) {
    return (vf)_mm256_maskload_ps(p, first(n));
}
KX_INLINE void store_part(float *p, vf v, size_t n) {
    _mm256_maskstore_ps(p, first(n), (__m256)v);
}
#else
KX_INLINE vf muladd(vf a, vf b, vf c) {
    return a * b + c;
}
KX_INLINE vf mulsub(vf a, vf b, vf c) {
    return c - a * b;
}
KX_INLINE vf larger(vf a, vf b) {
    return choose(a > b, a, b);
}
KX_INLINE vf load_part(const float *p, size_t n) {
    vf v = {0};
    memcpy(&v, p, n * sizeof *p);
    return v;
}
KX_INLINE void store_part(float *p, vf v, size_t n) {
    memcpy(p, &v, n * sizeof *p);
}
#endif

/* The sum, and the largest, of a vector's values: of its halves, then of their halves, and so on. */
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
KX_INLINE v4 larger4(v4 a, v4 b) {
    i4 mask = a > b;
    return (v4)(((i4)a & mask) | ((i4)b & ~mask));
}
#if defined(__AVX512F__)
#define KX_FOLD(v, join8, join)                                                                              \
    __m256 h_ = join8(_mm512_castps512_ps256((__m512)(v)), _mm512_extractf32x8_ps((__m512)(v), 1));          \
    v4 q_ = join((v4)_mm256_castps256_ps128(h_), (v4)_mm256_extractf128_ps(h_, 1))
#elif defined(__AVX2__)
#define KX_FOLD(v, join8, join)                                                                              \
    v4 q_ = join((v4)_mm256_castps256_ps128((__m256)(v)), (v4)_mm256_extractf128_ps((__m256)(v), 1))
#else
#define KX_FOLD(v, join8, join) v4 q_ = (v)
#endif
KX_INLINE v4 add4(v4 a, v4 b) {
    return a + b;
}
KX_INLINE float total(vf v) {
    KX_FOLD(v, _mm256_add_ps, add4);
    return (q_[0] + q_[2]) + (q_[1] + q_[3]);
}
KX_INLINE float largest(vf v) {
    KX_FOLD(v, _mm256_max_ps, larger4);
    v4 half = {q_[2], q_[3], q_[2], q_[3]};
    q_ = larger4(q_, half);
    return q_[0] > q_[1] ? q_[0] : q_[1];
}

/* e^x: x = k·ln 2 + r, |r| ≤ ln 2 / 2, a polynomial of degree 7 in r (the coefficients of Cephes' expf): 2e-7
 * relative for -87 ≤ x ≤ 88, 0 below, NaN for NaN. Above 88 it is at least e^88. */
KX_INLINE vf vexp(vf x) {
#if defined(__AVX512F__)
    __mmask16 keep = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    vf y = (vf)_mm512_min_ps(_mm512_set1_ps(88.0f), (__m512)x); /* NaN stays */
    vf k = (vf)_mm512_roundscale_ps((__m512)(y * splat(1.44269504f)), 0);
#else
    vi big = x > splat(88.0f), small = x < splat(-87.0f);
    vf y = choose(big, splat(88.0f), choose(small, splat(-87.0f), x)); /* NaN stays */
    vf t = muladd(y, splat(1.44269504f), splat(12582912.0f));          /* rounds to the nearest integer */
    vi bits = (vi)t - (vi)splat(12582912.0f);
    vf k = t - splat(12582912.0f);
#endif
    vf r = muladd(k, splat(2.12194440e-4f), mulsub(k, splat(0.693359375f), y));
    vf p = splat(1.9875691500e-4f);
    p = muladd(p, r, splat(1.3981999507e-3f));
    p = muladd(p, r, splat(8.3334519073e-3f));
    p = muladd(p, r, splat(4.1665795894e-2f));
    p = muladd(p, r, splat(1.6666665459e-1f));
    p = muladd(p, r, splat(5.0000001201e-1f));
    p = muladd(p, r * r, r) + splat(1.0f);
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_scalef_ps(keep, (__m512)p, (__m512)k);
#else
    return choose(small, splat(0), p * (vf)((bits + 127) << 23));
#endif
}

/* 2^x: 2^k · 2^f with k the nearest integer, a polynomial of degree 5 in f (minimax): 2e-7 relative for
 * -126 ≤ x ≤ 127, 0 below, NaN for NaN. x above 127 is not for it. */
KX_INLINE vf vexp2(vf x) {
#if defined(__AVX512F__)
    __mmask16 keep = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    vf k = (vf)_mm512_roundscale_ps((__m512)x, 0), f = x - k;
#else
    vi small = x < splat(-126.0f);
    vf y = choose(small, splat(-126.0f), x);
    vf t = y + splat(12582912.0f);
    vi bits = (vi)t - (vi)splat(12582912.0f);
    vf f = y - (t - splat(12582912.0f));
#endif
    vf p = splat(0.00132647273f);
    p = muladd(p, f, splat(0.00967151299f));
    p = muladd(p, f, splat(0.0555073358f));
    p = muladd(p, f, splat(0.240222424f));
    p = muladd(p, f, splat(0.693147004f));
    p = muladd(p, f, splat(1.0f));
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_scalef_ps(keep, (__m512)p, (__m512)k);
#else
    return choose(small, splat(0), p * (vf)((bits + 127) << 23));
#endif
}

#define KX_GLUE2(a, b) a##b
#define KX_GLUE(a, b) KX_GLUE2(a, b)
#define KX_TEXT2(a) #a
#define KX_TEXT(a) KX_TEXT2(a)

KX_INLINE vf vsilu(vf x) {
    return x / (splat(1) + vexp(-x));
}

#endif
