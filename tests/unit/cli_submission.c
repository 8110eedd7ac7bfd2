/* From a command line to tasks: inputs read, settings applied, the farm's models found, seeds given; every
 * mistake with its file, line and field. And the line by which kiln-worker describes a model. */
#include <unistd.h>

#include "cli/args.h"
#include "cli/talk/submission.h"
#include "tests/unit/check.h"

static struct submission sub;
static struct kn_err err;
static struct cli_options o;
static char dir[64], path[128];
static char *args[2];

static struct kn_model_info two[2] = {
    {.name = "sd15",
     .sha256 = {1},
     .defaults = {KN_SAMPLER_DDIM, KN_SCHEDULE_NORMAL, 20, 7, 512, 512},
     .size_multiple = 8},
    {.name = "v8",
     .sha256 = {2},
     .defaults = {KN_SAMPLER_EULER, KN_SCHEDULE_KARRAS, 30, 5, 64, 64},
     .size_multiple = 32},
};
static const struct models one_model = {.v = two, .count = 1, .default_model = "sd15"},
                           two_models = {.v = two, .count = 2}, no_models = {.v = two};

static void remove_dir(void) {
    if (chdir("/") == 0) rmdir(dir);
}

static void given(const char *name, const char *text) {
    submission_fini(&sub);
    err = (struct kn_err){0};
    o = (struct cli_options){.images = 1, .workers = -1};
    if (!dir[0]) {
        strcpy(dir, "/tmp/kiln-test-XXXXXX");
        CHECK(mkdtemp(dir) != NULL);
        CHECK_INT(chdir(dir), 0);
        atexit(remove_dir);
    }
    if (!name) return;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    CHECK_INT(kn_fs_replace(path, text, strlen(text), false, &err), 0);
    args[0] = (char *)name;
    o.args = args;
    o.arg_count = 1;
}

static void swept(void) {
    submission_fini(&sub);
    if (path[0]) unlink(path);
    path[0] = '\0';
}

static int resolved(const struct models *farm, uint64_t seed) {
    int rc = submission_read(&o, &sub, &err);
    return rc ? rc : submission_resolve(&sub, &o, farm, seed, true, &err);
}

TEST(what_is_not_said_comes_from_the_line_then_the_options_then_the_model) {
    given("p.txt", "a cat --steps 9\na dog\n");
    o.settings = (struct kn_task){.steps = 12, .cfg = 3, .set = KN_SET_STEPS | KN_SET_CFG};
    CHECK_INT(resolved(&one_model, 70), 0);
    CHECK_INT(sub.tasks.count, 2);
    CHECK_INT(sub.tasks.v[0].steps, 9);
    CHECK_INT(sub.tasks.v[1].steps, 12);
    CHECK(sub.tasks.v[1].cfg == 3);
    CHECK_INT(sub.tasks.v[1].width, 512);
    CHECK_INT(sub.tasks.v[1].sampler, KN_SAMPLER_DDIM);
    CHECK_U64(sub.tasks.v[0].seed, 70);
    CHECK_U64(sub.tasks.v[1].seed, 70);
    CHECK_STR(sub.name, "p.txt");
    CHECK_INT(submission_keys(&sub, &err), 0);
    CHECK(memcmp(sub.keys[0], sub.keys[1], sizeof(kn_digest)) != 0);
    swept();
}

TEST(images_count_up_from_the_seed_prompt_by_prompt) {
    static const uint64_t want[] = {7, 8, 9, 100, 101, 102};
    given("p.txt", "a cat\na dog --seed 100\n");
    o.images = 3;
    CHECK_INT(resolved(&one_model, 7), 0);
    CHECK_INT(sub.tasks.count, 6);
    for (size_t i = 0; i < 6; i++) CHECK_U64(sub.tasks.v[i].seed, want[i]);
    swept();
}

TEST(lines_may_name_several_models_each_found_once) {
    given("p.jsonl",
          "{\"prompt\":\"a\",\"model\":\"v8\"}\n{\"prompt\":\"b\",\"model\":\"sd15\"}\n"
          "{\"prompt\":\"c\",\"model\":\"v8\"}\n");
    CHECK_INT(resolved(&two_models, 1), 0);
    CHECK_INT(sub.model_count, 2);
    CHECK_STR(sub.models[sub.tasks.v[0].model_index].name, "v8");
    CHECK_STR(sub.models[sub.tasks.v[1].model_index].name, "sd15");
    CHECK_INT(sub.tasks.v[2].model_index, sub.tasks.v[0].model_index);
    CHECK_INT(sub.tasks.v[2].steps, 30);
    swept();
}

TEST(mistakes_name_file_line_and_field) {
    static const struct {
        const char *name, *text, *want;
    } cases[] = {
        {"p.txt", "a cat\na dog --stesp 3\n", "p.txt:2: stesp: unknown, did you mean steps?"},
        {"p.txt", "a\nb\nc --steps 0\n", "p.txt:3: steps: 0 is not between 1 and 1000"},
        {"p.jsonl", "{\"prompt\":\"a\",\"stesp\":3}\n", "p.jsonl:1: stesp: unknown, did you mean steps?"},
        {"p.csv", "prompt,steps\na,1\nb,x\n", "p.csv:3: steps: \"x\" is not a whole number"},
        {"p.txt", "a\nb --width 100 --height 128\n", "p.txt:2: width: 100 is not a multiple of 8"},
        {"p.txt", "# none\n\n", "p.txt: no prompt in it"},
        {"p.txt", "a\nb --sd_model nosuch\n", "p.txt:2: model: nosuch is not there; this farm has sd15"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        given(cases[i].name, cases[i].text);
        CHECK_MSG(resolved(&one_model, 1) != 0, "accepted: %s", cases[i].text);
        CHECK_STR(err.text, cases[i].want);
        swept();
    }
}

TEST(a_settings_mistake_that_only_the_line_makes_wrong_names_the_line) {
    given("p.txt", "a\nb --sampler_name DDIM\n");
    o.settings = (struct kn_task){
        .schedule = KN_SCHEDULE_KARRAS, .sampler = KN_SAMPLER_EULER, .set = KN_SET_SCHEDULE | KN_SET_SAMPLER};
    CHECK(resolved(&one_model, 1) != 0);
    CHECK_STR(err.text, "p.txt:2: schedule: karras means nothing with the sampler DDIM");
    swept();
}

TEST(a_size_that_the_model_cannot_do_names_the_line) {
    given("p.jsonl", "{\"prompt\":\"a\"}\n{\"prompt\":\"b\",\"size\":\"72x64\",\"model\":\"v8\"}\n");
    o.settings = (struct kn_task){.model = (char *)"sd15", .set = KN_SET_MODEL};
    CHECK(resolved(&two_models, 1) != 0);
    CHECK_MSG(strncmp(err.text, "p.jsonl:2: ", 11) == 0, "%s", err.text);
    swept();
}

TEST(what_the_command_line_names_is_no_lines_mistake) {
    given("p.txt", "a\n");
    o.settings = (struct kn_task){.model = (char *)"nosuch", .set = KN_SET_MODEL};
    CHECK(resolved(&two_models, 1) != 0);
    CHECK_STR(err.text, "model: nosuch is not there; this farm has sd15, v8");
    swept();
    given("p.txt", "a\n");
    CHECK(resolved(&two_models, 1) != 0);
    CHECK_STR(err.text,
              "model: not given, and the one that ships, tiny, is not there; this farm has sd15, v8");
    swept();
    given("p.txt", "a\n");
    CHECK(resolved(&no_models, 1) != 0);
    CHECK(strstr(err.text, "no worker is there yet") != NULL);
    swept();
}

TEST(no_prompts_and_missing_files_are_mistakes) {
    given(NULL, NULL);
    CHECK_INT(submission_read(&o, &sub, &err), KN_EINVAL);
    CHECK_STR(err.text, "no prompts: give a file, - or -p \"text\"");
    given("p.txt", "a\n");
    args[0] = (char *)"nosuch.txt";
    CHECK(submission_read(&o, &sub, &err) != 0);
    CHECK(strncmp(err.text, "nosuch.txt: ", 12) == 0);
    swept();
}

TEST(prompts_of_the_command_line_come_behind_the_files) {
    given("p.txt", "a\n");
    o.prompts[0] = "b";
    o.prompt_count = 1;
    CHECK_INT(resolved(&one_model, 1), 0);
    CHECK_INT(sub.tasks.count, 2);
    CHECK_STR(sub.tasks.v[1].prompt, "b");
    swept();
}

/* Also on a farm that has but one model: a command's result depends on nothing but what was asked. */
TEST(without_a_model_it_is_the_one_that_ships_unless_the_farm_declares_another) {
    static struct kn_model_info v[2];
    v[0] = two[0];
    v[1] = two[1];
    struct models farm = {.v = v, .count = 1};
    given("p.txt", "a\n");
    CHECK_INT(resolved(&farm, 1), KN_EMODEL);
    CHECK_STR(err.text, "model: not given, and the one that ships, tiny, is not there; this farm has sd15");
    strcpy(v[1].name, "tiny");
    farm.count = 2;
    given("p.txt", "a\n");
    CHECK_INT(resolved(&farm, 1), 0);
    CHECK_STR(sub.models[0].name, "tiny");
    CHECK_STR(sub.default_model, "");
    strcpy(farm.default_model, "sd15");
    given("p.txt", "a\n");
    CHECK_INT(resolved(&farm, 1), 0);
    CHECK_STR(sub.models[0].name, "sd15");
    CHECK_STR(sub.default_model, "sd15"); /* which is said */
    given("p.txt", "a\n");
    o.settings = (struct kn_task){.model = (char *)"tiny", .set = KN_SET_MODEL};
    CHECK_INT(resolved(&farm, 1), 0);
    CHECK_STR(sub.models[0].name, "tiny");
    CHECK_STR(sub.default_model, "");
    strcpy(farm.default_model, "gone");
    given("p.txt", "a\n");
    CHECK_INT(resolved(&farm, 1), KN_EMODEL);
    CHECK_STR(err.text,
              "model: not given, and this farm's default, gone, is not there; this farm has sd15, tiny");
    swept();
}

TEST(the_contents_tell_the_same_input_by_another_name) {
    char first[KN_SHA256_HEX];
    given("p.txt", "a\nb --steps 3\n");
    CHECK_INT(resolved(&one_model, 1), 0);
    strcpy(first, sub.contents);
    swept();
    given("q.txt", "a\nb --steps 3\n");
    CHECK_INT(resolved(&one_model, 2), 0);
    CHECK_STR(sub.contents, first);
    swept();
    given("p.txt", "a\nb --steps 4\n");
    CHECK_INT(resolved(&one_model, 1), 0);
    CHECK(strcmp(sub.contents, first) != 0);
    swept();
}

TEST(the_source_tells_whether_the_same_is_asked_again) {
    char first[KN_SHA256_HEX];
    given("p.txt", "a\n");
    CHECK_INT(resolved(&one_model, 1), 0);
    strcpy(first, sub.source);
    swept();
    given("p.txt", "a\nb\n"); /* a file that has grown is the same source: the seeds of its lines stay */
    CHECK_INT(resolved(&one_model, 2), 0);
    CHECK_STR(sub.source, first);
    swept();
    given("q.txt", "a\n");
    CHECK_INT(resolved(&one_model, 1), 0);
    CHECK(strcmp(sub.source, first) != 0);
    swept();
}

static const char described[] =
    "{\"name\":\"tiny\",\"sha256\":\"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\","
    "\"defaults\":{\"sampler\":\"PNDM\",\"schedule\":\"normal\",\"steps\":20,\"cfg\":7.5,\"size\":\"128x96\"}"
    ","
    "\"size_multiple\":16,\"size_max\":1024}\n";

TEST(a_described_model_is_read) {
    struct kn_model_info m;
    CHECK_INT(model_parse(described, strlen(described), &m, &err), 0);
    CHECK_STR(m.name, "tiny");
    CHECK_INT(m.sha256[1], 0x11);
    CHECK_INT(m.defaults.sampler, KN_SAMPLER_PNDM);
    CHECK_INT(m.defaults.steps, 20);
    CHECK(m.defaults.cfg == 7.5f);
    CHECK_INT(m.defaults.width, 128);
    CHECK_INT(m.defaults.height, 96);
    CHECK_INT(m.size_multiple, 16);
    CHECK_INT(m.size_max, 1024);
}

TEST(a_cut_description_is_refused_wherever_it_is_cut) {
    struct kn_model_info m;
    for (size_t n = 0; n + 2 < strlen(described); n++)
        CHECK_INT(model_parse(described, n, &m, &err), KN_EPARSE);
}

TEST(a_description_without_a_needed_field_is_refused) {
    static const char *const names[] = {"name",  "sha256", "sampler", "schedule",
                                        "steps", "cfg",    "size\"",  "defaults"};
    struct kn_model_info m;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char text[sizeof described];
        strcpy(text, described);
        char *at = strstr(text, names[i]);
        CHECK(at != NULL);
        *at = 'X';
        CHECK_MSG(model_parse(text, strlen(text), &m, &err) == KN_EPARSE, "accepted without %s", names[i]);
    }
}
