/* coordinator/store/store.h: the same promises, kept by the store in Redis and by the one in memory. Each
 * test runs against both; Redis is a private one, and its half is left out, with a word, where none is
 * installed. */
#include <stdarg.h>

#include "coordinator/store/redis.h"
#include "tests/unit/check.h"
#include "tests/unit/store_memory.h"
#include "tests/unit/store_redis_server.h"

/* ---- a store under test */

struct fixture {
    uv_loop_t loop;
    struct store *s;
    struct store_disk *disk; /* memory */
    struct test_redis redis;
    bool in_redis;
    int lost;
};

static void on_lost(void *ctx, int code, const char *text) {
    struct fixture *f = ctx;
    (void)text;
    CHECK_INT(code, KN_ETERM);
    f->lost++;
}

/* What a coordinator that starts does, less the reading back. */
static void open_store(struct fixture *f, struct store **s) {
    struct kn_err err = {0};
    if (f->in_redis) {
        struct store_redis_options o = {.address = f->redis.address, .lead_ms = 600};
        CHECK_MSG(store_redis_open(&o, s, &err) == 0, "%s", err.text);
    } else {
        CHECK_INT(store_memory_open(f->disk, &f->loop, s, &err), 0);
    }
    (*s)->lost = on_lost;
    (*s)->lost_ctx = f;
}

static void start_store(struct fixture *f, struct store *s) {
    struct kn_err err = {0};
    if (f->in_redis) CHECK_MSG(store_redis_start(s, &f->loop, &err) == 0, "%s", err.text);
}

static void setup(struct fixture *f, bool in_redis) {
    *f = (struct fixture){.in_redis = in_redis};
    CHECK_INT(uv_loop_init(&f->loop), 0);
    if (in_redis)
        test_redis_start(&f->redis, "always");
    else
        f->disk = store_disk_create();
    open_store(f, &f->s);
    start_store(f, f->s);
}

static void run_out(struct fixture *f) {
    for (int i = 0; i < 200 && uv_run(&f->loop, UV_RUN_NOWAIT); i++) {
    }
}

static void teardown(struct fixture *f) {
    store_close(f->s);
    run_out(f);
    CHECK_INT(uv_loop_close(&f->loop), 0);
    if (f->in_redis) test_redis_end(&f->redis);
    store_disk_destroy(f->disk);
}

/* ---- waiting for an answer */

struct answer {
    int count, code;
    size_t len;
    uint8_t data[STORE_RECORD_BYTES];
};

static void on_done(void *ctx, int code, const void *data, size_t len) {
    struct answer *a = ctx;
    a->count++;
    a->code = code;
    a->len = len;
    if (len && len <= sizeof a->data) memcpy(a->data, data, len);
}

static void on_time(uv_timer_t *t) {
    int *over = t->data;
    *over = 1;
}

static int await(struct fixture *f, const struct answer *a) {
    uv_timer_t t;
    int over = 0;
    uv_timer_init(&f->loop, &t);
    t.data = &over;
    uv_timer_start(&t, on_time, 20000, 0);
    while (!a->count && !over) uv_run(&f->loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&t, NULL);
    uv_run(&f->loop, UV_RUN_NOWAIT);
    CHECK_INT(a->count, 1);
    return a->code;
}

#define ANSWER_OF(f, call)                                                                                   \
    ({                                                                                                       \
        struct answer a = {0};                                                                               \
        CHECK_INT((call), 0);                                                                                \
        await((f), &a);                                                                                      \
    })

static const kn_id id_a = {0xa, 1, 2, 3}, id_b = {0xb, 1, 2, 3};

static void submit(struct fixture *f, const kn_id id, uint32_t tasks) {
    struct store_batch b = {.begin = "what was\0asked",
                            .begin_len = 14,
                            .tasks = tasks,
                            .chunks = 2,
                            .priority = -3,
                            .created_wall_ms = 1234567890123};
    memcpy(b.id, id, sizeof b.id);
    CHECK_INT(ANSWER_OF(f, store_begin(f->s, &b, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_chunk(f->s, id, 0, "first\0chunk", 11, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_chunk(f->s, id, 1, "second", 6, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_seal(f->s, id, 2, on_done, &a)), 0);
}

static struct store_record record_of(uint8_t byte, uint32_t order) {
    struct store_record r = {.order = order,
                             .render_ms = 70000,
                             .worker = 1,
                             .backend = 2,
                             .engine = 65535,
                             .attempt = 3,
                             .flat = true};
    memset(r.sha256, byte, sizeof r.sha256);
    memset(r.pixels, byte + 1, sizeof r.pixels);
    return r;
}

/* ---- reading back into one line of text a batch */

struct reading {
    char text[4096];
    size_t len;
};

static void say(struct reading *r, const char *fmt, ...) KN_PRINTF(2, 3);
static void say(struct reading *r, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(r->text + r->len, sizeof r->text - r->len, fmt, ap);
    va_end(ap);
    r->len += (size_t)n;
}

static int rd_batch(void *ctx, const struct store_batch *b, struct kn_err *err) {
    (void)err;
    say(ctx, "%x %s begin=%zu tasks=%u chunks=%u state=%s priority=%d created=%llu finished=%llu;", b->id[0],
        b->sealed ? "sealed" : "staged", b->begin_len, b->tasks, b->chunks, kn_batch_state_name(b->state),
        b->priority, (unsigned long long)b->created_wall_ms, (unsigned long long)b->finished_wall_ms);
    CHECK_MEM(b->begin, "what was\0asked", b->begin_len);
    return 0;
}
static int rd_chunk(void *ctx, uint32_t chunk, const void *data, size_t len, struct kn_err *err) {
    (void)err;
    say(ctx, " chunk %u %zu %.*s", chunk, len, (int)len, (const char *)data);
    return 0;
}
static int rd_name(void *ctx, uint32_t number, const char *text, struct kn_err *err) {
    (void)err;
    say(ctx, " name %u=%s", number, text);
    return 0;
}
static int rd_record(void *ctx, uint32_t task, const struct store_record *r, struct kn_err *err) {
    (void)err;
    say(ctx, " record %u sha=%02x%02x pixels=%02x order=%u ms=%u names=%u,%u,%u attempt=%u flat=%d", task,
        r->sha256[0], r->sha256[31], r->pixels[31], r->order, r->render_ms, r->worker, r->backend, r->engine,
        r->attempt, r->flat);
    return 0;
}
static int rd_failure(void *ctx, const struct store_failure *x, struct kn_err *err) {
    (void)err;
    say(ctx, " failure %u code=%d attempt=%u order=%u worker=[%s] reason=[%s]", x->task, x->code, x->attempt,
        x->order, x->worker, x->reason);
    return 0;
}
static int rd_charge(void *ctx, uint32_t task, uint32_t charges, const char *history, struct kn_err *err) {
    (void)err;
    say(ctx, " charge %u=%u%s%s", task, charges, history[0] ? " history=" : "", history);
    return 0;
}
static int rd_model(void *ctx, uint64_t wall_ms, const void *data, size_t len, struct kn_err *err) {
    (void)err;
    say(ctx, "model %llu %.*s.", (unsigned long long)wall_ms, (int)len, (const char *)data);
    return 0;
}
/* Of its records, those that are there. */
static int rd_tomb(void *ctx, const kn_id id, bool now, const uint8_t (*records)[STORE_RECORD_BYTES],
                   size_t count, struct kn_err *err) {
    struct store_record r;
    (void)err;
    say(ctx, "tomb %x now=%d", id[0], now);
    for (size_t i = 0; i < count; i++)
        if (store_record_unpack(records[i], &r)) say(ctx, " %02x", r.sha256[0]);
    say(ctx, ".\n");
    return 0;
}
static int rd_end(void *ctx, struct kn_err *err) {
    (void)err;
    say(ctx, ".\n");
    return 0;
}

static int rd_aside(void *ctx, const kn_id id, bool sealed, const struct kn_err *why, struct kn_err *err) {
    (void)err;
    say(ctx, "aside %02x sealed=%d: %s.\n", id[0], sealed, why->text);
    return 0;
}

/* As a coordinator that starts again would see it. The store under test is closed and opened. */
static const char *read_back(struct fixture *f) {
    static struct reading r;
    struct kn_err err = {0};
    r.len = 0;
    r.text[0] = 0;
    struct store_reader rd = {.ctx = &r,
                              .batch = rd_batch,
                              .chunk = rd_chunk,
                              .name = rd_name,
                              .record = rd_record,
                              .failure = rd_failure,
                              .charge = rd_charge,
                              .batch_end = rd_end,
                              .aside = rd_aside,
                              .tomb = rd_tomb,
                              .model = rd_model};
    store_close(f->s);
    run_out(f);
    open_store(f, &f->s);
    CHECK_MSG(store_load(f->s, &rd, &err) == 0, "%s", err.text);
    start_store(f, f->s);
    return r.text;
}

/* ---- the promises */

#define BOTH(title)                                                                                          \
    static void title(struct fixture *f);                                                                    \
    TEST(title##_in_memory) {                                                                                \
        struct fixture f;                                                                                    \
        setup(&f, false);                                                                                    \
        title(&f);                                                                                           \
        teardown(&f);                                                                                        \
    }                                                                                                        \
    TEST(title##_in_redis) {                                                                                 \
        struct fixture f;                                                                                    \
        if (!test_redis_installed()) SKIP("redis-server is not installed");                                  \
        setup(&f, true);                                                                                     \
        title(&f);                                                                                           \
        teardown(&f);                                                                                        \
    }                                                                                                        \
    static void title(struct fixture *f)

BOTH(a_task_is_committed_once) {
    submit(f, id_a, 2000);
    struct store_record first = record_of(0x11, 1), second = record_of(0x22, 2), got;
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 1999, &first, on_done, &a)), 0);
    struct answer a = {0};
    CHECK_INT(store_commit(f->s, id_a, 1999, &second, on_done, &a), 0);
    CHECK_INT(await(f, &a), KN_EEXIST);
    CHECK_INT((int)a.len, STORE_RECORD_BYTES);
    CHECK(store_record_unpack(a.data, &got));
    CHECK_MEM(got.sha256, first.sha256, KN_SHA256_BYTES); /* the one that stands comes back */
    CHECK(strstr(read_back(f), "record 1999 sha=1111") != NULL);
}

BOTH(a_record_is_voided_by_its_own_bytes_and_the_batch_is_active_again) {
    submit(f, id_a, 2000);
    struct store_record first = record_of(0x11, 1), other = record_of(0x11, 7),
                        neighbour = record_of(0x22, 2);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 7, &first, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 8, &neighbour, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_state(f->s, id_a, KN_BATCH_DONE, 0, 99, false, on_done, &a)), 0);
    /* A record of the same object that is not the one that stands voids nothing. */
    CHECK_INT(ANSWER_OF(f, store_void(f->s, id_a, 7, &other, on_done, &a)), KN_EEXIST);
    CHECK_INT(ANSWER_OF(f, store_void(f->s, id_a, 9, &first, on_done, &a)), KN_EEXIST);
    CHECK(strstr(read_back(f), "state=done") != NULL);
    CHECK_INT(ANSWER_OF(f, store_void(f->s, id_a, 7, &first, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_void(f->s, id_a, 7, &first, on_done, &a)), KN_EEXIST); /* asked again */
    const char *text = read_back(f);
    CHECK(strstr(text, "record 7 ") == NULL);
    CHECK(strstr(text, "record 8 sha=2222") != NULL);
    CHECK(strstr(text, "state=active") != NULL);
    CHECK(strstr(text, "finished=0") != NULL);
    /* The task may be committed again, with the same picture or another. */
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 7, &other, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_void(f->s, id_a, 7, &first, on_done, &a)), KN_EEXIST); /* late */
    CHECK(strstr(read_back(f), "record 7 sha=1111") != NULL);
    CHECK_INT(ANSWER_OF(f, store_void(f->s, id_b, 7, &first, on_done, &a)), KN_EGONE);
}

BOTH(a_cancelled_batch_stays_so_when_a_record_of_it_is_voided) {
    submit(f, id_a, 2000);
    struct store_record r = record_of(0x11, 1);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 7, &r, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_state(f->s, id_a, KN_BATCH_CANCELLED, 0, 99, false, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_void(f->s, id_a, 7, &r, on_done, &a)), 0);
    const char *text = read_back(f);
    CHECK(strstr(text, "record") == NULL);
    CHECK(strstr(text, "state=cancelled") != NULL);
}

BOTH(another_term_can_change_nothing) {
    submit(f, id_a, 2000);
    struct store *old = f->s, *next = NULL;
    open_store(f, &next); /* in Redis: once the old one's lead has run out */
    start_store(f, next);
    CHECK(next->term > old->term);
    struct store_record r = record_of(0x11, 1);
    CHECK_INT(ANSWER_OF(f, store_commit(old, id_a, 5, &r, on_done, &a)), KN_ETERM);
    CHECK_INT(f->lost, 1);
    store_close(old);
    f->s = next;
    f->lost = 0;
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 5, &r, on_done, &a)), 0);
    CHECK_INT(f->lost, 0);
}

BOTH(every_write_is_fenced) {
    submit(f, id_a, 2000);
    struct store *old = f->s, *next = NULL;
    open_store(f, &next);
    start_store(f, next);
    struct store_record r = record_of(0x11, 1);
    struct store_failure x = {.task = 1, .code = KN_ENAN, .worker = "w", .reason = "r"};
    struct store_batch b = {.begin = "b", .begin_len = 1, .tasks = 1, .chunks = 1};
    memcpy(b.id, id_b, sizeof b.id);
    CHECK_INT(ANSWER_OF(f, store_begin(old, &b, on_done, &a)), KN_ETERM);
    CHECK_INT(ANSWER_OF(f, store_chunk(old, id_b, 0, "x", 1, on_done, &a)), KN_ETERM);
    CHECK_INT(ANSWER_OF(f, store_seal(old, id_b, 1, on_done, &a)), KN_ETERM);
    CHECK_INT(store_name(old, id_a, 1, "worker"), 0);
    CHECK_INT(store_charge(old, id_a, 1, 2, ""), 0);
    CHECK_INT(ANSWER_OF(f, store_commit(old, id_a, 5, &r, on_done, &a)), KN_ETERM);
    CHECK_INT(ANSWER_OF(f, store_fail(old, id_a, &x, on_done, &a)), KN_ETERM);
    CHECK_INT(ANSWER_OF(f, store_void(old, id_a, 5, &r, on_done, &a)), KN_ETERM);
    CHECK_INT(ANSWER_OF(f, store_state(old, id_a, KN_BATCH_CANCELLED, 0, 0, false, on_done, &a)), KN_ETERM);
    CHECK_INT(ANSWER_OF(f, store_remove(old, id_a, on_done, &a)), KN_ETERM);
    CHECK_INT(ANSWER_OF(f, store_bury(old, id_a, 1, on_done, &a)), KN_ETERM);
    CHECK_INT(ANSWER_OF(f, store_confirm(old, on_done, &a)), KN_ETERM);
    store_close(old);
    f->s = next;
    CHECK_STR(read_back(f),
              "a sealed begin=14 tasks=2000 chunks=2 state=active priority=-3 created=1234567890123 "
              "finished=0; chunk 0 11 first chunk 1 6 second.\n");
}

BOTH(a_cancelled_batch_takes_no_commit) {
    submit(f, id_a, 2000);
    struct store_record r = record_of(0x11, 1);
    struct store_failure x = {.task = 1, .code = KN_ENAN, .worker = "w", .reason = "r"};
    CHECK_INT(ANSWER_OF(f, store_state(f->s, id_a, KN_BATCH_CANCELLED, 0, 99, false, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 5, &r, on_done, &a)), KN_EGONE);
    CHECK_INT(ANSWER_OF(f, store_fail(f->s, id_a, &x, on_done, &a)), KN_EGONE);
}

BOTH(a_batch_that_is_not_sealed_takes_no_commit) {
    struct store_batch b = {.begin = "b", .begin_len = 1, .tasks = 9, .chunks = 1};
    struct store_record r = record_of(0x11, 1);
    memcpy(b.id, id_b, sizeof b.id);
    CHECK_INT(ANSWER_OF(f, store_begin(f->s, &b, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_b, 5, &r, on_done, &a)), KN_EGONE);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 5, &r, on_done, &a)), KN_EGONE);
}

BOTH(a_seal_needs_all_chunks_and_is_repeatable) {
    struct store_batch b = {.begin = "what was\0asked", .begin_len = 14, .tasks = 2000, .chunks = 2};
    memcpy(b.id, id_a, sizeof b.id);
    CHECK_INT(ANSWER_OF(f, store_seal(f->s, id_a, 2, on_done, &a)), KN_EGONE);
    CHECK_INT(ANSWER_OF(f, store_chunk(f->s, id_a, 0, "x", 1, on_done, &a)), KN_EGONE);
    CHECK_INT(ANSWER_OF(f, store_begin(f->s, &b, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_chunk(f->s, id_a, 1, "x", 1, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_seal(f->s, id_a, 2, on_done, &a)), KN_ESTATE);
    CHECK_INT(ANSWER_OF(f, store_begin(f->s, &b, on_done, &a)), 0); /* again */
    CHECK_INT(ANSWER_OF(f, store_chunk(f->s, id_a, 0, "y", 1, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_chunk(f->s, id_a, 0, "y", 1, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_seal(f->s, id_a, 2, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_seal(f->s, id_a, 2, on_done, &a)), KN_EEXIST);
    CHECK_INT(ANSWER_OF(f, store_chunk(f->s, id_a, 0, "z", 1, on_done, &a)), KN_EEXIST);
    CHECK_INT(ANSWER_OF(f, store_begin(f->s, &b, on_done, &a)), KN_EEXIST);
    CHECK(strstr(read_back(f), "chunk 0 1 y chunk 1 1 x") != NULL);
}

BOTH(what_is_read_back_is_what_was_written) {
    submit(f, id_b, 2000);
    submit(f, id_a, 2000);
    struct store_record r = record_of(0x33, 2);
    struct store_failure x = {.task = 7,
                              .code = KN_ENAN,
                              .attempt = 3,
                              .order = 1,
                              .worker = "gpu 3",
                              .reason = "not a number: 1 2 3"};
    CHECK_INT(store_name(f->s, id_b, 1, "gpu 3"), 0);
    CHECK_INT(store_name(f->s, id_b, 65535, "kiln 0.1.0"), 0);
    CHECK_INT(store_charge(f->s, id_b, 7, 3, ""), 0);
    CHECK_INT(store_charge(f->s, id_b, 8, 1, ""), 0);
    CHECK_INT(ANSWER_OF(f, store_fail(f->s, id_b, &x, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_b, 0, &r, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_state(f->s, id_b, KN_BATCH_PAUSED, 9, 77, false, on_done, &a)), 0);
    struct store_batch staged = {.begin = "what was\0asked", .begin_len = 14, .tasks = 3, .chunks = 1};
    staged.id[0] = 0xc;
    CHECK_INT(ANSWER_OF(f, store_begin(f->s, &staged, on_done, &a)), 0);
    CHECK_STR(
        read_back(f),
        "b sealed begin=14 tasks=2000 chunks=2 state=paused priority=9 created=1234567890123 finished=77; "
        "chunk 0 11 first chunk 1 6 second name 1=gpu 3 name 65535=kiln 0.1.0 "
        "record 0 sha=3333 pixels=34 order=2 ms=70000 names=1,2,65535 attempt=3 flat=1 "
        "failure 7 code=-18 attempt=3 order=1 worker=[gpu 3] reason=[not a number: 1 2 3] charge 7=3 "
        "charge 8=1.\n"
        "a sealed begin=14 tasks=2000 chunks=2 state=active priority=-3 created=1234567890123 finished=0; "
        "chunk 0 11 first chunk 1 6 second.\n"
        "c staged begin=14 tasks=3 chunks=1 state=active priority=0 created=0 finished=0;.\n");
}

BOTH(a_late_image_voids_the_failure) {
    submit(f, id_a, 2000);
    struct store_record r = record_of(0x11, 2);
    struct store_failure x = {.task = 5, .code = KN_ENAN, .worker = "w", .reason = "r"};
    CHECK_INT(ANSWER_OF(f, store_fail(f->s, id_a, &x, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 5, &r, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_fail(f->s, id_a, &x, on_done, &a)), KN_EEXIST);
    const char *text = read_back(f);
    CHECK(strstr(text, "record 5 ") != NULL);
    CHECK(strstr(text, "failure") == NULL);
}

BOTH(a_retry_voids_failures_and_charges) {
    submit(f, id_a, 2000);
    struct store_failure x = {.task = 5, .code = KN_ENAN, .worker = "", .reason = ""};
    CHECK_INT(store_charge(f->s, id_a, 5, 3, ""), 0);
    CHECK_INT(ANSWER_OF(f, store_fail(f->s, id_a, &x, on_done, &a)), 0);
    CHECK(strstr(read_back(f), "worker=[] reason=[] charge 5=3") != NULL);
    CHECK_INT(ANSWER_OF(f, store_state(f->s, id_a, KN_BATCH_ACTIVE, 0, 0, true, on_done, &a)), 0);
    const char *text = read_back(f);
    CHECK(strstr(text, "failure") == NULL);
    CHECK(strstr(text, "charge") == NULL);
}

BOTH(a_retry_keeps_the_story_of_the_attempts) {
    submit(f, id_a, 2000);
    CHECK_INT(store_charge(f->s, id_a, 5, 2, "1 two words"), 0);
    CHECK_INT(store_charge(f->s, id_a, 6, 1, ""), 0);
    CHECK_INT(ANSWER_OF(f, store_state(f->s, id_a, KN_BATCH_ACTIVE, 0, 0, false, on_done, &a)), 0);
    CHECK_MSG(strstr(read_back(f), "charge 5=2 history=1 two words") != NULL, "%s", read_back(f));
    if (f->in_redis) { /* the number comes first: what an earlier program reads of it is the charges */
        char ask[160], id[KN_UUID_TEXT];
        kn_uuid_format(id_a, id);
        snprintf(ask, sizeof ask, "--raw hget kiln:b:%s:a 5", id);
        CHECK_STR(test_redis_ask(&f->redis, ask), "2 1 two words");
    }
    CHECK_INT(ANSWER_OF(f, store_state(f->s, id_a, KN_BATCH_ACTIVE, 0, 0, true, on_done, &a)), 0);
    const char *text = read_back(f);
    CHECK(strstr(text, "charge 5=0 history=1 two words") != NULL);
    CHECK(strstr(text, "charge 6") == NULL);
}

BOTH(models_that_were_announced_are_remembered_with_their_date) {
    if (!f->in_redis)
        return; /* the one in memory keeps none, which its caller is told by no model coming back */
    kn_digest one = {1}, two = {2};
    submit(f, id_a, 2000);
    CHECK_INT(store_model(f->s, one, 1700000000000, "what\0it is", 10), 0);
    CHECK_INT(store_model(f->s, two, 1700000000001, "other", 5), 0);
    CHECK_INT(store_model(f->s, two, 1700000000002, "newer", 5), 0);
    CHECK_INT(ANSWER_OF(f, store_state(f->s, id_a, KN_BATCH_ACTIVE, 0, 0, false, on_done, &a)), 0);
    const char *text = read_back(f);
    CHECK(strstr(text, "model 1700000000000 what") != NULL);
    CHECK(strstr(text, "model 1700000000002 newer.") != NULL);
    CHECK(strstr(text, "other") == NULL);
}

BOTH(a_removed_batch_is_gone) {
    submit(f, id_a, 2000);
    submit(f, id_b, 2000);
    struct store_record r = record_of(0x11, 1);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 5, &r, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_remove(f->s, id_a, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_remove(f->s, id_a, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 5, &r, on_done, &a)), KN_EGONE);
    CHECK_INT(ANSWER_OF(f, store_state(f->s, id_a, KN_BATCH_ACTIVE, 0, 0, false, on_done, &a)), KN_EGONE);
    CHECK(strncmp(read_back(f), "b sealed", 8) == 0);
    if (f->in_redis) CHECK_STR(test_redis_ask(&f->redis, "--raw keys 'kiln:b:0a*'"), "");
}

BOTH(a_removed_batch_leaves_its_records_until_it_is_buried) {
    submit(f, id_a, 2000);
    submit(f, id_b, 2000);
    struct store_record r = record_of(0x11, 1), q = record_of(0x22, 2);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 5, &r, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 7, &q, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_remove_now(f->s, id_a, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_remove_now(f->s, id_a, on_done, &a)), 0); /* its answer was lost */
    CHECK_INT(ANSWER_OF(f, store_remove(f->s, id_b, on_done, &a)), 0);     /* nothing of it was committed */
    CHECK_STR(read_back(f), "tomb a now=1 11 22.\n");
    CHECK_INT(ANSWER_OF(f, store_confirm(f->s, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_bury(f->s, id_a, 2000, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_bury(f->s, id_a, 2000, on_done, &a)), 0);
    CHECK_STR(read_back(f), "");
    if (f->in_redis) CHECK_STR(test_redis_ask(&f->redis, "--raw keys 'kiln:t*'"), "kiln:term");
}

BOTH(a_batch_that_is_removed_twice_leaves_the_records_of_both) {
    if (!f->in_redis) return; /* the one in memory keeps two */
    struct store_record r = record_of(0x11, 1), q = record_of(0x22, 1);
    submit(f, id_a, 2000);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 0, &r, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_remove(f->s, id_a, on_done, &a)), 0);
    submit(f, id_a, 2000);
    CHECK_INT(ANSWER_OF(f, store_commit(f->s, id_a, 0, &q, on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_remove(f->s, id_a, on_done, &a)), 0);
    /* Whoever has seen to the first alone does not bury both. */
    CHECK_INT(ANSWER_OF(f, store_bury(f->s, id_a, 1, on_done, &a)), KN_ESTATE);
    CHECK_STR(read_back(f), "tomb a now=0 11 22.\n");
}

static int on_entry(void *ctx, enum store_list list, const char *field, const char *value,
                    struct kn_err *err) {
    char *text = ctx;
    (void)err;
    sprintf(text + strlen(text), "%s %s=%s\n", list == STORE_KEYS ? "key" : "token", field, value);
    return 0;
}

/* The lists, as the next coordinator reads them. */
static const char *read_lists(struct fixture *f) {
    static char text[1024];
    struct store_reader rd = {.ctx = text, .entry = on_entry};
    struct kn_err err = {0};
    store_close(f->s);
    run_out(f);
    open_store(f, &f->s);
    text[0] = '\0';
    CHECK_MSG(store_load(f->s, &rd, &err) == 0, "%s", err.text);
    start_store(f, f->s);
    return text;
}

BOTH(a_use_of_a_token_is_taken_once_a_key) {
    CHECK_INT(ANSWER_OF(f, store_put(f->s, STORE_TOKENS, "t1", "2 what it is", on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_enrol(f->s, "k1", "one", "t1", on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_enrol(f->s, "k1", "one", "t1", on_done, &a)), KN_EEXIST); /* asked again */
    CHECK_INT(ANSWER_OF(f, store_enrol(f->s, "k2", "two", "t0", on_done, &a)), KN_EGONE);  /* no such token */
    CHECK_STR(read_lists(f), "key k1=one\ntoken t1=1 what it is\n");
    CHECK_INT(ANSWER_OF(f, store_enrol(f->s, "k2", "two", "t1", on_done, &a)), 0);
    CHECK_INT(ANSWER_OF(f, store_enrol(f->s, "k3", "three", "t1", on_done, &a)), KN_EGONE); /* used up */
    CHECK_INT(ANSWER_OF(f, store_put(f->s, STORE_KEYS, "k1", "", on_done, &a)), 0);
    CHECK_STR(read_lists(f), "key k2=two\ntoken t1=0 what it is\n");
    CHECK_INT(ANSWER_OF(f, store_put(f->s, STORE_KEYS, "", "", on_done, &a)), 0);
    CHECK_STR(read_lists(f), "token t1=0 what it is\n");
}

BOTH(a_close_answers_what_is_open) {
    submit(f, id_a, 2000);
    struct store_record r = record_of(0x11, 1);
    struct answer a = {0};
    CHECK_INT(store_commit(f->s, id_a, 5, &r, on_done, &a), 0);
    CHECK_INT((int)store_backlog(f->s), 1);
    store_close(f->s);
    CHECK_INT(a.count, 1);
    CHECK_INT(a.code, KN_ECANCELED);
    run_out(f);
    open_store(f, &f->s);
    start_store(f, f->s);
}
