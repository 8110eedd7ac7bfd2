/* A layer with weights: what a convolution and a linear layer have in common. layer.c makes it, product.c
 * runs it. */
#ifndef KILN_KERNELS_CUDA_LAYER_H
#define KILN_KERNELS_CUDA_LAYER_H

#include "kernels/cuda/context.h"

struct kx_gpu_layer {
    struct kx_made made;          /* first */
    struct kx_gpu_device *device; /* a share */
    uint64_t id;                  /* no other layer of this process has or had it */
    enum kx_store type;
    bool linear; /* kx_linear_create made it */
    struct kx_conv_shape shape;
    enum kx_act act;
    bool interleaved; /* GEGLU: the rows of both halves, as kx_cuda_geglu_row has it */
    void *weight;     /* own: the device's, out × kernel × kernel × in */
    float *bias;      /* own: the device's, in the order of the weights' rows; NULL: none */
    void *bias_value; /* the same in the storage type, for the libraries; own; NULL where it cannot be asked
                         for */
    struct kx_gpu_quantized *quantized; /* owns: its eight-bit operands; NULL: it computes without */
    int32_t
        *amax; /* own: the device's: the largest magnitude of its inputs yet, as bits; NULL: not recorded */
};

/* y = act(layer(x) + time_proj) + residual; while planning, notes the workspace that this wants. time_proj
 * and residual may be NULL. */
void kx_gpu_product(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x,
                    const struct kx_rows *time_proj, const struct kx_tensor *residual, struct kx_tensor *y);
/* quantize.c */
uint8_t kx_gpu_e4m3(float v);
KN_MUST_USE int kx_gpu_quantized_set(struct kx_gpu *g, struct kx_gpu_layer *l, const float *weight,
                                     struct kn_err *err); /* l is quantized */
void kx_gpu_quantized_destroy(
    struct kx_gpu_layer *l); /* the layer computes without, from now on; NULL is fine */
/* At the end of a plan: allocates the scales that the library wants for the rows of a minibatch. */
void kx_gpu_quantized_ready(struct kx_gpu *g);
void kx_gpu_quantized_plan(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x,
                           bool residual);
/* KX_CUDA_NO: not for this shape; the layer then computes in the storage type. */
cudaError_t kx_gpu_quantized_run(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x,
                                 const struct kx_rows *time_proj, const struct kx_tensor *residual,
                                 const struct kx_tensor *y);
/* True if the weights are laid out for the library's product and not for our kernel's. */
bool kx_gpu_layer_plain(const struct kx_gpu *g, int in, int out, enum kx_act act);

#endif
