/* Attention for Hopper: wgmma fed by TMA (Shah et al. 2024, FlashAttention-3). Never run on a device: no
 * machine that could was at hand; on the tests' shim its instructions are emulated as they are documented
 * (wgmma.cuh). Not the default.
 *
 * The formula is in op_attention.cu. Of its shapes this does head sizes 40, 64, 80, 128 and 160 where
 * strides are multiples of the head size (a projection's are); KX_CUDA_NO for the rest and on other
 * devices.
 *
 * Geometry. A block of three warpgroups takes 128 query rows of one head of one image. One thread of the
 * first copies: the queries once, then keys and values, tiles of KEYS, each through two stages of its own.
 * The other two warpgroups compute 64 rows each: S = q · kᵀ by wgmma m64nKEYSk16, both operands from shared
 * memory; O += P · v by m64nNk16 with P from registers, for each 64 columns of the head. The next tile's S is
 * under way while this one's weights multiply its values, and the exponentials of the next come while that
 * product runs:
 *
 * - S(j + 1) and O += P(j) · v(j) are started.
 * - S(j + 1) is waited for; its maxima, its 2^x, its sums.
 * - O is waited for and faded; P(j + 1).
 *
 * In shared memory a tile is 64 columns wide, 128 bytes a row, permuted as TMA and wgmma do it (128-byte
 * swizzle, repeated each 1,024 bytes); a head of 80 takes two such, of 160 three. Columns behind the head and
 * rows behind the last are outside of TMA's tensor and come as zeros. Keys lie along k (the head's columns),
 * so does q; values lie across (k is the keys): the descriptor's transposed form, where 8 keys are 1,024
 * bytes apart from the next 8.
 *
 *   size  KEYS  shared memory
 *   40    128   80 KB
 *   64    128   80 KB
 *   80    128   160 KB
 *   128   128   160 KB
 *   160   64    144 KB
 *
 * 384 threads, one block an SM. Registers: 168 a thread at the start; setmaxnreg leaves the copying warpgroup
 * 24 and gives the others 240. Nothing is spilled (nvcc 13.0).
 *
 * Barriers: full counts the copying thread's arrival and the bytes that arrive; empty counts the eight warps
 * that have done with a stage.
 *
 * Accumulators, maximum and sum: f32. A row's bits depend on dim and on what it sees alone; they are not
 * those of op_attention.cu (other tiles). Tolerance as there. Gain: not measured. */
#include "kernels/cuda/op_attention.h"
#include "kernels/cuda/wgmma.cuh"

#define LOG2_E 1.4426950408889634f

enum {
    ROWS = 128, /* of q a block */
    STAGES = 2,
    THREADS = WARPGROUPS * WARPGROUP_THREADS,
    COPIER_REGISTERS = 24,
    COMPUTER_REGISTERS = 240
};

template <int DIM, int KEYS> struct sm90_plan {
    enum {
        BLOCKS = (DIM + 63) / 64, /* of 64 columns */
        STEPS = (DIM + 15) / 16,
        N0 = DIM < 64 ? DIM : 64, /* columns of each block */
        N1 = DIM < 128 ? DIM - 64 : 64,
        N2 = DIM - 128,
        Q_BYTES = BLOCKS * ROWS * 128,
        TILE_BYTES = BLOCKS * KEYS * 128,
        BYTES = Q_BYTES + 2 * STAGES * TILE_BYTES + 1024 /* to begin at a multiple of 1,024 */
    };
};

/* ---- what a warpgroup does with a tile. A thread's sums of 8 columns are four: of row lane / 4 columns 2 ·
 * (lane % 4) and the next, of 8 rows on the same. */

template <typename T, int DIM, int KEYS>
KX_DEVICE void start_scores(float (&s)[KEYS / 2], uint32_t queries, uint32_t keys) {
    typedef sm90_plan<DIM, KEYS> p;
#pragma unroll
    for (int step = 0; step < p::STEPS; step++)
        product_shared<T, KEYS>(s, descriptor(queries + (uint32_t)(step / 4 * ROWS * 128 + step % 4 * 32)),
                                descriptor(keys + (uint32_t)(step / 4 * KEYS * 128 + step % 4 * 32)),
                                step > 0);
    wgmma_commit();
}

template <typename T, int DIM, int KEYS>
KX_DEVICE void start_weighing(uint32_t values, const uint32_t (&weights)[KEYS / 16][4],
                              float (&o)[sm90_plan<DIM, KEYS>::BLOCKS][32]) {
    typedef sm90_plan<DIM, KEYS> p;
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32_t at = values + (uint32_t)(step * 2048);
        product_registers<T, p::N0>(o[0], weights[step], descriptor(at));
        if constexpr (p::BLOCKS > 1)
            product_registers<T, p::N1>(o[1], weights[step], descriptor(at + KEYS * 128));
        if constexpr (p::BLOCKS > 2)
            product_registers<T, p::N2>(o[2], weights[step], descriptor(at + 2 * KEYS * 128));
    }
    wgmma_commit();
}

/* Scores to weights, in place; fade: what the rows' sums so far are to be multiplied with. row: the thread's
 * first. */
template <int KEYS>
KX_DEVICE void soften(float (&s)[KEYS / 2], const struct kx_attention &a, int at, int row, float (&top)[2],
                      float (&sum)[2], float (&fade)[2], float scale) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int seen = a.causal && row + 8 * h + 1 < a.length ? row + 8 * h + 1 : a.length;
        int left = seen - at - 2 * ((int)threadIdx.x % 4); /* of the keys from the thread's first on */
        if (left < KEYS) {
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                if (8 * j >= left) s[4 * j + 2 * h] = -INFINITY;
                if (8 * j + 1 >= left) s[4 * j + 2 * h + 1] = -INFINITY;
            }
        }
        float high = s[2 * h], add = 0;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) high = fmaxf(high, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
        high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
        high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
        high = fmaxf(high * scale, top[h]);
        fade[h] = kx_ex2(top[h] - high);
        top[h] = high;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int c = 4 * j + 2 * h; c < 4 * j + 2 * h + 2; c++)
                add += s[c] = kx_ex2(fmaf(s[c], scale, -high));
        sum[h] = fmaf(sum[h], fade[h], add);
    }
}

template <typename T, int KEYS>
KX_DEVICE void pack(uint32_t (&weights)[KEYS / 16][4], const float (&s)[KEYS / 2]) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            weights[step][r] = kx_pack2<T>(s[8 * step + 2 * r], s[8 * step + 2 * r + 1]);
}

/* ---- the kernel */

template <typename T, int DIM, int KEYS>
static __global__ void __launch_bounds__(THREADS, 1)
    attention_sm90(const struct kx_attention a, const __grid_constant__ CUtensorMap q_map,
                   const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map) {
    typedef sm90_plan<DIM, KEYS> p;
    KX_DYNAMIC_SHARED(unsigned char, raw);
    __shared__ uint64_t full_q, full_k[STAGES], full_v[STAGES], empty_k[STAGES], empty_v[STAGES];
    unsigned char *queries = raw + (1024 - kx_shared_address(raw) % 1024) % 1024;
    unsigned char *keys = queries + p::Q_BYTES, *values = keys + STAGES * p::TILE_BYTES;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int first = (int)blockIdx.x * ROWS, head = (int)blockIdx.y, image = (int)blockIdx.z;
    int past = first + ROWS < a.rows ? first + ROWS : a.rows;
    int seen = a.causal && past < a.length ? past : a.length;
    int tiles = (seen + KEYS - 1) / KEYS;

    if (threadIdx.x == 0) {
        barrier_init(&full_q, 1);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full_k[i], 1);
            barrier_init(&full_v[i], 1);
            barrier_init(&empty_k[i], COMPUTING_WARPS);
            barrier_init(&empty_v[i], COMPUTING_WARPS);
        }
        barrier_inits_seen();
    }
    __syncthreads();

    if (warp / WARPGROUP_WARPS == COPIER) {
        registers_give_up<COPIER_REGISTERS>();
        if (threadIdx.x != 0) return;
        int from = a.kv_index ? a.kv_index[image] : image;
        barrier_expect(&full_q, p::Q_BYTES);
        for (int b = 0; b < p::BLOCKS; b++)
            copy_box(queries + b * ROWS * 128, &q_map, &full_q, 64 * b, head, first, image);
        for (int i = 0; i < tiles; i++) {
            int stage = i % STAGES, round = i / STAGES;
            barrier_wait(&empty_k[stage], phase_empty(round));
            barrier_expect(&full_k[stage], p::TILE_BYTES);
            for (int b = 0; b < p::BLOCKS; b++)
                copy_box(keys + stage * p::TILE_BYTES + b * KEYS * 128, &k_map, &full_k[stage], 64 * b, head,
                         i * KEYS, from);
            barrier_wait(&empty_v[stage], phase_empty(round));
            barrier_expect(&full_v[stage], p::TILE_BYTES);
            for (int b = 0; b < p::BLOCKS; b++)
                copy_box(values + stage * p::TILE_BYTES + b * KEYS * 128, &v_map, &full_v[stage], 64 * b,
                         head, i * KEYS, from);
        }
        return;
    }

    registers_take<COMPUTER_REGISTERS>();
    warp -= WARPGROUP_WARPS; /* of those that compute */
    int mine = 16 * warp;    /* the warp's first row of the block's */
    uint32_t q_at = kx_shared_address(queries) + (uint32_t)(warp / WARPGROUP_WARPS * 64 * 128);
    uint32_t k_at = kx_shared_address(keys), v_at = kx_shared_address(values);
    float o[p::BLOCKS][32], s[KEYS / 2], scale = a.scale * LOG2_E;
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, fade[2];
    uint32_t weights[KEYS / 16][4];
#pragma unroll
    for (int b = 0; b < p::BLOCKS; b++)
#pragma unroll
        for (int c = 0; c < 32; c++) o[b][c] = 0;

    barrier_wait(&full_q, phase_full(0));
    barrier_wait(&full_k[0], phase_full(0));
    wgmma_fence();
    start_scores<T, DIM, KEYS>(s, q_at, k_at);
    wgmma_wait<0>();
    if (lane == 0) barrier_arrive(&empty_k[0]);
    soften<KEYS>(s, a, 0, first + mine + lane / 4, top, sum, fade, scale);
    pack<T, KEYS>(weights, s);
    for (int i = 1; i < tiles; i++) {
        int stage = i % STAGES, before = (i - 1) % STAGES;
        barrier_wait(&full_k[stage], phase_full(i / STAGES));
        wgmma_fence();
        start_scores<T, DIM, KEYS>(s, q_at, k_at + (uint32_t)(stage * p::TILE_BYTES));
        barrier_wait(&full_v[before], phase_full((i - 1) / STAGES));
        wgmma_fence();
        start_weighing<T, DIM, KEYS>(v_at + (uint32_t)(before * p::TILE_BYTES), weights, o);
        wgmma_wait<1>();
        if (lane == 0) barrier_arrive(&empty_k[stage]);
        soften<KEYS>(s, a, i * KEYS, first + mine + lane / 4, top, sum, fade, scale);
        wgmma_wait<0>();
        if (lane == 0) barrier_arrive(&empty_v[before]);
#pragma unroll
        for (int b = 0; b < p::BLOCKS; b++)
#pragma unroll
            for (int c = 0; c < 32; c++) o[b][c] *= fade[c / 2 % 2];
        pack<T, KEYS>(weights, s);
    }
    barrier_wait(&full_v[(tiles - 1) % STAGES], phase_full((tiles - 1) / STAGES));
    wgmma_fence();
    start_weighing<T, DIM, KEYS>(v_at + (uint32_t)((tiles - 1) % STAGES * p::TILE_BYTES), weights, o);
    wgmma_wait<0>();

    /* Out through the place of the warpgroup's queries, permuted as they were, so that whole chunks are
     * written. */
    warpgroup_barrier(warp < WARPGROUP_WARPS ? BARRIER_FIRST_COMPUTER : BARRIER_SECOND_COMPUTER);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float all = sum[h];
        all += __shfl_xor_sync(0xffffffffu, all, 1);
        all += __shfl_xor_sync(0xffffffffu, all, 2);
        float inv = 1 / all;
        int row = mine + 8 * h + lane / 4;
#pragma unroll
        for (int c = 0; c < DIM / 8; c++)
            *(uint32_t *)(queries + c / 8 * ROWS * 128 + row * 128 + (c % 8 ^ row % 8) * 16 + lane % 4 * 4) =
                kx_pack2<T>(o[c / 8][c % 8 * 4 + 2 * h] * inv, o[c / 8][c % 8 * 4 + 2 * h + 1] * inv);
    }
    __syncwarp();
    for (int i = lane; i < 16 * (DIM / 8); i += 32) {
        int row = mine + i / (DIM / 8), c = i % (DIM / 8);
        if (first + row >= a.rows) break;
        T *to = (T *)a.out + ((size_t)image * (size_t)a.rows + (size_t)(first + row)) * a.out_stride +
                (size_t)(head * DIM + 8 * c);
        *(uint4 *)to = *(const uint4 *)(queries + c / 8 * ROWS * 128 + row * 128 + (c % 8 ^ row % 8) * 16);
    }
}

/* ---- the launcher */

/* Columns, heads, rows, images; boxes of 64 columns by `box` rows. image: values from image to image, 0 for
 * as the rows come; images: how many may be asked for. */
static bool describe(CUtensorMap *map, enum kx_store type, const void *v, const struct kx_attention *a,
                     int rows, size_t stride, size_t image, uint64_t images, int box) {
    size_t dim = (size_t)a->dim, dense = (size_t)rows * stride;
    if (image == 0) image = dense;
    if (stride % dim || stride < (size_t)a->heads * dim || image % stride || image < dense) return false;
    const uint64_t sides[4] = {dim, (uint64_t)a->heads, (uint64_t)rows, images};
    const uint64_t strides[3] = {dim * 2, stride * 2, image * 2};
    const uint32_t boxes[4] = {64, 1, (uint32_t)box, 1};
    return tensor_map(map, type, v, sides, strides, boxes);
}

template <typename T, int DIM, int KEYS>
static cudaError_t launch(cudaStream_t stream, enum kx_store type, const struct kx_attention *a) {
    CUtensorMap q, k, v;
    uint64_t images = a->kv_index ? (uint64_t)1 << 30 : (uint64_t)a->n;
    if (!describe(&q, type, a->q, a, a->rows, a->q_stride, 0, (uint64_t)a->n, ROWS) ||
        !describe(&k, type, a->k, a, a->length, a->k_stride, a->kv_image, images, KEYS) ||
        !describe(&v, type, a->v, a, a->length, a->v_stride, a->kv_image, images, KEYS))
        return KX_CUDA_NO;
    dim3 grid((unsigned)((a->rows + ROWS - 1) / ROWS), (unsigned)a->heads, (unsigned)a->n);
    return kx_launch(attention_sm90<T, DIM, KEYS>, grid, dim3(THREADS), (size_t)sm90_plan<DIM, KEYS>::BYTES,
                     stream, *a, q, k, v);
}

extern "C" cudaError_t kx_cuda_attention_sm90(cudaStream_t stream, enum kx_store type,
                                              const struct kx_attention *a) {
    int device, major = 0, minor = 0;
    if (a->n < 1 || a->rows < 1 || a->length < 1 || a->heads < 1) return cudaErrorInvalidValue;
    if (!kx_cuda_attention_aligned(a) || !(a->scale > 0)) return KX_CUDA_NO;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (e != cudaSuccess) return e;
    if (major != 9 || minor != 0) return KX_CUDA_NO;
    switch (a->dim) {
    case 40:
        KX_DISPATCH(type, T, return launch<T, 40, 128>(stream, type, a));
    case 64:
        KX_DISPATCH(type, T, return launch<T, 64, 128>(stream, type, a));
    case 80:
        KX_DISPATCH(type, T, return launch<T, 80, 128>(stream, type, a));
    case 128:
        KX_DISPATCH(type, T, return launch<T, 128, 128>(stream, type, a));
    case 160:
        KX_DISPATCH(type, T, return launch<T, 160, 64>(stream, type, a));
    default:
        return KX_CUDA_NO;
    }
}
