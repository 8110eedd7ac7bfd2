/* Activations and sums with the compiler's vectors, and the table of what is built for this instruction set.
 *
 * erf: Abramowitz & Stegun 7.1.26: 1.5e-7 absolute. */
#include "kernels/cpu/vector.h"

#include "kernels/cpu/simd.h"

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
    .silu = silu,
    .gelu = gelu,
    .quick_gelu = quick_gelu,
    .geglu = geglu,
    .add = add,
    .group_norm = KX_GLUE(kx_cpu_group_norm_, KX_ISA),
    .layer_norm = KX_GLUE(kx_cpu_layer_norm_, KX_ISA),
    .attention = KX_GLUE(kx_cpu_attention_, KX_ISA),
};
