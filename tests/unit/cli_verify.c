/* kiln verify: each fault is made in a folder that is right, and is found, alone, with its words. */
#include "tests/unit/cli_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <zlib.h>

#include "cli/commands/commands.h"
#include "cli/folder/manifest.h"
#include "cli/folder/verify.h"

static struct verify_report report;

static void verify_now(void) {
    struct kn_err err = {0};
    verify_report_fini(&report);
    CHECK_MSG(verify_folder(trial_out, 2, &report, &err) == KN_OK, "%s", err.text);
}

/* "manifest.jsonl:2: words" or "images/000001.png: words". */
static const char *fault(size_t i) {
    static char text[2048];
    if (i >= report.fault_count) return "(no such fault)";
    const struct verify_fault *f = &report.faults[i];
    if (f->line)
        snprintf(text, sizeof text, "%s:%u: %s", f->file, f->line, f->text);
    else
        snprintf(text, sizeof text, "%s: %s", f->file, f->text);
    return text;
}

static void expect_only(const char *want) {
    verify_now();
    for (size_t i = 1; i < report.fault_count; i++) fprintf(stderr, "also: %s\n", fault(i));
    CHECK_STR(fault(0), want);
    CHECK_INT(report.fault_count, 1);
}

static void write_text(const char *name, const char *text) {
    char path[512];
    trial_path(name, path);
    CHECK(unlink(path) == 0 || errno == ENOENT); /* never through a link into the farm */
    trial_write(path, text, strlen(text));
}

/* In line `number` of the manifest, `from` becomes `to`. */
static void edit(size_t number, const char *from, const char *to) {
    char *m = trial_read("manifest.jsonl"), *line = m;
    for (; number > 1; number--) line = strchr(line, '\n') + 1;
    char *at = strstr(line, from), *out = NULL;
    CHECK_MSG(at && at < strchr(line, '\n'), "%s", from);
    CHECK(asprintf(&out, "%.*s%s%s", (int)(at - m), m, to, at + strlen(from)) > 0);
    write_text("manifest.jsonl", out);
    free(out);
    free(m);
}

static void put_picture(size_t i, const void *data, size_t len) {
    char name[32], path[512];
    folder_file_name((uint32_t)i, name);
    trial_path(name, path);
    unlink(path);
    trial_write(path, data, len);
}

/* Replaces picture i, and what its line says of its bytes (and of its pixels, if `pixels`). */
static void replace_picture(size_t i, const void *png, size_t len, const uint8_t *pixels) {
    char hex[KN_SHA256_HEX], from[200], to[200];
    kn_digest sha;
    put_picture(i, png, len);
    kn_sha256(png, len, sha);
    char *m = trial_read("manifest.jsonl"), *line = m;
    for (size_t k = 0; k < i; k++) line = strchr(line, '\n') + 1;
    snprintf(from, sizeof from, "%.75s", strstr(line, "\"sha256\":"));
    kn_hex(sha, sizeof sha, hex);
    snprintf(to, sizeof to, "\"sha256\":\"%s\"", hex);
    edit(i + 1, from, to);
    if (pixels) {
        snprintf(from, sizeof from, "%.82s", strstr(line, "\"pixels_sha256\":"));
        kn_hex(pixels, sizeof(kn_digest), hex);
        snprintf(to, sizeof to, "\"pixels_sha256\":\"%s\"", hex);
        edit(i + 1, from, to);
    }
    free(m);
}

TEST(a_folder_that_is_right_has_no_fault) {
    trial_finished(5, true);
    verify_now();
    CHECK_STR(fault(0), "(no such fault)");
    CHECK_INT(report.count, 5);
    CHECK_INT(report.done, 4);
    CHECK_INT(report.failed, 1);
    CHECK(!report.busy);
}

TEST(a_path_that_is_no_folder_is_bad_usage) {
    struct kn_err err = {0};
    CHECK_INT(verify_folder("/nowhere/at/all", 1, &report, &err), KN_EINVAL);
    CHECK_STR(err.text, "/nowhere/at/all: No such file or directory");
    CHECK_INT(verify_folder("/etc/passwd", 1, &report, &err), KN_EINVAL);
    CHECK_STR(err.text, "/etc/passwd: is not a folder");
    CHECK_INT(cli_exit_for(KN_EINVAL), CLI_BAD_INPUT);
}

/* ---- batch.json ---- */

TEST(batch_json_that_is_not_there) {
    char path[512];
    trial_finished(2, false);
    trial_path("batch.json", path);
    CHECK_INT(unlink(path), 0);
    expect_only("batch.json: is not there");
}

TEST(batch_json_that_is_no_object) {
    trial_finished(2, false);
    write_text("batch.json", "[1]\n");
    expect_only("batch.json: is not a JSON object");
}

TEST(batch_json_without_a_count) {
    trial_finished(2, false);
    write_text("batch.json", "{\"models\":[]}\n");
    expect_only("batch.json: count: is not a number of images");
}

TEST(a_count_that_is_larger_than_the_manifest) {
    trial_finished(2, false);
    write_text("batch.json", "{\"count\":5,\"models\":[]}\n");
    expect_only("manifest.jsonl: images 2 to 4 have no line");
}

TEST(a_count_that_is_smaller_than_the_manifest) {
    trial_finished(2, true);
    write_text("batch.json", "{\"count\":1,\"models\":[]}\n");
    expect_only("manifest.jsonl:2: index: 1, but batch.json counts 1 images");
}

TEST(a_model_that_the_batch_has_not_pinned) {
    char text[200], hex[KN_SHA256_HEX];
    kn_digest other = {1};
    trial_finished(1, false);
    kn_hex(other, sizeof other, hex);
    snprintf(text, sizeof text, "{\"count\":1,\"models\":[{\"name\":\"tiny\",\"sha256\":\"%s\"}]}\n", hex);
    write_text("batch.json", text);
    expect_only("manifest.jsonl:1: model_sha256: is none of batch.json's models");
}

/* ---- manifest.jsonl ---- */

TEST(a_manifest_that_is_not_there) {
    char path[512];
    trial_finished(1, true);
    trial_path("manifest.jsonl", path);
    CHECK_INT(unlink(path), 0);
    expect_only("manifest.jsonl: is not there");
}

TEST(a_line_that_is_gone) {
    trial_finished(3, true);
    char *m = trial_read("manifest.jsonl");
    *(strrchr(m, '{')) = '\0'; /* the last, failed one: it has no picture that would be stray */
    write_text("manifest.jsonl", m);
    free(m);
    expect_only("manifest.jsonl: image 2 has no line");
}

TEST(a_line_that_stands_twice) {
    trial_finished(2, true);
    char *m = trial_read("manifest.jsonl"), *twice = NULL;
    CHECK(asprintf(&twice, "%s%s", m, strchr(m, '\n') + 1) > 0);
    write_text("manifest.jsonl", twice);
    free(m);
    free(twice);
    expect_only("manifest.jsonl:3: index: 1 again, line 2 has it");
}

TEST(lines_that_changed_places) {
    trial_finished(3, false);
    char *m = trial_read("manifest.jsonl"), *out = NULL;
    char *second = strchr(m, '\n') + 1, *third = strchr(second, '\n') + 1;
    CHECK(asprintf(&out, "%.*s%s%.*s", (int)(second - m), m, third, (int)(third - second), second) > 0);
    write_text("manifest.jsonl", out);
    free(out);
    free(m);
    expect_only("manifest.jsonl:3: index: 1 comes after 2");
}

TEST(a_manifest_that_was_cut) {
    trial_finished(2, false);
    char *m = trial_read("manifest.jsonl");
    m[strlen(m) - 1] = '\0';
    write_text("manifest.jsonl", m);
    free(m);
    expect_only("manifest.jsonl:2: has no newline at its end: the file was cut");
}

TEST(a_line_that_is_no_json) {
    trial_finished(2, true);
    edit(2, "{\"index\"", "{index");
    verify_now();
    CHECK_INT(report.fault_count, 2);
    CHECK_STR(fault(0), "manifest.jsonl:2: is not a JSON object");
    CHECK_STR(fault(1), "manifest.jsonl: image 1 has no line");
}

TEST(a_line_with_something_behind_its_object) {
    trial_finished(2, true);
    edit(2, "\"extra\":null}", "\"extra\":null} {}");
    verify_now();
    CHECK_STR(fault(0), "manifest.jsonl:2: is not a JSON object");
}

TEST(every_field_that_is_missing_is_named) {
    static const char *const fields[] = {
        "status",   "prompt",        "negative", "seed",         "sampler",   "schedule", "steps", "cfg",
        "width",    "height",        "model",    "model_sha256", "backend",   "engine",   "key",   "file",
        "\"sha256", "pixels_sha256", "worker",   "attempt",      "render_ms", "error",    "extra"};
    for (size_t k = 0; k < sizeof fields / sizeof *fields; k++) {
        char from[40], to[40], want[100];
        const char *name = fields[k] + (fields[k][0] == '"');
        trial_finished(1, true);
        snprintf(from, sizeof from, "\"%s\":", name);
        snprintf(to, sizeof to, "\"x%s\":", name);
        edit(1, from, to);
        verify_now();
        snprintf(want, sizeof want, "manifest.jsonl:1: %s: is missing", name);
        CHECK_STR(fault(0), want);
    }
}

TEST(fields_of_another_type_or_range_are_named) {
    static const struct {
        const char *from, *to, *want;
    } cases[] = {
        {"\"status\":\"failed\"", "\"status\":\"well\"", "status: is none of done, failed, cancelled"},
        {"\"prompt\":\"a red circle\"", "\"prompt\":null", "prompt: is not text"},
        {"\"seed\":7", "\"seed\":\"7\"", "seed: is not a whole number"},
        {"\"seed\":7", "\"seed\":-7", "seed: is out of range"},
        {"\"steps\":20", "\"steps\":0", "steps: 0 is not between 1 and 1000"},
        {"\"cfg\":7.3", "\"cfg\":\"7.3\"", "cfg: is not a number"},
        {"\"error\":\"out of luck\"", "\"error\":null", "error: failed without a reason"},
        {"\"file\":null", "\"file\":\"images/000000.png\"", "file: an image that is failed has none"},
        {"\"extra\":null", "\"extra\":[]", "extra: is not an object"},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        char want[200];
        trial_finished(1, true);
        edit(1, cases[k].from, cases[k].to);
        verify_now();
        snprintf(want, sizeof want, "manifest.jsonl:1: %s", cases[k].want);
        CHECK_STR(fault(0), want);
    }
}

TEST(a_done_line_names_its_own_file) {
    trial_finished(2, false);
    edit(2, "images/000001.png", "../000001.png");
    verify_now();
    CHECK_STR(fault(0), "manifest.jsonl:2: file: is not a picture's name in images/");
}

TEST(a_setting_that_was_changed_does_not_fit_its_key) {
    static const char *const edits[][2] = {{"\"seed\":7", "\"seed\":8"},
                                           {"\"prompt\":\"a red", "\"prompt\":\"a blue"},
                                           {"\"cfg\":7.3", "\"cfg\":7.4"},
                                           {"\"steps\":20", "\"steps\":21"},
                                           {"\"negative\":\"\"", "\"negative\":\"x\""},
                                           {"\"sampler\":\"Euler a\"", "\"sampler\":\"Euler\""},
                                           {"\"schedule\":\"karras\"", "\"schedule\":\"normal\""}};
    for (size_t k = 0; k < sizeof edits / sizeof *edits; k++) {
        trial_finished(1, false);
        edit(1, edits[k][0], edits[k][1]);
        expect_only("manifest.jsonl:1: key: is not that of this line's settings");
    }
}

/* ---- pictures ---- */

TEST(a_picture_that_is_gone) {
    char path[512];
    trial_finished(3, false);
    trial_path("images/000001.png", path);
    CHECK_INT(unlink(path), 0);
    expect_only("images/000001.png:2: is not there");
}

TEST(a_picture_whose_bytes_changed) {
    trial_finished(2, false);
    size_t len;
    kn_digest pixels;
    void *png = trial_png(99, 16, 24, PNG_FORMAT_RGB, &len, pixels);
    put_picture(1, png, len);
    free(png);
    expect_only("images/000001.png:2: has another SHA-256 than its line says; its pixels are others");
}

TEST(a_picture_that_was_cut) {
    trial_finished(2, false);
    size_t len;
    kn_digest pixels;
    void *png = trial_png(8, 16, 24, PNG_FORMAT_RGB, &len, pixels);
    put_picture(1, png, len / 2);
    free(png);
    verify_now();
    CHECK_INT(report.fault_count, 1);
    CHECK_INT(
        strncmp(fault(0),
                "images/000001.png:2: has another SHA-256 than its line says, and does not decode: ", 82),
        0);
}

TEST(a_picture_with_one_bit_flipped_says_so) {
    trial_finished(1, false);
    size_t len;
    kn_digest pixels;
    uint8_t *png = trial_png(7, 16, 24, PNG_FORMAT_RGB, &len, pixels);
    png[len / 2] ^= 1;
    put_picture(0, png, len);
    free(png);
    verify_now();
    CHECK_INT(report.fault_count, 1);
    CHECK(strstr(fault(0), "and does not decode: ") != NULL);
}

TEST(a_picture_with_other_words_and_the_same_pixels_says_so) {
    trial_finished(1, false);
    size_t len;
    kn_digest pixels;
    /* an empty tEXt chunk "a\0" before IEND, the last 12 bytes */
    static const uint8_t chunk[] = {0, 0, 0, 2, 't', 'E', 'X', 't', 'a', 0, 0xf1, 0x23, 0xd0, 0x6c};
    uint8_t *png = trial_png(7, 16, 24, PNG_FORMAT_RGB, &len, pixels), *more = malloc(len + sizeof chunk);
    CHECK(more != NULL);
    memcpy(more, png, len - 12);
    memcpy(more + len - 12, chunk, sizeof chunk);
    memcpy(more + len - 12 + sizeof chunk, png + len - 12, 12);
    uLong crc = crc32(0, chunk + 4, 6);
    for (int k = 0; k < 4; k++) more[len - 12 + 10 + (size_t)k] = (uint8_t)(crc >> (24 - 8 * k));
    put_picture(0, more, len + sizeof chunk);
    free(more);
    free(png);
    expect_only("images/000000.png:1: has another SHA-256 than its line says; its pixels are the same");
}

TEST(a_picture_of_another_size) {
    trial_finished(1, false);
    size_t len;
    kn_digest pixels;
    void *png = trial_png(7, 16, 16, PNG_FORMAT_RGB, &len, pixels);
    replace_picture(0, png, len, pixels);
    free(png);
    expect_only("images/000000.png:1: is 16x16, its line says 16x24");
}

TEST(a_picture_with_pixels_that_its_line_does_not_name) {
    trial_finished(1, false);
    size_t len;
    kn_digest pixels;
    void *png = trial_png(99, 16, 24, PNG_FORMAT_RGB, &len, pixels);
    replace_picture(0, png, len, NULL);
    free(png);
    expect_only("images/000000.png:1: has another pixels_sha256 than its line says");
}

TEST(a_picture_that_is_not_rgb) {
    trial_finished(1, false);
    size_t len;
    kn_digest pixels;
    void *png = trial_png(7, 16, 24, PNG_FORMAT_GRAY, &len, pixels);
    replace_picture(0, png, len, pixels);
    free(png);
    expect_only("images/000000.png:1: does not decode: it is not 8-bit RGB without interlace");
}

TEST(a_picture_with_something_behind_its_end) {
    trial_finished(1, false);
    size_t len;
    kn_digest pixels;
    uint8_t *png = trial_png(7, 16, 24, PNG_FORMAT_RGB, &len, pixels), *more = calloc(1, len + 3);
    CHECK(more != NULL);
    memcpy(more, png, len);
    replace_picture(0, more, len + 3, NULL);
    free(more);
    free(png);
    expect_only("images/000000.png:1: does not decode: something stands behind the picture's end");
}

TEST(a_picture_that_is_a_link_to_elsewhere) {
    char path[512], to[512];
    trial_finished(1, false);
    trial_path("images/000000.png", path);
    trial_path("moved.png", to);
    CHECK_INT(rename(path, to), 0);
    CHECK_INT(symlink("../moved.png", path), 0);
    expect_only("images/000000.png:1: is not a regular file");
}

TEST(a_file_that_no_line_speaks_of) {
    trial_finished(2, true);
    write_text("images/000001.png", "x"); /* a failed image has none */
    write_text("images/000007.png", "x");
    write_text("images/1.png", "x");
    write_text("images/.DS_Store", "x");
    verify_now();
    CHECK_INT(report.fault_count, 3);
    CHECK_STR(fault(0), "images/000001.png: no done line of manifest.jsonl speaks of it");
    CHECK_STR(fault(1), "images/000007.png: no done line of manifest.jsonl speaks of it");
    CHECK_STR(fault(2), "images/1.png: no done line of manifest.jsonl speaks of it");
}

TEST(a_folder_at_work_is_said_to_be) {
    static struct folder o;
    trial_begin();
    trial_ask(2, 7);
    trial_open(&o, 2, NULL);
    trial_take(&o, 0, KN_RESULT_DONE, "");
    struct kn_err err = {0};
    CHECK_INT(folder_flush(&o, true, &err), KN_OK);
    expect_only("manifest.jsonl: image 1 has no line");
    CHECK(report.busy);
    folder_close(&o);
}

TEST(the_command_exits_2_with_faults_1_without_a_folder) {
    char path[512], *args[] = {trial_out, trial_out, NULL};
    struct cli_options o = {.args = args, .arg_count = 2, .json = true};
    int was = dup(STDOUT_FILENO), null = open("/dev/null", O_WRONLY);
    CHECK(was >= 0 && null >= 0);
    trial_finished(1, false);
    trial_path("images/000000.png", path);
    fflush(stdout);
    dup2(null, STDOUT_FILENO);
    int clean = cmd_verify.run(&o);
    unlink(path);
    int faulty = cmd_verify.run(&o);
    args[1] = path;
    int bad = cmd_verify.run(&o);
    fflush(stdout);
    dup2(was, STDOUT_FILENO);
    close(was);
    close(null);
    CHECK_INT(clean, CLI_DONE);
    CHECK_INT(faulty, CLI_FAILED);
    CHECK_INT(bad, CLI_BAD_INPUT);
}

/* ---- the reader of lines ---- */

TEST(a_line_that_is_too_long_is_skipped_whole) {
    char *line = malloc(MANIFEST_LINE_MAX);
    FILE *f = tmpfile();
    size_t len;
    bool ended;
    CHECK(line && f);
    for (size_t i = 0; i < MANIFEST_LINE_MAX + 10; i++) fputc('x', f);
    fputs("\nshort\n", f);
    rewind(f);
    CHECK_INT(manifest_next(f, line, &len, &ended), KN_ELIMIT);
    CHECK_INT(manifest_next(f, line, &len, &ended), 1);
    CHECK_STR(line, "short");
    CHECK_INT(manifest_next(f, line, &len, &ended), 0);
    fclose(f);
    free(line);
}

TEST(truncated_lines_are_never_read_as_whole_ones) {
    trial_finished(1, false);
    char *m = trial_read("manifest.jsonl");
    size_t len = strcspn(m, "\n");
    struct manifest_line l;
    CHECK_INT(manifest_read(m, len, &l, NULL), KN_OK);
    free(l.file);
    for (size_t n = 0; n < len; n++) CHECK_INT(manifest_read(m, n, &l, NULL), KN_EPARSE);
    free(m);
}
