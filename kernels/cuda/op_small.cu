/* The small ops: what stands between convolutions, products and attention, value by value. Contracts:
 * launch.h and kernels/ops.h.
 *
 * Layout: dense rows of c channels, f16 or bf16; arithmetic in f32, one rounding at the store.
 * Geometry: a block takes so many rows that its threads have about UNITS units, a unit being 8 values (one
 * access of 16 bytes) where c and the pointers allow it, else one value. Blocks lie along x alone, so that
 * rows may be more than 65,535. Nothing is summed, so that geometry moves no bit.
 *
 * Bytes moved a value of the result: concat, gather 4; add_silu, embed 4 to 6; geglu 6; finish 4, with a
 * residual 6; upsample 2.5; to_rgb 2 + 4 + 1; conversions 6.
 *
 * gelu is the exact one, x/2 · (1 + erf(x/√2)), with CUDA's erff (2 ulp); sigmoids with the hardware's
 * exponential and reciprocal: 1e-6 of the value where that is not far below 1e-6. Tolerance: NMSE 1e-7 in
 * f16, 5e-6 in bf16 against doubles (that is the rounding of y); concat, gather, upsample and conversions to
 * f32 exact. Speed: not measured. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

enum { THREADS = 256, UNITS = 4 * THREADS };

/* ---- units of W values */

template <int W> struct unit { float v[W]; };

template <int W, typename T> KX_DEVICE struct unit<W> load(const T *p) {
    struct unit<W> u;
    if (W == 8) {
        kx_vec8<T> x = kx_load8(p);
#pragma unroll
        for (int k = 0; k < W; k++) u.v[k] = kx_float(x.v[k]);
    } else {
        u.v[0] = kx_float(p[0]);
    }
    return u;
}

template <int W>
KX_DEVICE struct unit<W> load(const float *p) {
    struct unit<W> u;
    if (W == 8) {
        float4 a = reinterpret_cast<const float4 *>(p)[0], b = reinterpret_cast<const float4 *>(p)[1];
        u.v[0] = a.x, u.v[1 % W] = a.y, u.v[2 % W] = a.z, u.v[3 % W] = a.w;
        u.v[4 % W] = b.x, u.v[5 % W] = b.y, u.v[6 % W] = b.z, u.v[7 % W] = b.w;
    } else {
        u.v[0] = p[0];
    }
    return u;
}

template <int W, typename T>
KX_DEVICE void store(T *p, const struct unit<W> &u) {
    if (W == 8) {
        kx_vec8<T> x;
#pragma unroll
        for (int k = 0; k < W; k++) x.v[k] = kx_value<T>(u.v[k]);
        kx_store8(p, x);
    } else {
        p[0] = kx_value<T>(u.v[0]);
    }
}

template <int W> KX_DEVICE void store(float *p, const struct unit<W> &u) {
    if (W == 8) {
        reinterpret_cast<float4 *>(p)[0] = make_float4(u.v[0], u.v[1 % W], u.v[2 % W], u.v[3 % W]);
        reinterpret_cast<float4 *>(p)[1] = make_float4(u.v[4 % W], u.v[5 % W], u.v[6 % W], u.v[7 % W]);
    } else {
        p[0] = u.v[0];
    }
}

template <int W, typename T> KX_DEVICE void copy(T *to, const T *from) {
    if (W == 8)
        kx_store8(to, kx_load8(from));
    else
        to[0] = from[0];
}

/* ---- rows: the stretch of a block */

struct rows {
    int64_t count;
    int each, units; /* rows a block; units a row */
};

struct copy_stretch {
    int64_t first;
    int units; /* of all its rows */
};

KX_DEVICE struct copy_stretch stretch_of(const struct rows *r) {
    struct copy_stretch s;
    s.first = (int64_t)blockIdx.x * r->each;
    int64_t left = r->count - s.first;
    s.units = (left < r->each ? (int)left : r->each) * r->units;
    return s;
}

static struct rows rows_of(int64_t count, int units) {
    struct rows r = {count, UNITS / units, units};
    if (r.each < 1) r.each = 1;
    return r;
}

static dim3 grid_of(const struct rows *r) {
    return dim3((unsigned)((r->count - 1) / r->each + 1));
}

static bool fits(int64_t rows, int c) {
    return rows >= 1 && c >= 1 && (rows - 1) / (UNITS / c > 1 ? UNITS / c : 1) < INT32_MAX;
}

static bool aligned16(const void *a, const void *b, const void *c) {
    return (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c) & 15) == 0;
}

/* ---- activations */

KX_DEVICE float sigmoid_times(float v, float slope) {
    return __fdividef(v, 1.0f + __expf(-slope * v));
}

KX_DEVICE float gelu(float v) {
    return 0.5f * v * (1.0f + erff(v * 0.70710678f));
}

KX_DEVICE float activate(enum kx_act act, float v) {
    switch (act) {
    case KX_ACT_SILU:
        return sigmoid_times(v, 1.0f);
    case KX_ACT_GELU:
        return gelu(v);
    case KX_ACT_QUICK_GELU:
        return sigmoid_times(v, 1.702f);
    default:
        return v;
    }
}

/* ---- concat */

/* ua of the row's units are a's. */
template <typename T, int W>
static __global__ void __launch_bounds__(THREADS)
    concat(const T *__restrict__ a, int ua, const T *__restrict__ b, T *__restrict__ y, struct rows rows) {
    struct copy_stretch s = stretch_of(&rows);
    int ub = rows.units - ua;
    a += s.first * ua * W;
    b += s.first * ub * W;
    y += s.first * rows.units * W;
    for (int i = (int)threadIdx.x; i < s.units; i += THREADS) {
        int r = i / rows.units, u = i - r * rows.units;
        copy<W>(y + i * W, u < ua ? a + (r * ua + u) * W : b + (r * ub + u - ua) * W);
    }
}

cudaError_t kx_cuda_concat(cudaStream_t stream, enum kx_store type, const void *a, int ca, const void *b,
                           int cb, void *y, int64_t pixels) {
    if (ca < 1 || cb < 1 || !fits(pixels, ca + cb)) return cudaErrorInvalidValue;
    bool wide = ca % 8 == 0 && cb % 8 == 0 && aligned16(a, b, y);
    int w = wide ? 8 : 1;
    struct rows r = rows_of(pixels, (ca + cb) / w);
    KX_DISPATCH(type, T,
                return kx_launch(wide ? concat<T, 8> : concat<T, 1>, grid_of(&r), dim3(THREADS), 0, stream,
                                 (const T *)a, ca / w, (const T *)b, (T *)y, r));
}

/* ---- timestep: cos and sin of t · 10000^(−i / (half − shift)) */

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    timestep(const float *__restrict__ timesteps, bool cos_first, float freq_shift, T *__restrict__ y,
             struct rows rows) {
    struct copy_stretch s = stretch_of(&rows);
    int half = rows.units;
    for (int i = (int)threadIdx.x; i < s.units; i += THREADS) {
        int r = i / half, k = i - r * half;
        float x = timesteps[s.first + r] * expf(-9.2103404f * (float)k / ((float)half - freq_shift));
        T *row = y + (s.first + r) * 2 * half;
        row[cos_first ? k : half + k] = kx_value<T>(cosf(x));
        row[cos_first ? half + k : k] = kx_value<T>(sinf(x));
    }
}

cudaError_t kx_cuda_timestep(cudaStream_t stream, enum kx_store type, const float *timesteps, int n, int dim,
                             bool flip_sin_to_cos, float freq_shift, void *y) {
    if (dim < 2 || dim % 2 != 0 || !fits(n, dim)) return cudaErrorInvalidValue;
    struct rows r = rows_of(n, dim / 2);
    KX_DISPATCH(type, T,
                return kx_launch(timestep<T>, grid_of(&r), dim3(THREADS), 0, stream, timesteps,
                                 flip_sin_to_cos, freq_shift, (T *)y, r));
}

/* ---- add_silu: rows of a, each with all rows of b */

template <typename T, int W>
static __global__ void __launch_bounds__(THREADS)
    add_silu(const T *__restrict__ a, const T *__restrict__ b, int nb, T *__restrict__ y, struct rows rows) {
    struct copy_stretch s = stretch_of(&rows);
    for (int i = (int)threadIdx.x; i < s.units; i += THREADS) {
        int r = i / rows.units, u = i - r * rows.units;
        int row = (int)s.first + r, of = row / nb;
        struct unit<W> v = load<W>(a + ((int64_t)of * rows.units + u) * W);
        if (b) {
            struct unit<W> w = load<W>(b + ((row - of * nb) * rows.units + u) * W);
#pragma unroll
            for (int k = 0; k < W; k++) v.v[k] += w.v[k];
        }
#pragma unroll
        for (int k = 0; k < W; k++) v.v[k] = sigmoid_times(v.v[k], 1.0f);
        store<W>(y + ((int64_t)row * rows.units + u) * W, v);
    }
}

cudaError_t kx_cuda_add_silu(cudaStream_t stream, enum kx_store type, const void *a, int na, const void *b,
                             int nb, int c, void *y) {
    if (na < 1 || nb < 1 || (!b && nb != 1) || (int64_t)na * nb > INT32_MAX || !fits((int64_t)na * nb, c))
        return cudaErrorInvalidValue;
    bool wide = c % 8 == 0 && aligned16(a, b, y);
    struct rows r = rows_of((int64_t)na * nb, wide ? c / 8 : c);
    KX_DISPATCH(type, T,
                return kx_launch(wide ? add_silu<T, 8> : add_silu<T, 1>, grid_of(&r), dim3(THREADS), 0,
                                 stream, (const T *)a, (const T *)b, nb, (T *)y, r));
}

/* ---- embed, gather: rows by index */

template <typename T, int W>
static __global__ void __launch_bounds__(THREADS)
    embed(const T *__restrict__ tokens, const T *__restrict__ places, const int32_t *__restrict__ ids,
          int positions, T *__restrict__ y, struct rows rows) {
    struct copy_stretch s = stretch_of(&rows);
    for (int i = (int)threadIdx.x; i < s.units; i += THREADS) {
        int r = i / rows.units, u = i - r * rows.units;
        int64_t row = s.first + r;
        struct unit<W> v = load<W>(tokens + ((int64_t)ids[row] * rows.units + u) * W);
        struct unit<W> w = load<W>(places + ((int)row % positions * rows.units + u) * W);
#pragma unroll
        for (int k = 0; k < W; k++) v.v[k] += w.v[k];
        store<W>(y + (row * rows.units + u) * W, v);
    }
}

cudaError_t kx_cuda_embed(cudaStream_t stream, enum kx_store type, const void *tokens, const void *places,
                          const int32_t *ids, int n, int positions, int c, void *y) {
    if (n < 1 || positions < 1 || (int64_t)n * positions > INT32_MAX || !fits((int64_t)n * positions, c))
        return cudaErrorInvalidValue;
    bool wide = c % 8 == 0 && aligned16(tokens, places, y);
    struct rows r = rows_of((int64_t)n * positions, wide ? c / 8 : c);
    KX_DISPATCH(type, T,
                return kx_launch(wide ? embed<T, 8> : embed<T, 1>, grid_of(&r), dim3(THREADS), 0, stream,
                                 (const T *)tokens, (const T *)places, ids, positions, (T *)y, r));
}

template <typename T, int W>
static __global__ void __launch_bounds__(THREADS)
    gather(const T *__restrict__ x, const int32_t *__restrict__ at, int positions, T *__restrict__ y,
           struct rows rows) {
    struct copy_stretch s = stretch_of(&rows);
    for (int i = (int)threadIdx.x; i < s.units; i += THREADS) {
        int r = i / rows.units, u = i - r * rows.units;
        int64_t row = s.first + r;
        copy<W>(y + (row * rows.units + u) * W, x + ((row * positions + at[row]) * rows.units + u) * W);
    }
}

cudaError_t kx_cuda_gather(cudaStream_t stream, enum kx_store type, const void *x, const int32_t *at, int n,
                           int positions, int c, void *y) {
    if (positions < 1 || !fits(n, c)) return cudaErrorInvalidValue;
    bool wide = c % 8 == 0 && aligned16(x, y, NULL);
    struct rows r = rows_of(n, wide ? c / 8 : c);
    KX_DISPATCH(type, T,
                return kx_launch(wide ? gather<T, 8> : gather<T, 1>, grid_of(&r), dim3(THREADS), 0, stream,
                                 (const T *)x, at, positions, (T *)y, r));
}

/* ---- geglu */

template <typename T, int W>
static __global__ void __launch_bounds__(THREADS)
    geglu(const T *__restrict__ x, T *__restrict__ y, struct rows rows) {
    struct copy_stretch s = stretch_of(&rows);
    x += s.first * 2 * rows.units * W;
    y += s.first * rows.units * W;
    for (int i = (int)threadIdx.x; i < s.units; i += THREADS) {
        const T *first = x + (i + i / rows.units * rows.units) * W;
        struct unit<W> v = load<W>(first), gate = load<W>(first + rows.units * W);
#pragma unroll
        for (int k = 0; k < W; k++) v.v[k] *= gelu(gate.v[k]);
        store<W>(y + i * W, v);
    }
}

cudaError_t kx_cuda_geglu(cudaStream_t stream, enum kx_store type, const void *x, int64_t rows, int inner,
                          void *y) {
    if (!fits(rows, inner)) return cudaErrorInvalidValue;
    bool wide = inner % 8 == 0 && aligned16(x, y, NULL);
    struct rows r = rows_of(rows, wide ? inner / 8 : inner);
    KX_DISPATCH(type, T,
                return kx_launch(wide ? geglu<T, 8> : geglu<T, 1>, grid_of(&r), dim3(THREADS), 0, stream,
                                 (const T *)x, (T *)y, r));
}

/* ---- finish: y = act(x + bias + the image's time_proj) + residual; blockIdx.y is the image */

template <typename T, int W>
static __global__ void __launch_bounds__(THREADS)
    finish(const T *x, const float *__restrict__ bias, enum kx_act act, struct kx_rows time_proj,
           const T *residual, T *y, struct rows rows) {
    struct copy_stretch s = stretch_of(&rows);
    int image = (int)blockIdx.y;
    int64_t at = ((int64_t)image * rows.count + s.first) * rows.units * W;
    const T *add = NULL;
    if (time_proj.v)
        add = (const T *)time_proj.v +
              (size_t)(time_proj.index ? time_proj.index[image] : image) * time_proj.stride;
    for (int i = (int)threadIdx.x; i < s.units; i += THREADS) {
        int u = i % rows.units;
        struct unit<W> v = load<W>(x + at + i * W);
        if (bias) {
            struct unit<W> w = load<W>(bias + u * W);
#pragma unroll
            for (int k = 0; k < W; k++) v.v[k] += w.v[k];
        }
        if (add) {
            struct unit<W> w = load<W>(add + u * W);
#pragma unroll
            for (int k = 0; k < W; k++) v.v[k] += w.v[k];
        }
#pragma unroll
        for (int k = 0; k < W; k++) v.v[k] = activate(act, v.v[k]);
        if (residual) {
            struct unit<W> w = load<W>(residual + at + i * W);
#pragma unroll
            for (int k = 0; k < W; k++) v.v[k] += w.v[k];
        }
        store<W>(y + at + i * W, v);
    }
}

static cudaError_t finish_any(cudaStream_t stream, enum kx_store type, const void *x, const float *bias,
                              enum kx_act act, struct kx_rows time_proj, const void *residual, void *y, int n,
                              int64_t rows, int c) {
    if (n < 1 || n > 65535 || act == KX_ACT_GEGLU || !fits(rows, c)) return cudaErrorInvalidValue;
    bool wide = c % 8 == 0 && aligned16(x, bias, y) && aligned16(residual, time_proj.v, NULL) &&
                (!time_proj.v || time_proj.stride % 8 == 0);
    struct rows r = rows_of(rows, wide ? c / 8 : c);
    dim3 grid = grid_of(&r);
    grid.y = (unsigned)n;
    KX_DISPATCH(type, T,
                return kx_launch(wide ? finish<T, 8> : finish<T, 1>, grid, dim3(THREADS), 0, stream,
                                 (const T *)x, bias, act, time_proj, (const T *)residual, (T *)y, r));
}

cudaError_t kx_cuda_finish(cudaStream_t stream, enum kx_store type, const void *x, const float *bias,
                           enum kx_act act, const void *residual, void *y, int64_t rows, int c) {
    struct kx_rows none = {NULL, 0, NULL};
    return finish_any(stream, type, x, bias, act, none, residual, y, 1, rows, c);
}

cudaError_t kx_cuda_finish_conv(cudaStream_t stream, enum kx_store type, const void *x, const float *bias,
                                const struct kx_rows *time_proj, const void *residual, void *y, int n,
                                int pixels, int c) {
    struct kx_rows none = {NULL, 0, NULL};
    return finish_any(stream, type, x, bias, KX_ACT_NONE, time_proj ? *time_proj : none, residual, y, n,
                      pixels, c);
}

/* ---- upsample: a row here is a line of pixels, which becomes two */

template <typename T, int W>
static __global__ void __launch_bounds__(THREADS)
    upsample(const T *__restrict__ x, int units, T *__restrict__ y, int line) {
    x += (int64_t)blockIdx.x * line * W;
    y += (int64_t)blockIdx.x * 4 * line * W;
    int end = ((int)blockIdx.y + 1) * UNITS;
    if (end > line) end = line;
    for (int i = (int)blockIdx.y * UNITS + (int)threadIdx.x; i < end; i += THREADS) {
        T *to = y + ((int64_t)i + i / units * units) * W; /* column 2 · (i / units) */
        copy<W>(to, x + (int64_t)i * W);
        copy<W>(to + units * W, x + (int64_t)i * W);
        copy<W>(to + (int64_t)2 * line * W, x + (int64_t)i * W);
        copy<W>(to + ((int64_t)2 * line + units) * W, x + (int64_t)i * W);
    }
}

cudaError_t kx_cuda_upsample(cudaStream_t stream, enum kx_store type, const void *x, int n, int h, int w,
                             int c, void *y) {
    if (n < 1 || h < 1 || w < 1 || c < 1 || (int64_t)n * h > INT32_MAX ||
        (int64_t)w * c > (int64_t)UNITS * 65535)
        return cudaErrorInvalidValue;
    bool wide = c % 8 == 0 && aligned16(x, y, NULL);
    int units = wide ? c / 8 : c, line = w * units;
    dim3 grid((unsigned)(n * h), (unsigned)((line - 1) / UNITS + 1));
    KX_DISPATCH(type, T,
                return kx_launch(wide ? upsample<T, 8> : upsample<T, 1>, grid, dim3(THREADS), 0, stream,
                                 (const T *)x, units, (T *)y, line));
}

/* ---- to_rgb: blockIdx.y is the image; a unit is any 8 of its 3 · pixels values */

static __global__ void __launch_bounds__(THREADS) finite_begin(int32_t *finite, int n) {
    int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i < n) finite[i] = 1;
}

template <typename T, int W>
static __global__ void __launch_bounds__(THREADS)
    to_rgb(const T *__restrict__ x, int64_t values, float *__restrict__ rgb, uint8_t *__restrict__ bytes,
           int32_t *finite) {
    int64_t image = (int64_t)blockIdx.y * values, from = (int64_t)blockIdx.x * UNITS * W;
    int64_t left = (values - from) / W;
    int units = left < (int64_t)UNITS ? (int)left : (int)UNITS;
    bool nan = false;
    for (int i = (int)threadIdx.x; i < units; i += THREADS) {
        int64_t at = image + from + i * W;
        struct unit<W> v = load<W>(x + at);
        uint64_t packed = 0;
#pragma unroll
        for (int k = 0; k < W; k++) {
            float p = fmaf(v.v[k], 0.5f, 0.5f);
            v.v[k] = p < 0.0f ? 0.0f : p > 1.0f ? 1.0f : p;
            bool lost = p != p;
            nan |= lost;
            packed |= (uint64_t)(lost ? 0u : (unsigned)rintf(255.0f * v.v[k])) << (8 * k);
        }
        if (rgb) store<W>(rgb + at, v);
        if (bytes) {
            if (W == 8)
                *reinterpret_cast<uint64_t *>(bytes + at) = packed;
            else
                bytes[at] = (uint8_t)packed;
        }
    }
    /* one a warp: every thread is here, whatever it had to do */
    if (__ballot_sync(0xffffffffu, nan) && threadIdx.x % 32 == 0) atomicMin(&finite[blockIdx.y], 0);
}

cudaError_t kx_cuda_to_rgb(cudaStream_t stream, enum kx_store type, const void *x, int n, int pixels,
                           float *rgb, uint8_t *bytes, int32_t *finite) {
    if (n < 1 || n > 65535 || pixels < 1) return cudaErrorInvalidValue;
    cudaError_t rc =
        kx_launch(finite_begin, dim3((unsigned)((n - 1) / THREADS + 1)), dim3(THREADS), 0, stream, finite, n);
    if (rc != cudaSuccess) return rc;
    int64_t values = (int64_t)pixels * 3;
    bool wide = values % 8 == 0 && aligned16(x, rgb, NULL) && (uintptr_t)bytes % 8 == 0;
    dim3 grid((unsigned)((values - 1) / ((int64_t)UNITS * (wide ? 8 : 1)) + 1), (unsigned)n);
    KX_DISPATCH(type, T,
                return kx_launch(wide ? to_rgb<T, 8> : to_rgb<T, 1>, grid, dim3(THREADS), 0, stream,
                                 (const T *)x, values, rgb, bytes, finite));
}

/* ---- conversions: whole units, then value by value what is left */

template <typename A, typename B>
static __global__ void __launch_bounds__(THREADS)
    convert(const A *__restrict__ x, B *__restrict__ y, size_t n, bool wide) {
    size_t from = (size_t)blockIdx.x * UNITS * 8, left = n - from;
    int count = left < UNITS * 8 ? (int)left : UNITS * 8, units = wide ? count / 8 : 0;
    x += from;
    y += from;
    for (int i = (int)threadIdx.x; i < units; i += THREADS) store<8>(y + i * 8, load<8>(x + i * 8));
    for (int i = units * 8 + (int)threadIdx.x; i < count; i += THREADS) store<1>(y + i, load<1>(x + i));
}

template <typename A, typename B>
static cudaError_t convert_all(cudaStream_t stream, const A *x, B *y, size_t n) {
    if (n == 0) return cudaSuccess;
    size_t blocks = (n - 1) / (UNITS * 8) + 1;
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    return kx_launch(convert<A, B>, dim3((unsigned)blocks), dim3(THREADS), 0, stream, x, y, n,
                     aligned16(x, y, NULL));
}

cudaError_t kx_cuda_from_f32(cudaStream_t stream, enum kx_store type, const float *x, void *y, size_t n) {
    KX_DISPATCH(type, T, return convert_all(stream, x, (T *)y, n));
}

cudaError_t kx_cuda_to_f32(cudaStream_t stream, enum kx_store type, const void *x, float *y, size_t n) {
    KX_DISPATCH(type, T, return convert_all(stream, (const T *)x, y, n));
}
