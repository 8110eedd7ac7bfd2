/* The ground that kiln's commands stand on: exit statuses, the parsed command line, the flag that Ctrl-C
 * sets.
 *
 * One command runs in a process, on one thread. A command returns its exit status; it has then told the
 * person what went wrong, on standard error. Standard output carries results alone (ids, tables, JSON). */
#ifndef KILN_CLI_CLI_H
#define KILN_CLI_CLI_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/prompts.h"

enum cli_exit {
    CLI_DONE = 0,
    CLI_BAD_INPUT = 1, /* bad usage or input; nothing was started */
    CLI_FAILED = 2,    /* some images failed, or verify found faults */
    CLI_NO_FARM = 3,   /* no farm there, or no such id */
    CLI_ACCEPTED =
        4, /* accepted and not ended, or accepted and the id could not be handed over: a person's turn */
    CLI_UNSURE = 5,      /* no answer: not known whether it was done; ask again */
    CLI_NOT_ALLOWED = 6, /* another user's farm, or a folder that may not be written */
    CLI_INTERRUPTED = 130,
};

#define CLI_PROMPTS_MAX 256 /* -p on one command line */
#define CLI_LISTEN_MAX 8
#define CLI_MODELS_MAX 32
#define CLI_WORKERS_MAX 256 /* of one farm on this machine */

struct cli_options {
    /* where */
    const char *farm; /* --farm, else $KILN_HOME, else ~/.kiln; a folder or an endpoint */
    const char *out;  /* -o */
    const char *name_pattern;
    bool replace, link, repair;
    bool json, help;
    /* what to render */
    const char *prompts[CLI_PROMPTS_MAX];
    size_t prompt_count;
    enum kn_input_format format;
    bool strict;             /* names that kiln does not know are errors */
    struct kn_task settings; /* strings borrowed from argv */
    bool has_seed;
    uint32_t images;
    const char *name, *pin_backend;
    bool rerender_old; /* pictures of another engine version are not kept */
    int priority;
    /* a farm to start */
    int workers; /* -1: not given */
    int threads; /* a worker; 0: cores / workers */
    const char *engine, *device;
    const char *models[CLI_MODELS_MAX]; /* --models: folders of model folders */
    size_t model_dir_count;
    const char *listen[CLI_LISTEN_MAX];
    size_t listen_count;
    int data_port;
    bool insecure, allow_volatile;
    const char *token; /* for a farm that is reached by TCP, the first time */
    /* kiln token new */
    bool role_worker, role_client, role_admin, role_read, ephemeral, has_ttl;
    uint64_t ttl_ms; /* 0: for ever */
    uint32_t uses;   /* 0: not given */
    const char *redis;
    bool now, exit_worker, failed_only;
    bool quiet;          /* no progress */
    bool all_done;       /* rm --done */
    bool all;            /* cancel --all */
    const char *state;   /* status --state */
    int limit;           /* status --limit; 0: none */
    const char *on_done; /* a command for the end of a batch */
    int timeout_s;       /* 0: none */
    /* what stands behind the options */
    char **args;
    int arg_count;
};

extern volatile sig_atomic_t cli_interrupted; /* how often SIGINT, SIGTERM or SIGHUP came */
/* The supervisor of the private farm that this command has, or 0: a second SIGINT ends it, too. */
extern volatile sig_atomic_t cli_farm_pid;
/* --token, as kn_token_read() takes it; NULL: it was not given. */
extern const char *cli_token;
void cli_catch_signals(void); /* from then on they only count; but a second SIGINT ends the process at once */

/* "kiln: TEXT" on standard error. */
void cli_say(const char *fmt, ...) KN_PRINTF(1, 2);
/* Writes what standard output has buffered, and says so where that fails. Gives the status to end with: `status`,
 * or if all was well so far the one for output that is lost. */
int cli_finish(int status);
/* Notes a text that a person must see if standard output cannot be written (an id that nobody else was told), and
 * the status to end with then. The text is borrowed. */
void cli_owe(const char *text, int status);
/* Says err's text and returns the exit status that belongs to its code. */
int cli_fail(const struct kn_err *err);
int cli_exit_for(int code);

#endif
