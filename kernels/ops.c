/* kernels/ops.h: what is the same for every backend (arenas, planning), and the calls that go to the
 * context's backend. */
#include "kernels/ops.h"

#include <assert.h>
#include <stdint.h>

#include "kernels/backend.h"

/* ---- the context */

void kx_ctx_destroy(struct kx_ctx *ctx) {
    if (ctx) ctx->backend->ctx_destroy(ctx);
}
size_t kx_value_bytes(const struct kx_ctx *ctx) {
    return ctx->value_bytes;
}
void *kx_at(const struct kx_ctx *ctx, const void *v, size_t values) {
    return (void *)((uintptr_t)v + values * ctx->value_bytes); /* v may be NULL while planning */
}

/* ---- memory */

void kx_free(struct kx_ctx *ctx, void *p) {
    if (p) ctx->backend->free(ctx, p);
}

int kx_arena_init(struct kx_ctx *ctx, struct kx_arena *a, size_t bytes) {
    *a = (struct kx_arena){.size = bytes, .base = kx_alloc(ctx, bytes)};
    return a->base ? 0 : KN_EOOM;
}

void kx_arena_fini(struct kx_ctx *ctx, struct kx_arena *a) {
    kx_free(ctx, a->base);
    *a = (struct kx_arena){0};
}

void kx_use(struct kx_ctx *ctx, struct kx_arena *arena) {
    ctx->arena = arena;
    arena->used = 0;
}

void *kx_take(struct kx_ctx *ctx, size_t values) {
    struct kx_arena *a = ctx->arena;
    size_t at = a->used;
    a->used += (values * ctx->value_bytes + ctx->align - 1) & ~(ctx->align - 1);
    if (a->used > a->peak) a->peak = a->used;
    if (ctx->planning) return (void *)(uintptr_t)ctx->align; /* never followed */
    assert(a->used <= a->size);
    return (char *)a->base + at;
}

size_t kx_mark(const struct kx_ctx *ctx) {
    return ctx->arena->used;
}

void kx_release(struct kx_ctx *ctx, size_t mark) {
    assert(mark <= ctx->arena->used);
    ctx->arena->used = mark;
}

struct kx_tensor kx_tensor_take(struct kx_ctx *ctx, int n, int h, int w, int c) {
    struct kx_tensor t = {NULL, n, h, w, c};
    t.v = kx_take(ctx, kx_count(&t));
    return t;
}

/* ---- planning and recording */

void kx_plan_begin(struct kx_ctx *ctx, struct kx_arena *arena) {
    assert(!ctx->planning);
    *arena = (struct kx_arena){0};
    ctx->planning = true;
    kx_use(ctx, arena);
    kx_workspace_begin(ctx);
}
int kx_plan_end(struct kx_ctx *ctx, struct kn_err *err) {
    assert(ctx->planning);
    ctx->planning = false;
    ctx->arena = NULL;
    return kx_workspace_end(ctx, err);
}
void kx_count_begin(struct kx_ctx *ctx, struct kx_arena *arena) {
    ctx->counting = true;
    kx_plan_begin(ctx, arena);
}
int kx_count_end(struct kx_ctx *ctx, size_t *workspace_bytes, struct kn_err *err) {
    assert(ctx->planning && ctx->counting);
    ctx->planning = ctx->counting = false;
    ctx->arena = NULL;
    *workspace_bytes = kx_workspace_wanted(ctx);
    return kx_ctx_error(ctx, err);
}
bool kx_planning(const struct kx_ctx *ctx) {
    return ctx->planning;
}
void kx_recording_destroy(struct kx_ctx *ctx, struct kx_recording *r) {
    if (r) ctx->backend->recording_destroy(ctx, r);
}
void kx_event_destroy(struct kx_ctx *ctx, struct kx_event *e) {
    if (e) ctx->backend->event_destroy(ctx, e);
}

/* ---- ends of layers and tables, which know their backend: each begins with a kx_made */

static const struct kx_backend *maker(const void *made) {
    return ((const struct kx_made *)made)->backend;
}

void kx_conv_destroy(struct kx_conv *c) {
    if (c) maker(c)->conv_destroy(c);
}
void kx_linear_destroy(struct kx_linear *l) {
    if (l) maker(l)->linear_destroy(l);
}
void kx_table_destroy(struct kx_table *t) {
    if (t) maker(t)->table_destroy(t);
}

/* ---- calls that go straight to the context's backend: type, name, parameters, arguments */

#define FORWARD(type, name, parameters, arguments)                                                           \
    type kx_##name parameters {                                                                              \
        return ctx->backend->name arguments;                                                                 \
    }

/* The formatter takes these for products. */
/* clang-format off */
FORWARD(const char *, ctx_class, (const struct kx_ctx *ctx), (ctx))
FORWARD(const char *, ctx_facts, (const struct kx_ctx *ctx), (ctx))
FORWARD(void, ctx_describe, (const struct kx_ctx *ctx, char *out, size_t size), (ctx, out, size))
FORWARD(int, ctx_threads, (const struct kx_ctx *ctx), (ctx))
FORWARD(int, ctx_error, (struct kx_ctx *ctx, struct kn_err *err), (ctx, err))
FORWARD(int, sync, (struct kx_ctx *ctx, struct kn_err *err), (ctx, err))
FORWARD(int, ctx_lanes, (const struct kx_ctx *ctx, int n, size_t bytes), (ctx, n, bytes))
FORWARD(struct kx_ctx *, ctx_lane, (struct kx_ctx *ctx, int lanes, int i), (ctx, lanes, i))
FORWARD(int, ctx_minibatch, (const struct kx_ctx *ctx, int n), (ctx, n))
FORWARD(void, ctx_each, (struct kx_ctx *ctx, int lanes, int n, kx_images fn, void *arg),
        (ctx, lanes, n, fn, arg))
FORWARD(void *, alloc, (struct kx_ctx *ctx, size_t bytes), (ctx, bytes))
FORWARD(void, upload, (struct kx_ctx *ctx, void *to, const void *from, size_t bytes), (ctx, to, from, bytes))
FORWARD(void, download, (struct kx_ctx *ctx, void *to, const void *from, size_t bytes),
        (ctx, to, from, bytes))
FORWARD(void, upload_values, (struct kx_ctx *ctx, void *to, const float *from, size_t n), (ctx, to, from, n))
FORWARD(void, download_values, (struct kx_ctx *ctx, float *to, const void *from, size_t n),
        (ctx, to, from, n))
FORWARD(void, memory, (struct kx_ctx *ctx, size_t *free_bytes, size_t *total_bytes),
        (ctx, free_bytes, total_bytes))
FORWARD(void, plan_trim, (struct kx_ctx *ctx), (ctx))
FORWARD(unsigned, plan_generation, (const struct kx_ctx *ctx), (ctx))
FORWARD(void, replay, (struct kx_ctx *ctx, struct kx_recording **r, void (*fn)(void *arg), void *arg),
        (ctx, r, fn, arg))
FORWARD(int, event_create, (struct kx_ctx *ctx, struct kx_event **out, struct kn_err *err), (ctx, out, err))
FORWARD(void, event_set, (struct kx_ctx *ctx, struct kx_event *e), (ctx, e))
FORWARD(double, event_ms, (struct kx_ctx *ctx, struct kx_event *from, struct kx_event *to), (ctx, from, to))
FORWARD(int, event_wait, (struct kx_ctx *ctx, struct kx_event *e, int timeout_ms, struct kn_err *err),
        (ctx, e, timeout_ms, err))
FORWARD(int, conv_create,
        (struct kx_ctx *ctx, const struct kx_conv_shape *s, const float *weight, const float *bias,
         struct kx_conv **out, struct kn_err *err),
        (ctx, s, weight, bias, out, err))
FORWARD(int, conv_set, (struct kx_ctx *ctx, struct kx_conv *c, const float *weight, struct kn_err *err),
        (ctx, c, weight, err))
FORWARD(int, linear_create,
        (struct kx_ctx *ctx, int in, int out, enum kx_act act, const float *weight, const float *bias,
         struct kx_linear **out_linear, struct kn_err *err),
        (ctx, in, out, act, weight, bias, out_linear, err))
FORWARD(int, linear_set, (struct kx_ctx *ctx, struct kx_linear *l, const float *weight, struct kn_err *err),
        (ctx, l, weight, err))
FORWARD(int, quantize,
        (struct kx_ctx *ctx, void *layer, const float *weight, float x_max, struct kn_err *err),
        (ctx, layer, weight, x_max, err))
FORWARD(int, amax_record, (struct kx_ctx *ctx, void *layer, bool on, struct kn_err *err),
        (ctx, layer, on, err))
FORWARD(float, amax, (struct kx_ctx *ctx, void *layer), (ctx, layer))
FORWARD(int, table_create,
        (struct kx_ctx *ctx, int rows, int c, const float *v, struct kx_table **out, struct kn_err *err),
        (ctx, rows, c, v, out, err))
FORWARD(void, workspace_begin, (struct kx_ctx *ctx), (ctx))
FORWARD(int, workspace_end, (struct kx_ctx *ctx, struct kn_err *err), (ctx, err))
FORWARD(size_t, workspace_wanted, (const struct kx_ctx *ctx), (ctx))
#define FORWARD_COMPUTING(name, kind, parameters, arguments) FORWARD(void, name, parameters, arguments)
KX_COMPUTING_OPS(FORWARD_COMPUTING)
/* clang-format on */
