/* The parser of command lines: the bytes are the words of one, a newline ends each. What must hold whatever
 * they say: the parser succeeds, stops, or names an option and a reason; numbers lie within their bounds, and
 * what it says was given are words of the command line; reading is a function of the bytes. */
#include "base/options.h"

#include <string.h>

#include "base/settings.h"
#include "tests/fuzz/fuzz.h"

#define WORDS_MAX 64
#define TEXT_MAX 8192

struct got {
    bool quiet, verbose, help;
    const char *out, *models[4];
    size_t model_count;
    int threads;
    uint32_t credit;
    uint64_t seed;
    unsigned level;
    struct kn_task task;
    uint64_t canary;
};

#define INTO(member) KN_OPTION_INTO(struct got, member)
static const char *const levels[] = {"error", "warn", "info", NULL};
static const struct kn_option table[] = {
    {"output", 'o', "DIR", 1, "", INTO(out)},
    {"quiet", 'q', NULL, 1, "", INTO(quiet)},
    {"verbose", 'v', NULL, 1, "", INTO(verbose)},
    {"threads", 't', "N", 1, "", INTO(threads), .min = -5, .max = 64},
    {"credit", 0, "N", 1, "", INTO(credit), .min = 1, .max = UINT32_MAX},
    {"seed", 0, "N", 1, "", INTO(seed), .max = UINT64_MAX},
    {"models", 0, "DIR", 1, "", KN_OPTION_LIST_INTO(struct got, models, model_count)},
    {"model", 0, "NAME", 1, "", KN_OPTION_READ(struct got, task, kn_setting_model)},
    {"log-level", 0, "LEVEL", 1, "", KN_OPTION_CHOICE_INTO(struct got, level, levels)},
    {"steps", 0, "N", 1, "", KN_OPTION_READ(struct got, task, kn_setting_steps)},
    {"size", 0, "WxH", 1, "", KN_OPTION_READ(struct got, task, kn_setting_size)},
    {"cfg", 0, "X", 1, "", KN_OPTION_READ(struct got, task, kn_setting_cfg)},
    {"sampler", 0, "NAME", 1, "", KN_OPTION_READ(struct got, task, kn_setting_sampler)},
    {"hidden", 0, NULL, 2, "", INTO(quiet)},
    {"help", 'h', NULL, 1, "", KN_OPTION_STOP_INTO(struct got, help)},
};
static const struct kn_options os = {"p", table, sizeof table / sizeof table[0], 1};

static char text[2][TEXT_MAX + 1];

static bool within(const char *p, const char *from) {
    return p >= from && p < from + TEXT_MAX;
}

static int parse(char *buf, const uint8_t *data, size_t size, struct got *got, char **argv, int *operands,
                 struct kn_err *err) {
    int argc = 1;
    memset(buf, 0, TEXT_MAX + 1);
    memcpy(buf, data, size);
    for (size_t i = 0; i < size; i++)
        if (buf[i] == '\n') buf[i] = '\0';
    argv[0] = buf;
    for (char *p = buf; p < buf + size && argc < WORDS_MAX; p += strlen(p) + 1) argv[argc++] = p;
    argv[argc] = NULL;
    *got = (struct got){.threads = 1, .credit = 1, .canary = 0x5ca1ab1e};
    *err = (struct kn_err){0};
    return kn_options_parse(&os, argc, argv, got, operands, err);
}

int kn_fuzz(const uint8_t *data, size_t size) {
    char *argv[WORDS_MAX + 1];
    struct got got, again;
    struct kn_err err, err2;
    int operands, operands2;
    if (size > TEXT_MAX) return 0;
    int rc = parse(text[0], data, size, &got, argv, &operands, &err);
    FUZZ_CHECK(got.canary == 0x5ca1ab1e);
    FUZZ_CHECK(rc == 0 || rc == 1 || (rc < 0 && err.code == rc && err.text[0] == '-'));
    FUZZ_CHECK((rc == 1) == got.help);
    FUZZ_CHECK(got.threads >= -5 && got.threads <= 64 && got.credit >= 1 && got.level < 3);
    FUZZ_CHECK(got.model_count <= 4 && operands >= 0 && operands < WORDS_MAX);
    FUZZ_CHECK(!got.out || within(got.out, text[0]));
    for (size_t i = 0; i < got.model_count; i++) FUZZ_CHECK(within(got.models[i], text[0]));
    for (int i = 0; i < operands; i++) FUZZ_CHECK(within(argv[1 + i], text[0]));
    for (int i = 2; i <= operands; i++) FUZZ_CHECK(argv[i] > argv[i - 1]); /* in their order, none twice */
    if (rc == 0 && got.task.set & KN_SET_STEPS)
        FUZZ_CHECK(got.task.steps >= KN_STEPS_MIN && got.task.steps <= KN_STEPS_MAX);

    FUZZ_CHECK(parse(text[1], data, size, &again, argv, &operands2, &err2) == rc);
    FUZZ_CHECK(operands2 == operands && strcmp(err.text, err2.text) == 0);
    FUZZ_CHECK(again.seed == got.seed && again.credit == got.credit && again.model_count == got.model_count);
    return 0;
}
