/* The CPU's own inner loops, compiled once for each instruction set (vector.c) and chosen when a context is
 * made. Each works on a stretch that one thread has; who has which stretch is ops.c's business, and never
 * moves a bit. */
#ifndef KILN_KERNELS_CPU_VECTOR_H
#define KILN_KERNELS_CPU_VECTOR_H

#include <stdbool.h>
#include <stddef.h>

#define KX_VECTOR_MAX 16   /* floats */
#define KX_ATTEND_ROWS 4   /* query rows a call */
#define KX_ATTEND_TILE 128 /* keys a tile */

struct kx_vector {
    const char *name; /* "avx2" */
    int width;        /* floats a vector */
    /* Per-channel sums of x and x² over `pixels` rows of c values. */
    void (*sums)(const float *x, size_t pixels, size_t c, float *sum, float *square);
    /* y = x · scale[c] + shift[c], then SiLU if asked for. */
    void (*scale_shift)(const float *x, float *y, size_t pixels, size_t c, const float *scale,
                        const float *shift, bool silu);
    void (*layer_norm)(const float *x, float *y, size_t rows, size_t c, const float *gamma, const float *beta,
                       float eps);
    void (*silu)(const float *x, float *y, size_t n);
    void (*gelu)(float *x, size_t n);
    void (*quick_gelu)(float *x, size_t n);
    /* rows of 2·c values to rows of c: first · gelu(second). */
    void (*geglu)(const float *x, float *y, size_t rows, size_t c);
    /* y[o] = Σ x[i]·w[o·in + i] + b[o] for o in [0, out). */
    void (*product)(const float *x, const float *w, const float *b, float *y, size_t in, size_t out);
    /* One head's keys, `length` rows at `stride`, to dim × padded, padded a multiple of 2 · KX_VECTOR_MAX,
     * zeros behind. */
    void (*pack_keys)(const float *k, size_t stride, int length, int dim, float *packed, size_t padded);
    /* rows ≤ KX_ATTEND_ROWS query rows of one head against all keys. seen: the number of keys that the first
     * row sees; each next row sees `step` more (causal), at most length. scratch: kx_attend_scratch(dim)
     * floats. */
    void (*attend)(const float *q, size_t q_stride, int rows, const float *packed, size_t padded,
                   const float *v, size_t v_stride, int length, int seen, int step, int dim, float scale,
                   float *out, size_t out_stride, float *scratch);
};

static inline size_t kx_attend_scratch(int dim) {
    size_t d = ((size_t)dim + KX_VECTOR_MAX - 1) / KX_VECTOR_MAX * KX_VECTOR_MAX;
    return KX_ATTEND_ROWS * (KX_ATTEND_TILE + 2 * d) + KX_VECTOR_MAX;
}

/* The best that this processor runs. */
const struct kx_vector *kx_vector_choose(void);

extern const struct kx_vector kx_vector_sse2, kx_vector_avx2, kx_vector_avx512;

#endif
