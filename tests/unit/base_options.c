/* The parser of command lines: what it accepts, what each mistake is answered with, and that no command line,
 * however it is cut, is answered with anything else. */
#include "base/options.h"
#include "base/settings.h"
#include "tests/unit/check.h"

#define ARGS_MAX 32

struct got {
    bool quiet, verbose, help, inner;
    const char *out, *farm;
    int threads;
    uint32_t credit;
    uint64_t seed;
    const char *models[3];
    size_t model_count;
    unsigned level;
    struct kn_task task;
};

enum { ALL = 1, SOME = 2 };

static int check_farm(const char *value, struct kn_err *err) {
    return value[0] == '/' ? KN_OK : kn_err_set(err, KN_EINVAL, "not a folder");
}

#define INTO(member) KN_OPTION_INTO(struct got, member)
static const char *const levels[] = {"error", "warn", "info", NULL};
static const struct kn_option table[] = {
    {"output", 'o', "DIR", ALL, "the folder", INTO(out)},
    {"farm", 0, "DIR", ALL, "the farm", INTO(farm), .check = check_farm},
    {"quiet", 'q', NULL, ALL, "no progress", INTO(quiet)},
    {"verbose", 'v', NULL, ALL, "all of it", INTO(verbose)},
    {"threads", 0, "N", ALL, "threads", INTO(threads), .min = -2, .max = 8},
    {"credit", 0, "N", ALL, "shards", INTO(credit), .min = 1, .max = UINT32_MAX},
    {"seed", 0, "N", ALL, "the seed", INTO(seed), .max = UINT64_MAX},
    {"models", 0, "DIR", ALL, "folders", KN_OPTION_LIST_INTO(struct got, models, model_count)},
    {"log-level", 0, "LEVEL", ALL, "how much", KN_OPTION_CHOICE_INTO(struct got, level, levels)},
    {"cfg", 0, "X", ALL, "guidance", KN_OPTION_READ(struct got, task, kn_setting_cfg)},
    {"model", 0, "NAME", ALL, "a model", KN_OPTION_READ(struct got, task, kn_setting_model)},
    {"inner", 0, NULL, SOME, "not for everybody", INTO(inner)},
    {"help", 'h', NULL, ALL | SOME, "this text", KN_OPTION_STOP_INTO(struct got, help)},
};
static const struct kn_options all = {"prog go", table, sizeof table / sizeof table[0], ALL};

static struct got got;
static struct kn_err err;
static char *argv_now[ARGS_MAX + 1], copy[1024];
static int argc_now, operands;

/* "prog|--steps|…": '|' stands between the words. */
static void cut(const char *words) {
    argc_now = 0;
    snprintf(copy, sizeof copy, "%s", words);
    for (char *p = copy; p && argc_now < ARGS_MAX;) {
        argv_now[argc_now++] = p;
        p = strchr(p, '|');
        if (p) *p++ = '\0';
    }
    argv_now[argc_now] = NULL;
}

static int parse_now(void) {
    err = (struct kn_err){0};
    got = (struct got){0};
    return kn_options_parse(&all, argc_now, argv_now, &got, &operands, &err);
}

static int parse(const char *words) {
    cut(words);
    return parse_now();
}

TEST(values_reach_their_targets_in_every_spelling) {
    CHECK_INT(
        parse("p|--output|a|--threads=-2|--credit|4294967295|--seed=18446744073709551615|--log-level=info"),
        0);
    CHECK_STR(got.out, "a");
    CHECK_INT(got.threads, -2);
    CHECK_U64(got.credit, UINT32_MAX);
    CHECK_U64(got.seed, UINT64_MAX);
    CHECK_INT(got.level, 2);
    CHECK_INT(parse("p|-o|a"), 0);
    CHECK_STR(got.out, "a");
    CHECK_INT(parse("p|-oa"), 0);
    CHECK_STR(got.out, "a");
    CHECK_INT(parse("p|-qvo|a"), 0);
    CHECK(got.quiet && got.verbose);
    CHECK_STR(got.out, "a");
    CHECK_INT(parse("p|--output="), 0);
    CHECK_STR(got.out, "");
    CHECK_INT(parse("p|-o|-q"), 0); /* a value may look like an option */
    CHECK_STR(got.out, "-q");
    CHECK(!got.quiet);
}

TEST(the_beginning_of_one_name_is_enough_and_of_two_is_not) {
    CHECK_INT(parse("p|--out=a|--th|3"), 0);
    CHECK_STR(got.out, "a");
    CHECK_INT(got.threads, 3);
    CHECK_INT(parse("p|--model|x"), 0); /* a whole name, though another begins with it */
    CHECK_STR(got.task.model, "x");
    CHECK_INT(got.model_count, 0);
    CHECK_INT(parse("p|--mode|x"), KN_EINVAL);
    CHECK_STR(err.text, "--mode: unknown, did you mean --model?");
}

TEST(operands_stand_anywhere_and_keep_their_order) {
    CHECK_INT(parse("p|a|--quiet|b|-o|x|-|--|--quiet|-v|c"), 0);
    CHECK_INT(operands, 6);
    static const char *const want[] = {"a", "b", "-", "--quiet", "-v", "c"};
    for (int i = 0; i < 6; i++) CHECK_STR(argv_now[1 + i], want[i]);
    CHECK(got.quiet && !got.verbose);
}

TEST(the_last_one_counts_but_of_lists_all_do) {
    CHECK_INT(parse("p|--threads=1|--threads=2|--models|a|--models=b|--models=c"), 0);
    CHECK_INT(got.threads, 2);
    CHECK_INT(got.model_count, 3);
    CHECK_STR(got.models[0], "a");
    CHECK_STR(got.models[2], "c");
}

TEST(what_stands_behind_help_is_not_looked_at) {
    CHECK_INT(parse("p|--quiet|--help|--zzz"), 1);
    CHECK(got.help && got.quiet);
    CHECK_INT(parse("p|-qh"), 1);
    CHECK_INT(parse("p|--zzz|--help"), KN_EINVAL);
}

TEST(every_mistake_names_its_option_and_what_to_do) {
    static const struct {
        const char *words, *want;
    } cases[] = {
        {"p|--thraeds=3", "--thraeds: unknown, did you mean --threads?"},
        {"p|--zzzzzz", "--zzzzzz: unknown option; see prog go --help"},
        {"p|--=3", "--: unknown option; see prog go --help"},
        {"p|-z", "-z: unknown option; see prog go --help"},
        {"p|-qz", "-z: unknown option; see prog go --help"},
        {"p|--inner", "--inner does not go with prog go; see prog go --help"},
        {"p|--output", "--output: needs a value"},
        {"p|-o", "-o: needs a value"},
        {"p|--quiet=yes", "--quiet: takes no value"},
        {"p|--threads=x", "--threads: \"x\" is not a whole number"},
        {"p|--threads=", "--threads: \"\" is not a whole number"},
        {"p|--threads=+3", "--threads: \"+3\" is not a whole number"},
        {"p|--threads= 3", "--threads: \" 3\" is not a whole number"},
        {"p|--threads=-", "--threads: \"-\" is not a whole number"},
        {"p|--threads=9", "--threads: 9 is not between -2 and 8"},
        {"p|--threads=-3", "--threads: -3 is not between -2 and 8"},
        {"p|--threads=-9223372036854775809", "--threads: -9223372036854775809 is not between -2 and 8"},
        {"p|--credit=0", "--credit: 0 is not between 1 and 4294967295"},
        {"p|--credit=4294967296", "--credit: 4294967296 is not between 1 and 4294967295"},
        {"p|--seed=-1", "--seed: -1 is not between 0 and 18446744073709551615"},
        {"p|--seed=18446744073709551616",
         "--seed: 18446744073709551616 is not between 0 and 18446744073709551615"},
        {"p|--log-level=loud", "--log-level: loud is none of error, warn, info"},
        {"p|--models=a|--models=b|--models=c|--models=d", "--models: more than 3"},
        {"p|--farm=x", "--farm: not a folder"},
        {"p|--cfg=200", "--cfg: 200 is not between 0 and 100"},
        {"p|--cfg=x", "--cfg: \"x\" is not a number"},
        {"p|--model=", "--model: empty"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int rc = parse(cases[i].words);
        CHECK_MSG(rc < 0, "accepted: %s", cases[i].words);
        CHECK_STR(err.text, cases[i].want);
    }
}

TEST(a_command_line_cut_anywhere_is_accepted_or_answered_with_a_reason) {
    static const char words[] =
        "p|--output=a|-qvo|b|--threads|3|--models=m|x|--log-level=warn|--cfg|7.5|--seed=12|--|--y|-";
    int accepted = 0, refused = 0;
    for (size_t len = 1; len < sizeof words; len++) {
        char part[sizeof words];
        snprintf(part, sizeof part, "%.*s", (int)len, words);
        int rc = parse(part);
        accepted += rc == 0;
        refused += rc < 0;
        CHECK_MSG(rc == 0 || (rc < 0 && err.code == rc && err.text[0] == '-'), "%s: %d \"%s\"", part, rc,
                  err.text);
    }
    CHECK(accepted > 20 && refused > 5);
}

TEST(help_shows_what_is_accepted_and_breaks_its_lines) {
    static const struct kn_option two[] = {
        {"a-name-that-is-wider-than-the-column", 0, "VALUE", ALL, "words", INTO(out)},
        {"long", 'l', NULL, ALL,
         "one two three four five six seven eight nine ten eleven twelve thirteen fourteen", INTO(quiet)},
        {"inner", 0, NULL, SOME, "hidden", INTO(inner)},
    };
    struct kn_options os = {"p", two, 3, ALL};
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    CHECK(f != NULL);
    kn_options_help(&os, f);
    fclose(f);
    CHECK_STR(text,
              "      --a-name-that-is-wider-than-the-column VALUE  words\n"
              "  -l, --long                 one two three four five six seven eight nine ten\n"
              "                             eleven twelve thirteen fourteen\n");
    free(text);
}
