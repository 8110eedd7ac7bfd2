/* Layers with eight-bit operands (e4m3), and what calibrating them takes. See kernels/ops.h (kx_quantize).
 *
 * A quantized layer keeps its weights in the storage type too: they are what kx_linear_set changes, and what
 * computes where the eight-bit kernel cannot. Each of the weights' rows has a scale, its largest magnitude
 * over 448; the inputs have one, found beforehand.
 *
 * Which kernel. Ours is on mma.sync, which has no e4m3 on compute capability 9 and 10 (ptxas makes it of f16
 * products there: right, and no faster). There cuBLASLt computes linear layers, where it is at hand; its
 * scale of the inputs is one a row, which here are ones, the one scale being in the weights' scales. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/layer.h"

#define E4M3_MAX 448.0f

struct kx_gpu_quantized {
    void *weight; /* own, the device's: a byte a value, out × kernel × kernel × in */
    float *scale; /* own, the device's: out */
    float *bias;  /* own, the device's; NULL: none, or the layer's own in the same order */
    float x_scale;
    bool library;     /* cuBLASLt's: rows are in the original's order, and scale has x_scale in it */
    void *bias_value; /* library: the bias in the storage type; own, or the layer's own */
    bool bias_owned;
};

/* To nearest even; what is beyond ±448 becomes that. */
uint8_t kx_gpu_e4m3(float v) {
    uint8_t sign = signbit(v) ? 0x80 : 0;
    float a = fabsf(v);
    if (isnan(v)) return sign | 0x7f;
    if (a >= E4M3_MAX) return sign | 0x7e;
    int e = a > 0 ? ilogbf(a) : -6;
    if (e < -6) e = -6; /* subnormal from here on */
    int q = (int)rintf(ldexpf(a, 3 - e));
    if (q == 16) {
        q = 8;
        e++;
    }
    return (uint8_t)(sign | (q < 8 ? q : (e + 7) << 3 | (q - 8)));
}

void kx_gpu_quantized_destroy(struct kx_gpu_layer *l) {
    struct kx_gpu_quantized *w = l->quantized;
    if (!w) return;
    kx_gpu_give(l->device, w->weight);
    kx_gpu_give(l->device, w->scale);
    kx_gpu_give(l->device, w->bias);
    if (w->bias_owned) kx_gpu_give(l->device, w->bias_value);
    free(w);
    l->quantized = NULL;
}

static size_t geglu_row(const struct kx_gpu_layer *l, int r) {
    return (size_t)(l->act == KX_ACT_GEGLU ? kx_cuda_geglu_row(r, l->shape.out) : r);
}

/* The row of the original that lies r-th: for our kernel GEGLU's halves are interleaved in any case. */
static size_t row_of(const struct kx_gpu_layer *l, int r) {
    return l->quantized->library ? (size_t)r : geglu_row(l, r);
}

int kx_gpu_quantized_set(struct kx_gpu *g, struct kx_gpu_layer *l, const float *weight, struct kn_err *err) {
    struct kx_gpu_quantized *w = l->quantized;
    size_t in = (size_t)l->shape.in, area = (size_t)(l->shape.kernel * l->shape.kernel),
           out = (size_t)l->shape.out, row = in * area;
    uint8_t *bytes = malloc(out * row);
    float *scale = malloc(out * sizeof *scale);
    int rc = bytes && scale ? 0 : kn_err_set(err, KN_ENOMEM, "out of memory");
    for (size_t r = 0; r < out && !rc; r++) {
        const float *from = weight + row_of(l, (int)r) * row;
        float most = 0;
        for (size_t i = 0; i < row; i++) most = fmaxf(most, fabsf(from[i]));
        scale[r] = most > 0 ? most / E4M3_MAX : 1;
        for (size_t k = 0; k < area; k++)
            for (size_t i = 0; i < in; i++)
                bytes[r * row + k * in + i] = kx_gpu_e4m3(from[i * area + k] / scale[r]);
    }
    for (size_t r = 0; r < out && !rc && w->library; r++) scale[r] *= w->x_scale;
    if (!rc) {
        kx_gpu_upload(&g->base, w->weight, bytes, out * row);
        kx_gpu_upload(&g->base, w->scale, scale, out * sizeof *scale);
        (void)kx_gpu_drain(g, "weights");
        rc = kx_gpu_ctx_error(&g->base, err);
    }
    free(bytes);
    free(scale);
    return rc;
}

/* The library's bias: in the storage type, in the original's order. */
static int library_bias(struct kx_gpu *g, struct kx_gpu_layer *l, struct kn_err *err) {
    struct kx_gpu_quantized *w = l->quantized;
    size_t out = (size_t)l->shape.out;
    if (!l->bias || l->bias_value) {
        w->bias_value = l->bias_value;
        return 0;
    }
    float *laid = malloc(2 * out * sizeof *laid), *plain = laid ? laid + out : NULL;
    if (!laid) return kn_err_set(err, KN_ENOMEM, "out of memory");
    kx_gpu_download(&g->base, laid, l->bias, out * sizeof *laid);
    for (size_t r = 0; r < out; r++) plain[l->interleaved ? geglu_row(l, (int)r) : r] = laid[r];
    w->bias_value = kx_gpu_take(g, 2 * out);
    w->bias_owned = true;
    if (w->bias_value) kx_gpu_upload_values(&g->base, w->bias_value, plain, out);
    free(laid);
    return w->bias_value ? kx_gpu_ctx_error(&g->base, err) : kn_err_set(err, KN_EOOM, "out of device memory");
}

/* The layer's bias in the order of the quantized weights. */
static int lay_bias(struct kx_gpu *g, struct kx_gpu_layer *l, struct kn_err *err) {
    if (l->quantized->library) return library_bias(g, l, err);
    if (!l->bias || l->act != KX_ACT_GEGLU || l->interleaved) return 0;
    size_t out = (size_t)l->shape.out;
    float *plain = malloc(2 * out * sizeof *plain);
    if (!plain) return kn_err_set(err, KN_ENOMEM, "out of memory");
    kx_gpu_download(&g->base, plain, l->bias, out * sizeof *plain);
    for (size_t r = 0; r < out; r++) plain[out + r] = plain[row_of(l, (int)r)];
    l->quantized->bias = kx_gpu_take(g, out * sizeof *plain);
    if (l->quantized->bias) kx_gpu_upload(&g->base, l->quantized->bias, plain + out, out * sizeof *plain);
    free(plain);
    return l->quantized->bias ? kx_gpu_ctx_error(&g->base, err)
                              : kn_err_set(err, KN_EOOM, "out of device memory");
}

int kx_gpu_quantize(struct kx_ctx *ctx, void *layer, const float *weight, float x_max, struct kn_err *err) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    struct kx_gpu_layer *l = layer;
    const struct kx_cuda_device_facts *f = &g->device->facts;
    if (10 * f->major + f->minor < 89)
        return kn_err_set(err, KN_EUNSUPPORTED,
                          "%s computes with no eight-bit floats (compute capability %d.%d, not 8.9)", f->name,
                          f->major, f->minor);
    if (l->shape.in % 16)
        return kn_err_set(err, KN_EUNSUPPORTED, "%d inputs are no multiple of 16", l->shape.in);
    assert(x_max > 0 && isfinite(x_max));
    kx_gpu_quantized_destroy(l);
    struct kx_gpu_quantized *w = l->quantized = calloc(1, sizeof *w);
    if (!w) return kn_err_set(err, KN_ENOMEM, "out of memory");
    size_t out = (size_t)l->shape.out,
           values = out * (size_t)l->shape.in * (size_t)(l->shape.kernel * l->shape.kernel);
    w->x_scale = x_max / E4M3_MAX;
    w->library = l->linear && g->lt && (f->major == 9 || f->major == 10) && l->shape.out % 16 == 0;
    w->weight = kx_gpu_take(g, values);
    w->scale = kx_gpu_take(g, out * sizeof *w->scale);
    int rc = w->weight && w->scale
                 ? 0
                 : kn_err_set(err, KN_EOOM, "out of device memory for weights of %zu KiB", values >> 10);
    if (!rc) rc = lay_bias(g, l, err);
    if (!rc) rc = kx_gpu_quantized_set(g, l, weight, err);
    if (rc) kx_gpu_quantized_destroy(l);
    return rc;
}

static size_t input_bytes(const struct kx_tensor *x) {
    return (kx_count(x) + KX_GPU_ALIGN - 1) / KX_GPU_ALIGN * KX_GPU_ALIGN;
}

/* The library's scales of the rows, all of them 1. A recording holds where they lie. */
void kx_gpu_quantized_ready(struct kx_gpu *g) {
    size_t rows = g->ones_wanted;
    if (rows <= g->ones_count) return;
    float *host = malloc(rows * sizeof *host), *v = host ? kx_gpu_take(g, rows * sizeof *v) : NULL;
    if (v) {
        for (size_t i = 0; i < rows; i++) host[i] = 1;
        kx_gpu_upload(&g->base, v, host, rows * sizeof *v);
        kx_gpu_give(g->device, g->ones);
        g->ones = v;
        g->ones_count = rows;
        g->workspace_generation++;
    } else {
        kx_gpu_fail(g, KN_EOOM, "out of memory for the scales of %zu rows", rows);
    }
    free(host);
}

/* The library's plan, found or made. */
static int library_plan(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x,
                        bool residual, struct kx_lt_plan **plan, struct kn_err *err) {
    struct kx_lt_shape s = {.in = l->shape.in,
                            .out = l->shape.out,
                            .act = l->act,
                            .bias = l->bias,
                            .residual = residual,
                            .image_rows = (int64_t)x->h * x->w,
                            .fp8 = true};
    return kx_lt_plan(g->lt, &s, x->n, !g->reproducible, plan, err);
}

void kx_gpu_quantized_plan(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x,
                           bool residual) {
    struct kx_lt_plan *plan;
    struct kn_err err;
    size_t bytes = input_bytes(x);
    if (l->quantized->library && !g->base.counting && kx_gpu_enter(g)) {
        int rc = library_plan(g, l, x, residual, &plan, &err);
        size_t rows = kx_count(x) / (size_t)x->c;
        if (!rc) bytes += kx_lt_scratch_bytes(plan);
        if (!rc && rows > g->ones_wanted) g->ones_wanted = rows;
        if (rc && rc != KN_EUNSUPPORTED) /* fewer images at once may do */
            kx_gpu_fail(g, rc == KN_ELIMIT ? KN_EOOM : rc, "%s", err.text);
    }
    kx_gpu_want(g, bytes);
}

static cudaError_t library_run(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x,
                               const struct kx_tensor *residual, const struct kx_tensor *y) {
    const struct kx_gpu_quantized *w = l->quantized;
    struct kx_lt_plan *plan;
    struct kn_err err;
    if (library_plan(g, l, x, residual, &plan, &err)) return KX_CUDA_NO;
    assert(kx_count(x) / (size_t)x->c <= g->ones_count);
    struct kx_lt_call call = {.x = g->workspace,
                              .weight = w->weight,
                              .bias = w->bias_value,
                              .residual = residual ? residual->v : NULL,
                              .y = y->v,
                              .scratch = (char *)g->workspace + input_bytes(x),
                              .weight_scale = w->scale,
                              .x_scale = g->ones};
    cudaError_t e = kx_cuda_quantize_e4m3(g->stream, l->type, x->v, w->x_scale, g->workspace, kx_count(x));
    return e == cudaSuccess ? kx_lt_run(g->lt, plan, &call, g->stream) : e;
}

cudaError_t kx_gpu_quantized_run(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x,
                                 const struct kx_rows *time_proj, const struct kx_tensor *residual,
                                 const struct kx_tensor *y) {
    const struct kx_gpu_quantized *w = l->quantized;
    assert(input_bytes(x) <= g->workspace_bytes);
    if (w->library) return library_run(g, l, x, residual, y);
    struct kx_cuda_gemm_fp8 p = {.gemm = {.type = l->type,
                                          .n = x->n,
                                          .h = x->h,
                                          .w = x->w,
                                          .in = l->shape.in,
                                          .out = l->shape.out,
                                          .kernel = l->shape.kernel,
                                          .stride = l->shape.stride,
                                          .upsample = l->shape.upsample,
                                          .x = g->workspace,
                                          .weight = w->weight,
                                          .bias = w->bias ? w->bias : l->bias,
                                          .act = l->act,
                                          .residual = residual ? residual->v : NULL,
                                          .y = y->v},
                                 .weight_scale = w->scale,
                                 .x_scale = w->x_scale};
    if (time_proj) p.gemm.time_proj = *time_proj;
    cudaError_t e = kx_cuda_quantize_e4m3(g->stream, l->type, x->v, w->x_scale, g->workspace, kx_count(x));
    return e == cudaSuccess ? kx_cuda_conv_fp8(g->stream, &p) : e;
}

/* ---- calibration */

int kx_gpu_amax_record(struct kx_ctx *ctx, void *layer, bool on, struct kn_err *err) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    struct kx_gpu_layer *l = layer;
    if (!on) {
        kx_gpu_give(l->device, l->amax);
        l->amax = NULL;
        return 0;
    }
    if (!l->amax && !(l->amax = kx_gpu_take(g, sizeof *l->amax)))
        return kn_err_set(err, KN_EOOM, "out of device memory");
    kx_gpu_upload(ctx, l->amax, &(int32_t){0}, sizeof *l->amax);
    return kx_gpu_ctx_error(ctx, err);
}

float kx_gpu_amax(struct kx_ctx *ctx, void *layer) {
    const struct kx_gpu_layer *l = layer;
    int32_t bits = 0;
    float v;
    if (l->amax) kx_gpu_download(ctx, &bits, l->amax, sizeof bits);
    memcpy(&v, &bits, sizeof v);
    return v;
}
