/* Which instruction set the CPU's own loops run with (vector.h), and the ops that are built for each set. */
#include "kernels/cpu/context.h"

const struct kx_vector *kx_vector_choose(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &kx_vector_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kx_vector_avx2;
#endif
    return &kx_vector_sse2;
}

void kx_cpu_group_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                       int groups, float eps, bool silu, struct kx_tensor *y) {
    kx_cpu_of(ctx)->vector->group_norm(ctx, x, gamma, beta, groups, eps, silu, y);
}

void kx_cpu_layer_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                       float eps, struct kx_tensor *y) {
    kx_cpu_of(ctx)->vector->layer_norm(ctx, x, gamma, beta, eps, y);
}

void kx_cpu_attention(struct kx_ctx *ctx, const struct kx_attention *a) {
    kx_cpu_of(ctx)->vector->attention(ctx, a);
}
