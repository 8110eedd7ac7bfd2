/* Loads weights by name into a network's layers. A loader remembers the first failure and which tensors
 * were used, so that loading a network reads as a list of its layers; at the end a tensor that nobody asked
 * for is a failure too. Values become f32 once, in one scratch buffer. Engine-internal; on the thread that
 * loads. */
#ifndef KILN_KERNELS_MODELS_LOAD_H
#define KILN_KERNELS_MODELS_LOAD_H

#include <stdbool.h>

#include "kernels/io/safetensors.h"
#include "kernels/ops.h"

#define KX_TENSOR_NAME_MAX 256
#define KX_FUSED_MAX 4

/* A weight by its name in the file, and the layer that holds it: for those who change weights later
 * (kernels/lora.c, kernels/fp8.c). Several weights may share a layer, their rows below one another (query,
 * key and value). */
struct kx_part {
    char *name;           /* owns; without ".weight" */
    struct kx_conv *conv; /* one of the two; borrowed */
    struct kx_linear *linear;
    int from, rows; /* its rows of the layer */
    int columns;    /* inputs, or inputs × kernel² */
    int kernel;
    bool changed; /* it holds other values than the file (a LoRA is applied) */
};
struct kx_parts {
    struct kx_part *v; /* owns; those of one layer stand together */
    int count, cap;
};
void kx_parts_fini(struct kx_parts *p);

struct kx_loader {
    struct kx_ctx *ctx;
    const struct kx_weights *weights;
    bool *used;     /* a flag a tensor */
    float *scratch; /* the largest tensor so far */
    size_t scratch_floats;
    struct kx_parts *parts; /* where parts are noted, or NULL */
    int rc;                 /* the first failure; later calls do nothing */
    struct kn_err *err;     /* its text */
};

/* A failure is noted, as in all that follows; kx_loader_finish() tells of it. */
void kx_loader_init(struct kx_loader *l, struct kx_ctx *ctx, const struct kx_weights *w, struct kn_err *err);
/* Tensors whose names begin with one of the prefixes (a NULL-terminated list) belong to a part that is not
 * run. */
void kx_loader_ignore(struct kx_loader *l, const char *const *prefixes);
/* The first failure, or KN_EPARSE with the name of a tensor that nothing uses. Frees what the loader has. */
KN_MUST_USE int kx_loader_finish(struct kx_loader *l);

/* Notes a failure (the first counts). */
void kx_loader_fail(struct kx_loader *l, int code, const char *fmt, ...) KN_PRINTF(3, 4);
/* calloc that notes its failure. */
void *kx_loader_alloc(struct kx_loader *l, size_t count, size_t size);

/* In the functions below a layer's name is prefix followed by name; its tensors have ".weight" or ".bias"
 * behind it. */

/* Two vectors of c values: what a norm is. */
struct kx_norm {
    float *gamma, *beta; /* own; in the context's memory */
};
void kx_load_norm(struct kx_loader *l, const char *prefix, const char *name, int c, struct kx_norm *out);
void kx_norm_fini(struct kx_ctx *ctx, struct kx_norm *n);

/* An embedding: a table of `rows` rows. */
void kx_load_table(struct kx_loader *l, const char *prefix, const char *name, int rows, int columns,
                   struct kx_table **out);

void kx_load_conv(struct kx_loader *l, const char *prefix, const char *name, const struct kx_conv_shape *s,
                  struct kx_conv **out);
/* The same with the weights multiplied by `factor`; the bias is not. */
void kx_load_conv_scaled(struct kx_loader *l, const char *prefix, const char *name,
                         const struct kx_conv_shape *s, float factor, struct kx_conv **out);

/* Loads `count` linear layers with the same input, each with `out` rows, as one layer with count · out
 * rows. In the file a matrix may be a 1×1 convolution. */
void kx_load_linear(struct kx_loader *l, const char *prefix, const char *const *names, int count, int in,
                    int out, bool bias, enum kx_act act, struct kx_linear **out_linear);

#endif
