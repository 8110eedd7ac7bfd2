/* Norms, activations and sums with the compiler's vectors: one source for every instruction set, built three
 * times. The order of sums depends on the vector's width, so the set's name is part of the backend class.
 *
 * erf: Abramowitz & Stegun 7.1.26: 1.5e-7 absolute. */
#include "kernels/cpu/vector.h"

#include <math.h>

#include "kernels/cpu/simd.h"

KX_INLINE vf vsilu(vf x) {
    return x / (splat(1) + vexp(-x));
}

KX_INLINE vf vgelu(vf x) {
    vf z = x * splat(0.70710678f);
    vi negative = z < splat(0);
    vf a = choose(negative, -z, z);
    vf t = splat(1) / muladd(splat(0.3275911f), a, splat(1));
    vf p = splat(1.061405429f);
    p = muladd(p, t, splat(-1.453152027f));
    p = muladd(p, t, splat(1.421413741f));
    p = muladd(p, t, splat(-0.284496736f));
    p = muladd(p, t, splat(0.254829592f));
    vf erf = mulsub(p * t, vexp(-a * a), splat(1));
    return x * splat(0.5f) * (splat(1) + choose(negative, -erf, erf));
}

KX_INLINE vf vquick_gelu(vf x) {
    return x / (splat(1) + vexp(splat(-1.702f) * x));
}

/* ---- norms */

enum { CHUNK = 32 };

KX_INLINE void widen(vf v, double *to, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] += (double)v[i];
}

static void sums(const float *x, size_t pixels, size_t c, const float *pivot, double *sum, double *square) {
    for (size_t at = 0; at < pixels; at += CHUNK) {
        size_t count = pixels - at < CHUNK ? pixels - at : CHUNK;
        const float *rows = x + at * c;
        size_t i = 0;
        for (; i + W <= c; i += W) {
            vf s = {0}, q = {0}, base = load(pivot + i);
            for (size_t p = 0; p < count; p++) {
                vf d = load(rows + p * c + i) - base;
                s += d;
                q = muladd(d, d, q);
            }
            widen(s, sum + i, W);
            widen(q, square + i, W);
        }
        if (i < c) {
            vf s = {0}, q = {0}, base = load_part(pivot + i, c - i);
            for (size_t p = 0; p < count; p++) {
                vf d = load_part(rows + p * c + i, c - i) - base;
                s += d;
                q = muladd(d, d, q);
            }
            widen(s, sum + i, c - i);
            widen(q, square + i, c - i);
        }
    }
}

static void scale_shift(const float *x, float *y, size_t pixels, size_t c, const float *scale,
                        const float *shift, bool silu) {
    for (size_t p = 0; p < pixels; p++, x += c, y += c) {
        size_t i = 0;
        for (; i + W <= c; i += W) {
            vf v = muladd(load(x + i), load(scale + i), load(shift + i));
            store(y + i, silu ? vsilu(v) : v);
        }
        if (i < c) {
            vf v = muladd(load_part(x + i, c - i), load_part(scale + i, c - i), load_part(shift + i, c - i));
            store_part(y + i, silu ? vsilu(v) : v, c - i);
        }
    }
}

static void layer_norm(const float *x, float *y, size_t rows, size_t c, const float *gamma, const float *beta,
                       float eps) {
    for (size_t r = 0; r < rows; r++, x += c, y += c) {
        vf s = {0}, q = {0};
        size_t i = 0;
        for (; i + W <= c; i += W) s += load(x + i);
        if (i < c) s += load_part(x + i, c - i);
        vf mean = splat(total(s) / (float)c);
        for (i = 0; i + W <= c; i += W) {
            vf d = load(x + i) - mean;
            q = muladd(d, d, q);
        }
        float square = total(q);
        for (; i < c; i++) {
            float d = x[i] - mean[0];
            square += d * d;
        }
        vf inv = splat(1.0f / sqrtf(square / (float)c + eps));
        for (i = 0; i + W <= c; i += W)
            store(y + i, muladd((load(x + i) - mean) * inv, load(gamma + i), load(beta + i)));
        if (i < c)
            store_part(y + i,
                       muladd((load_part(x + i, c - i) - mean) * inv, load_part(gamma + i, c - i),
                              load_part(beta + i, c - i)),
                       c - i);
    }
}

/* ---- elementwise */

#define EACH(name, function)                                                                                 \
    static void name(float *x, size_t n) {                                                                   \
        size_t i = 0;                                                                                        \
        for (; i + W <= n; i += W) store(x + i, function(load(x + i)));                                      \
        if (i < n) store_part(x + i, function(load_part(x + i, n - i)), n - i);                              \
    }
EACH(gelu, vgelu)
EACH(quick_gelu, vquick_gelu)

static void silu(const float *x, float *y, size_t n) {
    size_t i = 0;
    for (; i + W <= n; i += W) store(y + i, vsilu(load(x + i)));
    if (i < n) store_part(y + i, vsilu(load_part(x + i, n - i)), n - i);
}

static void geglu(const float *first, const float *second, float *y, size_t n) {
    size_t i = 0;
    for (; i + W <= n; i += W) store(y + i, load(first + i) * vgelu(load(second + i)));
    if (i < n) store_part(y + i, load_part(first + i, n - i) * vgelu(load_part(second + i, n - i)), n - i);
}

static void add(const float *a, const float *b, float *y, size_t n) {
    size_t i = 0;
    for (; i + W <= n; i += W) store(y + i, load(a + i) + load(b + i));
    if (i < n) store_part(y + i, load_part(a + i, n - i) + load_part(b + i, n - i), n - i);
}

const struct kx_vector KX_GLUE(kx_vector_, KX_ISA) = {
    .name = KX_TEXT(KX_ISA),
    .sums = sums,
    .scale_shift = scale_shift,
    .layer_norm = layer_norm,
    .silu = silu,
    .gelu = gelu,
    .quick_gelu = quick_gelu,
    .geglu = geglu,
    .add = add,
    .pack_keys = KX_GLUE(kx_pack_keys_, KX_ISA),
    .pack_values = KX_GLUE(kx_pack_values_, KX_ISA),
    .attend = KX_GLUE(kx_attend_, KX_ISA),
};
