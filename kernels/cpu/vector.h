/* The CPU's own inner loops, compiled once for each instruction set (vector.c, op_attention.c) and chosen when a
 * context is made. Each works on a stretch that one thread has; who has which stretch is op_small.c's business,
 * and never moves a bit. */
#ifndef KILN_KERNELS_CPU_VECTOR_H
#define KILN_KERNELS_CPU_VECTOR_H

#include <stdbool.h>
#include <stddef.h>

/* One head of attention, for a block of at most KX_ATTEND_ROWS query rows. */
#define KX_ATTEND_ROWS 64
#define KX_ATTEND_KEYS 32 /* keys come in blocks of so many, dim × 32 each, the last filled with zeros */
struct kx_head {
    const float *q;
    size_t q_stride;
    int rows, length, dim;
    const float *keys;   /* packed */
    const float *values; /* packed: length × kx_attend_width(dim) */
    int seen, step;      /* the first row sees so many keys, each next one `step` more; at most length */
    float scale;
    float *out;
    size_t out_stride;
    float *scratch; /* kx_attend_scratch(dim) floats */
};

struct kx_vector {
    const char *name; /* "avx2" */
    /* Per-channel sums of x - pivot[c] and of its square over `pixels` rows of c values, added to what is
     * there: 32 pixels in f32, then f64. */
    void (*sums)(const float *x, size_t pixels, size_t c, const float *pivot, double *sum, double *square);
    /* y = x · scale[c] + shift[c], then SiLU if asked for. */
    void (*scale_shift)(const float *x, float *y, size_t pixels, size_t c, const float *scale,
                        const float *shift, bool silu);
    void (*layer_norm)(const float *x, float *y, size_t rows, size_t c, const float *gamma, const float *beta,
                       float eps);
    void (*silu)(const float *x, float *y, size_t n);
    void (*gelu)(float *x, size_t n);
    void (*quick_gelu)(float *x, size_t n);
    /* y = first · gelu(second) */
    void (*geglu)(const float *first, const float *second, float *y, size_t n);
    void (*add)(const float *a, const float *b, float *y, size_t n);
    /* Up to KX_ATTEND_KEYS rows of keys to a packed block. */
    void (*pack_keys)(const float *k, size_t stride, int rows, int dim, float *block);
    void (*pack_values)(const float *v, size_t stride, int rows, int dim, float *packed);
    void (*attend)(const struct kx_head *h);
};

/* Floats of a packed value: whole vectors of the widest set. */
static inline size_t kx_attend_width(int dim) {
    return ((size_t)dim + 15) / 16 * 16;
}
#define KX_ATTEND_TILE 128 /* keys whose scores are at hand at once */
static inline size_t kx_attend_scratch(int dim) {
    return KX_ATTEND_ROWS * ((size_t)dim + kx_attend_width(dim)) + 8 * KX_ATTEND_TILE;
}

/* The best that this processor runs. */
const struct kx_vector *kx_vector_choose(void);

extern const struct kx_vector kx_vector_sse2, kx_vector_avx2, kx_vector_avx512;

/* Of op_attention.c, for vector.c's tables. */
#define KX_ATTEND_DECLARE(isa)                                                                               \
    void kx_pack_keys_##isa(const float *k, size_t stride, int rows, int dim, float *block);                 \
    void kx_pack_values_##isa(const float *v, size_t stride, int rows, int dim, float *packed);              \
    void kx_attend_##isa(const struct kx_head *h);
KX_ATTEND_DECLARE(sse2)
KX_ATTEND_DECLARE(avx2)
KX_ATTEND_DECLARE(avx512)

#endif
