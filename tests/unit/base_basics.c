/* Errors, buffers, logs, clocks, UTF-8. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/utf8.h"
#include "tests/unit/check.h"

TEST(error_returns_its_code_and_keeps_its_text) {
    struct kn_err err = {0};
    CHECK_INT(kn_err_set(&err, KN_EINVAL, "steps: %d is not between %d and %d", 0, 1, 1000), KN_EINVAL);
    CHECK_INT(err.code, KN_EINVAL);
    CHECK_STR(err.text, "steps: 0 is not between 1 and 1000");
}

TEST(error_prefixes_read_from_the_outside_in) {
    struct kn_err err = {0};
    kn_err_set(&err, KN_ENOENT, "open: no");
    CHECK_INT(kn_err_prefix(&err, "%s", "unet"), KN_ENOENT);
    CHECK_INT(kn_err_prefix(&err, "model %s", "tiny"), KN_ENOENT);
    CHECK_STR(err.text, "model tiny: unet: open: no");
}

TEST(error_prefix_without_an_error_is_an_internal_error) {
    struct kn_err err = {0};
    CHECK_INT(kn_err_prefix(&err, "here"), KN_EINTERNAL);
    CHECK_STR(err.text, "here");
}

TEST(error_context_may_be_null_and_may_be_its_own_argument) {
    CHECK_INT(kn_err_set(NULL, KN_EIO, "x"), KN_EIO);
    CHECK_INT(kn_err_prefix(NULL, "x"), KN_EINTERNAL);
    struct kn_err err = {0};
    kn_err_set(&err, KN_EIO, "inner");
    kn_err_set(&err, KN_EIO, "outer: %s", err.text);
    CHECK_STR(err.text, "outer: inner");
    kn_err_prefix(&err, "again %s", err.text);
    CHECK_STR(err.text, "again outer: inner: outer: inner");
}

TEST(error_text_too_long_is_cut_and_terminated) {
    struct kn_err err = {0};
    char words[3 * KN_ERR_TEXT_MAX];
    memset(words, 'w', sizeof words);
    words[sizeof words - 1] = '\0';
    kn_err_set(&err, KN_EIO, "%s", words);
    CHECK_INT(strlen(err.text), KN_ERR_TEXT_MAX - 1);
    kn_err_prefix(&err, "head");
    CHECK_INT(strlen(err.text), KN_ERR_TEXT_MAX - 1);
    CHECK(strncmp(err.text, "head: www", 9) == 0);
    kn_err_prefix(&err, "%s", words);
    CHECK_INT(strlen(err.text), KN_ERR_TEXT_MAX - 1);
}

TEST(every_code_has_words_and_its_own_value) {
    static const int codes[] = {
#define CODE(name, value, words) name,
        KN_ERR_TABLE(CODE)
#undef CODE
    };
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        CHECK(strcmp(kn_err_words(codes[i]), "unknown error") != 0);
        CHECK_INT(codes[i], -(int)i); /* dense, in order, from 0 down: the wire's numbers */
    }
    CHECK_STR(kn_err_words(-1000), "unknown error");
    CHECK_STR(kn_err_words(7), "unknown error");
}

TEST(buffer_grows_and_ends_in_a_zero) {
    struct kn_buf b;
    kn_buf_init(&b, 1 << 20);
    for (int i = 0; i < 1000; i++) CHECK_INT(kn_buf_appendf(&b, "%d,", i), 0);
    CHECK_INT(b.len, 2 * 10 + 3 * 90 + 4 * 900);
    CHECK_INT(b.data[b.len], 0);
    CHECK(strncmp(b.data, "0,1,2,", 6) == 0);
    kn_buf_clear(&b);
    CHECK_INT(kn_buf_appends(&b, "x"), 0);
    CHECK_STR(b.data, "x");
    kn_buf_fini(&b);
    CHECK(b.data == NULL);
}

TEST(buffer_refuses_to_grow_past_its_maximum_and_stays_as_it_was) {
    struct kn_buf b;
    kn_buf_init(&b, 5);
    CHECK_INT(kn_buf_appends(&b, "abc"), 0);
    CHECK_INT(kn_buf_appends(&b, "def"), KN_ELIMIT);
    CHECK_INT(kn_buf_appendf(&b, "%d", 100), KN_ELIMIT);
    CHECK_INT(kn_buf_append(&b, "x", SIZE_MAX), KN_ELIMIT);
    CHECK_STR(b.data, "abc");
    CHECK_INT(kn_buf_appendf(&b, "%d", 10), 0);
    CHECK_STR(b.data, "abc10");
    CHECK_INT(kn_buf_append(&b, "", 0), 0);
    kn_buf_fini(&b);
}

TEST(buffer_without_a_maximum_is_possible_and_reserved_room_is_usable) {
    struct kn_buf b;
    void *room;
    kn_buf_init(&b, SIZE_MAX);
    CHECK_INT(kn_buf_reserve(&b, 300, &room), 0);
    memset(room, 'r', 300);
    b.len += 300;
    CHECK_INT(kn_buf_appends(&b, "!"), 0);
    CHECK_INT(b.data[299], 'r');
    CHECK_STR(b.data + 300, "!");
    kn_buf_fini(&b);
}

TEST(clocks_do_not_run_backwards) {
    uint64_t us = kn_clock_us(), ms = kn_clock_ms();
    for (int i = 0; i < 1000; i++) {
        uint64_t now = kn_clock_us();
        CHECK(now >= us);
        us = now;
    }
    CHECK(kn_clock_ms() >= ms);
    CHECK(kn_wall_ms() > 1600000000000u); /* after 2020 */
}

/* What one call writes to standard error. */
static void log_capture(char *out, size_t out_max, enum kn_log_level level, const char *text) {
    int ends[2], saved = dup(STDERR_FILENO);
    CHECK(pipe(ends) == 0);
    dup2(ends[1], STDERR_FILENO);
    kn_log(level, "%s", text);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(ends[1]);
    size_t len = 0;
    ssize_t got;
    while ((got = read(ends[0], out + len, out_max - 1 - len)) > 0) len += (size_t)got;
    close(ends[0]);
    out[len] = '\0';
}

TEST(log_line_names_time_level_and_process) {
    char line[4096];
    kn_log_init("coordinator", KN_LOG_INFO);
    log_capture(line, sizeof line, KN_LOG_INFO, "lease_expired batch=7");
    CHECK_STR(line + strlen("2026-01-01T00:00:00.000Z "), "info  coordinator: lease_expired batch=7\n");
    CHECK_INT(line[10], 'T');
    CHECK_INT(line[23], 'Z');
}

TEST(log_below_the_level_is_silent) {
    char line[4096];
    kn_log_init("t", KN_LOG_WARN);
    log_capture(line, sizeof line, KN_LOG_INFO, "no");
    CHECK_STR(line, "");
    log_capture(line, sizeof line, KN_LOG_ERROR, "yes");
    CHECK(strstr(line, "yes") != NULL);
}

TEST(log_text_cannot_forge_a_line_and_errno_survives) {
    char line[8192], huge[5000];
    kn_log_init("t", KN_LOG_INFO);
    errno = 42;
    log_capture(line, sizeof line, KN_LOG_INFO, "a\nerror fake \x1b[2J");
    CHECK_INT(errno, 42);
    CHECK(strstr(line, "a\\x0aerror fake \\x1b[2J\n") != NULL);
    memset(huge, 'h', sizeof huge);
    huge[sizeof huge - 1] = '\0';
    log_capture(line, sizeof line, KN_LOG_INFO, huge);
    size_t len = strlen(line);
    CHECK(len < 3000 && len > 1000);
    CHECK_STR(line + len - 5, "h...\n");
}

/* Standard error goes into a file that is opened to append, as a supervisor does it; its text, to be freed. */
static int log_before = -1;
static char log_path[] = "/tmp/kn-log-XXXXXX";

static void log_to_file(void) {
    strcpy(log_path, "/tmp/kn-log-XXXXXX");
    int fd = mkstemp(log_path);
    CHECK(fd >= 0 && fcntl(fd, F_SETFL, O_APPEND) == 0);
    log_before = dup(STDERR_FILENO);
    dup2(fd, STDERR_FILENO);
    close(fd);
}

static char *log_text(const char *path) {
    FILE *f = fopen(path, "r");
    char *text = calloc(1, 8 << 20);
    CHECK(f && text);
    CHECK(fread(text, 1, (8 << 20) - 1, f) < (8 << 20) - 1);
    fclose(f);
    return text;
}

static void log_back(void) {
    dup2(log_before, STDERR_FILENO);
    close(log_before);
    unlink(log_path);
}

static size_t count_of(const char *text, const char *word) {
    size_t n = 0;
    for (const char *p = text; (p = strstr(p, word)); p += strlen(word)) n++;
    return n;
}

TEST(promise_bounds_a_kind_of_line_and_a_peer_have_a_rate_and_the_rest_is_counted) {
    kn_log_init("t", KN_LOG_INFO);
    log_to_file();
    for (int i = 0; i < 12365; i++) kn_warn_of(7, "hostile_frame number=%d", i);
    for (int i = 0; i < 3; i++) kn_warn_of(8, "other_frame number=%d", i);
    for (int i = 0; i < LOG_KIND_MAX + 5; i++) kn_info("many_of_these number=%d", i);
    kn_log_flush(true);
    char *text = log_text(log_path);
    log_back();
    CHECK_U64(count_of(text, "hostile_frame number"), LOG_PEER_MAX);
    CHECK_U64(count_of(text, "log_left_out kind=hostile_frame peer=0000000000000007 and 12,345 more"), 1);
    CHECK_U64(count_of(text, "other_frame number"), 3);
    CHECK_U64(count_of(text, "many_of_these number"), LOG_KIND_MAX);
    CHECK_U64(count_of(text, "kind=many_of_these peer=0000000000000000 and 5 more"), 1);
    free(text);
}

TEST(promise_bounds_a_log_file_is_moved_away_when_it_is_large_and_begun_anew) {
    char old[64];
    struct stat st;
    kn_log_init("t", KN_LOG_INFO);
    log_to_file();
    kn_log_rotate(50000);
    for (int i = 0; i < 1900; i++) kn_info("a_line_of_some_length number=%d", i);
    kn_log_rotate(0);
    log_back(); /* unlinks the newer */
    snprintf(old, sizeof old, "%s.1", log_path);
    CHECK_INT(stat(old, &st), 0);
    CHECK_MSG(st.st_size >= 50000 && st.st_size < 80000, "%lld", (long long)st.st_size);
    unlink(old);
}

TEST(log_levels_parse_by_name_only) {
    enum kn_log_level level = KN_LOG_ERROR;
    CHECK_INT(kn_log_level_parse("debug", &level), 0);
    CHECK_INT(level, KN_LOG_DEBUG);
    CHECK_INT(kn_log_level_parse("Debug", &level), KN_EINVAL);
    CHECK_INT(kn_log_level_parse("", &level), KN_EINVAL);
}

TEST(utf8_accepts_what_rfc_3629_does_and_nothing_else) {
    static const struct {
        const char *text;
        size_t good;
    } cases[] = {
        {"", 0},
        {"plain", 5},
        {"\xc3\xa4", 2},
        {"\xe2\x82\xac", 3},
        {"\xf0\x9f\x90\x88", 4},
        {"\xf4\x8f\xbf\xbf", 4},
        {"a\x80", 1},                    /* a lone continuation */
        {"a\xc3", 1},                    /* cut short */
        {"a\xe2\x82", 1},                /* cut short */
        {"a\xf0\x9f\x90", 1},            /* cut short */
        {"\xc0\xaf", 0},                 /* overlong '/' */
        {"\xc1\xbf", 0},                 /* overlong */
        {"\xe0\x9f\xbf", 0},             /* overlong */
        {"\xf0\x8f\xbf\xbf", 0},         /* overlong */
        {"\xed\xa0\x80", 0},             /* a surrogate */
        {"\xf4\x90\x80\x80", 0},         /* past U+10FFFF */
        {"\xf5\x80\x80\x80", 0},         /* no such lead */
        {"ok\xe2\x28\xa1", 2},           /* a wrong second byte */
        {"ok\xf0\x9f\x28\x88", 2},       /* a wrong third byte */
        {"\xed\x9f\xbf\xee\x80\x80", 6}, /* around the surrogates */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_MSG(kn_utf8_span(cases[i].text, strlen(cases[i].text)) == cases[i].good, "case %zu", i);
    CHECK_INT(kn_utf8_span("a\0b", 3), 3);
}

TEST(utf8_is_cut_between_characters) {
    CHECK_INT(kn_utf8_cut("a\xe2\x82\xac", 4, 10), 4);
    CHECK_INT(kn_utf8_cut("a\xe2\x82\xac", 4, 3), 1);
    CHECK_INT(kn_utf8_cut("a\xe2\x82\xac", 4, 2), 1);
    CHECK_INT(kn_utf8_cut("a\xe2\x82\xac", 4, 1), 1);
    CHECK_INT(kn_utf8_cut("\xe2\x82\xac", 3, 2), 0);
}
