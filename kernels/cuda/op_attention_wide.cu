/* Attention for large heads, 161 … 512 (multiples of 8): the VAE's, one head of 512 over up to 16384 pixels.
 * The formula, and how a row's maximum and sum run, are in op_attention.cu.
 *
 * The output alone is 64 KB of registers for 32 rows, so a warp cannot have its rows to itself. A block of
 * eight warps takes 64 rows, as two groups of 32 rows by four of keys or of columns:
 *
 * - S = q · kᵀ: a warp computes its 32 rows by a quarter of the tile's keys, over all of the head's columns.
 * - Maximum: of its quarter in registers, of the tile by shared memory. Weights go to shared memory, as the
 *   left operand of all four warps.
 * - O += P · v: a warp has its 32 rows by a quarter of the columns, 128 accumulators a thread.
 *
 * Queries stay in shared memory (65 KB). Keys and values stream through one ring in slices of equal work: a
 * slice of keys is KEYS × 64 columns, a slice of values 16 keys × V_COLUMNS columns; between two slices
 * stands one barrier. Rows in shared memory take an odd number of 16-byte chunks: no bank conflicts.
 *
 *   KEYS  V_COLUMNS  stages  shared memory  registers (sm_80, sm_90a)
 *   128   512        4       155 KB         242, 244
 *   64    256        2       93 KB          214, 216
 *
 * With 128 keys a warp fetches four 16 × 16 matrices for eight products of the first kind (three for four
 * with 64), and ten for 32 of the second. 64 keys are for devices with 99 KB a block (sm_86, sm_89, sm_120):
 * which of the two runs is a property of the device. One block of eight warps an SM; nothing is spilled (nvcc
 * 13.0).
 *
 * Accumulators, maximum and sum: f32. Tolerance as op_attention.cu. Speed: not measured. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/op_attention.h"

#define LOG2_E 1.4426950408889634f

enum {
    WIDTH = 512,
    ROWS = 64,
    GROUPS = 4, /* of keys, or of columns */
    THREADS = 32 * 2 * GROUPS,
    Q_PITCH = WIDTH / 8 + 1, /* pitches are in chunks of 16 bytes */
    K_PITCH = 9
};

template <int KEYS, int V_COLUMNS, int STAGES> struct wide_plan {
    enum {
        P_PITCH = KEYS / 8 + 1,
        V_PITCH = V_COLUMNS / 8 + 1,
        V_PARTS = WIDTH / V_COLUMNS,
        V_SLICES = KEYS / 16 * V_PARTS, /* a tile's */
        STAGE = KEYS * K_PITCH > 16 * V_PITCH ? KEYS *K_PITCH : 16 * V_PITCH,
        P = ROWS * Q_PITCH, /* where things lie, in chunks: q, p, maxima, the ring */
        TOP = P + ROWS * P_PITCH,
        RING = TOP + ROWS * GROUPS * 4 / 16,
        BYTES = (RING + STAGES * STAGE) * 16
    };
};

/* ROWS_ rows of CHUNKS chunks, of which `rows` are there (one at least): behind them the last one again,
 * which nobody sees. Behind chunk `chunks` come zeros. A thread loads its chunk of every STEP-th row. */
template <typename T, int ROWS_, int CHUNKS, int PITCH>
KX_DEVICE void load(kx_vec8<T> *to, const T *from, unsigned stride, int rows, int chunks) {
    enum { STEP = THREADS / CHUNKS };
    static_assert(THREADS % CHUNKS == 0 && ROWS_ % STEP == 0, "all threads, whole passes");
    int row = (int)threadIdx.x / CHUNKS, chunk = (int)threadIdx.x % CHUNKS;
    bool valid = chunk < chunks;
    to += row * PITCH + chunk;
    if (valid) from += 8 * chunk;
#pragma unroll
    for (int i = 0; i < ROWS_; i += STEP) {
        unsigned r = (unsigned)(i + row < rows ? i + row : rows - 1);
        kx_cp_async16(to + i * PITCH, from + (uint64_t)r * stride, valid);
    }
}

/* Where the block's keys and values are, and how many slices there are. */
template <typename T> struct source {
    const T *k, *v;
    unsigned k_stride, v_stride;
    int keys, chunks; /* keys that any row sees; chunks of a row */
    int k_slices;
};

/* Into a stage: of a tile the keys' columns 64 · slice and on, or the next slice of its values. */
template <typename T, int KEYS, int V_COLUMNS, int STAGES>
KX_DEVICE void load_slice(kx_vec8<T> *to, const source<T> &s, int tile, int slice) {
    typedef wide_plan<KEYS, V_COLUMNS, STAGES> p;
    if (slice < s.k_slices) {
        load<T, KEYS, 8, K_PITCH>(to, s.k + (size_t)(tile * KEYS) * s.k_stride + 64 * slice, s.k_stride,
                                  s.keys - tile * KEYS, s.chunks - 8 * slice);
    } else {
        slice -= s.k_slices;
        int key = tile * KEYS + 16 * (slice / p::V_PARTS), part = slice % p::V_PARTS;
        int left = s.keys - key, chunks = s.chunks - V_COLUMNS / 8 * part;
        bool any = left > 0 && chunks > 0; /* else the address stays at the start: it must be a legal one */
        load<T, 16, V_COLUMNS / 8, p::V_PITCH>(to,
                                               s.v + (any ? (size_t)key * s.v_stride + V_COLUMNS * part : 0),
                                               s.v_stride, any ? left : 1, chunks);
    }
}

template <typename T, int KEYS, int V_COLUMNS, int STAGES>
__global__ void __launch_bounds__(THREADS, 1) attention_wide(const struct kx_attention a) {
    typedef wide_plan<KEYS, V_COLUMNS, STAGES> p;
    enum {
        MINE = KEYS / GROUPS,
        COLUMNS = V_COLUMNS / GROUPS
    }; /* a warp's keys of a tile, columns of a part */
    KX_DYNAMIC_SHARED(kx_vec8<T>, shared);
    float *tops = (float *)(shared + p::TOP);
    kx_vec8<T> *ring = shared + p::RING;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int group = warp % GROUPS, base = warp / GROUPS * 32; /* the warp's first row of the block's */
    int image = (int)blockIdx.z, first = (int)blockIdx.x * ROWS;
    int rows = a.rows - first < ROWS ? a.rows - first : ROWS;
    size_t head = (size_t)((int)blockIdx.y * a.dim);
    size_t kv = (size_t)(a.kv_index ? a.kv_index[image] : image) * a.kv_image + head;

    source<T> s;
    s.k = (const T *)a.k + kv;
    s.v = (const T *)a.v + kv;
    s.k_stride = (unsigned)a.k_stride;
    s.v_stride = (unsigned)a.v_stride;
    s.keys = a.causal && first + rows < a.length ? first + rows : a.length;
    s.chunks = a.dim / 8;
    s.k_slices = (a.dim + 63) / 64;
    int tiles = (s.keys + KEYS - 1) / KEYS;

    load<T, ROWS, WIDTH / 8, Q_PITCH>(
        shared, (const T *)a.q + ((size_t)image * (size_t)a.rows + (size_t)first) * a.q_stride + head,
        (unsigned)a.q_stride, rows, s.chunks);
    int at = 0, next_tile = 0, next = 0; /* slices used; the next to load */
#pragma unroll
    for (; next < STAGES - 1; next++) { /* a tile has more */
        load_slice<T, KEYS, V_COLUMNS, STAGES>(ring + next * p::STAGE, s, 0, next);
        kx_cp_async_commit();
    }

    float o[2][WIDTH / GROUPS / 8][4], top[2][2], sum[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int c = 0; c < WIDTH / GROUPS / 8; c++) o[m][c][0] = o[m][c][1] = o[m][c][2] = o[m][c][3] = 0;
        top[m][0] = top[m][1] = -INFINITY;
        sum[m][0] = sum[m][1] = 0;
    }
    float scale = a.scale * LOG2_E;
    const kx_vec8<T> *query = shared + (base + lane % 16) * Q_PITCH + lane / 16;
    kx_vec8<T> *weight = shared + p::P + base * p::P_PITCH;

/* The next slice is there, and the one used before it is free: it is loaded over. */
#define NEXT_SLICE                                                                                           \
    kx_cp_async_wait<STAGES - 2>();                                                                          \
    __syncthreads();                                                                                         \
    if (next_tile < tiles)                                                                                   \
        load_slice<T, KEYS, V_COLUMNS, STAGES>(ring + (at + STAGES - 1) % STAGES * p::STAGE, s, next_tile,   \
                                               next);                                                        \
    kx_cp_async_commit();                                                                                    \
    if (++next == s.k_slices + p::V_SLICES) next = 0, next_tile++;                                           \
    const kx_vec8<T> *slice = ring + at++ % STAGES * p::STAGE

    for (int tile = 0; tile < tiles; tile++) {
        float score[2][MINE / 8][4];
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int j = 0; j < MINE / 8; j++)
                score[m][j][0] = score[m][j][1] = score[m][j][2] = score[m][j][3] = 0;
        for (int part = 0; part < s.k_slices; part++) {
            NEXT_SLICE;
            const kx_vec8<T> *key =
                slice + (group * MINE + lane % 8 + lane / 16 * 8) * K_PITCH + lane / 8 % 2;
#pragma unroll
            for (int step = 0; step < 4; step++) {
                uint32_t q[2][4];
                kx_ldmatrix_x4(q[0], query + 8 * part + 2 * step);
                kx_ldmatrix_x4(q[1], query + 16 * Q_PITCH + 8 * part + 2 * step);
#pragma unroll
                for (int j = 0; j < MINE / 16; j++) {
                    uint32_t r[4];
                    kx_ldmatrix_x4(r, key + 16 * j * K_PITCH + 2 * step);
                    uint32_t b0[2] = {r[0], r[1]}, b1[2] = {r[2], r[3]};
#pragma unroll
                    for (int m = 0; m < 2; m++) {
                        kx_mma_16816<T>(score[m][2 * j], q[m], b0);
                        kx_mma_16816<T>(score[m][2 * j + 1], q[m], b1);
                    }
                }
            }
        }

        /* The rows' maxima: of the quad, then of the four warps. Keys past the last and past the diagonal
         * count for nothing. */
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row = base + 16 * m + 8 * h + lane / 4;
                int seen = a.causal && first + row + 1 < a.length ? first + row + 1 : a.length;
                float high = -INFINITY;
#pragma unroll
                for (int j = 0; j < MINE / 8; j++)
#pragma unroll
                    for (int c = 2 * h; c < 2 * h + 2; c++) {
                        if (tile * KEYS + group * MINE + 8 * j + 2 * (lane % 4) + c % 2 >= seen)
                            score[m][j][c] = -INFINITY;
                        high = fmaxf(high, score[m][j][c]);
                    }
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
                if (lane % 4 == 0) tops[row * GROUPS + group] = high;
            }
        __syncthreads();
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row = 16 * m + 8 * h + lane / 4;
                const float *four = tops + (base + row) * GROUPS;
                float high = fmaxf(fmaxf(four[0], four[1]), fmaxf(four[2], four[3]));
                high = fmaxf(high * scale, top[m][h]);
                float fade = kx_ex2(top[m][h] - high), add = 0;
                top[m][h] = high;
                kx_vec8<T> *to = weight + row * p::P_PITCH + group * (MINE / 8);
#pragma unroll
                for (int j = 0; j < MINE / 8; j++) {
                    float p0 = kx_ex2(fmaf(score[m][j][2 * h], scale, -high));
                    float p1 = kx_ex2(fmaf(score[m][j][2 * h + 1], scale, -high));
                    *(uint32_t *)((T *)(to + j) + 2 * (lane % 4)) = kx_pack2<T>(p0, p1);
                    add += p0 + p1;
                }
                sum[m][h] = fmaf(sum[m][h], fade, add);
#pragma unroll
                for (int c = 0; c < WIDTH / GROUPS / 8; c++) {
                    o[m][c][2 * h] *= fade;
                    o[m][c][2 * h + 1] *= fade;
                }
            }

            /* The barrier of the first slice of values is the one that the weights want. */
#pragma unroll 1
        for (int step = 0; step < KEYS / 16; step++) {
#pragma unroll
            for (int part = 0; part < p::V_PARTS; part++) {
                NEXT_SLICE;
                uint32_t w[2][4];
                kx_ldmatrix_x4(w[0], weight + lane % 16 * p::P_PITCH + lane / 16 + 2 * step);
                kx_ldmatrix_x4(w[1], weight + (16 + lane % 16) * p::P_PITCH + lane / 16 + 2 * step);
                const kx_vec8<T> *value = slice + lane % 16 * p::V_PITCH + lane / 16 + group * (COLUMNS / 8);
#pragma unroll
                for (int c = 0; c < COLUMNS / 8; c += 2) {
                    uint32_t r[4];
                    kx_ldmatrix_x4_trans(r, value + c);
                    uint32_t b0[2] = {r[0], r[1]}, b1[2] = {r[2], r[3]};
#pragma unroll
                    for (int m = 0; m < 2; m++) {
                        kx_mma_16816<T>(o[m][part * (COLUMNS / 8) + c], w[m], b0);
                        kx_mma_16816<T>(o[m][part * (COLUMNS / 8) + c + 1], w[m], b1);
                    }
                }
            }
        }
    }
#undef NEXT_SLICE

    /* The rows' sums, then out through the queries' place, so that whole chunks are written. (Maxima and
     * queries were read for the last time before the barriers of the values.) */
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float all = sum[m][h];
            all += __shfl_xor_sync(0xffffffffu, all, 1);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            if (lane % 4 == 0) tops[(base + 16 * m + 8 * h + lane / 4) * GROUPS + group] = all;
        }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = base + 16 * m + 8 * h + lane / 4;
            const float *four = tops + row * GROUPS;
            float inv = 1 / (((four[0] + four[1]) + four[2]) + four[3]);
#pragma unroll
            for (int c = 0; c < WIDTH / GROUPS / 8; c++) {
                int part = c / (COLUMNS / 8),
                    chunk = part * (V_COLUMNS / 8) + group * (COLUMNS / 8) + c % (COLUMNS / 8);
                *(uint32_t *)((T *)(shared + row * Q_PITCH + chunk) + 2 * (lane % 4)) =
                    kx_pack2<T>(o[m][c][2 * h] * inv, o[m][c][2 * h + 1] * inv);
            }
        }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < rows * (WIDTH / 8); i += THREADS) {
        int row = i / (WIDTH / 8), chunk = i % (WIDTH / 8);
        if (chunk >= s.chunks) continue;
        T *to = (T *)a.out + ((size_t)image * (size_t)a.rows + (size_t)(first + row)) * a.out_stride + head;
        *(kx_vec8<T> *)(to + 8 * chunk) = shared[row * Q_PITCH + chunk];
    }
}

/* ---- launchers */

template <typename T, int KEYS, int V_COLUMNS, int STAGES>
static cudaError_t launch(cudaStream_t stream, const struct kx_attention *a) {
    dim3 grid((unsigned)((a->rows + ROWS - 1) / ROWS), (unsigned)a->heads, (unsigned)a->n);
    return kx_launch(attention_wide<T, KEYS, V_COLUMNS, STAGES>, grid, dim3(THREADS),
                     (size_t)wide_plan<KEYS, V_COLUMNS, STAGES>::BYTES, stream, *a);
}

extern "C" cudaError_t kx_cuda_attention_wide(cudaStream_t stream, enum kx_store type,
                                              const struct kx_attention *a, int keys) {
    if (a->dim < 8 || a->dim > WIDTH || !kx_cuda_attention_aligned(a) || !(a->scale > 0)) return KX_CUDA_NO;
    static_assert((int)wide_plan<128, 512, 4>::BYTES == KX_ATTENTION_WIDE_128_BYTES, "op_attention.h");
    if (keys == 128) KX_DISPATCH(type, T, return launch<T, 128, 512, 4>(stream, a));
    if (keys == 64) KX_DISPATCH(type, T, return launch<T, 64, 256, 2>(stream, a));
    return KX_CUDA_NO;
}
