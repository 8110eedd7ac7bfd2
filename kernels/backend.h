/* What a backend is: the functions behind kernels/ops.h, whose contracts they have. For backends and ops.c
 * alone. */
#ifndef KILN_KERNELS_BACKEND_H
#define KILN_KERNELS_BACKEND_H

#include "kernels/ops.h"

struct kx_backend {
    void (*destroy)(struct kx_ctx *ctx);
    const char *(*name)(const struct kx_ctx *ctx);
    const char *(*facts)(const struct kx_ctx *ctx);
    void (*describe)(const struct kx_ctx *ctx, char *out, size_t size);
    int (*threads)(const struct kx_ctx *ctx);
    int (*error)(struct kx_ctx *ctx, struct kn_err *err);
    int (*sync)(struct kx_ctx *ctx, struct kn_err *err);
    int (*lanes)(const struct kx_ctx *ctx, int n, size_t bytes);
    struct kx_ctx *(*lane)(struct kx_ctx *ctx, int lanes, int i);
    int (*minibatch)(const struct kx_ctx *ctx, int n);
    void (*each)(struct kx_ctx *ctx, int lanes, int n, kx_images fn, void *arg);

    void *(*alloc)(struct kx_ctx *ctx, size_t bytes);
    void (*free)(struct kx_ctx *ctx, void *p);
    void (*upload)(struct kx_ctx *ctx, void *to, const void *from, size_t bytes);
    void (*download)(struct kx_ctx *ctx, void *to, const void *from, size_t bytes);
    void (*upload_values)(struct kx_ctx *ctx, void *to, const float *from, size_t n);
    void (*download_values)(struct kx_ctx *ctx, float *to, const void *from, size_t n);
    void (*memory)(struct kx_ctx *ctx, size_t *free_bytes, size_t *total_bytes);

    void (*plan_begin)(struct kx_ctx *ctx); /* what is the backend's own; the rest is ops.c's */
    int (*plan_end)(struct kx_ctx *ctx, struct kn_err *err);
    size_t (*wanted)(const struct kx_ctx *ctx); /* workspace, by the ops since plan_begin */
    void (*plan_trim)(struct kx_ctx *ctx);
    unsigned (*plan_generation)(const struct kx_ctx *ctx);
    void (*replay)(struct kx_ctx *ctx, struct kx_recording **r, void (*fn)(void *arg), void *arg);
    void (*recording_destroy)(struct kx_ctx *ctx, struct kx_recording *r);
    int (*event_create)(struct kx_ctx *ctx, struct kx_event **out, struct kn_err *err);
    void (*event_destroy)(struct kx_ctx *ctx, struct kx_event *e);
    void (*event_set)(struct kx_ctx *ctx, struct kx_event *e);
    double (*event_ms)(struct kx_ctx *ctx, struct kx_event *from, struct kx_event *to);
    int (*event_wait)(struct kx_ctx *ctx, struct kx_event *e, int timeout_ms, struct kn_err *err);

    int (*conv_create)(struct kx_ctx *ctx, const struct kx_conv_shape *s, const float *weight,
                       const float *bias, struct kx_conv **out, struct kn_err *err);
    int (*conv_set)(struct kx_ctx *ctx, struct kx_conv *c, const float *weight, struct kn_err *err);
    void (*conv_destroy)(struct kx_conv *c);
    void (*conv)(struct kx_ctx *ctx, struct kx_conv *c, const struct kx_tensor *x,
                 const struct kx_rows *time_proj, const struct kx_tensor *residual, struct kx_tensor *y);
    int (*linear_create)(struct kx_ctx *ctx, int in, int out, enum kx_act act, const float *weight,
                         const float *bias, struct kx_linear **out_linear, struct kn_err *err);
    int (*linear_set)(struct kx_ctx *ctx, struct kx_linear *l, const float *weight, struct kn_err *err);
    void (*linear_destroy)(struct kx_linear *l);
    void (*linear)(struct kx_ctx *ctx, struct kx_linear *l, const struct kx_tensor *x,
                   const struct kx_tensor *residual, struct kx_tensor *y);
    int (*quantize)(struct kx_ctx *ctx, void *layer, const float *weight, float x_max, struct kn_err *err);
    int (*amax_record)(struct kx_ctx *ctx, void *layer, bool on, struct kn_err *err);
    float (*amax)(struct kx_ctx *ctx, void *layer);
    void (*group_norm)(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                       int groups, float eps, bool silu, struct kx_tensor *y);
    void (*layer_norm)(struct kx_ctx *ctx, const struct kx_tensor *x, const float *gamma, const float *beta,
                       float eps, struct kx_tensor *y);
    void (*attention)(struct kx_ctx *ctx, const struct kx_attention *a);
    void (*concat)(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b,
                   struct kx_tensor *y);
    void (*timestep)(struct kx_ctx *ctx, const float *timesteps, int n, bool flip_sin_to_cos,
                     float freq_shift, struct kx_tensor *y);
    void (*add_silu)(struct kx_ctx *ctx, const struct kx_tensor *a, const struct kx_tensor *b,
                     struct kx_tensor *y);
    int (*table_create)(struct kx_ctx *ctx, int rows, int c, const float *v, struct kx_table **out,
                        struct kn_err *err);
    void (*table_destroy)(struct kx_table *t);
    void (*embed)(struct kx_ctx *ctx, const struct kx_table *tokens, const struct kx_table *places,
                  const int32_t *ids, struct kx_tensor *y);
    void (*gather)(struct kx_ctx *ctx, const struct kx_tensor *x, const int32_t *at, struct kx_tensor *y);
    void (*from_f32)(struct kx_ctx *ctx, const float *x, struct kx_tensor *y);
    void (*to_rgb)(struct kx_ctx *ctx, const struct kx_tensor *x, float *rgb, uint8_t *bytes,
                   int32_t *finite);
    void (*sample_begin)(struct kx_ctx *ctx, const struct kx_sampling *s);
    void (*sample)(struct kx_ctx *ctx, const struct kx_sampling *s);
};

/* The beginning of every backend's context. */
struct kx_ctx {
    const struct kx_backend *backend;
    size_t value_bytes;     /* of the storage type */
    size_t align;           /* of kx_take, bytes */
    struct kx_arena *arena; /* borrowed */
    bool planning;
    bool counting; /* then planning too */
};

/* The beginning of every backend's layer and table. */
struct kx_made {
    const struct kx_backend *backend;
};

#endif
