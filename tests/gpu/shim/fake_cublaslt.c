/* A cuBLASLt for the shim: cublasLtMatmul and what belongs to it, by the documents of CUDA 13. Column-major
 * matrices of the ordinary order, transposes, leading dimensions, bias along D's rows, C times beta, scales
 * of e4m3 factors along the outer dimensions. Sums in f32.
 *
 * The heuristic names four algorithms, best first: two that say that they divide sums (the second says so
 * only in its reduction scheme), one that says nothing, but wants workspace for few columns and sums in
 * another order then, and one that sums over k from 0 up, for any number of columns. */
#include "tests/gpu/shim/fake.h"

#include <stdbool.h>

enum { INVALID = 7, NOT_SUPPORTED = 15, EXECUTION_FAILED = 13, FEW_COLUMNS = 24, SNEAKY_BYTES = 1 << 20 };
enum algorithm { SPLIT = 1, REDUCED = 2, SNEAKY = 3, PLAIN = 4 };

struct desc {
    int compute, scale;
    int32_t trans_a, trans_b, epilogue, bias_type, a_mode, b_mode;
    const void *bias;
    const float *a_scale, *b_scale;
};
struct layout {
    int type;
    uint64_t rows, cols;
    int64_t ld;
};
struct preference {
    uint64_t workspace;
    uint32_t mask, alignment[4];
};

struct fake_job *fake_jobs;
static long heuristics, alive;

/* For tests: how often the heuristic was asked, and how many descriptors there are. */
long fake_lt_heuristics(void);
long fake_lt_alive(void);
long fake_lt_heuristics(void) {
    return heuristics;
}
long fake_lt_alive(void) {
    return alive;
}

__attribute__((destructor)) static void unload(void) {
    fake_forget();
}

static int made(void **out, size_t bytes) {
    *out = calloc(1, bytes);
    if (!*out) return KX_LT_ALLOC_FAILED;
    alive++;
    return 0;
}
static int gone(void *p) {
    free(p);
    alive--;
    return 0;
}

size_t cublasLtGetVersion(void);
size_t cublasLtGetVersion(void) {
    return 130100;
}
const char *cublasLtGetStatusString(int status);
const char *cublasLtGetStatusString(int status) {
    return status == 0 ? "success" : status == NOT_SUPPORTED ? "not supported" : "a fault";
}
int cublasLtCreate(void **h);
int cublasLtCreate(void **h) {
    return made(h, 1);
}
int cublasLtDestroy(void *h);
int cublasLtDestroy(void *h) {
    return gone(h);
}

/* ---- descriptors */

int cublasLtMatmulDescCreate(void **d, int compute, int scale);
int cublasLtMatmulDescCreate(void **d, int compute, int scale) {
    int status = made(d, sizeof(struct desc));
    if (status) return status;
    *(struct desc *)*d = (struct desc){
        .compute = compute, .scale = scale, .epilogue = KX_LT_EPILOGUE_DEFAULT, .bias_type = -1};
    return 0;
}
int cublasLtMatmulDescDestroy(void *d);
int cublasLtMatmulDescDestroy(void *d) {
    return gone(d);
}

static int copy(void *to, size_t bytes, const void *from, size_t size) {
    if (!from || size != bytes) return fake_wrong(INVALID, "an attribute of the wrong size");
    memcpy(to, from, bytes);
    return 0;
}

int cublasLtMatmulDescSetAttribute(void *v, int name, const void *buf, size_t size);
int cublasLtMatmulDescSetAttribute(void *v, int name, const void *buf, size_t size) {
    struct desc *d = v;
    switch (name) {
    case KX_LT_DESC_TRANSA:
        return copy(&d->trans_a, 4, buf, size);
    case KX_LT_DESC_TRANSB:
        return copy(&d->trans_b, 4, buf, size);
    case KX_LT_DESC_EPILOGUE:
        return copy(&d->epilogue, 4, buf, size);
    case KX_LT_DESC_BIAS_POINTER:
        return copy(&d->bias, 8, buf, size);
    case KX_LT_DESC_BIAS_DATA_TYPE:
        return copy(&d->bias_type, 4, buf, size);
    case KX_LT_DESC_A_SCALE_POINTER:
        return copy(&d->a_scale, 8, buf, size);
    case KX_LT_DESC_B_SCALE_POINTER:
        return copy(&d->b_scale, 8, buf, size);
    case KX_LT_DESC_A_SCALE_MODE:
        return copy(&d->a_mode, 4, buf, size);
    case KX_LT_DESC_B_SCALE_MODE:
        return copy(&d->b_mode, 4, buf, size);
    default:
        return fake_wrong(INVALID, "an attribute of a product that is not known");
    }
}

int cublasLtMatrixLayoutCreate(void **l, int type, uint64_t rows, uint64_t cols, int64_t ld);
int cublasLtMatrixLayoutCreate(void **l, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    int status = made(l, sizeof(struct layout));
    if (!status) *(struct layout *)*l = (struct layout){type, rows, cols, ld};
    return status;
}
int cublasLtMatrixLayoutDestroy(void *l);
int cublasLtMatrixLayoutDestroy(void *l) {
    return gone(l);
}
int cublasLtMatrixLayoutSetAttribute(void *l, int name, const void *buf, size_t size);
int cublasLtMatrixLayoutSetAttribute(void *l, int name, const void *buf, size_t size) {
    if (name != KX_LT_LAYOUT_COLS) return fake_wrong(INVALID, "an attribute of a layout that is not known");
    return copy(&((struct layout *)l)->cols, 8, buf, size);
}

int cublasLtMatmulPreferenceCreate(void **p);
int cublasLtMatmulPreferenceCreate(void **p) {
    int status = made(p, sizeof(struct preference));
    if (!status) *(struct preference *)*p = (struct preference){0, KX_LT_REDUCTION_ANY, {256, 256, 256, 256}};
    return status;
}
int cublasLtMatmulPreferenceDestroy(void *p);
int cublasLtMatmulPreferenceDestroy(void *p) {
    return gone(p);
}
int cublasLtMatmulPreferenceSetAttribute(void *v, int name, const void *buf, size_t size);
int cublasLtMatmulPreferenceSetAttribute(void *v, int name, const void *buf, size_t size) {
    struct preference *p = v;
    if (name == KX_LT_PREF_WORKSPACE_BYTES) return copy(&p->workspace, 8, buf, size);
    if (name == KX_LT_PREF_REDUCTION_MASK) return copy(&p->mask, 4, buf, size);
    if (name >= KX_LT_PREF_ALIGNMENT_A && name < KX_LT_PREF_ALIGNMENT_A + 4)
        return copy(&p->alignment[name - KX_LT_PREF_ALIGNMENT_A], 4, buf, size);
    return fake_wrong(INVALID, "a preference that is not known");
}

/* ---- the product */

static bool type_of(int type, enum fake_type *out) {
    switch (type) {
    case KX_LT_R_16F:
        *out = FAKE_F16;
        return true;
    case KX_LT_R_16BF:
        *out = FAKE_BF16;
        return true;
    case KX_LT_R_8F_E4M3:
        *out = FAKE_E4M3;
        return true;
    default:
        return false;
    }
}

struct product {
    struct fake_job job; /* first */
    enum fake_type factor, value;
    uint64_t m, n, k;
    bool ta, tb, has_bias, split;
    int64_t lda, ldb, ldc, ldd;
    const void *a, *b, *c, *bias;
    void *d, *workspace;
    size_t workspace_bytes;
    const float *a_scale, *b_scale;
    float alpha, beta;
};

/* Checks that the descriptors fit each other, and puts the sizes into *p. */
static int fit(const struct desc *d, const struct layout *a, const struct layout *b, const struct layout *c,
               const struct layout *y, struct product *p) {
    if (d->compute != KX_LT_COMPUTE_32F || d->scale != KX_LT_R_32F)
        return fake_wrong(NOT_SUPPORTED, "a type of sums other than f32");
    p->ta = d->trans_a == KX_LT_OP_T;
    p->tb = d->trans_b == KX_LT_OP_T;
    p->m = p->ta ? a->cols : a->rows;
    p->k = p->ta ? a->rows : a->cols;
    p->n = p->tb ? b->rows : b->cols;
    if ((p->tb ? b->cols : b->rows) != p->k || y->rows != p->m || y->cols != p->n || c->rows != p->m ||
        c->cols != p->n)
        return fake_wrong(INVALID, "matrices that do not fit");
    if (a->ld < (int64_t)a->rows || b->ld < (int64_t)b->rows || c->ld < (int64_t)c->rows ||
        y->ld < (int64_t)y->rows)
        return fake_wrong(INVALID, "a leading dimension below the rows");
    p->lda = a->ld;
    p->ldb = b->ld;
    p->ldc = c->ld;
    p->ldd = y->ld;
    if (!type_of(a->type, &p->factor) || !type_of(y->type, &p->value) || b->type != a->type ||
        c->type != y->type || p->value == FAKE_E4M3 || (p->factor != FAKE_E4M3 && p->factor != p->value))
        return fake_wrong(NOT_SUPPORTED, "types");
    if (p->factor == FAKE_E4M3) {
        if (!p->ta || p->tb || p->k % 16 || p->m % 16)
            return fake_wrong(NOT_SUPPORTED, "e4m3: not TN, or not multiples of 16");
        if (d->a_mode != d->b_mode || d->a_mode != KX_LT_SCALE_OUTER_VEC_32F)
            return fake_wrong(NOT_SUPPORTED, "e4m3: scales");
    } else if (d->a_scale || d->b_scale) {
        return fake_wrong(INVALID, "scales of a type that has none");
    }
    p->has_bias = d->epilogue == KX_LT_EPILOGUE_BIAS;
    if (!p->has_bias && d->epilogue != KX_LT_EPILOGUE_DEFAULT) return fake_wrong(NOT_SUPPORTED, "epilogue");
    /* not of another type than D, but where the documents say so */
    if (p->has_bias && d->bias_type != -1 && d->bias_type != y->type)
        return fake_wrong(NOT_SUPPORTED, "bias of another type than the result");
    p->bias = d->bias;
    p->a_scale = d->a_scale;
    p->b_scale = d->b_scale;
    return 0;
}

static size_t wanted(int algorithm, const struct product *p) {
    return algorithm == SNEAKY && p->n < FEW_COLUMNS ? SNEAKY_BYTES : 0;
}

int cublasLtMatmulAlgoGetHeuristic(void *h, void *desc, void *a, void *b, void *c, void *d, void *preference,
                                   int wants, struct kx_lt_result *out, int *found);
int cublasLtMatmulAlgoGetHeuristic(void *h, void *desc, void *a, void *b, void *c, void *d, void *preference,
                                   int wants, struct kx_lt_result *out, int *found) {
    const struct preference *pref = preference;
    struct product p = {.m = 0};
    (void)h;
    heuristics++;
    *found = 0;
    int status = fit(desc, a, b, c, d, &p);
    if (status) return status;
    const struct desc *x = desc;
    if (p.has_bias && !x->bias) return fake_wrong(INVALID, "no bias to see the alignment of");
    /* what the mask asks for is left to the caller to look at */
    for (int algorithm = SPLIT; algorithm <= PLAIN && *found < wants; algorithm++) {
        if (wanted(algorithm, &p) > pref->workspace) continue;
        out[*found] = (struct kx_lt_result){.algo.data = {(uint64_t)algorithm},
                                            .workspace_bytes = wanted(algorithm, &p)};
        ++*found;
    }
    return *found ? 0 : NOT_SUPPORTED;
}

int cublasLtMatmulAlgoCheck(void *h, void *desc, void *a, void *b, void *c, void *d,
                            const struct kx_lt_algo *algo, struct kx_lt_result *out);
int cublasLtMatmulAlgoCheck(void *h, void *desc, void *a, void *b, void *c, void *d,
                            const struct kx_lt_algo *algo, struct kx_lt_result *out) {
    struct product p = {.m = 0};
    (void)h;
    int status = fit(desc, a, b, c, d, &p);
    if (status) return status;
    if (algo->data[0] < SPLIT || algo->data[0] > PLAIN) return fake_wrong(INVALID, "no such algorithm");
    out->workspace_bytes = wanted((int)algo->data[0], &p);
    return 0;
}

int cublasLtMatmulAlgoConfigGetAttribute(const struct kx_lt_algo *algo, int name, void *buf, size_t size,
                                         size_t *written);
int cublasLtMatmulAlgoConfigGetAttribute(const struct kx_lt_algo *algo, int name, void *buf, size_t size,
                                         size_t *written) {
    int algorithm = (int)algo->data[0];
    if (name == KX_LT_ALGO_INNER || name == KX_LT_ALGO_CLUSTER) {
        uint16_t v = 0;
        *written = sizeof(v);
        return copy(buf, size, &v, sizeof(v));
    }
    int32_t v = name == KX_LT_ALGO_ID          ? algorithm
                : name == KX_LT_ALGO_SPLITK    ? (algorithm == SPLIT ? 4 : 1)
                : name == KX_LT_ALGO_REDUCTION ? (algorithm == REDUCED ? 1 : 0)
                                               : 0;
    *written = sizeof(v);
    return copy(buf, size, &v, sizeof(v));
}

static void multiply(void *arg) {
    const struct product *p = arg;
    /* whoever keeps something there across calls shall notice */
    if (p->workspace) memset(p->workspace, 0xff, p->workspace_bytes);
    for (uint64_t j = 0; j < p->n; j++)
        for (uint64_t i = 0; i < p->m; i++) {
            float sums[2] = {0, 0};
            for (uint64_t k = 0; k < p->k; k++) {
                int64_t at_a = p->ta ? (int64_t)i * p->lda + (int64_t)k : (int64_t)k * p->lda + (int64_t)i;
                int64_t at_b = p->tb ? (int64_t)k * p->ldb + (int64_t)j : (int64_t)j * p->ldb + (int64_t)k;
                sums[p->split ? k % 2 : 0] +=
                    fake_load(p->factor, p->a, at_a) * fake_load(p->factor, p->b, at_b);
            }
            float v = p->alpha * (sums[0] + sums[1]);
            if (p->factor == FAKE_E4M3) v *= p->a_scale[i] * p->b_scale[j];
            if (p->beta != 0) v += p->beta * fake_load(p->value, p->c, (int64_t)j * p->ldc + (int64_t)i);
            if (p->has_bias) v += fake_load(p->value, p->bias, (int64_t)i);
            fake_store(p->value, p->d, (int64_t)j * p->ldd + (int64_t)i, v);
        }
}

int cublasLtMatmul(void *h, void *desc, const void *alpha, const void *a, void *al, const void *b, void *bl,
                   const void *beta, const void *c, void *cl, void *d, void *dl,
                   const struct kx_lt_algo *algo, void *workspace, size_t workspace_bytes,
                   cudaStream_t stream);
int cublasLtMatmul(void *h, void *desc, const void *alpha, const void *a, void *al, const void *b, void *bl,
                   const void *beta, const void *c, void *cl, void *d, void *dl,
                   const struct kx_lt_algo *algo, void *workspace, size_t workspace_bytes,
                   cudaStream_t stream) {
    struct product *p = calloc(1, sizeof(*p));
    if (!h || !p) return INVALID;
    int status = fit(desc, al, bl, cl, dl, p);
    if (status == 0 && !algo) status = fake_wrong(INVALID, "no algorithm: the heuristic would be asked");
    if (status == 0 && wanted((int)algo->data[0], p) > workspace_bytes)
        status = fake_wrong(INVALID, "workspace too small");
    if (status == 0 && (uintptr_t)workspace % 16) status = fake_wrong(INVALID, "workspace not aligned");
    const void *pointers[] = {a,
                              b,
                              c,
                              d,
                              p->has_bias ? p->bias : d,
                              p->factor == FAKE_E4M3 ? p->a_scale : d,
                              p->factor == FAKE_E4M3 ? p->b_scale : d};
    for (size_t i = 0; status == 0 && i < sizeof(pointers) / sizeof(pointers[0]); i++)
        if (!pointers[i] || (uintptr_t)pointers[i] % 16)
            status = fake_wrong(INVALID, "a pointer not aligned");
    if (status) {
        free(p);
        return status;
    }
    /* into how many parts depends on the number of columns */
    p->split = ((algo->data[0] == SPLIT || algo->data[0] == REDUCED) && p->n % 2) ||
               wanted((int)algo->data[0], p) > 0;
    p->a = a;
    p->b = b;
    p->c = c;
    p->d = d;
    p->workspace = workspace_bytes ? workspace : NULL;
    p->workspace_bytes = workspace_bytes;
    memcpy(&p->alpha, alpha, sizeof(float));
    memcpy(&p->beta, beta, sizeof(float));
    return fake_enqueue(stream, multiply, &p->job) ? EXECUTION_FAILED : 0;
}
