/* See args.h. getopt_long does the cutting; unknown names get the nearest known one. */
#include "cli/args.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum opt_id {
    OPT_FARM = 256,
    OPT_PROMPT,
    OPT_FORMAT,
    OPT_MODEL,
    OPT_STEPS,
    OPT_SIZE,
    OPT_SAMPLER,
    OPT_SCHEDULE,
    OPT_CFG,
    OPT_SEED,
    OPT_IMAGES,
    OPT_NEGATIVE,
    OPT_FILE_FORMAT,
    OPT_NAME,
    OPT_PRIORITY,
    OPT_PIN,
    OPT_OUT,
    OPT_WORKERS,
    OPT_THREADS,
    OPT_DEVICE,
    OPT_ENGINE,
    OPT_MODELS,
    OPT_LISTEN,
    OPT_DATA_PORT,
    OPT_INSECURE,
    OPT_VOLATILE,
    OPT_REDIS,
    OPT_JSON,
    OPT_NOW,
    OPT_EXIT,
    OPT_TIMEOUT,
    OPT_HELP,
};

struct opt {
    enum opt_id id;
    const char *name;
    char letter;     /* 0: none */
    const char *arg; /* NULL: a switch */
    unsigned groups;
    const char *words;
};

static const struct opt options[] = {
    {OPT_OUT, "output", 'o', "DIR", CLI_G_OUT, "the folder for the pictures (kiln-out)"},
    {OPT_PROMPT, "prompt", 'p', "TEXT", CLI_G_INPUT,
     "a prompt, instead of a file or beside it; may be repeated"},
    {OPT_FORMAT, "input-format", 0, "F", CLI_G_INPUT, "txt, jsonl, csv or tsv (by the file's ending)"},
    {OPT_MODEL, "model", 0, "NAME|DIR", CLI_G_INPUT | CLI_G_MODEL,
     "a model of the farm, or a model's folder"},
    {OPT_STEPS, "steps", 0, "N", CLI_G_INPUT, "denoising steps"},
    {OPT_SIZE, "size", 0, "WxH", CLI_G_INPUT, "pixels"},
    {OPT_SAMPLER, "sampler", 0, "NAME", CLI_G_INPUT, "DDIM, PNDM, Euler, Euler a, DPM++ 2M"},
    {OPT_SCHEDULE, "schedule", 0, "NAME", CLI_G_INPUT, "normal, karras"},
    {OPT_CFG, "cfg", 0, "X", CLI_G_INPUT, "guidance"},
    {OPT_SEED, "seed", 0, "N", CLI_G_INPUT,
     "seed of each prompt's first image; drawn once for the batch when not given"},
    {OPT_IMAGES, "images", 0, "N", CLI_G_INPUT, "images a prompt, of seeds N, N+1, … (1)"},
    {OPT_NEGATIVE, "negative", 0, "TEXT", CLI_G_INPUT, "what the pictures should not show"},
    {OPT_FILE_FORMAT, "format", 0, "png", CLI_G_INPUT, "picture format; png is the only one"},
    {OPT_NAME, "name", 0, "TEXT", CLI_G_SUBMIT, "a name for the batch (the input's)"},
    {OPT_PRIORITY, "priority", 0, "N", CLI_G_SUBMIT, "-1000 to 1000, higher first (0)"},
    {OPT_PIN, "pin-backend", 0, "CLASS", CLI_G_SUBMIT, "render on this backend class alone"},
    {OPT_FARM, "farm", 0, "DIR|ENDPOINT", CLI_G_FARM, "the farm ($KILN_HOME, else ~/.kiln)"},
    {OPT_WORKERS, "workers", 0, "N", CLI_G_START, "workers of the private farm (half the cores)"},
    {OPT_THREADS, "threads", 0, "N", CLI_G_START, "threads of each worker (cores / workers)"},
    {OPT_DEVICE, "device", 0, "WHICH", CLI_G_START,
     "what the workers render on: cpu (default), GPUs by number as in 0,1, or all: a worker each"},
    {OPT_ENGINE, "engine", 0, "E", CLI_G_START,
     "cpu, or sim:ms=50,… which draws test pictures without a model"},
    {OPT_MODELS, "models", 0, "DIR", CLI_G_START, "a folder of model folders; may be repeated"},
    {OPT_LISTEN, "listen", 0, "ENDPOINT", CLI_G_UP,
     "also accept nodes here, as in tcp://0.0.0.0:5600; may be repeated"},
    {OPT_DATA_PORT, "data-port", 0, "N", CLI_G_UP, "TCP port for the pictures (any free one)"},
    {OPT_INSECURE, "insecure", 0, NULL, CLI_G_UP,
     "allow --listen beyond this machine: there are no keys yet, so anyone who reaches it may use it"},
    {OPT_REDIS, "redis", 0, "URL", CLI_G_UP, "a Redis that runs already, as unix:PATH or HOST:PORT"},
    {OPT_VOLATILE, "allow-volatile", 0, NULL, CLI_G_UP, "accept a Redis that may lose what it was given"},
    {OPT_NOW, "now", 0, NULL, CLI_G_NOW, "do not wait for what is being rendered"},
    {OPT_EXIT, "exit", 0, NULL, CLI_G_EXIT, "and let the worker end itself"},
    {OPT_TIMEOUT, "timeout", 0, "SECONDS", CLI_G_TIMEOUT, "give up waiting after so long (status 2)"},
    {OPT_JSON, "json", 0, NULL, CLI_G_JSON, "JSON on standard output"},
    {OPT_HELP, "help", 'h', NULL, ~0u, "this text"},
};
#define OPTION_COUNT (sizeof options / sizeof options[0])

static bool accepts(const struct cli_command *cmd, const struct opt *o) {
    return (cmd->groups & o->groups) != 0 || o->id == OPT_HELP;
}

const char *cli_command_suggest(const char *name) {
    const char *names[64];
    size_t n = 0;
    for (const struct cli_command *c = cli_commands; c->name && n < 63; c++) names[n++] = c->name;
    names[n] = NULL;
    return kn_suggest(name, names);
}

const struct cli_command *cli_command_find(const char *name) {
    for (const struct cli_command *c = cli_commands; c->name; c++)
        if (strcmp(c->name, name) == 0) return c;
    return NULL;
}

static int unknown_option(const struct cli_command *cmd, const char *text, struct kn_err *err) {
    if (strncmp(text, "--", 2) != 0)
        return kn_err_set(err, KN_EINVAL, "%s: unknown option; see kiln %s --help", text, cmd->name);
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(text + 2, "="), text + 2);
    const char *mine[OPTION_COUNT + 1];
    size_t n = 0;
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        if (accepts(cmd, &options[i])) {
            mine[n++] = options[i].name;
        } else if (strcmp(options[i].name, name) == 0) {
            return kn_err_set(err, KN_EINVAL, "--%s does not go with kiln %s; see kiln %s --help", name,
                              cmd->name, cmd->name);
        }
    }
    mine[n] = NULL;
    const char *near = kn_suggest(name, mine);
    if (near) return kn_err_set(err, KN_EINVAL, "--%s: unknown, did you mean --%s?", name, near);
    return kn_err_set(err, KN_EINVAL, "--%s: unknown option; see kiln %s --help", name, cmd->name);
}

static int number(const char *name, const char *text, long long min, long long max, long long *out,
                  struct kn_err *err) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || text[0] == ' ' || text[0] == '+')
        return kn_err_set(err, KN_EINVAL, "--%s: \"%.60s\" is not a whole number", name, text);
    if (errno || v < min || v > max)
        return kn_err_set(err, KN_EINVAL, "--%s: %.60s is not between %lld and %lld", name, text, min, max);
    *out = v;
    return KN_OK;
}

static int seed_number(const char *text, uint64_t *out, struct kn_err *err) {
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (end == text || *end || errno || text[0] < '0' || text[0] > '9')
        return kn_err_set(err, KN_EINVAL,
                          "--seed: \"%.60s\" is not a whole number between 0 and 18446744073709551615", text);
    *out = v;
    return KN_OK;
}

/* Checks one setting at once, with the words that the reader of prompt files uses. */
static int check_setting(struct cli_options *o, struct kn_err *err) {
    struct kn_task t = o->settings;
    t.prompt = (char *)"";
    if (!t.negative) t.negative = (char *)"";
    int rc = kn_task_check(&t, err);
    if (rc && err) {
        char text[KN_ERR_TEXT_MAX];
        snprintf(text, sizeof text, "--%.*s", (int)sizeof text - 3, err->text);
        return kn_err_set(err, rc, "%s", text);
    }
    return rc;
}

static int take(struct cli_options *o, enum opt_id id, const char *name, char *arg, struct kn_err *err) {
    struct kn_task *t = &o->settings;
    long long v = 0;
    int rc = KN_OK;
    switch (id) {
    case OPT_FARM:
        o->farm = arg;
        break;
    case OPT_OUT:
        o->out = arg;
        break;
    case OPT_PROMPT:
        if (o->prompt_count == CLI_PROMPTS_MAX)
            return kn_err_set(err, KN_ELIMIT, "--prompt: more than %d; write them into a file",
                              CLI_PROMPTS_MAX);
        o->prompts[o->prompt_count++] = arg;
        break;
    case OPT_FORMAT:
        rc = kn_input_format_parse(arg, &o->format, err);
        if (rc) kn_err_prefix(err, "--input-format");
        break;
    case OPT_MODEL:
        if (!arg[0]) return kn_err_set(err, KN_EINVAL, "--model: empty");
        t->model = arg;
        t->set |= KN_SET_MODEL;
        return check_setting(o, err);
    case OPT_STEPS:
        rc = number(name, arg, KN_STEPS_MIN, KN_STEPS_MAX, &v, err);
        t->steps = (uint32_t)v;
        t->set |= KN_SET_STEPS;
        break;
    case OPT_SIZE:
        rc = kn_size_parse(arg, &t->width, &t->height, err);
        if (rc) {
            kn_err_prefix(err, "--size");
            break;
        }
        t->set |= KN_SET_SIZE;
        rc = check_setting(o, err);
        if (rc) rc = kn_err_set(err, rc, "--size: %.200s", strdupa(err->text) + 2);
        break;
    case OPT_SAMPLER:
        rc = kn_sampler_parse(arg, &t->sampler, err);
        if (rc) kn_err_prefix(err, "--sampler");
        t->set |= KN_SET_SAMPLER;
        break;
    case OPT_SCHEDULE:
        rc = kn_schedule_parse(arg, &t->schedule, err);
        if (rc) kn_err_prefix(err, "--schedule");
        t->set |= KN_SET_SCHEDULE;
        break;
    case OPT_CFG: {
        char *end;
        float cfg = strtof(arg, &end);
        if (end == arg || *end || !isfinite(cfg))
            return kn_err_set(err, KN_EINVAL, "--cfg: \"%.60s\" is not a number", arg);
        t->cfg = cfg;
        t->set |= KN_SET_CFG;
        return check_setting(o, err);
    }
    case OPT_SEED:
        if (strcmp(arg, "-1") == 0) { /* A1111's "random" */
            t->set &= ~(uint32_t)KN_SET_SEED;
            o->has_seed = false;
            break;
        }
        rc = seed_number(arg, &t->seed, err);
        t->set |= KN_SET_SEED;
        o->has_seed = true;
        break;
    case OPT_IMAGES:
        rc = number(name, arg, 1, KN_IMAGES_MAX, &v, err);
        o->images = (uint32_t)v;
        break;
    case OPT_NEGATIVE:
        t->negative = arg;
        t->set |= KN_SET_NEGATIVE;
        return check_setting(o, err);
    case OPT_FILE_FORMAT:
        if (strcasecmp(arg, "png") != 0)
            return kn_err_set(err, KN_EUNSUPPORTED, "--format: \"%.20s\" is not supported; png is", arg);
        break;
    case OPT_NAME:
        if (strlen(arg) > KN_NAME_MAX)
            return kn_err_set(err, KN_ELIMIT, "--name: longer than %d bytes", KN_NAME_MAX);
        o->name = arg;
        break;
    case OPT_PRIORITY:
        rc = number(name, arg, -1000, 1000, &v, err);
        o->priority = (int)v;
        break;
    case OPT_PIN:
        if (!arg[0] || strlen(arg) > KN_BACKEND_MAX)
            return kn_err_set(err, KN_EINVAL, "--pin-backend: not a backend class; kiln workers shows them");
        o->pin_backend = arg;
        break;
    case OPT_WORKERS:
        rc = number(name, arg, 0, 256, &v, err);
        o->workers = (int)v;
        break;
    case OPT_THREADS:
        rc = number(name, arg, 1, 1024, &v, err);
        o->threads = (int)v;
        break;
    case OPT_DEVICE:
        o->device = arg;
        break;
    case OPT_ENGINE:
        if (strcmp(arg, "cpu") != 0 && strcmp(arg, "sim") != 0 && strncmp(arg, "sim:", 4) != 0)
            return kn_err_set(err, KN_EINVAL, "--engine: \"%.40s\" is neither cpu nor sim:…", arg);
        o->engine = arg;
        break;
    case OPT_MODELS:
        if (o->model_dir_count == CLI_MODELS_MAX)
            return kn_err_set(err, KN_ELIMIT, "--models: more than %d", CLI_MODELS_MAX);
        o->models[o->model_dir_count++] = arg;
        break;
    case OPT_LISTEN:
        if (strncmp(arg, "tcp://", 6) != 0 && strncmp(arg, "ipc://", 6) != 0)
            return kn_err_set(err, KN_EINVAL, "--listen: \"%.100s\" is not tcp://HOST:PORT or ipc://PATH",
                              arg);
        if (strlen(arg) > KN_ENDPOINT_MAX) return kn_err_set(err, KN_ELIMIT, "--listen: too long");
        if (o->listen_count == CLI_LISTEN_MAX)
            return kn_err_set(err, KN_ELIMIT, "--listen: more than %d", CLI_LISTEN_MAX);
        o->listen[o->listen_count++] = arg;
        break;
    case OPT_DATA_PORT:
        rc = number(name, arg, 1, 65535, &v, err);
        o->data_port = (int)v;
        break;
    case OPT_INSECURE:
        o->insecure = true;
        break;
    case OPT_VOLATILE:
        o->allow_volatile = true;
        break;
    case OPT_REDIS:
        o->redis = arg;
        break;
    case OPT_NOW:
        o->now = true;
        break;
    case OPT_EXIT:
        o->exit_worker = true;
        break;
    case OPT_TIMEOUT:
        rc = number(name, arg, 1, 100000000, &v, err);
        o->timeout_s = (int)v;
        break;
    case OPT_JSON:
        o->json = true;
        break;
    case OPT_HELP:
        return 1;
    }
    return rc;
}

int cli_parse(const struct cli_command *cmd, int argc, char **argv, struct cli_options *out,
              struct kn_err *err) {
    *out = (struct cli_options){.images = 1, .workers = -1};
    struct option longs[OPTION_COUNT + 1];
    char shorts[2 * OPTION_COUNT + 2] = ":";
    size_t n = 0, s = 1;
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        const struct opt *o = &options[i];
        if (!accepts(cmd, o)) continue;
        longs[n++] = (struct option){o->name, o->arg ? required_argument : no_argument, NULL, (int)o->id};
        if (o->letter) {
            shorts[s++] = o->letter;
            if (o->arg) shorts[s++] = ':';
        }
    }
    longs[n] = (struct option){0};
    shorts[s] = '\0';

    opterr = 0;
    optind = 0; /* GNU getopt: begins anew, also in the middle of a word of the last time */
    for (;;) {
        int c = getopt_long(argc, argv, shorts, longs, NULL);
        if (c == -1) break;
        if (c == '?') { /* a letter stands in optopt; of a long option, getopt has passed the word */
            char letter[3] = {'-', (char)optopt, 0};
            return unknown_option(cmd, optopt > 0 && optopt < 256 ? letter : argv[optind - 1], err);
        }
        if (c == ':') return kn_err_set(err, KN_EINVAL, "%s: needs a value", argv[optind - 1]);
        const struct opt *o = NULL;
        for (size_t i = 0; i < OPTION_COUNT && !o; i++)
            if ((int)options[i].id == c || (options[i].letter && options[i].letter == c)) o = &options[i];
        int rc = take(out, o->id, o->name, optarg, err);
        if (rc) return rc;
    }
    if (out->settings.set & KN_SET_SAMPLER && out->settings.set & KN_SET_SCHEDULE) {
        int rc = check_setting(out, err);
        if (rc) return rc;
    }
    out->args = argv + optind;
    out->arg_count = argc - optind;
    if (out->arg_count < cmd->args_min)
        return kn_err_set(err, KN_EINVAL, "usage: kiln %s %s", cmd->name, cmd->usage);
    if (cmd->args_max >= 0 && out->arg_count > cmd->args_max)
        return kn_err_set(err, KN_EINVAL, "\"%.60s\" is one too many; usage: kiln %s %s",
                          out->args[cmd->args_max], cmd->name, cmd->usage);
    return KN_OK;
}

/* Words broken at 78 columns, indented. */
static void print_wrapped(const char *text, int indent, int column) {
    while (*text) {
        size_t len = strcspn(text, " ");
        size_t shown = 0; /* columns: UTF-8 continuation bytes take none */
        for (size_t i = 0; i < len; i++) shown += ((unsigned char)text[i] & 0xc0) != 0x80;
        if (column + 1 + (int)shown > 78 && column > indent) {
            printf("\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            putchar(' ');
            column++;
        }
        fwrite(text, 1, len, stdout);
        column += (int)shown;
        text += len;
        while (*text == ' ') text++;
    }
    putchar('\n');
}

void cli_help(void) {
    printf("kiln " KILN_VERSION
           ": a file of prompts in, pictures out, on one machine or many\n\n"
           "usage: kiln COMMAND [options]\n\n");
    for (const struct cli_command *c = cli_commands; c->name; c++) printf("  %-9s %s\n", c->name, c->words);
    printf(
        "\nkiln COMMAND --help tells more. kiln --version prints the version.\n\n"
        "examples:\n"
        "  kiln render prompts.txt -o pictures      a private farm for this one batch\n"
        "  kiln up && kiln submit prompts.txt       a farm that stays\n"
        "\nexit status: 0 all done, 1 bad usage or input (nothing was started), 2 some images failed or\n"
        "verify found faults, 3 no farm there or no such id, 130 interrupted (the same command resumes)\n");
}

void cli_help_command(const struct cli_command *cmd) {
    printf("usage: kiln %s %s\n\n", cmd->name, cmd->usage);
    print_wrapped(cmd->more ? cmd->more : cmd->words, 0, 0);
    printf("\n");
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        const struct opt *o = &options[i];
        if (!accepts(cmd, o)) continue;
        char left[64];
        int n =
            snprintf(left, sizeof left, "  %s%c%s--%s%s%s", o->letter ? "-" : "", o->letter ? o->letter : ' ',
                     o->letter ? ", " : "   ", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
        printf("%-28s ", left);
        print_wrapped(o->words, 29, n > 28 ? n + 1 : 29);
    }
    if (cmd->groups & CLI_G_INPUT)
        printf("\nWhat is not given comes from the prompt's line, then from here, then from the model.\n");
    if (cmd->examples) printf("\nexamples:\n%s", cmd->examples);
}
