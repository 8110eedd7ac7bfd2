/* Names of pictures: from patterns and columns to what every file system takes. */
#include <stdlib.h>
#include <string.h>

#include "cli/folder/images.h"
#include "cli/folder/names.h"
#include "tests/unit/check.h"

#define TASKS_MAX 4

static struct kn_task tasks[TASKS_MAX];
static kn_digest keys[TASKS_MAX];
static struct kn_model_info model;
static struct kn_err err;
static char **names;

static void ask(size_t count, const char *const *prompts, const char *const *extras) {
    static char none[] = "";
    strcpy(model.name, "tiny");
    for (size_t i = 0; i < count; i++) {
        tasks[i] = (struct kn_task){.prompt = (char *)(uintptr_t)prompts[i],
                                    .negative = none,
                                    .extra = extras ? (char *)(uintptr_t)extras[i] : NULL,
                                    .seed = 7 + i,
                                    .cfg = 7.5f,
                                    .steps = 20,
                                    .width = 16,
                                    .height = 24,
                                    .line = (uint32_t)i + 3,
                                    .sampler = KN_SAMPLER_EULER_A,
                                    .schedule = KN_SCHEDULE_KARRAS,
                                    .set = KN_SET_ALL};
        memset(keys[i], (int)i, sizeof keys[i]);
    }
}

/* The name of one image with that prompt. */
static void expect(const char *pattern, const char *prompt, const char *extra, const char *want) {
    ask(1, &prompt, extra ? &extra : NULL);
    int rc = names_make(pattern, &(struct kn_tasks){.v = tasks, .count = 1}, (const kn_digest *)keys, &model,
                        1, &names, &err);
    CHECK_MSG(rc == KN_OK, "%s", err.text);
    CHECK(names != NULL);
    CHECK_STR(names[0], want);
    CHECK(folder_file_is_safe(names[0]));
    names_free(names, 1);
}

static void expect_refused(const char *pattern, const char *words) {
    static const char *const prompts[] = {"a", "b"};
    ask(2, prompts, NULL);
    CHECK(names_make(pattern, &(struct kn_tasks){.v = tasks, .count = 2}, (const kn_digest *)keys, &model, 2,
                     &names, &err) < 0);
    CHECK_MSG(strstr(err.text, words) != NULL, "%s", err.text);
}

TEST(fields_of_the_manifest_make_names) {
    expect("{index:06}-{seed}-{prompt:40}", "a red circle", NULL, "images/000000-7-a red circle.png");
    expect("{seed:4}_{steps}_{cfg}_{width}x{height}", "p", NULL, "images/0007_20_7.5_16x24.png");
    expect("{sampler}, {schedule}, {model}", "p", NULL, "images/Euler a, karras, tiny.png");
    expect("{key:8}", "p", NULL, "images/00000000.png");
    expect("{{{seed}}}", "p", NULL, "images/{7}.png");
    expect("{prompt}.PNG", "p", NULL, "images/p.png");
}

TEST(columns_of_the_input_make_names) {
    static const char extra[] = "{\"Category\":\"Shapes\",\"n\":5,\"seed\":\"mine\",\"none\":null}";
    expect("{Category}-{n:03}", "p", extra, "images/Shapes-005.png");
    expect("{extra.category:3}", "p", extra, "images/Sha.png");
    expect("{seed}-{extra.seed}", "p", extra, "images/7-mine.png");
    expect("x{none}", "p", extra, "images/x.png");
}

TEST(a_column_file_names_the_picture) {
    static const char *const prompts[] = {"a", "b", "c"};
    static const char *const extras[] = {"{\"file\":\"cats/tom.png\"}", "{\"File\":\"jerry\"}", NULL};
    ask(3, prompts, extras);
    CHECK_INT(names_make(NULL, &(struct kn_tasks){.v = tasks, .count = 3}, (const kn_digest *)keys, &model, 3,
                         &names, &err),
              KN_OK);
    CHECK_STR(names[0], "images/cats_tom.png");
    CHECK_STR(names[1], "images/jerry.png");
    CHECK_STR(names[2], "images/000002.png");
    names_free(names, 3);
    ask(1, prompts, NULL);
    CHECK_INT(names_make(NULL, &(struct kn_tasks){.v = tasks, .count = 1}, (const kn_digest *)keys, &model, 1,
                         &names, &err),
              KN_OK);
    CHECK(names == NULL); /* numbers, as ever */
}

TEST(a_name_is_safe_on_every_file_system) {
    expect("{prompt}", "../../etc/passwd", NULL, "images/_._.._etc_passwd.png");
    expect("../{prompt}", "x", NULL, "images/_._x.png");
    expect("{prompt}", "a\\b:c*d?e\"f<g>h|i", NULL, "images/a_b_c_d_e_f_g_h_i.png");
    expect("{prompt}", "one\ntwo\x1b[31m\x7f!", NULL, "images/one two [31m !.png");
    expect("{prompt}", "left\xe2\x80\xae right", NULL, "images/left  right.png");
    expect("{prompt}", "  trailing. . ", NULL, "images/trailing.png");
    expect("{prompt}", "...", NULL, "images/_.png");
    expect("{prompt}", ".hidden", NULL, "images/_hidden.png");
    static const char *const reserved[] = {"con", "NUL", "Aux.txt", "com1", "LPT9 .x", "COM\xc2\xb9", NULL};
    for (size_t i = 0; reserved[i]; i++) {
        char want[64];
        snprintf(want, sizeof want, "images/_%s.png", reserved[i]);
        expect("{prompt}", reserved[i], NULL, want);
    }
    expect("{prompt}", "console", NULL, "images/console.png");
    expect("{prompt}", "e\xcc\x81t\xc3\xa9", NULL, "images/\xc3\xa9t\xc3\xa9.png"); /* NFC */
}

TEST(a_name_is_cut_at_a_character_and_has_255_bytes_at_most) {
    expect("{prompt:3}", "\xc3\xa4\xc3\xb6\xc3\xbc\xc3\x9f", NULL, "images/\xc3\xa4\xc3\xb6\xc3\xbc.png");
    expect("{prompt:2}", "x\xcc\xa3q\xcc\xa3z", NULL,
           "images/x\xcc\xa3q\xcc\xa3.png"); /* no accent is lost */
    char prompt[1201], want[300];
    for (size_t i = 0; i < 600; i++) memcpy(prompt + 2 * i, "\xc3\xa4", 2);
    prompt[1200] = '\0';
    snprintf(want, sizeof want, "images/%.250s.png",
             prompt); /* 125 characters; the 126th would be cut in two */
    expect("{prompt}", prompt, NULL, want);
}

TEST(two_images_with_one_name_are_refused_with_both) {
    expect_refused("{model}", "images 0 and 1 (lines 3 and 4) would have the same name: images/tiny.png");
    static const char *const prompts[] = {
        "Stra\xc3\x9f"
        "e",
        "STRASSE"};
    ask(2, prompts, NULL);
    CHECK_INT(names_make("{prompt}", &(struct kn_tasks){.v = tasks, .count = 2}, (const kn_digest *)keys,
                         &model, 2, &names, &err),
              KN_EINVAL);
    CHECK_MSG(strstr(err.text, "differ in case alone") != NULL, "%s", err.text);
    CHECK_MSG(strstr(err.text, "lines 3 and 4") != NULL, "%s", err.text);
}

TEST(a_pattern_that_cannot_be_is_refused_with_words) {
    expect_refused("{sha256}", "known only when an image has been rendered");
    expect_refused("{nosuch}-{index}", "{nosuch} is neither a field");
    expect_refused("{index:x}", "behind the colon stands a number from 1 to 255");
    expect_refused("{index:999}", "from 1 to 255");
    expect_refused("{index", "a brace without its other");
    expect_refused("index}", "a brace without its other");
    expect_refused("{}", "names no field");
}
