/* The context: threads and lanes, arenas and plans, errors that stick. */
#include <dirent.h>
#include <stdatomic.h>
#include <time.h>

#include "tests/ops/ops.h"

static void count_item(void *arg, int i, const struct kx_seat *seat) {
    atomic_int *seen = arg;
    atomic_fetch_add(&seen[i], seat->number >= 0 && seat->number < 8 ? 1 : 1000);
}

TEST(every_item_runs_once_on_any_number_of_threads) {
    enum { N = 1000 };
    static atomic_int seen[N];
    for (int threads = 1; threads <= 8; threads *= 2) {
        struct kx_ctx *ctx = ops_ctx(threads);
        for (int round = 0; round < 300; round++) {
            int n = round % 7 == 0 ? N : round % 5;
            for (int i = 0; i < N; i++) atomic_store(&seen[i], 0);
            kx_parallel(kx_cpu_of(ctx), n, count_item, seen);
            for (int i = 0; i < N; i++) CHECK_INT(atomic_load(&seen[i]), i < n);
        }
        kx_ctx_destroy(ctx);
    }
}

struct busy {
    atomic_int inside[8];
    atomic_int worst;
};

static void sit(void *arg, int i, const struct kx_seat *seat) {
    struct busy *b = arg;
    (void)i;
    if (atomic_fetch_add(&b->inside[seat->number], 1)) atomic_store(&b->worst, 1);
    for (volatile int k = 0; k < 2000; k++) {
    }
    atomic_fetch_sub(&b->inside[seat->number], 1);
}

TEST(no_two_items_share_a_seat_at_the_same_time) {
    static struct busy b;
    struct kx_ctx *ctx = ops_ctx(4);
    for (int round = 0; round < 50; round++) kx_parallel(kx_cpu_of(ctx), 40, sit, &b);
    CHECK_INT(atomic_load(&b.worst), 0);
    kx_ctx_destroy(ctx);
}

struct lanes {
    struct kx_ctx *root;
    int lanes;
    struct kx_ctx *of[16];
};

static void note_lane(void *arg, struct kx_ctx *lane, int i, int count) {
    struct lanes *l = arg;
    CHECK_INT(count, 1);
    l->of[i] = lane;
}

TEST(images_i_and_i_plus_lanes_share_a_lane) {
    struct kx_ctx *ctx = ops_ctx(3);
    CHECK_INT(kx_ctx_lanes(ctx, 2, 1000), 1);
    CHECK_INT(kx_ctx_lanes(ctx, 3, 1000), 3);
    CHECK_INT(kx_ctx_lanes(ctx, 7, 1000), 3);
    CHECK_INT(kx_ctx_lanes(ctx, 7, SIZE_MAX / 8), 1);
    struct lanes l = {ctx, 3, {0}};
    kx_ctx_each(ctx, 3, 7, note_lane, &l);
    for (int i = 0; i < 7; i++) CHECK(l.of[i] == kx_ctx_lane(ctx, 3, i % 3));
    kx_ctx_each(ctx, 1, 2, note_lane, &l);
    CHECK(l.of[0] == ctx && l.of[1] == ctx && kx_ctx_lane(ctx, 1, 0) == ctx);
    CHECK_INT(kx_ctx_threads(kx_ctx_lane(ctx, 3, 1)), 1);
    kx_ctx_destroy(ctx);
}

TEST(the_first_error_sticks_until_it_is_asked_for) {
    struct kx_ctx *ctx = ops_ctx(2);
    struct kn_err err;
    CHECK_INT(kx_ctx_error(ctx, &err), 0);
    kx_cpu_fail(kx_cpu_of(kx_ctx_lane(ctx, 2, 1)), KN_EUNSUPPORTED, "first");
    kx_cpu_fail(kx_cpu_of(ctx), KN_EINTERNAL, "second");
    CHECK_INT(kx_ctx_error(ctx, &err), KN_EUNSUPPORTED);
    CHECK_STR(err.text, "first");
    CHECK_INT(kx_ctx_error(ctx, &err), 0);
    kx_ctx_destroy(ctx);
}

TEST(a_plan_that_failed_says_so_at_its_end) {
    struct kx_ctx *ctx = ops_ctx(1);
    struct kx_arena arena;
    struct kn_err err;
    kx_plan_begin(ctx, &arena);
    kx_cpu_fail(kx_cpu_of(ctx), KN_EUNSUPPORTED, "no such shape");
    CHECK_INT(kx_plan_end(ctx, &err), KN_EUNSUPPORTED);
    CHECK(!kx_planning(ctx));
    kx_plan_begin(ctx, &arena);
    CHECK_INT(kx_plan_end(ctx, &err), 0);
    kx_ctx_destroy(ctx);
}

TEST(a_plan_counts_what_a_run_takes) {
    struct kx_ctx *ctx = ops_ctx(1);
    struct kx_arena arena;
    struct kn_err err;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 0) kx_plan_begin(ctx, &arena);
        float *a = kx_take(ctx, 10);
        size_t mark = kx_mark(ctx);
        float *b = kx_take(ctx, 1000);
        kx_release(ctx, mark);
        struct kx_tensor t = kx_tensor_take(ctx, 1, 4, 5, 3);
        CHECK_INT(kx_count(&t), 60);
        if (pass == 0) {
            CHECK_INT(kx_plan_end(ctx, &err), 0);
            CHECK_INT(arena.peak, 4 * (16 + 1008));
            CHECK_INT(kx_arena_init(ctx, &arena, arena.peak), 0);
            kx_use(ctx, &arena);
        } else {
            CHECK(b == a + 16 && t.v == b && (uintptr_t)b % 64 == 0);
            a[9] = b[999] = 1;
        }
    }
    kx_arena_fini(ctx, &arena);
    kx_ctx_destroy(ctx);
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Several workers share a machine: threads that have nothing to do use nothing. */
TEST(threads_that_wait_use_no_processor) {
    static struct busy b;
    struct kx_ctx *ctx = ops_ctx(4);
    kx_parallel(kx_cpu_of(ctx), 40, sit, &b);
    double before = cpu_seconds();
    nanosleep(&(struct timespec){0, 200000000}, NULL);
    CHECK_MSG(cpu_seconds() - before < 0.02, "%g seconds", cpu_seconds() - before);
    kx_ctx_destroy(ctx);
}

static int threads_of_process(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/task");
    for (struct dirent *e; d && (e = readdir(d));) n += e->d_name[0] != '.';
    if (d) closedir(d);
    return n;
}

struct conv_call {
    struct kx_conv *conv;
    struct kx_tensor x, y;
};

static void call_conv(struct kx_ctx *ctx, void *arg) {
    struct conv_call *c = arg;
    kx_conv(ctx, c->conv, &c->x, NULL, NULL, &c->y);
}

/* Threads that oneDNN began by itself would spin, and cut a sum by their number. */
TEST(onednn_begins_no_threads_of_its_own) {
    enum { C = 64, SIZE = 32 };
    struct kx_ctx *ctx = ops_ctx(3);
    float *w = ops_random(C * C * 9, 1), *x = ops_random(SIZE * SIZE * C, 2),
          *y = ops_random(SIZE * SIZE * C, 3);
    struct kx_conv_shape s = {C, C, 3, 1, false};
    struct kn_err err;
    struct conv_call call = {NULL, {x, 1, SIZE, SIZE, C}, {y, 1, SIZE, SIZE, C}};
    CHECK_INT(kx_conv_create(ctx, &s, w, NULL, &call.conv, &err), 0);
    int before = threads_of_process();
    OPS_RUN(ctx, call_conv, &call);
    CHECK_INT(threads_of_process(), before);
    kx_conv_destroy(call.conv);
    kx_ctx_destroy(ctx);
    free(w), free(x), free(y);
}

TEST(the_class_names_the_instruction_set_and_the_facts_what_else_moves_a_bit) {
    struct kx_ctx *ctx = ops_ctx(2);
    char text[256], want[64];
    snprintf(want, sizeof want, "cpu-%s", kx_vector_choose()->name);
    CHECK_STR(kx_ctx_class(ctx), want);
    CHECK(strstr(kx_ctx_facts(ctx), "oneDNN ") && strstr(kx_ctx_facts(ctx), "isa ") &&
          strstr(kx_ctx_facts(ctx), "caches "));
    CHECK_STR(kx_ctx_facts(kx_ctx_lane(ctx, 2, 1)), kx_ctx_facts(ctx));
    kx_ctx_describe(ctx, text, sizeof text);
    CHECK(strstr(text, ", 2 threads"));
    struct kx_ctx *other = ops_ctx(1);
    CHECK_STR(kx_ctx_facts(other), kx_ctx_facts(ctx)); /* threads move nothing */
    kx_ctx_destroy(other);
    kx_ctx_destroy(ctx);
}
