/* Every allocation of the engine fails in turn while a model is loaded and renders (the linker puts these
 * wrappers before the real ones; what libraries allocate is theirs): each time the call must say that memory
 * ran out, and everything can be destroyed; a leak or a double free shows under the address sanitizer. */
#include <stdbool.h>

#include "kernels/kiln.h"
#include "tests/unit/check.h"

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);
char *__wrap_strdup(const char *s);

static long countdown = -1; /* the allocation that fails; below 0: none */
static bool failed;

static bool fails(void) {
    if (countdown < 0 || countdown-- != 0) return false;
    failed = true;
    return true;
}

void *__wrap_malloc(size_t n) {
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size) {
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n) {
    return fails() ? NULL : __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t alignment, size_t n) {
    return fails() ? NULL : __real_aligned_alloc(alignment, n);
}

char *__wrap_strdup(const char *s) {
    return fails() ? NULL : __real_strdup(s);
}

static int seen; /* pictures */

static int count(void *ctx, const struct kiln_image *im) {
    (void)ctx;
    seen += !im->status;
    return 0;
}

static int render_once(struct kiln_model *m, struct kn_err *err) {
    static char prompt[] = "a red circle", negative[] = "dark";
    struct kn_task t[2] = {{.prompt = prompt,
                            .negative = negative,
                            .steps = 1,
                            .width = 16,
                            .height = 16,
                            .cfg = 5,
                            .sampler = KN_SAMPLER_EULER_A,
                            .schedule = KN_SCHEDULE_NORMAL,
                            .set = KN_SET_ALL}};
    t[1] = t[0];
    t[1].seed = 9;
    seen = 0;
    int rc = kiln_render(m, t, 2, &(struct kiln_callbacks){.image = count}, err);
    CHECK(rc || seen == 2);
    return rc;
}

/* An engine, the model and a batch, with the n-th allocation failing. True: there was one to fail. */
static bool run(long n) {
    struct kiln_engine *e = NULL;
    struct kiln_model *m = NULL;
    struct kn_err err = {0};
    countdown = n;
    failed = false;
    int rc = kiln_engine_create(&(struct kiln_engine_options){.threads = 2}, &e, &err);
    if (!rc) rc = kiln_model_load(e, KILN_GOLDEN_DIR "/pipelines/sd1", &m, &err);
    if (!rc) rc = render_once(m, &err);
    countdown = -1;
    /* that a batch does not fit is an ordinary error: the engine goes on with half of it, and all may be well
     */
    CHECK_MSG(!rc || (failed && (rc == KN_ENOMEM || rc == KN_EOOM)), "allocation %ld: %d, %s", n, rc,
              err.text);
    CHECK(!rc || strstr(err.text, "out of memory"));
    /* a model that is there goes on afterwards */
    if (m) CHECK_MSG(!render_once(m, &err), "allocation %ld: afterwards: %s", n, err.text);
    kiln_model_destroy(m);
    kiln_engine_destroy(e);
    return failed;
}

TEST(loading_and_rendering_survive_every_failed_allocation) {
    CHECK(!run(1 << 30));
    long n = 0;
    while (run(n)) CHECK_MSG(++n < 20000, "no end of allocations");
    printf("%ld allocations\n", n);
    CHECK_MSG(n > 500, "only %ld allocations were seen: are they wrapped?", n);
}
