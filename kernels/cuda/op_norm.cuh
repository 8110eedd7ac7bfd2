/* The common parts of GroupNorm's variants (op_norm.cu, op_norm_sm90.cu; the head of the former explains
 * them): how a thread collects, how a block merges, and how y is made of it. */
#ifndef KILN_KERNELS_CUDA_OP_NORM_CUH
#define KILN_KERNELS_CUDA_OP_NORM_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    IN_FLIGHT = 4,         /* loads of a thread in flight */
    WALK = 8,              /* pixels of a thread in a piece, at least */
    SLAB_BYTES = 80 << 10, /* with the scratch of 16 KiB below what every architecture has (99 KiB) */
    SLICE_MAX = 128,       /* channels, where the groups allow it */
    SLICE_MIN = 32,
    BLOCKS_MIN = 128, /* an image that a device has work with */
    PARTS = 32,       /* one a lane */
    CHUNKS_MAX = 1024 /* before they are folded */
};

struct stat {
    float mean, square; /* square: Σ (x − mean)² */
};

/* An image's division, by its shape alone. */
struct group_shape {
    int pixels, c, groups;
    int each;   /* channels a group */
    int slice;  /* channels a block */
    int slices; /* an image */
    int chunk;  /* pixels a block; all of them: once */
    int chunks;
    int span; /* pixels a part of the merge */
    int parts;
    float eps;
    bool silu;
};

KX_DEVICE float warp_sum(float v) {
    for (int i = 16; i; i >>= 1) v += __shfl_xor_sync(0xffffffffu, v, i);
    return v;
}

KX_DEVICE float silu(float v) {
    return __fdividef(v, 1.0f + __expf(-v));
}

/* ---- GroupNorm: what a thread collects of its vector of 8 channels */

struct sums {
    float pivot[8], sum[8], square[8];
};

template <typename T> KX_DEVICE void collect(struct sums *s, const kx_vec8<T> *v, bool first) {
#pragma unroll
    for (int k = 0; k < 8; k++) {
        float x = kx_float(v->v[k]);
        if (first) s->pivot[k] = x;
        float d = x - s->pivot[k];
        s->sum[k] += d;
        s->square[k] = fmaf(d, d, s->square[k]);
    }
}

/* Reads rows r, r + rows, … < count of this thread's vector, x being its first row; keeps them in `slab`
 * (a row every `width` vectors) unless that is NULL. */
template <typename T, bool keep>
KX_DEVICE void collect_rows(struct sums *s, const T *x, size_t c, int r, int rows, int count,
                            kx_vec8<T> *slab, int width) {
#pragma unroll
    for (int k = 0; k < 8; k++) s->pivot[k] = s->sum[k] = s->square[k] = 0;
#pragma unroll 1
    for (int p = r; p < count; p += rows * IN_FLIGHT) {
        kx_vec8<T> v[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++)
            if (p + i * rows < count) v[i] = kx_load8(x + (size_t)(p + i * rows) * c);
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++)
            if (p + i * rows < count) {
                collect(s, &v[i], i == 0 && p == r);
                if (keep) slab[(p + i * rows) * width] = v[i];
            }
    }
}

/* How many of `count` pixels row r of `rows` walks. */
KX_DEVICE int walked(int r, int rows, int count) {
    return count / rows + (r < count % rows);
}

/* Merges what the block's threads collected over `count` pixels, a warp a group: out[g] for the slice's
 * groups, in shared or global memory. `scratch`: rows × slice pairs. All threads; ends with a barrier only
 * where the caller adds one. */
KX_DEVICE void merge_threads(const struct group_shape *g, const struct sums *s, bool active, int r,
                             int vector, int rows, int count, struct stat *scratch, struct stat *out) {
    if (active) {
        int mine = walked(r, rows, count);
        float n = (float)mine, inv = mine ? 1.0f / n : 0.0f;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float mean = s->sum[k] * inv, square = s->square[k] - s->sum[k] * mean;
            struct stat t = {s->pivot[k] + mean, square < 0 ? 0.0f : square};
            scratch[r * g->slice + vector * 8 + k] = t;
        }
    }
    __syncthreads();
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, used = rows < count ? rows : count;
    for (int q = warp; q < g->slice / g->each; q += WARPS) {
        const struct stat *of = scratch + q * g->each;
        float pivot = of[0].mean, sum = 0, square = 0;
        for (int e = lane; e < used * g->each; e += 32) {
            int row = e / g->each;
            sum += (float)walked(row, rows, count) * (of[row * g->slice + e - row * g->each].mean - pivot);
        }
        float mean = pivot + warp_sum(sum) / ((float)count * (float)g->each);
        for (int e = lane; e < used * g->each; e += 32) {
            int row = e / g->each;
            struct stat t = of[row * g->slice + e - row * g->each];
            float d = t.mean - mean;
            square += fmaf((float)walked(row, rows, count) * d, d, t.square);
        }
        square = warp_sum(square);
        if (lane == 0) {
            struct stat t = {mean, square};
            out[q] = t;
        }
    }
}

/* Σ (x − mean)² to the factor 1 / deviation. */
KX_DEVICE float inverse(const struct group_shape *g, float square) {
    return 1.0f / sqrtf(square / ((float)g->pixels * (float)g->each) + g->eps);
}

/* The part of a slice that a block works on where there is more than one chunk. */
struct norm_piece {
    int image, slice, chunk;
    int pixels; /* of the chunk */
    size_t at;  /* its first value */
};

KX_DEVICE struct norm_piece piece_of(const struct group_shape *g, unsigned block) {
    struct norm_piece p;
    p.slice = (int)(block % (unsigned)g->slices);
    block /= (unsigned)g->slices;
    p.chunk = (int)(block % (unsigned)g->chunks);
    p.image = (int)(block / (unsigned)g->chunks);
    int from = p.chunk * g->chunk, left = g->pixels - from;
    p.pixels = left < g->chunk ? left : g->chunk;
    p.at = ((size_t)p.image * (size_t)g->pixels + (size_t)from) * (size_t)g->c +
           (size_t)p.slice * (size_t)g->slice;
    return p;
}

/* Pixels of the i-th of stretches of `each`. */
KX_DEVICE float stretch(int i, int each, int pixels) {
    int left = pixels - i * each;
    return (float)(left < 0 ? 0 : left < each ? left : each);
}

/* The parts of a group, one a lane (zeros beyond them), to the group's mean and 1 / deviation. A warp. */
KX_DEVICE struct stat merge_parts(const struct group_shape *g, struct stat t) {
    int lane = (int)threadIdx.x % 32;
    bool in = lane < g->parts;
    float pivot = __shfl_sync(0xffffffffu, t.mean, 0), pixels = stretch(lane, g->span, g->pixels);
    float mean = pivot + warp_sum(in ? pixels * (t.mean - pivot) : 0.0f) / (float)g->pixels;
    float d = t.mean - mean;
    float square = warp_sum(in ? fmaf(pixels * (float)g->each * d, d, t.square) : 0.0f);
    struct stat found = {mean, inverse(g, square)};
    return found;
}

/* A thread's 8 channels: y = (x − mean) · scale + shift. */
struct affine {
    float mean[8], scale[8], shift[8];
};

/* `of`: the slice's groups, square replaced by 1 / deviation. */
KX_DEVICE void affine_init(struct affine *a, const struct group_shape *g, const struct stat *of, int first,
                           int vector, const float *__restrict__ gamma, const float *__restrict__ beta) {
#pragma unroll
    for (int k = 0; k < 8; k++) {
        int channel = vector * 8 + k, q = channel / g->each;
        a->mean[k] = of[q].mean;
        a->scale[k] = of[q].square * gamma[first + channel];
        a->shift[k] = beta[first + channel];
    }
}

template <typename T> KX_DEVICE kx_vec8<T> apply(const struct affine *a, const kx_vec8<T> *x, bool act) {
    kx_vec8<T> y;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        float v = fmaf(kx_float(x->v[k]) - a->mean[k], a->scale[k], a->shift[k]);
        y.v[k] = kx_value<T>(act ? silu(v) : v);
    }
    return y;
}

/* ---- launchers */

static inline bool aligned16(const void *a, const void *b) {
    return (((uintptr_t)a | (uintptr_t)b) & 15) == 0;
}

/* The slice: multiples of `unit` channels that are whole groups and divide c, of at most SLICE_MAX channels
 * where the groups allow it. Narrow (at least SLICE_MIN) for once, since that makes many blocks; wide for
 * twice, since that makes long reads. 0: none. */
static inline int slice_of(int c, int each, int unit, int most, bool wide) {
    int best = 0;
    for (int s = each; s <= most && s <= c; s += each) {
        if (s % unit != 0 || c % s != 0) continue;
        if (best && (wide ? s > SLICE_MAX : best >= SLICE_MIN)) break;
        best = s;
    }
    return best;
}

#endif
