/* GroupNorm in a cluster of blocks (Hopper and later; compiled for sm_90a): one pass over global memory where
 * an image's slice does not fit in one block's shared memory: 2, 4 or 8 neighbouring blocks hold it together,
 * a stretch of pixels each, and read each other's statistics through distributed shared memory. Formula and
 * statistics: op_norm.cu.
 *
 * Geometry: the smallest cluster whose blocks hold at most 80 KiB (two blocks a multiprocessor), else 8
 * blocks of up to 200 KiB: 64 × 64 pixels of any width of SD1.5 and SDXL, 128 × 128 of 320 channels. By the
 * shape alone. Bytes moved: 4 a value, where op_norm.cu's two passes move 6 as far as L2 does not help.
 *
 * Not the default, and not measured: no machine has run it. The shim has no clusters. */
#include "kernels/cuda/op_norm.cuh"

enum { CLUSTER_MAX = 8, CLUSTER_SLAB_BYTES = 200 << 10 };

/* All threads of the cluster's blocks; what they wrote before is seen after it. */
KX_DEVICE void cluster_barrier(void) {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

/* A value of shared memory as block `rank` of the cluster has it. */
KX_DEVICE float peer(const float *shared, int rank) {
    uint32_t at;
    float v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(at)
                 : "r"(kx_shared_address(shared)), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(at) : "memory");
    return v;
}

template <typename T, int S>
static __global__ void __cluster_dims__(S, 1, 1) __launch_bounds__(THREADS)
    group_cluster(const T *x, const float *__restrict__ gamma, const float *__restrict__ beta, T *y,
                  struct group_shape g) {
    KX_DYNAMIC_SHARED(kx_vec8<T>, slab);
    __shared__ struct stat scratch[THREADS * 8], part[SLICE_MAX], found[SLICE_MAX];
    int width = g.slice / 8, rows = THREADS / width;
    int r = (int)threadIdx.x / width, vector = (int)threadIdx.x % width;
    bool active = r < rows;
    /* a cluster is S blocks in a row, and must be one slice's chunks; piece_of has slices in a row */
    unsigned slices = (unsigned)g.slices, stack = blockIdx.x / S;
    struct norm_piece p = piece_of(&g, (stack / slices * S + blockIdx.x % S) * slices + stack % slices);
    size_t at = p.at + (size_t)vector * 8;
    struct sums s;
    if (active) collect_rows<T, true>(&s, x + at, (size_t)g.c, r, rows, p.pixels, slab + vector, width);
    merge_threads(&g, &s, active, r, vector, rows, p.pixels, scratch, part);
    cluster_barrier();
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    for (int q = warp; q < g.slice / g.each; q += WARPS) {
        struct stat t = {0, 0};
        if (lane < S) {
            t.mean = peer(&part[q].mean, lane);
            t.square = peer(&part[q].square, lane);
        }
        t = merge_parts(&g, t);
        if (lane == 0) found[q] = t;
    }
    cluster_barrier(); /* for found, and so that no block leaves while another reads its part */
    if (!active) return;
    struct affine a;
    affine_init(&a, &g, found, p.slice * g.slice, vector, gamma, beta);
    for (int k = r; k < p.pixels; k += rows) {
        kx_vec8<T> v = slab[k * width + vector];
        kx_store8(y + at + (size_t)k * (size_t)g.c, apply(&a, &v, g.silu));
    }
}

/* The slice for a cluster of `blocks` whose blocks hold at most `bytes`; false: there is none. */
static bool cluster_divide(struct group_shape *g, int blocks, int bytes) {
    g->chunk = (g->pixels - 1) / blocks + 1;
    int most = bytes / 2 / g->chunk;
    if (most > THREADS * 8) most = THREADS * 8;
    g->slice = slice_of(g->c, g->each, 16, most, false);
    if (!g->slice) g->slice = slice_of(g->c, g->each, 8, most, false);
    if (!g->slice) return false;
    g->slices = g->c / g->slice;
    g->chunks = g->parts = blocks;
    g->span = g->chunk;
    return true;
}

template <typename T>
static cudaError_t group_cluster_launch(cudaStream_t stream, const T *x, const float *gamma,
                                        const float *beta, T *y, int n, const struct group_shape *g) {
    dim3 grid((unsigned)n * (unsigned)g->slices * (unsigned)g->chunks);
    size_t bytes = (size_t)g->chunk * (size_t)g->slice * sizeof(T);
    void (*kernel)(const T *, const float *, const float *, T *, struct group_shape) =
        g->chunks == 2   ? group_cluster<T, 2>
        : g->chunks == 4 ? group_cluster<T, 4>
                         : group_cluster<T, 8>;
    return kx_launch(kernel, grid, dim3(THREADS), bytes, stream, x, gamma, beta, y, *g);
}

cudaError_t kx_cuda_group_norm_cluster(cudaStream_t stream, enum kx_store type, const void *x,
                                       const float *gamma, const float *beta, void *y, int n, int pixels,
                                       int c, int groups, float eps, bool silu) {
    if (n < 1 || pixels < 1 || groups < 1 || c < 1 || c % groups != 0) return cudaErrorInvalidValue;
    /* with 64 pixels or more no block of 8 is without any */
    if (c % 8 != 0 || pixels < 64 || !aligned16(x, y)) return KX_CUDA_NO;
    struct group_shape g = {};
    g.pixels = pixels;
    g.c = c;
    g.groups = groups;
    g.each = c / groups;
    g.eps = eps;
    g.silu = silu;
    int blocks = 2;
    while (blocks <= CLUSTER_MAX && !cluster_divide(&g, blocks, SLAB_BYTES)) blocks *= 2;
    if (blocks > CLUSTER_MAX && !cluster_divide(&g, CLUSTER_MAX, CLUSTER_SLAB_BYTES)) return KX_CUDA_NO;
    KX_DISPATCH(type, T, return group_cluster_launch(stream, (const T *)x, gamma, beta, (T *)y, n, &g));
}
