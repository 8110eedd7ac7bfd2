/* As CUDA's cuda_fp16.h where kiln uses it: IEEE half on the host, bit exact (round to nearest even,
 * subnormals, NaN becomes 0x7fff as on the device). */
#ifndef KILN_SHIM_CUDA_FP16_H
#define KILN_SHIM_CUDA_FP16_H

#include <stdint.h>
#include <string.h>

#include <cuda_runtime.h>

#ifdef __cplusplus

struct alignas(2) __half {
    unsigned short kx_bits;
};
struct alignas(4) __half2 {
    __half x, y;
};

static inline __half __ushort_as_half(unsigned short v) {
    __half h;
    h.kx_bits = v;
    return h;
}
static inline unsigned short __half_as_ushort(__half h) {
    return h.kx_bits;
}

static inline __half __float2half_rn(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    uint32_t h;
    if (u > 0x7f800000u) {
        return __ushort_as_half(0x7fff);
    } else if (u >= 0x477ff000u) { /* 65520 and more round to infinity */
        h = 0x7c00u;
    } else if (u >= 0x38800000u) { /* normal: the exponent's bias from 127 to 15 */
        h = u - 0x38000000u;
        h = (h + 0xfffu + (h >> 13 & 1u)) >> 13;
    } else if (u < 0x33000000u) { /* below half the smallest subnormal */
        h = 0;
    } else {
        uint32_t shift = 126u - (u >> 23), m = (u & 0x7fffffu) | 0x800000u;
        h = m >> shift;
        uint32_t rest = m & ((1u << shift) - 1u), half = 1u << (shift - 1u);
        h += rest > half || (rest == half && (h & 1u));
    }
    return __ushort_as_half((unsigned short)(sign | h));
}
static inline float __half2float(__half v) {
    uint32_t h = v.kx_bits, sign = (h & 0x8000u) << 16, e = h >> 10 & 31u, m = h & 0x3ffu, u;
    if (e == 31) {
        u = sign | 0x7f800000u | m << 13;
    } else if (e) {
        u = sign | ((e + 112u) << 23) | m << 13;
    } else { /* subnormal: m · 2^-24 is exact */
        float f = (float)m * 5.9604644775390625e-8f;
        memcpy(&u, &f, 4);
        u |= sign;
    }
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline __half __float2half(float f) {
    return __float2half_rn(f);
}
static inline __half2 __floats2half2_rn(float x, float y) {
    __half2 v = {__float2half_rn(x), __float2half_rn(y)};
    return v;
}
static inline __half2 __float22half2_rn(float2 f) {
    return __floats2half2_rn(f.x, f.y);
}
static inline float2 __half22float2(__half2 v) {
    return make_float2(__half2float(v.x), __half2float(v.y));
}
static inline __half2 __halves2half2(__half x, __half y) {
    __half2 v = {x, y};
    return v;
}
static inline float __low2float(__half2 v) {
    return __half2float(v.x);
}
static inline float __high2float(__half2 v) {
    return __half2float(v.y);
}

#endif
#endif
