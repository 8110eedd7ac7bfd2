/* Words and numbers for a person: durations, cut texts, numbers in JSON, the line of progress; and the exit
 * status of each error. */
#include "cli/cli.h"
#include "cli/print/progress.h"
#include "cli/text.h"
#include "base/utf8.h"
#include "tests/unit/check.h"

TEST(durations_are_rounded_to_two_units) {
    static const struct {
        int64_t ms;
        const char *want;
    } cases[] = {{-1, "?"},
                 {0, "0 s"},
                 {499, "0 s"},
                 {1500, "2 s"},
                 {59499, "59 s"},
                 {59500, "1 min 0 s"},
                 {200000, "3 min 20 s"},
                 {7500000, "2 h 5 min"},
                 {356400000, "4 d 3 h"},
                 {INT64_MAX - 1000, "years"}};
    char out[CLI_DURATION_MAX];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        CHECK_STR(text_duration(cases[i].ms, out), cases[i].want);
}

TEST(texts_are_cut_and_padded_by_columns_not_bytes) {
    char out[64];
    text_fit("abc", 5, 1, out, sizeof out);
    CHECK_STR(out, "abc  ");
    text_fit("abc", 5, 0, out, sizeof out);
    CHECK_STR(out, "abc");
    text_fit("abcdef", 5, 1, out, sizeof out);
    CHECK_STR(out, "abcd…");
    text_fit("äöüßé", 5, 1, out, sizeof out);
    CHECK_STR(out, "äöüßé");
    text_fit("äöüßéx", 5, 1, out, sizeof out);
    CHECK_STR(out, "äöüß…");
    text_fit("a\nb\tc", 5, 1, out, sizeof out);
    CHECK_STR(out, "a b c");
    text_fit("äöüßéäöüßé", 10, 0, out, 14); /* never a half character, never past the end */
    CHECK(strlen(out) < 14);
    text_fit("", 0, 1, out, sizeof out);
    CHECK_STR(out, "");
}

TEST(floats_are_the_shortest_that_read_back) {
    static const struct {
        float v;
        const char *want;
    } cases[] = {{7.0f, "7"}, {7.5f, "7.5"}, {0.1f, "0.1"}, {1.0f / 3, "0.33333334"}, {0, "0"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_object *o = text_json_float(cases[i].v);
        CHECK_STR(json_object_to_json_string(o), cases[i].want);
        json_object_put(o);
    }
}

TEST(progress_without_a_terminal_is_a_plain_line) {
    char out[512];
    struct progress_state s = {.total = 200, .done = 72, .failed = 2, .images_per_s = 3.14, .eta_ms = 40000};
    progress_line(&s, 0, false, out, sizeof out);
    CHECK_STR(out, " 37%  74/200  3.1 images/s  40 s left  2 failed");
    s.paused = true;
    progress_line(&s, 0, false, out, sizeof out);
    CHECK_STR(out, " 37%  74/200  3.1 images/s  paused  2 failed");
    s = (struct progress_state){.total = 10, .done = 10, .eta_ms = 0};
    progress_line(&s, 0, false, out, sizeof out);
    CHECK_STR(out, "100%  10/10");
}

TEST(progress_counts_steps_and_tells_what_is_loaded) {
    char out[512];
    struct progress_state s = {.total = 2, .progress = 0.25, .steps_per_s = 0.8, .eta_ms = 40000};
    progress_line(&s, 0, false, out, sizeof out);
    CHECK_STR(out, " 25%  0/2  0.8 steps/s  40 s left");
    s = (struct progress_state){.total = 2, .loading = "sd15", .loading_bytes = 4300000000, .eta_ms = -1};
    progress_line(&s, 0, false, out, sizeof out);
    CHECK_STR(out, "  0%  0/2  loading sd15, 4.3 GB");
}

TEST(what_would_command_a_terminal_is_spelled_out) {
    static const struct {
        const char *text, *want;
    } cases[] = {{"plain \xc3\xa4\xe2\x82\xac", "plain \xc3\xa4\xe2\x82\xac"},
                 {"\x1b[2J", "\\x1b[2J"},
                 {"a\x7f\x01", "a\\x7f\\x01"},
                 {"\xc2\x9b"
                  "31m",
                  "\\u009b31m"}, /* CSI as one C1 character */
                 {"\xe2\x80\xaegnp.exe", "\\u202egnp.exe"},
                 {"\xe2\x80\xa8x", "\\u2028x"},
                 {"\xff\xc3", "\\xff\\xc3"}};
    char out[200];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        kn_utf8_visible(cases[i].text, false, out, sizeof out);
        CHECK_STR(out, cases[i].want);
        text_fit(cases[i].text, 60, 0, out, sizeof out);
        CHECK_STR(out, cases[i].want);
    }
    kn_utf8_visible("a\nb", true, out, sizeof out);
    CHECK_STR(out, "a\nb");
    CHECK_INT(kn_utf8_visible("\x1b\x1b", false, out, 6), 4); /* never half of one */
}

TEST(each_error_has_the_status_that_the_manual_lists) {
    CHECK_INT(cli_exit_for(KN_OK), 0);
    CHECK_INT(cli_exit_for(KN_EINVAL), 1);
    CHECK_INT(cli_exit_for(KN_ENOENT), 3);
    CHECK_INT(cli_exit_for(KN_ETIMEOUT), 3);
    CHECK_INT(cli_exit_for(KN_EUNSURE), 5);
    CHECK_INT(cli_exit_for(KN_EPERM), 6);
    CHECK_INT(cli_exit_for(KN_ECANCELED), 130);
}

TEST(a_bar_fits_the_columns_that_there_are) {
    char out[512];
    struct progress_state s = {.total = 8, .done = 2, .images_per_s = 1, .eta_ms = 6000};
    for (int columns = 1; columns < 120; columns++) {
        progress_line(&s, columns, false, out, sizeof out);
        bool bar = strchr(out, '[') != NULL;
        CHECK_MSG(!bar || (int)strlen(out) <= columns, "%d columns: %s", columns, out);
        CHECK_MSG(bar == (columns >= 43), "%d columns: %s", columns, out);
    }
    progress_line(&s, 79, false, out, sizeof out);
    CHECK_STR(out, " 25% [#######.......................] 2/8  1.0 images/s  6 s left");
    progress_line(&s, 79, true, out, sizeof out);
    CHECK_STR(out, " 25% ▕███████▌                      ▏ 2/8  1.0 images/s  6 s left");
}

TEST(every_code_has_its_exit_status) {
    CHECK_INT(cli_exit_for(KN_OK), 0);
    CHECK_INT(cli_exit_for(KN_EINVAL), 1);
    CHECK_INT(cli_exit_for(KN_EPARSE), 1);
    CHECK_INT(cli_exit_for(KN_EMODEL), 1);
    CHECK_INT(cli_exit_for(KN_EIO), 2);
    CHECK_INT(cli_exit_for(KN_ENOENT), 3);
    CHECK_INT(cli_exit_for(KN_ETIMEOUT), 3);
    CHECK_INT(cli_exit_for(KN_ECANCELED), 130);
}
