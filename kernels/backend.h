/* A backend: the functions behind kernels/ops.h, as one table. For backends and ops.c alone. */
#ifndef KILN_KERNELS_BACKEND_H
#define KILN_KERNELS_BACKEND_H

#include "kernels/ops.h"

/* Every function that a backend has: kx_NAME is what the caller calls (kernels/ops.h, where its contract
 * is), kx_cpu_NAME and kx_gpu_NAME are the backends' own, of the same type. The tables are made from these
 * lists, so that none can have a hole: a function that a backend lacks does not link. */

/* The ops that compute: X(name, kind, parameters, arguments). The functions that call through a backend's table
 * (ops.c) and the wrappers that time ops (tests/bench) are made from the list, and the tests (tests/ops,
 * tests/gpu/parity.c) are held against it by a lint.
 *
 * A kind is for whoever counts: CONV, MATMUL and ATTENTION have multiplications worth counting, NORM normalizes x,
 * VALUES computes y in another way, and PICTURE ends or begins the work on an image. */
/* clang-format off */
#define KX_COMPUTING_OPS(X)                                                                                  \
    X(conv, CONV,                                                                                            \
      (struct kx_ctx *ctx, struct kx_conv *c, const struct kx_tensor *x, const struct kx_rows *time_proj,    \
       const struct kx_tensor *residual, struct kx_tensor *y), (ctx, c, x, time_proj, residual, y))          \
    X(linear, MATMUL,                                                                                        \
      (struct kx_ctx *ctx, struct kx_linear *l, const struct kx_tensor *x, const struct kx_tensor *residual, \
       struct kx_tensor *y), (ctx, l, x, residual, y))                                                       \
    X(group_norm, NORM,                                                                                      \
      (struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta, int groups,     \
       float eps, bool silu, struct kx_tensor *y), (ctx, x, gamma, beta, groups, eps, silu, y))              \
    X(layer_norm, NORM,                                                                                      \
      (struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta, float eps,      \
       struct kx_tensor *y), (ctx, x, gamma, beta, eps, y))                                                  \
    X(attention, ATTENTION, (struct kx_ctx *ctx, const struct kx_attention *a), (ctx, a))                    \
    X(concat, VALUES,                                                                                        \
      (struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b, struct kx_tensor *y),       \
      (ctx, a, b, y))                                                                                        \
    X(timestep, VALUES,                                                                                      \
      (struct kx_ctx *ctx, const float *timesteps, int n, bool flip_sin_to_cos, float freq_shift,            \
       struct kx_tensor *y), (ctx, timesteps, n, flip_sin_to_cos, freq_shift, y))                            \
    X(add_silu, VALUES,                                                                                      \
      (struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b, struct kx_tensor *y),       \
      (ctx, a, b, y))                                                                                        \
    X(embed, VALUES,                                                                                         \
      (struct kx_ctx *ctx, const struct kx_table *tokens, const struct kx_table *places, const int32_t *ids, \
       struct kx_tensor *y), (ctx, tokens, places, ids, y))                                                  \
    X(gather, VALUES,                                                                                        \
      (struct kx_ctx *ctx, const struct kx_tensor *x, const int32_t *at, struct kx_tensor *y),               \
      (ctx, x, at, y))                                                                                       \
    X(from_f32, VALUES, (struct kx_ctx *ctx, const float *x, struct kx_tensor *y), (ctx, x, y))              \
    X(to_rgb, PICTURE,                                                                                       \
      (struct kx_ctx *ctx, const struct kx_tensor *x, float *rgb, uint8_t *bytes, int32_t *finite),          \
      (ctx, x, rgb, bytes, finite))                                                                          \
    X(sample_begin, PICTURE, (struct kx_ctx *ctx, const struct kx_sampling *s), (ctx, s))                    \
    X(sample, PICTURE, (struct kx_ctx *ctx, const struct kx_sampling *s), (ctx, s))
/* clang-format on */

/* The rest: the context, its memory, plans, recordings, and layers and tables as things. */
#define KX_CONTEXT_OPS(X)                                                                                    \
    X(ctx_destroy)                                                                                           \
    X(ctx_class)                                                                                             \
    X(ctx_facts)                                                                                             \
    X(ctx_describe)                                                                                          \
    X(ctx_threads)                                                                                           \
    X(ctx_error)                                                                                             \
    X(sync)                                                                                                  \
    X(ctx_lanes)                                                                                             \
    X(ctx_lane)                                                                                              \
    X(ctx_minibatch)                                                                                         \
    X(ctx_each)                                                                                              \
    X(alloc)                                                                                                 \
    X(free)                                                                                                  \
    X(upload)                                                                                                \
    X(download)                                                                                              \
    X(upload_values)                                                                                         \
    X(download_values)                                                                                       \
    X(memory)                                                                                                \
    X(workspace_begin)                                                                                       \
    X(workspace_end)                                                                                         \
    X(workspace_wanted)                                                                                      \
    X(plan_trim)                                                                                             \
    X(plan_generation)                                                                                       \
    X(replay)                                                                                                \
    X(recording_destroy)                                                                                     \
    X(event_create)                                                                                          \
    X(event_destroy)                                                                                         \
    X(event_set)                                                                                             \
    X(event_ms)                                                                                              \
    X(event_wait)                                                                                            \
    X(conv_create)                                                                                           \
    X(conv_set)                                                                                              \
    X(conv_destroy)                                                                                          \
    X(linear_create)                                                                                         \
    X(linear_set)                                                                                            \
    X(linear_destroy)                                                                                        \
    X(quantize)                                                                                              \
    X(amax_record)                                                                                           \
    X(amax)                                                                                                  \
    X(table_create)                                                                                          \
    X(table_destroy)

#define KX_BACKEND_OPS(X) KX_CONTEXT_OPS(X) KX_COMPUTING_OPS(X)

/* A backend's part of a plan, which kx_plan_begin and kx_plan_end (ops.c) call: between begin and end it
 * notes the largest workspace that an op wants; end allocates it. KN_EOOM, or the first error of an op. */
void kx_workspace_begin(struct kx_ctx *ctx);
KN_MUST_USE int kx_workspace_end(struct kx_ctx *ctx, struct kn_err *err);
size_t kx_workspace_wanted(const struct kx_ctx *ctx); /* bytes that ops have asked for since begin */

struct kx_backend {
#define KX_MEMBER(name, ...) __typeof__(kx_##name) *name;
    KX_BACKEND_OPS(KX_MEMBER)
#undef KX_MEMBER
};

/* The beginning of every backend's context. */
struct kx_ctx {
    const struct kx_backend *backend;
    size_t value_bytes;     /* of the storage type */
    size_t align;           /* of kx_take, bytes */
    struct kx_arena *arena; /* borrowed */
    bool planning;
    bool counting; /* kx_count_begin … kx_count_end: then planning is true as well */
};

/* The beginning of every backend's layer and table. */
struct kx_made {
    const struct kx_backend *backend;
};

#endif
