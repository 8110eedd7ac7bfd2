/* 7: for Hopper, kernels/cuda/op_conv_sm90.cu; not the default until this has been measured. As 6, with
 * wgmma, which takes both operands from shared memory, 64 rows at a time, and TMA, which one thread asks for
 * boxes of x and weights: no thread reckons an address, and padding is what TMA fills with zeros. Blocks stay
 * and take one tile after another, and fetch the next while they finish this.
 *
 * Gain: not measured. */
#include <string.h>

#include "kernels/cuda/launch.h"
#include "tests/bench/cuda/conv.h"

extern "C" cudaError_t conv_7_sm90(cudaStream_t stream, const struct conv_problem *p) {
    struct kx_cuda_gemm g;
    memset(&g, 0, sizeof g);
    g.type = KX_STORE_F16;
    g.n = p->n, g.h = p->h, g.w = p->w, g.in = p->in, g.out = p->out;
    g.kernel = p->kernel, g.stride = 1;
    g.x = p->x, g.weight = p->weight, g.bias = p->bias, g.y = p->y;
    return kx_cuda_conv_sm90(stream, &g);
}
