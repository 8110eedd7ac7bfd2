/* Convolution and linear layers as an implicit GEMM on tensor cores, for f16 and bf16.
 *
 *   y[i, p, n] = act(Σ_{ky, kx, c} up(x)[i, p_y·s + ky − k/2, p_x·s + kx − k/2, c] · w[n, ky, kx, c]
 *                    + bias[n] + time_proj[i, n]) + residual[i, p, n]            (p: a pixel of y)
 *
 * x outside of the image is 0; up doubles x (nearest) or is x. GEGLU: channels 2j and 2j + 1 of the sum are a
 * value and its gate, and give y's channel j = value · gelu(gate): the pairs stand side by side
 * (kx_cuda_geglu_row), so that whoever has the one has the other.
 *
 * Layout: x, y, residual NHWC; weights out × k × k × in. Geometry: the GEMM has a row a pixel of y, a column
 * an output channel, and k²·in products a sum. Tiles (rows × columns; warps; what a warp makes; shared memory
 * for four slices of 32 products; registers a thread at most, on sm_80 and sm_90a; no spills):
 *
 *   128×256   8   64×64   96 KiB   236   the widest: reads shared memory least for a product
 *   128×160   8   32×80   72 KiB   182   320 channels in two tiles without waste
 *   128×128   4   64×64   64 KiB   239
 *   64×64     4   32×32   32 KiB   112   images of 64 pixels and fewer; and what is read value by value
 *   128×16    4   32×16   36 KiB    84   the last convolutions, 3 and 4 channels
 *
 * Accumulator: f32, in steps of 16 products in ascending order whatever the tile, so that a value of y
 * depends neither on the tile nor on its place in it; bias, time_proj, activation and residual in f32; one
 * rounding, to nearest even, at the end. Tolerance against an f64 sum of the same inputs: NMSE 1e-6 in f16,
 * 1e-5 in bf16 (it is y's rounding).
 *
 * How the kernel works: op_conv.cuh. Speed: not measured. The choice of tiles is by reckoning, not by
 * measurement. */
#include "kernels/cuda/conv.h"
#include "kernels/cuda/op_conv.cuh"

int kx_cuda_geglu_row(int r, int out) {
    return r % 2 ? out / 2 + r / 2 : r / 2;
}

/* The tile with the fewest columns beyond out; of equals the one that reads shared memory least for a
 * product. */
static enum kx_conv_tile by_columns(int out, bool wide) {
    static const struct {
        int columns;
        enum kx_conv_tile tile;
    } t[] = {{64, KX_CONV_64X64}, {160, KX_CONV_128X160}, {128, KX_CONV_128X128}, {256, KX_CONV_128X256}};
    enum kx_conv_tile best = KX_CONV_64X64;
    int64_t least = INT64_MAX;
    for (int i = 0; i < (wide ? 4 : 3); i++) {
        const int64_t columns = ((int64_t)out + t[i].columns - 1) / t[i].columns * t[i].columns;
        if (columns <= least) {
            least = columns;
            best = t[i].tile;
        }
    }
    return best;
}

enum kx_conv_tile kx_cuda_conv_tile(const struct kx_cuda_gemm *g) {
    if (g->in % 8 != 0 || (uintptr_t)g->x % 16 != 0 || (uintptr_t)g->weight % 16 != 0) return KX_CONV_64X64;
    if (g->out <= 16) return KX_CONV_128X16;
    if (g->kernel == 1) return by_columns(g->out, g->out >= 2048);
    const int64_t pixels = (int64_t)g->h * g->w * (g->upsample ? 4 : 1) / ((int64_t)g->stride * g->stride);
    if (pixels <= 64) return KX_CONV_64X64;
    return by_columns(g->out, pixels >= 4096);
}

template <typename T, int LOAD>
static cudaError_t with_tile(cudaStream_t stream, const struct kx_conv_in &p, const struct kx_conv_out &o,
                             enum kx_conv_tile tile) {
    switch (tile) {
    case KX_CONV_128X256:
        return kx_conv_launch<T, T, 128, 256, 64, 64, 4, LOAD, 1>(stream, p, o);
    case KX_CONV_128X160:
        return kx_conv_launch<T, T, 128, 160, 32, 80, 4, LOAD, 1>(stream, p, o);
    case KX_CONV_128X128:
        return kx_conv_launch<T, T, 128, 128, 64, 64, 4, LOAD, 2>(stream, p, o);
    case KX_CONV_64X64:
        return kx_conv_launch<T, T, 64, 64, 32, 32, 4, LOAD, 3>(stream, p, o);
    case KX_CONV_128X16:
        return kx_conv_launch<T, T, 128, 16, 32, 16, 4, LOAD, 3>(stream, p, o);
    default:
        return cudaErrorInvalidValue;
    }
}

template <typename T>
static cudaError_t with_type(cudaStream_t stream, const struct kx_conv_in &p, const struct kx_conv_out &o,
                             enum kx_conv_tile tile, bool chunks) {
    if (!chunks)
        return tile == KX_CONV_64X64
                   ? kx_conv_launch<T, T, 64, 64, 32, 32, 4, KX_CONV_VALUES, 3>(stream, p, o)
                   : KX_CUDA_NO;
    if (p.kernel == 1 && p.stride == 1 && !p.up) return with_tile<T, KX_CONV_ROWS>(stream, p, o, tile);
    return with_tile<T, KX_CONV_TAPS>(stream, p, o, tile);
}

cudaError_t kx_cuda_conv_with(cudaStream_t stream, const struct kx_cuda_gemm *g, enum kx_conv_tile tile) {
    struct kx_conv_in p;
    struct kx_conv_out o;
    const cudaError_t e = kx_conv_describe(g, &p, &o);
    if (e != cudaSuccess || o.rows == 0) return e;
    const bool chunks = g->in % 8 == 0 && (uintptr_t)g->x % 16 == 0 && (uintptr_t)g->weight % 16 == 0;
    return g->type == KX_STORE_F16 ? with_type<__half>(stream, p, o, tile, chunks)
                                   : with_type<__nv_bfloat16>(stream, p, o, tile, chunks);
}

cudaError_t kx_cuda_conv(cudaStream_t stream, const struct kx_cuda_gemm *g) {
    return kx_cuda_conv_with(stream, g, kx_cuda_conv_tile(g));
}

#if !defined(KX_CUDA_SM90) && !defined(KX_SHIM) /* else op_conv_sm90.cu has it */
cudaError_t kx_cuda_conv_sm90(cudaStream_t, const struct kx_cuda_gemm *) {
    return KX_CUDA_NO;
}
#endif
