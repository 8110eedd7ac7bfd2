/* The code that is compiled once for each instruction set (vector.c, op_norm.c, op_attention.c), as one
 * table a set. The table is chosen by the processor when a context is made (isa.c). */
#ifndef KILN_KERNELS_CPU_VECTOR_H
#define KILN_KERNELS_CPU_VECTOR_H

#include "kernels/ops.h"

struct kx_vector {
    const char *name; /* "avx2" */
    void (*silu)(const float *x, float *y, size_t n);
    void (*gelu)(float *x, size_t n);
    void (*quick_gelu)(float *x, size_t n);
    /* y = first · gelu(second) */
    void (*geglu)(const float *first, const float *second, float *y, size_t n);
    void (*add)(const float *a, const float *b, float *y, size_t n);
    /* Ops of kernels/ops.h that are built for each set as a whole. */
    void (*group_norm)(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                       int groups, float eps, bool silu, struct kx_tensor *y);
    void (*layer_norm)(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                       float eps, struct kx_tensor *y);
    void (*attention)(struct kx_ctx *ctx, const struct kx_attention *a);
};

/* The best that this processor runs. */
const struct kx_vector *kx_vector_choose(void);

extern const struct kx_vector kx_vector_sse2, kx_vector_avx2, kx_vector_avx512;

/* Of op_norm.c and op_attention.c, for vector.c's tables. */
#define KX_ISA_DECLARE(isa)                                                                                  \
    void kx_cpu_group_norm_##isa(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma,          \
                                 const float *beta, int groups, float eps, bool silu, struct kx_tensor *y);  \
    void kx_cpu_layer_norm_##isa(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma,          \
                                 const float *beta, float eps, struct kx_tensor *y);                         \
    void kx_cpu_attention_##isa(struct kx_ctx *ctx, const struct kx_attention *a);
KX_ISA_DECLARE(sse2)
KX_ISA_DECLARE(avx2)
KX_ISA_DECLARE(avx512)

#endif
