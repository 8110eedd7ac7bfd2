/* See the header. Generation 2 describes an operation first and makes the primitive's descriptor of it, and
 * memory descriptors are values; generation 3 does it in one call, and they are handles. The macros and the
 * two functions under DNNL_VERSION_MAJOR are all of the difference. */
#include "kernels/cpu/onednn.h"

#include <dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <omp.h>

struct kx_dnn {
    dnnl_engine_t engine;
    dnnl_stream_t *streams;
    int lanes;
    char facts[64];
};

struct kx_product {
    struct kx_dnn *dnn; /* borrowed */
    struct kx_product_shape shape;
    dnnl_primitive_desc_t desc; /* owns; the layouts below are parts of it */
    dnnl_primitive_t primitive;
    struct arguments {
        dnnl_memory_t x, weights, bias, y, scratch;
    } * lanes; /* one a lane; only their addresses change */
};

#if DNNL_VERSION_MAJOR < 3
typedef dnnl_memory_desc_t layout;
typedef const dnnl_memory_desc_t *layout_ref;
#define REF(l) (&(l))
static dnnl_status_t layout_make(layout *l, int n, const dnnl_dims_t dims, dnnl_format_tag_t tag) {
    return dnnl_memory_desc_init_by_tag(l, n, dims, dnnl_f32, tag);
}
static void layout_fini(layout *l) {
    (void)l;
}
static dnnl_status_t append_sum(dnnl_post_ops_t ops) {
    return dnnl_post_ops_append_sum(ops, 1.0f);
}
static dnnl_status_t describe(dnnl_primitive_desc_t *out, dnnl_engine_t engine, layout_ref x,
                              layout_ref weights, layout_ref bias, layout_ref y, const dnnl_dims_t strides,
                              const dnnl_dims_t padding, dnnl_primitive_attr_t attr) {
    dnnl_convolution_desc_t d;
    dnnl_status_t s = dnnl_convolution_forward_desc_init(&d, dnnl_forward_inference, dnnl_convolution_direct,
                                                         x, weights, bias, y, strides, padding, padding);
    return s ? s : dnnl_primitive_desc_create(out, &d, attr, engine, NULL);
}
#else
typedef dnnl_memory_desc_t layout;
typedef const_dnnl_memory_desc_t layout_ref;
#define REF(l) (l)
static dnnl_status_t layout_make(layout *l, int n, const dnnl_dims_t dims, dnnl_format_tag_t tag) {
    return dnnl_memory_desc_create_with_tag(l, n, dims, dnnl_f32, tag);
}
static void layout_fini(layout *l) {
    dnnl_memory_desc_destroy(*l);
}
static dnnl_status_t append_sum(dnnl_post_ops_t ops) {
    return dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef);
}
static dnnl_status_t describe(dnnl_primitive_desc_t *out, dnnl_engine_t engine, layout_ref x,
                              layout_ref weights, layout_ref bias, layout_ref y, const dnnl_dims_t strides,
                              const dnnl_dims_t padding, dnnl_primitive_attr_t attr) {
    const dnnl_dims_t dilation = {0, 0};
    return dnnl_convolution_forward_primitive_desc_create(out, engine, dnnl_forward_inference,
                                                          dnnl_convolution_direct, x, weights, bias, y,
                                                          strides, dilation, padding, padding, attr);
}
#endif

static int failed(dnnl_status_t s, const char *what, const struct kx_product_shape *p, struct kn_err *err) {
    int code = s == dnnl_out_of_memory ? KN_EOOM : s == dnnl_unimplemented ? KN_EUNSUPPORTED : KN_EINTERNAL;
    if (!p) return kn_err_set(err, code, "oneDNN: %s: status %d", what, (int)s);
    return kn_err_set(err, code, "oneDNN: %s: status %d (%d to %d channels, %dx%d, kernel %d, stride %d)",
                      what, (int)s, p->in, p->out, p->h, p->w, p->kernel, p->stride);
}

int kx_dnn_create(int lanes, struct kx_dnn **out, struct kn_err *err) {
    *out = NULL;
    struct kx_dnn *d = calloc(1, sizeof *d);
    if (!d || !(d->streams = calloc((size_t)lanes, sizeof(dnnl_stream_t)))) {
        free(d);
        return kn_err_set(err, KN_ENOMEM, "out of memory");
    }
    dnnl_status_t s = dnnl_engine_create(&d->engine, dnnl_cpu, 0);
    for (d->lanes = 0; !s && d->lanes < lanes; d->lanes++)
        s = dnnl_stream_create(&d->streams[d->lanes], d->engine, dnnl_stream_default_flags);
    if (s) {
        kx_dnn_destroy(d);
        return failed(s, "starting", NULL, err);
    }
    const dnnl_version_t *v = dnnl_version();
    snprintf(d->facts, sizeof d->facts, "onednn %d.%d.%d isa %d", v->major, v->minor, v->patch,
             (int)dnnl_get_effective_cpu_isa());
    *out = d;
    return 0;
}

void kx_dnn_destroy(struct kx_dnn *d) {
    if (!d) return;
    for (int i = 0; i < d->lanes; i++)
        if (d->streams[i]) dnnl_stream_destroy(d->streams[i]);
    if (d->engine) dnnl_engine_destroy(d->engine);
    free(d->streams);
    free(d);
}

const char *kx_dnn_facts(const struct kx_dnn *d) {
    return d->facts;
}

static layout_ref part(const struct kx_product *p, dnnl_query_t what) {
    return dnnl_primitive_desc_query_md(p->desc, what, 0);
}

static int describe_product(struct kx_product *p) {
    const struct kx_product_shape *s = &p->shape;
    int pad = s->kernel / 2;
    int h = (s->h + 2 * pad - s->kernel) / s->stride + 1, w = (s->w + 2 * pad - s->kernel) / s->stride + 1;
    layout x, weights, bias, y;
    dnnl_status_t st = layout_make(&x, 4, (dnnl_dims_t){1, s->in, s->h, s->w}, dnnl_nhwc);
    if (!st)
        st =
            layout_make(&weights, 4, (dnnl_dims_t){s->out, s->in, s->kernel, s->kernel}, dnnl_format_tag_any);
    if (!st) st = layout_make(&bias, 1, (dnnl_dims_t){s->out}, dnnl_a);
    if (!st) st = layout_make(&y, 4, (dnnl_dims_t){1, s->out, h, w}, dnnl_nhwc);
    if (st) return (int)st; /* out of memory alone; what was made is lost with the process' hope */
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    st = dnnl_primitive_attr_create(&attr);
    if (!st) st = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (!st && s->sum) {
        st = dnnl_post_ops_create(&ops);
        if (!st) st = append_sum(ops);
        if (!st) st = dnnl_primitive_attr_set_post_ops(attr, ops);
    }
    if (!st)
        st = describe(&p->desc, p->dnn->engine, REF(x), REF(weights), s->bias ? REF(bias) : NULL, REF(y),
                      (dnnl_dims_t){s->stride, s->stride}, (dnnl_dims_t){pad, pad}, attr);
    if (ops) dnnl_post_ops_destroy(ops);
    if (attr) dnnl_primitive_attr_destroy(attr);
    layout_fini(&x), layout_fini(&weights), layout_fini(&bias), layout_fini(&y);
    return (int)st;
}

static dnnl_status_t make_arguments(struct kx_product *p) {
    dnnl_engine_t e = p->dnn->engine;
    dnnl_status_t s = dnnl_success;
    for (int i = 0; i < p->dnn->lanes && !s; i++) {
        struct arguments *a = &p->lanes[i];
        s = dnnl_memory_create(&a->x, part(p, dnnl_query_src_md), e, DNNL_MEMORY_NONE);
        if (!s) s = dnnl_memory_create(&a->weights, part(p, dnnl_query_weights_md), e, DNNL_MEMORY_NONE);
        if (!s && p->shape.bias)
            s = dnnl_memory_create(&a->bias, dnnl_primitive_desc_query_md(p->desc, dnnl_query_weights_md, 1),
                                   e, DNNL_MEMORY_NONE);
        if (!s) s = dnnl_memory_create(&a->y, part(p, dnnl_query_dst_md), e, DNNL_MEMORY_NONE);
        if (!s) s = dnnl_memory_create(&a->scratch, part(p, dnnl_query_scratchpad_md), e, DNNL_MEMORY_NONE);
    }
    return s;
}

int kx_product_create(struct kx_dnn *d, const struct kx_product_shape *shape, int threads,
                      struct kx_product **out, struct kn_err *err) {
    *out = NULL;
    struct kx_product *p = calloc(1, sizeof *p);
    if (!p || !(p->lanes = calloc((size_t)d->lanes, sizeof *p->lanes))) {
        free(p);
        return kn_err_set(err, KN_ENOMEM, "out of memory");
    }
    p->dnn = d;
    p->shape = *shape;
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    dnnl_status_t s = (dnnl_status_t)describe_product(p);
    if (!s) s = dnnl_primitive_create(&p->primitive, p->desc);
    omp_set_num_threads(before);
    if (!s) s = make_arguments(p);
    if (s) {
        kx_product_destroy(p);
        return failed(s, "convolution", shape, err);
    }
    *out = p;
    return 0;
}

void kx_product_destroy(struct kx_product *p) {
    if (!p) return;
    for (int i = 0; i < p->dnn->lanes; i++) {
        dnnl_memory_t all[] = {p->lanes[i].x, p->lanes[i].weights, p->lanes[i].bias, p->lanes[i].y,
                               p->lanes[i].scratch};
        for (int k = 0; k < 5; k++)
            if (all[k]) dnnl_memory_destroy(all[k]);
    }
    if (p->primitive) dnnl_primitive_destroy(p->primitive);
    if (p->desc) dnnl_primitive_desc_destroy(p->desc);
    free(p->lanes);
    free(p);
}

size_t kx_product_workspace(const struct kx_product *p) {
    return (dnnl_memory_desc_get_size(part(p, dnnl_query_scratchpad_md)) + 63) & ~(size_t)63;
}

size_t kx_product_weight_bytes(const struct kx_product *p) {
    return dnnl_memory_desc_get_size(part(p, dnnl_query_weights_md));
}

bool kx_product_same_weights(const struct kx_product *a, const struct kx_product *b) {
    return dnnl_memory_desc_equal(part(a, dnnl_query_weights_md), part(b, dnnl_query_weights_md));
}

int kx_product_pack(struct kx_product *p, const struct kx_product *from, const float *weights, float *packed,
                    struct kn_err *err) {
    const struct kx_product_shape *s = &p->shape;
    dnnl_engine_t e = p->dnn->engine;
    layout plain;
    dnnl_memory_t src = NULL, dst = NULL;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_t reorder = NULL;
    dnnl_status_t st = layout_make(&plain, 4, (dnnl_dims_t){s->out, s->in, s->kernel, s->kernel}, dnnl_oihw);
    if (st) return failed(st, "weights", s, err);
    layout_ref source = from ? part(from, dnnl_query_weights_md) : REF(plain),
               target = part(p, dnnl_query_weights_md);
    st = dnnl_memory_create(&src, source, e, (void *)weights);
    if (!st) st = dnnl_memory_create(&dst, target, e, packed);
    if (!st) st = dnnl_reorder_primitive_desc_create(&desc, source, e, target, e, NULL);
    if (!st) st = dnnl_primitive_create(&reorder, desc);
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, src}, {DNNL_ARG_TO, dst}};
    if (!st) st = dnnl_primitive_execute(reorder, p->dnn->streams[0], 2, args);
    if (!st) st = dnnl_stream_wait(p->dnn->streams[0]);
    if (reorder) dnnl_primitive_destroy(reorder);
    if (desc) dnnl_primitive_desc_destroy(desc);
    if (dst) dnnl_memory_destroy(dst);
    if (src) dnnl_memory_destroy(src);
    layout_fini(&plain);
    return st ? failed(st, "weights", s, err) : 0;
}

int kx_product_run(struct kx_product *p, int lane, const float *x, const float *weights, const float *bias,
                   float *y, void *workspace) {
    struct arguments *a = &p->lanes[lane];
    dnnl_status_t s = dnnl_memory_set_data_handle(a->x, (void *)x);
    if (!s) s = dnnl_memory_set_data_handle(a->weights, (void *)weights);
    if (!s && a->bias) s = dnnl_memory_set_data_handle(a->bias, (void *)bias);
    if (!s) s = dnnl_memory_set_data_handle(a->y, y);
    if (!s) s = dnnl_memory_set_data_handle(a->scratch, workspace);
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, a->x},
                              {DNNL_ARG_WEIGHTS, a->weights},
                              {DNNL_ARG_DST, a->y},
                              {DNNL_ARG_SCRATCHPAD, a->scratch},
                              {DNNL_ARG_BIAS, a->bias}};
    if (!s) s = dnnl_primitive_execute(p->primitive, p->dnn->streams[lane], a->bias ? 5 : 4, args);
    if (!s) s = dnnl_stream_wait(p->dnn->streams[lane]);
    return s ? KN_EINTERNAL : 0;
}
