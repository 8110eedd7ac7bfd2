/* Which variant computes a layer, and how: the table (table.h) says it by one image's shape, the libraries
 * make their plans while the context plans, and our own kernel does what is left. See layer.h.
 *
 * A choice is made once for a layer, a number of images and a size, and kept: a run looks it up. In the
 * reproducible mode neither the variant nor a library's algorithm depends on the number of images.
 *
 * GEGLU. Our kernel multiplies the halves in its epilogue and wants their rows interleaved; the library wants
 * them apart, and the product is multiplied in a pass of its own. One layout is kept: where a shape's variant
 * does not fit it, our kernel makes the whole product in the workspace, and that pass follows. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/map.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cudnn.h"
#include "kernels/cuda/layer.h"
#include "kernels/cuda/table.h"

enum { LAYOUT_ROWS = 1024, CHOICES_TRIM = 1 << 15 };

struct choice {
    enum kx_variant variant;
    struct kx_lt_plan *lt;   /* borrowed */
    struct kx_dnn_plan *dnn; /* borrowed */
    size_t before;           /* bytes of the workspace for an upsampled x; the rest is the library's */
    size_t bytes;            /* of the workspace, in all */
};

struct key {
    uint64_t layer;
    int32_t n, h, w, flags; /* flags: 1 a time_proj, 2 a residual */
};

bool kx_gpu_layer_plain(const struct kx_gpu *g, int in, int out, enum kx_act act) {
    return act == KX_ACT_GEGLU && g->lt &&
           kx_variant_linear(g->device->variants, in, out, act, LAYOUT_ROWS) == KX_VARIANT_CUBLASLT;
}

static struct key key_of(const struct kx_gpu_layer *l, const struct kx_tensor *x, bool time_proj,
                         bool residual) {
    return (struct key){l->id, x->n, x->h, x->w, (time_proj ? 1 : 0) | (residual ? 2 : 0)};
}

/* ---- choosing */

static int64_t image_pixels(const struct kx_tensor *t) {
    return (int64_t)t->h * t->w;
}

/* The bytes of the workspace that our own kernel wants. */
static size_t own_bytes(const struct kx_gpu_layer *l, const struct kx_tensor *x) {
    if (l->act != KX_ACT_GEGLU || l->interleaved) return 0;
    return 2 * (size_t)x->n * (size_t)image_pixels(x) * (size_t)l->shape.out;
}

static int plan_lt(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x, bool time_proj,
                   bool residual, struct choice *c, struct kn_err *err) {
    struct kx_lt_shape s = {.in = l->shape.in,
                            .out = l->shape.out,
                            .act = l->act,
                            .bias = l->bias,
                            .residual = residual,
                            .image_rows = image_pixels(x)};
    if (!g->lt || time_proj || l->interleaved || (l->bias && !l->bias_value)) return KN_EUNSUPPORTED;
    int rc = kx_lt_plan(g->lt, &s, x->n, !g->reproducible, &c->lt, err);
    if (!rc) c->bytes = kx_lt_scratch_bytes(c->lt);
    return rc;
}

static int plan_dnn(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x, bool time_proj,
                    bool residual, struct choice *c, struct kn_err *err) {
    int scale = l->shape.upsample ? 2 : 1;
    struct kx_dnn_shape s = {.h = scale * x->h,
                             .w = scale * x->w,
                             .in = l->shape.in,
                             .out = l->shape.out,
                             .kernel = l->shape.kernel,
                             .stride = l->shape.stride,
                             .bias = l->bias,
                             .time_proj = time_proj,
                             .residual = residual};
    if (!g->dnn || l->linear || (l->bias && !l->bias_value)) return KN_EUNSUPPORTED;
    int rc = kx_dnn_plan(g->dnn, &s, x->n, !g->reproducible, &c->dnn, err);
    if (rc) return rc;
    if (l->shape.upsample) c->before = (8 * kx_count(x) + KX_GPU_ALIGN - 1) / KX_GPU_ALIGN * KX_GPU_ALIGN;
    c->bytes = c->before + kx_dnn_scratch_bytes(c->dnn);
    return 0;
}

static int choose(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x, bool time_proj,
                  bool residual, const struct kx_tensor *y, struct choice *c, struct kn_err *err) {
    const struct kx_variants *v = g->device->variants;
    *c = (struct choice){
        .variant = l->linear ? kx_variant_linear(v, l->shape.in, l->shape.out, l->act, image_pixels(x))
                             : kx_variant_conv(v, &l->shape, image_pixels(y))};
    int rc = c->variant == KX_VARIANT_CUBLASLT ? plan_lt(g, l, x, time_proj, residual, c, err)
             : c->variant == KX_VARIANT_CUDNN  ? plan_dnn(g, l, x, time_proj, residual, c, err)
                                               : KN_EUNSUPPORTED;
    /* too many images for the layer's algorithm (some count values in 32 bits): the caller tries fewer, as it
     * does when memory is short */
    if (rc == KN_ELIMIT) rc = KN_EOOM;
    if (rc == KN_EUNSUPPORTED) {
        *c = (struct choice){.variant = c->variant == KX_VARIANT_SM90 && kx_gpu_has_sm90(g->device)
                                            ? KX_VARIANT_SM90
                                            : KX_VARIANT_OWN};
        rc = 0;
    }
    /* room for our own kernel in any case: a pointer may turn out not to be aligned as the library asks */
    if (own_bytes(l, x) > c->bytes) c->bytes = own_bytes(l, x);
    return rc;
}

static void plan(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x, bool time_proj,
                 bool residual, const struct kx_tensor *y) {
    struct key k = key_of(l, x, time_proj, residual);
    struct choice *c = kn_map_get(g->choices, &k, sizeof k);
    struct kn_err err = {0};
    if (!c && kx_gpu_enter(g)) {
        int rc = KN_ENOMEM;
        if (!(c = malloc(sizeof *c)))
            kx_gpu_fail(g, rc, "out of memory");
        else if ((rc = choose(g, l, x, time_proj, residual, y, c, &err)))
            kx_gpu_fail(g, rc, "%s", err.text);
        else if ((rc = kn_map_put(g->choices, &k, sizeof k, c)))
            kx_gpu_fail(g, rc, "a plan: %s", kn_err_words(rc));
        if (rc) {
            free(c);
            return;
        }
    }
    if (c) kx_gpu_want(g, c->bytes);
}

void kx_gpu_choices_forget(struct kx_gpu *g) {
    size_t at = 0;
    for (struct choice *c; g->choices && (c = kn_map_next(g->choices, &at));) free(c);
    kn_map_destroy(g->choices);
    g->choices = NULL;
}

void kx_gpu_plan_trim(struct kx_ctx *ctx) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    if (kn_map_count(g->choices) <= CHOICES_TRIM || !kx_gpu_drain(g, "dropping plans")) return;
    struct kn_map *empty = kn_map_create(KX_GPU_CHOICES_MAX);
    if (!empty) return; /* another time */
    kx_gpu_choices_forget(g);
    g->choices = empty;
    if (g->lt) kx_lt_trim(g->lt);
    if (g->dnn) kx_dnn_trim(g->dnn);
    g->plan_generation++;
}

/* ---- running */

/* Ours: for all devices, or for Hopper and, what that one refuses, for all. */
static cudaError_t launch(struct kx_gpu *g, const struct choice *c, const struct kx_cuda_gemm *p) {
    cudaError_t e = KX_CUDA_NO;
#ifdef KX_CUDA_SM90
    if (c->variant == KX_VARIANT_SM90) e = kx_cuda_conv_sm90(g->stream, p);
#else
    (void)c;
#endif
    return e == KX_CUDA_NO ? kx_cuda_conv(g->stream, p) : e;
}

static cudaError_t run_own(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct choice *c,
                           const struct kx_tensor *x, const struct kx_rows *time_proj,
                           const struct kx_tensor *residual, const struct kx_tensor *y) {
    bool apart = l->act == KX_ACT_GEGLU && !l->interleaved;
    struct kx_cuda_gemm p = {.type = l->type,
                             .n = x->n,
                             .h = x->h,
                             .w = x->w,
                             .in = l->shape.in,
                             .out = l->shape.out,
                             .kernel = l->shape.kernel,
                             .stride = l->shape.stride,
                             .upsample = l->shape.upsample,
                             .x = x->v,
                             .weight = l->weight,
                             .bias = l->bias,
                             .act = apart ? KX_ACT_NONE : l->act,
                             .residual = residual ? residual->v : NULL,
                             .y = apart ? g->workspace : y->v};
    if (time_proj) p.time_proj = *time_proj;
    cudaError_t e = launch(g, c, &p);
    if (e == cudaSuccess && apart)
        e = kx_cuda_geglu(g->stream, l->type, g->workspace, x->n * image_pixels(x), y->c, y->v);
    return e;
}

static cudaError_t run_lt(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct choice *c,
                          const struct kx_tensor *x, const struct kx_tensor *residual,
                          const struct kx_tensor *y) {
    struct kx_lt_call call = {.x = x->v,
                              .weight = l->weight,
                              .bias = l->bias_value,
                              .residual = residual ? residual->v : NULL,
                              .y = y->v,
                              .scratch = g->workspace};
    return kx_lt_run(g->lt, c->lt, &call, g->stream);
}

static cudaError_t run_dnn(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct choice *c,
                           const struct kx_tensor *x, const struct kx_rows *time_proj,
                           const struct kx_tensor *residual, const struct kx_tensor *y) {
    struct kx_dnn_call call = {.x = x->v,
                               .weight = l->weight,
                               .bias = l->bias,
                               .bias_value = l->bias_value,
                               .residual = residual ? residual->v : NULL,
                               .y = y->v,
                               .scratch = (char *)g->workspace + c->before};
    if (time_proj) call.time_proj = *time_proj;
    if (l->shape.upsample) {
        cudaError_t e = kx_cuda_upsample(g->stream, l->type, x->v, x->n, x->h, x->w, x->c, g->workspace);
        if (e != cudaSuccess) return e;
        call.x = g->workspace;
    }
    return kx_dnn_run(g->dnn, c->dnn, &call);
}

static bool aligned(const void *p) {
    return (uintptr_t)p % 16 == 0;
}

void kx_gpu_product(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x,
                    const struct kx_rows *time_proj, const struct kx_tensor *residual, struct kx_tensor *y) {
    const char *op = l->linear ? "linear layer" : "convolution";
    assert(l->type == g->type && l->device == g->device);
    assert(!residual || kx_count(residual) == kx_count(y));
    if (g->base.planning) {
        kx_gpu_want(g, own_bytes(l, x));
        if (l->quantized) kx_gpu_quantized_plan(g, l, x, residual);
        if (!g->base.counting) {
            /* time_proj may not be there yet while planning: plan for a run with it and for one without */
            if (!time_proj || !time_proj->v) plan(g, l, x, false, residual, y);
            if (time_proj) plan(g, l, x, true, residual, y);
        }
        return;
    }
    if (time_proj && !time_proj->v) time_proj = NULL;
    if (l->amax && kx_gpu_enter(g))
        kx_gpu_ok(g, kx_cuda_amax(g->stream, l->type, x->v, kx_count(x), l->amax), "observing");
    if (l->quantized && kx_gpu_enter(g)) {
        cudaError_t e = kx_gpu_quantized_run(g, l, x, time_proj, residual, y);
        if (e != KX_CUDA_NO) {
            kx_gpu_ok(g, e, op);
            return;
        }
    }
    struct key k = key_of(l, x, time_proj, residual);
    if (!kx_gpu_enter(g)) return;
    const struct choice *c = kn_map_get(g->choices, &k, sizeof k);
    assert(c && c->bytes <= g->workspace_bytes); /* planned with this size */
    bool fits = aligned(x->v) && aligned(y->v) && (!residual || aligned(residual->v));
    cudaError_t e = fits && c->variant == KX_VARIANT_CUBLASLT ? run_lt(g, l, c, x, residual, y)
                    : fits && c->variant == KX_VARIANT_CUDNN  ? run_dnn(g, l, c, x, time_proj, residual, y)
                                                              : run_own(g, l, c, x, time_proj, residual, y);
    kx_gpu_ok(g, e, op);
}
