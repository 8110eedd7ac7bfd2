/* The command line: what is accepted, and what each mistake is answered with. */
#include "cli/commands/commands.h"
#include "cli/commands/on_done.h"
#include "tests/unit/check.h"

#define ARGS_MAX 16

static struct cli_options got;
static struct kn_err err;
static char *argv_now[ARGS_MAX + 1], copy[1024];

/* "render\0--steps\0…" as one string with '|' between the words. */
static int parse(const char *words) {
    int argc = 0;
    snprintf(copy, sizeof copy, "%s", words);
    for (char *p = copy; p && argc < ARGS_MAX;) {
        argv_now[argc++] = p;
        p = strchr(p, '|');
        if (p) *p++ = '\0';
    }
    argv_now[argc] = NULL;
    err = (struct kn_err){0};
    return cli_parse(command_find(argv_now[0]), argc, argv_now, &got, &err);
}

TEST(options_stand_anywhere_and_take_their_value_either_way) {
    CHECK_INT(parse("render|a.txt|--steps=30|-o|out|--seed|18446744073709551615|b.txt|--size=128x64|--json"),
              0);
    CHECK_INT(got.arg_count, 2);
    CHECK_STR(got.args[0], "a.txt");
    CHECK_STR(got.args[1], "b.txt");
    CHECK_STR(got.out, "out");
    CHECK_INT(got.settings.steps, 30);
    CHECK_U64(got.settings.seed, UINT64_MAX);
    CHECK(got.has_seed && got.json);
    CHECK_INT(got.settings.width, 128);
    CHECK_INT(got.settings.height, 64);
    CHECK_INT(got.settings.set, KN_SET_STEPS | KN_SET_SEED | KN_SET_SIZE);
}

TEST(nothing_given_is_nothing_set) {
    CHECK_INT(parse("render|-p|a cat|-p|--x"), 0);
    CHECK_INT(got.prompt_count, 2);
    CHECK_STR(got.prompts[1], "--x");
    CHECK_INT(got.settings.set, 0);
    CHECK_INT(got.images, 1);
    CHECK_INT(got.workers, -1);
    CHECK(got.farm == NULL && got.out == NULL && !got.has_seed);
    CHECK_INT(parse("render|--|--odd-name.txt"), 0);
    CHECK_STR(got.args[0], "--odd-name.txt");
    CHECK_INT(parse("render|-"), 0);
    CHECK_STR(got.args[0], "-");
}

TEST(names_of_samplers_are_those_of_three_programs) {
    static const char *const words[] = {"render|--sampler|euler a", "render|--sampler=euler_ancestral",
                                        "render|--sampler|EulerAncestralDiscreteScheduler"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        CHECK_INT(parse(words[i]), 0);
        CHECK_INT(got.settings.sampler, KN_SAMPLER_EULER_A);
    }
}

TEST(strict_is_a_switch_of_the_commands_that_read_prompts) {
    CHECK_INT(parse("render|a.csv"), 0);
    CHECK(!got.strict);
    CHECK_INT(parse("render|--strict|a.csv"), 0);
    CHECK(got.strict);
    CHECK_INT(got.arg_count, 1);
    CHECK_INT(parse("wait|--strict|x"), KN_EINVAL);
}

TEST(a_seed_for_each_prompt_is_no_seed_of_the_batch) {
    CHECK_INT(parse("render|--seed=7|--seed=each"), 0);
    CHECK(!got.has_seed && !(got.settings.set & KN_SET_SEED) && got.settings.set & KN_SET_SEED_EACH);
    CHECK_INT(parse("render|--seed=each|--seed=7"), 0);
    CHECK(got.has_seed && !(got.settings.set & KN_SET_SEED_EACH));
    CHECK_INT(parse("render|--seed=each|--seed=-1"), 0);
    CHECK(!got.has_seed && !(got.settings.set & KN_SET_SEED_EACH));
}

TEST(a_seed_of_minus_one_is_none) {
    CHECK_INT(parse("render|--seed=7|--seed=-1"), 0);
    CHECK(!got.has_seed && !(got.settings.set & KN_SET_SEED));
}

TEST(help_is_no_mistake) {
    CHECK_INT(parse("up|--help"), 1);
    CHECK_INT(parse("render|-h"), 1);
}

TEST(mistakes_are_named_and_near_misses_suggested) {
    static const struct {
        const char *words, *want;
    } cases[] = {
        {"render|--stesp|3", "--stesp: unknown, did you mean --steps?"},
        {"render|--stesp=3", "--stesp: unknown, did you mean --steps?"},
        {"render|--zzzzzz", "--zzzzzz: unknown option; see kiln render --help"},
        {"render|-Q", "-Q: unknown option; see kiln render --help"},
        {"status|--state=dnoe",
         "--state: \"dnoe\" is not active, paused, done, cancelled, aside or waiting; did you mean done?"},
        {"wait|x|--on-done=a 'b", "--on-done: a ' is not closed"},
        {"wait|x|--on-done= ", "--on-done: an empty command"},
        {"render|-o", "-o: needs a value"},
        {"render|--steps", "--steps: needs a value"},
        {"up|--steps=3", "--steps does not go with kiln up; see kiln up --help"},
        {"render|--steps=0", "--steps: 0 is not between 1 and 1000"},
        {"render|--steps=1001", "--steps: 1001 is not between 1 and 1000"},
        {"render|--steps=ten", "--steps: \"ten\" is not a whole number"},
        {"render|--steps=3.5", "--steps: \"3.5\" is not a whole number"},
        {"render|--size=100", "--size: \"100\" is not WIDTHxHEIGHT, as in 512x768"},
        {"render|--size=13x64", "--size: width: 13 is not between 16 and 4096"},
        {"render|--cfg=nan", "--cfg: \"nan\" is not a number"},
        {"render|--cfg=200", "--cfg: 200 is not between 0 and 100"},
        {"render|--seed=-5",
         "--seed: \"-5\" is not a whole number between 0 and 18446744073709551615, nor each"},
        {"render|--seed=18446744073709551616",
         "--seed: \"18446744073709551616\" is not a whole number between 0 and 18446744073709551615, nor each"},
        {"render|--images=0", "--images: 0 is not between 1 and 100000"},
        {"render|--format=webp", "--format: \"webp\" is not supported; png is"},
        {"render|--engine=gpu", "--engine: \"gpu\" is neither cpu nor sim:…"},
        {"render|--schedule=karras|--sampler=ddim", "--schedule: karras means nothing with the sampler DDIM"},
        {"up|--listen=0.0.0.0:5600", "--listen: \"0.0.0.0:5600\" is not tcp://HOST:PORT or ipc://PATH"},
        {"up|--data-port=70000", "--data-port: 70000 is not between 1 and 65535"},
        {"up|x", "\"x\" is one too many; usage: kiln up [options]"},
        {"wait", "usage: kiln wait ID… [options]"},
        {"wait|x|--timeout=0", "--timeout: 0 is not between 1 and 100000000"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int rc = parse(cases[i].words);
        CHECK_MSG(rc < 0, "accepted: %s", cases[i].words);
        CHECK_STR(err.text, cases[i].want);
    }
}

TEST(the_command_for_the_end_is_split_without_a_shell) {
    char buffer[CLI_ON_DONE_BYTES], *v[CLI_ON_DONE_WORDS + 1];
    struct kn_err why = {0};
    CHECK_INT(on_done_split("  cp 'a b' \"c d\"e \\'f $HOME *", buffer, v, &why), 0);
    const char *want[] = {"cp", "a b", "c de", "'f", "$HOME", "*"};
    for (size_t i = 0; i < 6; i++) CHECK_STR(v[i], want[i]);
    CHECK(v[6] == NULL);
    CHECK_INT(on_done_split("a \"b", buffer, v, &why), KN_EINVAL);
    CHECK_INT(on_done_split("", buffer, v, &why), KN_EINVAL);
}

TEST(commands_are_suggested_too) {
    CHECK(command_find("rendr") == NULL);
    CHECK_STR(command_suggest("rendr"), "render");
    CHECK(command_suggest("qqqqqqqq") == NULL);
}
