/* Linear layers by cuBLASLt. See cublaslt.h.
 *
 * Layout. The library's matrices are column-major; a row-major matrix is its transpose there, without a copy:
 *
 *     y (rows × out) = x (rows × in) · Wᵀ (W: out × in)      row-major, ours
 *     D (out × rows) = op(A) · B                              column-major, the library's
 *     A = W: in × out, ld in, transposed;  B = x: in × rows, ld in;  C, D = residual, y: out × rows, ld out
 *
 * so that M is `out`, N the rows, K `in`, and the bias, a value for each of D's rows, is ours a column of y.
 * D = A·B + beta·C + bias, all in f32, rounded once.
 *
 * Same bits. A value of D is the sum over K in an order that the kernel's tile and stages give; N only says
 * how many tiles there are, as long as no kernel divides one sum among several blocks. So: no reduction
 * scheme, no split K, and, since kernels that divide sums without saying so keep the parts in the workspace
 * (cuDNN's do), none that wants more of it than descriptors take. The algorithm that the heuristic names
 * first for KX_LT_IMAGES images is asked (AlgoCheck) whether it runs so for one, two, three and many images
 * too, and used for all or none. That equal algorithms give equal bits is what the library promises for one
 * architecture with as many SMs; tests/gpu/libraries.c measures it for rows 1 to many. */
#include "kernels/cuda/cublaslt.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CANDIDATES = 32,
    ALIGNMENT = 16,
    WHOLE_WORKSPACE_MAX = 4096, /* bytes; a part of a sum would be a tile of f32 */
};

/* Numbers of images at which a layer's algorithm must run before it is taken. */
static const int probes[] = {1, 2, 3, 4, 6, 8, 12, 32, 64};

struct kx_lt_plan {
    struct kx_lt_plan *next; /* owns */
    struct kx_lt_shape shape;
    int images; /* 0: the shape's algorithm, for any number of images */
    bool fastest;
    bool none;      /* of images 0: the library does not do this shape */
    kx_lt_ptr desc; /* owns; so the layouts */
    kx_lt_ptr w_layout, x_layout, y_layout;
    struct kx_lt_algo algo;
    size_t workspace_bytes;
    int64_t rows;
};

struct kx_lt {
    const struct kx_lt_abi *abi; /* borrowed */
    kx_lt_ptr handle;            /* owns */
    kx_lt_ptr preference;        /* owns */
    enum kx_store type;
    void *workspace; /* borrowed */
    size_t workspace_bytes;
    struct kx_lt_plan *plans; /* owns; those of images 0 too */
};

size_t kx_lt_workspace_bytes(int sm_major) {
    return (size_t)(sm_major >= 9 ? 32 : 4) << 20;
}

/* A status of the library as an error of ours. */
static int fail(const struct kx_lt *lt, int status, const char *what, struct kn_err *err) {
    int code = status == KX_LT_ALLOC_FAILED ? KN_ENOMEM : KN_EDEVICE;
    return kn_err_set(err, code, "cuBLASLt: %s: %s", what, lt->abi->GetStatusString(status));
}

int kx_lt_create(const struct kx_library *library, enum kx_store type, void *workspace,
                 size_t workspace_bytes, struct kx_lt **out, struct kn_err *err) {
    if (!library->lt_version) return kn_err_set(err, KN_EUNSUPPORTED, "cuBLASLt is not there");
    struct kx_lt *lt = calloc(1, sizeof(*lt));
    if (!lt) return kn_err_set(err, KN_ENOMEM, "out of memory");
    lt->abi = &library->lt;
    lt->type = type;
    lt->workspace = workspace;
    lt->workspace_bytes = workspace_bytes;

    int status = lt->abi->Create(&lt->handle);
    if (status == KX_LT_SUCCESS) status = lt->abi->MatmulPreferenceCreate(&lt->preference);
    for (int i = 0; i < 4 && status == KX_LT_SUCCESS; i++) { /* of A, B, C, D */
        uint32_t bytes = ALIGNMENT;
        status = lt->abi->MatmulPreferenceSetAttribute(lt->preference, KX_LT_PREF_ALIGNMENT_A + i, &bytes,
                                                       sizeof(bytes));
    }
    if (status != KX_LT_SUCCESS) {
        int rc = kn_err_set(err, status == KX_LT_ALLOC_FAILED ? KN_ENOMEM : KN_EUNSUPPORTED,
                            "cuBLASLt does not start: %s", lt->abi->GetStatusString(status));
        kx_lt_destroy(lt);
        return rc;
    }
    *out = lt;
    return 0;
}

static void plan_destroy(const struct kx_lt *lt, struct kx_lt_plan *p) {
    /* Nothing could be done about an error of these. */
    if (p->y_layout) (void)lt->abi->MatrixLayoutDestroy(p->y_layout);
    if (p->x_layout) (void)lt->abi->MatrixLayoutDestroy(p->x_layout);
    if (p->w_layout) (void)lt->abi->MatrixLayoutDestroy(p->w_layout);
    if (p->desc) (void)lt->abi->MatmulDescDestroy(p->desc);
    free(p);
}

void kx_lt_trim(struct kx_lt *lt) {
    while (lt->plans) {
        struct kx_lt_plan *p = lt->plans;
        lt->plans = p->next;
        plan_destroy(lt, p);
    }
}

void kx_lt_destroy(struct kx_lt *lt) {
    if (!lt) return;
    kx_lt_trim(lt);
    if (lt->preference) (void)lt->abi->MatmulPreferenceDestroy(lt->preference);
    if (lt->handle) (void)lt->abi->Destroy(lt->handle);
    free(lt);
}

static int set_int(const struct kx_lt *lt, kx_lt_ptr desc, int attribute, int32_t v) {
    return lt->abi->MatmulDescSetAttribute(desc, attribute, &v, sizeof(v));
}
static int set_pointer(const struct kx_lt *lt, kx_lt_ptr desc, int attribute, const void *v) {
    return lt->abi->MatmulDescSetAttribute(desc, attribute, &v, sizeof(v));
}
static int set_rows(const struct kx_lt *lt, struct kx_lt_plan *p, int64_t rows) {
    uint64_t cols = (uint64_t)rows;
    int status = lt->abi->MatrixLayoutSetAttribute(p->x_layout, KX_LT_LAYOUT_COLS, &cols, sizeof(cols));
    if (status == KX_LT_SUCCESS)
        status = lt->abi->MatrixLayoutSetAttribute(p->y_layout, KX_LT_LAYOUT_COLS, &cols, sizeof(cols));
    p->rows = rows;
    return status;
}

/* The descriptors of a product for `rows` rows; no algorithm yet. */
static int describe(const struct kx_lt *lt, struct kx_lt_plan *p, int64_t rows) {
    const struct kx_lt_abi *abi = lt->abi;
    const struct kx_lt_shape *s = &p->shape;
    int value = lt->type == KX_STORE_F16 ? KX_LT_R_16F : KX_LT_R_16BF;
    int factor = s->fp8 ? KX_LT_R_8F_E4M3 : value;
    uint64_t in = (uint64_t)s->in, out = (uint64_t)s->out;

    int status = abi->MatmulDescCreate(&p->desc, KX_LT_COMPUTE_32F, KX_LT_R_32F);
    if (status == KX_LT_SUCCESS) status = set_int(lt, p->desc, KX_LT_DESC_TRANSA, KX_LT_OP_T);
    if (status == KX_LT_SUCCESS && s->bias) {
        status = set_int(lt, p->desc, KX_LT_DESC_EPILOGUE, KX_LT_EPILOGUE_BIAS);
        if (status == KX_LT_SUCCESS) status = set_int(lt, p->desc, KX_LT_DESC_BIAS_DATA_TYPE, value);
        /* The heuristic looks at the pointer's alignment alone; a run sets the real one. */
        if (status == KX_LT_SUCCESS)
            status = set_pointer(lt, p->desc, KX_LT_DESC_BIAS_POINTER, lt->workspace);
    }
    if (status == KX_LT_SUCCESS && s->fp8) {
        status = set_int(lt, p->desc, KX_LT_DESC_A_SCALE_MODE, KX_LT_SCALE_OUTER_VEC_32F);
        if (status == KX_LT_SUCCESS)
            status = set_int(lt, p->desc, KX_LT_DESC_B_SCALE_MODE, KX_LT_SCALE_OUTER_VEC_32F);
        if (status == KX_LT_SUCCESS)
            status = set_pointer(lt, p->desc, KX_LT_DESC_A_SCALE_POINTER, lt->workspace);
        if (status == KX_LT_SUCCESS)
            status = set_pointer(lt, p->desc, KX_LT_DESC_B_SCALE_POINTER, lt->workspace);
    }
    if (status == KX_LT_SUCCESS) status = abi->MatrixLayoutCreate(&p->w_layout, factor, in, out, s->in);
    if (status == KX_LT_SUCCESS)
        status = abi->MatrixLayoutCreate(&p->x_layout, factor, in, (uint64_t)rows, s->in);
    if (status == KX_LT_SUCCESS)
        status = abi->MatrixLayoutCreate(&p->y_layout, value, out, (uint64_t)rows, s->out);
    p->rows = rows;
    return status;
}

static int config(const struct kx_lt *lt, const struct kx_lt_algo *algo, int attribute, size_t bytes) {
    union {
        int32_t i;
        uint16_t s;
    } v = {.i = 0};
    size_t written = 0;
    if (lt->abi->MatmulAlgoConfigGetAttribute(algo, attribute, &v, bytes, &written) != KX_LT_SUCCESS)
        return -1;
    return bytes == sizeof(v.s) ? v.s : v.i;
}

/* True if p's algorithm runs for p's rows within `workspace` bytes. */
static bool runs(const struct kx_lt *lt, const struct kx_lt_plan *p, const struct kx_lt_algo *algo,
                 size_t workspace, size_t *wanted) {
    struct kx_lt_result r = {.state = 0};
    if (lt->abi->MatmulAlgoCheck(lt->handle, p->desc, p->w_layout, p->x_layout, p->y_layout, p->y_layout,
                                 algo, &r) != KX_LT_SUCCESS)
        return false;
    if (wanted) *wanted = r.workspace_bytes;
    return r.workspace_bytes <= workspace;
}

/* The heuristic's algorithms for p's rows, best first; how many. `whole`: no sum is divided. */
static int candidates(const struct kx_lt *lt, const struct kx_lt_plan *p, size_t workspace, bool whole,
                      struct kx_lt_result *found) {
    uint64_t bytes = workspace;
    uint32_t mask = whole ? KX_LT_REDUCTION_NONE : KX_LT_REDUCTION_ANY;
    int n = 0;
    if (lt->abi->MatmulPreferenceSetAttribute(lt->preference, KX_LT_PREF_WORKSPACE_BYTES, &bytes,
                                              sizeof(bytes)) != KX_LT_SUCCESS ||
        lt->abi->MatmulPreferenceSetAttribute(lt->preference, KX_LT_PREF_REDUCTION_MASK, &mask,
                                              sizeof(mask)) != KX_LT_SUCCESS ||
        lt->abi->MatmulAlgoGetHeuristic(lt->handle, p->desc, p->w_layout, p->x_layout, p->y_layout,
                                        p->y_layout, lt->preference, CANDIDATES, found, &n) != KX_LT_SUCCESS)
        return 0; /* "not supported" is how it says that it has none */
    int kept = 0;
    for (int i = 0; i < n; i++) {
        if (found[i].state != KX_LT_SUCCESS || found[i].workspace_bytes > workspace) continue;
        if (whole && (config(lt, &found[i].algo, KX_LT_ALGO_SPLITK, 4) > 1 ||
                      config(lt, &found[i].algo, KX_LT_ALGO_REDUCTION, 4) > KX_LT_REDUCTION_NONE))
            continue;
        found[kept++] = found[i];
    }
    return kept;
}

/* The algorithm of p's shape for any number of images, into p. False: there is none. */
static bool choose(const struct kx_lt *lt, struct kx_lt_plan *p, int *status) {
    const int64_t image_rows = p->shape.image_rows;
    struct kx_lt_result found[CANDIDATES];
    *status = set_rows(lt, p, image_rows * KX_LT_IMAGES);
    if (*status != KX_LT_SUCCESS) return false;
    p->workspace_bytes =
        lt->workspace_bytes < WHOLE_WORKSPACE_MAX ? lt->workspace_bytes : WHOLE_WORKSPACE_MAX;
    int n = candidates(lt, p, p->workspace_bytes, true, found);
    for (int i = 0; i < n; i++) {
        bool all = true;
        for (size_t k = 0; k < sizeof(probes) / sizeof(probes[0]) && all; k++) {
            if (image_rows * probes[k] > INT_MAX) break;
            *status = set_rows(lt, p, image_rows * probes[k]);
            if (*status != KX_LT_SUCCESS) return false;
            all = runs(lt, p, &found[i].algo, p->workspace_bytes, NULL);
        }
        if (!all) continue;
        p->algo = found[i].algo;
        return true;
    }
    return false;
}

static bool same_shape(const struct kx_lt_shape *a, const struct kx_lt_shape *b) {
    return a->in == b->in && a->out == b->out && a->act == b->act && a->bias == b->bias &&
           a->residual == b->residual && a->image_rows == b->image_rows && a->fp8 == b->fp8;
}

static struct kx_lt_plan *find(const struct kx_lt *lt, const struct kx_lt_shape *s, int images,
                               bool fastest) {
    for (struct kx_lt_plan *p = lt->plans; p; p = p->next)
        if (p->images == images && p->fastest == fastest && same_shape(&p->shape, s)) return p;
    return NULL;
}

/* A new plan with descriptors for `rows` rows, not yet in the list. */
static int plan_new(const struct kx_lt *lt, const struct kx_lt_shape *s, int images, bool fastest,
                    int64_t rows, struct kx_lt_plan **out, struct kn_err *err) {
    struct kx_lt_plan *p = calloc(1, sizeof(*p));
    if (!p) return kn_err_set(err, KN_ENOMEM, "out of memory");
    p->shape = *s;
    p->images = images;
    p->fastest = fastest;
    int status = describe(lt, p, rows);
    if (status != KX_LT_SUCCESS) {
        plan_destroy(lt, p);
        return fail(lt, status, "descriptors", err);
    }
    *out = p;
    return 0;
}

static void keep(struct kx_lt *lt, struct kx_lt_plan *p) {
    p->next = lt->plans;
    lt->plans = p;
}

static int refuse(const struct kx_lt_shape *s, struct kn_err *err) {
    return kn_err_set(err, KN_EUNSUPPORTED, "cuBLASLt: not for a layer of %d by %d on %lld rows", s->in,
                      s->out, (long long)s->image_rows);
}

/* The shape's choice, made or found. */
static int shape_choice(struct kx_lt *lt, const struct kx_lt_shape *s, struct kx_lt_plan **out,
                        struct kn_err *err) {
    struct kx_lt_plan *p = find(lt, s, 0, false);
    if (!p) {
        int rc = plan_new(lt, s, 0, false, s->image_rows, &p, err);
        if (rc) return rc;
        int status;
        p->none = !choose(lt, p, &status);
        if (status != KX_LT_SUCCESS) {
            plan_destroy(lt, p);
            return fail(lt, status, "layout", err);
        }
        keep(lt, p);
    }
    *out = p;
    return p->none ? refuse(s, err) : 0;
}

int kx_lt_plan(struct kx_lt *lt, const struct kx_lt_shape *s, int images, bool fastest,
               struct kx_lt_plan **out, struct kn_err *err) {
    struct kx_lt_plan *p = find(lt, s, images, fastest);
    if (p) {
        *out = p;
        return 0;
    }
    /* Decided by the layer and one image alone, never by their number. Rows of a multiple of 16 bytes, so
     * that all are aligned; an activation stands between bias and residual, where the library adds both at
     * once. */
    int multiple = s->fp8 ? 16 : 8;
    if (s->in <= 0 || s->out <= 0 || s->in % multiple || s->out % multiple || s->image_rows <= 0 ||
        s->image_rows > INT_MAX / KX_LT_IMAGES || (s->residual && s->act != KX_ACT_NONE) || images <= 0)
        return refuse(s, err);
    if (s->image_rows > INT_MAX / images)
        return kn_err_set(err, KN_ELIMIT, "cuBLASLt: %lld rows of %d images are too many",
                          (long long)s->image_rows, images);

    struct kx_lt_plan *choice = NULL;
    int rc = fastest ? 0 : shape_choice(lt, s, &choice, err);
    if (rc) return rc;
    int64_t rows = s->image_rows * images;
    rc = plan_new(lt, s, images, fastest, rows, &p, err);
    if (rc) return rc;
    if (fastest) {
        struct kx_lt_result found[CANDIDATES];
        if (candidates(lt, p, lt->workspace_bytes, false, found) == 0) {
            plan_destroy(lt, p);
            return refuse(s, err);
        }
        p->algo = found[0].algo;
        p->workspace_bytes = found[0].workspace_bytes;
    } else {
        p->algo = choice->algo;
        if (!runs(lt, p, &p->algo, choice->workspace_bytes, &p->workspace_bytes)) {
            /* Another kernel for this number of images alone would be another order of sums. */
            plan_destroy(lt, p);
            return kn_err_set(err, KN_ELIMIT,
                              "cuBLASLt: the algorithm of %d by %d does not run for %lld rows", s->in, s->out,
                              (long long)rows);
        }
    }
    keep(lt, p);
    *out = p;
    return 0;
}

size_t kx_lt_scratch_bytes(const struct kx_lt_plan *p) {
    return p->shape.act == KX_ACT_GEGLU ? (size_t)p->rows * (size_t)p->shape.out * 2 : 0;
}

/* The CUDA error behind a call of the library that failed. */
static cudaError_t blame(void) {
    cudaError_t e = cudaPeekAtLastError();
    return e == cudaSuccess ? cudaErrorUnknown : e;
}

cudaError_t kx_lt_run(struct kx_lt *lt, struct kx_lt_plan *p, const struct kx_lt_call *c,
                      cudaStream_t stream) {
    const struct kx_lt_shape *s = &p->shape;
    if (!c->bias != !s->bias || !c->residual != !s->residual) return cudaErrorInvalidValue;
    int status = KX_LT_SUCCESS;
    if (s->bias) status = set_pointer(lt, p->desc, KX_LT_DESC_BIAS_POINTER, c->bias);
    if (s->fp8) {
        if (status == KX_LT_SUCCESS)
            status = set_pointer(lt, p->desc, KX_LT_DESC_A_SCALE_POINTER, c->weight_scale);
        if (status == KX_LT_SUCCESS)
            status = set_pointer(lt, p->desc, KX_LT_DESC_B_SCALE_POINTER, c->x_scale);
    }
    if (status != KX_LT_SUCCESS) return blame();

    const float alpha = 1, beta = s->residual ? 1 : 0;
    void *d = s->act == KX_ACT_GEGLU ? c->scratch : c->y;
    status = lt->abi->Matmul(lt->handle, p->desc, &alpha, c->weight, p->w_layout, c->x, p->x_layout, &beta,
                             s->residual ? c->residual : d, p->y_layout, d, p->y_layout, &p->algo,
                             lt->workspace, p->workspace_bytes, stream);
    if (status != KX_LT_SUCCESS) return blame();
    switch (s->act) {
    case KX_ACT_NONE:
        return cudaSuccess;
    case KX_ACT_GEGLU:
        return kx_cuda_geglu(stream, lt->type, d, p->rows, s->out / 2, c->y);
    default:
        return kx_cuda_finish(stream, lt->type, d, NULL, s->act, NULL, c->y, p->rows, s->out);
    }
}

void kx_lt_describe(const struct kx_lt *lt, const struct kx_lt_plan *p, char *out, size_t size) {
    snprintf(out, size,
             "algo %d tile %d stages %d inner %d cluster %d swizzle %d custom %d splitk %d workspace %zu",
             config(lt, &p->algo, KX_LT_ALGO_ID, 4), config(lt, &p->algo, KX_LT_ALGO_TILE, 4),
             config(lt, &p->algo, KX_LT_ALGO_STAGES, 4), config(lt, &p->algo, KX_LT_ALGO_INNER, 2),
             config(lt, &p->algo, KX_LT_ALGO_CLUSTER, 2), config(lt, &p->algo, KX_LT_ALGO_SWIZZLE, 4),
             config(lt, &p->algo, KX_LT_ALGO_CUSTOM, 4), config(lt, &p->algo, KX_LT_ALGO_SPLITK, 4),
             p->workspace_bytes);
}
