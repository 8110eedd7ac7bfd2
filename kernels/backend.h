/* A backend: the functions behind kernels/ops.h, as one table. For backends and ops.c alone. */
#ifndef KILN_KERNELS_BACKEND_H
#define KILN_KERNELS_BACKEND_H

#include "kernels/ops.h"

/* Every function that a backend has: kx_NAME is what the caller calls (kernels/ops.h, where its contract
 * is), kx_cpu_NAME and kx_gpu_NAME are the backends' own, of the same type. The tables are made from these
 * lists, so that none can have a hole: a function that a backend lacks does not link. */

/* The ops that compute. Tests (tests/ops, tests/gpu/parity.c), benchmarks and lints find the ops by this
 * list. */
#define KX_COMPUTING_OPS(X)                                                                                  \
    X(conv)                                                                                                  \
    X(linear)                                                                                                \
    X(group_norm)                                                                                            \
    X(layer_norm)                                                                                            \
    X(attention)                                                                                             \
    X(concat)                                                                                                \
    X(timestep)                                                                                              \
    X(add_silu)                                                                                              \
    X(embed)                                                                                                 \
    X(gather)                                                                                                \
    X(from_f32)                                                                                              \
    X(to_rgb)                                                                                                \
    X(sample_begin)                                                                                          \
    X(sample)

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
#define KX_MEMBER(name) __typeof__(kx_##name) *name;
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
