/* Convolutions and linear layers on the CPU: oneDNN (onednn.h) computes, this file cuts.
 *
 * The cut. The output's rows are cut in stripes; where the weights are large its channels are cut in slices
 * as well, so that a slice's weights stay in the cache while the stripes go by. A stripe and a slice are an
 * item, computed by one thread with a product of its own. Where an item is a plain stretch of y (one slice,
 * no activation) the product writes there and adds to the residual; else it writes to the seat's scratch, and
 * what follows (activation, GEGLU's halves, residual) is done from there while it is in the cache.
 *
 * Doubling before a 3×3 convolution is not done: of the nine pixels that it would read, only 2×2 are
 * different, so each of the four kinds of output pixel is a 2×2 convolution of the small picture, with
 * weights summed: 4/9 of the work.
 *
 * A linear layer is a 1×1 convolution of rows × 1 pixels: oneDNN packs those weights once, where its matrix
 * product would pack them each time.
 *
 * Measured, 2 cores of a Zen 5, oneDNN 2.6, f32: a 1280 to 1280 3×3 convolution of 8×8 pixels 209 GFLOP/s
 * whole and 290 in slices of 160 on one thread; 320 to 320 at 64×64 261 whole, 270 in stripes of 8 rows. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/context.h"

enum { STRIPES_MAX = 32, SLICES_MAX = 8, LAYOUTS_MAX = 4 };

/* Some of the layer's outputs, of one kind of pixel, in one product. */
struct conv_piece {
    int from, width;                       /* channels */
    int phase;                             /* of a doubling: 2 · (row is odd) + (column is odd) */
    struct kx_packed *packed[LAYOUTS_MAX]; /* the first `count`; owns */
    int count;
};

/* The product that computes one piece of one stripe. */
struct cell {
    struct kx_product *product;
    const struct kx_packed *weights;
};

struct stripe {
    int y, rows; /* of the output, or of one phase of it */
};

/* The plan for one size of input. */
struct variant {
    int h, w, rows, columns; /* input; output, or a phase of it */
    bool sum;
    int stripes;
    struct stripe stripe[STRIPES_MAX];
    struct cell *cells; /* stripes × pieces; owns */
    size_t scratch_bytes, product_bytes;
    struct variant *next;
};

/* A layer with weights: a convolution, or a linear layer as a 1×1 convolution. */
struct kx_layer {
    struct kx_made made;            /* first */
    struct kx_cpu *root;            /* borrowed */
    struct kx_layer *before, *next; /* of the context's layers */
    struct kx_layer_shape shape;
    int kernel;      /* of the products: 2 for a doubling */
    int phases;      /* 4 for a doubling, else 1 */
    int slices, per; /* pieces in an item: 2 for GEGLU (the halves), else 1 */
    bool dense;      /* one piece, no activation: products write to y themselves */
    float *plain;    /* weights of all pieces, one behind the other; until they are packed */
    float *bias;     /* out values, zeros if there is none; owns */
    int pieces;
    struct conv_piece *piece;
    struct variant *variants;
};

/* ---- making */

static int slices_of(const struct kx_layer_shape *s) {
    size_t bytes = (size_t)s->in * (size_t)s->out * (size_t)(s->kernel * s->kernel) * sizeof(float);
    int out = s->act == KX_ACT_GEGLU ? s->out / 2 : s->out;
    if (bytes <= 4u << 20) return 1;
    for (int n = SLICES_MAX; n > 1; n--)
        if (out % n == 0 && out / n % 32 == 0 && out / n >= 128) return n;
    return 1;
}

static size_t piece_floats(const struct kx_layer *l, const struct conv_piece *p) {
    return (size_t)p->width * (size_t)l->shape.in * (size_t)(l->kernel * l->kernel);
}

/* A doubling's 2×2 weights: along each axis, an even pixel sees its own input twice and the one before once;
 * an odd one the same with the one behind. */
static void fold(const float *w3, int phase, float *w2) {
    static const int take[2][3] = {{0, 1, 1}, {0, 0, 1}};
    const int *rows = take[phase >> 1], *columns = take[phase & 1];
    memset(w2, 0, 4 * sizeof *w2);
    for (int y = 0; y < 3; y++)
        for (int x = 0; x < 3; x++) w2[2 * rows[y] + columns[x]] += w3[3 * y + x];
}

static void copy_weights(const struct kx_layer *l, const struct conv_piece *p, const float *weight,
                         float *out) {
    size_t area = (size_t)(l->shape.kernel * l->shape.kernel), from = (size_t)p->from * (size_t)l->shape.in,
           count = (size_t)p->width * (size_t)l->shape.in;
    if (l->phases == 1) {
        memcpy(out, weight + from * area, count * area * sizeof *out);
        return;
    }
    for (size_t i = 0; i < count; i++) fold(weight + (from + i) * area, p->phase, out + 4 * i);
}

static void cut_channels(struct kx_layer *l) {
    int width = l->shape.out / l->slices / l->per, i = 0;
    for (int phase = 0; phase < l->phases; phase++)
        for (int slice = 0; slice < l->slices; slice++)
            for (int half = 0; half < l->per; half++)
                l->piece[i++] = (struct conv_piece){
                    .from = slice * width + half * l->shape.out / 2, .width = width, .phase = phase};
}

static size_t layer_floats(const struct kx_layer *l) {
    return (size_t)l->phases * (size_t)l->shape.out * (size_t)l->shape.in * (size_t)(l->kernel * l->kernel);
}

static void copy_all(struct kx_layer *l, const float *weight) {
    float *to = l->plain;
    for (int i = 0; i < l->pieces; to += piece_floats(l, &l->piece[i++]))
        copy_weights(l, &l->piece[i], weight, to);
}

static void layer_destroy(struct kx_layer *l);

static int layer_create(struct kx_cpu *ctx, const struct kx_layer_shape *s, const float *weight,
                        const float *bias, struct kx_layer **out, struct kn_err *err) {
    *out = NULL;
    assert(s->in > 0 && s->out > 0 && s->kernel > 0 && s->stride > 0);
    assert(!s->upsample || (s->kernel == 3 && s->stride == 1));
    assert(s->act != KX_ACT_GEGLU || s->out % 2 == 0);
    struct kx_layer *l = calloc(1, sizeof *l);
    if (!l) return kn_err_set(err, KN_ENOMEM, "out of memory");
    l->made.backend = ctx->base.backend;
    l->root = ctx->root;
    l->next = l->root->layers;
    if (l->next) l->next->before = l;
    l->root->layers = l;
    l->shape = *s;
    l->kernel = s->upsample ? 2 : s->kernel;
    l->phases = s->upsample ? 4 : 1;
    l->per = s->act == KX_ACT_GEGLU ? 2 : 1;
    l->slices = slices_of(s);
    l->dense = l->phases == 1 && l->slices == 1 && s->act == KX_ACT_NONE;
    l->pieces = l->phases * l->slices * l->per;
    l->piece = calloc((size_t)l->pieces, sizeof *l->piece);
    l->plain = kx_aligned(layer_floats(l) * sizeof(float));
    l->bias = kx_aligned((size_t)s->out * sizeof(float));
    if (!l->piece || !l->plain || !l->bias) {
        layer_destroy(l);
        return kn_err_set(err, KN_EOOM, "out of memory for weights");
    }
    cut_channels(l);
    copy_all(l, weight);
    for (int i = 0; i < s->out; i++) l->bias[i] = bias ? bias[i] : 0;
    *out = l;
    return 0;
}

static void forget(struct kx_layer *l) {
    for (struct variant *v = l->variants, *next; v; v = next) {
        next = v->next;
        free(v->cells);
        free(v);
    }
    l->variants = NULL;
}

void kx_layers_forget(struct kx_cpu *ctx) {
    for (struct kx_layer *l = ctx->root->layers; l; l = l->next) forget(l);
}

static void drop_packed(struct kx_layer *l) {
    for (int i = 0; l->piece && i < l->pieces; i++) {
        for (int k = 0; k < l->piece[i].count; k++) kx_packed_destroy(l->piece[i].packed[k]);
        l->piece[i].count = 0;
    }
}

/* Other weights: the plans are dropped, since products chose their layouts for the old ones. */
static int layer_set(struct kx_layer *l, const float *weight, struct kn_err *err) {
    if (!l->plain) l->plain = kx_aligned(layer_floats(l) * sizeof(float));
    if (!l->plain) return kn_err_set(err, KN_EOOM, "out of memory for weights");
    forget(l);
    drop_packed(l);
    copy_all(l, weight);
    l->root->plan_generation++;
    return 0;
}

static void layer_destroy(struct kx_layer *l) {
    if (!l) return;
    if (l->next) l->next->before = l->before;
    *(l->before ? &l->before->next : &l->root->layers) = l->next;
    forget(l);
    drop_packed(l);
    free(l->piece);
    free(l->plain);
    free(l->bias);
    free(l);
}

const struct kx_layer_shape *kx_layer_shape(const struct kx_layer *l) {
    return &l->shape;
}

/* ---- planning */

static struct variant *find(const struct kx_layer *l, int h, int w, bool sum) {
    for (struct variant *v = l->variants; v; v = v->next)
        if (v->h == h && v->w == w && v->sum == sum) return v;
    return NULL;
}

/* As many stripes as are worth it: large enough to hide what an execution costs, and what reading the weights
 * once more does. */
static void cut_rows(const struct kx_layer *l, struct variant *v) {
    double pixels = (double)v->rows * v->columns, weights = (double)piece_floats(l, l->piece) * l->per,
           n = 2 * weights * pixels / 8e6, /* floating-point operations */
        pixels_least = weights * sizeof(float) <= 1 << 20   ? 64
                       : weights * sizeof(float) <= 4 << 20 ? 128
                                                            : 256;
    if (n > pixels / pixels_least) n = pixels / pixels_least;
    if (n > STRIPES_MAX) n = STRIPES_MAX;
    if (n > v->rows) n = v->rows;
    v->stripes = n < 1 ? 1 : (int)n;
    for (int i = 0; i < v->stripes; i++) {
        int from = v->rows * i / v->stripes, to = v->rows * (i + 1) / v->stripes;
        v->stripe[i] = (struct stripe){from, to - from};
    }
}

/* The rows of the input that a stripe reads, without the padding. */
static void input_rows(const struct kx_layer *l, const struct stripe *s, int phase, int *first, int *last) {
    int pad = l->phases == 4 ? 1 - (phase >> 1) : l->kernel / 2;
    *first = s->y * l->shape.stride - pad;
    *last = (s->y + s->rows - 1) * l->shape.stride - pad + l->kernel - 1;
}

static struct kx_product_shape product_shape(const struct kx_layer *l, const struct variant *v,
                                             const struct stripe *s, const struct conv_piece *p) {
    int first, last, left = l->phases == 4 ? 1 - (p->phase & 1) : l->kernel / 2;
    input_rows(l, s, p->phase, &first, &last);
    struct kx_product_shape out = {.in = l->shape.in,
                                   .out = p->width,
                                   .w = v->w,
                                   .kernel = l->kernel,
                                   .stride = l->shape.stride,
                                   .top = first < 0 ? -first : 0,
                                   .bottom = last >= v->h ? last - v->h + 1 : 0,
                                   .left = left,
                                   .right = (v->columns - 1) * l->shape.stride + l->kernel - left - v->w,
                                   .sum = v->sum && l->dense};
    out.h = last - first + 1 - out.top - out.bottom;
    if (out.right < 0) out.right = 0; /* a stride that leaves the last column unread */
    return out;
}

/* The weights in the layout that the product wants: ones that are there, or laid out anew. */
static int pack(struct kx_layer *l, struct conv_piece *p, const struct kx_product *product,
                const struct kx_packed **out, struct kn_err *err) {
    for (int i = 0; i < p->count; i++)
        if (kx_packed_fits(p->packed[i], product)) {
            *out = p->packed[i];
            return 0;
        }
    if (p->count == LAYOUTS_MAX)
        return kn_err_set(err, KN_ELIMIT, "more than %d layouts of one layer's weights", LAYOUTS_MAX);
    float *copy = NULL, *plain = l->plain;
    int rc = 0;
    if (plain)
        for (const struct conv_piece *before = l->piece; before < p; before++)
            plain += piece_floats(l, before);
    else if (!(plain = copy = kx_aligned(piece_floats(l, p) * sizeof(float))))
        rc = kn_err_set(err, KN_EOOM, "out of memory for weights");
    else
        rc = kx_packed_read(p->packed[0], copy, err);
    if (!rc) rc = kx_packed_create(product, plain, &p->packed[p->count], err);
    free(copy);
    if (!rc) *out = p->packed[p->count++];
    return rc;
}

static int fill(struct kx_cpu *ctx, struct kx_layer *l, struct variant *v, struct kn_err *err) {
    size_t tmp = 0;
    for (int s = 0; s < v->stripes; s++)
        for (int i = 0; i < l->pieces; i++) {
            struct cell *c = &v->cells[s * l->pieces + i];
            struct kx_product_shape shape = product_shape(l, v, &v->stripe[s], &l->piece[i]);
            int rc = kx_product_get(ctx->dnn, &shape, &c->product, err);
            if (!rc) rc = pack(l, &l->piece[i], c->product, &c->weights, err);
            if (rc) return rc;
            size_t bytes = (size_t)v->stripe[s].rows * (size_t)v->columns * (size_t)l->piece[i].width *
                           (size_t)l->per * sizeof(float);
            if (bytes > tmp && !l->dense) tmp = bytes;
            bytes = kx_product_scratch(c->product);
            if (bytes > v->product_bytes) v->product_bytes = bytes;
        }
    v->product_bytes = kx_round64(v->product_bytes);
    v->scratch_bytes = v->product_bytes + kx_round64(tmp);
    free(l->plain);
    l->plain = NULL;
    return 0;
}

static struct variant *make(struct kx_cpu *ctx, struct kx_layer *l, int h, int w, bool sum) {
    struct kn_err err = {0};
    int pad = l->kernel / 2, stride = l->shape.stride, rc = KN_ENOMEM;
    struct variant *v = calloc(1, sizeof *v);
    if (v) {
        *v = (struct variant){.h = h, .w = w, .sum = sum, .rows = h, .columns = w};
        if (l->phases == 1) {
            v->rows = (h + 2 * pad - l->kernel) / stride + 1;
            v->columns = (w + 2 * pad - l->kernel) / stride + 1;
        }
        cut_rows(l, v);
        v->cells = calloc((size_t)v->stripes * (size_t)l->pieces, sizeof *v->cells);
    }
    rc = v && v->cells ? fill(ctx, l, v, &err) : kn_err_set(&err, KN_ENOMEM, "out of memory");
    if (rc) {
        if (v) free(v->cells);
        free(v);
        kx_cpu_fail(ctx, rc, err.text);
        return NULL;
    }
    v->next = l->variants;
    return l->variants = v;
}

/* ---- running */

struct conv_run {
    struct kx_cpu *ctx;
    const struct kx_layer *l;
    const struct variant *v;
    const float *x, *bias, *residual;
    float *y;
};

static void activate(const struct kx_vector *v, enum kx_act act, float *x, size_t n) {
    if (act == KX_ACT_SILU)
        v->silu(x, x, n);
    else if (act == KX_ACT_GELU)
        v->gelu(x, n);
    else if (act == KX_ACT_QUICK_GELU)
        v->quick_gelu(x, n);
}

/* From the scratch to where the item's pixels lie in y. */
static void place(const struct conv_run *r, const struct stripe *s, const struct conv_piece *p, float *tmp) {
    const struct kx_vector *vector = r->ctx->vector;
    bool glu = r->l->shape.act == KX_ACT_GEGLU;
    size_t columns = (size_t)r->v->columns, width = (size_t)p->width, step = r->l->phases == 4 ? 2 : 1,
           odd_row = (size_t)p->phase >> 1, odd_column = (size_t)p->phase & 1,
           out = (size_t)(glu ? r->l->shape.out / 2 : r->l->shape.out);
    const float *second = tmp + (size_t)s->rows * columns * width;
    if (!glu) activate(vector, r->l->shape.act, tmp, (size_t)s->rows * columns * width);
    for (size_t row = 0; row < (size_t)s->rows; row++) {
        size_t line = ((size_t)s->y + row) * step + odd_row;
        for (size_t column = 0; column < columns; column++, tmp += width, second += width) {
            size_t at = (line * columns * step + column * step + odd_column) * out + (size_t)p->from;
            if (glu)
                vector->geglu(tmp, second, r->y + at, width);
            else if (r->residual)
                vector->add(tmp, r->residual + at, r->y + at, width);
            else
                memcpy(r->y + at, tmp, width * sizeof *tmp);
        }
    }
}

static void run_item(void *arg, int item, const struct kx_seat *seat) {
    const struct conv_run *r = arg;
    const struct kx_layer *l = r->l;
    const struct variant *v = r->v;
    int group = item / v->stripes, number = item % v->stripes;
    const struct stripe *s = &v->stripe[number];
    const struct conv_piece *pieces = &l->piece[group * l->per];
    float *tmp = (float *)(void *)((char *)seat->scratch + v->product_bytes), *to = tmp;
    size_t pixels = (size_t)s->rows * (size_t)v->columns, out = (size_t)l->shape.out;
    if (l->dense) to = r->y + (size_t)s->y * (size_t)v->columns * out;
    for (int i = 0; i < l->per; i++) {
        const struct cell *c = &v->cells[number * l->pieces + group * l->per + i];
        int first, last;
        input_rows(l, s, pieces[i].phase, &first, &last);
        const float *x = r->x + (size_t)(first < 0 ? 0 : first) * (size_t)v->w * (size_t)l->shape.in;
        if (l->dense && r->residual && r->residual != r->y)
            memcpy(to, r->residual + (to - r->y), pixels * out * sizeof *to);
        if (kx_product_run(c->product, seat->number, x, c->weights, r->bias + pieces[i].from,
                           to + (size_t)i * pixels * (size_t)pieces[i].width, seat->scratch))
            kx_cpu_fail(r->ctx, KN_EINTERNAL, "oneDNN: a convolution failed");
    }
    if (!l->dense) place(r, s, pieces, tmp);
}

/* y = act(layer(x) + time_proj) + residual, or its plan. x: h × w pixels. time_proj and residual: or NULL. */
static void layer_run(struct kx_cpu *ctx, struct kx_layer *l, const float *x, int h, int w,
                      const float *time_proj, const float *residual, float *y) {
    struct variant *v = find(l, h, w, residual);
    assert(!(residual && l->shape.act == KX_ACT_GEGLU));
    if (ctx->base.planning) {
        if (v || (v = make(ctx, l, h, w, residual)))
            kx_want(ctx, (size_t)l->shape.out * sizeof(float), v->scratch_bytes);
        return;
    }
    assert(v); /* planned with this size */
    struct conv_run r = {ctx, l, v, x, l->bias, residual, y};
    if (time_proj) {
        float *sum = ctx->workspace;
        for (int i = 0; i < l->shape.out; i++) sum[i] = l->bias[i] + time_proj[i];
        r.bias = sum;
    }
    kx_parallel(ctx, v->stripes * l->phases * l->slices, run_item, &r);
}

/* ---- the ops of kernels/ops.h */

/* Each is a layer; the types keep them apart. */
static struct kx_layer *of_conv(struct kx_conv *c) {
    return (struct kx_layer *)c;
}
static struct kx_layer *of_linear(struct kx_linear *l) {
    return (struct kx_layer *)l;
}

/* The one image's time_proj; NULL: none. */
static const float *time_proj_of(const struct kx_rows *r) {
    if (!r || !r->v) return NULL;
    return (const float *)r->v + (r->index ? (size_t)r->index[0] * r->stride : 0);
}

int kx_cpu_conv_create(struct kx_ctx *ctx, const struct kx_conv_shape *s, const float *weight,
                       const float *bias, struct kx_conv **out, struct kn_err *err) {
    struct kx_layer *l;
    int rc =
        layer_create(kx_cpu_of(ctx),
                     &(struct kx_layer_shape){s->in, s->out, s->kernel, s->stride, s->upsample, KX_ACT_NONE},
                     weight, bias, &l, err);
    *out = (struct kx_conv *)l;
    return rc;
}

int kx_cpu_conv_set(struct kx_ctx *ctx, struct kx_conv *c, const float *weight, struct kn_err *err) {
    (void)ctx;
    return layer_set(of_conv(c), weight, err);
}

void kx_cpu_conv_destroy(struct kx_conv *c) {
    layer_destroy(of_conv(c));
}

void kx_cpu_conv(struct kx_ctx *ctx, struct kx_conv *c, const struct kx_tensor *x,
                 const struct kx_rows *time_proj, const struct kx_tensor *residual, struct kx_tensor *y) {
    const struct kx_layer_shape *s = &of_conv(c)->shape;
    int h = s->upsample ? 2 * x->h : x->h, w = s->upsample ? 2 * x->w : x->w, pad = s->kernel / 2;
    assert(x->n == 1 && y->n == 1 && x->c == s->in && y->c == s->out);
    assert(y->h == (h + 2 * pad - s->kernel) / s->stride + 1 &&
           y->w == (w + 2 * pad - s->kernel) / s->stride + 1);
    assert(!residual || kx_count(residual) == kx_count(y));
    layer_run(kx_cpu_of(ctx), of_conv(c), x->v, x->h, x->w, ctx->planning ? NULL : time_proj_of(time_proj),
              residual ? residual->v : NULL, y->v);
}

int kx_cpu_linear_create(struct kx_ctx *ctx, int in, int out, enum kx_act act, const float *weight,
                         const float *bias, struct kx_linear **out_linear, struct kn_err *err) {
    struct kx_layer *l;
    int rc = layer_create(kx_cpu_of(ctx), &(struct kx_layer_shape){in, out, 1, 1, false, act}, weight, bias,
                          &l, err);
    *out_linear = (struct kx_linear *)l;
    return rc;
}

int kx_cpu_linear_set(struct kx_ctx *ctx, struct kx_linear *l, const float *weight, struct kn_err *err) {
    (void)ctx;
    return layer_set(of_linear(l), weight, err);
}

void kx_cpu_linear_destroy(struct kx_linear *l) {
    layer_destroy(of_linear(l));
}

void kx_cpu_linear(struct kx_ctx *ctx, struct kx_linear *l, const struct kx_tensor *x,
                   const struct kx_tensor *residual, struct kx_tensor *y) {
    const struct kx_layer_shape *s = &of_linear(l)->shape;
    int rows = x->h * x->w;
    assert(x->n == 1 && x->c == s->in && y->c == (s->act == KX_ACT_GEGLU ? s->out / 2 : s->out) &&
           kx_count(y) == (size_t)rows * (size_t)y->c);
    assert(!residual || kx_count(residual) == kx_count(y));
    layer_run(kx_cpu_of(ctx), of_linear(l), x->v, rows, 1, NULL, residual ? residual->v : NULL, y->v);
}
