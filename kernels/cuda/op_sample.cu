/* The sampler's step on the device: guidance, update and the next input of all images in one kernel, whatever
 * their samplers. Formula: kernels/samplers/step.h; contract: kx_sampling in kernels/ops.h.
 *
 *     m = u + g·(c − u);  d = clamp(dx·x + dm·m, ±clip)
 *     x' = cx·x + cs·saved + cd·d + cm·m + Σ ch[k]·history[k] + cn·noise;  in = x' · in_scale of the next
 * step
 *
 * A term whose coefficient is 0 is neither read nor added, so that an image whose row is the identity (cx
 * 1, all else 0: its steps are done, others of the minibatch go on) keeps its bits whatever the UNet says
 * about it; `bad` looks at m only where the step uses it.
 *
 * Layout: latents, history and noise f32, images of `values`; pred and in of the storage type, rows of
 * `values`; arithmetic f32, one rounding at the store of `in`. Geometry: blockIdx.y is the image, a thread
 * takes 4 values (one where their number or a pointer is odd). All threads read *at, which a kernel of its
 * own moves on behind them: no block may see the next step's number. Bytes moved a value, guided: 2·2 + 4
 * read, 4 + 2·2 written, 4 more for each term of saved, history or noise and each store of them. Tolerance:
 * NMSE 1e-12 in x, that of the rounding in `in` (2e-7 f16, 1e-5 bf16). Speed: not measured. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

enum { THREADS = 256 };

/* ---- W values: 4, or 1 */

template <int W> struct few { float v[W]; };

template <int W> KX_DEVICE struct few<W> read(const float *p) {
    struct few<W> f;
    if (W == 4) {
        float4 a = *reinterpret_cast<const float4 *>(p);
        f.v[0] = a.x, f.v[1 % W] = a.y, f.v[2 % W] = a.z, f.v[3 % W] = a.w;
    } else {
        f.v[0] = p[0];
    }
    return f;
}

template <int W>
KX_DEVICE void write(float *p, const struct few<W> &f) {
    if (W == 4)
        *reinterpret_cast<float4 *>(p) = make_float4(f.v[0], f.v[1 % W], f.v[2 % W], f.v[3 % W]);
    else
        p[0] = f.v[0];
}

template <int W, typename T> KX_DEVICE struct few<W> read(const T *p) {
    struct few<W> f;
    if (W == 4) {
        uint2 a = *reinterpret_cast<const uint2 *>(p);
        float2 low = kx_unpack2<T>(a.x), high = kx_unpack2<T>(a.y);
        f.v[0] = low.x, f.v[1 % W] = low.y, f.v[2 % W] = high.x, f.v[3 % W] = high.y;
    } else {
        f.v[0] = kx_float(p[0]);
    }
    return f;
}

template <int W, typename T>
KX_DEVICE void write(T *p, const struct few<W> &f) {
    if (W == 4) {
        uint2 a;
        a.x = kx_pack2<T>(f.v[0], f.v[1 % W]);
        a.y = kx_pack2<T>(f.v[2 % W], f.v[3 % W]);
        *reinterpret_cast<uint2 *>(p) = a;
    } else {
        p[0] = kx_value<T>(f.v[0]);
    }
}

template <int W> KX_DEVICE struct few<W> times(float a, const struct few<W> &f) {
    struct few<W> r;
#pragma unroll
    for (int k = 0; k < W; k++) r.v[k] = a * f.v[k];
    return r;
}

/* sum += a · f */
template <int W>
KX_DEVICE void add(struct few<W> *sum, float a, const struct few<W> &f) {
#pragma unroll
    for (int k = 0; k < W; k++) sum->v[k] = fmaf(a, f.v[k], sum->v[k]);
}

/* x · in_scale into the image's rows of the UNet's input. */
template <typename T, int W>
KX_DEVICE void write_input(const struct kx_sampling *s, int image, size_t at, float in_scale,
                           const struct few<W> &x) {
    struct few<W> in = times(in_scale, x);
    int u = s->row_u[image], c = s->row_c[image];
    if (u >= 0) write<W>((T *)s->in + (size_t)u * s->values + at, in);
    write<W>((T *)s->in + (size_t)c * s->values + at, in);
}

/* ---- begin */

template <typename T, int W>
static __global__ void __launch_bounds__(THREADS) sample_begin(struct kx_sampling s) {
    int image = (int)blockIdx.y;
    if (blockIdx.x == 0) {
        if (threadIdx.x == 0) s.bad[image] = -1;
        if (image == 0) {
            if (threadIdx.x == 0) *s.at = 0;
            for (int r = (int)threadIdx.x; r < s.rows; r += THREADS) s.time_row[r] = s.time_rows[r];
        }
    }
    size_t at = ((size_t)blockIdx.x * THREADS + threadIdx.x) * W;
    if (at >= s.values) return;
    write_input<T, W>(&s, image, at, s.table[image].in_scale, read<W>(s.x + (size_t)image * s.values + at));
}

/* ---- a step */

template <typename T, int W>
static __global__ void __launch_bounds__(THREADS) sample_step(struct kx_sampling s) {
    int image = (int)blockIdx.y, k = *s.at;
    if (k < 0 || k >= s.steps) return;
    const struct kx_step *t = &s.table[(size_t)k * (size_t)s.n + (size_t)image];
    float next = k + 1 < s.steps ? t[s.n].in_scale : t->in_scale;
    size_t at = ((size_t)blockIdx.x * THREADS + threadIdx.x) * W, of = (size_t)image * s.values + at;
    if (at >= s.values) return;

    float cd = t->cd, cm = t->cm;
    int keep = t->store;
    bool with_d = cd != 0 || keep >= 0, with_m = cm != 0 || (with_d && t->dm != 0);
    struct few<W> x = read<W>(s.x + of), m = {}, d = {};
    if (with_m || s.guided) {
        int u = s.row_u[image], c = s.row_c[image];
        m = read<W>((const T *)s.pred + (size_t)c * s.values + at);
        if (u >= 0) {
            struct few<W> base = read<W>((const T *)s.pred + (size_t)u * s.values + at);
            float g = s.guidance[image];
#pragma unroll
            for (int i = 0; i < W; i++) m.v[i] = fmaf(g, m.v[i] - base.v[i], base.v[i]);
        }
        if (s.guided) write<W>(s.guided + of, m);
    }
    if (with_m) {
        float lost = 0; /* 0 · v is 0 for what is finite, NaN for what is not */
#pragma unroll
        for (int i = 0; i < W; i++) lost = fmaf(0.0f, m.v[i], lost);
        if (lost != 0.0f && s.bad[image] < 0) atomicMax(&s.bad[image], k); /* all that come here bring k */
    }
    if (with_d) {
        float dm = t->dm, clip = t->clip;
        d = times(t->dx, x);
        if (dm != 0) add(&d, dm, m);
        if (clip > 0) {
#pragma unroll
            for (int i = 0; i < W; i++) d.v[i] = fminf(fmaxf(d.v[i], -clip), clip);
        }
    }

    struct few<W> sum = times(t->cx, x);
    if (cd != 0) add(&sum, cd, d);
    if (cm != 0) add(&sum, cm, m);
    if (t->cs != 0) add(&sum, t->cs, read<W>(s.saved + of));
#pragma unroll
    for (int i = 0; i < KX_HISTORY_MAX; i++)
        if (t->ch[i] != 0) add(&sum, t->ch[i], read<W>(s.history[i] + of));
    if (t->cn != 0) add(&sum, t->cn, read<W>(s.noise + of));

    if (t->save_x) write<W>(s.saved + of, x);
#pragma unroll
    for (int i = 0; i < KX_HISTORY_MAX; i++)
        if (keep == i) write<W>(s.history[i] + of, d);
    write<W>(s.x + of, sum);
    write_input<T, W>(&s, image, at, next, sum);
}

/* One block, behind sample_step. */
static __global__ void __launch_bounds__(THREADS) sample_advance(struct kx_sampling s) {
    int k = *s.at + 1;
    __syncthreads(); /* all have read it */
    if (k < 1 || k > s.steps) return;
    if (threadIdx.x == 0) *s.at = k;
    if (k == s.steps) k--;
    for (int r = (int)threadIdx.x; r < s.rows; r += THREADS)
        s.time_row[r] = s.time_rows[(size_t)k * (size_t)s.rows + (size_t)r];
}

/* ---- launchers */

static bool aligned(const void *p, size_t bytes) {
    return (uintptr_t)p % bytes == 0;
}

static bool by_four(const struct kx_sampling *s) {
    bool yes = s->values % 4 == 0 && aligned(s->pred, 8) && aligned(s->in, 8) && aligned(s->x, 16) &&
               aligned(s->saved, 16) && aligned(s->noise, 16) && aligned(s->guided, 16);
    for (int i = 0; i < KX_HISTORY_MAX; i++) yes = yes && aligned(s->history[i], 16);
    return yes;
}

static bool legal(const struct kx_sampling *s) {
    return s->n >= 1 && s->n <= 65535 && s->rows >= 1 && s->steps >= 1 && s->values >= 1 &&
           s->values <= (size_t)INT32_MAX;
}

static dim3 grid_of(const struct kx_sampling *s, size_t each) {
    return dim3((unsigned)((s->values - 1) / (THREADS * each) + 1), (unsigned)s->n);
}

cudaError_t kx_cuda_sample_begin(cudaStream_t stream, enum kx_store type, const struct kx_sampling *s) {
    if (!legal(s)) return cudaErrorInvalidValue;
    bool four = by_four(s);
    KX_DISPATCH(type, T,
                return kx_launch(four ? sample_begin<T, 4> : sample_begin<T, 1>, grid_of(s, four ? 4 : 1),
                                 dim3(THREADS), 0, stream, *s));
}

cudaError_t kx_cuda_sample(cudaStream_t stream, enum kx_store type, const struct kx_sampling *s) {
    if (!legal(s)) return cudaErrorInvalidValue;
    bool four = by_four(s);
    cudaError_t rc;
    KX_DISPATCH(type, T,
                rc = kx_launch(four ? sample_step<T, 4> : sample_step<T, 1>, grid_of(s, four ? 4 : 1),
                               dim3(THREADS), 0, stream, *s));
    if (rc != cudaSuccess) return rc;
    return kx_launch(sample_advance, dim3(1), dim3(THREADS), 0, stream, *s);
}
