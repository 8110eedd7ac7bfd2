/* As CUDA's cuda_bf16.h where kiln uses it: bfloat16 on the host, bit exact (round to nearest even,
 * subnormals, NaN becomes 0x7fff as on the device). */
#ifndef KILN_SHIM_CUDA_BF16_H
#define KILN_SHIM_CUDA_BF16_H

#include <stdint.h>
#include <string.h>

#include <cuda_runtime.h>

#ifdef __cplusplus

struct alignas(2) __nv_bfloat16 {
    unsigned short kx_bits;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) {
    __nv_bfloat16 b;
    b.kx_bits = v;
    return b;
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) {
    return b.kx_bits;
}
static inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return __ushort_as_bfloat16(0x7fff);
    return __ushort_as_bfloat16((unsigned short)((u + 0x7fffu + (u >> 16 & 1u)) >> 16));
}
static inline __nv_bfloat16 __float2bfloat16(float f) {
    return __float2bfloat16_rn(f);
}
static inline float __bfloat162float(__nv_bfloat16 b) {
    uint32_t u = (uint32_t)b.kx_bits << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    __nv_bfloat162 v = {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
    return v;
}
static inline __nv_bfloat162 __float22bfloat162_rn(float2 f) {
    return __floats2bfloat162_rn(f.x, f.y);
}
static inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return make_float2(__bfloat162float(v.x), __bfloat162float(v.y));
}
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
    __nv_bfloat162 v = {x, y};
    return v;
}
static inline float __low2float(__nv_bfloat162 v) {
    return __bfloat162float(v.x);
}
static inline float __high2float(__nv_bfloat162 v) {
    return __bfloat162float(v.y);
}

#endif
#endif
