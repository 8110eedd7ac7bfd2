/* A layer with weights: what a convolution and a linear layer have in common. */
#ifndef KILN_KERNELS_CPU_LAYER_H
#define KILN_KERNELS_CPU_LAYER_H

#include "kernels/cpu/context.h"

struct kx_layer;

struct kx_layer_shape {
    int in, out, kernel, stride;
    bool upsample;
    enum kx_act act;
};

KN_MUST_USE int kx_layer_create(struct kx_cpu *ctx, const struct kx_layer_shape *s, const float *weight,
                                const float *bias, struct kx_layer **out, struct kn_err *err);
/* Other weights; its plans are dropped, and the context's age is another. */
KN_MUST_USE int kx_layer_set(struct kx_layer *l, const float *weight, struct kn_err *err);
void kx_layer_destroy(struct kx_layer *l);
/* Of every layer of the context: the plans for all sizes are dropped. */
void kx_layers_forget(struct kx_cpu *ctx);
const struct kx_layer_shape *kx_layer_shape(const struct kx_layer *l);
/* y = act(layer(x) + shift) + residual, or its plan. x: h × w pixels. shift and residual: or NULL. */
void kx_layer_run(struct kx_cpu *ctx, struct kx_layer *l, const float *x, int h, int w, const float *shift,
                  const float *residual, float *y);

#endif
