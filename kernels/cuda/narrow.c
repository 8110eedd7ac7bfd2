/* Layers with eight-bit operands (e4m3), and what calibrating them takes. See kernels/ops.h (kx_narrow).
 *
 * A narrow layer keeps its weights in the storage type too: they are what kx_linear_set changes, and what
 * computes where the eight-bit kernel cannot. Each of the weights' rows has a scale, its largest magnitude
 * over 448; the inputs have one, found beforehand. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/layer.h"

#define E4M3_MAX 448.0f

struct kx_gpu_narrow {
    void *weight; /* own, the device's: a byte a value, out × kernel × kernel × in */
    float *scale; /* own, the device's: out */
    float *bias;  /* own, the device's; NULL: none, or the layer's own in the same order */
    float x_scale;
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

void kx_gpu_narrow_destroy(struct kx_gpu_layer *l) {
    struct kx_gpu_narrow *w = l->narrow;
    if (!w) return;
    kx_gpu_give(l->device, w->weight);
    kx_gpu_give(l->device, w->scale);
    kx_gpu_give(l->device, w->bias);
    free(w);
    l->narrow = NULL;
}

/* The row of the original that lies r-th: GEGLU's halves are interleaved here in any case. */
static size_t row_of(const struct kx_gpu_layer *l, int r) {
    return (size_t)(l->act == KX_ACT_GEGLU ? kx_cuda_geglu_row(r, l->shape.out) : r);
}

int kx_gpu_narrow_set(struct kx_gpu *g, struct kx_gpu_layer *l, const float *weight, struct kn_err *err) {
    struct kx_gpu_narrow *w = l->narrow;
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
    if (!rc) {
        kx_gpu_upload(&g->base, w->weight, bytes, out * row);
        kx_gpu_upload(&g->base, w->scale, scale, out * sizeof *scale);
        (void)kx_gpu_drain(g, "weights");
        rc = kx_gpu_error(&g->base, err);
    }
    free(bytes);
    free(scale);
    return rc;
}

/* The layer's bias in the order of the narrow weights. */
static int lay_bias(struct kx_gpu *g, struct kx_gpu_layer *l, struct kn_err *err) {
    if (!l->bias || l->act != KX_ACT_GEGLU || l->interleaved) return 0;
    size_t out = (size_t)l->shape.out;
    float *plain = malloc(2 * out * sizeof *plain);
    if (!plain) return kn_err_set(err, KN_ENOMEM, "out of memory");
    kx_gpu_download(&g->base, plain, l->bias, out * sizeof *plain);
    for (size_t r = 0; r < out; r++) plain[out + r] = plain[row_of(l, (int)r)];
    l->narrow->bias = kx_gpu_take(g, out * sizeof *plain);
    if (l->narrow->bias) kx_gpu_upload(&g->base, l->narrow->bias, plain + out, out * sizeof *plain);
    free(plain);
    return l->narrow->bias ? kx_gpu_error(&g->base, err) : kn_err_set(err, KN_EOOM, "out of device memory");
}

int kx_gpu_narrow(struct kx_ctx *ctx, void *layer, const float *weight, float x_max, struct kn_err *err) {
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
    kx_gpu_narrow_destroy(l);
    struct kx_gpu_narrow *w = l->narrow = calloc(1, sizeof *w);
    if (!w) return kn_err_set(err, KN_ENOMEM, "out of memory");
    size_t out = (size_t)l->shape.out,
           values = out * (size_t)l->shape.in * (size_t)(l->shape.kernel * l->shape.kernel);
    w->x_scale = x_max / E4M3_MAX;
    w->weight = kx_gpu_take(g, values);
    w->scale = kx_gpu_take(g, out * sizeof *w->scale);
    int rc = w->weight && w->scale
                 ? 0
                 : kn_err_set(err, KN_EOOM, "out of device memory for weights of %zu KiB", values >> 10);
    if (!rc) rc = lay_bias(g, l, err);
    if (!rc) rc = kx_gpu_narrow_set(g, l, weight, err);
    if (rc) kx_gpu_narrow_destroy(l);
    return rc;
}

size_t kx_gpu_narrow_bytes(const struct kx_tensor *x) {
    return kx_count(x);
}

cudaError_t kx_gpu_narrow_run(struct kx_gpu *g, const struct kx_gpu_layer *l, const struct kx_tensor *x,
                              const struct kx_rows *shift, const struct kx_tensor *residual,
                              const struct kx_tensor *y) {
    const struct kx_gpu_narrow *w = l->narrow;
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
    if (shift) p.gemm.shift = *shift;
    cudaError_t e = kx_cuda_quantize_e4m3(g->stream, l->type, x->v, w->x_scale, g->workspace, kx_count(x));
    return e == cudaSuccess ? kx_cuda_conv_fp8(g->stream, &p) : e;
}

/* ---- calibration */

int kx_gpu_observe(struct kx_ctx *ctx, void *layer, bool on, struct kn_err *err) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    struct kx_gpu_layer *l = layer;
    if (!on) {
        kx_gpu_give(l->device, l->seen);
        l->seen = NULL;
        return 0;
    }
    if (!l->seen && !(l->seen = kx_gpu_take(g, sizeof *l->seen)))
        return kn_err_set(err, KN_EOOM, "out of device memory");
    kx_gpu_upload(ctx, l->seen, &(int32_t){0}, sizeof *l->seen);
    return kx_gpu_error(ctx, err);
}

float kx_gpu_seen(struct kx_ctx *ctx, void *layer) {
    const struct kx_gpu_layer *l = layer;
    int32_t bits = 0;
    float v;
    if (l->seen) kx_gpu_download(ctx, &bits, l->seen, sizeof bits);
    memcpy(&v, &bits, sizeof v);
    return v;
}
