/* The command line: one table of commands, one of options; what a command accepts is a set of groups of
 * options. Help is printed from the same tables, so that it cannot say anything else. */
#ifndef KILN_CLI_ARGS_H
#define KILN_CLI_ARGS_H

#include "cli/cli.h"

struct cli_command {
    const char *name;
    const char *usage; /* behind the name: "FILE… [options]" */
    const char *words; /* a line for `kiln --help` */
    const char *more;  /* a paragraph for `kiln COMMAND --help`; may be NULL */
    const char *examples;
    unsigned groups; /* CLI_G_… */
    int args_min, args_max;
    int (*run)(const struct cli_options *o);
};

enum {
    CLI_G_FARM = 1u << 0,   /* --farm */
    CLI_G_INPUT = 1u << 1,  /* prompts and their settings */
    CLI_G_SUBMIT = 1u << 2, /* --name --priority --pin-backend */
    CLI_G_OUT = 1u << 3,    /* -o --name-pattern --replace --link */
    CLI_G_START = 1u << 4,  /* --workers --threads --engine --models */
    CLI_G_UP = 1u << 5,     /* --listen --redis … */
    CLI_G_JSON = 1u << 6,
    CLI_G_NOW = 1u << 7,
    CLI_G_EXIT = 1u << 8,
    CLI_G_TIMEOUT = 1u << 9,
    CLI_G_MODEL = 1u << 10,    /* --model and --models without the rest (up, doctor) */
    CLI_G_LIST = 1u << 11,     /* --state --limit */
    CLI_G_DONE = 1u << 12,     /* --done --now (rm) */
    CLI_G_ALL = 1u << 13,      /* --all */
    CLI_G_QUIET = 1u << 14,    /* --quiet */
    CLI_G_AT_END = 1u << 15,   /* --on-done */
    CLI_G_REPAIR = 1u << 16,   /* --repair */
    CLI_G_RERENDER = 1u << 17, /* --rerender-old (render) */
    CLI_G_TOKEN = 1u << 18,    /* --worker --client … --uses (token) */
    CLI_G_HELP = 1u << 31,
};

/* Parses argv[1…] of a command (argv[0] is its name; permuted in place). 0; KN_EINVAL with a text for the
 * person; 1 when --help was asked for. `out` borrows from argv. */
KN_MUST_USE int cli_parse(const struct cli_command *cmd, int argc, char **argv, struct cli_options *out,
                          struct kn_err *err);
void cli_help_command(const struct cli_command *cmd);

#endif
