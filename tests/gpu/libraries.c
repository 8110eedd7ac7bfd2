/* The libraries behind the layers (kernels/cuda/library.h, cublaslt.h, cudnn.h) and the table that chooses
 * them (table.h).
 *
 * On a device: whatever cuBLASLt and cuDNN are found there, against sums in double and against themselves for
 * other numbers of images; what they chose is printed. On the shim: the libraries of tests/gpu/shim, strict
 * where the real ones are, which offer kernels that divide sums before others. Bounds (NMSE): f16 1e-6, bf16
 * 5e-5: a bias and, with an activation or an addition of its own pass, the product are rounded once more than
 * in our own kernels. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cudnn.h"
#include "kernels/cuda/table.h"
#include "tests/gpu/gpu.h"

#ifdef KX_SHIM
#include <dlfcn.h>
#endif

static const double bounds[] = {1e-6, 5e-5}; /* by type */
static const enum kx_store types[] = {KX_STORE_F16, KX_STORE_BF16};
enum { SAMPLES = 3000 }; /* values of a large result that are looked at */

static void *host(size_t bytes) {
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p) abort();
    return p;
}

static struct kx_library *libraries(void) {
    static struct kx_library *l;
    struct kn_err err = {0};
#ifdef KX_SHIM
    setenv("KILN_CUDA_LIBS", KX_FAKE_LIBS, 1);
#endif
    if (!l && kx_library_open(&l, &err)) {
        fprintf(stderr, "%s\n", err.text);
        CHECK(l);
    }
    return l;
}

#ifdef KX_SHIM
static long ask(void *module, const char *name) {
    long (*f)(void);
    void *p = dlsym(module, name);
    CHECK(p);
    memcpy(&f, &p, sizeof f);
    return f();
}
static void fuse(bool all, bool rows) {
    void (*f)(bool, bool);
    void *p = dlsym(libraries()->dnn_module, "fake_dnn_fuse");
    CHECK(p);
    memcpy(&f, &p, sizeof f);
    f(all, rows);
}
#endif

/* n values around 0, rounded to `type`, on both sides; spread: their deviation. */
struct values {
    float *v;
    void *device;
};
static struct values random_values(struct gpu_random *r, enum kx_store type, float spread, size_t n) {
    struct values x = {.v = host(n * sizeof(float))};
    gpu_fill(r, type, spread, x.v, n);
    x.device = gpu_upload_values(type, x.v, n);
    return x;
}
static void values_free(struct values *x) {
    free(x->v);
    gpu_free(x->device);
}

static double act_of(enum kx_act act, double v) {
    switch (act) {
    case KX_ACT_SILU:
        return v / (1 + exp(-v));
    case KX_ACT_GELU:
        return 0.5 * v * (1 + erf(v / sqrt(2.0)));
    case KX_ACT_QUICK_GELU:
        return v / (1 + exp(-1.702 * v));
    default:
        return v;
    }
}

/* ---- the table */

static struct kx_variants *parse(const char *text, int sm) {
    struct kx_variants *v = NULL;
    struct kn_err err = {0};
    int rc = kx_variants_parse("table", text, sm, &v, &err);
    CHECK_MSG(rc == 0, "%s", err.text);
    return v;
}

TEST(table_takes_the_first_rule_that_fits) {
    struct kx_variants *v = parse(
        "# products\n"
        "linear 90- act=geglu rows=1024- cublaslt # large ones\n"
        "linear 80- in=8-64 out=-320 cublaslt\n\n"
        "conv 80 kernel=3 stride=2 cudnn\n"
        "conv 90 kernel=3 upsample=0 pixels=64-256 cudnn\r\n"
        "attention 90 dim=64 length=77 sm90",
        90);
    CHECK_INT(kx_variant_linear(v, 320, 2560, KX_ACT_GEGLU, 1024), KX_VARIANT_CUBLASLT);
    CHECK_INT(kx_variant_linear(v, 320, 2560, KX_ACT_GEGLU, 1023), KX_VARIANT_OWN);
    CHECK_INT(kx_variant_linear(v, 320, 2560, KX_ACT_GELU, 1024), KX_VARIANT_OWN);
    CHECK_INT(kx_variant_linear(v, 64, 320, KX_ACT_NONE, 1), KX_VARIANT_CUBLASLT);
    CHECK_INT(kx_variant_linear(v, 65, 320, KX_ACT_NONE, 1), KX_VARIANT_OWN);
    CHECK_INT(kx_variant_linear(v, 64, 321, KX_ACT_NONE, 1), KX_VARIANT_OWN);
    struct kx_conv_shape s = {.in = 4, .out = 320, .kernel = 3, .stride = 1};
    CHECK_INT(kx_variant_conv(v, &s, 64), KX_VARIANT_CUDNN);
    CHECK_INT(kx_variant_conv(v, &s, 63), KX_VARIANT_OWN);
    CHECK_INT(kx_variant_conv(v, &s, 257), KX_VARIANT_OWN);
    s.upsample = true;
    CHECK_INT(kx_variant_conv(v, &s, 64), KX_VARIANT_OWN);
    s = (struct kx_conv_shape){.in = 4, .out = 320, .kernel = 3, .stride = 2};
    CHECK_INT(kx_variant_conv(v, &s, 1), KX_VARIANT_OWN); /* that rule is for 80 */
    CHECK_INT(kx_variant_attention(v, 64, 4096, 77), KX_VARIANT_SM90);
    CHECK_INT(kx_variant_attention(v, 64, 4096, 78), KX_VARIANT_OWN);
    CHECK_INT(kx_variant_attention(v, 40, 4096, 77), KX_VARIANT_OWN);
    kx_variants_destroy(v);
}

TEST(table_says_where_it_is_wrong) {
    static const struct {
        const char *text, *fault;
    } cases[] = {
        {"conv 80- own\nlinar 80- own", "t:2: linar is not conv, linear or attention"},
        {"conv x own", "t:1: x is not a range of compute capabilities"},
        {"conv 90-80 own", "t:1: 90-80 is not a range of compute capabilities"},
        {"conv 80- own kernel=3", "t:1: kernel=3 stands after the variant"},
        {"conv 80- rows=3 own", "t:1: rows=3: no such name for this op"},
        {"conv 80- kernel=a own", "t:1: kernel=a: not a range"},
        {"conv 80- kernel= own", "t:1: kernel=: not a range"},
        {"conv 80- kernel=- own", "t:1: kernel=-: not a range"},
        {"conv 80- kernel=1-2-3 own", "t:1: kernel=1-2-3: not a range"},
        {"conv 80- kernel=12345678901234567890 own", "t:1: kernel=12345678901234567890: not a range"},
        {"linear 80- act=relu own", "t:1: act=relu: no such activation"},
        {"conv 80- act=gelu own", "t:1: act=gelu: no such name for this op"},
        {"conv 80- cublas", "t:1: cublas is not own, sm90, cublaslt or cudnn"},
        {"conv 80- kernel=1", "t:1: no variant"},
        {"conv", "t:1: no variant"},
        {"conv 80- kernel=1 stride=1 cublaslt", "t:1: cublaslt does not do what this rule is for"},
        {"conv 80- kernel=1-3 stride=1 upsample=0 cublaslt",
         "t:1: cublaslt does not do what this rule is for"},
        {"linear 80- cudnn", "t:1: cudnn does not do what this rule is for"},
        {"attention 80- cublaslt", "t:1: cublaslt does not do what this rule is for"},
        {"conv 80- aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa own",
         "t:1: a word is too long"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct kx_variants *v = NULL;
        struct kn_err err = {0};
        CHECK_INT(kx_variants_parse("t", cases[i].text, 90, &v, &err), KN_EPARSE);
        CHECK_STR(err.text, cases[i].fault);
        CHECK(!v);
    }
    char *many = host(KX_VARIANTS_RULES_MAX * 16 + 32);
    for (int i = 0; i <= KX_VARIANTS_RULES_MAX; i++) strcat(many, "conv 80- own\n");
    struct kx_variants *v = NULL;
    CHECK_INT(kx_variants_parse("t", many, 90, &v, NULL), KN_ELIMIT);
    kx_variants_destroy(parse(many, 75)); /* none of them is for that one */
    free(many);
}

TEST(table_digest_follows_what_decides) {
    struct kx_variants *a = parse("conv 80- kernel=3 cudnn\nconv 80 own", 90),
                       *same = parse("# other words\n conv  90   kernel=3-3 cudnn # and spaces\n", 90),
                       *range = parse("conv 80- kernel=3- cudnn", 90),
                       *variant = parse("conv 80- kernel=3 own", 90),
                       *name = parse("conv 80- stride=3 cudnn", 90),
                       *more = parse("conv 80- kernel=3 cudnn\nconv 80- own", 90);
    CHECK_INT(strlen(kx_variants_digest(a)), KX_VARIANTS_DIGEST - 1);
    CHECK_STR(kx_variants_digest(same), kx_variants_digest(a));
    CHECK(strcmp(kx_variants_digest(range), kx_variants_digest(a)) != 0);
    CHECK(strcmp(kx_variants_digest(variant), kx_variants_digest(a)) != 0);
    CHECK(strcmp(kx_variants_digest(name), kx_variants_digest(a)) != 0);
    CHECK(strcmp(kx_variants_digest(more), kx_variants_digest(a)) != 0);
    kx_variants_destroy(a);
    kx_variants_destroy(same);
    kx_variants_destroy(range);
    kx_variants_destroy(variant);
    kx_variants_destroy(name);
    kx_variants_destroy(more);
}

TEST(table_ships_and_a_file_may_stand_in_for_it) {
    char path[] = "/tmp/kiln-table-XXXXXX";
    struct kx_variants *v = NULL;
    struct kn_err err = {0};
    struct kx_conv_shape s = {.in = 320, .out = 320, .kernel = 3, .stride = 1};
    unsetenv("KILN_CUDA_TABLE");
    static const int sms[] = {80, 86, 89, 90, 100, 120};
    for (size_t i = 0; i < sizeof sms / sizeof *sms; i++) {
        CHECK_INT(kx_variants_create(sms[i], &v, &err), 0);
        CHECK_INT(kx_variant_conv(v, &s, 4096), KX_VARIANT_CUDNN);
        CHECK_INT(kx_variant_linear(v, 320, 320, KX_ACT_NONE, 4096), KX_VARIANT_CUBLASLT);
        CHECK_INT(kx_variant_attention(v, 40, 4096, 4096), KX_VARIANT_OWN);
        kx_variants_destroy(v);
    }
    int fd = mkstemp(path);
    static const char text[] = "conv 80- own\n";
    CHECK(fd >= 0 && write(fd, text, sizeof text - 1) == sizeof text - 1);
    setenv("KILN_CUDA_TABLE", path, 1);
    CHECK_INT(kx_variants_create(90, &v, &err), 0);
    CHECK_INT(kx_variant_conv(v, &s, 4096), KX_VARIANT_OWN);
    struct kx_variants *same = parse(text, 90);
    CHECK_STR(kx_variants_digest(v), kx_variants_digest(same));
    kx_variants_destroy(same);
    kx_variants_destroy(v);
    CHECK(write(fd, "", 1) == 1); /* a zero byte */
    CHECK_INT(kx_variants_create(90, &v, &err), KN_EPARSE);
    CHECK_INT(ftruncate(fd, KX_VARIANTS_TEXT_MAX + 1), 0);
    CHECK_INT(kx_variants_create(90, &v, &err), KN_ELIMIT);
    close(fd);
    unlink(path);
    CHECK_INT(kx_variants_create(90, &v, &err), KN_ENOENT);
    unsetenv("KILN_CUDA_TABLE");
}

/* ---- where libraries are looked for */

TEST(library_that_is_absent_is_a_fact) {
    struct kx_library *l = NULL;
    struct kn_err err = {0};
    char facts[128];
    setenv("KILN_CUDA_LIBS", "/nowhere/at/all", 1);
    int rc = kx_library_open(&l, &err);
    unsetenv("KILN_CUDA_LIBS");
    CHECK_INT(rc, 0);
    CHECK(!l->lt_version && !l->dnn_version && !l->lt.Matmul && !l->dnn.BackendExecute);
    kx_library_facts(l, facts, sizeof facts);
    CHECK_STR(facts, "cublaslt none, cudnn none");
    struct kx_lt *lt = NULL;
    struct kx_cudnn *dnn = NULL;
    CHECK_INT(kx_lt_create(l, KX_STORE_F16, NULL, 0, &lt, &err), KN_EUNSUPPORTED);
    CHECK_INT(kx_cudnn_create(l, KX_STORE_F16, NULL, &dnn, &err), KN_EUNSUPPORTED);
    kx_library_close(l);
}

TEST(library_that_was_asked_for_and_cannot_be_used_is_an_error) {
    char folder[] = "/tmp/kiln-libs-XXXXXX", path[128];
    struct kx_library *l = NULL;
    struct kn_err err = {0};
    CHECK(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/libcudnn.so.9", folder);
    FILE *f = fopen(path, "w");
    CHECK(f && fputs("no library", f) >= 0 && fclose(f) == 0);
    setenv("KILN_CUDA_LIBS", folder, 1);
    int rc = kx_library_open(&l, &err);
    unsetenv("KILN_CUDA_LIBS");
    unlink(path);
    rmdir(folder);
    CHECK_INT(rc, KN_ECONFIG);
    CHECK_MSG(strstr(err.text, folder), "%s", err.text);
}

/* ---- linear layers */

static struct kx_lt *lt_create(enum kx_store type, void **workspace) {
    struct kx_lt *lt = NULL;
    struct kn_err err = {0};
    size_t bytes = kx_lt_workspace_bytes(gpu_capability() / 10);
    if (!libraries()->lt_version) SKIP("cuBLASLt is not there");
    *workspace = gpu_poisoned(bytes);
    int rc = kx_lt_create(libraries(), type, *workspace, bytes, &lt, &err);
    CHECK_MSG(rc == 0, "%s", err.text);
    return lt;
}

struct linear {
    int in, out;
    enum kx_act act;
    bool bias, residual;
    int image_rows;
    bool device_only;
};
static const struct linear linears[] = {
    {8, 8, KX_ACT_NONE, true, false, 1, false},
    {8, 16, KX_ACT_NONE, false, false, 3, false},
    {40, 24, KX_ACT_NONE, true, true, 5, false},
    {64, 40, KX_ACT_SILU, true, false, 2, false},
    {48, 32, KX_ACT_GELU, true, false, 7, false},
    {32, 48, KX_ACT_QUICK_GELU, true, false, 4, false},
    {40, 80, KX_ACT_GEGLU, true, false, 6, false},
    {24, 16, KX_ACT_GEGLU, false, false, 3, false},
    {320, 320, KX_ACT_NONE, true, true, 4096, true},
    {320, 1280, KX_ACT_SILU, true, false, 1, true},
    {1280, 1280, KX_ACT_NONE, true, false, 1, true},
    {768, 640, KX_ACT_NONE, false, false, 77, true},
    {768, 3072, KX_ACT_QUICK_GELU, true, false, 77, true},
    {2048, 1280, KX_ACT_NONE, false, false, 77, true},
    {640, 5120, KX_ACT_GEGLU, true, false, 4096, true},
    {5120, 1280, KX_ACT_NONE, true, true, 1024, true},
    {1280, 10240, KX_ACT_GEGLU, true, false, 1024, true},
    {2560, 640, KX_ACT_NONE, true, true, 4096, true},
    {1280, 1280, KX_ACT_NONE, true, true, 64, true},
};
enum { LINEARS = sizeof linears / sizeof *linears };

/* A layer with its weights and `rows` rows of input and residual. */
struct layer {
    struct linear s;
    enum kx_store type;
    int64_t rows;
    struct values x, weight, bias, residual;
};
static struct layer layer_of(const struct linear *s, enum kx_store type, int64_t rows) {
    struct gpu_random r = gpu_random_of((uint64_t)(s->in * 31 + s->out));
    struct layer l = {.s = *s, .type = type, .rows = rows};
    size_t in = (size_t)s->in, out = (size_t)s->out, n = (size_t)rows;
    l.weight = random_values(&r, type, 1 / sqrtf((float)in), out * in);
    l.bias = random_values(&r, type, 1, out);
    l.x = random_values(&r, type, 1, n * in);
    if (s->residual) l.residual = random_values(&r, type, 1, n * out);
    return l;
}
static void layer_free(struct layer *l) {
    values_free(&l->x);
    values_free(&l->weight);
    values_free(&l->bias);
    values_free(&l->residual);
}
static double product(const struct layer *l, size_t row, int column) {
    double sum = l->s.bias ? l->bias.v[column] : 0;
    const float *x = l->x.v + row * (size_t)l->s.in, *w = l->weight.v + (size_t)column * (size_t)l->s.in;
    for (int k = 0; k < l->s.in; k++) sum += (double)x[k] * w[k];
    return sum;
}
static double layer_want(const struct layer *l, size_t row, int column) {
    if (l->s.act == KX_ACT_GEGLU)
        return product(l, row, column) * act_of(KX_ACT_GELU, product(l, row, column + l->s.out / 2));
    double v = act_of(l->s.act, product(l, row, column));
    return l->s.residual ? v + l->residual.v[row * (size_t)l->s.out + (size_t)column] : v;
}
static int columns_of(const struct linear *s) {
    return s->act == KX_ACT_GEGLU ? s->out / 2 : s->out;
}

/* y of the first `images` images, downloaded; in_place: the residual's memory is y's. */
static void run_layer(struct kx_lt *lt, const struct layer *l, int images, bool fastest, bool in_place,
                      uint16_t *y, const char *say) {
    struct kx_lt_shape s = {.in = l->s.in,
                            .out = l->s.out,
                            .act = l->s.act,
                            .bias = l->s.bias,
                            .residual = l->s.residual,
                            .image_rows = l->s.image_rows};
    struct kx_lt_plan *p = NULL, *again = NULL;
    struct kn_err err = {0};
    int rc = kx_lt_plan(lt, &s, images, fastest, &p, &err);
    CHECK_MSG(rc == 0, "%s", err.text);
    CHECK(kx_lt_plan(lt, &s, images, fastest, &again, &err) == 0 && again == p);
    size_t n = (size_t)images * (size_t)l->s.image_rows * (size_t)columns_of(&l->s);
    void *out = gpu_poisoned(2 * n), *scratch = gpu_poisoned(kx_lt_scratch_bytes(p) + 1);
    if (in_place) GPU_OK(cudaMemcpy(out, l->residual.device, 2 * n, cudaMemcpyDeviceToDevice));
    struct kx_lt_call c = {.x = l->x.device,
                           .weight = l->weight.device,
                           .bias = l->s.bias ? l->bias.device : NULL,
                           .residual = !l->s.residual ? NULL
                                       : in_place     ? out
                                                      : l->residual.device,
                           .y = out,
                           .scratch = scratch};
    GPU_OK(kx_lt_run(lt, p, &c, NULL));
    gpu_download(y, out, 2 * n);
    gpu_free(out);
    gpu_free(scratch);
    if (say && gpu_real()) {
        char text[256];
        kx_lt_describe(lt, p, text, sizeof text);
        printf("%s %d to %d, %d rows an image, %d images: %s\n", say, l->s.in, l->s.out, l->s.image_rows,
               images, text);
    }
}

/* Of all values, or of SAMPLES taken at random where the sums in double would take minutes. */
static double layer_distance(const struct layer *l, const uint16_t *y, int64_t rows) {
    size_t columns = (size_t)columns_of(&l->s), all = (size_t)rows * columns;
    size_t n = all * (size_t)l->s.in > 50000000 && all > SAMPLES ? SAMPLES : all;
    struct gpu_random r = gpu_random_of(77);
    double *want = host(n * sizeof *want);
    float *got = host(n * sizeof *got);
    for (size_t i = 0; i < n; i++) {
        size_t at = n == all ? i : gpu_integer(&r, (uint32_t)all);
        want[i] = layer_want(l, at / columns, (int)(at % columns));
        got[i] = gpu_unbits(l->type, y[at]);
    }
    double d = gpu_nmse(want, got, n);
    free(want);
    free(got);
    return d;
}

TEST(cublaslt_layers_are_right) {
    for (int t = 0; t < 2; t++) {
        void *workspace;
        struct kx_lt *lt = lt_create(types[t], &workspace);
        for (int i = 0; i < LINEARS; i++) {
            const struct linear *s = &linears[i];
            if (s->device_only && !gpu_real()) continue;
            struct layer l = layer_of(s, types[t], 2 * s->image_rows);
            uint16_t *y = host(2 * (size_t)l.rows * (size_t)s->out);
            for (int way = 0; way < (s->residual ? 4 : 2); way++) { /* reproducible, fastest; in place */
                run_layer(lt, &l, 2, way % 2, way / 2, y,
                          t == 1 && way < 2 ? (way ? "fastest" : "layer") : NULL);
                double d = layer_distance(&l, y, l.rows);
                CHECK_MSG(d < bounds[t], "%d to %d, way %d: %g", s->in, s->out, way, d);
            }
            free(y);
            layer_free(&l);
        }
        kx_lt_destroy(lt);
        gpu_free(workspace);
    }
}

TEST(cublaslt_gives_an_image_the_same_bits_among_any_others) {
    static const int counts[] = {1, 2, 3, 5, 8, 16, 33};
    enum { MOST = 33 };
    for (int t = 0; t < 2; t++) {
        void *workspace;
        struct kx_lt *lt = lt_create(types[t], &workspace);
        for (int i = 0; i < LINEARS; i++) {
            const struct linear *s = &linears[i];
            if (s->device_only && !gpu_real()) continue;
            struct layer l = layer_of(s, types[t], (int64_t)MOST * s->image_rows);
            size_t image = (size_t)s->image_rows * (size_t)columns_of(s);
            uint16_t *all = host(2 * image * MOST), *y = host(2 * image * MOST);
            run_layer(lt, &l, MOST, false, false, all, NULL);
            for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
                run_layer(lt, &l, counts[k], false, false, y, NULL);
                CHECK_MSG(memcmp(all, y, 2 * image * (size_t)counts[k]) == 0, "%d to %d, %d images", s->in,
                          s->out, counts[k]);
            }
            /* the last image first and alone */
            struct layer last = l;
            size_t skip = (size_t)(MOST - 1) * (size_t)s->image_rows;
            last.x.device = (char *)l.x.device + 2 * skip * (size_t)s->in;
            if (s->residual) last.residual.device = (char *)l.residual.device + 2 * skip * (size_t)s->out;
            run_layer(lt, &last, 1, false, false, y, NULL);
            bool aligned = (uintptr_t)last.x.device % 16 == 0;
            CHECK(!aligned || memcmp(all + image * (MOST - 1), y, 2 * image) == 0);
            free(all);
            free(y);
            layer_free(&l);
        }
        kx_lt_destroy(lt);
        gpu_free(workspace);
    }
}

TEST(cublaslt_refuses_by_shape_alone) {
    static const struct kx_lt_shape shapes[] = {
        {.in = 12, .out = 16, .image_rows = 4},
        {.in = 16, .out = 12, .image_rows = 4},
        {.in = 16, .out = 16, .act = KX_ACT_SILU, .residual = true, .image_rows = 4},
        {.in = 24, .out = 16, .image_rows = 4, .fp8 = true},
        {.in = 16, .out = 16, .image_rows = 0},
    };
    void *workspace;
    struct kx_lt *lt = lt_create(KX_STORE_F16, &workspace);
    struct kn_err err = {0};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int images = 1; images < 5; images++) {
            struct kx_lt_plan *p = NULL;
            CHECK_INT(kx_lt_plan(lt, &shapes[i], images, false, &p, &err), KN_EUNSUPPORTED);
        }
    struct kx_lt_shape good = {.in = 16, .out = 16, .bias = true, .image_rows = 4};
    struct kx_lt_plan *p = NULL;
    CHECK_INT(kx_lt_plan(lt, &good, 1 << 30, false, &p, &err), KN_ELIMIT);
    CHECK_INT(kx_lt_plan(lt, &good, 1, false, &p, &err), 0);
    struct kx_lt_call c = {.bias = NULL}; /* the shape said that there is one */
    CHECK_INT(kx_lt_run(lt, p, &c, NULL), cudaErrorInvalidValue);
    kx_lt_destroy(lt);
    gpu_free(workspace);
}

TEST(cublaslt_runs_in_a_graph_and_asks_nothing) {
    const struct linear *s = &linears[6]; /* a product and a pass after it */
    void *workspace;
    struct kx_lt *lt = lt_create(KX_STORE_BF16, &workspace);
    struct layer l = layer_of(s, KX_STORE_BF16, 3 * s->image_rows);
    size_t n = (size_t)l.rows * (size_t)columns_of(s);
    uint16_t *want = host(2 * n), *y = host(2 * n);
    run_layer(lt, &l, 3, false, false, want, NULL);

    struct kx_lt_shape shape = {
        .in = s->in, .out = s->out, .act = s->act, .bias = true, .image_rows = s->image_rows};
    struct kx_lt_plan *p = NULL;
    CHECK_INT(kx_lt_plan(lt, &shape, 3, false, &p, NULL), 0);
    void *out = gpu_poisoned(2 * n), *scratch = gpu_poisoned(kx_lt_scratch_bytes(p));
#ifdef KX_SHIM
    long before = ask(libraries()->lt_module, "fake_lt_heuristics");
#endif
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    GPU_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    GPU_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    struct kx_lt_call c = {
        .x = l.x.device, .weight = l.weight.device, .bias = l.bias.device, .y = out, .scratch = scratch};
    GPU_OK(kx_lt_run(lt, p, &c, stream));
    GPU_OK(cudaStreamEndCapture(stream, &graph));
    GPU_OK(cudaGraphInstantiate(&exec, graph, 0));
    for (int k = 0; k < 2; k++) {
        GPU_OK(cudaMemset(out, 0xff, 2 * n));
        gpu_sync();
        GPU_OK(cudaGraphLaunch(exec, stream));
        GPU_OK(cudaStreamSynchronize(stream));
        gpu_download(y, out, 2 * n);
        CHECK_MEM(y, want, 2 * n);
    }
#ifdef KX_SHIM
    CHECK_INT(ask(libraries()->lt_module, "fake_lt_heuristics"), before);
#endif
    GPU_OK(cudaGraphExecDestroy(exec));
    GPU_OK(cudaGraphDestroy(graph));
    GPU_OK(cudaStreamDestroy(stream));
    gpu_free(out);
    gpu_free(scratch);
    free(want);
    free(y);
    layer_free(&l);
    kx_lt_destroy(lt);
    gpu_free(workspace);
#ifdef KX_SHIM
    CHECK_INT(ask(libraries()->lt_module, "fake_lt_alive"), 0); /* no descriptor is left */
#endif
}

/* e4m3 on the host: its bits for a value that is one. */
static float e4m3(uint8_t b) {
    int e = b >> 3 & 15, m = b & 7;
    float v = e ? ldexpf(1 + (float)m / 8, e - 7) : ldexpf((float)m / 8, -6);
    return b & 0x80 ? -v : v;
}

TEST(cublaslt_multiplies_e4m3_with_a_scale_a_row) {
    if (gpu_real() && gpu_capability() < 89) SKIP("e4m3 needs compute capability 8.9");
    enum { IN = 64, OUT = 48, ROWS = 21 };
    struct gpu_random r = gpu_random_of(8);
    static uint8_t x[ROWS * IN], w[OUT * IN];
    static float bias[OUT], x_scale[ROWS], w_scale[OUT], got[ROWS * OUT];
    static double want[ROWS * OUT];
    static uint16_t bits[ROWS * OUT];
    for (size_t i = 0; i < sizeof x; i++) x[i] = (uint8_t)(gpu_integer(&r, 0x70) | gpu_integer(&r, 2) << 7);
    for (size_t i = 0; i < sizeof w; i++) w[i] = (uint8_t)(gpu_integer(&r, 0x70) | gpu_integer(&r, 2) << 7);
    for (int i = 0; i < ROWS; i++) x_scale[i] = 0.001f + 0.002f * (float)gpu_integer(&r, 100) / 100;
    for (int i = 0; i < OUT; i++) w_scale[i] = 0.001f + 0.002f * (float)gpu_integer(&r, 100) / 100;
    gpu_fill(&r, KX_STORE_BF16, 0.1f, bias, OUT);
    for (int i = 0; i < ROWS; i++)
        for (int o = 0; o < OUT; o++) {
            double sum = 0;
            for (int k = 0; k < IN; k++) sum += (double)e4m3(x[i * IN + k]) * (double)e4m3(w[o * IN + k]);
            want[i * OUT + o] = sum * x_scale[i] * w_scale[o] + bias[o];
        }
    void *workspace;
    struct kx_lt *lt = lt_create(KX_STORE_BF16, &workspace);
    struct kx_lt_shape s = {.in = IN, .out = OUT, .bias = true, .image_rows = ROWS / 3, .fp8 = true};
    struct kx_lt_plan *p = NULL;
    struct kn_err err = {0};
    int rc = kx_lt_plan(lt, &s, 3, false, &p, &err);
    if (rc == KN_EUNSUPPORTED && gpu_real()) {
        kx_lt_destroy(lt);
        gpu_free(workspace);
        SKIP("%s", err.text);
    }
    CHECK_MSG(rc == 0, "%s", err.text);
    struct kx_lt_call c = {.x = gpu_upload(x, sizeof x),
                           .weight = gpu_upload(w, sizeof w),
                           .bias = gpu_upload_values(KX_STORE_BF16, bias, OUT),
                           .y = gpu_poisoned(sizeof bits),
                           .weight_scale = gpu_upload(w_scale, sizeof w_scale),
                           .x_scale = gpu_upload(x_scale, sizeof x_scale)};
    GPU_OK(kx_lt_run(lt, p, &c, NULL));
    gpu_download(bits, c.y, sizeof bits);
    for (int i = 0; i < ROWS * OUT; i++) got[i] = gpu_unbits(KX_STORE_BF16, bits[i]);
    /* the tensor cores of 8.9 and 9.0 add products of e4m3 with 14 bits or so */
    double d = gpu_nmse(want, got, ROWS * OUT);
    CHECK_MSG(d < (gpu_real() ? 2e-4 : 5e-5), "%g", d);
    const void *inputs[] = {c.x, c.weight, c.bias, c.weight_scale, c.x_scale};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        union {
            const void *from;
            void *to;
        } u = {inputs[i]};
        gpu_free(u.to);
    }
    gpu_free(c.y);
    kx_lt_destroy(lt);
    gpu_free(workspace);
}

/* ---- convolutions */

struct conv {
    int h, w, in, out, kernel, stride;
    bool bias, time_proj, residual, device_only;
};
static const struct conv convs[] = {
    {4, 4, 8, 8, 3, 1, false, false, false, false},      {5, 3, 16, 8, 3, 1, true, false, false, false},
    {4, 6, 8, 24, 3, 1, true, false, true, false},       {7, 5, 16, 16, 3, 2, true, false, false, false},
    {6, 6, 8, 16, 3, 1, true, true, false, false},       {3, 5, 24, 8, 1, 1, true, false, true, false},
    {5, 4, 8, 8, 3, 1, true, true, true, false},         {4, 4, 8, 16, 3, 1, false, true, false, false},
    {1, 1, 16, 16, 3, 1, true, true, false, false},      {64, 64, 320, 320, 3, 1, true, true, false, true},
    {64, 64, 320, 320, 3, 1, true, false, true, true},   {64, 64, 320, 320, 3, 2, true, false, false, true},
    {32, 32, 640, 640, 3, 1, true, true, false, true},   {16, 16, 1280, 1280, 3, 1, true, true, false, true},
    {16, 16, 1280, 1280, 3, 1, true, false, true, true}, {8, 8, 1280, 1280, 3, 1, true, false, true, true},
    {64, 64, 960, 320, 1, 1, true, false, false, true},  {16, 16, 2560, 1280, 3, 1, true, true, false, true},
    {128, 128, 512, 512, 3, 1, true, false, true, true},
};
enum { CONVS = sizeof convs / sizeof *convs };

struct picture {
    struct conv s;
    enum kx_store type;
    int n, p, q;
    struct values x, weight, bias, time_proj, residual;
    void *bias_f32;
    int32_t *index; /* the device's */
    int32_t *rows;  /* the host's */
};
enum { SHIFT_ROWS = 5 };

static struct picture picture_of(const struct conv *s, enum kx_store type, int n) {
    struct gpu_random r = gpu_random_of((uint64_t)(s->in * 131 + s->out * 7 + s->h));
    struct picture c = {.s = *s, .type = type, .n = n};
    size_t in = (size_t)s->in, out = (size_t)s->out, taps = (size_t)(s->kernel * s->kernel);
    c.p = (s->h + s->kernel / 2 * 2 - s->kernel) / s->stride + 1;
    c.q = (s->w + s->kernel / 2 * 2 - s->kernel) / s->stride + 1;
    c.weight = random_values(&r, type, 1 / sqrtf((float)(in * taps)), out * taps * in);
    c.bias = random_values(&r, type, 1, out);
    c.bias_f32 = gpu_upload(c.bias.v, out * sizeof(float));
    c.x = random_values(&r, type, 1, (size_t)n * (size_t)(s->h * s->w) * in);
    c.time_proj =
        random_values(&r, type, 1, SHIFT_ROWS * (out + 8)); /* rows further apart than they are long */
    c.residual = random_values(&r, type, 1, (size_t)n * (size_t)(c.p * c.q) * out);
    c.rows = host((size_t)n * sizeof(int32_t));
    for (int i = 0; i < n; i++) c.rows[i] = (i * 3 + 1) % SHIFT_ROWS;
    c.index = gpu_upload(c.rows, (size_t)n * sizeof(int32_t));
    return c;
}
static void picture_free(struct picture *c) {
    values_free(&c->x);
    values_free(&c->weight);
    values_free(&c->bias);
    values_free(&c->time_proj);
    values_free(&c->residual);
    gpu_free(c->bias_f32);
    gpu_free(c->index);
    free(c->rows);
}
static double picture_want(const struct picture *c, size_t at) {
    const struct conv *s = &c->s;
    int o = (int)(at % (size_t)s->out);
    size_t pixel = at / (size_t)s->out;
    int q = (int)(pixel % (size_t)c->q), p = (int)(pixel / (size_t)c->q % (size_t)c->p);
    size_t i = pixel / (size_t)(c->p * c->q);
    double sum = s->bias ? c->bias.v[o] : 0;
    if (s->time_proj) sum += c->time_proj.v[(size_t)c->rows[i] * (size_t)(s->out + 8) + (size_t)o];
    if (s->residual) sum += c->residual.v[at];
    for (int r = 0; r < s->kernel; r++)
        for (int t = 0; t < s->kernel; t++) {
            int y = p * s->stride + r - s->kernel / 2, x = q * s->stride + t - s->kernel / 2;
            if (y < 0 || y >= s->h || x < 0 || x >= s->w) continue;
            const float *from =
                c->x.v + ((i * (size_t)s->h + (size_t)y) * (size_t)s->w + (size_t)x) * (size_t)s->in;
            const float *w =
                c->weight.v +
                ((size_t)o * (size_t)(s->kernel * s->kernel) + (size_t)(r * s->kernel + t)) * (size_t)s->in;
            for (int k = 0; k < s->in; k++) sum += (double)from[k] * w[k];
        }
    return sum;
}

static struct kx_cudnn *dnn_create(enum kx_store type, cudaStream_t stream) {
    struct kx_cudnn *d = NULL;
    struct kn_err err = {0};
    if (!libraries()->dnn_version) SKIP("cuDNN is not there");
    int rc = kx_cudnn_create(libraries(), type, stream, &d, &err);
    CHECK_MSG(rc == 0, "%s", err.text);
    return d;
}

static struct kx_dnn_plan *plan_picture(struct kx_cudnn *d, const struct conv *s, int n, bool fastest) {
    struct kx_dnn_shape shape = {s->h,      s->w,    s->in,        s->out,     s->kernel,
                                 s->stride, s->bias, s->time_proj, s->residual};
    struct kx_dnn_plan *p = NULL, *again = NULL;
    struct kn_err err = {0};
    int rc = kx_dnn_plan(d, &shape, n, fastest, &p, &err);
    CHECK_MSG(rc == 0, "%s", err.text);
    CHECK(kx_dnn_plan(d, &shape, n, fastest, &again, &err) == 0 && again == p);
    return p;
}

static struct kx_dnn_call call_of(const struct picture *c, void *y, void *scratch, bool in_place) {
    const struct conv *s = &c->s;
    struct kx_dnn_call call = {.x = c->x.device,
                               .weight = c->weight.device,
                               .bias = s->bias ? c->bias_f32 : NULL,
                               .residual = !s->residual ? NULL
                                           : in_place   ? y
                                                        : c->residual.device,
                               .y = y,
                               .scratch = scratch};
    if (s->time_proj) call.time_proj = (struct kx_rows){c->time_proj.device, (size_t)s->out + 8, c->index};
    return call;
}

/* way: 1 fastest, 2 in place, 4 with a bias of the storage type, added up */
static void run_picture(struct kx_cudnn *d, const struct picture *c, int n, int way, uint16_t *y,
                        const char *say) {
    struct kx_dnn_plan *p = plan_picture(d, &c->s, n, way & 1);
    size_t values = (size_t)n * (size_t)(c->p * c->q) * (size_t)c->s.out;
    void *out = gpu_poisoned(2 * values), *scratch = gpu_poisoned(kx_dnn_scratch_bytes(p) + 1);
    if (way & 2) GPU_OK(cudaMemcpy(out, c->residual.device, 2 * values, cudaMemcpyDeviceToDevice));
    struct kx_dnn_call call = call_of(c, out, scratch, way & 2);
    if (way & 4 && c->s.bias) call.bias_value = c->bias.device;
    gpu_sync();
    GPU_OK(kx_dnn_run(d, p, &call));
    gpu_download(y, out, 2 * values);
    gpu_free(out);
    gpu_free(scratch);
    if (say && gpu_real()) {
        char text[512];
        kx_dnn_describe(p, text, sizeof text);
        printf("%s %d×%d of %d to %d channels at %d×%d%s%s, %d images: %s\n", say, c->s.kernel, c->s.kernel,
               c->s.in, c->s.out, c->s.h, c->s.w, c->s.time_proj ? ", time_proj" : "",
               c->s.residual ? ", residual" : "", n, text);
    }
}

static double picture_distance(const struct picture *c, const uint16_t *y) {
    size_t all = (size_t)c->n * (size_t)(c->p * c->q) * (size_t)c->s.out;
    size_t n = all > SAMPLES && gpu_real() ? SAMPLES : all;
    struct gpu_random r = gpu_random_of(78);
    double *want = host(n * sizeof *want);
    float *got = host(n * sizeof *got);
    for (size_t i = 0; i < n; i++) {
        size_t at = n == all ? i : gpu_integer(&r, (uint32_t)all);
        want[i] = picture_want(c, at);
        got[i] = gpu_unbits(c->type, y[at]);
    }
    double distance = gpu_nmse(want, got, n);
    free(want);
    free(got);
    return distance;
}

static void pictures_are_right(void) {
    for (int t = 0; t < 2; t++) {
        struct kx_cudnn *d = dnn_create(types[t], NULL);
        for (int i = 0; i < CONVS; i++) {
            const struct conv *s = &convs[i];
            if (s->device_only && !gpu_real()) continue;
            struct picture c = picture_of(s, types[t], 3);
            uint16_t *y = host(2 * (size_t)c.n * (size_t)(c.p * c.q) * (size_t)s->out);
            for (int way = 0; way < 8; way++) {
                if (way & 2 && !s->residual) continue;
                run_picture(d, &c, c.n, way, y, t == 1 && way < 2 ? (way ? "fastest" : "convolution") : NULL);
                double distance = picture_distance(&c, y);
                CHECK_MSG(distance < bounds[t], "case %d, way %d: %g", i, way, distance);
            }
            free(y);
            picture_free(&c);
        }
        kx_cudnn_destroy(d);
    }
}

TEST(cudnn_convolutions_are_right) {
    pictures_are_right();
}

#ifdef KX_SHIM
/* Every way to share the work between the library and kx_cuda_finish_conv, whatever a version can fuse. */
TEST(cudnn_convolutions_are_right_whatever_is_fused) {
    if (!libraries()->dnn_version) SKIP("cuDNN is not there");
    fuse(true, true);
    pictures_are_right();
    fuse(false, false);
    pictures_are_right();
    fuse(true, false);
}
#endif

TEST(cudnn_gives_an_image_the_same_bits_among_any_others) {
    static const int counts[] = {1, 2, 3, 5, 8, 16};
    enum { MOST = 17 };
    for (int t = 0; t < 2; t++) {
        struct kx_cudnn *d = dnn_create(types[t], NULL);
        for (int i = 0; i < CONVS; i++) {
            const struct conv *s = &convs[i];
            if (s->device_only && !gpu_real()) continue;
            struct picture c = picture_of(s, types[t], MOST);
            size_t image = (size_t)(c.p * c.q) * (size_t)s->out;
            uint16_t *all = host(2 * image * MOST), *y = host(2 * image * MOST);
            run_picture(d, &c, MOST, 0, all, NULL);
            for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
                run_picture(d, &c, counts[k], 0, y, NULL);
                CHECK_MSG(memcmp(all, y, 2 * image * (size_t)counts[k]) == 0, "case %d, %d images", i,
                          counts[k]);
            }
            /* the last image first and alone */
            struct picture last = c;
            last.x.device = (char *)c.x.device + 2 * (size_t)(MOST - 1) * (size_t)(s->h * s->w * s->in);
            last.residual.device = (char *)c.residual.device + 2 * (MOST - 1) * image;
            last.index = c.index + MOST - 1;
            run_picture(d, &last, 1, 0, y, NULL);
            CHECK_MSG(memcmp(all + image * (MOST - 1), y, 2 * image) == 0, "case %d, the last image", i);
            free(all);
            free(y);
            picture_free(&c);
        }
        kx_cudnn_destroy(d);
    }
}

TEST(cudnn_refuses_by_shape_alone) {
    static const struct kx_dnn_shape shapes[] = {
        {8, 8, 4, 8, 3, 1, true, false, false},
        {8, 8, 8, 4, 3, 1, true, false, false},
        {8, 8, 8, 8, 2, 1, true, false, false},
        {0, 8, 8, 8, 3, 1, true, false, false},
    };
    struct kx_cudnn *d = dnn_create(KX_STORE_F16, NULL);
    struct kn_err err = {0};
    struct kx_dnn_plan *p = NULL;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int n = 1; n < 4; n++)
            CHECK_INT(kx_dnn_plan(d, &shapes[i], n, false, &p, &err), KN_EUNSUPPORTED);
    p = plan_picture(d, &convs[1], 1, false);
    struct kx_dnn_call c = {.bias = NULL}; /* the shape said that there is one */
    CHECK_INT(kx_dnn_run(d, p, &c), cudaErrorInvalidValue);
    kx_cudnn_destroy(d);
}

TEST(cudnn_runs_in_a_graph_and_plans_nothing) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    GPU_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    struct kx_cudnn *d = dnn_create(KX_STORE_BF16, stream);
    struct picture c = picture_of(&convs[6], KX_STORE_BF16, 3); /* with all that can be added */
    size_t values = (size_t)c.n * (size_t)(c.p * c.q) * (size_t)c.s.out;
    uint16_t *want = host(2 * values), *y = host(2 * values);
    run_picture(d, &c, c.n, 0, want, NULL);
    struct kx_dnn_plan *p = plan_picture(d, &c.s, c.n, false);
    void *out = gpu_poisoned(2 * values), *scratch = gpu_poisoned(kx_dnn_scratch_bytes(p));
    struct kx_dnn_call call = call_of(&c, out, scratch, false);
#ifdef KX_SHIM
    long before = ask(libraries()->dnn_module, "fake_dnn_plans");
#endif
    GPU_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    GPU_OK(kx_dnn_run(d, p, &call));
    GPU_OK(cudaStreamEndCapture(stream, &graph));
    GPU_OK(cudaGraphInstantiate(&exec, graph, 0));
    for (int k = 0; k < 2; k++) {
        GPU_OK(cudaMemset(out, 0xff, 2 * values));
        gpu_sync();
        GPU_OK(cudaGraphLaunch(exec, stream));
        GPU_OK(cudaStreamSynchronize(stream));
        gpu_download(y, out, 2 * values);
        CHECK_MEM(y, want, 2 * values);
    }
#ifdef KX_SHIM
    CHECK_INT(ask(libraries()->dnn_module, "fake_dnn_plans"), before);
#endif
    GPU_OK(cudaGraphExecDestroy(exec));
    GPU_OK(cudaGraphDestroy(graph));
    kx_cudnn_destroy(d);
    GPU_OK(cudaStreamDestroy(stream));
    gpu_free(out);
    gpu_free(scratch);
    free(want);
    free(y);
    picture_free(&c);
#ifdef KX_SHIM
    CHECK_INT(ask(libraries()->dnn_module, "fake_dnn_alive"), 0); /* no descriptor is left */
#endif
}
