/* coordinator/store/redis.c: what only a Redis can do: die, forget its scripts, have other settings. */
#include <sys/wait.h>
#include <unistd.h>

#include "coordinator/store/redis.h"
#include "tests/unit/check.h"
#include "tests/unit/store_redis_server.h"

static void skip_without_redis(void) {
    if (!test_redis_installed()) SKIP("redis-server is not installed");
}

struct answers {
    int count, bad;
};

static void on_done(void *ctx, int code, const void *data, size_t len) {
    struct answers *a = ctx;
    (void)data;
    (void)len;
    a->count++;
    if (code != 0 && code != KN_EEXIST) a->bad++;
}

static void on_time(uv_timer_t *t) {
    *(int *)t->data = 1;
}

/* Runs the loop for ms, or until the count is reached. */
static void run(uv_loop_t *loop, const struct answers *a, int count, unsigned ms) {
    uv_timer_t t;
    int over = 0;
    uv_timer_init(loop, &t);
    t.data = &over;
    uv_timer_start(&t, on_time, ms, 0);
    while (!over && (!a || a->count < count)) uv_run(loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&t, NULL);
    uv_run(loop, UV_RUN_NOWAIT);
}

static void open_and_start(const struct test_redis *r, uv_loop_t *loop, struct store **s) {
    struct kn_err err = {0};
    struct store_redis_options o = {.address = r->address, .lead_ms = 600};
    CHECK_MSG(store_redis_open(&o, s, &err) == 0, "%s", err.text);
    CHECK_MSG(store_redis_start(*s, loop, &err) == 0, "%s", err.text);
}

static void end(uv_loop_t *loop, struct store *s) {
    store_close(s);
    for (int i = 0; i < 200 && uv_run(loop, UV_RUN_NOWAIT); i++) {
    }
    CHECK_INT(uv_loop_close(loop), 0);
}

static const kn_id id = {1, 2, 3};

static void submit(uv_loop_t *loop, struct store *s, uint32_t tasks) {
    struct answers a = {0};
    struct store_batch b = {.begin = "b", .begin_len = 1, .tasks = tasks, .chunks = 1};
    memcpy(b.id, id, sizeof id);
    CHECK_INT(store_begin(s, &b, on_done, &a), 0);
    CHECK_INT(store_chunk(s, id, 0, "x", 1, on_done, &a), 0);
    CHECK_INT(store_seal(s, id, 1, on_done, &a), 0);
    run(loop, &a, 3, 10000);
    CHECK_INT(a.count, 3);
    CHECK_INT(a.bad, 0);
}

static int commit(struct store *s, uint32_t task, struct answers *a) {
    struct store_record r = {.order = task + 1};
    memset(r.sha256, (int)(task & 0xff), sizeof r.sha256);
    return store_commit(s, id, task, &r, on_done, a);
}

TEST(wrong_settings_are_refused_and_named) {
    struct test_redis r;
    struct kn_err err = {0};
    struct store *s = NULL;
    skip_without_redis();
    test_redis_start(&r, "everysec");
    struct store_redis_options o = {.address = r.address};
    CHECK_INT(store_redis_open(&o, &s, &err), KN_ECONFIG);
    CHECK_MSG(strstr(err.text, "appendfsync always (it is everysec)") != NULL, "%s", err.text);
    CHECK(strstr(err.text, "appendonly") == NULL); /* what is right is not mentioned */
    o.allow_volatile = true;
    CHECK_MSG(store_redis_open(&o, &s, &err) == 0, "%s", err.text);
    store_close(s);
    test_redis_end(&r);
}

TEST(promise_format_is_written_at_the_first_start_and_a_newer_one_is_refused) {
    struct test_redis r;
    struct kn_err err = {0};
    struct store *s = NULL;
    skip_without_redis();
    test_redis_start(&r, "always");
    struct store_redis_options o = {.address = r.address};
    CHECK_MSG(store_redis_open(&o, &s, &err) == 0, "%s", err.text);
    store_close(s);
    CHECK_STR(test_redis_ask(&r, "get kiln:format"), "1");
    CHECK_MSG(store_redis_open(&o, &s, &err) == 0, "%s", err.text);
    store_close(s);
    CHECK_STR(test_redis_ask(&r, "get kiln:term"), "2");
    CHECK_STR(test_redis_ask(&r, "set kiln:format 7"), "OK");
    CHECK_INT(store_redis_open(&o, &s, &err), KN_ECONFIG);
    CHECK_MSG(strstr(err.text, "of format 7") && strstr(err.text, "up to 1"), "%s", err.text);
    CHECK_STR(test_redis_ask(&r, "get kiln:term"), "2"); /* it took no lead: whoever leads goes on */
    test_redis_end(&r);
}

TEST(a_second_coordinator_is_refused_while_the_first_one_lives) {
    struct test_redis r;
    struct kn_err err = {0};
    uv_loop_t loop;
    struct store *first, *second = NULL;
    skip_without_redis();
    test_redis_start(&r, "always");
    CHECK_INT(uv_loop_init(&loop), 0);
    open_and_start(&r, &loop, &first);
    /* It renews as long as its loop runs: here the key is made to outlive the second one's patience. */
    CHECK_STR(test_redis_ask(&r, "persist kiln:leader"), "1");
    struct store_redis_options o = {.address = r.address, .lead_ms = 300};
    CHECK_INT(store_redis_open(&o, &second, &err), KN_ESTATE);
    CHECK_MSG(strstr(err.text, "another coordinator leads") != NULL, "%s", err.text);
    end(&loop, first);
    test_redis_end(&r);
}

TEST(the_lead_of_a_dead_process_is_taken_at_once) {
    struct test_redis r;
    struct kn_err err = {0};
    struct store *s = NULL;
    skip_without_redis();
    if (access("/proc/self/stat", R_OK) != 0) SKIP("/proc is not mounted");
    test_redis_start(&r, "always");
    /* Its child takes the lead for an hour and dies. */
    pid_t pid = fork();
    if (pid == 0) {
        struct store_redis_options o = {.address = r.address, .lead_ms = 3600000};
        _exit(store_redis_open(&o, &s, &err) == 0 ? 0 : 1);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    CHECK_INT(WEXITSTATUS(status), 0);
    struct store_redis_options o = {.address = r.address, .lead_ms = 1000};
    CHECK_MSG(store_redis_open(&o, &s, &err) == 0, "%s", err.text);
    CHECK_U64(s->term, 2);
    store_close(s);
    test_redis_end(&r);
}

TEST(writes_outlive_the_death_of_redis) {
    struct test_redis r;
    uv_loop_t loop;
    struct store *s;
    struct answers a = {0};
    char want[16];
    skip_without_redis();
    test_redis_start(&r, "always");
    CHECK_INT(uv_loop_init(&loop), 0);
    open_and_start(&r, &loop, &s);
    submit(&loop, s, 900);
    for (uint32_t i = 0; i < 300; i++) CHECK_INT(commit(s, i, &a), 0);
    run(&loop, &a, 100, 10000); /* some are answered, some are on their way */
    test_redis_kill(&r);
    for (uint32_t i = 300; i < 600; i++) CHECK_INT(commit(s, i, &a), 0);
    run(&loop, &a, 900, 300); /* nobody there */
    CHECK(a.count < 600);
    for (uint32_t i = 600; i < 900; i++) CHECK_INT(commit(s, i, &a), 0);
    test_redis_again(&r);
    run(&loop, &a, 900, 20000);
    CHECK_INT(a.count, 900);
    CHECK_INT(a.bad, 0);
    CHECK_INT((int)store_backlog(s), 0);
    snprintf(want, sizeof want, "%d", 900 * STORE_RECORD_BYTES);
    CHECK_STR(test_redis_ask(&r, "strlen kiln:b:01020300-0000-0000-0000-000000000000:r"), want);
    end(&loop, s);
    test_redis_end(&r);
}

TEST(forgotten_scripts_are_loaded_again) {
    struct test_redis r;
    uv_loop_t loop;
    struct store *s;
    struct answers a = {0};
    skip_without_redis();
    test_redis_start(&r, "always");
    CHECK_INT(uv_loop_init(&loop), 0);
    open_and_start(&r, &loop, &s);
    submit(&loop, s, 9);
    CHECK_STR(test_redis_ask(&r, "script flush"), "OK");
    CHECK_INT(commit(s, 3, &a), 0);
    CHECK_INT(commit(s, 4, &a), 0);
    run(&loop, &a, 2, 10000);
    CHECK_INT(a.count, 2);
    CHECK_INT(a.bad, 0);
    end(&loop, s);
    test_redis_end(&r);
}

static void on_lost(void *ctx, int code, const char *text) {
    (void)text;
    *(int *)ctx = code;
}

TEST(a_redis_that_comes_back_with_other_settings_is_told_nothing_until_they_are_mended) {
    struct test_redis r;
    uv_loop_t loop;
    struct store *s;
    struct answers a = {0};
    const char *why = "";
    int lost = 0;
    skip_without_redis();
    test_redis_start(&r, "always");
    CHECK_INT(uv_loop_init(&loop), 0);
    open_and_start(&r, &loop, &s);
    s->lost = on_lost;
    s->lost_ctx = &lost;
    submit(&loop, s, 9);
    test_redis_kill(&r);
    r.appendfsync = "no";
    test_redis_again(&r);
    CHECK_INT(commit(s, 0, &a), 0);
    for (int i = 0; i < 1000 && !strstr(why, "appendfsync always (it is no)"); i++) {
        run(&loop, NULL, 0, 10);
        (void)store_silent_ms(s, &why);
    }
    CHECK(strstr(why, "appendfsync always (it is no)") != NULL);
    CHECK_INT(a.count, 0);
    CHECK_STR(test_redis_ask(&r, "config set appendfsync always"), "OK");
    run(&loop, &a, 1, 10000);
    CHECK_INT(a.count, 1);
    CHECK_INT(a.bad, 0);
    CHECK_INT(lost, 0);
    end(&loop, s);
    test_redis_end(&r);
}

TEST(addresses_are_checked) {
    struct kn_err err = {0};
    struct store *s = NULL;
    static const char *const wrong[] = {
        "", "localhost", ":6379", "host:", "host:0", "host:70000", "host:x", "unix:"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct store_redis_options o = {.address = wrong[i]};
        CHECK_MSG(store_redis_open(&o, &s, &err) == KN_EINVAL, "%s: %s", wrong[i], err.text);
    }
}
