/* The story of a task's attempts, as a text and back. */
#include "coordinator/history.h"
#include "tests/unit/check.h"

static void add(struct history *h, uint64_t wall_ms, const char *worker, const char *reason) {
    struct kn_attempt a = {.wall_ms = wall_ms,
                           .code = KN_EDEVICE,
                           .charged = true,
                           .worker = worker,
                           .backend = "cpu-avx2",
                           .reason = reason};
    history_add(h, &a);
}

TEST(a_story_comes_back_as_it_was_told) {
    struct history h = {0}, back;
    struct kn_buf text;
    kn_buf_init(&text, 65536);
    add(&h, 1700000000000, "gpu 3", "it died\nwhile it rendered");
    add(&h, 1700000000001, "", "");
    CHECK_INT(history_write(&h, &text), 0);
    CHECK_INT(history_read(text.data, &back), 0);
    CHECK_INT(back.total, 2);
    CHECK_INT((int)back.count, 2);
    CHECK_STR(back.v[0].worker, "gpu 3");
    CHECK_STR(back.v[0].backend, "cpu-avx2");
    CHECK_STR(back.v[0].reason, "it died\nwhile it rendered");
    CHECK_INT(back.v[0].code, KN_EDEVICE);
    CHECK(back.v[0].charged);
    CHECK_U64(back.v[0].wall_ms, 1700000000000);
    CHECK_STR(back.v[1].reason, "");
    history_refund(&back, "gpu 3");
    CHECK(!back.v[0].charged && back.v[1].charged);
    history_fini(&back);
    kn_buf_fini(&text);
}

TEST(the_newest_eight_attempts_are_kept_and_all_are_counted) {
    struct history h = {0};
    for (uint64_t i = 0; i < 20; i++) add(&h, i, "w", "r");
    CHECK_INT(h.total, 20);
    CHECK_INT((int)h.count, KN_ATTEMPTS_PER_TASK_MAX);
    CHECK_U64(h.v[0].wall_ms, 12);
    CHECK_U64(h.v[7].wall_ms, 19);
}

TEST(a_long_reason_is_cut_at_a_character) {
    struct history h = {0}, back;
    struct kn_buf text;
    char reason[401] = "";
    for (int i = 0; i < 200; i++) strcat(reason, "\xc3\xa4");
    reason[0] = 'x'; /* so that the limit falls into a character */
    memmove(reason + 1, reason + 2, strlen(reason + 2) + 1);
    kn_buf_init(&text, 65536);
    add(&h, 1, "w", reason);
    CHECK_INT(history_write(&h, &text), 0);
    CHECK_INT(history_read(text.data, &back), 0);
    CHECK_INT((int)strlen(back.v[0].reason), KN_ATTEMPT_REASON_MAX - 1);
    history_fini(&back);
    kn_buf_fini(&text);
}

/* Whatever another program wrote there is read as a story, or as none: never past its end. */
TEST(a_text_that_is_cut_anywhere_is_read_or_refused) {
    struct history h = {0}, back;
    struct kn_buf text;
    kn_buf_init(&text, 65536);
    add(&h, 1700000000000, "gpu3", "it died");
    add(&h, 1700000000001, "gpu4", "not a number");
    CHECK_INT(history_write(&h, &text), 0);
    for (size_t len = 0; len <= text.len; len++) {
        char cut[512];
        snprintf(cut, sizeof cut, "%.*s", (int)len, text.data);
        int rc = history_read(cut, &back);
        CHECK(rc == 0 || rc == KN_ECORRUPT);
        if (len == text.len) CHECK_INT((int)back.count, 2);
        history_fini(&back);
    }
    CHECK_INT(history_read("", &back), 0);
    CHECK_INT((int)back.count, 0);
    CHECK_INT(history_read("nonsense", &back), KN_ECORRUPT);
    history_fini(&back);
    kn_buf_fini(&text);
}
