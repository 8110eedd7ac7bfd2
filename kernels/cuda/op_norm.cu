/* GroupNorm and LayerNorm.
 *
 *     y = act((x − mean) · gamma / √(variance + eps) + beta)       act: nothing, or v / (1 + e^−v)
 *
 * over an image's pixels and a group's channels (GroupNorm), or over a row's channels (LayerNorm). Tensors
 * are dense NHWC in f16 or bf16; statistics, gamma and beta are f32.
 *
 * Statistics. No sum of squares of x itself: with a mean of 100 and a deviation of 0.1 it has no digits left.
 * GroupNorm's thread sums the distances to the first value that it meets in a channel, which is one of those
 * summed, so that an outlier there costs nothing either; what threads, blocks and pieces found are (mean, sum
 * of squared distances) pairs, which are merged about a common mean (Chan, Golub, LeVeque 1979) by one warp a
 * group. LayerNorm keeps its row in registers: mean first, then the distances to it. The order of all sums is
 * that of the shape: n has no part in it.
 *
 * Geometry of GroupNorm. NHWC makes a group a narrow slice of each pixel (10 channels of 320), so that a
 * block takes several neighbouring groups: a "slice" whose channels are whole 16-byte vectors, whole 32-byte
 * sectors where the shape allows (80 of 320, 240 of 960, 128 of 512). A thread stays on one vector of the
 * slice and walks pixels.
 * - once: the slice of all pixels fits in 80 KiB of shared memory: one block an image and slice. One read,
 *   one write: 4 bytes a value.
 * - twice, where it does not: pieces of pixels, a block each: one kernel for statistics, and one that merges
 *   at most 32 of them and applies. (More than 32 are folded to 32 in between: large pictures of few
 *   channels.) Two reads, one write: 6 bytes a value, of which the second read comes from L2 as far as that
 *   holds all images; so the second kernel's blocks go backwards, what was read last first.
 * - odd: channels not a multiple of 8, or a slice wider than a block: one block a group, value by value.
 * - cluster (op_norm_sm90.cu, not the default): once, with the slab spread over up to 8 neighbouring blocks.
 * LayerNorm: a warp a row, 4 bytes a value.
 *
 * Tolerance: NMSE 2e-7 in f16, 1e-5 in bf16 against doubles (that is the rounding of y). Speed: not
 * measured. */
#include "kernels/cuda/op_norm.cuh"

/* ---- GroupNorm, once */

template <typename T>
static __global__ void __launch_bounds__(THREADS, 3)
    group_once(const T *x, const float *__restrict__ gamma, const float *__restrict__ beta, T *y,
               struct group_shape g) {
    KX_DYNAMIC_SHARED(kx_vec8<T>, slab);
    __shared__ struct stat scratch[THREADS * 8], found[SLICE_MAX];
    int width = g.slice / 8, rows = THREADS / width;
    int r = (int)threadIdx.x / width, vector = (int)threadIdx.x % width;
    bool active = r < rows;
    int first = (int)(blockIdx.x % (unsigned)g.slices) * g.slice;
    size_t at = (size_t)(blockIdx.x / (unsigned)g.slices) * (size_t)g.pixels * (size_t)g.c + (size_t)first +
                (size_t)vector * 8;
    struct sums s;
    if (active) collect_rows<T, true>(&s, x + at, (size_t)g.c, r, rows, g.pixels, slab + vector, width);
    merge_threads(&g, &s, active, r, vector, rows, g.pixels, scratch, found);
    __syncthreads();
    for (int q = (int)threadIdx.x; q < g.slice / g.each; q += THREADS)
        found[q].square = inverse(&g, found[q].square);
    __syncthreads();
    if (!active) return;
    struct affine a;
    affine_init(&a, &g, found, first, vector, gamma, beta);
    for (int p = r; p < g.pixels; p += rows) {
        kx_vec8<T> v = slab[p * width + vector];
        kx_store8(y + at + (size_t)p * (size_t)g.c, apply(&a, &v, g.silu));
    }
}

/* ---- GroupNorm, twice: statistics of a piece, the fold, and the rest */

/* stats: images × chunks × groups. */
template <typename T>
static __global__ void __launch_bounds__(THREADS, 3)
    group_stats(const T *x, struct stat *__restrict__ stats, struct group_shape g) {
    __shared__ struct stat scratch[THREADS * 8];
    int width = g.slice / 8, rows = THREADS / width;
    int r = (int)threadIdx.x / width, vector = (int)threadIdx.x % width;
    bool active = r < rows;
    struct norm_piece p = piece_of(&g, blockIdx.x);
    struct sums s;
    if (active)
        collect_rows<T, false>(&s, x + p.at + (size_t)vector * 8, (size_t)g.c, r, rows, p.pixels,
                               (kx_vec8<T> *)NULL, 0);
    merge_threads(&g, &s, active, r, vector, rows, p.pixels, scratch,
                  stats + ((size_t)p.image * (size_t)g.chunks + (size_t)p.chunk) * (size_t)g.groups +
                      p.slice * (g.slice / g.each));
}

/* Chunks to parts; a thread a part of a group. stats: as above; parts: images × parts × groups. */
static __global__ void __launch_bounds__(THREADS)
    group_fold(const struct stat *__restrict__ stats, struct stat *__restrict__ parts, int n,
               struct group_shape g) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, image = i / ((size_t)g.parts * (size_t)g.groups);
    if (image >= (size_t)n) return;
    int group = (int)(i % (size_t)g.groups), part = (int)(i / (size_t)g.groups % (size_t)g.parts);
    int fold = g.span / g.chunk, from = part * fold, to = from + fold < g.chunks ? from + fold : g.chunks;
    const struct stat *of = stats + image * (size_t)g.chunks * (size_t)g.groups + group;
    float pivot = of[(size_t)from * (size_t)g.groups].mean, sum = 0, square = 0;
    for (int k = from; k < to; k++)
        sum += stretch(k, g.chunk, g.pixels) * (of[(size_t)k * (size_t)g.groups].mean - pivot);
    float mean = pivot + sum / stretch(part, g.span, g.pixels);
    for (int k = from; k < to; k++) {
        struct stat t = of[(size_t)k * (size_t)g.groups];
        float d = t.mean - mean;
        square += fmaf(stretch(k, g.chunk, g.pixels) * (float)g.each * d, d, t.square);
    }
    struct stat t = {mean, square};
    parts[i] = t;
}

/* parts: images × parts × groups. */
template <typename T>
static __global__ void __launch_bounds__(THREADS, 3)
    group_apply(const T *x, const struct stat *__restrict__ parts, const float *__restrict__ gamma,
                const float *__restrict__ beta, T *y, struct group_shape g) {
    __shared__ struct stat found[SLICE_MAX];
    struct norm_piece p = piece_of(&g, gridDim.x - 1 - blockIdx.x);
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, groups = g.slice / g.each;
    for (int q = warp; q < groups; q += WARPS) {
        const struct stat *of =
            parts + (size_t)p.image * (size_t)g.parts * (size_t)g.groups + p.slice * groups + q;
        struct stat t = {0, 0};
        if (lane < g.parts) t = of[(size_t)lane * (size_t)g.groups];
        t = merge_parts(&g, t);
        if (lane == 0) found[q] = t;
    }
    __syncthreads();
    int width = g.slice / 8, rows = THREADS / width;
    int r = (int)threadIdx.x / width, vector = (int)threadIdx.x % width;
    if (r >= rows) return;
    struct affine a;
    affine_init(&a, &g, found, p.slice * g.slice, vector, gamma, beta);
    x += p.at + (size_t)vector * 8;
    y += p.at + (size_t)vector * 8;
#pragma unroll 1
    for (int at = r; at < p.pixels; at += rows * IN_FLIGHT) {
        kx_vec8<T> v[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++)
            if (at + i * rows < p.pixels) v[i] = kx_load8(x + (size_t)(at + i * rows) * (size_t)g.c);
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++)
            if (at + i * rows < p.pixels)
                kx_store8(y + (size_t)(at + i * rows) * (size_t)g.c, apply(&a, &v[i], g.silu));
    }
}

/* ---- GroupNorm of odd channels: a block a group. Threads take runs of RUN values, each about its first, and
 * merge run after run. */

/* A place in a group's values, walked in steps of THREADS without a division. */
struct walk {
    size_t pixel;
    int channel;
};

KX_DEVICE void walk_on(struct walk *w, int each) {
    w->pixel += (size_t)(THREADS / each);
    w->channel += THREADS % each;
    if (w->channel >= each) {
        w->channel -= each;
        w->pixel++;
    }
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    group_odd(const T *x, const float *__restrict__ gamma, const float *__restrict__ beta, T *y,
              struct group_shape g) {
    enum { RUN = 32 };
    __shared__ struct stat of[THREADS];
    __shared__ float values[THREADS];
    __shared__ struct stat found;
    int group = (int)(blockIdx.x % (unsigned)g.groups), t = (int)threadIdx.x;
    size_t at = (size_t)(blockIdx.x / (unsigned)g.groups) * (size_t)g.pixels * (size_t)g.c +
                (size_t)group * (size_t)g.each;
    struct walk start = {(size_t)(t / g.each), t % g.each}, w = start;
    float n = 0;
    struct stat mine = {0, 0};
    while (w.pixel < (size_t)g.pixels) {
        float pivot = kx_float(x[at + w.pixel * (size_t)g.c + (size_t)w.channel]), sum = 0, square = 0;
        int run = 0;
        for (; run < RUN && w.pixel < (size_t)g.pixels; run++, walk_on(&w, g.each)) {
            float d = kx_float(x[at + w.pixel * (size_t)g.c + (size_t)w.channel]) - pivot;
            sum += d;
            square = fmaf(d, d, square);
        }
        float m = (float)run, mean = sum / m, both = n + m, d = pivot + mean - mine.mean;
        square -= sum * mean;
        mine.square += (square < 0 ? 0.0f : square) + (n ? d * d * n * (m / both) : 0.0f);
        mine.mean = n ? fmaf(d, m / both, mine.mean) : pivot + mean;
        n = both;
    }
    of[t] = mine;
    values[t] = n;
    __syncthreads();
    if (t < 32) {
        float pivot = of[0].mean, sum = 0, square = 0;
        for (int i = t; i < THREADS; i += 32) sum += values[i] * (of[i].mean - pivot);
        float mean = pivot + warp_sum(sum) / ((float)g.pixels * (float)g.each);
        for (int i = t; i < THREADS; i += 32) {
            float d = of[i].mean - mean;
            square += fmaf(values[i] * d, d, of[i].square);
        }
        square = warp_sum(square);
        if (t == 0) {
            found.mean = mean;
            found.square = inverse(&g, square);
        }
    }
    __syncthreads();
    gamma += group * g.each;
    beta += group * g.each;
    for (w = start; w.pixel < (size_t)g.pixels; walk_on(&w, g.each)) {
        size_t i = at + w.pixel * (size_t)g.c + (size_t)w.channel;
        float v = fmaf(kx_float(x[i]) - found.mean, found.square * gamma[w.channel], beta[w.channel]);
        y[i] = kx_value<T>(g.silu ? silu(v) : v);
    }
}

/* ---- LayerNorm: a warp a row */

/* K vectors a lane hold the row. */
template <typename T, int K>
static __global__ void __launch_bounds__(THREADS)
    layer_vectors(const T *x, const float *__restrict__ gamma, const float *__restrict__ beta, T *y,
                  int64_t rows, int c, float eps) {
    int64_t row = (int64_t)blockIdx.x * WARPS + (int)threadIdx.x / 32;
    if (row >= rows) return;
    int lane = (int)threadIdx.x % 32, vectors = c / 8;
    x += row * c;
    y += row * c;
    kx_vec8<T> v[K];
    float sum = 0, square = 0;
#pragma unroll
    for (int i = 0; i < K; i++)
        if (lane + i * 32 < vectors) v[i] = kx_load8(x + (lane + i * 32) * 8);
#pragma unroll
    for (int i = 0; i < K; i++)
        if (lane + i * 32 < vectors)
            for (int k = 0; k < 8; k++) sum += kx_float(v[i].v[k]);
    float mean = warp_sum(sum) / (float)c;
#pragma unroll
    for (int i = 0; i < K; i++)
        if (lane + i * 32 < vectors)
            for (int k = 0; k < 8; k++) {
                float d = kx_float(v[i].v[k]) - mean;
                square = fmaf(d, d, square);
            }
    float inv = 1.0f / sqrtf(warp_sum(square) / (float)c + eps);
#pragma unroll
    for (int i = 0; i < K; i++)
        if (lane + i * 32 < vectors) {
            int first = (lane + i * 32) * 8;
            kx_vec8<T> out;
#pragma unroll
            for (int k = 0; k < 8; k++)
                out.v[k] =
                    kx_value<T>(fmaf((kx_float(v[i].v[k]) - mean) * inv, gamma[first + k], beta[first + k]));
            kx_store8(y + first, out);
        }
}

/* Any c, value by value; the row is read three times, from L1 but for the first. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    layer_values(const T *x, const float *__restrict__ gamma, const float *__restrict__ beta, T *y,
                 int64_t rows, int c, float eps) {
    int64_t row = (int64_t)blockIdx.x * WARPS + (int)threadIdx.x / 32;
    if (row >= rows) return;
    int lane = (int)threadIdx.x % 32;
    x += row * c;
    y += row * c;
    float sum = 0, square = 0;
    for (int i = lane; i < c; i += 32) sum += kx_float(x[i]);
    float mean = warp_sum(sum) / (float)c;
    for (int i = lane; i < c; i += 32) {
        float d = kx_float(x[i]) - mean;
        square = fmaf(d, d, square);
    }
    float inv = 1.0f / sqrtf(warp_sum(square) / (float)c + eps);
    for (int i = lane; i < c; i += 32)
        y[i] = kx_value<T>(fmaf((kx_float(x[i]) - mean) * inv, gamma[i], beta[i]));
}

/* ---- launchers */

/* False: only group_odd can. */
static bool group_divide(int pixels, int c, int groups, struct group_shape *g) {
    g->pixels = pixels;
    g->c = c;
    g->groups = groups;
    g->each = c / groups;
    if (c % 8 != 0) return false;
    int64_t most = SLAB_BYTES / 2 / (int64_t)pixels;
    if (most > THREADS * 8) most = THREADS * 8;
    g->slice = slice_of(c, g->each, 16, (int)most, false);
    if (!g->slice) g->slice = slice_of(c, g->each, 8, (int)most, false);
    bool once = g->slice && g->slice / g->each <= SLICE_MAX;
    if (!once) {
        g->slice = slice_of(c, g->each, 16, THREADS * 8, true);
        if (!g->slice) g->slice = slice_of(c, g->each, 8, THREADS * 8, true);
        if (!g->slice) return false;
    }
    g->slices = c / g->slice;
    g->chunk = pixels;
    if (!once) {
        /* without a fold where the slices alone make blocks enough */
        int rows = THREADS / (g->slice / 8), chunks = g->slices * PARTS >= BLOCKS_MIN ? PARTS : CHUNKS_MAX;
        int walk = (pixels - 1) / (rows * chunks) + 1;
        g->chunk = rows * (walk < WALK ? WALK : walk);
    }
    g->chunks = (pixels - 1) / g->chunk + 1;
    int fold = (g->chunks - 1) / PARTS + 1;
    g->span = g->chunk * fold;
    g->parts = (g->chunks - 1) / fold + 1;
    return true;
}

size_t kx_cuda_group_norm_workspace(int n, int pixels, int c, int groups) {
    struct group_shape g;
    if (!group_divide(pixels, c, groups, &g) || g.chunks == 1) return 0;
    size_t pairs = (size_t)g.chunks + (g.parts < g.chunks ? (size_t)g.parts : 0);
    return (size_t)n * pairs * (size_t)groups * sizeof(struct stat);
}

template <typename T>
static cudaError_t group_norm(cudaStream_t stream, const T *x, const float *gamma, const float *beta, T *y,
                              int n, struct group_shape *g, bool vectors, struct stat *stats) {
    if (!vectors)
        return kx_launch(group_odd<T>, dim3((unsigned)n * (unsigned)g->groups), dim3(THREADS), 0, stream, x,
                         gamma, beta, y, *g);
    dim3 grid((unsigned)n * (unsigned)g->slices * (unsigned)g->chunks);
    if (g->chunks == 1)
        return kx_launch(group_once<T>, grid, dim3(THREADS), (size_t)g->pixels * (size_t)g->slice * sizeof(T),
                         stream, x, gamma, beta, y, *g);
    cudaError_t rc = kx_launch(group_stats<T>, grid, dim3(THREADS), 0, stream, x, stats, *g);
    struct stat *parts = stats;
    if (rc == cudaSuccess && g->parts < g->chunks) {
        size_t threads = (size_t)n * (size_t)g->parts * (size_t)g->groups;
        parts = stats + (size_t)n * (size_t)g->chunks * (size_t)g->groups;
        rc = kx_launch(group_fold, dim3((unsigned)((threads - 1) / THREADS + 1)), dim3(THREADS), 0, stream,
                       (const struct stat *)stats, parts, n, *g);
    }
    if (rc != cudaSuccess) return rc;
    return kx_launch(group_apply<T>, grid, dim3(THREADS), 0, stream, x, (const struct stat *)parts, gamma,
                     beta, y, *g);
}

cudaError_t kx_cuda_group_norm(cudaStream_t stream, enum kx_store type, const void *x, const float *gamma,
                               const float *beta, void *y, int n, int pixels, int c, int groups, float eps,
                               bool silu, void *workspace) {
    if (n < 1 || pixels < 1 || groups < 1 || c < 1 || c % groups != 0) return cudaErrorInvalidValue;
    struct group_shape g;
    bool vectors = group_divide(pixels, c, groups, &g) && aligned16(x, y);
    g.eps = eps;
    g.silu = silu;
    KX_DISPATCH(type, T,
                return group_norm(stream, (const T *)x, gamma, beta, (T *)y, n, &g, vectors,
                                  (struct stat *)workspace));
}

#ifndef KX_CUDA_SM90 /* else op_norm_sm90.cu has it */
cudaError_t kx_cuda_group_norm_cluster(cudaStream_t, enum kx_store, const void *, const float *,
                                       const float *, void *, int, int, int, int, float, bool) {
    return KX_CUDA_NO;
}
#endif

template <typename T>
static cudaError_t layer_norm(cudaStream_t stream, const T *x, const float *gamma, const float *beta, T *y,
                              int64_t rows, int c, float eps) {
    void (*kernel)(const T *, const float *, const float *, T *, int64_t, int, float) = layer_values<T>;
    if (c % 8 == 0 && aligned16(x, y)) {
        if (c <= 256)
            kernel = layer_vectors<T, 1>;
        else if (c <= 512)
            kernel = layer_vectors<T, 2>;
        else if (c <= 768)
            kernel = layer_vectors<T, 3>;
        else if (c <= 1024)
            kernel = layer_vectors<T, 4>;
        else if (c <= 1280)
            kernel = layer_vectors<T, 5>;
        else if (c <= 2560)
            kernel = layer_vectors<T, 10>;
    }
    return kx_launch(kernel, dim3((unsigned)((rows - 1) / WARPS + 1)), dim3(THREADS), 0, stream, x, gamma,
                     beta, y, rows, c, eps);
}

cudaError_t kx_cuda_layer_norm(cudaStream_t stream, enum kx_store type, const void *x, const float *gamma,
                               const float *beta, void *y, int64_t rows, int c, float eps) {
    if (rows < 1 || c < 1 || rows > (int64_t)WARPS * INT32_MAX) return cudaErrorInvalidValue;
    KX_DISPATCH(type, T, return layer_norm(stream, (const T *)x, gamma, beta, (T *)y, rows, c, eps));
}
