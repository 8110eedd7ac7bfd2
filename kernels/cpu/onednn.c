/* See the header. Generation 2 describes an operation first and makes the primitive's descriptor of it, and
 * memory descriptors are values; generation 3 does it in one call, and they are handles. The code under
 * DNNL_VERSION_MAJOR is all of the difference. */
#include "kernels/cpu/onednn.h"

#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct kx_dnn {
    dnnl_engine_t engine;
    dnnl_stream_t *streams; /* one a seat */
    int seats;
    struct kx_product *products;
    int count; /* of them */
    char facts[128];
};

struct kx_product {
    struct kx_dnn *dnn; /* borrowed */
    struct kx_product_shape shape;
    dnnl_primitive_desc_t desc; /* owns; the layouts below are parts of it */
    dnnl_primitive_t primitive;
    size_t scratch_bytes;
    struct arguments {
        dnnl_memory_t x, bias, y, scratch;
    } * seats; /* only their addresses change */
    struct kx_product *next;
};

struct kx_packed {
    struct kx_dnn *dnn; /* borrowed */
    int out, in, kernel;
    float *v;             /* owns */
    dnnl_memory_t memory; /* has the layout; read only: every seat may use it */
};

#if DNNL_VERSION_MAJOR < 3
typedef dnnl_memory_desc_t layout;
typedef const dnnl_memory_desc_t *layout_ref;
#define REF(l) (&(l))
#define NO_LAYOUT                                                                                            \
    { 0 }
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
                              const dnnl_dims_t before, const dnnl_dims_t after, dnnl_primitive_attr_t attr) {
    dnnl_convolution_desc_t d;
    dnnl_status_t s = dnnl_convolution_forward_desc_init(&d, dnnl_forward_inference, dnnl_convolution_direct,
                                                         x, weights, bias, y, strides, before, after);
    return s ? s : dnnl_primitive_desc_create(out, &d, attr, engine, NULL);
}
#else
typedef dnnl_memory_desc_t layout;
typedef const_dnnl_memory_desc_t layout_ref;
#define REF(l) (l)
#define NO_LAYOUT NULL
static dnnl_status_t layout_make(layout *l, int n, const dnnl_dims_t dims, dnnl_format_tag_t tag) {
    return dnnl_memory_desc_create_with_tag(l, n, dims, dnnl_f32, tag);
}
static void layout_fini(layout *l) {
    if (*l) dnnl_memory_desc_destroy(*l);
}
static dnnl_status_t append_sum(dnnl_post_ops_t ops) {
    return dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef);
}
static dnnl_status_t describe(dnnl_primitive_desc_t *out, dnnl_engine_t engine, layout_ref x,
                              layout_ref weights, layout_ref bias, layout_ref y, const dnnl_dims_t strides,
                              const dnnl_dims_t before, const dnnl_dims_t after, dnnl_primitive_attr_t attr) {
    const dnnl_dims_t dilation = {0, 0};
    return dnnl_convolution_forward_primitive_desc_create(out, engine, dnnl_forward_inference,
                                                          dnnl_convolution_direct, x, weights, bias, y,
                                                          strides, dilation, before, after, attr);
}
#endif

static int failed(dnnl_status_t s, const char *what, const struct kx_product_shape *p, struct kn_err *err) {
    int code = s == dnnl_out_of_memory ? KN_EOOM : s == dnnl_unimplemented ? KN_EUNSUPPORTED : KN_EINTERNAL;
    if (!p) return kn_err_set(err, code, "oneDNN: %s: status %d", what, (int)s);
    return kn_err_set(err, code, "oneDNN: %s: status %d (%d to %d channels, %dx%d, kernel %d, stride %d)",
                      what, (int)s, p->in, p->out, p->w, p->h, p->kernel, p->stride);
}

#if DNNL_CPU_THREADING_RUNTIME != DNNL_RUNTIME_OMP && DNNL_CPU_THREADING_RUNTIME != DNNL_RUNTIME_SEQ
#error                                                                                                       \
    "oneDNN must be one built with OpenMP, or with no threads: it is given one thread, and others cannot be"
#endif

/* OpenMP's number of threads is each thread's own. With 1, oneDNN never opens a parallel region. */
static void alone(void) {
#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP
    if (omp_get_max_threads() != 1) omp_set_num_threads(1);
#endif
}

int kx_dnn_create(int seats, struct kx_dnn **out, struct kn_err *err) {
    *out = NULL;
    struct kx_dnn *d = calloc(1, sizeof *d);
    if (!d || !(d->streams = calloc((size_t)seats, sizeof(dnnl_stream_t)))) {
        free(d);
        return kn_err_set(err, KN_ENOMEM, "out of memory");
    }
    d->seats = seats;
    dnnl_status_t s = dnnl_engine_create(&d->engine, dnnl_cpu, 0);
    for (int i = 0; !s && i < seats; i++)
        s = dnnl_stream_create(&d->streams[i], d->engine, dnnl_stream_default_flags);
    if (s) {
        kx_dnn_destroy(d);
        return failed(s, "starting", NULL, err);
    }
    const dnnl_version_t *v = dnnl_version();
    snprintf(d->facts, sizeof d->facts, "oneDNN %d.%d.%d %.12s isa %x hints %x", v->major, v->minor, v->patch,
             v->hash, (unsigned)dnnl_get_effective_cpu_isa(), (unsigned)dnnl_get_cpu_isa_hints());
    *out = d;
    return 0;
}

static void product_destroy(struct kx_product *p) {
    for (int i = 0; p->seats && i < p->dnn->seats; i++) {
        dnnl_memory_t all[] = {p->seats[i].x, p->seats[i].bias, p->seats[i].y, p->seats[i].scratch};
        for (int k = 0; k < 4; k++)
            if (all[k]) dnnl_memory_destroy(all[k]);
    }
    if (p->primitive) dnnl_primitive_destroy(p->primitive);
    if (p->desc) dnnl_primitive_desc_destroy(p->desc);
    free(p->seats);
    free(p);
}

void kx_dnn_forget(struct kx_dnn *d) {
    for (struct kx_product *p = d->products, *next; p; p = next) {
        next = p->next;
        product_destroy(p);
    }
    d->products = NULL;
    d->count = 0;
}

int kx_dnn_count(const struct kx_dnn *d) {
    return d->count;
}

void kx_dnn_destroy(struct kx_dnn *d) {
    if (!d) return;
    kx_dnn_forget(d);
    for (int i = 0; i < d->seats; i++)
        if (d->streams[i]) dnnl_stream_destroy(d->streams[i]);
    if (d->engine) dnnl_engine_destroy(d->engine);
    free(d->streams);
    free(d);
}

const char *kx_dnn_facts(const struct kx_dnn *d) {
    return d->facts;
}

/* ---- products */

static layout_ref part(const struct kx_product *p, dnnl_query_t what, int index) {
    return dnnl_primitive_desc_query_md(p->desc, what, index);
}

/* oneDNN keeps its own scratch in our memory, f32 stays f32 whatever the environment says, and y is added to.
 */
static dnnl_status_t make_attributes(bool sum, dnnl_primitive_attr_t *out) {
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t s = dnnl_primitive_attr_create(out);
    if (!s) s = dnnl_primitive_attr_set_scratchpad_mode(*out, dnnl_scratchpad_mode_user);
    if (!s) s = dnnl_primitive_attr_set_fpmath_mode(*out, dnnl_fpmath_mode_strict);
    if (!s && sum) {
        s = dnnl_post_ops_create(&ops);
        if (!s) s = append_sum(ops);
        if (!s) s = dnnl_primitive_attr_set_post_ops(*out, ops);
    }
    if (ops) dnnl_post_ops_destroy(ops);
    return s;
}

static dnnl_status_t describe_product(struct kx_product *p) {
    const struct kx_product_shape *s = &p->shape;
    int h = (s->h + s->top + s->bottom - s->kernel) / s->stride + 1,
        w = (s->w + s->left + s->right - s->kernel) / s->stride + 1;
    layout x = NO_LAYOUT, weights = NO_LAYOUT, bias = NO_LAYOUT, y = NO_LAYOUT;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t st = layout_make(&x, 4, (dnnl_dims_t){1, s->in, s->h, s->w}, dnnl_nhwc);
    const dnnl_dims_t kernel = {s->out, s->in, s->kernel, s->kernel};
    if (!st) st = layout_make(&weights, 4, kernel, dnnl_format_tag_any);
    if (!st) st = layout_make(&bias, 1, (dnnl_dims_t){s->out}, dnnl_a);
    if (!st) st = layout_make(&y, 4, (dnnl_dims_t){1, s->out, h, w}, dnnl_nhwc);
    if (!st) st = make_attributes(s->sum, &attr);
    if (!st)
        st = describe(&p->desc, p->dnn->engine, REF(x), REF(weights), REF(bias), REF(y),
                      (dnnl_dims_t){s->stride, s->stride}, (dnnl_dims_t){s->top, s->left},
                      (dnnl_dims_t){s->bottom, s->right}, attr);
    if (attr) dnnl_primitive_attr_destroy(attr);
    layout_fini(&x), layout_fini(&weights), layout_fini(&bias), layout_fini(&y);
    return st;
}

static dnnl_status_t make_arguments(struct kx_product *p) {
    dnnl_engine_t e = p->dnn->engine;
    dnnl_status_t s = dnnl_success;
    for (int i = 0; i < p->dnn->seats && !s; i++) {
        struct arguments *a = &p->seats[i];
        s = dnnl_memory_create(&a->x, part(p, dnnl_query_src_md, 0), e, DNNL_MEMORY_NONE);
        if (!s) s = dnnl_memory_create(&a->bias, part(p, dnnl_query_weights_md, 1), e, DNNL_MEMORY_NONE);
        if (!s) s = dnnl_memory_create(&a->y, part(p, dnnl_query_dst_md, 0), e, DNNL_MEMORY_NONE);
        if (!s)
            s = dnnl_memory_create(&a->scratch, part(p, dnnl_query_scratchpad_md, 0), e, DNNL_MEMORY_NONE);
    }
    return s;
}

int kx_product_get(struct kx_dnn *d, const struct kx_product_shape *shape, struct kx_product **out,
                   struct kn_err *err) {
    for (struct kx_product *p = d->products; p; p = p->next)
        if (!memcmp(&p->shape, shape, sizeof *shape)) {
            *out = p;
            return 0;
        }
    *out = NULL;
    struct kx_product *p = calloc(1, sizeof *p);
    if (!p || !(p->seats = calloc((size_t)d->seats, sizeof *p->seats))) {
        free(p);
        return kn_err_set(err, KN_ENOMEM, "out of memory");
    }
    p->dnn = d;
    p->shape = *shape;
    alone();
    dnnl_status_t s = describe_product(p);
    if (!s) s = dnnl_primitive_create(&p->primitive, p->desc);
    if (!s) s = make_arguments(p);
    if (s) {
        product_destroy(p);
        return failed(s, "convolution", shape, err);
    }
    p->scratch_bytes = dnnl_memory_desc_get_size(part(p, dnnl_query_scratchpad_md, 0));
    p->next = d->products;
    d->products = *out = p;
    d->count++;
    return 0;
}

size_t kx_product_scratch(const struct kx_product *p) {
    return p->scratch_bytes;
}

int kx_product_run(struct kx_product *p, int seat, const float *x, const struct kx_packed *weights,
                   const float *bias, float *y, void *scratch) {
    struct arguments *a = &p->seats[seat];
    alone();
    dnnl_status_t s = dnnl_memory_set_data_handle(a->x, (void *)x);
    if (!s) s = dnnl_memory_set_data_handle(a->bias, (void *)bias);
    if (!s) s = dnnl_memory_set_data_handle(a->y, y);
    if (!s && p->scratch_bytes) s = dnnl_memory_set_data_handle(a->scratch, scratch);
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, a->x},
                              {DNNL_ARG_WEIGHTS, weights->memory},
                              {DNNL_ARG_BIAS, a->bias},
                              {DNNL_ARG_DST, a->y},
                              {DNNL_ARG_SCRATCHPAD, a->scratch}};
    if (!s) s = dnnl_primitive_execute(p->primitive, p->dnn->streams[seat], 5, args);
    if (!s) s = dnnl_stream_wait(p->dnn->streams[seat]);
    return s ? KN_EINTERNAL : 0;
}

/* ---- weights */

static dnnl_status_t reorder(struct kx_dnn *d, layout_ref from, dnnl_memory_t source, layout_ref to,
                             dnnl_memory_t target) {
    dnnl_engine_t e = d->engine;
    dnnl_stream_t stream = d->streams[0];
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_t primitive = NULL;
    alone();
    dnnl_status_t s = dnnl_reorder_primitive_desc_create(&desc, from, e, to, e, NULL);
    if (!s) s = dnnl_primitive_create(&primitive, desc);
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, source}, {DNNL_ARG_TO, target}};
    if (!s) s = dnnl_primitive_execute(primitive, stream, 2, args);
    if (!s) s = dnnl_stream_wait(stream);
    if (primitive) dnnl_primitive_destroy(primitive);
    if (desc) dnnl_primitive_desc_destroy(desc);
    return s;
}

/* Between `weights` in PyTorch's order and the packed ones. */
static dnnl_status_t convert(const struct kx_packed *k, float *weights, bool pack) {
    layout plain = NO_LAYOUT;
    layout_ref packed = NULL;
    dnnl_memory_t memory = NULL;
    dnnl_status_t st = layout_make(&plain, 4, (dnnl_dims_t){k->out, k->in, k->kernel, k->kernel}, dnnl_oihw);
    if (st) return st;
    st = dnnl_memory_get_memory_desc(k->memory, &packed);
    if (!st) st = dnnl_memory_create(&memory, REF(plain), k->dnn->engine, weights);
    if (!st)
        st = pack ? reorder(k->dnn, REF(plain), memory, packed, k->memory)
                  : reorder(k->dnn, packed, k->memory, REF(plain), memory);
    if (memory) dnnl_memory_destroy(memory);
    layout_fini(&plain);
    return st;
}

int kx_packed_create(const struct kx_product *p, const float *weights, struct kx_packed **out,
                     struct kn_err *err) {
    *out = NULL;
    struct kx_packed *k = calloc(1, sizeof *k);
    size_t bytes = dnnl_memory_desc_get_size(part(p, dnnl_query_weights_md, 0));
    if (k) k->v = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (!k || !k->v) {
        kx_packed_destroy(k);
        return kn_err_set(err, KN_EOOM, "out of memory for %zu MiB of weights", bytes >> 20);
    }
    k->dnn = p->dnn;
    k->out = p->shape.out;
    k->in = p->shape.in;
    k->kernel = p->shape.kernel;
    dnnl_status_t s = dnnl_memory_create(&k->memory, part(p, dnnl_query_weights_md, 0), p->dnn->engine, k->v);
    if (!s) s = convert(k, (float *)weights, true);
    if (s) {
        kx_packed_destroy(k);
        return failed(s, "weights", &p->shape, err);
    }
    *out = k;
    return 0;
}

void kx_packed_destroy(struct kx_packed *k) {
    if (!k) return;
    if (k->memory) dnnl_memory_destroy(k->memory);
    free(k->v);
    free(k);
}

bool kx_packed_fits(const struct kx_packed *k, const struct kx_product *p) {
    layout_ref packed = NULL;
    return !dnnl_memory_get_memory_desc(k->memory, &packed) &&
           dnnl_memory_desc_equal(packed, part(p, dnnl_query_weights_md, 0));
}

int kx_packed_read(const struct kx_packed *k, float *weights, struct kn_err *err) {
    struct kx_product_shape shape = {.in = k->in, .out = k->out, .kernel = k->kernel};
    dnnl_status_t s = convert(k, weights, false);
    return s ? failed(s, "weights", &shape, err) : 0;
}
