/* The implicit GEMM of op_conv.cu for Hopper: wgmma fed by TMA. Never run on a device: no machine
 * that could was at hand; on the tests' shim its instructions are emulated as they are documented
 * (wgmma.cuh). Not the default.
 *
 * The formula, and how operands lie in global memory: op_conv.cu. Of its shapes this does kernels of odd
 * sides with stride 1 and no upsampling (linear layers are kernels of side 1), channels a multiple of 8;
 * KX_CUDA_NO for the rest and on other devices.
 *
 * Geometry. A block of three warpgroups stays on its multiprocessor and takes one tile of y after another.
 * The first warpgroup's one thread copies: for each tap and each 64 channels one TMA box of x and one of the
 * weights into a ring of stages. The other two multiply: 64 rows each, wgmma m64nBNk16, both operands from
 * shared memory. A tile is BN channels of a patch of 128 pixels: `across` × `down` pixels of each of `images`
 * images. The box of x for tap (ky, kx) is that patch moved by the tap, and what of it is outside of the
 * image TMA fills with zeros: that is the padding, and no address is reckoned by a thread. 64 channels are
 * 128 bytes, the span of TMA's permutation of 16-byte chunks, which wgmma knows.
 *
 *   BN   stages       shared memory, with 20 KiB for y and 1 KiB to begin at a multiple of it
 *   256  4 of 48 KiB  213 KiB
 *   160  5 of 36 KiB  201 KiB
 *   128  6 of 32 KiB  213 KiB
 *
 * Barriers: full[s] counts the copying thread's arrival and the bytes that arrive; empty[s] counts the eight
 * warps that have done with a stage. While a tile is finished the copies of the next go on. Registers: the
 * copying warpgroup gives up all but 40 (setmaxnreg), the others take 232 for 64 × BN sums. No spills.
 *
 * Accumulator: f32 (wgmma's); products tap by tap, 16 channels at a time in ascending order. It is not
 * known if the bits are those of op_conv.cu. An image's bits depend on its own shape alone: each sum is a
 * row's and a channel's, whatever the tile. Tolerance: as op_conv.cu. Gain: not measured. */
#include "kernels/cuda/op_conv.cuh"
#include "kernels/cuda/wgmma.cuh"

enum {
    ROWS = 128, /* of y a tile */
    DEPTH = 64, /* channels a stage */
    THREADS = WARPGROUPS * WARPGROUP_THREADS,
    PITCH = 32 + 8, /* floats of a row of y on its way out */
    OUT_BYTES = COMPUTING_WARPS * 16 * PITCH * 4,
    COPIER_REGISTERS = 40,
    MULTIPLIER_REGISTERS = 232
};

struct sm90_shape {
    int h, w; /* x's and y's pixels */
    int n;
    int across, down, images; /* of a patch: powers of two, 128 in all */
    int patches_x, patches_y, patches_n;
    int taps, kernel, slices; /* slices of 64 channels a tap */
    int tiles_n, tiles;       /* tiles of channels; all tiles */
};

/* ---- the kernel */

struct conv_tile {
    int image, y, x, n; /* the patch's first image and pixel, the first channel */
};
/* Tiles of one patch are neighbours, so that x is read from memory once. */
KX_DEVICE struct conv_tile tile_of(const struct sm90_shape &s, int i, int bn) {
    struct conv_tile t;
    t.n = i % s.tiles_n * bn;
    i /= s.tiles_n;
    t.x = i % s.patches_x * s.across;
    i /= s.patches_x;
    t.y = i % s.patches_y * s.down;
    t.image = i / s.patches_y * s.images;
    return t;
}

template <typename T, int BN, int STAGES>
__global__ void __launch_bounds__(THREADS, 1)
    kx_conv_sm90_kernel(const __grid_constant__ CUtensorMap map_x, const __grid_constant__ CUtensorMap map_w,
                        const struct sm90_shape s, const struct kx_conv_out o) {
    constexpr int BYTES_A = ROWS * 128, BYTES_B = BN * 128, STAGE = BYTES_A + BYTES_B;
    KX_DYNAMIC_SHARED(unsigned char, dynamic);
    __shared__ uint64_t full[STAGES], empty[STAGES];
    /* the permutation counts from a multiple of 1,024 */
    unsigned char *ring = dynamic + (1024 - (kx_shared_address(dynamic) & 1023u)) % 1024;
    const int warpgroup = (int)threadIdx.x / WARPGROUP_THREADS;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], COMPUTING_WARPS);
        }
        barrier_inits_seen();
    }
    __syncthreads();

    int stage = 0, round = 0; /* round: how often the ring has gone round */
    if (warpgroup == COPIER) {
        registers_give_up<COPIER_REGISTERS>();
        if (threadIdx.x != 0) return;
        for (int i = (int)blockIdx.x; i < s.tiles; i += (int)gridDim.x) {
            const struct conv_tile t = tile_of(s, i, BN);
            for (int tap = 0; tap < s.taps; tap++) {
                const int ky = tap / s.kernel, kx = tap - ky * s.kernel;
                for (int c = 0; c < s.slices; c++) {
                    barrier_wait(&empty[stage], phase_empty(round));
                    barrier_expect(&full[stage], STAGE);
                    unsigned char *to = ring + stage * STAGE;
                    copy_box(to, &map_x, &full[stage], c * DEPTH, t.x + kx - s.kernel / 2,
                             t.y + ky - s.kernel / 2, t.image);
                    copy_box(to + BYTES_A, &map_w, &full[stage], c * DEPTH, tap, t.n, 0);
                    if (++stage == STAGES) stage = 0, round++;
                }
            }
        }
        return;
    }

    registers_take<MULTIPLIER_REGISTERS>();
    const int lane = (int)threadIdx.x % 32,
              warp = (int)threadIdx.x / 32 - WARPGROUP_WARPS; /* of those that compute */
    float *own = (float *)(ring + STAGES * STAGE) + warp * 16 * PITCH;
    const int steps = s.taps * s.slices;
    for (int i = (int)blockIdx.x; i < s.tiles; i += (int)gridDim.x) {
        float sum[BN / 2] = {};
        int last = 0;
        for (int step = 0; step < steps; step++) {
            barrier_wait(&full[stage], phase_full(round));
            const unsigned char *from = ring + stage * STAGE;
            const uint64_t a = descriptor(kx_shared_address(from + (warpgroup - FIRST_COMPUTER) * 64 * 128)),
                           b = descriptor(kx_shared_address(from + BYTES_A));
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < DEPTH / 16; k++)
                product_shared<T, BN>(sum, a + (uint64_t)(2 * k), b + (uint64_t)(2 * k), step > 0 || k > 0);
            wgmma_commit();
            /* The products of the stage before are done: it may be filled again. */
            wgmma_wait<1>();
            if (step > 0 && lane == 0) barrier_arrive(&empty[last]);
            last = stage;
            if (++stage == STAGES) stage = 0, round++;
        }
        wgmma_wait<0>();
        if (lane == 0) barrier_arrive(&empty[last]);

        /* A warp has 16 rows, in the registers as mma.sync has them; 32 channels at a time through shared
         * memory. */
        const struct conv_tile t = tile_of(s, i, BN);
#pragma unroll
        for (int part = 0; part < BN / 32; part++) {
            const int row = lane / 4, col = lane % 4 * 2;
            __syncwarp();
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int d = (part * 4 + j) * 4;
                *(float2 *)(own + row * PITCH + j * 8 + col) = make_float2(sum[d], sum[d + 1]);
                *(float2 *)(own + (row + 8) * PITCH + j * 8 + col) = make_float2(sum[d + 2], sum[d + 3]);
            }
            __syncwarp();
#pragma unroll 1
            for (int e = lane; e < 16 * 4; e += 32) {
                const int r = e / 4, col8 = e % 4 * 8;
                /* which pixel of the patch, whose rows lie as TMA writes them */
                const int at = warp * 16 + r, x = t.x + at % s.across, y = t.y + at / s.across % s.down;
                const int image = t.image + at / (s.across * s.down), n = t.n + part * 32 + col8;
                if (x < s.w && y < s.h && image < s.n && n < o.out) {
                    const float4 lo = *(const float4 *)(own + r * PITCH + col8),
                                 hi = *(const float4 *)(own + r * PITCH + col8 + 4);
                    float v[8] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
                    kx_conv_finish<T>(o, (image * s.h + y) * s.w + x, n, v);
                }
            }
        }
    }
}

/* ---- launching */

/* The patch that wastes the fewest pixels of an image; of equals the widest. Of several images only where it
 * holds them whole. By h and w alone. */
static void choose_patch(struct sm90_shape *s) {
    int64_t least = INT64_MAX;
    for (int images = 1; images <= ROWS; images *= 2)
        for (int across = ROWS / images; across >= 1; across /= 2) {
            const int down = ROWS / images / across;
            if (images > 1 && (across < s->w || down < s->h)) continue;
            const int64_t pixels =
                ((int64_t)s->w + across - 1) / across * across * (((int64_t)s->h + down - 1) / down * down);
            if (pixels < least) {
                least = pixels;
                s->across = across, s->down = down, s->images = images;
            }
        }
}

template <typename T, int BN, int STAGES>
static cudaError_t launch(cudaStream_t stream, const struct kx_cuda_gemm *g, struct sm90_shape s,
                          const struct kx_conv_out &o, int multiprocessors) {
    CUtensorMap map_x, map_w;
    const uint64_t in = (uint64_t)g->in, taps = (uint64_t)s.taps;
    const uint64_t x_sides[4] = {in, (uint64_t)s.w, (uint64_t)s.h, (uint64_t)s.n};
    const uint64_t x_strides[3] = {in * 2, in * 2 * x_sides[1], in * 2 * x_sides[1] * x_sides[2]};
    const uint32_t x_box[4] = {DEPTH, (uint32_t)s.across, (uint32_t)s.down, (uint32_t)s.images};
    const uint64_t w_sides[4] = {in, taps, (uint64_t)g->out, 1};
    const uint64_t w_strides[3] = {in * 2, in * 2 * taps, in * 2 * taps * w_sides[2]};
    const uint32_t w_box[4] = {DEPTH, 1, BN, 1};
    const int64_t tiles_n = ((int64_t)g->out + BN - 1) / BN;
    const int64_t tiles = (int64_t)s.patches_x * s.patches_y * s.patches_n * tiles_n;
    if (tiles > INT32_MAX - 1024) return cudaErrorInvalidValue;
    if (!tensor_map(&map_x, g->type, g->x, x_sides, x_strides, x_box) ||
        !tensor_map(&map_w, g->type, g->weight, w_sides, w_strides, w_box))
        return KX_CUDA_NO;
    s.tiles_n = (int)tiles_n;
    s.tiles = (int)tiles;
    const int blocks = s.tiles < multiprocessors ? s.tiles : multiprocessors;
    const size_t shared = 1024 + (size_t)STAGES * (ROWS + BN) * 128 + OUT_BYTES;
    return kx_launch(kx_conv_sm90_kernel<T, BN, STAGES>, dim3((unsigned)blocks), dim3(THREADS), shared,
                     stream, map_x, map_w, s, o);
}

template <typename T>
static cudaError_t with_width(cudaStream_t stream, const struct kx_cuda_gemm *g, const struct sm90_shape &s,
                              const struct kx_conv_out &o, int multiprocessors) {
    /* the fewest columns beyond out; of equals the widest */
    const int64_t of_128 = ((int64_t)g->out + 127) / 128 * 128, of_160 = ((int64_t)g->out + 159) / 160 * 160,
                  of_256 = ((int64_t)g->out + 255) / 256 * 256;
    if (of_256 <= of_160 && of_256 <= of_128) return launch<T, 256, 4>(stream, g, s, o, multiprocessors);
    if (of_160 <= of_128) return launch<T, 160, 5>(stream, g, s, o, multiprocessors);
    return launch<T, 128, 6>(stream, g, s, o, multiprocessors);
}

cudaError_t kx_cuda_conv_sm90(cudaStream_t stream, const struct kx_cuda_gemm *g) {
    struct kx_conv_in p;
    struct kx_conv_out o;
    struct sm90_shape s;
    int device, major, minor, multiprocessors;
    const cudaError_t e = kx_conv_describe(g, &p, &o);
    if (e != cudaSuccess || o.rows == 0) return e;
    if (g->stride != 1 || g->upsample || g->kernel % 2 == 0 || g->in % 8 != 0 || (uintptr_t)g->x % 16 != 0 ||
        (uintptr_t)g->weight % 16 != 0)
        return KX_CUDA_NO;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
        major != 9 || minor != 0)
        return KX_CUDA_NO;

    memset(&s, 0, sizeof s);
    s.n = g->n, s.h = g->h, s.w = g->w;
    s.kernel = g->kernel, s.taps = g->kernel * g->kernel;
    s.slices = (g->in + DEPTH - 1) / DEPTH;
    if (g->kernel == 1) { /* rows, whatever pictures they are of */
        s.n = s.h = 1;
        s.w = o.rows;
        s.across = ROWS, s.down = s.images = 1;
    } else {
        choose_patch(&s);
    }
    s.patches_x = (s.w + s.across - 1) / s.across;
    s.patches_y = (s.h + s.down - 1) / s.down;
    s.patches_n = (s.n + s.images - 1) / s.images;
    return g->type == KX_STORE_F16 ? with_width<__half>(stream, g, s, o, multiprocessors)
                                   : with_width<__nv_bfloat16>(stream, g, s, o, multiprocessors);
}
