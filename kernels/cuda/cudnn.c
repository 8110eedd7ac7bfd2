/* Convolutions by cuDNN's graph API. See cudnn.h.
 *
 * A graph is up to three operations on tensors of n × c × h × w with the strides of NHWC:
 *
 *     conv:  X, W -> T0        T0, T1 virtual and f32: they never exist in memory
 *     add:   T0, R -> T1       residual
 *     add:   T1, B -> Y        bias: 1 × out × 1 × 1, f32; with a time_proj: n × out × 1 × 1, bias and
 *     time_proj summed
 *
 * of which the last writes Y in the storage type. Where the library has no engine for the whole of it, the
 * convolution alone is asked for and kx_cuda_finish_conv does the rest; where it has none for that either, it
 * says so. All of this is decided for a layer and an image's size, with KX_DNN_IMAGES images.
 *
 * Same bits. A result that an engine computes by a fixed tile and without dividing the sum over in × kernel ×
 * kernel among blocks does not depend on how many images there are. So of the heuristic's list (best first),
 * engines are left out that say of themselves that they are not deterministic, convert inputs down,
 * accumulate in less than f32, or transform (FFT, Winograd: the error is another); and configurations with a
 * knob that divides sums. That is not enough: an engine for Hopper says nothing and has no such knob, yet
 * asks for 2 MiB of workspace for two images of 16 × 16 × 1280 and for 131 bytes from sixteen on: with few
 * tiles it divides sums and keeps the parts there. So a plan that wants room for parts (more than
 * WORKSPACE_MAX) is none. The first configuration that can be built so for KX_DNN_IMAGES and for all numbers
 * in `probes` is the layer's, by its engine's number and its knobs; plans for other n are built from those.
 * tests/gpu/libraries.c measures the bits. */
#include "kernels/cuda/cudnn.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CANDIDATES = 32,
    BAG = 32 + KX_DNN_KNOBS_MAX,
    UID_X = 1,
    UID_W,
    UID_Y,
    UID_B,
    UID_R,
    UID_T0,
    UID_T1,
    SCRATCH_ALIGN = 256,
    WORKSPACE_MAX = 4096, /* bytes; a part of a sum would be a tile of f32 */
};

/* Numbers of images for which a layer's engine must be of use before it is taken. */
static const int probes[] = {1, 2, 3, 4, 6, 8, 12, 32};

/* Descriptors that go together. */
struct bag {
    kx_dnn_ptr v[BAG]; /* owns */
    int n;
};

/* An engine and its knobs: what a layer keeps for all numbers of images. */
struct cudnn_engine {
    int64_t index;
    int knobs;
    int32_t type[KX_DNN_KNOBS_MAX];
    int64_t value[KX_DNN_KNOBS_MAX];
};

struct kx_dnn_plan {
    struct kx_dnn_plan *next; /* owns */
    struct kx_dnn_shape shape;
    int n; /* 0: the shape's choice, for any number of images */
    bool fastest;
    bool none;  /* of n = 0: the library does not do this shape */
    bool fused; /* else: the convolution alone, and kx_cuda_finish_conv */
    struct cudnn_engine engine;
    struct bag bag;
    kx_dnn_ptr graph, plan; /* in the bag */
    size_t workspace_bytes; /* of the plan */
    size_t row_at, y_at,
        all; /* in the scratch: bias + time_proj; the product before what is added; its size */
};

struct kx_cudnn {
    const struct kx_dnn_abi *abi; /* borrowed */
    kx_dnn_ptr handle;            /* owns */
    cudaStream_t stream;          /* borrowed */
    enum kx_store type;
    struct kx_dnn_plan *plans; /* owns; those of n = 0 too */
};

/* The library's errors. UNFIT is an error that belongs to the engine (bad parameters, not supported, an
 * internal error such as a kernel that does not compile, a part of the library that is not installed): the
 * next engine is tried, and in the end our own kernel. FAILED says nothing about the engine: no memory, or
 * a device that is lost. */
enum verdict { FINE, UNFIT, FAILED };
static enum verdict judge(int status) {
    if (status == KX_DNN_SUCCESS) return FINE;
    if (status == KX_DNN_HOST_ALLOCATION_FAILED || status == KX_DNN_DEVICE_ALLOCATION_FAILED) return FAILED;
    int category = status / 1000;
    return (category >= 2 && category <= 4) || status == KX_DNN_SUBLIBRARY_VERSION_MISMATCH ||
                   status == KX_DNN_SUBLIBRARY_LOADING_FAILED
               ? UNFIT
               : FAILED;
}

static int fail(const struct kx_cudnn *d, int status, const char *what, struct kn_err *err) {
    int code = status == KX_DNN_HOST_ALLOCATION_FAILED     ? KN_ENOMEM
               : status == KX_DNN_DEVICE_ALLOCATION_FAILED ? KN_EOOM
                                                           : KN_EDEVICE;
    char more[256] = "";
    d->abi->GetLastErrorString(more, sizeof(more));
    more[sizeof(more) - 1] = 0;
    return kn_err_set(err, code, "cuDNN: %s: %s %s", what, d->abi->GetErrorString(status), more);
}

int kx_cudnn_create(const struct kx_library *library, enum kx_store type, cudaStream_t stream,
                    struct kx_cudnn **out, struct kn_err *err) {
    if (!library->dnn_version) return kn_err_set(err, KN_EUNSUPPORTED, "cuDNN is not there");
    struct kx_cudnn *d = calloc(1, sizeof(*d));
    if (!d) return kn_err_set(err, KN_ENOMEM, "out of memory");
    d->abi = &library->dnn;
    d->type = type;
    d->stream = stream;
    int status = d->abi->Create(&d->handle);
    if (status == KX_DNN_SUCCESS) status = d->abi->SetStream(d->handle, stream);
    if (status != KX_DNN_SUCCESS) {
        int rc = kn_err_set(err, status == KX_DNN_HOST_ALLOCATION_FAILED ? KN_ENOMEM : KN_EUNSUPPORTED,
                            "cuDNN does not start: %s", d->abi->GetErrorString(status));
        kx_cudnn_destroy(d);
        return rc;
    }
    *out = d;
    return 0;
}

/* ---- descriptors */

static void bag_empty(const struct kx_cudnn *d, struct bag *b) {
    while (b->n > 0)
        (void)d->abi->BackendDestroyDescriptor(b->v[--b->n]); /* nothing could be done about it */
}

static int make(const struct kx_cudnn *d, struct bag *b, int type, kx_dnn_ptr *out) {
    if (b->n == BAG) return KX_DNN_HOST_ALLOCATION_FAILED;
    int status = d->abi->BackendCreateDescriptor(type, out);
    if (status == KX_DNN_SUCCESS) b->v[b->n++] = *out;
    return status;
}

/* Sets attributes of one descriptor until one fails, so that each need not be asked. */
struct setter {
    const struct kx_cudnn *d;
    kx_dnn_ptr v;
    int status;
};
static void set(struct setter *s, int name, int type, int64_t count, const void *values) {
    if (s->status == KX_DNN_SUCCESS)
        s->status = s->d->abi->BackendSetAttribute(s->v, name, type, count, values);
}
static void set_enum(struct setter *s, int name, int type, int32_t value) {
    set(s, name, type, 1, &value);
}
static void set_i64(struct setter *s, int name, int64_t value) {
    set(s, name, KX_DNN_TYPE_INT64, 1, &value);
}
static void set_pair(struct setter *s, int name, int64_t value) {
    set(s, name, KX_DNN_TYPE_INT64, 2, (int64_t[2]){value, value});
}
static void set_descriptor(struct setter *s, int name, kx_dnn_ptr value) {
    set(s, name, KX_DNN_TYPE_DESCRIPTOR, 1, &value);
}
static int finalize(struct setter *s) {
    return s->status == KX_DNN_SUCCESS ? s->d->abi->BackendFinalize(s->v) : s->status;
}

/* n × c × h × w, dense, channels last. */
static int tensor(const struct kx_cudnn *d, struct bag *b, int64_t uid, int type, bool is_virtual, int64_t n,
                  int64_t c, int64_t h, int64_t w, kx_dnn_ptr *out) {
    struct setter s = {.d = d};
    s.status = make(d, b, KX_DNN_TENSOR, out);
    s.v = *out;
    set_enum(&s, KX_DNN_A_TENSOR_TYPE, KX_DNN_TYPE_DATA_TYPE, type);
    set(&s, KX_DNN_A_TENSOR_DIMS, KX_DNN_TYPE_INT64, 4, (int64_t[4]){n, c, h, w});
    set(&s, KX_DNN_A_TENSOR_STRIDES, KX_DNN_TYPE_INT64, 4, (int64_t[4]){h * w * c, 1, w * c, c});
    set_i64(&s, KX_DNN_A_TENSOR_UID, uid);
    set_i64(&s, KX_DNN_A_TENSOR_ALIGNMENT, 16);
    set(&s, KX_DNN_A_TENSOR_VIRTUAL, KX_DNN_TYPE_BOOLEAN, 1, &is_virtual);
    return finalize(&s);
}

/* y = a + b, b broadcast where its size is 1. */
static int add(const struct kx_cudnn *d, struct bag *bag, kx_dnn_ptr a, kx_dnn_ptr b, kx_dnn_ptr y,
               kx_dnn_ptr *out) {
    kx_dnn_ptr mode = NULL;
    struct setter s = {.d = d};
    s.status = make(d, bag, KX_DNN_POINTWISE, &mode);
    s.v = mode;
    set_enum(&s, KX_DNN_A_POINTWISE_MODE, KX_DNN_TYPE_POINTWISE_MODE, KX_DNN_POINTWISE_ADD);
    set_enum(&s, KX_DNN_A_POINTWISE_MATH_PREC, KX_DNN_TYPE_DATA_TYPE, KX_DNN_FLOAT);
    int status = finalize(&s);
    if (status == KX_DNN_SUCCESS) status = make(d, bag, KX_DNN_OPERATION_POINTWISE, out);
    s = (struct setter){d, *out, status};
    set_descriptor(&s, KX_DNN_A_OPPW_POINTWISE, mode);
    set_descriptor(&s, KX_DNN_A_OPPW_X, a);
    set_descriptor(&s, KX_DNN_A_OPPW_B, b);
    set_descriptor(&s, KX_DNN_A_OPPW_Y, y);
    return finalize(&s);
}

static int64_t out_size(int in, const struct kx_dnn_shape *s) {
    return (in + s->kernel / 2 * 2 - s->kernel) / s->stride + 1;
}

/* The operation graph of a layer for n images. */
static int build_graph(const struct kx_cudnn *d, struct bag *b, const struct kx_dnn_shape *shape, int n,
                       bool fused, kx_dnn_ptr *graph) {
    int value = d->type == KX_STORE_F16 ? KX_DNN_HALF : KX_DNN_BFLOAT16;
    int64_t p = out_size(shape->h, shape), q = out_size(shape->w, shape), out = shape->out;
    bool has_r = fused && shape->residual, has_b = fused && (shape->bias || shape->time_proj);
    kx_dnn_ptr x = NULL, w = NULL, y = NULL, t = NULL, conv = NULL, ops[3];
    int count = 0;

    int status = tensor(d, b, UID_X, value, false, n, shape->in, shape->h, shape->w, &x);
    if (status == KX_DNN_SUCCESS)
        status = tensor(d, b, UID_W, value, false, out, shape->in, shape->kernel, shape->kernel, &w);
    if (status == KX_DNN_SUCCESS) status = tensor(d, b, UID_Y, value, false, n, out, p, q, &y);
    t = y;
    if (status == KX_DNN_SUCCESS && (has_r || has_b))
        status = tensor(d, b, UID_T0, KX_DNN_FLOAT, true, n, out, p, q, &t);

    if (status == KX_DNN_SUCCESS) status = make(d, b, KX_DNN_CONVOLUTION, &conv);
    struct setter s = {d, conv, status};
    set_enum(&s, KX_DNN_A_CONV_COMP_TYPE, KX_DNN_TYPE_DATA_TYPE, KX_DNN_FLOAT);
    set_enum(&s, KX_DNN_A_CONV_MODE, KX_DNN_TYPE_CONVOLUTION_MODE, KX_DNN_CROSS_CORRELATION);
    set_i64(&s, KX_DNN_A_CONV_SPATIAL_DIMS, 2);
    set_pair(&s, KX_DNN_A_CONV_DILATIONS, 1);
    set_pair(&s, KX_DNN_A_CONV_STRIDES, shape->stride);
    set_pair(&s, KX_DNN_A_CONV_PRE_PADDINGS, shape->kernel / 2);
    set_pair(&s, KX_DNN_A_CONV_POST_PADDINGS, shape->kernel / 2);
    status = finalize(&s);

    if (status == KX_DNN_SUCCESS) status = make(d, b, KX_DNN_OPERATION_CONVOLUTION, &ops[count]);
    s = (struct setter){d, status == KX_DNN_SUCCESS ? ops[count] : NULL, status};
    set(&s, KX_DNN_A_OPCONV_ALPHA, KX_DNN_TYPE_FLOAT, 1, &(float){1});
    set(&s, KX_DNN_A_OPCONV_BETA, KX_DNN_TYPE_FLOAT, 1, &(float){0});
    set_descriptor(&s, KX_DNN_A_OPCONV_CONV, conv);
    set_descriptor(&s, KX_DNN_A_OPCONV_X, x);
    set_descriptor(&s, KX_DNN_A_OPCONV_W, w);
    set_descriptor(&s, KX_DNN_A_OPCONV_Y, t);
    status = finalize(&s);
    count++;

    if (status == KX_DNN_SUCCESS && has_r) {
        kx_dnn_ptr r = NULL, sum = y;
        status = tensor(d, b, UID_R, value, false, n, out, p, q, &r);
        if (status == KX_DNN_SUCCESS && has_b)
            status = tensor(d, b, UID_T1, KX_DNN_FLOAT, true, n, out, p, q, &sum);
        if (status == KX_DNN_SUCCESS) status = add(d, b, t, r, sum, &ops[count++]);
        t = sum;
    }
    if (status == KX_DNN_SUCCESS && has_b) {
        kx_dnn_ptr row = NULL;
        status = tensor(d, b, UID_B, value, false, shape->time_proj ? n : 1, out, 1, 1, &row);
        if (status == KX_DNN_SUCCESS) status = add(d, b, t, row, y, &ops[count++]);
    }

    if (status == KX_DNN_SUCCESS) status = make(d, b, KX_DNN_OPERATIONGRAPH, graph);
    s = (struct setter){d, *graph, status};
    set(&s, KX_DNN_A_GRAPH_HANDLE, KX_DNN_TYPE_HANDLE, 1, &d->handle);
    set(&s, KX_DNN_A_GRAPH_OPS, KX_DNN_TYPE_DESCRIPTOR, count, ops);
    return finalize(&s);
}

/* ---- the engine */

/* Reads a configuration of the heuristic into *e. False: it cannot be a layer's, or it cannot be read. */
static bool read_config(const struct kx_cudnn *d, kx_dnn_ptr config, bool whole, struct cudnn_engine *e) {
    struct bag b = {.n = 0};
    bool good = false;
    kx_dnn_ptr engine = NULL, knobs[KX_DNN_KNOBS_MAX];
    int32_t notes[KX_DNN_NOTES_MAX];
    int64_t count = 0;
    if (make(d, &b, KX_DNN_ENGINE, &engine) != KX_DNN_SUCCESS ||
        d->abi->BackendGetAttribute(config, KX_DNN_A_CFG_ENGINE, KX_DNN_TYPE_DESCRIPTOR, 1, &count,
                                    &engine) != KX_DNN_SUCCESS ||
        d->abi->BackendGetAttribute(engine, KX_DNN_A_ENGINE_INDEX, KX_DNN_TYPE_INT64, 1, &count, &e->index) !=
            KX_DNN_SUCCESS ||
        d->abi->BackendGetAttribute(engine, KX_DNN_A_ENGINE_NOTES, KX_DNN_TYPE_NUMERICAL_NOTE,
                                    KX_DNN_NOTES_MAX, &count, notes) != KX_DNN_SUCCESS)
        goto out;
    for (int64_t i = 0; i < count && i < KX_DNN_NOTES_MAX; i++)
        if (notes[i] == KX_DNN_NOTE_DOWN_CONVERT || notes[i] == KX_DNN_NOTE_REDUCED_PRECISION ||
            (whole && (notes[i] == KX_DNN_NOTE_NONDETERMINISTIC || notes[i] == KX_DNN_NOTE_FFT ||
                       (notes[i] >= KX_DNN_NOTE_WINOGRAD && notes[i] <= KX_DNN_NOTE_WINOGRAD_13))))
            goto out;

    for (int i = 0; i < KX_DNN_KNOBS_MAX; i++)
        if (make(d, &b, KX_DNN_KNOB_CHOICE, &knobs[i]) != KX_DNN_SUCCESS) goto out;
    if (d->abi->BackendGetAttribute(config, KX_DNN_A_CFG_KNOB_CHOICES, KX_DNN_TYPE_DESCRIPTOR,
                                    KX_DNN_KNOBS_MAX, &count, knobs) != KX_DNN_SUCCESS ||
        count > KX_DNN_KNOBS_MAX)
        goto out;
    e->knobs = (int)count;
    for (int i = 0; i < e->knobs; i++) {
        int64_t one = 0;
        if (d->abi->BackendGetAttribute(knobs[i], KX_DNN_A_KNOB_TYPE, KX_DNN_TYPE_KNOB_TYPE, 1, &one,
                                        &e->type[i]) != KX_DNN_SUCCESS ||
            d->abi->BackendGetAttribute(knobs[i], KX_DNN_A_KNOB_VALUE, KX_DNN_TYPE_INT64, 1, &one,
                                        &e->value[i]) != KX_DNN_SUCCESS)
            goto out;
        if (!whole) continue;
        switch (e->type[i]) {
        case KX_DNN_KNOB_SPLIT_K: /* into how many parts: one is none */
        case KX_DNN_KNOB_SPLIT_K_SLC:
        case KX_DNN_KNOB_SPLIT_P_SLC:
            if (e->value[i] > 1) goto out;
            break;
        case KX_DNN_KNOB_SPLIT_K_BUF: /* how, or whether */
        case KX_DNN_KNOB_CTA_SPLIT_K:
        case KX_DNN_KNOB_SPLIT_RS:
        case KX_DNN_KNOB_STREAM_K:
            if (e->value[i] > 0) goto out;
            break;
        default:
            break;
        }
    }
    good = true;
out:
    bag_empty(d, &b);
    return good;
}

/* The heuristic's configurations for a graph that may be used, best first. */
static int ask_heuristic(const struct kx_cudnn *d, kx_dnn_ptr graph, int mode, bool whole,
                         struct cudnn_engine *found, int *n) {
    struct bag b = {.n = 0};
    kx_dnn_ptr heuristic = NULL, configs[CANDIDATES];
    int64_t count = 0;
    *n = 0;
    int status = make(d, &b, KX_DNN_ENGINEHEUR, &heuristic);
    struct setter s = {d, heuristic, status};
    set_descriptor(&s, KX_DNN_A_HEUR_GRAPH, graph);
    set_enum(&s, KX_DNN_A_HEUR_MODE, KX_DNN_TYPE_HEUR_MODE, mode);
    status = finalize(&s);
    for (int i = 0; i < CANDIDATES && status == KX_DNN_SUCCESS; i++)
        status = make(d, &b, KX_DNN_ENGINECFG, &configs[i]);
    if (status == KX_DNN_SUCCESS)
        status = d->abi->BackendGetAttribute(heuristic, KX_DNN_A_HEUR_RESULTS, KX_DNN_TYPE_DESCRIPTOR,
                                             CANDIDATES, &count, configs);
    for (int64_t i = 0; i < count && i < CANDIDATES && status == KX_DNN_SUCCESS; i++)
        if (read_config(d, configs[i], whole, &found[*n])) ++*n;
    bag_empty(d, &b);
    return status;
}

/* An execution plan of graph with engine e. */
static int build_plan(const struct kx_cudnn *d, struct bag *b, kx_dnn_ptr graph, const struct cudnn_engine *e,
                      kx_dnn_ptr *plan, size_t *workspace_bytes) {
    kx_dnn_ptr engine = NULL, config = NULL, knobs[KX_DNN_KNOBS_MAX];
    int status = make(d, b, KX_DNN_ENGINE, &engine);
    struct setter s = {d, engine, status};
    set_descriptor(&s, KX_DNN_A_ENGINE_GRAPH, graph);
    set_i64(&s, KX_DNN_A_ENGINE_INDEX, e->index);
    status = finalize(&s);
    for (int i = 0; i < e->knobs && status == KX_DNN_SUCCESS; i++) {
        status = make(d, b, KX_DNN_KNOB_CHOICE, &knobs[i]);
        s = (struct setter){d, status == KX_DNN_SUCCESS ? knobs[i] : NULL, status};
        set_enum(&s, KX_DNN_A_KNOB_TYPE, KX_DNN_TYPE_KNOB_TYPE, e->type[i]);
        set_i64(&s, KX_DNN_A_KNOB_VALUE, e->value[i]);
        status = finalize(&s);
    }
    if (status == KX_DNN_SUCCESS) status = make(d, b, KX_DNN_ENGINECFG, &config);
    s = (struct setter){d, config, status};
    set_descriptor(&s, KX_DNN_A_CFG_ENGINE, engine);
    if (e->knobs > 0) set(&s, KX_DNN_A_CFG_KNOB_CHOICES, KX_DNN_TYPE_DESCRIPTOR, e->knobs, knobs);
    status = finalize(&s);
    if (status == KX_DNN_SUCCESS) status = make(d, b, KX_DNN_EXECUTION_PLAN, plan);
    s = (struct setter){d, *plan, status};
    set(&s, KX_DNN_A_PLAN_HANDLE, KX_DNN_TYPE_HANDLE, 1, &d->handle);
    set_descriptor(&s, KX_DNN_A_PLAN_CFG, config);
    status = finalize(&s);
    int64_t bytes = 0, count = 0;
    if (status == KX_DNN_SUCCESS)
        status =
            d->abi->BackendGetAttribute(*plan, KX_DNN_A_PLAN_WORKSPACE, KX_DNN_TYPE_INT64, 1, &count, &bytes);
    *workspace_bytes = bytes > 0 ? (size_t)bytes : 0;
    return status;
}

/* ---- plans */

static void plan_destroy(const struct kx_cudnn *d, struct kx_dnn_plan *p) {
    bag_empty(d, &p->bag);
    free(p);
}

void kx_dnn_trim(struct kx_cudnn *d) {
    while (d->plans) {
        struct kx_dnn_plan *p = d->plans;
        d->plans = p->next;
        plan_destroy(d, p);
    }
}

void kx_cudnn_destroy(struct kx_cudnn *d) {
    if (!d) return;
    kx_dnn_trim(d);
    if (d->handle) (void)d->abi->Destroy(d->handle);
    free(d);
}

static bool same_shape(const struct kx_dnn_shape *a, const struct kx_dnn_shape *b) {
    return a->h == b->h && a->w == b->w && a->in == b->in && a->out == b->out && a->kernel == b->kernel &&
           a->stride == b->stride && a->bias == b->bias && a->time_proj == b->time_proj &&
           a->residual == b->residual;
}

static struct kx_dnn_plan *find(const struct kx_cudnn *d, const struct kx_dnn_shape *s, int n, bool fastest) {
    for (struct kx_dnn_plan *p = d->plans; p; p = p->next)
        if (p->n == n && p->fastest == fastest && same_shape(&p->shape, s)) return p;
    return NULL;
}

static void keep(struct kx_cudnn *d, struct kx_dnn_plan *p) {
    p->next = d->plans;
    d->plans = p;
}

static struct kx_dnn_plan *plan_new(const struct kx_dnn_shape *s, int n, bool fastest) {
    struct kx_dnn_plan *p = calloc(1, sizeof(*p));
    if (!p) return NULL;
    p->shape = *s;
    p->n = n;
    p->fastest = fastest;
    return p;
}

/* Tries engine e for n images: *verdict says if it is of use. Returns the status of a failure that is not the
 * engine's. */
static int try_engine(const struct kx_cudnn *d, const struct kx_dnn_shape *s, int n, bool fused, bool whole,
                      const struct cudnn_engine *e, enum verdict *verdict) {
    struct bag b = {.n = 0};
    kx_dnn_ptr graph = NULL, plan = NULL;
    size_t bytes = 0;
    int status = build_graph(d, &b, s, n, fused, &graph);
    if (status == KX_DNN_SUCCESS) status = build_plan(d, &b, graph, e, &plan, &bytes);
    bag_empty(d, &b);
    *verdict = judge(status);
    if (*verdict == FINE && whole && bytes > WORKSPACE_MAX) *verdict = UNFIT;
    return *verdict == FAILED ? status : KX_DNN_SUCCESS;
}

/* The same for n and, with `whole`, for all probes. */
static int try_all(const struct kx_cudnn *d, const struct kx_dnn_shape *s, int n, bool fused, bool whole,
                   const struct cudnn_engine *e, enum verdict *verdict) {
    int status = try_engine(d, s, n, fused, whole, e, verdict);
    for (size_t i = 0; whole && *verdict == FINE && i < sizeof(probes) / sizeof(probes[0]); i++)
        status = try_engine(d, s, probes[i], fused, whole, e, verdict);
    return status;
}

/* The engine for p's shape by the heuristic's answer for n images, into p; `whole`: by the rules of equal
 * bits. p->none where there is none. A status that is not the
 * shape's fault is returned. */
static int choose(const struct kx_cudnn *d, struct kx_dnn_plan *p, int n, bool whole) {
    static const int modes[] = {KX_DNN_HEUR_A, KX_DNN_HEUR_FALLBACK};
    struct cudnn_engine *found = calloc(CANDIDATES, sizeof(*found));
    if (!found) return KX_DNN_HOST_ALLOCATION_FAILED;
    bool adds = p->shape.bias || p->shape.time_proj || p->shape.residual;
    int status = KX_DNN_SUCCESS;
    p->none = true;
    for (int fused = 1; fused >= 0 && p->none; fused--) {
        if (!fused && !adds) break; /* the same graph once more */
        for (int m = 0; m < 2 && p->none; m++) {
            struct bag b = {.n = 0};
            kx_dnn_ptr graph = NULL;
            int count = 0;
            status = build_graph(d, &b, &p->shape, n, fused, &graph);
            if (judge(status) == FINE) status = ask_heuristic(d, graph, modes[m], whole, found, &count);
            bag_empty(d, &b);
            if (judge(status) == FAILED) goto out;
            for (int i = 0; i < count && p->none; i++) {
                enum verdict verdict;
                status = try_all(d, &p->shape, n, fused, whole, &found[i], &verdict);
                if (verdict == FAILED) goto out;
                if (verdict == UNFIT) continue;
                p->engine = found[i];
                p->fused = fused;
                p->none = false;
            }
        }
    }
    status = KX_DNN_SUCCESS;
out:
    free(found);
    return status;
}

static int refuse(const struct kx_dnn_shape *s, struct kn_err *err) {
    return kn_err_set(err, KN_EUNSUPPORTED,
                      "cuDNN: not for a %d×%d convolution of %d to %d channels at %d×%d", s->kernel,
                      s->kernel, s->in, s->out, s->h, s->w);
}

static size_t aligned(size_t bytes) {
    return (bytes + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN;
}

/* The scratch: the library's workspace, the rows of bias + time_proj, the product that is not fused. */
static void lay_scratch(struct kx_dnn_plan *p) {
    const struct kx_dnn_shape *s = &p->shape;
    size_t row = (size_t)p->n * (size_t)s->out * 2;
    size_t y = row * (size_t)(out_size(s->h, s) * out_size(s->w, s));
    p->row_at = aligned(p->workspace_bytes);
    p->y_at = p->row_at + (p->fused && (s->time_proj || s->bias) ? aligned(row) : 0);
    p->all = p->y_at + (!p->fused && s->residual ? aligned(y) : 0);
}

int kx_dnn_plan(struct kx_cudnn *d, const struct kx_dnn_shape *s, int n, bool fastest,
                struct kx_dnn_plan **out, struct kn_err *err) {
    struct kx_dnn_plan *p = find(d, s, n, fastest), *choice;
    if (p) {
        *out = p;
        return 0;
    }
    /* Decided by the layer and one image alone, never by n. Pixels of a multiple of 16 bytes: for tensor
     * cores. */
    if (s->in <= 0 || s->out <= 0 || s->in % 8 || s->out % 8 || s->kernel <= 0 || s->kernel % 2 == 0 ||
        s->stride <= 0 || s->h <= 0 || s->w <= 0 || n <= 0)
        return refuse(s, err);

    /* In the mode "fastest" the choice is this number's own; else the shape's. */
    choice = fastest ? NULL : find(d, s, 0, false);
    if (!choice) {
        choice = plan_new(s, 0, false);
        if (!choice) return kn_err_set(err, KN_ENOMEM, "out of memory");
        int status = choose(d, choice, fastest ? n : KX_DNN_IMAGES, !fastest);
        if (judge(status) != FINE) {
            free(choice);
            return fail(d, status, "choosing an engine", err);
        }
        if (!fastest) keep(d, choice);
    }
    int rc = 0;
    if (choice->none) {
        rc = refuse(s, err);
        goto out;
    }
    p = plan_new(s, n, fastest);
    if (!p) {
        rc = kn_err_set(err, KN_ENOMEM, "out of memory");
        goto out;
    }
    p->engine = choice->engine;
    p->fused = choice->fused;
    int status = build_graph(d, &p->bag, s, n, p->fused, &p->graph);
    if (status == KX_DNN_SUCCESS)
        status = build_plan(d, &p->bag, p->graph, &p->engine, &p->plan, &p->workspace_bytes);
    if (judge(status) == UNFIT || (judge(status) == FINE && !fastest && p->workspace_bytes > WORKSPACE_MAX))
        /* Another engine for this number of images alone would be another order of sums. */
        rc = kn_err_set(err, KN_ELIMIT,
                        "cuDNN: the engine of %d to %d channels at %d×%d does not do %d images", s->in,
                        s->out, s->h, s->w, n);
    else if (judge(status) == FAILED)
        rc = fail(d, status, "a plan", err);
    if (rc) {
        plan_destroy(d, p);
        goto out;
    }
    lay_scratch(p);
    keep(d, p);
    *out = p;
out:
    if (fastest) free(choice);
    return rc;
}

size_t kx_dnn_scratch_bytes(const struct kx_dnn_plan *p) {
    return p->all;
}

/* ---- a run */

static int execute(const struct kx_cudnn *d, const struct kx_dnn_plan *p, int count, const int64_t *uids,
                   void *const *pointers, void *workspace) {
    kx_dnn_ptr pack = NULL;
    int status = d->abi->BackendCreateDescriptor(KX_DNN_VARIANT_PACK, &pack);
    if (status != KX_DNN_SUCCESS) return status;
    struct setter s = {d, pack, status};
    set(&s, KX_DNN_A_PACK_UIDS, KX_DNN_TYPE_INT64, count, uids);
    set(&s, KX_DNN_A_PACK_POINTERS, KX_DNN_TYPE_VOID_PTR, count, pointers);
    set(&s, KX_DNN_A_PACK_WORKSPACE, KX_DNN_TYPE_VOID_PTR, 1, &workspace);
    status = finalize(&s);
    if (status == KX_DNN_SUCCESS) status = d->abi->BackendExecute(d->handle, p->plan, pack);
    (void)d->abi->BackendDestroyDescriptor(pack);
    return status;
}

cudaError_t kx_dnn_run(struct kx_cudnn *d, struct kx_dnn_plan *p, const struct kx_dnn_call *c) {
    const struct kx_dnn_shape *s = &p->shape;
    if (!c->bias != !s->bias || !c->time_proj.v != !s->time_proj || !c->residual != !s->residual)
        return cudaErrorInvalidValue;
    char *scratch = c->scratch;
    void *workspace = p->workspace_bytes ? scratch : NULL;
    int pixels = (int)(out_size(s->h, s) * out_size(s->w, s));
    /* The attribute is of pointers that are not const; x, weight and what is added are only read. */
    union {
        const void *from;
        void *to;
    } x = {c->x}, weight = {c->weight}, residual = {c->residual}, bias_value = {c->bias_value};
    int64_t uids[5] = {UID_X, UID_W, UID_Y};
    void *pointers[5] = {x.to, weight.to, c->y};
    int count = 3;

    if (!p->fused && s->residual) pointers[2] = scratch + p->y_at; /* residual may be y */
    if (p->fused && s->residual) {
        uids[count] = UID_R;
        pointers[count++] = residual.to;
    }
    if (p->fused && (s->time_proj || s->bias)) {
        void *row = scratch + p->row_at;
        cudaError_t e = cudaSuccess;
        if (s->time_proj) {
            /* Row i: bias + time_proj of image i, out of an empty picture of one pixel. */
            e = cudaMemsetAsync(row, 0, (size_t)p->n * (size_t)s->out * 2, d->stream);
            if (e == cudaSuccess)
                e = kx_cuda_finish_conv(d->stream, d->type, row, c->bias, &c->time_proj, NULL, row, p->n, 1,
                                        s->out);
        } else if (!c->bias_value) {
            e = kx_cuda_from_f32(d->stream, d->type, c->bias, row, (size_t)s->out);
        }
        if (e != cudaSuccess) return e;
        uids[count] = UID_B;
        pointers[count++] = s->time_proj || !c->bias_value ? row : bias_value.to;
    }
    if (execute(d, p, count, uids, pointers, workspace) != KX_DNN_SUCCESS) {
        cudaError_t e = cudaPeekAtLastError();
        return e == cudaSuccess ? cudaErrorUnknown : e;
    }
    if (p->fused || !(s->bias || s->time_proj || s->residual)) return cudaSuccess;
    return kx_cuda_finish_conv(d->stream, d->type, pointers[2], c->bias, s->time_proj ? &c->time_proj : NULL,
                               c->residual, c->y, p->n, pixels, s->out);
}

void kx_dnn_describe(const struct kx_dnn_plan *p, char *out, size_t size) {
    int n = snprintf(out, size, "engine %lld %s workspace %zu knobs", (long long)p->engine.index,
                     p->fused ? "fused" : "plain", p->workspace_bytes);
    for (int i = 0; i < p->engine.knobs && n > 0 && (size_t)n < size; i++)
        n += snprintf(out + n, size - (size_t)n, " %d=%lld", (int)p->engine.type[i],
                      (long long)p->engine.value[i]);
}
