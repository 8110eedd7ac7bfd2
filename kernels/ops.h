/* The operations that the networks are made of: one contract, two backends (cpu/, cuda/). A context belongs
 * to one backend, and every call goes to it (ops.c, backend.h).
 *
 * A tensor is n images of h × w pixels of c channels, dense, channels last, in the context's memory and its
 * storage type (kx_value_bytes: f32 on the CPU; f16 or bf16 on a GPU, with f32 accumulators); a sequence is
 * n × 1 × length × width. Other data have a type of their own: biases, norms' vectors, latents and
 * schedules are f32 everywhere, indices are i32. The set is cut where a GPU wants it cut: what can be fused
 * with its neighbour is part of it (bias, time embedding, residual, activation), so that each is one call
 * on either backend.
 *
 * Memory. "The context's memory" is the host's on the CPU and the device's on a GPU: kx_alloc, kx_upload and
 * kx_download are the way in and out, and no pointer into it is followed outside of the backend.
 *
 * Planning. A network's forward function runs twice over the same code: first with the context planning, when
 * ops compute nothing but make their primitives and say how much workspace they want, and memory is only
 * counted; then for real, when nothing is allocated and the host waits for nothing. kx_plan_begin …
 * kx_plan_end encloses the first.
 *
 * Errors stick to the context (kx_ctx_error): ops return nothing, and forward functions ask once at their
 * end.
 *
 * Same bits: an op's result for one image depends on neither n, nor its place among the n, nor the number of
 * threads. How images are run is the backend's choice (kx_ctx_each): a CPU takes them one at a time (n is 1
 * in every op), each on a lane, a context of its own with one thread, where there are as many images as
 * threads, or one after another on all threads; a GPU takes all of them in one call. */
#ifndef KILN_KERNELS_OPS_H
#define KILN_KERNELS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/samplers/step.h"

struct kx_ctx;

/* ---- the context: threads or stream, workspace, arena */

/* threads: 0 means all cores that this process may use. */
KN_MUST_USE int kx_cpu_ctx_create(int threads, struct kx_ctx **out, struct kn_err *err);
/* The bytes that a CPU's arenas may take (at first: what is free): what kx_ctx_lanes goes by. A plan is made again
 * when its number of lanes changes, so this changes only while nothing is rendered. */
void kx_cpu_ctx_room(struct kx_ctx *ctx, uint64_t bytes);
uint64_t kx_cpu_ctx_room_get(const struct kx_ctx *ctx);
/* kx_cuda_ctx_create: kernels/cuda/cuda.h */
void kx_ctx_destroy(struct kx_ctx *ctx);            /* NULL is fine; after everything that was made from it */
const char *kx_ctx_class(const struct kx_ctx *ctx); /* "cpu-avx2", "cuda-sm90" */
const char *
kx_ctx_facts(const struct kx_ctx *ctx); /* versions and everything else of the backend that can move a bit */
void kx_ctx_describe(const struct kx_ctx *ctx, char *out, size_t size); /* "AMD EPYC, 2 threads" */
int kx_ctx_threads(const struct kx_ctx *ctx);                           /* 1 on a GPU */
/* Returns the first failure since the last call, 0 or KN_E… with its text, and clears it. KN_EDEVICE stays,
 * since the device is of no use any more. It does not wait for what a GPU still computes; kx_sync does. */
KN_MUST_USE int kx_ctx_error(struct kx_ctx *ctx, struct kn_err *err);
/* Waits until all work that was queued is done; then as kx_ctx_error. */
KN_MUST_USE int kx_sync(struct kx_ctx *ctx, struct kn_err *err);
size_t kx_value_bytes(const struct kx_ctx *ctx);
/* v + `values` values of the storage type. */
void *kx_at(const struct kx_ctx *ctx, const void *v, size_t values);

/* How n images are run: the number of lanes (1: one after another on all threads, or all at once on a GPU),
 * and the i-th lane's context. Lanes are the context's; lane 0 of 1 is the context itself. `bytes` is what an
 * image takes in the arena. */
int kx_ctx_lanes(const struct kx_ctx *ctx, int n, size_t bytes);
struct kx_ctx *kx_ctx_lane(struct kx_ctx *ctx, int lanes, int i);
/* How many of n images one call of kx_ctx_each's function gets: 1 on a CPU, n on a GPU. */
int kx_ctx_minibatch(const struct kx_ctx *ctx, int n);
/* Calls fn(arg, lane's context, first, count) until all i < n were in one [first, first + count), on `lanes`
 * lanes; images i, i + lanes, … share a lane. */
typedef void (*kx_images)(void *arg, struct kx_ctx *lane, int first, int count);
void kx_ctx_each(struct kx_ctx *ctx, int lanes, int n, kx_images fn, void *arg);

/* The context's memory. kx_alloc: NULL when there is none. Copies are in order with the ops; upload has read
 * `from` when it returns, download has filled `to` when it returns (it waits). */
void *kx_alloc(struct kx_ctx *ctx, size_t bytes);
void kx_free(struct kx_ctx *ctx, void *p); /* NULL is fine */
void kx_upload(struct kx_ctx *ctx, void *to, const void *from, size_t bytes);
void kx_download(struct kx_ctx *ctx, void *to, const void *from, size_t bytes);
/* f32 on the host to and from values of the storage type in the context's memory. */
void kx_upload_values(struct kx_ctx *ctx, void *to, const float *from, size_t n);
void kx_download_values(struct kx_ctx *ctx, float *to, const void *from, size_t n);
/* The bytes that kx_alloc could still allocate now, and all that the device has. */
void kx_memory(struct kx_ctx *ctx, size_t *free_bytes, size_t *total_bytes);

/* An arena is a network's memory for its activations, one for each lane, used as a stack. */
struct kx_arena {
    void *base;
    size_t used, peak, size; /* bytes */
};
/* Takes room for values of the storage type from the arena, aligned to 64 bytes (256 on a GPU). While
 * planning it only counts, and the pointer must not be followed. Mark and release free everything that was
 * taken in between. */
void *kx_take(struct kx_ctx *ctx, size_t values);
size_t kx_mark(const struct kx_ctx *ctx);
void kx_release(struct kx_ctx *ctx, size_t mark);

/* Between begin and end ops plan on ctx. The arena's peak is what a run on it needs. */
void kx_plan_begin(struct kx_ctx *ctx, struct kx_arena *arena);
/* Ends planning, and allocates the workspace that the ops asked for. KN_EOOM, or the first error of an op. */
KN_MUST_USE int kx_plan_end(struct kx_ctx *ctx, struct kn_err *err);
/* Planning when nothing is to run: counts the arena, and the workspace that a GPU's own kernels want (0 on
 * a CPU), but not what a library may want. No library is asked for a plan, which may take seconds for each
 * number of images, and no workspace is allocated. Returns the first error of an op. */
void kx_count_begin(struct kx_ctx *ctx, struct kx_arena *arena);
KN_MUST_USE int kx_count_end(struct kx_ctx *ctx, size_t *workspace_bytes, struct kn_err *err);
/* Plans are kept, so that a shape that comes again costs nothing. A farm renders any size that it is asked
 * for, so they must not pile up: where there are too many, trim drops those of all shapes, and the plan
 * generation changes. Whatever was planned or recorded in an earlier generation is planned again. Do not
 * call trim between a plan and its runs. */
void kx_plan_trim(struct kx_ctx *ctx);
unsigned kx_plan_generation(const struct kx_ctx *ctx);
bool kx_planning(const struct kx_ctx *ctx);
void kx_use(struct kx_ctx *ctx,
            struct kx_arena *arena); /* from now on kx_take takes from this arena; borrowed */
KN_MUST_USE int kx_arena_init(struct kx_ctx *ctx, struct kx_arena *a, size_t bytes);
void kx_arena_fini(struct kx_ctx *ctx, struct kx_arena *a);

/* Runs the ops that fn calls. A GPU records them (a CUDA graph) and replays the recording from then on, so
 * fn must call the same ops with the same pointers each time: data that change from run to run lie in the
 * context's memory. *r is NULL before the first time. A recording of an earlier kx_plan_generation is made
 * again. */
struct kx_recording;
void kx_replay(struct kx_ctx *ctx, struct kx_recording **r, void (*fn)(void *arg), void *arg);
void kx_recording_destroy(struct kx_ctx *ctx, struct kx_recording *r); /* NULL is fine */

/* A mark in the order of the ops: kx_event_wait returns when all ops that were called before kx_event_set
 * are done. KN_EDEVICE; KN_ETIMEOUT after timeout_ms. On a CPU they are always done. */
struct kx_event;
KN_MUST_USE int kx_event_create(struct kx_ctx *ctx, struct kx_event **out, struct kn_err *err);
void kx_event_destroy(struct kx_ctx *ctx, struct kx_event *e);
void kx_event_set(struct kx_ctx *ctx, struct kx_event *e);
/* Milliseconds on the device from one mark to another, both of which were waited for; 0 on a CPU. They may be
 * of two contexts of one device. */
double kx_event_ms(struct kx_ctx *ctx, struct kx_event *from, struct kx_event *to);
KN_MUST_USE int kx_event_wait(struct kx_ctx *ctx, struct kx_event *e, int timeout_ms, struct kn_err *err);

struct kx_tensor {
    void *v;
    int n, h, w, c;
};
static inline size_t kx_count(const struct kx_tensor *t) {
    return (size_t)t->n * (size_t)t->h * (size_t)t->w * (size_t)t->c;
}
struct kx_tensor kx_tensor_take(struct kx_ctx *ctx, int n, int h, int w, int c);

/* A gather: a table of rows of the storage type, of which image i takes row index[i], at v + index[i] ·
 * stride values. index is i32 in the context's memory; NULL: image i takes row i. v NULL: there are no
 * rows. */
struct kx_rows {
    const void *v;
    size_t stride;
    const int32_t *index;
};

/* ---- convolution: y = conv(up(x)) + bias + time_proj + residual
 *
 * Weights OIHW as PyTorch has them, copied and re-laid. Padding k/2 on every side. Accumulator f32. Tolerance
 * against an f64 sum: 1e-5 of the output's norm in f32. */
struct kx_conv;
struct kx_conv_shape {
    int in, out, kernel, stride;
    bool upsample; /* x is doubled in both directions first (nearest) */
};
KN_MUST_USE int kx_conv_create(struct kx_ctx *ctx, const struct kx_conv_shape *s, const float *weight,
                               const float *bias, struct kx_conv **out,
                               struct kn_err *err); /* weight, bias: the host's; bias NULL for none */
/* Replaces the weights by others of the same shape; the bias stays. Not while ops run; plans may be dropped
 * (kx_plan_generation). After a failure the weights are undefined. */
KN_MUST_USE int kx_conv_set(struct kx_ctx *ctx, struct kx_conv *c, const float *weight, struct kn_err *err);
void kx_conv_destroy(struct kx_conv *c);
/* time_proj: the projection of the time embedding, `out` values an image, which are added to every pixel;
 * NULL or v NULL for none. residual: of y's shape, or NULL; it may be y itself. x and y must not overlap. */
void kx_conv(struct kx_ctx *ctx, struct kx_conv *c, const struct kx_tensor *x,
             const struct kx_rows *time_proj, const struct kx_tensor *residual, struct kx_tensor *y);

/* ---- linear: y = act(x · Wᵀ + bias) + residual
 *
 * Weights out × in, copied and re-laid. GEGLU: out counts both halves, y has out / 2 channels: first ·
 * gelu(second). */
enum kx_act { KX_ACT_NONE, KX_ACT_SILU, KX_ACT_GELU, KX_ACT_QUICK_GELU, KX_ACT_GEGLU };
struct kx_linear;
KN_MUST_USE int kx_linear_create(struct kx_ctx *ctx, int in, int out, enum kx_act act, const float *weight,
                                 const float *bias, struct kx_linear **out_linear, struct kn_err *err);
/* As kx_conv_set. */
KN_MUST_USE int kx_linear_set(struct kx_ctx *ctx, struct kx_linear *l, const float *weight,
                              struct kn_err *err);
void kx_linear_destroy(struct kx_linear *l);
/* Each pixel is a row. residual: y's shape, or NULL, may be y itself; not with GEGLU. */
void kx_linear(struct kx_ctx *ctx, struct kx_linear *l, const struct kx_tensor *x,
               const struct kx_tensor *residual, struct kx_tensor *y);

/* ---- eight-bit operands (e4m3: 4 bits of exponent, 3 of mantissa), where a device has them
 *
 * `layer` is a kx_conv or a kx_linear. A quantized layer computes Σ x · w with both as e4m3: the weights
 * with a scale for each output, the inputs with one scale, which follows from x_max, the largest magnitude
 * to expect (larger values are clamped). It stays quantized; kx_conv_set and kx_linear_set go on working.
 * weight: the weights that the layer was made with. KN_EUNSUPPORTED: this device or this layer cannot. Plan
 * again afterwards. */
KN_MUST_USE int kx_quantize(struct kx_ctx *ctx, void *layer, const float *weight, float x_max,
                            struct kn_err *err);
/* Calibration. From amax_record(on) to amax_record(off) a layer records the largest magnitude of its
 * inputs, by a pass over them at each run; kx_amax returns it (and waits). Recordings (kx_replay) made
 * before do not record it: make them again. KN_EUNSUPPORTED on a CPU. */
KN_MUST_USE int kx_amax_record(struct kx_ctx *ctx, void *layer, bool on, struct kn_err *err);
float kx_amax(struct kx_ctx *ctx, void *layer);

/* ---- norms. gamma, beta: c f32 values in the context's memory. */

/* GroupNorm over each image's pixels and group of channels, then SiLU if asked for. y may be x. CPU sums: f32
 * over 32 pixels, f64 beyond. */
void kx_group_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                   int groups, float eps, bool silu, struct kx_tensor *y);
/* LayerNorm of each pixel's channels. y may be x. */
void kx_layer_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                   float eps, struct kx_tensor *y);

/* ---- attention: softmax(q · kᵀ · scale) · v, head by head
 *
 * q: an image's `rows` rows of heads × dim values at `q_stride`, images rows · q_stride apart; so out. k and
 * v: `length` rows at k_stride, v_stride of image kv_index[i] (NULL: i; i32 in the context's memory), images
 * kv_image values apart. No score matrix in memory: keys go by in tiles with a running maximum. `causal`: row
 * i sees keys 0 … i. Strides are in values. */
struct kx_attention {
    const void *q, *k, *v;
    void *out;
    size_t q_stride, k_stride, v_stride, out_stride;
    size_t kv_image;
    const int32_t *kv_index;
    int n, rows, length, heads, dim;
    float scale;
    bool causal;
};
void kx_attention(struct kx_ctx *ctx, const struct kx_attention *a);

/* ---- small ops */

/* Channels of a, then channels of b. */
void kx_concat(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b, struct kx_tensor *y);
/* Sinusoidal embeddings of n timesteps (f32, the context's memory) into y's rows of dim values (n × 1 × 1 ×
 * dim, dim even): Ho et al. 2020 as diffusers' get_timestep_embedding has it. */
void kx_timestep(struct kx_ctx *ctx, const float *timesteps, int n, bool flip_sin_to_cos, float freq_shift,
                 struct kx_tensor *y);
/* y[i · b->n + j] = silu(a[i] + b[j]), rows of c values; b NULL: y[i] = silu(a[i]). */
void kx_add_silu(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b,
                 struct kx_tensor *y);
/* A table of `rows` rows of c values, from f32 on the host. */
struct kx_table;
KN_MUST_USE int kx_table_create(struct kx_ctx *ctx, int rows, int c, const float *v, struct kx_table **out,
                                struct kn_err *err);
void kx_table_destroy(struct kx_table *t);
/* y (n × 1 × positions × c): row p of image i is tokens[ids[i · positions + p]] + places[p]. ids: i32, the
 * context's memory. */
void kx_embed(struct kx_ctx *ctx, const struct kx_table *tokens, const struct kx_table *places,
              const int32_t *ids, struct kx_tensor *y);
/* y (n × 1 × 1 × c): row at[i] of image i (i32, the context's memory). */
void kx_gather(struct kx_ctx *ctx, const struct kx_tensor *x, const int32_t *at, struct kx_tensor *y);

/* y = x, f32 in the context's memory, as values of the storage type. */
void kx_from_f32(struct kx_ctx *ctx, const float *x, struct kx_tensor *y);

/* A picture's last step: v = clamp(x / 2 + 0.5, 0, 1) for the three colours as f32 in rgb (NULL for none) and
 * as 8-bit values round(255 v), half to even, in bytes (NULL for none); finite[i] = 0 when a value of image i
 * is NaN (it stays NaN in rgb, and is 0 in bytes), else 1. rgb, bytes, finite: the context's memory. */
void kx_to_rgb(struct kx_ctx *ctx, const struct kx_tensor *x, float *rgb, uint8_t *bytes, int32_t *finite);

/* ---- the sampler's step: guidance and update of n images in one call (formula: kernels/samplers/step.h)
 *
 * All in the context's memory. The step's number k is read from *at, so that the call is the same at each
 * step (kx_replay); kx_sample adds 1 to *at at its end. Image i is at steps[k · n + i]. */
struct kx_sampling {
    int n, rows;                                /* images; rows of the UNet: one or two an image */
    size_t values;                              /* of an image's latents */
    int steps;                                  /* of the table */
    const struct kx_step *table;                /* steps × n */
    const float *guidance;                      /* n */
    const int32_t *row_u, *row_c;               /* n: an image's rows; row_u[i] < 0: no guidance */
    void *pred;                                 /* rows × values: the UNet's output; overwritten */
    void *in;                                   /* rows × values: its input */
    int32_t *time_row;                          /* rows: this step's rows of time_proj, for the UNet */
    const int32_t *time_rows;                   /* steps × rows: time_row at each step */
    float *x, *saved, *history[KX_HISTORY_MAX]; /* n × values each; NULL where no step uses it */
    const float *noise;                         /* n × values, of this step; NULL where no step uses it */
    float *guided;                              /* n × values: m of the formula, for a dump; NULL for none */
    int32_t *at;                                /* 1 */
    int32_t *bad;                               /* n: the first step at which m was not finite, or −1 */
};
/* Before the first step: *at = 0, bad = −1, in = x · in_scale and time_row of step 0. */
void kx_sample_begin(struct kx_ctx *ctx, const struct kx_sampling *s);
/* One step; then `in` and `time_row` are those of the next (past the last step: of the last). */
void kx_sample(struct kx_ctx *ctx, const struct kx_sampling *s);

#endif
