/* kernels/ops.h: each call to the context's backend, and what is the same for all of them (arenas, planning).
 */
#include "kernels/ops.h"

#include <assert.h>
#include <stdint.h>

#include "kernels/backend.h"

/* ---- the context */

void kx_ctx_destroy(struct kx_ctx *ctx) {
    if (ctx) ctx->backend->destroy(ctx);
}
const char *kx_ctx_class(const struct kx_ctx *ctx) {
    return ctx->backend->name(ctx);
}
const char *kx_ctx_facts(const struct kx_ctx *ctx) {
    return ctx->backend->facts(ctx);
}
void kx_ctx_describe(const struct kx_ctx *ctx, char *out, size_t size) {
    ctx->backend->describe(ctx, out, size);
}
int kx_ctx_threads(const struct kx_ctx *ctx) {
    return ctx->backend->threads(ctx);
}
int kx_ctx_error(struct kx_ctx *ctx, struct kn_err *err) {
    return ctx->backend->error(ctx, err);
}
int kx_sync(struct kx_ctx *ctx, struct kn_err *err) {
    return ctx->backend->sync(ctx, err);
}
size_t kx_value_bytes(const struct kx_ctx *ctx) {
    return ctx->value_bytes;
}
void *kx_at(const struct kx_ctx *ctx, const void *v, size_t values) {
    return (void *)((uintptr_t)v + values * ctx->value_bytes); /* v may be NULL while planning */
}
int kx_ctx_lanes(const struct kx_ctx *ctx, int n, size_t bytes) {
    return ctx->backend->lanes(ctx, n, bytes);
}
struct kx_ctx *kx_ctx_lane(struct kx_ctx *ctx, int lanes, int i) {
    return ctx->backend->lane(ctx, lanes, i);
}
int kx_ctx_minibatch(const struct kx_ctx *ctx, int n) {
    return ctx->backend->minibatch(ctx, n);
}
void kx_ctx_each(struct kx_ctx *ctx, int lanes, int n, kx_images fn, void *arg) {
    ctx->backend->each(ctx, lanes, n, fn, arg);
}

/* ---- memory */

void *kx_alloc(struct kx_ctx *ctx, size_t bytes) {
    return ctx->backend->alloc(ctx, bytes);
}
void kx_free(struct kx_ctx *ctx, void *p) {
    if (p) ctx->backend->free(ctx, p);
}
void kx_upload(struct kx_ctx *ctx, void *to, const void *from, size_t bytes) {
    ctx->backend->upload(ctx, to, from, bytes);
}
void kx_download(struct kx_ctx *ctx, void *to, const void *from, size_t bytes) {
    ctx->backend->download(ctx, to, from, bytes);
}
void kx_upload_values(struct kx_ctx *ctx, void *to, const float *from, size_t n) {
    ctx->backend->upload_values(ctx, to, from, n);
}
void kx_download_values(struct kx_ctx *ctx, float *to, const void *from, size_t n) {
    ctx->backend->download_values(ctx, to, from, n);
}
void kx_memory(struct kx_ctx *ctx, size_t *free_bytes, size_t *total_bytes) {
    ctx->backend->memory(ctx, free_bytes, total_bytes);
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
    ctx->backend->plan_begin(ctx);
}
int kx_plan_end(struct kx_ctx *ctx, struct kn_err *err) {
    assert(ctx->planning);
    ctx->planning = false;
    ctx->arena = NULL;
    return ctx->backend->plan_end(ctx, err);
}
void kx_count_begin(struct kx_ctx *ctx, struct kx_arena *arena) {
    ctx->counting = true;
    kx_plan_begin(ctx, arena);
}
int kx_count_end(struct kx_ctx *ctx, size_t *workspace_bytes, struct kn_err *err) {
    assert(ctx->planning && ctx->counting);
    ctx->planning = ctx->counting = false;
    ctx->arena = NULL;
    *workspace_bytes = ctx->backend->wanted(ctx);
    return kx_ctx_error(ctx, err);
}
void kx_plan_trim(struct kx_ctx *ctx) {
    ctx->backend->plan_trim(ctx);
}
unsigned kx_plan_generation(const struct kx_ctx *ctx) {
    return ctx->backend->plan_generation(ctx);
}
bool kx_planning(const struct kx_ctx *ctx) {
    return ctx->planning;
}
void kx_replay(struct kx_ctx *ctx, struct kx_recording **r, void (*fn)(void *arg), void *arg) {
    ctx->backend->replay(ctx, r, fn, arg);
}
void kx_recording_destroy(struct kx_ctx *ctx, struct kx_recording *r) {
    if (r) ctx->backend->recording_destroy(ctx, r);
}
int kx_event_create(struct kx_ctx *ctx, struct kx_event **out, struct kn_err *err) {
    return ctx->backend->event_create(ctx, out, err);
}
void kx_event_destroy(struct kx_ctx *ctx, struct kx_event *e) {
    if (e) ctx->backend->event_destroy(ctx, e);
}
void kx_event_set(struct kx_ctx *ctx, struct kx_event *e) {
    ctx->backend->event_set(ctx, e);
}
double kx_event_ms(struct kx_ctx *ctx, struct kx_event *from, struct kx_event *to) {
    return ctx->backend->event_ms(ctx, from, to);
}
int kx_event_wait(struct kx_ctx *ctx, struct kx_event *e, int timeout_ms, struct kn_err *err) {
    return ctx->backend->event_wait(ctx, e, timeout_ms, err);
}

/* ---- the ops. A layer or a table knows its backend: it begins with a kx_made. */

static const struct kx_backend *maker(const void *made) {
    return ((const struct kx_made *)made)->backend;
}

int kx_conv_create(struct kx_ctx *ctx, const struct kx_conv_shape *s, const float *weight, const float *bias,
                   struct kx_conv **out, struct kn_err *err) {
    return ctx->backend->conv_create(ctx, s, weight, bias, out, err);
}
int kx_conv_set(struct kx_ctx *ctx, struct kx_conv *c, const float *weight, struct kn_err *err) {
    return ctx->backend->conv_set(ctx, c, weight, err);
}
void kx_conv_destroy(struct kx_conv *c) {
    if (c) maker(c)->conv_destroy(c);
}
void kx_conv(struct kx_ctx *ctx, struct kx_conv *c, const struct kx_tensor *x,
             const struct kx_rows *time_proj, const struct kx_tensor *residual, struct kx_tensor *y) {
    ctx->backend->conv(ctx, c, x, time_proj, residual, y);
}
int kx_linear_create(struct kx_ctx *ctx, int in, int out, enum kx_act act, const float *weight,
                     const float *bias, struct kx_linear **out_linear, struct kn_err *err) {
    return ctx->backend->linear_create(ctx, in, out, act, weight, bias, out_linear, err);
}
int kx_linear_set(struct kx_ctx *ctx, struct kx_linear *l, const float *weight, struct kn_err *err) {
    return ctx->backend->linear_set(ctx, l, weight, err);
}
void kx_linear_destroy(struct kx_linear *l) {
    if (l) maker(l)->linear_destroy(l);
}
void kx_linear(struct kx_ctx *ctx, struct kx_linear *l, const struct kx_tensor *x,
               const struct kx_tensor *residual, struct kx_tensor *y) {
    ctx->backend->linear(ctx, l, x, residual, y);
}
int kx_quantize(struct kx_ctx *ctx, void *layer, const float *weight, float x_max, struct kn_err *err) {
    return ctx->backend->quantize(ctx, layer, weight, x_max, err);
}
int kx_amax_record(struct kx_ctx *ctx, void *layer, bool on, struct kn_err *err) {
    return ctx->backend->amax_record(ctx, layer, on, err);
}
float kx_amax(struct kx_ctx *ctx, void *layer) {
    return ctx->backend->amax(ctx, layer);
}
void kx_group_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                   int groups, float eps, bool silu, struct kx_tensor *y) {
    ctx->backend->group_norm(ctx, x, gamma, beta, groups, eps, silu, y);
}
void kx_layer_norm(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                   float eps, struct kx_tensor *y) {
    ctx->backend->layer_norm(ctx, x, gamma, beta, eps, y);
}
void kx_attention(struct kx_ctx *ctx, const struct kx_attention *a) {
    ctx->backend->attention(ctx, a);
}
void kx_concat(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b,
               struct kx_tensor *y) {
    ctx->backend->concat(ctx, a, b, y);
}
void kx_timestep(struct kx_ctx *ctx, const float *timesteps, int n, bool flip_sin_to_cos, float freq_shift,
                 struct kx_tensor *y) {
    ctx->backend->timestep(ctx, timesteps, n, flip_sin_to_cos, freq_shift, y);
}
void kx_add_silu(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b,
                 struct kx_tensor *y) {
    ctx->backend->add_silu(ctx, a, b, y);
}
int kx_table_create(struct kx_ctx *ctx, int rows, int c, const float *v, struct kx_table **out,
                    struct kn_err *err) {
    return ctx->backend->table_create(ctx, rows, c, v, out, err);
}
void kx_table_destroy(struct kx_table *t) {
    if (t) maker(t)->table_destroy(t);
}
void kx_embed(struct kx_ctx *ctx, const struct kx_table *tokens, const struct kx_table *places,
              const int32_t *ids, struct kx_tensor *y) {
    ctx->backend->embed(ctx, tokens, places, ids, y);
}
void kx_gather(struct kx_ctx *ctx, const struct kx_tensor *x, const int32_t *at, struct kx_tensor *y) {
    ctx->backend->gather(ctx, x, at, y);
}
void kx_from_f32(struct kx_ctx *ctx, const float *x, struct kx_tensor *y) {
    ctx->backend->from_f32(ctx, x, y);
}
void kx_to_rgb(struct kx_ctx *ctx, const struct kx_tensor *x, float *rgb, uint8_t *bytes, int32_t *finite) {
    ctx->backend->to_rgb(ctx, x, rgb, bytes, finite);
}
void kx_sample_begin(struct kx_ctx *ctx, const struct kx_sampling *s) {
    ctx->backend->sample_begin(ctx, s);
}
void kx_sample(struct kx_ctx *ctx, const struct kx_sampling *s) {
    ctx->backend->sample(ctx, s);
}
