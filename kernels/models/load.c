#include "kernels/models/load.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void kx_loader_init(struct kx_loader *l, struct kx_ctx *ctx, const struct kx_weights *w, struct kn_err *err) {
    *l = (struct kx_loader){.ctx = ctx, .weights = w, .err = err};
    size_t n = kx_weights_count(w);
    l->used = calloc(n ? n : 1, sizeof *l->used);
    if (!l->used) l->rc = kn_err_set(err, KN_ENOMEM, "out of memory");
}

void kx_loader_fail(struct kx_loader *l, int code, const char *fmt, ...) {
    if (l->rc) return;
    char text[KN_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    l->rc = kn_err_set(l->err, code, "%s", text);
}

void *kx_loader_alloc(struct kx_loader *l, size_t count, size_t size) {
    if (l->rc) return NULL;
    void *p = calloc(count ? count : 1, size);
    if (!p) kx_loader_fail(l, KN_ENOMEM, "out of memory");
    return p;
}

void kx_loader_ignore(struct kx_loader *l, const char *const *prefixes) {
    size_t n = l->rc ? 0 : kx_weights_count(l->weights);
    for (size_t i = 0; i < n; i++)
        for (const char *const *p = prefixes; *p; p++)
            if (!strncmp(kx_weights_at(l->weights, i)->name, *p, strlen(*p))) l->used[i] = true;
}

int kx_loader_finish(struct kx_loader *l) {
    size_t n = l->rc ? 0 : kx_weights_count(l->weights);
    for (size_t i = 0; i < n && !l->rc; i++)
        if (!l->used[i])
            kx_loader_fail(l, KN_EPARSE, "%.200s: the configuration has no place for this tensor",
                           kx_weights_at(l->weights, i)->name);
    free(l->used);
    free(l->scratch);
    l->used = NULL;
    l->scratch = NULL;
    return l->rc;
}

/* ---- one tensor */

static size_t product(const int64_t *shape, int ndim) {
    size_t n = 1;
    for (int i = 0; i < ndim; i++) n *= (size_t)shape[i];
    return n;
}

static void print_shape(char *out, size_t size, const int64_t *shape, int ndim) {
    size_t at = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < ndim && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (at < size) snprintf(out + at, size - at, "]");
}

/* The tensor, once it has the shape; its use is noted. Trailing ones of the file's shape are passed over: a
 * linear layer written as a 1×1 convolution. NULL: failed. */
static const struct kx_weight *find(struct kx_loader *l, const char *prefix, const char *name,
                                    const char *kind, const int64_t *shape, int ndim) {
    if (l->rc) return NULL;
    char full[KX_TENSOR_NAME_MAX];
    int n = snprintf(full, sizeof full, "%s%s%s", prefix, name, kind);
    assert(n > 0 && (size_t)n < sizeof full);
    const struct kx_weight *w = kx_weights_find(l->weights, full);
    if (!w) {
        kx_loader_fail(l, KN_EPARSE, "%s: this tensor is missing", full);
        return NULL;
    }
    bool same = w->ndim >= ndim;
    for (int i = 0; i < w->ndim && same; i++) same = w->shape[i] == (i < ndim ? shape[i] : 1);
    if (!same) {
        char want[96], have[96];
        print_shape(want, sizeof want, shape, ndim);
        print_shape(have, sizeof have, w->shape, w->ndim);
        kx_loader_fail(l, KN_EPARSE, "%s: the shape is %s, the configuration wants %s", full, have, want);
        return NULL;
    }
    l->used[w - kx_weights_at(l->weights, 0)] = true;
    return w;
}

static void convert(struct kx_loader *l, const struct kx_weight *w, float *out) {
    if (!l->rc) l->rc = kx_weight_read(w, out, l->err);
}

/* Room for `floats` in the scratch buffer; NULL: failed. */
static float *scratch(struct kx_loader *l, size_t floats) {
    if (l->rc) return NULL;
    if (floats > l->scratch_floats) {
        free(l->scratch);
        l->scratch = malloc(floats * sizeof *l->scratch);
        l->scratch_floats = l->scratch ? floats : 0;
        if (!l->scratch) kx_loader_fail(l, KN_ENOMEM, "out of memory");
    }
    return l->scratch;
}

/* ---- their names */

void kx_parts_fini(struct kx_parts *p) {
    for (int i = 0; i < p->count; i++) free(p->v[i].name);
    free(p->v);
    *p = (struct kx_parts){0};
}

static void note(struct kx_loader *l, const char *prefix, const char *name, const struct kx_part *part) {
    struct kx_parts *p = l->parts;
    if (!p || l->rc) return;
    if (p->count == p->cap) {
        int cap = p->cap ? 2 * p->cap : 64;
        struct kx_part *v = realloc(p->v, (size_t)cap * sizeof *v);
        if (!v) {
            kx_loader_fail(l, KN_ENOMEM, "out of memory");
            return;
        }
        p->v = v;
        p->cap = cap;
    }
    char full[KX_TENSOR_NAME_MAX];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    p->v[p->count] = *part;
    if ((p->v[p->count].name = strdup(full)))
        p->count++;
    else
        kx_loader_fail(l, KN_ENOMEM, "out of memory");
}

/* ---- parts */

/* A vector in the context's memory. */
static float *load_vector(struct kx_loader *l, const char *prefix, const char *name, const char *kind,
                          int c) {
    const struct kx_weight *w = find(l, prefix, name, kind, (int64_t[]){c}, 1);
    float *v = w ? scratch(l, (size_t)c) : NULL, *out = NULL;
    if (!v) return NULL;
    convert(l, w, v);
    if (!l->rc && !(out = kx_alloc(l->ctx, (size_t)c * sizeof *v)))
        kx_loader_fail(l, KN_EOOM, "out of memory for weights");
    if (out) kx_upload(l->ctx, out, v, (size_t)c * sizeof *v);
    return out;
}

void kx_load_norm(struct kx_loader *l, const char *prefix, const char *name, int c, struct kx_norm *out) {
    out->gamma = load_vector(l, prefix, name, ".weight", c);
    out->beta = load_vector(l, prefix, name, ".bias", c);
}

void kx_norm_fini(struct kx_ctx *ctx, struct kx_norm *n) {
    kx_free(ctx, n->gamma);
    kx_free(ctx, n->beta);
    *n = (struct kx_norm){0};
}

void kx_load_table(struct kx_loader *l, const char *prefix, const char *name, int rows, int columns,
                   struct kx_table **out) {
    *out = NULL;
    const struct kx_weight *w = find(l, prefix, name, ".weight", (int64_t[]){rows, columns}, 2);
    float *v = w ? scratch(l, (size_t)rows * (size_t)columns) : NULL;
    if (!v) return;
    convert(l, w, v);
    if (!l->rc) l->rc = kx_table_create(l->ctx, rows, columns, v, out, l->err);
}

void kx_load_conv_scaled(struct kx_loader *l, const char *prefix, const char *name,
                         const struct kx_conv_shape *s, float factor, struct kx_conv **out) {
    *out = NULL;
    int64_t shape[] = {s->out, s->in, s->kernel, s->kernel};
    size_t n = product(shape, 4);
    /* a 1×1 convolution may be written as a matrix: find() wants no more dimensions than the file has */
    const struct kx_weight *w = find(l, prefix, name, ".weight", shape, s->kernel == 1 ? 2 : 4);
    const struct kx_weight *b = find(l, prefix, name, ".bias", shape, 1);
    float *v = w && b ? scratch(l, n + (size_t)s->out) : NULL;
    if (!v) return;
    convert(l, w, v);
    convert(l, b, v + n);
    if (factor != 1.0f)
        for (size_t i = 0; i < n; i++) v[i] *= factor;
    if (!l->rc) l->rc = kx_conv_create(l->ctx, s, v, v + n, out, l->err);
    if (!l->rc && factor == 1.0f)
        note(
            l, prefix, name,
            &(struct kx_part){
                .conv = *out, .rows = s->out, .columns = s->in * s->kernel * s->kernel, .kernel = s->kernel});
}

void kx_load_conv(struct kx_loader *l, const char *prefix, const char *name, const struct kx_conv_shape *s,
                  struct kx_conv **out) {
    kx_load_conv_scaled(l, prefix, name, s, 1.0f, out);
}

void kx_load_linear(struct kx_loader *l, const char *prefix, const char *const *names, int count, int in,
                    int out, bool bias, enum kx_act act, struct kx_linear **out_linear) {
    *out_linear = NULL;
    const struct kx_weight *w[KX_FUSED_MAX] = {NULL}, *b[KX_FUSED_MAX] = {NULL};
    assert(count <= KX_FUSED_MAX);
    for (int i = 0; i < count; i++) {
        w[i] = find(l, prefix, names[i], ".weight", (int64_t[]){out, in}, 2);
        if (bias) b[i] = find(l, prefix, names[i], ".bias", (int64_t[]){out}, 1);
    }
    size_t each = (size_t)in * (size_t)out, rows = (size_t)count * (size_t)out;
    float *v = scratch(l, rows * (size_t)in + rows);
    for (int i = 0; i < count && v; i++) {
        convert(l, w[i], v + (size_t)i * each);
        if (bias) convert(l, b[i], v + (size_t)count * each + (size_t)i * (size_t)out);
    }
    if (!l->rc)
        l->rc = kx_linear_create(l->ctx, in, count * out, act, v, bias ? v + rows * (size_t)in : NULL,
                                 out_linear, l->err);
    for (int i = 0; i < count; i++)
        note(l, prefix, names[i],
             &(struct kx_part){
                 .linear = *out_linear, .from = i * out, .rows = out, .columns = in, .kernel = 1});
}
