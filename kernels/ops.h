/* The operations that the networks are made of: one contract, one implementation a backend (cpu/).
 *
 * A tensor is n images of h × w pixels of c channels, f32, dense, channels last; a sequence is n × 1 × length
 * × width. The set is cut where a GPU wants it cut: what can be fused with its neighbour is part of it (bias,
 * time embedding, residual, activation), so that each is one call on either backend.
 *
 * Planning. A network's forward function runs twice over the same code: first with the context planning, when
 * ops compute nothing but make their primitives and say how much workspace they want, and memory is only
 * counted; then for real, when nothing is allocated. kx_plan_begin … kx_plan_end encloses the first.
 *
 * Errors stick to the context (kx_ctx_error): ops return nothing, and forward functions ask once at their
 * end.
 *
 * Same bits: an op's result for one image depends on neither n nor the number of threads. A network gets this
 * for n by running its images one after another, each on a lane: a context of its own with one thread, where
 * there are as many images as threads (no barrier is crossed then), or one after another on all threads. */
#ifndef KILN_KERNELS_OPS_H
#define KILN_KERNELS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct kx_ctx;

/* ---- the context: threads, workspace, arena */

/* threads: 0 means all cores that this process may use. */
KN_MUST_USE int kx_ctx_create(int threads, struct kx_ctx **out, struct kn_err *err);
void kx_ctx_destroy(struct kx_ctx *ctx);            /* NULL is fine; after everything that was made from it */
const char *kx_ctx_class(const struct kx_ctx *ctx); /* "cpu-avx2" */
const char *
kx_ctx_facts(const struct kx_ctx *ctx); /* versions and whatever else of the backend can move a bit */
void kx_ctx_describe(const struct kx_ctx *ctx, char *out, size_t size); /* "AMD EPYC, 2 threads" */
int kx_ctx_threads(const struct kx_ctx *ctx);
/* Whether what is pending failed: 0 or KN_E… with the text; clears it. */
KN_MUST_USE int kx_ctx_error(struct kx_ctx *ctx, struct kn_err *err);

/* How n images are run: the number of lanes (1: one after another on all threads), and the i-th lane's
 * context. Lanes are the context's; lane 0 of 1 is the context itself. `bytes` is what an image takes in the
 * arena. */
int kx_ctx_lanes(const struct kx_ctx *ctx, int n, size_t bytes);
struct kx_ctx *kx_ctx_lane(struct kx_ctx *ctx, int lanes, int i);
/* Calls fn(arg, lane's context, i) for i < n on `lanes` lanes; images i, i + lanes, … share a lane. */
void kx_ctx_each(struct kx_ctx *ctx, int lanes, int n, void (*fn)(void *arg, struct kx_ctx *lane, int i),
                 void *arg);

/* An arena is a network's memory for its activations: one stretch a lane, used as a stack. */
struct kx_arena {
    float *base;
    size_t used, peak, size; /* floats */
};
/* Aligned to 64 bytes; while planning it only counts, and the pointer must not be followed. */
float *kx_take(struct kx_ctx *ctx, size_t floats);
size_t kx_mark(const struct kx_ctx *ctx);
void kx_release(struct kx_ctx *ctx, size_t mark);

/* Between begin and end ops plan on ctx. The arena's peak is what a run on it needs. */
void kx_plan_begin(struct kx_ctx *ctx, struct kx_arena *arena);
/* Gives the context the workspace that was asked for. KN_EOOM or the first error of an op. */
KN_MUST_USE int kx_plan_end(struct kx_ctx *ctx, struct kn_err *err);
/* Plans are kept, so that a shape that comes again costs nothing. A farm renders any size that it is asked
 * for, so they must not pile up: where they are too many, trim drops those of all shapes, and age gives
 * another number: what was planned at an earlier age is planned again. Not between a plan and its runs. */
void kx_plan_trim(struct kx_ctx *ctx);
unsigned kx_plan_age(const struct kx_ctx *ctx);
bool kx_planning(const struct kx_ctx *ctx);
void kx_use(struct kx_ctx *ctx,
            struct kx_arena *arena); /* the arena that kx_take takes from, from now on; borrowed */
KN_MUST_USE int kx_arena_init(struct kx_arena *a, size_t floats);
void kx_arena_fini(struct kx_arena *a);

struct kx_tensor {
    float *v;
    int n, h, w, c;
};
static inline size_t kx_count(const struct kx_tensor *t) {
    return (size_t)t->n * (size_t)t->h * (size_t)t->w * (size_t)t->c;
}
struct kx_tensor kx_tensor_take(struct kx_ctx *ctx, int n, int h, int w, int c);

/* ---- convolution: y = conv(up(x)) + bias + shift + residual
 *
 * Weights OIHW as PyTorch has them, copied and re-laid. Padding k/2 on every side. Accumulator f32. Tolerance
 * against an f64 sum: 1e-5 of the output's norm. */
struct kx_conv;
struct kx_conv_shape {
    int in, out, kernel, stride;
    bool upsample; /* x is doubled in both directions first (nearest) */
};
KN_MUST_USE int kx_conv_create(struct kx_ctx *ctx, const struct kx_conv_shape *s, const float *weight,
                               const float *bias, struct kx_conv **out,
                               struct kn_err *err); /* bias: NULL for none */
void kx_conv_destroy(struct kx_conv *c);
/* x->n is 1. shift: out values to add to every pixel (the time embedding), or NULL. residual: y's shape, or
 * NULL; it may be y itself. x and y must not overlap. */
void kx_conv(struct kx_ctx *ctx, struct kx_conv *c, const struct kx_tensor *x, const float *shift,
             const struct kx_tensor *residual, struct kx_tensor *y);

/* ---- linear: y = act(x · Wᵀ + bias) + residual
 *
 * Weights out × in, copied and re-laid. GEGLU: out counts both halves, y has out / 2 channels: first ·
 * gelu(second). */
enum kx_act { KX_ACT_NONE, KX_ACT_SILU, KX_ACT_GELU, KX_ACT_QUICK_GELU, KX_ACT_GEGLU };
struct kx_linear;
KN_MUST_USE int kx_linear_create(struct kx_ctx *ctx, int in, int out, enum kx_act act, const float *weight,
                                 const float *bias, struct kx_linear **out_linear, struct kn_err *err);
void kx_linear_destroy(struct kx_linear *l);
/* Each pixel is a row; x->n is 1. residual: y's shape, or NULL, may be y itself; not with GEGLU. */
void kx_linear(struct kx_ctx *ctx, struct kx_linear *l, const struct kx_tensor *x,
               const struct kx_tensor *residual, struct kx_tensor *y);

/* ---- norms */

/* GroupNorm over each image's pixels and group of channels, then SiLU if asked for. y may be x. Sums: f32
 * over 32 pixels, f64 beyond. */
void kx_group_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                   int groups, float eps, bool silu, struct kx_tensor *y);
/* LayerNorm of each pixel's channels. y may be x. */
void kx_layer_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                   float eps, struct kx_tensor *y);

/* ---- attention: softmax(q · kᵀ · scale) · v, head by head
 *
 * q: one image's rows of heads × dim values at `q_stride`; so k and v (`length` rows of them) and out. No
 * score matrix in memory: keys go by in tiles with a running maximum. `causal`: row i sees keys 0 … i. */
struct kx_attention {
    const float *q, *k, *v;
    float *out;
    size_t q_stride, k_stride, v_stride, out_stride; /* floats from row to row */
    int rows, length, heads, dim;
    float scale;
    bool causal;
};
void kx_attention(struct kx_ctx *ctx, const struct kx_attention *a);

/* ---- the small ones */

/* Channels of a, then channels of b. */
void kx_concat(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b, struct kx_tensor *y);
/* Sinusoidal embedding of one timestep into dim values (dim even): Ho et al. 2020 as diffusers'
 * get_timestep_embedding has it. */
void kx_timestep(struct kx_ctx *ctx, float timestep, int dim, bool flip_sin_to_cos, float freq_shift,
                 float *out);
void kx_silu(struct kx_ctx *ctx, const float *x, float *y, size_t n);
/* y = clamp(x / 2 + 0.5, 0, 1) for the three colours. NaN stays NaN. */
void kx_to_rgb(struct kx_ctx *ctx, const struct kx_tensor *x, float *rgb);

#endif
