/* Inner loops with the compiler's vectors, one source for every instruction set: built three times with
 * KX_ISA and -m flags (sources.cmake). No intrinsics; a vector is the widest that the set has. The order of
 * sums depends on the width, so the set's name is part of the backend class.
 *
 * exp: x = k·ln 2 + r, |r| ≤ ln 2 / 2, a polynomial of degree 6 in r (Taylor with the last coefficients
 * fitted): 2e-7 relative. erf: Abramowitz & Stegun 7.1.26: 1.5e-7 absolute. */
#include "kernels/cpu/vector.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX2__)
#define W 8
#else
#define W 4
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef float vfu __attribute__((vector_size(W * 4), aligned(4), may_alias));

static inline vf load(const float *p) {
    return *(const vfu *)p;
}
static inline void store(float *p, vf v) {
    *(vfu *)p = v;
}
static inline vf splat(float x) {
    return x - (vf){0};
}
static inline vf select(vi mask, vf a, vf b) {
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}
static inline float total(vf v) {
    float s = 0;
    for (int i = 0; i < W; i++) s += v[i];
    return s;
}
static inline vf load_part(const float *p, size_t n) { /* n < W; zeros behind */
    vf v = {0};
    memcpy(&v, p, n * sizeof *p);
    return v;
}
static inline void store_part(float *p, vf v, size_t n) {
    memcpy(p, &v, n * sizeof *p);
}

static inline vf vexp(vf x) {
    vi big = x > splat(88.0f), small = x < splat(-87.0f);
    vf y = select(big, splat(88.0f), select(small, splat(-87.0f), x)); /* NaN stays */
    vf t = y * splat(1.44269504f) + splat(12582912.0f);                /* rounds to the nearest integer */
    vi k = (vi)t - (vi)splat(12582912.0f);
    t -= splat(12582912.0f);
    vf r = y - t * splat(0.693359375f) + t * splat(2.12194440e-4f);
    vf p = splat(1.3981999e-3f);
    p = p * r + splat(8.3334519e-3f);
    p = p * r + splat(4.1665795e-2f);
    p = p * r + splat(1.6666665e-1f);
    p = p * r + splat(0.5f);
    p = p * r * r + r + splat(1.0f);
    vf e = p * (vf)((k + 127) << 23);
    return select(small, splat(0), e);
}

static inline vf vsilu(vf x) {
    return x / (splat(1) + vexp(-x));
}

static inline vf vgelu(vf x) {
    vf z = x * splat(0.70710678f);
    vi negative = z < splat(0);
    vf a = select(negative, -z, z);
    vf t = splat(1) / (splat(1) + splat(0.3275911f) * a);
    vf p = splat(1.061405429f);
    p = p * t - splat(1.453152027f);
    p = p * t + splat(1.421413741f);
    p = p * t - splat(0.284496736f);
    p = p * t + splat(0.254829592f);
    vf erf = splat(1) - p * t * vexp(-a * a);
    return x * splat(0.5f) * (splat(1) + select(negative, -erf, erf));
}

static inline vf vquick_gelu(vf x) {
    return x / (splat(1) + vexp(splat(-1.702f) * x));
}

static void sums(const float *x, size_t pixels, size_t c, float *sum, float *square) {
    size_t i = 0;
    for (; i + W <= c; i += W) {
        vf s = {0}, q = {0};
        for (size_t p = 0; p < pixels; p++) {
            vf v = load(x + p * c + i);
            s += v;
            q += v * v;
        }
        store(sum + i, s);
        store(square + i, q);
    }
    for (; i < c; i++) {
        float s = 0, q = 0;
        for (size_t p = 0; p < pixels; p++) {
            float v = x[p * c + i];
            s += v;
            q += v * v;
        }
        sum[i] = s;
        square[i] = q;
    }
}

static void scale_shift(const float *x, float *y, size_t pixels, size_t c, const float *scale,
                        const float *shift, bool silu) {
    for (size_t p = 0; p < pixels; p++, x += c, y += c) {
        size_t i = 0;
        for (; i + W <= c; i += W) {
            vf v = load(x + i) * load(scale + i) + load(shift + i);
            store(y + i, silu ? vsilu(v) : v);
        }
        if (i < c) {
            vf v = load_part(x + i, c - i) * load_part(scale + i, c - i) + load_part(shift + i, c - i);
            store_part(y + i, silu ? vsilu(v) : v, c - i);
        }
    }
}

static void layer_norm(const float *x, float *y, size_t rows, size_t c, const float *gamma, const float *beta,
                       float eps) {
    for (size_t r = 0; r < rows; r++, x += c, y += c) {
        vf s = {0};
        size_t i = 0;
        for (; i + W <= c; i += W) s += load(x + i);
        if (i < c) s += load_part(x + i, c - i);
        float mean = total(s) / (float)c;
        vf q = {0};
        for (i = 0; i + W <= c; i += W) {
            vf d = load(x + i) - splat(mean);
            q += d * d;
        }
        float square = total(q);
        for (; i < c; i++) square += (x[i] - mean) * (x[i] - mean);
        float inv = 1.0f / sqrtf(square / (float)c + eps);
        for (i = 0; i + W <= c; i += W)
            store(y + i, (load(x + i) - splat(mean)) * splat(inv) * load(gamma + i) + load(beta + i));
        if (i < c)
            store_part(y + i,
                       (load_part(x + i, c - i) - splat(mean)) * splat(inv) * load_part(gamma + i, c - i) +
                           load_part(beta + i, c - i),
                       c - i);
    }
}

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

static void geglu(const float *x, float *y, size_t rows, size_t c) {
    for (size_t r = 0; r < rows; r++, x += 2 * c, y += c) {
        size_t i = 0;
        for (; i + W <= c; i += W) store(y + i, load(x + i) * vgelu(load(x + c + i)));
        if (i < c) store_part(y + i, load_part(x + i, c - i) * vgelu(load_part(x + c + i, c - i)), c - i);
    }
}

static void product(const float *x, const float *w, const float *b, float *y, size_t in, size_t out) {
    for (size_t o = 0; o < out; o++, w += in) {
        vf s0 = {0}, s1 = {0};
        size_t i = 0;
        for (; i + 2 * W <= in; i += 2 * W) {
            s0 += load(x + i) * load(w + i);
            s1 += load(x + i + W) * load(w + i + W);
        }
        float s = total(s0 + s1);
        for (; i < in; i++) s += x[i] * w[i];
        y[o] = b ? s + b[o] : s;
    }
}

static void pack_keys(const float *k, size_t stride, int length, int dim, float *packed, size_t padded) {
    for (int d = 0; d < dim; d++) {
        float *row = packed + (size_t)d * padded;
        for (int j = 0; j < length; j++) row[j] = k[(size_t)j * stride + (size_t)d];
        for (size_t j = (size_t)length; j < padded; j++) row[j] = 0;
    }
}

enum { R = KX_ATTEND_ROWS, TILE = KX_ATTEND_TILE };

/* score[r][j] = q[r] · key[j] for 2·W keys. */
static inline void scores(const float *q, size_t dims, int dim, const float *keys, size_t padded,
                          float *score) {
    vf a[R][2] = {{{0}}};
    for (int d = 0; d < dim; d++) {
        vf k0 = load(keys + (size_t)d * padded), k1 = load(keys + (size_t)d * padded + W);
        for (int r = 0; r < R; r++) {
            vf x = splat(q[(size_t)r * dims + (size_t)d]);
            a[r][0] += x * k0;
            a[r][1] += x * k1;
        }
    }
    for (int r = 0; r < R; r++) {
        store(score + r * TILE, a[r][0]);
        store(score + r * TILE + W, a[r][1]);
    }
}

/* acc[r] += Σ_j p[r][j] · v[j] for 2·W, or fewer, of the dims. */
static inline void weigh(const float *p, int keys, const float *v, size_t v_stride, float *acc, size_t dims,
                         size_t n) {
    vf a[R][2];
    for (int r = 0; r < R; r++) {
        a[r][0] = load(acc + (size_t)r * dims);
        a[r][1] = n > W ? load(acc + (size_t)r * dims + W) : splat(0);
    }
    if (n == 2 * W) {
        for (int j = 0; j < keys; j++) {
            vf v0 = load(v + (size_t)j * v_stride), v1 = load(v + (size_t)j * v_stride + W);
            for (int r = 0; r < R; r++) {
                vf x = splat(p[r * TILE + j]);
                a[r][0] += x * v0;
                a[r][1] += x * v1;
            }
        }
    } else {
        size_t n0 = n < W ? n : W, n1 = n - n0;
        for (int j = 0; j < keys; j++) {
            const float *row = v + (size_t)j * v_stride;
            vf v0 = n0 == W ? load(row) : load_part(row, n0), v1 = n1 ? load_part(row + W, n1) : splat(0);
            for (int r = 0; r < R; r++) {
                vf x = splat(p[r * TILE + j]);
                a[r][0] += x * v0;
                a[r][1] += x * v1;
            }
        }
    }
    for (int r = 0; r < R; r++) {
        store(acc + (size_t)r * dims, a[r][0]);
        if (n > W) store(acc + (size_t)r * dims + W, a[r][1]);
    }
}

static void attend(const float *q, size_t q_stride, int rows, const float *packed, size_t padded,
                   const float *v, size_t v_stride, int length, int seen, int step, int dim, float scale,
                   float *out, size_t out_stride, float *scratch) {
    size_t dims = ((size_t)dim + KX_VECTOR_MAX - 1) / KX_VECTOR_MAX * KX_VECTOR_MAX;
    float *score = scratch, *acc = score + R * TILE, *query = acc + (size_t)R * dims;
    float max[R], sum[R];
    int limit[R], last = 0;
    for (int r = 0; r < R; r++) {
        max[r] = -INFINITY;
        sum[r] = 0;
        limit[r] = r < rows ? seen + r * step : 0;
        if (limit[r] > length) limit[r] = length;
        if (limit[r] > last) last = limit[r];
        for (size_t d = 0; d < dims; d++) {
            acc[(size_t)r * dims + d] = 0;
            query[(size_t)r * dims + d] =
                r < rows && d < (size_t)dim ? q[(size_t)r * q_stride + d] * scale : 0;
        }
    }
    for (int at = 0; at < last; at += TILE) {
        int keys = last - at < TILE ? last - at : TILE, full = (keys + 2 * W - 1) / (2 * W) * (2 * W);
        for (int j = 0; j < full; j += 2 * W) scores(query, dims, dim, packed + at + j, padded, score + j);
        for (int r = 0; r < rows; r++) {
            float *s = score + r * TILE;
            int mine = limit[r] - at < keys ? limit[r] - at : keys;
            if (mine <= 0) {
                memset(s, 0, (size_t)full * sizeof *s);
                continue;
            }
            for (int j = mine; j < full; j++) s[j] = -INFINITY;
            vf m = load(s);
            for (int j = W; j < full; j += W) {
                vf x = load(s + j);
                m = select(x > m, x, m);
            }
            float top = max[r];
            for (int j = 0; j < W; j++) top = m[j] > top ? m[j] : top;
            float fade = expf(max[r] - top);
            max[r] = top;
            vf add = {0};
            for (int j = 0; j < full; j += W) {
                vf e = vexp(load(s + j) - splat(top));
                store(s + j, e);
                add += e;
            }
            sum[r] = sum[r] * fade + total(add);
            for (size_t d = 0; d < dims; d += W)
                store(acc + (size_t)r * dims + d, load(acc + (size_t)r * dims + d) * splat(fade));
        }
        for (size_t d = 0; d < (size_t)dim; d += 2 * W) {
            size_t n = (size_t)dim - d < 2 * W ? (size_t)dim - d : 2 * W;
            weigh(score, keys, v + (size_t)at * v_stride + d, v_stride, acc + d, dims, n);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int d = 0; d < dim; d++)
            out[(size_t)r * out_stride + (size_t)d] = acc[(size_t)r * dims + (size_t)d] / sum[r];
}

#define GLUE2(a, b) a##b
#define GLUE(a, b) GLUE2(a, b)
#define TEXT2(a) #a
#define TEXT(a) TEXT2(a)
const struct kx_vector GLUE(kx_vector_, KX_ISA) = {
    .name = TEXT(KX_ISA),
    .width = W,
    .sums = sums,
    .scale_shift = scale_shift,
    .layer_norm = layer_norm,
    .silu = silu,
    .gelu = gelu,
    .quick_gelu = quick_gelu,
    .geglu = geglu,
    .product = product,
    .pack_keys = pack_keys,
    .attend = attend,
};
