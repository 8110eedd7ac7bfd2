/* See args.h. The parser is base/options.h's; here is the table, and what the table cannot say. */
#include "cli/args.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/options.h"
#include "base/settings.h"
#include "base/token.h"

/* ---- values that are more than a text or a number; each says what is wrong, without the option's name ---- */

static int read_prompt(void *options, char *value, struct kn_err *err) {
    struct cli_options *o = options;
    if (o->prompt_count == CLI_PROMPTS_MAX)
        return kn_err_set(err, KN_ELIMIT, "more than %d; write them into a file", CLI_PROMPTS_MAX);
    o->prompts[o->prompt_count++] = value;
    return KN_OK;
}

/* -1 is A1111's "random": as if no seed were given. "each": one is drawn for each prompt. */
static int read_seed(void *options, char *value, struct kn_err *err) {
    struct cli_options *o = options;
    struct kn_task *t = &o->settings;
    t->set &= ~(uint32_t)(KN_SET_SEED | KN_SET_SEED_EACH);
    if (strcmp(value, "each") == 0) t->set |= KN_SET_SEED_EACH;
    o->has_seed = strcmp(value, "-1") != 0 && !(t->set & KN_SET_SEED_EACH);
    if (!o->has_seed) return KN_OK;
    if (kn_option_number(value, 0, UINT64_MAX, &t->seed, NULL))
        return kn_err_set(err, KN_EINVAL,
                          "\"%.60s\" is not a whole number between 0 and 18446744073709551615, nor each",
                          value);
    t->set |= KN_SET_SEED;
    return KN_OK;
}

static int read_picture_format(void *unused, char *value, struct kn_err *err) {
    (void)unused;
    if (strcasecmp(value, "png") == 0) return KN_OK;
    return kn_err_set(err, KN_EUNSUPPORTED, "\"%.20s\" is not supported; png is", value);
}

/* A folder for pictures: what is there instead is seen before anything is started. */
static int check_output(const char *value, struct kn_err *err) {
    struct stat st;
    if (!value[0]) return kn_err_set(err, KN_EINVAL, "an empty name");
    if (lstat(value, &st)) return KN_OK; /* it will be made, or what is wrong with the path is told then */
    if (S_ISLNK(st.st_mode) && stat(value, &st))
        return kn_err_set(
            err, KN_EINVAL,
            "%.200s is a symbolic link to something that is not there; make that folder, or name another",
            value);
    if (!S_ISDIR(st.st_mode))
        return kn_err_set(err, KN_EINVAL, "%.200s is a file; a folder for the pictures is wanted", value);
    return KN_OK;
}

static int check_name(const char *value, struct kn_err *err) {
    if (strlen(value) <= KN_NAME_MAX) return KN_OK;
    return kn_err_set(err, KN_ELIMIT, "longer than %d bytes", KN_NAME_MAX);
}

static int check_class(const char *value, struct kn_err *err) {
    if (value[0] && strlen(value) <= KN_BACKEND_MAX) return KN_OK;
    return kn_err_set(err, KN_EINVAL, "not a backend class; kiln workers shows them");
}

static int check_engine(const char *value, struct kn_err *err) {
    if (strcmp(value, "cpu") == 0 || strcmp(value, "sim") == 0 || strncmp(value, "sim:", 4) == 0)
        return KN_OK;
    return kn_err_set(err, KN_EINVAL, "\"%.40s\" is neither cpu nor sim:…", value);
}

static int check_state(const char *value, struct kn_err *err) {
    static const char *const states[] = {"active", "paused", "done", "cancelled", "aside", "waiting", NULL};
    for (size_t i = 0; states[i]; i++)
        if (strcmp(value, states[i]) == 0) return KN_OK;
    const char *near = kn_suggest(value, states);
    return kn_err_set(err, KN_EINVAL,
                      "\"%.40s\" is not active, paused, done, cancelled, aside or waiting%s%s%s", value,
                      near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

/* Empty, or a quote that is open; cli/commands/on_done.c says the rest when it is run. */
static int check_command(const char *value, struct kn_err *err) {
    char quote = '\0';
    for (const char *p = value; *p; p++) {
        if (*p == '\\' && quote != '\'' && p[1])
            p++;
        else if (quote ? *p == quote : *p == '\'' || *p == '"')
            quote = quote ? '\0' : *p;
    }
    if (quote) return kn_err_set(err, KN_EINVAL, "a %c is not closed", quote);
    return value[strspn(value, " \t\n")] ? KN_OK : kn_err_set(err, KN_EINVAL, "an empty command");
}

static int check_token(const char *where, struct kn_err *err) {
    struct kn_token unused;
    if (where[0] == '@' || strcmp(where, "-") == 0) return KN_OK;
    return kn_token_read(where, &unused, err); /* which has the words */
}

static int read_ttl(void *options, char *value, struct kn_err *err) {
    static const struct {
        char letter;
        uint64_t ms;
    } units[] = {{'s', 1000}, {'m', 60000}, {'h', 3600000}, {'d', 86400000}};
    struct cli_options *o = options;
    size_t digits = strspn(value, "0123456789");
    uint64_t n = digits > 0 && digits < 12 ? strtoull(value, NULL, 10) : 0, unit = 0;
    for (size_t i = 0; i < 4; i++)
        if (value[digits] == units[i].letter && !value[digits + 1]) unit = units[i].ms;
    o->has_ttl = true;
    o->ttl_ms = n * unit;
    if (strcmp(value, "0") == 0) return KN_OK;
    if (unit && n > 0 && n <= KN_TOKEN_TTL_MS_MAX / unit) return KN_OK;
    return kn_err_set(err, KN_EINVAL, "\"%.20s\" is not a time, as in 90s, 30m, 8h or 7d, up to ten years",
                      value);
}

static int check_listen(const char *value, struct kn_err *err) {
    if (strncmp(value, "tcp://", 6) != 0 && strncmp(value, "ipc://", 6) != 0)
        return kn_err_set(err, KN_EINVAL, "\"%.100s\" is not tcp://HOST:PORT or ipc://PATH", value);
    return strlen(value) <= KN_ENDPOINT_MAX ? KN_OK : kn_err_set(err, KN_ELIMIT, "too long");
}

/* ---- the table, in the order of the help ---- */

#define INTO(member) KN_OPTION_INTO(struct cli_options, member)
#define LIST(array, count) KN_OPTION_LIST_INTO(struct cli_options, array, count)
#define SETTING(function) KN_OPTION_READ(struct cli_options, settings, function)
#define WHOLE(function) .kind = KN_OPTION_OWN, .read = (function) /* is given all of the options */

static const struct kn_option table[] = {
    {"output", 'o', "DIR", CLI_G_OUT,
     "the folder for the pictures (kiln-out, or kiln-out-2, … if that holds something else)", INTO(out),
     .check = check_output},
    {"name-pattern", 0, "PATTERN", CLI_G_OUT,
     "names of the pictures, as in {index:06}-{seed}-{prompt:40}: fields of the manifest and columns of the input",
     INTO(name_pattern)},
    {"replace", 0, NULL, CLI_G_OUT, "if the folder holds another batch of kiln's, remove its pictures",
     INTO(replace)},
    {"link", 0, NULL, CLI_G_OUT,
     "hard links to the objects of a farm that stays, instead of copies: no space twice, but who edits such a picture in place spoils the farm's only copy",
     INTO(link)},
    {"prompt", 'p', "TEXT", CLI_G_INPUT, "a prompt, instead of a file or beside it; may be repeated",
     WHOLE(read_prompt)},
    {"input-format", 0, "F", CLI_G_INPUT, "txt, jsonl, json, csv or tsv (by the file's ending)",
     KN_OPTION_READ(struct cli_options, format, kn_setting_input_format)},
    {"strict", 0, NULL, CLI_G_INPUT, "refuse columns and keys that kiln does not know", INTO(strict)},
    {"model", 0, "NAME|DIR", CLI_G_INPUT | CLI_G_MODEL, "a model of the farm, or a model's folder",
     SETTING(kn_setting_model)},
    {"steps", 0, "N", CLI_G_INPUT, "denoising steps", SETTING(kn_setting_steps)},
    {"size", 0, "WxH", CLI_G_INPUT, "pixels", SETTING(kn_setting_size)},
    {"sampler", 0, "NAME", CLI_G_INPUT, KN_SAMPLER_LIST, SETTING(kn_setting_sampler)},
    {"schedule", 0, "NAME", CLI_G_INPUT, "normal, karras", SETTING(kn_setting_schedule)},
    {"cfg", 0, "X", CLI_G_INPUT, "guidance", SETTING(kn_setting_cfg)},
    {"seed", 0, "N|each", CLI_G_INPUT,
     "seed of each prompt's first image, or each: one drawn for each prompt; drawn once for the batch when not given",
     WHOLE(read_seed)},
    {"images", 0, "N", CLI_G_INPUT, "images a prompt, of seeds N, N+1, … (1)", INTO(images), .min = 1,
     .max = KN_IMAGES_MAX},
    {"negative", 0, "TEXT", CLI_G_INPUT, "what the pictures should not show", SETTING(kn_setting_negative)},
    {"format", 0, "png", CLI_G_INPUT, "picture format; png is the only one", WHOLE(read_picture_format)},
    {"name", 0, "TEXT", CLI_G_SUBMIT, "a name for the batch (the input's)", INTO(name), .check = check_name},
    {"priority", 0, "N", CLI_G_SUBMIT, "-1000 to 1000, higher first (0)", INTO(priority), .min = -1000,
     .max = 1000},
    {"pin-backend", 0, "CLASS", CLI_G_SUBMIT, "render on this backend class alone", INTO(pin_backend),
     .check = check_class},
    {"rerender-old", 0, NULL, CLI_G_RERENDER, "render again what another version of the engine rendered",
     INTO(rerender_old)},
    {"farm", 0, "DIR|ENDPOINT", CLI_G_FARM, "the farm ($KILN_HOME, else ~/.kiln)", INTO(farm)},
    {"token", 0, "@FILE|-", CLI_G_FARM,
     "for a farm that is reached by TCP, the first time: a file with the token (kiln token new --client), or - for "
     "standard input (default: $KILN_TOKEN)",
     INTO(token), .check = check_token},
    {"worker", 0, NULL, CLI_G_TOKEN, "for a worker: takes work, and brings its own pictures (default)",
     INTO(role_worker)},
    {"client", 0, NULL, CLI_G_TOKEN,
     "for a person or a program: submits, and sees and cancels its own batches", INTO(role_client)},
    {"admin", 0, NULL, CLI_G_TOKEN, "for a person who may do everything", INTO(role_admin)},
    {"read", 0, NULL, CLI_G_TOKEN, "for a reader of everything, who changes nothing", INTO(role_read)},
    {"ttl", 0, "TIME", CLI_G_TOKEN, "how long it can be used: 90s, 30m, 8h, 7d, or 0 for ever (1h)",
     WHOLE(read_ttl)},
    {"uses", 0, "N", CLI_G_TOKEN, "how many machines may use it (1)", INTO(uses), .min = 1,
     .max = KN_TOKEN_USES_MAX},
    {"name", 0, "NAME", CLI_G_TOKEN, "the name of the key that comes by it (default: the machine's)",
     INTO(name), .check = check_name},
    {"ephemeral", 0, NULL, CLI_G_TOKEN,
     "the key leaves the list when it has not been heard of for 10 minutes", INTO(ephemeral)},
    {"workers", 0, "N", CLI_G_START,
     "workers of the private farm (one a NUMA node, fewer where memory is short)", INTO(workers),
     .max = CLI_WORKERS_MAX},
    {"threads", 0, "N", CLI_G_START, "threads of each worker (cores / workers)", INTO(threads), .min = 1,
     .max = 1024},
    {"device", 0, "WHICH", CLI_G_START,
     "what the workers render on: cpu (default), GPUs by number as in 0,1, or all: a worker each",
     INTO(device)},
    {"engine", 0, "E", CLI_G_START, "cpu, or sim:ms=50,… which draws test pictures without a model",
     INTO(engine), .check = check_engine},
    {"models", 0, "DIR", CLI_G_START | CLI_G_MODEL, "a folder of model folders; may be repeated",
     LIST(models, model_dir_count)},
    {"listen", 0, "ENDPOINT", CLI_G_UP, "also accept workers here, as in tcp://0.0.0.0:5600; may be repeated",
     LIST(listen, listen_count), .check = check_listen},
    {"data-port", 0, "N", CLI_G_UP, "TCP port for the pictures (any free one)", INTO(data_port), .min = 1,
     .max = 65535},
    {"insecure", 0, NULL, CLI_G_UP, "gone: who connects by TCP shows a key; says how to change",
     INTO(insecure)},
    {"redis", 0, "URL", CLI_G_UP,
     "a Redis that runs already: unix:PATH, HOST:PORT, redis[s]://HOST[:PORT][/DB]; @FILE holds it, with a password",
     INTO(redis)},
    {"allow-volatile", 0, NULL, CLI_G_UP, "accept a Redis that may lose what it was given",
     INTO(allow_volatile)},
    {"now", 0, NULL, CLI_G_NOW, "do not wait for what is being rendered", INTO(now)},
    {"exit", 0, NULL, CLI_G_EXIT, "and let the worker end itself", INTO(exit_worker)},
    {"state", 0, "STATE", CLI_G_LIST,
     "only batches that are active, paused, done, cancelled, aside (they cannot be read back), or waiting for something",
     INTO(state), .check = check_state},
    {"limit", 0, "N", CLI_G_LIST, "the newest N at most", INTO(limit), .min = 1, .max = KN_BATCHES_MAX},
    {"done", 0, NULL, CLI_G_DONE, "all batches that have ended", INTO(all_done)},
    {"now", 0, NULL, CLI_G_DONE, "delete their pictures at once, not an hour later", INTO(now)},
    {"all", 0, NULL, CLI_G_ALL, "all batches that have not ended", INTO(all)},
    {"on-done", 0, "COMMAND", CLI_G_AT_END,
     "run this at the end, without a shell: KILN_BATCH_ID, KILN_DIR and KILN_STATE tell of the batch",
     INTO(on_done), .check = check_command},
    {"quiet", 'q', NULL, CLI_G_QUIET, "no progress, only what is wrong", INTO(quiet)},
    {"timeout", 0, "SECONDS", CLI_G_TIMEOUT, "give up waiting after so long (status 4 of wait, else 5)",
     INTO(timeout_s), .min = 1, .max = 100000000},
    {"repair", 0, NULL, CLI_G_REPAIR, "remove what renders that were killed have left behind", INTO(repair)},
    {"json", 0, NULL, CLI_G_JSON, "JSON on standard output", INTO(json)},
    {"help", 'h', NULL, CLI_G_HELP, "this text", KN_OPTION_STOP_INTO(struct cli_options, help)},
};

static struct kn_options options_of(const struct cli_command *cmd, const char *program) {
    return (struct kn_options){
        .program = program,
        .v = table,
        .count = sizeof table / sizeof table[0],
        /* every command has --help, also one that has nothing else */
        .groups = cmd->groups | CLI_G_HELP,
    };
}

/* ---- parsing and help ---- */

/* A schedule that its sampler cannot follow is seen when both are known. */
static int check_together(struct kn_task settings, struct kn_err *err) {
    static char none[] = "";
    struct kn_err why = {0};
    if (!(settings.set & KN_SET_SAMPLER && settings.set & KN_SET_SCHEDULE)) return KN_OK;
    settings.prompt = none;
    if (!settings.negative) settings.negative = none;
    int rc = kn_task_check(&settings, &why);
    return rc ? kn_err_set(err, rc, "--%.1000s", why.text) : KN_OK;
}

int cli_parse(const struct cli_command *cmd, int argc, char **argv, struct cli_options *out,
              struct kn_err *err) {
    char program[64];
    snprintf(program, sizeof program, "kiln %s", cmd->name);
    struct kn_options os = options_of(cmd, program);
    *out = (struct cli_options){.images = 1, .workers = -1};
    int rc = kn_options_parse(&os, argc, argv, out, &out->arg_count, err);
    if (rc == KN_OK) rc = check_together(out->settings, err);
    if (rc) return rc;
    out->args = argv + 1;
    if (out->arg_count < cmd->args_min)
        return kn_err_set(err, KN_EINVAL, "usage: kiln %s %s", cmd->name, cmd->usage);
    if (cmd->args_max >= 0 && out->arg_count > cmd->args_max)
        return kn_err_set(err, KN_EINVAL, "\"%.60s\" is one too many; usage: kiln %s %s",
                          out->args[cmd->args_max], cmd->name, cmd->usage);
    return KN_OK;
}

void cli_help_command(const struct cli_command *cmd) {
    struct kn_options os = options_of(cmd, cmd->name);
    printf("usage: kiln %s %s\n\n", cmd->name, cmd->usage);
    kn_help_wrap(stdout, cmd->more ? cmd->more : cmd->words, 0, 0);
    printf("\n");
    kn_options_help(&os, stdout);
    if (cmd->groups & CLI_G_INPUT)
        printf("\nWhat is not given comes from the prompt's line, then from here, then from the model.\n");
    if (cmd->examples) printf("\nexamples:\n%s", cmd->examples);
}
