/* The ops with weights: convolutions, linear layers, tables. See kernels/ops.h and kernels/cuda/context.h.
 *
 * Weights come as f32 from the host, become the storage type there (to nearest even; a finite value that it
 * cannot hold is an error that names the place), and lie on the device as out × kernel × kernel × in, which
 * is how the kernels go over the input's pixels. GEGLU's two halves are interleaved (kx_cuda_geglu_row), so
 * that one tile of our kernel's product holds what is multiplied, unless the table has the library do it.
 * Biases stay f32; the library gets a copy in the storage type. */
#include <assert.h>
#include <limits.h>
#include <stdlib.h>

#include "kernels/cuda/layer.h"

/* ---- values on their way to the device, in the order in which they lie there */

struct writer {
    struct kx_gpu *g;
    struct kx_gpu_stage *stage;
    uint16_t *to;  /* the device's, where the stage goes */
    size_t filled; /* values in the stage */
    bool failed;   /* noted */
};

static void flush(struct writer *w) {
    if (w->filled && !w->failed) {
        kx_gpu_stage_send(w->g, w->stage, w->to, 2 * w->filled, "weights");
        w->to += w->filled;
        w->filled = 0;
    }
    w->stage = NULL;
}

/* n values, `step` apart. Returns how many are written: less than n where one cannot be held. */
static size_t put(struct writer *w, const float *v, size_t step, size_t n) {
    enum { ROOM = KX_GPU_STAGE_BYTES / 2 };
    for (size_t at = 0, count; at < n && !w->failed; at += count) {
        if (w->stage && w->filled == ROOM) flush(w);
        if (!w->stage && !(w->stage = kx_gpu_stage(w->g, "weights"))) {
            w->failed = true;
            break;
        }
        count = n - at < ROOM - w->filled ? n - at : ROOM - w->filled;
        size_t good =
            kx_gpu_values(w->g->type, v + at * step, step, count, (uint16_t *)w->stage->v + w->filled);
        if (good < count) return at + good;
        w->filled += count;
    }
    return n;
}

static const char *type_name(enum kx_store type) {
    return type == KX_STORE_F16 ? "f16, which ends at 65504" : "bf16";
}

/* ---- convolutions and linear layers */

static atomic_ullong layers_made;

static void layer_destroy(struct kx_gpu_layer *l) {
    if (!l) return;
    kx_gpu_give(l->device, l->weight);
    kx_gpu_give(l->device, l->bias);
    kx_gpu_give(l->device, l->bias_value);
    kx_gpu_give(l->device, l->amax);
    kx_gpu_quantized_destroy(l);
    kx_gpu_device_release(l->device);
    free(l);
}

/* The row of the original that lies r-th. */
static size_t row_of(const struct kx_gpu_layer *l, int r) {
    return (size_t)(l->interleaved ? kx_cuda_geglu_row(r, l->shape.out) : r);
}

static int write_weights(struct kx_gpu *g, const struct kx_gpu_layer *l, const float *weight,
                         struct kn_err *err) {
    struct writer w = {.g = g, .to = l->weight};
    size_t in = (size_t)l->shape.in, area = (size_t)(l->shape.kernel * l->shape.kernel);
    for (int r = 0; r < l->shape.out; r++)
        for (size_t k = 0; k < area; k++) {
            const float *from = weight + row_of(l, r) * in * area + k;
            size_t i = put(&w, from, area, in);
            if (i < in)
                return kn_err_set(err, KN_EUNSUPPORTED,
                                  "the weight of output %zu, input %zu, place %zu is %g: "
                                  "too large for %s",
                                  row_of(l, r), i, k, (double)from[i * area], type_name(g->type));
        }
    flush(&w);
    return 0;
}

static int write_bias(struct kx_gpu *g, const struct kx_gpu_layer *l, const float *bias, struct kn_err *err) {
    if (!bias) return 0;
    float *laid = malloc((size_t)l->shape.out * sizeof *laid);
    if (!laid) return kn_err_set(err, KN_ENOMEM, "out of memory");
    for (int r = 0; r < l->shape.out; r++) laid[r] = bias[row_of(l, r)];
    kx_gpu_upload(&g->base, l->bias, laid, (size_t)l->shape.out * sizeof *laid);
    if (l->bias_value) kx_gpu_upload_values(&g->base, l->bias_value, laid, (size_t)l->shape.out);
    free(laid);
    return 0;
}

/* Waits until the weights are on the device: another context, with a stream of its own, may use them at once.
 */
static int arrived(struct kx_gpu *g, struct kn_err *err) {
    (void)kx_gpu_drain(g, "weights");
    return kx_gpu_ctx_error(&g->base, err);
}

/* True if the storage type can hold the bias, as the libraries want it. Where it cannot, our kernel adds it.
 */
static bool holds(const struct kx_gpu *g, const float *bias, int n) {
    uint16_t v;
    for (int i = 0; i < n; i++)
        if (!kx_gpu_values(g->type, bias + i, 1, 1, &v)) return false;
    return true;
}

static int layer_create(struct kx_gpu *g, const struct kx_conv_shape *s, enum kx_act act, bool linear,
                        const float *weight, const float *bias, struct kx_gpu_layer **out,
                        struct kn_err *err) {
    *out = NULL;
    assert(s->in > 0 && s->out > 0 && s->kernel > 0 && s->kernel % 2 == 1 && s->stride > 0);
    assert(!s->upsample || s->stride == 1);
    assert(act != KX_ACT_GEGLU || s->out % 2 == 0);
    struct kx_gpu_layer *l = calloc(1, sizeof *l);
    if (!l) return kn_err_set(err, KN_ENOMEM, "out of memory");
    *l = (struct kx_gpu_layer){.made.backend = g->base.backend,
                               .device = g->device,
                               .id = atomic_fetch_add(&layers_made, 1),
                               .type = g->type,
                               .linear = linear,
                               .shape = *s,
                               .act = act};
    l->interleaved = act == KX_ACT_GEGLU && !kx_gpu_layer_plain(g, s->in, s->out, act);
    kx_gpu_device_retain(g->device);
    size_t values = (size_t)s->out * (size_t)s->in * (size_t)(s->kernel * s->kernel), width = (size_t)s->out;
    bool library = g->dnn || (g->lt && s->kernel == 1);
    bool twice = bias && library && !l->interleaved && holds(g, bias, s->out);
    l->weight = kx_gpu_take(g, 2 * values);
    if (bias) l->bias = kx_gpu_take(g, width * sizeof *bias);
    if (twice) l->bias_value = kx_gpu_take(g, 2 * width);
    int rc = kx_gpu_ctx_error(&g->base, err);
    if (!rc && (!l->weight || (bias && !l->bias) || (twice && !l->bias_value)))
        rc = kn_err_set(err, KN_EOOM, "out of device memory for weights of %zu KiB", values >> 9);
    if (!rc) rc = write_weights(g, l, weight, err);
    if (!rc) rc = write_bias(g, l, bias, err);
    if (!rc) rc = arrived(g, err);
    if (rc)
        layer_destroy(l);
    else
        *out = l;
    return rc;
}

/* Each is a layer; the types keep them apart. */
static struct kx_gpu_layer *of_conv(struct kx_conv *c) {
    return (struct kx_gpu_layer *)c;
}
static struct kx_gpu_layer *of_linear(struct kx_linear *l) {
    return (struct kx_gpu_layer *)l;
}

int kx_gpu_conv_create(struct kx_ctx *ctx, const struct kx_conv_shape *s, const float *weight,
                       const float *bias, struct kx_conv **out, struct kn_err *err) {
    struct kx_gpu_layer *l;
    int rc = layer_create(kx_gpu_of(ctx), s, KX_ACT_NONE, false, weight, bias, &l, err);
    *out = (struct kx_conv *)l;
    return rc;
}

/* In place: recordings that read them stay good. */
static int layer_set(struct kx_gpu *g, struct kx_gpu_layer *l, const float *weight, struct kn_err *err) {
    assert(l->type == g->type && l->device == g->device);
    int rc = write_weights(g, l, weight, err);
    if (!rc && l->quantized) rc = kx_gpu_quantized_set(g, l, weight, err);
    return rc ? rc : arrived(g, err);
}

int kx_gpu_conv_set(struct kx_ctx *ctx, struct kx_conv *c, const float *weight, struct kn_err *err) {
    return layer_set(kx_gpu_of(ctx), of_conv(c), weight, err);
}

int kx_gpu_linear_set(struct kx_ctx *ctx, struct kx_linear *l, const float *weight, struct kn_err *err) {
    return layer_set(kx_gpu_of(ctx), of_linear(l), weight, err);
}

void kx_gpu_conv_destroy(struct kx_conv *c) {
    layer_destroy(of_conv(c));
}

void kx_gpu_conv(struct kx_ctx *ctx, struct kx_conv *c, const struct kx_tensor *x,
                 const struct kx_rows *time_proj, const struct kx_tensor *residual, struct kx_tensor *y) {
    const struct kx_conv_shape *s = &of_conv(c)->shape;
    int h = s->upsample ? 2 * x->h : x->h, w = s->upsample ? 2 * x->w : x->w, pad = s->kernel / 2;
    assert(x->n == y->n && x->c == s->in && y->c == s->out);
    assert(y->h == (h + 2 * pad - s->kernel) / s->stride + 1 &&
           y->w == (w + 2 * pad - s->kernel) / s->stride + 1);
    kx_gpu_product(kx_gpu_of(ctx), of_conv(c), x, time_proj, residual, y);
}

int kx_gpu_linear_create(struct kx_ctx *ctx, int in, int out, enum kx_act act, const float *weight,
                         const float *bias, struct kx_linear **out_linear, struct kn_err *err) {
    struct kx_gpu_layer *l;
    int rc = layer_create(kx_gpu_of(ctx), &(struct kx_conv_shape){in, out, 1, 1, false}, act, true, weight,
                          bias, &l, err);
    *out_linear = (struct kx_linear *)l;
    return rc;
}

void kx_gpu_linear_destroy(struct kx_linear *l) {
    layer_destroy(of_linear(l));
}

/* The images stay apart, though rows are rows: which kernel runs is chosen by an image's shape. */
void kx_gpu_linear(struct kx_ctx *ctx, struct kx_linear *linear, const struct kx_tensor *x,
                   const struct kx_tensor *residual, struct kx_tensor *y) {
    const struct kx_gpu_layer *l = of_linear(linear);
    assert(x->c == l->shape.in && y->c == (l->act == KX_ACT_GEGLU ? l->shape.out / 2 : l->shape.out));
    assert(kx_count(x) / (size_t)x->c == kx_count(y) / (size_t)y->c);
    assert(!residual || l->act != KX_ACT_GEGLU);
    kx_gpu_product(kx_gpu_of(ctx), l, x, NULL, residual, y);
}

/* ---- tables */

struct kx_table {
    struct kx_made made;          /* first */
    struct kx_gpu_device *device; /* a share */
    enum kx_store type;
    int rows, c;
    void *v; /* owns: the device's */
};

int kx_gpu_table_create(struct kx_ctx *ctx, int rows, int c, const float *v, struct kx_table **out,
                        struct kn_err *err) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    size_t n = (size_t)rows * (size_t)c;
    *out = NULL;
    assert(rows > 0 && c > 0);
    struct kx_table *t = calloc(1, sizeof *t);
    if (!t) return kn_err_set(err, KN_ENOMEM, "out of memory");
    *t = (struct kx_table){
        .made.backend = g->base.backend, .device = g->device, .type = g->type, .rows = rows, .c = c};
    kx_gpu_device_retain(g->device);
    t->v = kx_gpu_take(g, 2 * n);
    int rc = kx_gpu_ctx_error(ctx, err);
    if (!rc && !t->v) rc = kn_err_set(err, KN_EOOM, "out of device memory for a table of %zu KiB", n >> 9);
    struct writer w = {.g = g, .to = t->v};
    size_t i = rc ? n : put(&w, v, 1, n);
    if (i < n)
        rc = kn_err_set(err, KN_EUNSUPPORTED, "row %zu of a table holds %g: too large for %s", i / (size_t)c,
                        (double)v[i], type_name(g->type));
    flush(&w);
    if (!rc) rc = arrived(g, err);
    if (rc)
        kx_gpu_table_destroy(t);
    else
        *out = t;
    return rc;
}

void kx_gpu_table_destroy(struct kx_table *t) {
    if (!t) return;
    kx_gpu_give(t->device, t->v);
    kx_gpu_device_release(t->device);
    free(t);
}

void kx_gpu_embed(struct kx_ctx *ctx, const struct kx_table *tokens, const struct kx_table *places,
                  const int32_t *ids, struct kx_tensor *y) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    assert(tokens->type == g->type && places->type == g->type && tokens->device == g->device);
    assert(y->h == 1 && y->w <= places->rows && y->c == tokens->c && y->c == places->c);
    if (g->base.planning || !kx_gpu_enter(g)) return;
    kx_gpu_ok(g, kx_cuda_embed(g->stream, g->type, tokens->v, places->v, ids, y->n, y->w, y->c, y->v),
              "embedding");
}
