/* Attention: out = softmax(q · kᵀ · scale) · v, head by head, without a score matrix in memory (Dao 2023,
 * FlashAttention-2; running maximum and sum: Milakov and Gimelshein 2018).
 *
 * Layout: kernels/ops.h, struct kx_attention: rows of heads × dim values at strides of their own, so that a
 * fused projection's output is read where it lies. Keys and values are those of image kv_index[i].
 *
 * Two kernels here; a third one, for large heads, is in op_attention_wide.cu.
 *
 * attention_tiled: tensor cores (mma.sync m16n8k16), head sizes 8 … 160 that are multiples of 8.
 *
 * - A block of four warps takes 64 · MT query rows of one head of one image, each warp 16 · MT of them alone:
 *   what belongs to a row stays in a warp, and only keys and values are shared. Queries live in registers.
 * - Keys and values go by in tiles of KEYS, in a ring of two stages (cp.async, one barrier a tile). A row of
 *   the ring takes an odd number of 16-byte chunks, so that the eight rows of an 8 × 8 matrix lie in eight
 *   different groups of banks.
 * - A tile: S = q · kᵀ; -inf past the last key and the diagonal; the running maximum m; S = 2^(S · c − m)
 *   with c = scale · log2 e, one fma and one instruction of the special unit; O = O · fade + S · v, where S
 *   turns from accumulator into operand without leaving the registers.
 * - MT = 2: a matrix of keys or values that ldmatrix fetched serves 32 rows. With 16 rows shared memory
 *   (128 bytes a cycle) feeds half of the products that an H100 could do.
 * - A head size between two of the table takes the larger one, with zeros behind its values. 40 and other
 *   odd multiples of 8 end with half a k-step, whose other half is zero in registers.
 *
 *   size up to  MT  KEYS  shared memory  registers (sm_80, sm_90a)  blocks an SM
 *   32          2   64    20 KB          167, 167                   3
 *   40          2   48    15 KB          166, 167                   3
 *   64          2   80    45 KB          244, 245                   2
 *   80          2   48    33 KB          240, 248                   2
 *   128         1   64    68 KB          206, 213                   2 (1 on sm_86, sm_89, sm_120)
 *   160         1   32    42 KB          211, 218                   2
 *
 *   f16 and bf16 alike; nothing is spilled (nvcc 13.0). Size 40 wants many warps: a score costs 88
 *   multiply-adds of the tensor cores and one of the 16 exponentials that an SM does in a cycle, about the
 *   same time. Size 64 takes the 77 keys of a text in one tile.
 *
 * attention_simple: any size 1 … 512, any alignment, any scale: a warp a row, 32 keys at a time, a lane a
 * score, then a lane every 32nd column. 8.5 KB of shared memory. For the sizes of tests and odd models.
 *
 * Accumulators, maximum and sum: f32. The weights are rounded to the storage type for the second product;
 * the sum adds them unrounded. Geometry and order of sums depend on dim alone: a row's bits depend neither on
 * n nor on its place. Tolerance against a double reference (NMSE): f16 2e-7, bf16 1e-5. Speed: not measured.
 */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/op_attention.h"

#define LOG2_E 1.4426950408889634f

/* ---- what a row sees and where an image's keys lie */

KX_DEVICE int seen_by(const struct kx_attention &a, int row) {
    return a.causal && row + 1 < a.length ? row + 1 : a.length;
}

KX_DEVICE size_t kv_at(const struct kx_attention &a, int image) {
    return (size_t)(a.kv_index ? a.kv_index[image] : image) * a.kv_image;
}

/* ---- the simple kernel */

enum { SIMPLE_WARPS = 4, SIMPLE_DIM = 512 };

template <typename T>
__global__ void __launch_bounds__(32 * SIMPLE_WARPS) attention_simple(const struct kx_attention a) {
    __shared__ float query[SIMPLE_WARPS][SIMPLE_DIM], weight[SIMPLE_WARPS][32];
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, dim = a.dim;
    int row = (int)blockIdx.x * SIMPLE_WARPS + warp, image = (int)blockIdx.z;
    if (row >= a.rows) return; /* all of a warp: there are no barriers of the block */
    size_t head = (size_t)((int)blockIdx.y * dim), pixel = (size_t)image * (size_t)a.rows + (size_t)row;
    const T *q = (const T *)a.q + pixel * a.q_stride + head;
    const T *k = (const T *)a.k + kv_at(a, image) + head, *v = (const T *)a.v + kv_at(a, image) + head;
    for (int d = lane; d < dim; d += 32) query[warp][d] = kx_float(q[d]);
    __syncwarp();
    float o[SIMPLE_DIM / 32], top = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < SIMPLE_DIM / 32; i++) o[i] = 0;
    int seen = seen_by(a, row);
    for (int at = 0; at < seen; at += 32) {
        float s = -INFINITY;
        if (at + lane < seen) {
            const T *key = k + (size_t)(at + lane) * a.k_stride;
            s = 0;
            for (int d = 0; d < dim; d++) s = fmaf(query[warp][d], kx_float(key[d]), s);
            s *= a.scale * LOG2_E;
        }
        float high = s;
        for (int i = 16; i; i /= 2) high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, i));
        high = fmaxf(high, top);
        float fade = kx_ex2(top - high), p = kx_ex2(s - high);
        top = high;
        sum = fmaf(sum, fade, p);
        weight[warp][lane] = p;
        __syncwarp();
        int keys = seen - at < 32 ? seen - at : 32;
#pragma unroll
        for (int i = 0; i < SIMPLE_DIM / 32; i++) {
            int d = 32 * i + lane;
            if (d >= dim) break;
            float add = o[i] * fade;
            for (int j = 0; j < keys; j++)
                add = fmaf(weight[warp][j], kx_float(v[(size_t)(at + j) * a.v_stride + (size_t)d]), add);
            o[i] = add;
        }
        __syncwarp();
    }
    for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    T *out = (T *)a.out + pixel * a.out_stride + head;
#pragma unroll
    for (int i = 0; i < SIMPLE_DIM / 32; i++)
        if (32 * i + lane < dim) out[32 * i + lane] = kx_value<T>(o[i] / sum);
}

/* ---- the tiled kernel */

enum { WARPS = 4, THREADS = 32 * WARPS, STAGES = 2 };

/* The sizes that follow from the template's. */
template <int DIM, int KEYS, int MT> struct tile {
    enum {
        CHUNKS = DIM / 8,       /* 16-byte chunks a row */
        PITCH = CHUNKS | 1,     /* chunks from row to row in shared memory */
        STEPS = (DIM + 8) / 16, /* k-steps of q · kᵀ; with an odd CHUNKS the last is half a step */
        ROWS = 16 * MT * WARPS,
        STAGE = 2 * KEYS * PITCH, /* chunks of a stage: keys, then values */
        BYTES = STAGES * STAGE * 16
    };
    static_assert((int)ROWS * (int)PITCH <= STAGES * (int)STAGE, "the output is staged in the ring");
};

/* The next KEYS rows of keys or values, of which `left` are there (one at least): behind them the last one
 * again, which the mask hides. Behind the head's `chunks` come zeros. A thread loads its chunk of every
 * STEP-th row; `at` is its chunk of the first row. */
template <typename T, int KEYS, int CHUNKS>
KX_DEVICE void load_tile(kx_vec8<T> *to, const T *at, unsigned stride, int left, int chunks) {
    enum { STEP = THREADS / CHUNKS, PITCH = CHUNKS | 1 };
    int row = (int)threadIdx.x / CHUNKS, chunk = (int)threadIdx.x % CHUNKS;
    to += row * PITCH + chunk;
    if (THREADS % CHUNKS && row == STEP) return;
#pragma unroll
    for (int i = 0; i < KEYS; i += STEP)
        if (KEYS % STEP == 0 || i + STEP <= KEYS || i + row < KEYS) {
            unsigned from = (unsigned)(i + row < left ? i + row : left - 1);
            kx_cp_async16(to + i * PITCH, at + (uint64_t)from * stride, chunk < chunks);
        }
}

/* Two neighbouring values of a row of q, or zeros. */
template <typename T> KX_DEVICE uint32_t pair(const T *row, int d, bool valid) {
    return valid ? *(const uint32_t *)(row + d) : 0;
}

/* S = q · kᵀ: a step of 16 columns, 16 keys at a time. */
template <typename T, int DIM, int KEYS, int MT>
KX_DEVICE void scores(float (&s)[MT][KEYS / 8][4], const uint32_t (&q)[MT][tile<DIM, KEYS, MT>::STEPS][4],
                      const kx_vec8<T> *keys) {
    typedef tile<DIM, KEYS, MT> t;
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) s[m][j][0] = s[m][j][1] = s[m][j][2] = s[m][j][3] = 0;
    const kx_vec8<T> *key = keys + (lane % 8 + lane / 16 * 8) * t::PITCH + lane / 8 % 2;
    const kx_vec8<T> *half_key = keys + lane % 16 * t::PITCH;
#pragma unroll
    for (int step = 0; step < t::STEPS; step++)
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            uint32_t b0[2], b1[2];
            if (2 * step + 1 < t::CHUNKS) {
                uint32_t r[4];
                kx_ldmatrix_x4(r, key + 16 * j * t::PITCH + 2 * step);
                b0[0] = r[0], b0[1] = r[1], b1[0] = r[2], b1[1] = r[3];
            } else {
                uint32_t r[2];
                kx_ldmatrix_x2(r, half_key + 16 * j * t::PITCH + 2 * step);
                b0[0] = r[0], b1[0] = r[1], b0[1] = b1[1] = 0;
            }
#pragma unroll
            for (int m = 0; m < MT; m++) {
                kx_mma_16816<T>(s[m][2 * j], q[m][step], b0);
                kx_mma_16816<T>(s[m][2 * j + 1], q[m][step], b1);
            }
        }
}

/* No key past the last, none past the diagonal: `at` is the tile's first key, `first` the
 * warp's first row. */
template <int KEYS, int MT>
KX_DEVICE void mask(float (&s)[MT][KEYS / 8][4], const struct kx_attention &a, int at, int first) {
    int lane = (int)threadIdx.x % 32;
    if (at + KEYS <= seen_by(a, first)) return;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int row = first + 16 * m + 8 * (c / 2) + lane / 4;
                if (at + 8 * j + 2 * (lane % 4) + c % 2 >= seen_by(a, row)) s[m][j][c] = -INFINITY;
            }
}

/* Scores to weights, with what they do to the rows' maxima, sums and outputs. A row's scores lie in the four
 * lanes of a quad. */
template <int CHUNKS, int KEYS, int MT>
KX_DEVICE void soften(float (&s)[MT][KEYS / 8][4], float (&o)[MT][CHUNKS][4], float (&top)[MT][2],
                      float (&sum)[MT][2], float scale) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float high = s[m][0][2 * h];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) high = fmaxf(high, fmaxf(s[m][j][2 * h], s[m][j][2 * h + 1]));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
            high = fmaxf(high * scale, top[m][h]);
            float fade = kx_ex2(top[m][h] - high), add = 0;
            top[m][h] = high;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                float p0 = kx_ex2(fmaf(s[m][j][2 * h], scale, -high));
                float p1 = kx_ex2(fmaf(s[m][j][2 * h + 1], scale, -high));
                s[m][j][2 * h] = p0;
                s[m][j][2 * h + 1] = p1;
                add += p0 + p1;
            }
            sum[m][h] = fmaf(sum[m][h], fade, add);
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                o[m][c][2 * h] *= fade;
                o[m][c][2 * h + 1] *= fade;
            }
        }
}

/* O += S · v: a step of 16 keys, 16 columns at a time. */
template <typename T, int DIM, int KEYS, int MT>
KX_DEVICE void weigh(const kx_vec8<T> *values, const float (&s)[MT][KEYS / 8][4],
                     float (&o)[MT][tile<DIM, KEYS, MT>::CHUNKS][4]) {
    typedef tile<DIM, KEYS, MT> t;
    int lane = (int)threadIdx.x % 32;
    const kx_vec8<T> *value = values + lane % 16 * t::PITCH + lane / 16;
    const kx_vec8<T> *half_value = values + lane % 16 * t::PITCH;
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32_t p[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float *two = &s[m][2 * step + r / 2][2 * (r % 2)];
                p[m][r] = kx_pack2<T>(two[0], two[1]);
            }
#pragma unroll
        for (int c = 0; c < t::CHUNKS; c += 2) {
            uint32_t b0[2], b1[2];
            if (c + 1 < t::CHUNKS) {
                uint32_t r[4];
                kx_ldmatrix_x4_trans(r, value + 16 * step * t::PITCH + c);
                b0[0] = r[0], b0[1] = r[1], b1[0] = r[2], b1[1] = r[3];
            } else {
                kx_ldmatrix_x2_trans(b0, half_value + 16 * step * t::PITCH + c);
            }
#pragma unroll
            for (int m = 0; m < MT; m++) {
                kx_mma_16816<T>(o[m][c], p[m], b0);
                if (c + 1 < t::CHUNKS) kx_mma_16816<T>(o[m][c + 1 < t::CHUNKS ? c + 1 : c], p[m], b1);
            }
        }
    }
}

template <typename T, int DIM, int KEYS, int MT, int BLOCKS>
__global__ void __launch_bounds__(THREADS, BLOCKS) attention_tiled(const struct kx_attention a) {
    typedef tile<DIM, KEYS, MT> t;
    KX_DYNAMIC_SHARED(kx_vec8<T>, ring);
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, chunks = a.dim / 8;
    int image = (int)blockIdx.z, first = (int)blockIdx.x * t::ROWS; /* the block's first row */
    int mine = first + 16 * MT * warp;                              /* the warp's */
    size_t head = (size_t)((int)blockIdx.y * a.dim);
    size_t kv = kv_at(a, image) + head;

    int past = first + t::ROWS < a.rows ? first + t::ROWS : a.rows;
    int keys = seen_by(a, past - 1); /* that any row of the block sees */
    int tiles = (keys + KEYS - 1) / KEYS;
    /* The thread's chunk of the tile's first row (load_tile); of a chunk behind the head's, the first. */
    int chunk = (int)threadIdx.x % t::CHUNKS;
    const T *k = (const T *)a.k + kv + (chunk < chunks ? 8 * chunk : 0);
    const T *v = (const T *)a.v + kv + (chunk < chunks ? 8 * chunk : 0);
    unsigned k_stride = (unsigned)a.k_stride, v_stride = (unsigned)a.v_stride;
    load_tile<T, KEYS, t::CHUNKS>(ring, k, k_stride, keys, chunks);
    load_tile<T, KEYS, t::CHUNKS>(ring + KEYS * t::PITCH, v, v_stride, keys, chunks);
    kx_cp_async_commit();

    /* Queries: of 16 rows the lane has rows lane / 4 and 8 more, columns 2 · (lane % 4) and 8 more. */
    uint32_t q[MT][t::STEPS][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = mine + 16 * m + 8 * h + lane / 4;
            const T *from =
                (const T *)a.q + ((size_t)image * (size_t)a.rows + (size_t)row) * a.q_stride + head;
#pragma unroll
            for (int step = 0; step < t::STEPS; step++) {
                int d = 16 * step + 2 * (lane % 4);
                q[m][step][h] = pair(from, d, row < a.rows && d < a.dim);
                q[m][step][h + 2] =
                    2 * step + 1 < t::CHUNKS ? pair(from, d + 8, row < a.rows && d + 8 < a.dim) : 0;
            }
        }

    float o[MT][t::CHUNKS][4], top[MT][2], sum[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int c = 0; c < t::CHUNKS; c++) o[m][c][0] = o[m][c][1] = o[m][c][2] = o[m][c][3] = 0;
        top[m][0] = top[m][1] = -INFINITY;
        sum[m][0] = sum[m][1] = 0;
    }
    float scale = a.scale * LOG2_E;

    for (int i = 0; i < tiles; i++) {
        kx_cp_async_wait<0>();
        __syncthreads(); /* the tile is there for all, and all are done with the one before */
        kx_vec8<T> *here = ring + i % STAGES * t::STAGE, *next = ring + (i + 1) % STAGES * t::STAGE;
        if (i + 1 < tiles) {
            int left = keys - (i + 1) * KEYS;
            k += (size_t)KEYS * k_stride;
            v += (size_t)KEYS * v_stride;
            load_tile<T, KEYS, t::CHUNKS>(next, k, k_stride, left, chunks);
            load_tile<T, KEYS, t::CHUNKS>(next + KEYS * t::PITCH, v, v_stride, left, chunks);
            kx_cp_async_commit();
        }

        float s[MT][KEYS / 8][4];
        scores<T, DIM, KEYS, MT>(s, q, here);
        mask<KEYS, MT>(s, a, i * KEYS, mine);
        soften<t::CHUNKS, KEYS, MT>(s, o, top, sum, scale);
        weigh<T, DIM, KEYS, MT>(here + KEYS * t::PITCH, s, o);
    }

    /* Out through the ring, so that whole chunks are written: each warp its own rows. */
    __syncthreads();
    kx_vec8<T> *own = ring + 16 * MT * warp * t::PITCH;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float all = sum[m][h];
            all += __shfl_xor_sync(0xffffffffu, all, 1);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            float inv = 1 / all;
            kx_vec8<T> *to = own + (16 * m + 8 * h + lane / 4) * t::PITCH;
#pragma unroll
            for (int c = 0; c < t::CHUNKS; c++)
                *(uint32_t *)((T *)(to + c) + 2 * (lane % 4)) =
                    kx_pack2<T>(o[m][c][2 * h] * inv, o[m][c][2 * h + 1] * inv);
        }
    __syncwarp();
    for (int i = lane; i < 16 * MT * t::CHUNKS; i += 32) {
        int row = i / t::CHUNKS, c = i % t::CHUNKS;
        if (mine + row < a.rows && c < chunks) {
            T *to =
                (T *)a.out + ((size_t)image * (size_t)a.rows + (size_t)(mine + row)) * a.out_stride + head;
            *(kx_vec8<T> *)(to + 8 * c) = own[row * t::PITCH + c];
        }
    }
}

/* ---- launchers */

template <typename T, int DIM, int KEYS, int MT, int BLOCKS>
static cudaError_t launch_tiled(cudaStream_t stream, const struct kx_attention *a) {
    typedef tile<DIM, KEYS, MT> t;
    dim3 grid((unsigned)((a->rows + t::ROWS - 1) / t::ROWS), (unsigned)a->heads, (unsigned)a->n);
    return kx_launch(attention_tiled<T, DIM, KEYS, MT, BLOCKS>, grid, dim3(THREADS), (size_t)t::BYTES, stream,
                     *a);
}

template <typename T> static cudaError_t choose_tiled(cudaStream_t stream, const struct kx_attention *a) {
    if (a->dim <= 32) return launch_tiled<T, 32, 64, 2, 3>(stream, a);
    if (a->dim <= 40) return launch_tiled<T, 40, 48, 2, 3>(stream, a);
    if (a->dim <= 64) return launch_tiled<T, 64, 80, 2, 2>(stream, a);
    if (a->dim <= 80) return launch_tiled<T, 80, 48, 2, 2>(stream, a);
    if (a->dim <= 128) return launch_tiled<T, 128, 64, 1, 2>(stream, a);
    return launch_tiled<T, 160, 32, 1, 2>(stream, a);
}

extern "C" bool kx_cuda_attention_aligned(const struct kx_attention *a) {
    uintptr_t all = (uintptr_t)a->q | (uintptr_t)a->k | (uintptr_t)a->v | (uintptr_t)a->out;
    size_t strides = a->q_stride | a->k_stride | a->v_stride | a->out_stride;
    return all % 16 == 0 && (strides | a->kv_image | (size_t)a->dim) % 8 == 0 && strides >> 32 == 0;
}

extern "C" cudaError_t kx_cuda_attention_simple(cudaStream_t stream, enum kx_store type,
                                                const struct kx_attention *a) {
    if (a->dim < 1 || a->dim > SIMPLE_DIM) return KX_CUDA_NO;
    dim3 grid((unsigned)((a->rows + SIMPLE_WARPS - 1) / SIMPLE_WARPS), (unsigned)a->heads, (unsigned)a->n);
    dim3 block(32 * SIMPLE_WARPS);
    return type == KX_STORE_F16 ? kx_launch(attention_simple<__half>, grid, block, 0, stream, *a)
                                : kx_launch(attention_simple<__nv_bfloat16>, grid, block, 0, stream, *a);
}

extern "C" cudaError_t kx_cuda_attention_tiled(cudaStream_t stream, enum kx_store type,
                                               const struct kx_attention *a) {
    if (a->dim < 8 || a->dim > 160 || !kx_cuda_attention_aligned(a) || !(a->scale > 0)) return KX_CUDA_NO;
    return type == KX_STORE_F16 ? choose_tiled<__half>(stream, a) : choose_tiled<__nv_bfloat16>(stream, a);
}

extern "C" cudaError_t kx_cuda_attention(cudaStream_t stream, enum kx_store type,
                                         const struct kx_attention *a) {
    if (a->n < 1 || a->rows < 1 || a->length < 1 || a->heads < 1) return cudaErrorInvalidValue;
    if (a->dim % 8 || !kx_cuda_attention_aligned(a) || !(a->scale > 0))
        return kx_cuda_attention_simple(stream, type, a);
    if (a->dim <= 160) return kx_cuda_attention_tiled(stream, type, a);
    int device, shared;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (e != cudaSuccess) return e;
    return kx_cuda_attention_wide(stream, type, a, shared >= KX_ATTENTION_WIDE_128_BYTES ? 128 : 64);
}

#if !defined(KX_CUDA_SM90) && !defined(KX_SHIM) /* else op_attention_sm90.cu has it */
extern "C" cudaError_t kx_cuda_attention_sm90(cudaStream_t, enum kx_store, const struct kx_attention *) {
    return KX_CUDA_NO;
}
#endif
