/* The CUDA context: memory and its account, copies and storage types, errors that are forgotten and errors
 * that stick, plans, recordings, events. On the shim also what a device does not do at will: every call of
 * the runtime fails in turn. */
#include <math.h>
#include <pthread.h>
#include <time.h>

#include "base/clock.h"
#include "base/map.h"
#include "kernels/cuda/layer.h"
#include "tests/unit/check.h"
#ifdef KX_SHIM
#include "tests/gpu/shim/shim.h"
#endif

/* Memory of a dead device goes with the process: between these, nobody looks for leaks. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
static void lost_from_here(void) {
    __lsan_disable();
}
static void lost_to_here(void) {
    __lsan_enable();
}
#else
static void lost_from_here(void) {
}
static void lost_to_here(void) {
}
#endif

enum { C = 16, PIXELS = 5, VALUES = C * PIXELS };

static struct kx_ctx *make(const struct kx_cuda_options *o) {
    struct kx_ctx *ctx;
    struct kn_err err = {0};
    if (!kx_cuda_device_count()) SKIP("no CUDA device");
    int rc = kx_cuda_ctx_create(o, &ctx, &err);
    CHECK_MSG(!rc, "%s", err.text);
    return ctx;
}

static struct kx_ctx *plain(void) {
    return make(&(struct kx_cuda_options){0});
}

static void want_ok(struct kx_ctx *ctx) {
    struct kn_err err = {0};
    int rc = kx_sync(ctx, &err);
    CHECK_MSG(!rc, "%d: %s", rc, err.text);
}

static void want_error(struct kx_ctx *ctx, int code, const char *part) {
    struct kn_err err = {0};
    CHECK_INT(kx_ctx_error(ctx, &err), code);
    CHECK_MSG(strstr(err.text, part), "\"%s\" does not say \"%s\"", err.text, part);
}

/* y = silu(x) of VALUES values: one launch. */
struct job {
    struct kx_ctx *ctx;
    struct kx_tensor x, y;
    int calls;
};

static void job_run(void *arg) {
    struct job *j = arg;
    j->calls++;
    kx_add_silu(j->ctx, &j->x, NULL, &j->y);
}

static void job_init(struct job *j, struct kx_ctx *ctx) {
    *j = (struct job){.ctx = ctx, .x = {NULL, PIXELS, 1, 1, C}, .y = {NULL, PIXELS, 1, 1, C}};
    j->x.v = kx_alloc(ctx, VALUES * 2);
    j->y.v = kx_alloc(ctx, VALUES * 2);
    CHECK(j->x.v && j->y.v);
}

static void job_fill(struct job *j, float v) {
    float x[VALUES];
    for (int i = 0; i < VALUES; i++) x[i] = v;
    kx_upload_values(j->ctx, j->x.v, x, VALUES);
}

static void job_check(struct job *j, float v) {
    float y[VALUES];
    kx_download_values(j->ctx, y, j->y.v, VALUES);
    want_ok(j->ctx);
    for (int i = 0; i < VALUES; i++)
        CHECK_MSG(fabsf(y[i] - v / (1 + expf(-v))) < 1e-3f, "%d: silu(%g) is %g", i, (double)v, (double)y[i]);
}

static void job_fini(struct job *j) {
    kx_free(j->ctx, j->x.v);
    kx_free(j->ctx, j->y.v);
}

/* ---- what it is */

TEST(the_facts_hold_what_can_move_a_bit) {
    struct kx_ctx *a = plain(), *b = make(&(struct kx_cuda_options){.type = KX_STORE_BF16}),
                  *c = make(&(struct kx_cuda_options){.fastest = true});
    struct kx_cuda_device_facts f;
    struct kn_err err;
    char want[64], text[256];
    CHECK_INT(kx_cuda_device_facts(0, &f, &err), 0);
    snprintf(want, sizeof want, "cuda-sm%d%d", f.major, f.minor);
    CHECK_STR(kx_ctx_class(a), want);
    snprintf(want, sizeof want, "sm_%d%d, %d SMs", f.major, f.minor, f.sm_count);
    CHECK(strstr(kx_ctx_facts(a), want) && strstr(kx_ctx_facts(a), "f16; reproducible"));
    CHECK(strstr(kx_ctx_facts(a), "table ") && strstr(kx_ctx_facts(a), "cublaslt"));
    CHECK(strstr(kx_ctx_facts(b), "bf16; reproducible") && strstr(kx_ctx_facts(c), "f16; fastest"));
    kx_ctx_describe(a, text, sizeof text);
    CHECK(strstr(text, f.name) && strstr(text, "f16"));
    CHECK(f.memory_bytes > 0);
    CHECK_INT(kx_ctx_threads(a), 1);
    CHECK_INT(kx_value_bytes(a), 2);
    kx_ctx_destroy(a);
    kx_ctx_destroy(b);
    kx_ctx_destroy(c);
}

TEST(a_device_that_is_not_there_is_an_ordinary_error) {
    struct kx_ctx *ctx;
    struct kn_err err = {0};
    CHECK_INT(kx_cuda_ctx_create(&(struct kx_cuda_options){.device = 99}, &ctx, &err), KN_ENOENT);
    CHECK(!ctx && strstr(err.text, "CUDA device"));
}

TEST(the_backend_has_every_function) {
    struct kx_ctx *ctx = plain();
    void (*all[sizeof(struct kx_backend) / sizeof(void (*)(void))])(void);
    memcpy(all, ctx->backend, sizeof all);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) CHECK_MSG(all[i], "number %zu", i);
    kx_ctx_destroy(ctx);
}

static void note_images(void *arg, struct kx_ctx *lane, int first, int count) {
    (void)lane;
    int *seen = arg;
    for (int i = first; i < first + count; i++) seen[i]++;
    seen[9]++;
}

TEST(all_images_come_in_one_call) {
    struct kx_ctx *ctx = plain();
    int seen[10] = {0};
    CHECK_INT(kx_ctx_lanes(ctx, 7, 1u << 30), 1);
    CHECK(kx_ctx_lane(ctx, 1, 0) == ctx);
    CHECK_INT(kx_ctx_minibatch(ctx, 7), 7);
    kx_ctx_each(ctx, 1, 7, note_images, seen);
    for (int i = 0; i < 7; i++) CHECK_INT(seen[i], 1);
    CHECK_INT(seen[9], 1);
    kx_ctx_destroy(ctx);
}

/* ---- memory */

TEST(memory_is_counted_and_bounded) {
    enum { MB = 1 << 20 };
    struct kx_ctx *ctx = make(&(struct kx_cuda_options){.memory_max = 10 * MB, .own_kernels = true}),
                  *other = make(&(struct kx_cuda_options){.parent = ctx});
    size_t left, total;
    kx_memory(ctx, &left, &total);
    CHECK_INT(left, 10 * MB);
    CHECK_INT(total, 10 * MB);
    void *a = kx_alloc(ctx, 6 * MB - 5);
    CHECK(a && (uintptr_t)a % KX_GPU_ALIGN == 0);
    kx_memory(other, &left, &total); /* the family's */
    CHECK_INT(left, 4 * MB);
    CHECK(!kx_alloc(other, 4 * MB + 1));
    CHECK(!kx_alloc(ctx, SIZE_MAX - 3));
    want_ok(ctx); /* no failure is left behind */
    void *b = kx_alloc(other, 4 * MB);
    CHECK(b && b != a);
    kx_free(ctx, b); /* by whichever of them */
    kx_free(ctx, a);
    kx_free(ctx, NULL);
    void *nothing = kx_alloc(ctx, 0);
    CHECK(nothing);
    kx_free(ctx, nothing);
    kx_memory(ctx, &left, &total);
    CHECK_INT(left, 10 * MB);
    kx_ctx_destroy(other);
    kx_ctx_destroy(ctx);
}

TEST(copies_of_any_size_arrive_and_have_read_their_source) {
    struct kx_ctx *ctx = plain();
    static const size_t sizes[] = {1,
                                   257,
                                   KX_GPU_STAGE_BYTES,
                                   KX_GPU_STAGE_BYTES + 1,
                                   KX_GPU_STAGES * KX_GPU_STAGE_BYTES + 3,
                                   2 * KX_GPU_STAGES * KX_GPU_STAGE_BYTES + 77};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t n = sizes[s];
        unsigned char *from = malloc(n), *to = calloc(n, 1);
        void *v = kx_alloc(ctx, n);
        CHECK(from && to && v);
        for (size_t i = 0; i < n; i++) from[i] = (unsigned char)(i * 31 + i / 4096 + s);
        kx_upload(ctx, v, from, n);
        memset(from, 0, n);
        kx_download(ctx, to, v, n);
        for (size_t i = 0; i < n; i++)
            if (to[i] != (unsigned char)(i * 31 + i / 4096 + s)) CHECK_INT(i, -1);
        want_ok(ctx);
        kx_free(ctx, v);
        free(from);
        free(to);
    }
    kx_ctx_destroy(ctx);
}

/* Every value of a storage type comes back as it is; between two of them the nearest is taken, and of two
 * that are as near the even one. */
TEST(values_are_rounded_to_nearest_even) {
    enum { ALL = 65536 };
    static uint16_t bits[ALL], again[ALL];
    static float values[ALL], between[ALL];
    for (int type = KX_STORE_F16; type <= KX_STORE_BF16; type++) {
        struct kx_ctx *ctx = make(&(struct kx_cuda_options){.type = (enum kx_store)type});
        void *v = kx_alloc(ctx, sizeof bits);
        for (int i = 0; i < ALL; i++) bits[i] = (uint16_t)i;
        kx_upload(ctx, v, bits, sizeof bits);
        kx_download_values(ctx, values, v, ALL);
        CHECK(values[1] == (type == KX_STORE_F16 ? 0x1p-24f : 0x1p-133f));
        CHECK(values[type == KX_STORE_F16 ? 0x7bff : 0x7f7f] ==
              (type == KX_STORE_F16 ? 65504.0f : 0x1.fep127f));
        CHECK(values[type == KX_STORE_F16 ? 0x3c00 : 0x3f80] == 1.0f);
        CHECK(values[type == KX_STORE_F16 ? 0xc000 : 0xc000] == -2.0f);
        kx_upload_values(ctx, v, values, ALL);
        kx_download(ctx, again, v, sizeof again);
        for (int i = 0; i < ALL; i++)
            CHECK(again[i] == bits[i] || (isnan(values[i]) && isnan(values[again[i]])));
        int largest = type == KX_STORE_F16 ? 0x7bff : 0x7f7f;
        for (int part = 1; part < 4; part++) {
            for (int i = 0; i < largest; i++)
                between[i] =
                    (float)((double)values[i] + ((double)values[i + 1] - (double)values[i]) * part / 4);
            kx_upload_values(ctx, v, between, (size_t)largest);
            kx_download(ctx, again, v, (size_t)largest * 2);
            for (int i = 0; i < largest; i++) {
                int want = part == 1 ? i : part == 3 ? i + 1 : i % 2 ? i + 1 : i;
                CHECK_MSG(again[i] == want, "%d quarters behind 0x%04x became 0x%04x", part, (unsigned)i,
                          (unsigned)again[i]);
            }
        }
        want_ok(ctx);
        kx_free(ctx, v);
        kx_ctx_destroy(ctx);
    }
}

TEST(a_weight_that_f16_cannot_hold_is_an_error_that_names_it) {
    struct kx_ctx *ctx = plain(), *wide = make(&(struct kx_cuda_options){.type = KX_STORE_BF16});
    float w[2 * 3 * 9] = {0};
    struct kx_conv_shape s = {3, 2, 3, 1, false};
    struct kx_conv *conv;
    struct kx_table *table;
    struct kn_err err = {0};
    w[(1 * 3 + 2) * 9 + 4] = -65519.9f; /* the last that is rounded down */
    CHECK_INT(kx_conv_create(ctx, &s, w, NULL, &conv, &err), 0);
    kx_conv_destroy(conv);
    w[(1 * 3 + 2) * 9 + 4] = -65520;
    CHECK_INT(kx_conv_create(ctx, &s, w, NULL, &conv, &err), KN_EUNSUPPORTED);
    CHECK(!conv);
    CHECK_STR(err.text,
              "the weight of output 1, input 2, place 4 is -65520: too large for f16, which ends at 65504");
    CHECK_INT(kx_table_create(ctx, 9, 6, w, &table, &err), KN_EUNSUPPORTED);
    CHECK(!table && strstr(err.text, "row 8 of a table holds -65520"));
    CHECK_INT(kx_conv_create(wide, &s, w, NULL, &conv, &err), 0);
    kx_conv_destroy(conv);
    want_ok(ctx);
    kx_ctx_destroy(ctx);
    kx_ctx_destroy(wide);
}

/* More than a stage holds, in every order that weights are laid out in. */
TEST(weights_of_any_size_lie_as_the_kernels_want_them) {
    enum { IN = 500, OUT = 600, TAPS = 9 };
    struct kx_ctx *ctx = make(&(struct kx_cuda_options){.own_kernels = true});
    float *w = malloc(sizeof *w * IN * OUT * TAPS), *laid = malloc(sizeof *laid * IN * OUT * TAPS);
    struct kx_conv *conv;
    struct kx_linear *linear;
    struct kn_err err;
    CHECK(w && laid);
    for (int i = 0; i < IN * OUT * TAPS; i++) w[i] = (float)(i % 2039) - 1019;
    CHECK_INT(kx_conv_create(ctx, &(struct kx_conv_shape){IN, OUT, 3, 1, false}, w, NULL, &conv, &err), 0);
    kx_download_values(ctx, laid, ((struct kx_gpu_layer *)(void *)conv)->weight, IN * OUT * TAPS);
    for (int o = 0; o < OUT; o++)
        for (int k = 0; k < TAPS; k++)
            for (int i = 0; i < IN; i++)
                if (laid[(o * TAPS + k) * IN + i] != w[(o * IN + i) * TAPS + k]) CHECK_INT(o, -1);
    kx_conv_destroy(conv);
    for (int act = KX_ACT_NONE; act <= KX_ACT_GEGLU; act += KX_ACT_GEGLU) {
        CHECK_INT(kx_linear_create(ctx, IN, OUT, (enum kx_act)act, w, w, &linear, &err), 0);
        const struct kx_gpu_layer *l = (struct kx_gpu_layer *)(void *)linear;
        CHECK(l->interleaved == (act == KX_ACT_GEGLU));
        kx_download_values(ctx, laid, l->weight, IN * OUT);
        for (int r = 0; r < OUT; r++) {
            int from = act ? kx_cuda_geglu_row(r, OUT) : r;
            CHECK(!memcmp(laid + r * IN, w + from * IN, IN * sizeof *w));
        }
        kx_download(ctx, laid, l->bias, OUT * sizeof *laid);
        for (int r = 0; r < OUT; r++) CHECK(laid[r] == w[act ? kx_cuda_geglu_row(r, OUT) : r]);
        kx_linear_destroy(linear);
    }
    want_ok(ctx);
    free(w);
    free(laid);
    kx_ctx_destroy(ctx);
}

/* ---- plans */

TEST(a_workspace_that_cannot_grow_leaves_the_old_one) {
    enum { MB = 1 << 20 };
    struct kx_ctx *ctx = make(&(struct kx_cuda_options){.memory_max = 10 * MB, .own_kernels = true});
    struct kx_gpu *g = kx_gpu_of(ctx);
    struct kx_arena arena;
    struct kn_err err = {0};
    unsigned generation = kx_plan_generation(ctx);
    kx_plan_begin(ctx, &arena);
    kx_gpu_want(g, 3 * MB);
    kx_gpu_want(g, 2 * MB);
    CHECK_INT(kx_plan_end(ctx, &err), 0);
    CHECK_INT(g->workspace_bytes, 3 * MB);
    void *was = g->workspace;
    kx_plan_begin(ctx, &arena);
    kx_gpu_want(g, 1 * MB);
    CHECK_INT(kx_plan_end(ctx, &err), 0);
    CHECK(g->workspace == was);
    kx_plan_begin(ctx, &arena);
    kx_gpu_want(g, 11 * MB);
    CHECK_INT(kx_plan_end(ctx, &err), KN_EOOM);
    CHECK(strstr(err.text, "workspace of 11 MiB"));
    CHECK_INT(g->workspace_bytes, 3 * MB);
    CHECK_INT(kx_plan_generation(ctx), generation); /* what was planned before still holds */
    kx_plan_begin(ctx, &arena);
    kx_gpu_want(g, 9 * MB); /* which is there once the old one is gone */
    CHECK_INT(kx_plan_end(ctx, &err), 0);
    want_ok(ctx);
    kx_ctx_destroy(ctx);
}

TEST(an_arena_counts_what_a_run_takes) {
    struct kx_ctx *ctx = plain();
    struct kx_arena arena;
    struct kn_err err;
    kx_plan_begin(ctx, &arena);
    (void)kx_take(ctx, 10);
    size_t mark = kx_mark(ctx);
    (void)kx_take(ctx, 1000);
    kx_release(ctx, mark);
    (void)kx_tensor_take(ctx, 2, 4, 5, 3);
    CHECK_INT(kx_plan_end(ctx, &err), 0);
    CHECK_INT(arena.peak, 256 + 2048);
    CHECK_INT(kx_arena_init(ctx, &arena, arena.peak), 0);
    kx_use(ctx, &arena);
    char *a = kx_take(ctx, 10), *b = kx_take(ctx, 1000);
    CHECK(b == a + 256);
    kx_arena_fini(ctx, &arena);
    kx_ctx_destroy(ctx);
}

TEST(counting_takes_nothing) {
    struct kx_ctx *ctx = plain();
    struct kx_gpu *g = kx_gpu_of(ctx);
    struct kx_arena arena;
    struct kx_linear *l;
    struct kn_err err;
    size_t before, after, total, workspace;
    float w[C * C] = {0};
    CHECK_INT(kx_linear_create(ctx, C, C, KX_ACT_GEGLU, w, w, &l, &err), 0);
    kx_memory(ctx, &before, &total);
    kx_count_begin(ctx, &arena);
    struct kx_tensor x = kx_tensor_take(ctx, 1 << 20, 64, 64, C), y = {x.v, 1 << 20, 64, 64, C / 2};
    kx_linear(ctx, l, &x, NULL, &y);
    kx_gpu_want(g, (size_t)1 << 50);
    CHECK_INT(kx_count_end(ctx, &workspace, &err), 0);
    CHECK(workspace == (size_t)1 << 50);
    CHECK(arena.peak == (size_t)2 * C << 32 && !kx_planning(ctx));
    kx_memory(ctx, &after, &total);
    CHECK(before == after && g->workspace_bytes == 0);
    kx_linear_destroy(l);
    kx_ctx_destroy(ctx);
}

/* A farm renders any size that it is asked for. */
TEST(plans_that_pile_up_are_dropped_when_there_are_too_many) {
    struct kx_ctx *ctx = plain();
    struct kx_gpu *g = kx_gpu_of(ctx);
    struct kx_linear *l;
    struct kx_arena arena;
    struct kn_err err = {0};
    float w[C * C] = {0};
    CHECK_INT(kx_linear_create(ctx, C, C, KX_ACT_NONE, w, w, &l, &err), 0);
    kx_plan_begin(ctx, &arena);
    for (int i = 1; i <= 40000; i++) {
        struct kx_tensor x = {NULL, 1, 1, i, C};
        kx_linear(ctx, l, &x, NULL, &x);
        if (i == 1000) kx_linear(ctx, l, &x, NULL, &x); /* the same again is no more */
    }
    CHECK_INT(kx_plan_end(ctx, &err), 0);
    CHECK_INT(kn_map_count(g->choices), 40000);
    unsigned generation = kx_plan_generation(ctx);
    kx_plan_trim(ctx);
    CHECK(kn_map_count(g->choices) == 0 && kx_plan_generation(ctx) != generation);
    kx_plan_trim(ctx);
    CHECK(kx_plan_generation(ctx) == generation + 1); /* nothing to drop */
    kx_linear_destroy(l);
    want_ok(ctx);
    kx_ctx_destroy(ctx);
}

/* ---- recordings */

/* The workspace of the context moves: recordings hold its address. */
static void move_workspace(struct kx_ctx *ctx) {
    struct kx_arena arena;
    struct kn_err err;
    kx_plan_begin(ctx, &arena);
    kx_gpu_want(kx_gpu_of(ctx), kx_gpu_of(ctx)->workspace_bytes + 1);
    CHECK_INT(kx_plan_end(ctx, &err), 0);
}

static void replay(struct job *j, struct kx_recording **r, float v) {
    job_fill(j, v);
    kx_replay(j->ctx, r, job_run, j);
    job_check(j, v);
}

TEST(a_recording_is_made_once_and_again_when_the_plans_are_old) {
    struct kx_ctx *ctx = plain();
    struct kx_recording *r = NULL;
    struct job j;
    job_init(&j, ctx);
    for (int i = 0; i < 5; i++) replay(&j, &r, (float)i - 2);
    CHECK_INT(j.calls, 2); /* as it is, and recorded */
    move_workspace(ctx);
    for (int i = 0; i < 5; i++) replay(&j, &r, (float)i - 1.5f);
    CHECK_INT(j.calls, 4);
    kx_gpu_of(ctx)->plan_generation++;
    for (int i = 0; i < 5; i++) replay(&j, &r, (float)i);
    CHECK_INT(j.calls, 6);
    CHECK_STR(kx_cuda_recording_note(ctx), "");
    kx_recording_destroy(ctx, r);
    kx_recording_destroy(ctx, NULL);
    job_fini(&j);
    kx_ctx_destroy(ctx);
}

/* ---- events */

TEST(an_event_is_done_when_what_was_before_it_is) {
    struct kx_ctx *ctx = plain(), *other = make(&(struct kx_cuda_options){.parent = ctx, .priority = 1});
    struct kx_event *e;
    struct kn_err err = {0};
    struct job j;
    job_init(&j, ctx);
    CHECK_INT(kx_event_create(ctx, &e, &err), 0);
    CHECK_INT(kx_event_wait(ctx, e, 0, &err), 0); /* never set: nothing to wait for */
    job_fill(&j, 3);
    job_run(&j);
    kx_event_set(ctx, e);
    CHECK_INT(kx_event_wait(other, e, 10000, &err), 0); /* on another context of the device */
    job_check(&j, 3);
    kx_event_set(ctx, e);
    CHECK_INT(kx_event_wait(ctx, e, -1, &err), 0);
    kx_event_destroy(ctx, e);
    kx_event_destroy(ctx, NULL);
    job_fini(&j);
    kx_ctx_destroy(other);
    kx_ctx_destroy(ctx);
}

TEST(a_layer_may_be_used_on_another_context_of_the_device) {
    struct kx_ctx *ctx = plain(), *other = make(&(struct kx_cuda_options){.parent = ctx});
    float w[C * C] = {0}, bias[C], v[VALUES];
    struct kx_linear *l;
    struct kn_err err;
    struct kx_arena arena;
    struct job j;
    for (int i = 0; i < C; i++) w[i * C + (i + 1) % C] = 2, bias[i] = (float)i;
    for (int i = 0; i < VALUES; i++) v[i] = (float)i;
    CHECK_INT(kx_linear_create(ctx, C, C, KX_ACT_NONE, w, bias, &l, &err), 0);
    job_init(&j, other);
    kx_upload_values(other, j.x.v, v, VALUES);
    kx_plan_begin(other, &arena);
    kx_linear(other, l, &j.x, NULL, &j.y);
    CHECK_INT(kx_plan_end(other, &err), 0);
    kx_linear(other, l, &j.x, NULL, &j.y);
    kx_download_values(other, v, j.y.v, VALUES);
    want_ok(other);
    for (int i = 0; i < VALUES; i++) CHECK(v[i] == (float)(2 * (i / C * C + (i % C + 1) % C) + i % C));
    job_fini(&j);
    kx_linear_destroy(l);
    kx_ctx_destroy(other);
    kx_ctx_destroy(ctx);
}

/* A stage of a render: a thread with a context of its own. */
struct stage {
    struct kx_ctx *ctx;
    pthread_t thread;
    int wrong;
};

static void *run_stage(void *arg) {
    struct stage *s = arg;
    struct kx_recording *r = NULL;
    struct job j = {.ctx = s->ctx, .x = {NULL, PIXELS, 1, 1, C}, .y = {NULL, PIXELS, 1, 1, C}};
    for (int round = 0; round < 20; round++) {
        float v[VALUES];
        void *spare = kx_alloc(s->ctx, 1000 * (size_t)(round + 1));
        if (!j.x.v) j.x.v = kx_alloc(s->ctx, VALUES * 2);
        if (!j.y.v) j.y.v = kx_alloc(s->ctx, VALUES * 2);
        for (int i = 0; i < VALUES; i++) v[i] = (float)(round % 7 - 3);
        kx_upload_values(s->ctx, j.x.v, v, VALUES);
        kx_replay(s->ctx, &r, job_run, &j);
        kx_download_values(s->ctx, v, j.y.v, VALUES);
        float want = (float)(round % 7 - 3);
        for (int i = 0; i < VALUES; i++) s->wrong += !(fabsf(v[i] - want / (1 + expf(-want))) < 1e-2f);
        kx_free(s->ctx, spare);
    }
    struct kn_err err;
    if (kx_sync(s->ctx, &err)) s->wrong++;
    kx_recording_destroy(s->ctx, r);
    job_fini(&j);
    return NULL;
}

TEST(three_threads_use_three_contexts_of_a_device) {
    struct stage s[3] = {{.ctx = plain()}};
    s[1].ctx = make(&(struct kx_cuda_options){.parent = s[0].ctx, .priority = 1});
    s[2].ctx = make(&(struct kx_cuda_options){.parent = s[0].ctx, .type = KX_STORE_BF16});
    for (int i = 0; i < 3; i++) CHECK(!pthread_create(&s[i].thread, NULL, run_stage, &s[i]));
    for (int i = 0; i < 3; i++) pthread_join(s[i].thread, NULL);
    for (int i = 0; i < 3; i++) CHECK_INT(s[i].wrong, 0);
    for (int i = 2; i >= 0; i--) kx_ctx_destroy(s[i].ctx);
}

TEST(a_device_that_was_given_up_is_asked_nothing_more) {
    lost_from_here();
    struct kx_ctx *ctx = plain(), *other = make(&(struct kx_cuda_options){.parent = ctx}), *apart = plain();
    struct job j;
    struct kn_err err;
    job_init(&j, ctx);
    kx_cuda_give_up(other, "the watchdog bit");
    job_run(&j);
    want_error(ctx, KN_EDEVICE, "the watchdog bit");
    want_error(ctx, KN_EDEVICE, "the watchdog bit"); /* it stays */
    CHECK_INT(kx_sync(other, &err), KN_EDEVICE);
    CHECK(!kx_alloc(other, 8));
    want_ok(apart); /* of no family with them */
    job_fini(&j);
    kx_ctx_destroy(other);
    kx_ctx_destroy(ctx);
    kx_ctx_destroy(apart);
    lost_to_here();
}

#ifdef KX_SHIM

/* ---- what a device does not do at will */

TEST(a_device_older_than_sm_80_is_refused) {
    struct kx_ctx *ctx;
    struct kn_err err = {0};
    kx_shim_capability(7, 5);
    CHECK_INT(kx_cuda_ctx_create(&(struct kx_cuda_options){0}, &ctx, &err), KN_EUNSUPPORTED);
    CHECK(strstr(err.text, "sm_75"));
    kx_shim_reset();
}

TEST(out_of_memory_is_forgotten_at_once) {
    struct kx_ctx *ctx = plain();
    struct job j;
    struct kx_linear *l;
    struct kn_err err = {0};
    float w[C * C] = {0};
    job_init(&j, ctx);
    kx_shim_fail("cudaMalloc", 1, cudaErrorMemoryAllocation, false);
    CHECK(!kx_alloc(ctx, 100));
    CHECK_INT(cudaPeekAtLastError(), cudaSuccess); /* who asks after a launch must not find that one */
    job_fill(&j, 1);
    job_run(&j);
    job_check(&j, 1);
    for (int n = 1; n <= 2; n++) {
        kx_shim_fail("cudaMalloc", n, cudaErrorMemoryAllocation, false);
        CHECK_INT(kx_linear_create(ctx, C, C, KX_ACT_NONE, w, w, &l, &err), KN_EOOM);
        CHECK(!l && strstr(err.text, "weights"));
    }
    job_run(&j);
    job_check(&j, 1);
    job_fini(&j);
    kx_ctx_destroy(ctx);
    kx_shim_reset();
}

TEST(an_error_that_passes_is_named_once_and_is_over) {
    struct kx_ctx *ctx = plain();
    struct job j;
    job_init(&j, ctx);
    job_fill(&j, 1);
    kx_shim_fail("kx_launch", 1, cudaErrorInvalidConfiguration, false);
    job_run(&j);
    kx_shim_fail("kx_launch", 1, KX_CUDA_NO, false);
    job_run(&j); /* the second failure is not told */
    want_error(ctx, KN_EINTERNAL, "silu: ");
    job_run(&j);
    job_check(&j, 1);
    kx_shim_fail("kx_launch", 1, KX_CUDA_NO, false);
    job_run(&j);
    want_error(ctx, KN_EUNSUPPORTED, "silu: no kernel for this shape");
    job_run(&j);
    job_check(&j, 1);
    job_fini(&j);
    kx_ctx_destroy(ctx);
    kx_shim_reset();
}

TEST(an_error_that_sticks_ends_the_device_for_all_its_contexts) {
    lost_from_here();
    static const cudaError_t codes[] = {cudaErrorIllegalAddress,     cudaErrorLaunchTimeout,
                                        cudaErrorHardwareStackError, cudaErrorIllegalInstruction,
                                        cudaErrorMisalignedAddress,  cudaErrorInvalidAddressSpace,
                                        cudaErrorInvalidPc,          cudaErrorLaunchFailure,
                                        cudaErrorECCUncorrectable,   cudaErrorUnknown};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        struct kx_ctx *ctx = plain(), *other = make(&(struct kx_cuda_options){.parent = ctx});
        struct kx_recording *r = NULL;
        struct kx_event *e;
        struct kx_linear *l;
        struct kn_err err = {0};
        struct job j;
        float w[C * C] = {0}, v[VALUES] = {0};
        job_init(&j, ctx);
        CHECK_INT(kx_event_create(ctx, &e, &err), 0);
        CHECK_INT(kx_linear_create(ctx, C, C, KX_ACT_NONE, w, w, &l, &err), 0);
        kx_replay(ctx, &r, job_run, &j);
        kx_replay(ctx, &r, job_run, &j);
        kx_event_set(ctx, e);
        kx_shim_fail(i % 2 ? "cudaGraphLaunch" : "kx_launch", 1, codes[i], true);
        if (i % 2)
            kx_replay(ctx, &r, job_run, &j);
        else
            job_run(&j);
        want_error(ctx, KN_EDEVICE, i % 2 ? "replay" : "silu");
        want_error(ctx, KN_EDEVICE, cudaGetErrorName(codes[i]));
        want_error(other, KN_EDEVICE, cudaGetErrorName(codes[i]));
        long launches = kx_shim_launches();
        kx_shim_reset(); /* nothing asks whether it is better now */
        job_run(&j);
        kx_replay(ctx, &r, job_run, &j);
        kx_linear(ctx, l, &j.x, NULL, &j.y);
        kx_upload(ctx, j.x.v, v, sizeof v / 2);
        kx_download(ctx, v, j.x.v, sizeof v / 2);
        CHECK_INT(kx_shim_launches(), launches);
        CHECK(!kx_alloc(ctx, 8));
        CHECK_INT(kx_event_wait(ctx, e, -1, &err), KN_EDEVICE);
        CHECK_INT(kx_sync(other, &err), KN_EDEVICE);
        kx_event_destroy(ctx, e);
        kx_recording_destroy(ctx, r);
        kx_linear_destroy(l);
        job_fini(&j);
        kx_ctx_destroy(other);
        kx_ctx_destroy(ctx);
    }
    lost_to_here();
}

TEST(what_cannot_be_recorded_runs_one_by_one) {
    static const char *const names[] = {"cudaStreamBeginCapture", "cudaStreamEndCapture",
                                        "cudaGraphInstantiate", "kx_launch"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct kx_ctx *ctx = plain();
        struct kx_recording *r = NULL;
        struct job j;
        job_init(&j, ctx);
        replay(&j, &r, 1);
        kx_shim_fail(names[i], 1, cudaErrorStreamCaptureUnsupported, false);
        for (int k = 0; k < 3; k++) replay(&j, &r, (float)k - 1);
        CHECK(strlen(kx_cuda_recording_note(ctx)) > 0);
        CHECK(j.calls == 4 || j.calls == 5); /* with or without the attempt */
        kx_recording_destroy(ctx, r);
        job_fini(&j);
        kx_ctx_destroy(ctx);
        kx_shim_reset();
    }
}

static void job_run_and_ask(void *arg) {
    struct job *j = arg;
    job_run(j);
    j->calls += kx_ctx_error(j->ctx, NULL) ? 100 : 0;
}

/* A network asks its context how it went, within what is recorded. */
TEST(a_recording_that_lacks_an_op_is_not_used_though_its_failure_was_asked_for) {
    struct kx_ctx *ctx = plain();
    struct kx_recording *r = NULL;
    struct job j;
    job_init(&j, ctx);
    replay(&j, &r, 1);
    kx_shim_fail("kx_launch", 1, cudaErrorInvalidConfiguration, false);
    job_fill(&j, 2);
    kx_replay(ctx, &r, job_run_and_ask, &j);
    job_check(&j, 2);
    CHECK(strstr(kx_cuda_recording_note(ctx), "silu"));
    CHECK_INT(j.calls, 103); /* as it is; recorded in vain; and as it is once more */
    kx_recording_destroy(ctx, r);
    job_fini(&j);
    kx_ctx_destroy(ctx);
}

TEST(a_device_that_hangs_is_noticed_wherever_the_host_waits) {
    lost_from_here();
    struct kx_ctx *ctx = make(&(struct kx_cuda_options){.hang_ms = 20}), *patient = plain();
    struct kx_event *e;
    struct kn_err err = {0};
    CHECK_INT(kx_event_create(patient, &e, &err), 0);
    kx_event_set(patient, e);
    kx_shim_fail("cudaEventQuery", 1, cudaErrorNotReady, true);
    CHECK_INT(kx_event_wait(patient, e, 0, &err), KN_ETIMEOUT);
    CHECK_INT(kx_event_wait(patient, e, 10, &err), KN_ETIMEOUT);
    CHECK(strstr(err.text, "10 ms"));
    CHECK_INT(kx_sync(ctx, &err), KN_EDEVICE);
    CHECK(strstr(err.text, "hangs: sync: no answer for 20 ms"));
    kx_ctx_destroy(ctx); /* asks the device nothing */
    kx_shim_reset();
    CHECK_INT(kx_event_wait(patient, e, 1000, &err), 0);
    kx_event_destroy(patient, e);
    kx_ctx_destroy(patient);
    lost_to_here();
}

static void *beat(void *arg) {
    struct kx_gpu_device *d = arg;
    for (int i = 0; i < 30; i++) {
        atomic_store(&d->beat_ms, kn_clock_ms());
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    return NULL;
}

TEST(a_device_that_does_other_things_first_does_not_hang) {
    struct kx_ctx *ctx = make(&(struct kx_cuda_options){.hang_ms = 100});
    struct kn_err err = {0};
    pthread_t thread;
    lost_from_here();
    kx_shim_fail("cudaEventQuery", 1, cudaErrorNotReady, true);
    uint64_t begun = kn_clock_ms();
    CHECK(!pthread_create(&thread, NULL, beat, kx_gpu_of(ctx)->device));
    CHECK_INT(kx_sync(ctx, &err), KN_EDEVICE); /* once there are no more of them */
    uint64_t took = kn_clock_ms() - begun;
    pthread_join(thread, NULL);
    CHECK_MSG(took >= 300, "%llu ms", (unsigned long long)took);
    kx_ctx_destroy(ctx);
    kx_shim_reset();
    lost_to_here();
}

/* Everything once, and what it gives: 0 or the first error. */
static int everything(struct kn_err *err) {
    struct kx_ctx *ctx = NULL;
    struct kx_conv *conv = NULL;
    struct kx_table *table = NULL;
    struct kx_event *event = NULL;
    struct kx_recording *r = NULL;
    struct kx_arena arena = {0};
    float w[C * 9 * C] = {0}, x[VALUES] = {0};
    struct job j = {0};
    int rc = kx_cuda_ctx_create(&(struct kx_cuda_options){.own_kernels = true}, &ctx, err);
    if (rc) return rc;
    rc = kx_conv_create(ctx, &(struct kx_conv_shape){C, C, 3, 1, false}, w, w, &conv, err);
    if (!rc) rc = kx_table_create(ctx, 9, C, w, &table, err);
    if (!rc) rc = kx_event_create(ctx, &event, err);
    if (rc) goto out;
    kx_plan_begin(ctx, &arena);
    kx_gpu_want(kx_gpu_of(ctx), 1000);
    struct kx_tensor y = kx_tensor_take(ctx, 1, PIXELS, 1, C);
    kx_conv(ctx, conv, &y, NULL, NULL, &y);
    if ((rc = kx_plan_end(ctx, err))) goto out;
    if (kx_arena_init(ctx, &arena, 4096)) { /* there is no memory, or no device any more */
        rc = kx_ctx_error(ctx, err);
        if (!rc) rc = KN_EOOM;
        goto out;
    }
    j = (struct job){
        .ctx = ctx, .x = {arena.base, PIXELS, 1, 1, C}, .y = {(char *)arena.base + 2048, PIXELS, 1, 1, C}};
    kx_upload_values(ctx, j.x.v, x, VALUES);
    for (int i = 0; i < 3; i++) kx_replay(ctx, &r, job_run, &j);
    struct kx_tensor in = {j.x.v, 1, PIXELS, 1, C}, out = {j.y.v, 1, PIXELS, 1, C};
    kx_conv(ctx, conv, &in, NULL, NULL, &out);
    kx_event_set(ctx, event);
    rc = kx_event_wait(ctx, event, -1, err);
    if (!rc) rc = kx_ctx_error(ctx, err);
    if (!rc) kx_download(ctx, x, j.y.v, 2 * VALUES);
    if (!rc) rc = kx_sync(ctx, err);
out:
    kx_recording_destroy(ctx, r);
    kx_event_destroy(ctx, event);
    kx_arena_fini(ctx, &arena);
    kx_table_destroy(table);
    kx_conv_destroy(conv);
    kx_ctx_destroy(ctx);
    return rc;
}

/* Each call of the runtime fails in turn: the error comes out (or does not matter), nothing is left behind,
 * and nothing crashes. */
TEST(any_call_may_fail) {
    lost_from_here();
    static const struct {
        cudaError_t code;
        bool sticky;
        int want;
    } ways[] = {{cudaErrorMemoryAllocation, false, KN_EOOM},
                {cudaErrorInvalidValue, false, KN_EINTERNAL},
                {cudaErrorIllegalAddress, true, KN_EDEVICE}};
    for (int way = 0; way < 3; way++) {
        int failures = 0, passed = 0;
        for (int n = 1; passed < 10; n++) {
            struct kn_err err = {0};
            size_t before, after;
            CHECK(n < 1000);
            kx_shim_reset();
            size_t alive = kx_shim_alive(&before);
            kx_shim_fail(NULL, n, ways[way].code, ways[way].sticky);
            int rc = everything(&err);
            if (rc) {
                failures++;
                passed = 0;
                CHECK_MSG(rc == ways[way].want || rc == KN_EOOM || rc == KN_ENOENT || rc == KN_EDEVICE,
                          "call %d: %d, %s", n, rc, err.text);
                if (ways[way].sticky)
                    CHECK_MSG(rc == KN_EDEVICE || rc == KN_ENOENT, "call %d: %d, %s", n, rc, err.text);
            } else {
                passed++; /* behind the last call, or one that may fail */
            }
            /* a dead device's memory goes with the process */
            if (!ways[way].sticky) {
                CHECK_MSG(kx_shim_alive(&after) == alive && after == before, "call %d: %zu bytes are left", n,
                          after - before);
            }
        }
        CHECK_MSG(failures > 20, "only %d calls failed", failures);
    }
    kx_shim_reset();
    lost_to_here();
}

#endif
