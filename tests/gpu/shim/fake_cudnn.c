/* A cuDNN for the shim: the backend interface as far as graphs go of a forward convolution (2-D, any strides
 * of tensors) and additions after it, by the documents of cuDNN 9. Sums in f32; virtual tensors are f32.
 *
 * Descriptors are as strict as the library's: attributes of a known name, type and count, none after
 * finalizing, nothing used before. As 9.19 does, it has engines for a graph whose bias is 1 × out × 1 × 1 and
 * of the type of the result, and none where a row belongs to each image (fake_dnn_fuse changes that).
 *
 * The heuristic's configurations, best first, are what must not be taken: an engine that is not
 * deterministic, one with a knob that splits sums, one that transforms, one that says nothing but divides
 * sums, in a workspace, for few images. The last is plain. */
#include "tests/gpu/shim/fake.h"

#include <stdbool.h>

enum {
    BAD_PARAM = 2000,
    NOT_FINALIZED = 2004,
    MISMATCH = 2008,
    WRONG_TYPE = 2010,
    NOT_SUPPORTED = 3000,
    PATTERN = 3001,
    EXECUTION_FAILED = 5000,
    ATTRIBUTES = 10,
    FEW_IMAGES = 8,
    SNEAKY_BYTES = 2 << 20
};
enum engine { NONDETERMINISTIC = 1, SPLIT = 2, WINOGRAD = 3, SNEAKY = 4, PLAIN = 5 };
static const int32_t knob_types[] = {2, 14};
static const int64_t knob_values[] = {4, 3}; /* of PLAIN, and nothing else */

struct attribute {
    int name, type;
    int64_t count;
    void *values; /* owns */
};
struct descriptor {
    int kind;
    bool final;
    int n;
    struct attribute attributes[ATTRIBUTES];
};

struct fake_job *fake_jobs;
static long plans, alive;
static bool fuse_rows, fuse = true;

/* For tests: whether additions are fused at all, and rows of each image; plans made so far; descriptors that
 * there are. */
void fake_dnn_fuse(bool all, bool rows);
long fake_dnn_plans(void);
long fake_dnn_alive(void);
void fake_dnn_fuse(bool all, bool rows) {
    fuse = all;
    fuse_rows = rows;
}
long fake_dnn_plans(void) {
    return plans;
}
long fake_dnn_alive(void) {
    return alive;
}

__attribute__((destructor)) static void unload(void) {
    fake_forget();
}

size_t cudnnGetVersion(void);
size_t cudnnGetVersion(void) {
    return 91900;
}
const char *cudnnGetErrorString(int status);
const char *cudnnGetErrorString(int status) {
    return status == 0 ? "success" : status / 1000 == 3 ? "not supported" : "a fault";
}
void cudnnGetLastErrorString(char *text, size_t size);
void cudnnGetLastErrorString(char *text, size_t size) {
    snprintf(text, size, "(no more is known)");
}

/* ---- descriptors */

/* Which attributes there are: of what, name, type, at most how many, bytes of one. */
static const struct {
    int kind, name, type;
    int64_t count;
    size_t bytes;
} known[] = {
    {KX_DNN_TENSOR, KX_DNN_A_TENSOR_TYPE, KX_DNN_TYPE_DATA_TYPE, 1, 4},
    {KX_DNN_TENSOR, KX_DNN_A_TENSOR_DIMS, KX_DNN_TYPE_INT64, 4, 8},
    {KX_DNN_TENSOR, KX_DNN_A_TENSOR_STRIDES, KX_DNN_TYPE_INT64, 4, 8},
    {KX_DNN_TENSOR, KX_DNN_A_TENSOR_UID, KX_DNN_TYPE_INT64, 1, 8},
    {KX_DNN_TENSOR, KX_DNN_A_TENSOR_ALIGNMENT, KX_DNN_TYPE_INT64, 1, 8},
    {KX_DNN_TENSOR, KX_DNN_A_TENSOR_VIRTUAL, KX_DNN_TYPE_BOOLEAN, 1, 1},
    {KX_DNN_POINTWISE, KX_DNN_A_POINTWISE_MODE, KX_DNN_TYPE_POINTWISE_MODE, 1, 4},
    {KX_DNN_POINTWISE, KX_DNN_A_POINTWISE_MATH_PREC, KX_DNN_TYPE_DATA_TYPE, 1, 4},
    {KX_DNN_CONVOLUTION, KX_DNN_A_CONV_COMP_TYPE, KX_DNN_TYPE_DATA_TYPE, 1, 4},
    {KX_DNN_CONVOLUTION, KX_DNN_A_CONV_MODE, KX_DNN_TYPE_CONVOLUTION_MODE, 1, 4},
    {KX_DNN_CONVOLUTION, KX_DNN_A_CONV_DILATIONS, KX_DNN_TYPE_INT64, 2, 8},
    {KX_DNN_CONVOLUTION, KX_DNN_A_CONV_STRIDES, KX_DNN_TYPE_INT64, 2, 8},
    {KX_DNN_CONVOLUTION, KX_DNN_A_CONV_PRE_PADDINGS, KX_DNN_TYPE_INT64, 2, 8},
    {KX_DNN_CONVOLUTION, KX_DNN_A_CONV_POST_PADDINGS, KX_DNN_TYPE_INT64, 2, 8},
    {KX_DNN_CONVOLUTION, KX_DNN_A_CONV_SPATIAL_DIMS, KX_DNN_TYPE_INT64, 1, 8},
    {KX_DNN_OPERATION_CONVOLUTION, KX_DNN_A_OPCONV_ALPHA, KX_DNN_TYPE_FLOAT, 1, 4},
    {KX_DNN_OPERATION_CONVOLUTION, KX_DNN_A_OPCONV_BETA, KX_DNN_TYPE_FLOAT, 1, 4},
    {KX_DNN_OPERATION_CONVOLUTION, KX_DNN_A_OPCONV_CONV, KX_DNN_TYPE_DESCRIPTOR, 1, 8},
    {KX_DNN_OPERATION_CONVOLUTION, KX_DNN_A_OPCONV_X, KX_DNN_TYPE_DESCRIPTOR, 1, 8},
    {KX_DNN_OPERATION_CONVOLUTION, KX_DNN_A_OPCONV_W, KX_DNN_TYPE_DESCRIPTOR, 1, 8},
    {KX_DNN_OPERATION_CONVOLUTION, KX_DNN_A_OPCONV_Y, KX_DNN_TYPE_DESCRIPTOR, 1, 8},
    {KX_DNN_OPERATION_POINTWISE, KX_DNN_A_OPPW_POINTWISE, KX_DNN_TYPE_DESCRIPTOR, 1, 8},
    {KX_DNN_OPERATION_POINTWISE, KX_DNN_A_OPPW_X, KX_DNN_TYPE_DESCRIPTOR, 1, 8},
    {KX_DNN_OPERATION_POINTWISE, KX_DNN_A_OPPW_B, KX_DNN_TYPE_DESCRIPTOR, 1, 8},
    {KX_DNN_OPERATION_POINTWISE, KX_DNN_A_OPPW_Y, KX_DNN_TYPE_DESCRIPTOR, 1, 8},
    {KX_DNN_OPERATIONGRAPH, KX_DNN_A_GRAPH_HANDLE, KX_DNN_TYPE_HANDLE, 1, 8},
    {KX_DNN_OPERATIONGRAPH, KX_DNN_A_GRAPH_OPS, KX_DNN_TYPE_DESCRIPTOR, 8, 8},
    {KX_DNN_ENGINEHEUR, KX_DNN_A_HEUR_GRAPH, KX_DNN_TYPE_DESCRIPTOR, 1, 8},
    {KX_DNN_ENGINEHEUR, KX_DNN_A_HEUR_MODE, KX_DNN_TYPE_HEUR_MODE, 1, 4},
    {KX_DNN_ENGINE, KX_DNN_A_ENGINE_GRAPH, KX_DNN_TYPE_DESCRIPTOR, 1, 8},
    {KX_DNN_ENGINE, KX_DNN_A_ENGINE_INDEX, KX_DNN_TYPE_INT64, 1, 8},
    {KX_DNN_ENGINE, KX_DNN_A_ENGINE_NOTES, KX_DNN_TYPE_NUMERICAL_NOTE, 8, 4},
    {KX_DNN_KNOB_CHOICE, KX_DNN_A_KNOB_TYPE, KX_DNN_TYPE_KNOB_TYPE, 1, 4},
    {KX_DNN_KNOB_CHOICE, KX_DNN_A_KNOB_VALUE, KX_DNN_TYPE_INT64, 1, 8},
    {KX_DNN_ENGINECFG, KX_DNN_A_CFG_ENGINE, KX_DNN_TYPE_DESCRIPTOR, 1, 8},
    {KX_DNN_ENGINECFG, KX_DNN_A_CFG_KNOB_CHOICES, KX_DNN_TYPE_DESCRIPTOR, 8, 8},
    {KX_DNN_EXECUTION_PLAN, KX_DNN_A_PLAN_HANDLE, KX_DNN_TYPE_HANDLE, 1, 8},
    {KX_DNN_EXECUTION_PLAN, KX_DNN_A_PLAN_CFG, KX_DNN_TYPE_DESCRIPTOR, 1, 8},
    {KX_DNN_VARIANT_PACK, KX_DNN_A_PACK_UIDS, KX_DNN_TYPE_INT64, 16, 8},
    {KX_DNN_VARIANT_PACK, KX_DNN_A_PACK_POINTERS, KX_DNN_TYPE_VOID_PTR, 16, 8},
    {KX_DNN_VARIANT_PACK, KX_DNN_A_PACK_WORKSPACE, KX_DNN_TYPE_VOID_PTR, 1, 8},
};
enum { KNOWN = sizeof(known) / sizeof(known[0]) };

static int look_up(const struct descriptor *d, int name, int type, int64_t count, size_t *bytes) {
    for (int i = 0; i < KNOWN; i++)
        if (known[i].kind == d->kind && known[i].name == name) {
            if (known[i].type != type) return fake_wrong(WRONG_TYPE, "an attribute of another type");
            if (count < 1 || count > known[i].count) return fake_wrong(BAD_PARAM, "a count of values");
            *bytes = known[i].bytes;
            return 0;
        }
    return fake_wrong(BAD_PARAM, "an attribute that a descriptor does not have");
}

static const struct attribute *get(const struct descriptor *d, int name) {
    for (int i = 0; i < d->n; i++)
        if (d->attributes[i].name == name) return &d->attributes[i];
    return NULL;
}
static int64_t int_of(const struct descriptor *d, int name) {
    const struct attribute *a = get(d, name);
    int32_t small;
    int64_t large;
    if (!a) return -1;
    if (a->type == KX_DNN_TYPE_INT64) {
        memcpy(&large, a->values, 8);
        return large;
    }
    if (a->type == KX_DNN_TYPE_BOOLEAN) return *(const unsigned char *)a->values;
    memcpy(&small, a->values, 4);
    return small;
}
static struct descriptor *descriptor_of(const struct descriptor *d, int name, int i) {
    const struct attribute *a = get(d, name);
    return a && i < a->count ? ((struct descriptor **)a->values)[i] : NULL;
}
static const int64_t *ints_of(const struct descriptor *d, int name) {
    const struct attribute *a = get(d, name);
    return a ? a->values : NULL;
}

static int put(struct descriptor *d, int name, int type, int64_t count, const void *values) {
    size_t bytes = 0;
    int status = look_up(d, name, type, count, &bytes);
    if (status) return status;
    if (d->n == ATTRIBUTES) return fake_wrong(BAD_PARAM, "too many attributes");
    void *copy = malloc((size_t)count * bytes);
    if (!copy) return KX_DNN_HOST_ALLOCATION_FAILED;
    memcpy(copy, values, (size_t)count * bytes);
    for (int i = 0; i < d->n; i++)
        if (d->attributes[i].name == name) {
            free(d->attributes[i].values);
            d->attributes[i] = (struct attribute){name, type, count, copy};
            return 0;
        }
    d->attributes[d->n++] = (struct attribute){name, type, count, copy};
    return 0;
}

int cudnnCreate(void **h);
int cudnnCreate(void **h) {
    *h = calloc(1, sizeof(cudaStream_t));
    alive += *h != NULL;
    return *h ? 0 : KX_DNN_HOST_ALLOCATION_FAILED;
}
int cudnnDestroy(void *h);
int cudnnDestroy(void *h) {
    free(h);
    alive--;
    return 0;
}
int cudnnSetStream(void *h, cudaStream_t s);
int cudnnSetStream(void *h, cudaStream_t s) {
    memcpy(h, &s, sizeof(s));
    return 0;
}

int cudnnBackendCreateDescriptor(int kind, void **out);
int cudnnBackendCreateDescriptor(int kind, void **out) {
    struct descriptor *d = calloc(1, sizeof(*d));
    if (!d) return KX_DNN_HOST_ALLOCATION_FAILED;
    d->kind = kind;
    alive++;
    *out = d;
    return 0;
}
int cudnnBackendDestroyDescriptor(void *v);
int cudnnBackendDestroyDescriptor(void *v) {
    struct descriptor *d = v;
    for (int i = 0; i < d->n; i++) free(d->attributes[i].values);
    free(d);
    alive--;
    return 0;
}
int cudnnBackendSetAttribute(void *v, int name, int type, int64_t count, const void *values);
int cudnnBackendSetAttribute(void *v, int name, int type, int64_t count, const void *values) {
    struct descriptor *d = v;
    if (d->final) return fake_wrong(BAD_PARAM, "an attribute set after finalizing");
    if (type == KX_DNN_TYPE_DESCRIPTOR)
        for (int64_t i = 0; i < count; i++)
            if (!((struct descriptor *const *)values)[i] || !((struct descriptor *const *)values)[i]->final)
                return fake_wrong(NOT_FINALIZED, "a descriptor used before it was finalized");
    return put(d, name, type, count, values);
}

/* ---- what an engine computes */

struct operand {
    enum fake_type type;
    int64_t strides[4]; /* n, c, h, w; 0 where it is broadcast */
    void *p;
};
struct convolution {
    struct fake_job job; /* first */
    int64_t n, in, h, w, out, kh, kw, p, q, stride, pad;
    struct operand x, weight, y, adds[2];
    int64_t uid_x, uid_w, uid_y, uids[2];
    int count;
    bool split, coarse; /* sums in two parts; with the error of a transform */
    void *workspace;
    size_t workspace_bytes;
};

static bool type_of(const struct descriptor *tensor, enum fake_type *out) {
    switch (int_of(tensor, KX_DNN_A_TENSOR_TYPE)) {
    case KX_DNN_FLOAT:
        *out = FAKE_F32;
        return true;
    case KX_DNN_HALF:
        *out = FAKE_F16;
        return true;
    case KX_DNN_BFLOAT16:
        *out = FAKE_BF16;
        return true;
    default:
        return false;
    }
}

static bool operand_of(const struct descriptor *tensor, struct operand *o) {
    const int64_t *strides = ints_of(tensor, KX_DNN_A_TENSOR_STRIDES);
    memcpy(o->strides, strides, sizeof(o->strides));
    return type_of(tensor, &o->type);
}

/* The graph as a convolution and what is added, or a status that says that there is no engine for it. */
static int read_graph(const struct descriptor *graph, struct convolution *c) {
    const struct attribute *ops = get(graph, KX_DNN_A_GRAPH_OPS);
    const struct descriptor *op = descriptor_of(graph, KX_DNN_A_GRAPH_OPS, 0);
    if (!op || op->kind != KX_DNN_OPERATION_CONVOLUTION)
        return fake_wrong(PATTERN, "no convolution at first");
    if (ops->count > 3 || (ops->count > 1 && !fuse)) return PATTERN;
    const struct descriptor *conv = descriptor_of(op, KX_DNN_A_OPCONV_CONV, 0),
                            *x = descriptor_of(op, KX_DNN_A_OPCONV_X, 0),
                            *w = descriptor_of(op, KX_DNN_A_OPCONV_W, 0),
                            *y = descriptor_of(op, KX_DNN_A_OPCONV_Y, 0);
    const int64_t *xd = ints_of(x, KX_DNN_A_TENSOR_DIMS), *wd = ints_of(w, KX_DNN_A_TENSOR_DIMS),
                  *yd = ints_of(y, KX_DNN_A_TENSOR_DIMS);
    c->n = xd[0];
    c->in = xd[1];
    c->h = xd[2];
    c->w = xd[3];
    c->out = wd[0];
    c->kh = wd[2];
    c->kw = wd[3];
    c->p = yd[2];
    c->q = yd[3];
    c->stride = ints_of(conv, KX_DNN_A_CONV_STRIDES)[0];
    c->pad = ints_of(conv, KX_DNN_A_CONV_PRE_PADDINGS)[0];
    if (c->in % 8 || c->out % 8) return NOT_SUPPORTED;
    if (!operand_of(x, &c->x) || !operand_of(w, &c->weight) || c->x.type == FAKE_F32 ||
        c->weight.type != c->x.type || c->x.strides[1] != 1 || c->weight.strides[1] != 1)
        return fake_wrong(NOT_SUPPORTED, "types or strides of x and w");
    c->uid_x = int_of(x, KX_DNN_A_TENSOR_UID);
    c->uid_w = int_of(w, KX_DNN_A_TENSOR_UID);
    for (int i = 1; i < ops->count; i++) {
        const struct descriptor *add = descriptor_of(graph, KX_DNN_A_GRAPH_OPS, i);
        const struct descriptor *b = descriptor_of(add, KX_DNN_A_OPPW_B, 0);
        if (add->kind != KX_DNN_OPERATION_POINTWISE || descriptor_of(add, KX_DNN_A_OPPW_X, 0) != y)
            return fake_wrong(PATTERN, "not a chain of additions");
        enum fake_type type;
        if (int_of(y, KX_DNN_A_TENSOR_VIRTUAL) != 1 || !type_of(y, &type) || type != FAKE_F32)
            return fake_wrong(PATTERN, "what lies between is virtual and f32");
        struct operand *o = &c->adds[c->count];
        if (!operand_of(b, o) || o->type != c->x.type) return PATTERN;
        const int64_t *bd = ints_of(b, KX_DNN_A_TENSOR_DIMS);
        bool row = bd[2] == 1 && bd[3] == 1 && (c->p > 1 || c->q > 1);
        if (row && bd[0] > 1 && !fuse_rows) return PATTERN;
        for (int k = 0; k < 4; k++) {
            if (bd[k] != 1 && bd[k] != yd[k]) return fake_wrong(MISMATCH, "sizes of what is added");
            if (bd[k] == 1) o->strides[k] = 0;
        }
        c->uids[c->count++] = int_of(b, KX_DNN_A_TENSOR_UID);
        y = descriptor_of(add, KX_DNN_A_OPPW_Y, 0);
    }
    if (int_of(y, KX_DNN_A_TENSOR_VIRTUAL) != 0 || !operand_of(y, &c->y) || c->y.type != c->x.type)
        return fake_wrong(PATTERN, "the result is virtual, or of another type than x");
    c->uid_y = int_of(y, KX_DNN_A_TENSOR_UID);
    return 0;
}

static int check_tensor(const struct descriptor *d) {
    if (!get(d, KX_DNN_A_TENSOR_TYPE) || !get(d, KX_DNN_A_TENSOR_UID) || !get(d, KX_DNN_A_TENSOR_ALIGNMENT))
        return fake_wrong(BAD_PARAM, "a tensor lacks an attribute");
    const struct attribute *dims = get(d, KX_DNN_A_TENSOR_DIMS), *strides = get(d, KX_DNN_A_TENSOR_STRIDES);
    if (!dims || !strides || dims->count != 4 || strides->count != 4)
        return fake_wrong(BAD_PARAM, "a tensor has not four dimensions");
    return 0;
}

static int check_convolution(const struct descriptor *op) {
    const struct descriptor *conv = descriptor_of(op, KX_DNN_A_OPCONV_CONV, 0),
                            *x = descriptor_of(op, KX_DNN_A_OPCONV_X, 0),
                            *w = descriptor_of(op, KX_DNN_A_OPCONV_W, 0),
                            *y = descriptor_of(op, KX_DNN_A_OPCONV_Y, 0);
    if (!conv || !x || !w || !y || !get(op, KX_DNN_A_OPCONV_ALPHA) || !get(op, KX_DNN_A_OPCONV_BETA))
        return fake_wrong(BAD_PARAM, "a convolution lacks an attribute");
    if (int_of(conv, KX_DNN_A_CONV_SPATIAL_DIMS) != 2 ||
        int_of(conv, KX_DNN_A_CONV_MODE) != KX_DNN_CROSS_CORRELATION ||
        int_of(conv, KX_DNN_A_CONV_COMP_TYPE) != KX_DNN_FLOAT)
        return fake_wrong(NOT_SUPPORTED, "kind of convolution");
    const int64_t *xd = ints_of(x, KX_DNN_A_TENSOR_DIMS), *wd = ints_of(w, KX_DNN_A_TENSOR_DIMS),
                  *yd = ints_of(y, KX_DNN_A_TENSOR_DIMS);
    const int64_t *pre = ints_of(conv, KX_DNN_A_CONV_PRE_PADDINGS),
                  *post = ints_of(conv, KX_DNN_A_CONV_POST_PADDINGS),
                  *stride = ints_of(conv, KX_DNN_A_CONV_STRIDES),
                  *dilation = ints_of(conv, KX_DNN_A_CONV_DILATIONS);
    if (!pre || !post || !stride || !dilation)
        return fake_wrong(BAD_PARAM, "a convolution lacks an attribute");
    bool good = xd[1] == wd[1] && yd[0] == xd[0] && yd[1] == wd[0];
    for (int k = 0; k < 2; k++)
        good = good && dilation[k] == 1 &&
               yd[2 + k] == (xd[2 + k] + pre[k] + post[k] - wd[2 + k]) / stride[k] + 1;
    return good ? 0 : fake_wrong(MISMATCH, "sizes of a convolution");
}

static size_t wanted(int64_t engine, int64_t n) {
    return engine == SNEAKY ? (n < FEW_IMAGES ? SNEAKY_BYTES : 131) : 0;
}

static const struct descriptor *graph_of(const struct descriptor *plan) {
    const struct descriptor *config = descriptor_of(plan, KX_DNN_A_PLAN_CFG, 0);
    return descriptor_of(descriptor_of(config, KX_DNN_A_CFG_ENGINE, 0), KX_DNN_A_ENGINE_GRAPH, 0);
}
static int64_t engine_of(const struct descriptor *plan) {
    const struct descriptor *config = descriptor_of(plan, KX_DNN_A_PLAN_CFG, 0);
    return int_of(descriptor_of(config, KX_DNN_A_CFG_ENGINE, 0), KX_DNN_A_ENGINE_INDEX);
}

static int check_plan(const struct descriptor *plan) {
    struct convolution c = {.n = 0};
    if (!get(plan, KX_DNN_A_PLAN_HANDLE) || !get(plan, KX_DNN_A_PLAN_CFG))
        return fake_wrong(BAD_PARAM, "a plan lacks an attribute");
    if (engine_of(plan) == PLAIN) {
        const struct descriptor *config = descriptor_of(plan, KX_DNN_A_PLAN_CFG, 0);
        for (int i = 0; i < 2; i++) {
            const struct descriptor *knob = descriptor_of(config, KX_DNN_A_CFG_KNOB_CHOICES, i);
            if (!knob || int_of(knob, KX_DNN_A_KNOB_TYPE) != knob_types[i] ||
                int_of(knob, KX_DNN_A_KNOB_VALUE) != knob_values[i])
                return fake_wrong(NOT_SUPPORTED, "other knobs than the heuristic's");
        }
    }
    plans++;
    return read_graph(graph_of(plan), &c);
}

int cudnnBackendFinalize(void *v);
int cudnnBackendFinalize(void *v) {
    struct descriptor *d = v;
    struct convolution c = {.n = 0};
    int status = d->final ? fake_wrong(BAD_PARAM, "finalized twice") : 0;
    if (status) return status;
    switch (d->kind) {
    case KX_DNN_TENSOR:
        status = check_tensor(d);
        break;
    case KX_DNN_OPERATION_CONVOLUTION:
        status = check_convolution(d);
        break;
    case KX_DNN_OPERATIONGRAPH:
        if (!get(d, KX_DNN_A_GRAPH_HANDLE) || !get(d, KX_DNN_A_GRAPH_OPS))
            status = fake_wrong(BAD_PARAM, "a graph lacks an attribute");
        break;
    case KX_DNN_ENGINE:
        if (int_of(d, KX_DNN_A_ENGINE_INDEX) < NONDETERMINISTIC || int_of(d, KX_DNN_A_ENGINE_INDEX) > PLAIN)
            status = fake_wrong(NOT_SUPPORTED, "no such engine");
        else
            status = read_graph(descriptor_of(d, KX_DNN_A_ENGINE_GRAPH, 0), &c);
        break;
    case KX_DNN_EXECUTION_PLAN:
        status = check_plan(d);
        break;
    default:
        break;
    }
    d->final = status == 0;
    return status;
}

/* ---- the heuristic */

static int fill(struct descriptor *d, int name, int type, int64_t count, const void *values) {
    int status = put(d, name, type, count, values);
    d->final = true;
    return status;
}

/* An engine of the graph into the descriptor that somebody made for it. */
static int tell_engine(struct descriptor *to, struct descriptor *graph, int64_t index) {
    int32_t notes[2] = {0, index == NONDETERMINISTIC ? KX_DNN_NOTE_NONDETERMINISTIC : KX_DNN_NOTE_WINOGRAD};
    int status = fill(to, KX_DNN_A_ENGINE_GRAPH, KX_DNN_TYPE_DESCRIPTOR, 1, &graph);
    if (!status) status = fill(to, KX_DNN_A_ENGINE_INDEX, KX_DNN_TYPE_INT64, 1, &index);
    if (!status)
        status = fill(to, KX_DNN_A_ENGINE_NOTES, KX_DNN_TYPE_NUMERICAL_NOTE,
                      index == NONDETERMINISTIC || index == WINOGRAD ? 2 : 1, notes);
    return status;
}

static int results(const struct descriptor *heuristic, int64_t wants, int64_t *count, void *out) {
    struct descriptor *graph = descriptor_of(heuristic, KX_DNN_A_HEUR_GRAPH, 0);
    struct convolution c = {.n = 0};
    *count = 0;
    if (int_of(heuristic, KX_DNN_A_HEUR_MODE) != KX_DNN_HEUR_A || read_graph(graph, &c)) return 0; /* none */
    for (int64_t i = 0; i < PLAIN && i < wants; i++) {
        struct descriptor *config = ((struct descriptor **)out)[i];
        /* who asks for the engine makes a descriptor for it; until then its number is kept as a knob would be
         */
        int64_t index = NONDETERMINISTIC + i;
        config->kind = KX_DNN_ENGINE;
        int status = tell_engine(config, graph, index);
        config->kind = KX_DNN_ENGINECFG;
        if (status) return status;
        ++*count;
    }
    return 0;
}

static int knobs(int64_t index, int64_t wants, int64_t *count, void *out) {
    static const int32_t split_type = KX_DNN_KNOB_SPLIT_K_SLC;
    static const int64_t split_value = 4;
    const int32_t *types = index == SPLIT ? &split_type : knob_types;
    const int64_t *values = index == SPLIT ? &split_value : knob_values;
    *count = 0;
    for (int64_t i = 0; i < (index == SPLIT ? 1 : 2) && i < wants; i++) {
        struct descriptor *knob = ((struct descriptor **)out)[i];
        int status = fill(knob, KX_DNN_A_KNOB_TYPE, KX_DNN_TYPE_KNOB_TYPE, 1, &types[i]);
        if (!status) status = fill(knob, KX_DNN_A_KNOB_VALUE, KX_DNN_TYPE_INT64, 1, &values[i]);
        if (status) return status;
        ++*count;
    }
    return 0;
}

int cudnnBackendGetAttribute(void *v, int name, int type, int64_t wants, int64_t *count, void *out);
int cudnnBackendGetAttribute(void *v, int name, int type, int64_t wants, int64_t *count, void *out) {
    struct descriptor *d = v;
    if (!d->final) return fake_wrong(NOT_FINALIZED, "an attribute asked for before finalizing");
    if (d->kind == KX_DNN_ENGINEHEUR && name == KX_DNN_A_HEUR_RESULTS && type == KX_DNN_TYPE_DESCRIPTOR)
        return results(d, wants, count, out);
    if (d->kind == KX_DNN_ENGINECFG && type == KX_DNN_TYPE_DESCRIPTOR && get(d, KX_DNN_A_ENGINE_INDEX)) {
        int64_t index = int_of(d, KX_DNN_A_ENGINE_INDEX);
        if (name == KX_DNN_A_CFG_KNOB_CHOICES) return knobs(index, wants, count, out);
        if (name == KX_DNN_A_CFG_ENGINE) {
            *count = 1;
            return tell_engine(*(struct descriptor **)out, descriptor_of(d, KX_DNN_A_ENGINE_GRAPH, 0), index);
        }
    }
    if (d->kind == KX_DNN_EXECUTION_PLAN && name == KX_DNN_A_PLAN_WORKSPACE && type == KX_DNN_TYPE_INT64) {
        struct convolution c = {.n = 0};
        int status = read_graph(graph_of(d), &c);
        int64_t bytes = (int64_t)wanted(engine_of(d), c.n);
        memcpy(out, &bytes, sizeof(bytes));
        *count = 1;
        return status;
    }
    size_t bytes = 0;
    int status = look_up(d, name, type, 1, &bytes);
    const struct attribute *a = get(d, name);
    if (status || !a) return status ? status : BAD_PARAM;
    *count = a->count < wants ? a->count : wants;
    memcpy(out, a->values, (size_t)*count * bytes);
    return 0;
}

/* ---- execution */

static float element(const struct convolution *c, int64_t i, int64_t o, int64_t p, int64_t q) {
    float sums[2] = {0, 0};
    for (int64_t r = 0; r < c->kh; r++)
        for (int64_t s = 0; s < c->kw; s++) {
            int64_t y = p * c->stride + r - c->pad, x = q * c->stride + s - c->pad;
            if (y < 0 || y >= c->h || x < 0 || x >= c->w) continue;
            const int64_t *xs = c->x.strides, *ws = c->weight.strides;
            for (int64_t k = 0; k < c->in; k++)
                sums[c->split ? k % 2 : 0] +=
                    fake_load(c->x.type, c->x.p, i * xs[0] + k * xs[1] + y * xs[2] + x * xs[3]) *
                    fake_load(c->weight.type, c->weight.p, o * ws[0] + k * ws[1] + r * ws[2] + s * ws[3]);
        }
    float v = (sums[0] + sums[1]) * (c->coarse ? 1.01f : 1);
    for (int a = 0; a < c->count; a++) {
        const int64_t *as = c->adds[a].strides;
        v += fake_load(c->adds[a].type, c->adds[a].p, i * as[0] + o * as[1] + p * as[2] + q * as[3]);
    }
    return v;
}

static void convolve(void *arg) {
    const struct convolution *c = arg;
    const int64_t *ys = c->y.strides;
    if (c->workspace) memset(c->workspace, 0xff, c->workspace_bytes);
    for (int64_t i = 0; i < c->n; i++)
        for (int64_t p = 0; p < c->p; p++)
            for (int64_t q = 0; q < c->q; q++)
                for (int64_t o = 0; o < c->out; o++)
                    fake_store(c->y.type, c->y.p, i * ys[0] + o * ys[1] + p * ys[2] + q * ys[3],
                               element(c, i, o, p, q));
}

static int pointer_of(const struct descriptor *pack, int64_t uid, void **out) {
    const struct attribute *uids = get(pack, KX_DNN_A_PACK_UIDS),
                           *pointers = get(pack, KX_DNN_A_PACK_POINTERS);
    if (!uids || !pointers || uids->count != pointers->count)
        return fake_wrong(BAD_PARAM, "a pack of more names than pointers");
    for (int64_t i = 0; i < uids->count; i++)
        if (((const int64_t *)uids->values)[i] == uid) {
            *out = ((void **)pointers->values)[i];
            if (!*out || (uintptr_t)*out % 16) return fake_wrong(2003, "a pointer not aligned");
            return 0;
        }
    return fake_wrong(BAD_PARAM, "a tensor without a pointer");
}

int cudnnBackendExecute(void *handle, void *v, void *pack_v);
int cudnnBackendExecute(void *handle, void *v, void *pack_v) {
    struct descriptor *plan = v, *pack = pack_v;
    if (!plan->final || !pack->final) return fake_wrong(NOT_FINALIZED, "run before finalizing");
    struct convolution *c = calloc(1, sizeof(*c));
    if (!c) return KX_DNN_HOST_ALLOCATION_FAILED;
    int status = read_graph(graph_of(plan), c);
    if (!status) status = pointer_of(pack, c->uid_x, &c->x.p);
    if (!status) status = pointer_of(pack, c->uid_w, &c->weight.p);
    if (!status) status = pointer_of(pack, c->uid_y, &c->y.p);
    for (int i = 0; i < c->count && !status; i++) status = pointer_of(pack, c->uids[i], &c->adds[i].p);
    c->workspace_bytes = wanted(engine_of(plan), c->n);
    const struct attribute *workspace = get(pack, KX_DNN_A_PACK_WORKSPACE);
    if (workspace) c->workspace = *(void **)workspace->values;
    if (!status && c->workspace_bytes && !c->workspace) status = fake_wrong(BAD_PARAM, "no workspace");
    static unsigned calls;
    calls++;
    switch (engine_of(plan)) {
    case NONDETERMINISTIC:
        c->split = calls % 2;
        break;
    case SPLIT: /* into how many parts depends on the number of images */
        c->split = c->n % 2;
        break;
    default:
        c->split = c->workspace_bytes == SNEAKY_BYTES;
    }
    c->coarse = engine_of(plan) == WINOGRAD;
    cudaStream_t stream;
    memcpy(&stream, handle, sizeof(stream));
    if (status) {
        free(c);
        return status;
    }
    return fake_enqueue(stream, convolve, &c->job) ? EXECUTION_FAILED : 0;
}
