/* See cli.h. */
#include "cli/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/text.h"

volatile sig_atomic_t cli_interrupted, cli_farm_pid;
const char *cli_token;

static void on_signal(int sig) {
    if (cli_interrupted > 0 && sig == SIGINT) { /* the second Ctrl-C: at once */
        if (cli_farm_pid > 1) kill(cli_farm_pid, SIGQUIT);
        _exit(CLI_INTERRUPTED);
    }
    cli_interrupted++;
}

void cli_catch_signals(void) {
    struct sigaction sa = {.sa_handler = on_signal};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGHUP, &sa, NULL);
}

void cli_say(const char *fmt, ...) {
    va_list ap;
    fflush(stdout);
    fputs("kiln: ", stderr);
    va_start(ap, fmt);
    text_vprint(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

static const char *owed;
static int owed_status;

void cli_owe(const char *text, int status) {
    owed = text;
    owed_status = status;
}

int cli_finish(int status) {
    int why = fflush(stdout) ? errno : 0;
    if (!why && !ferror(stdout)) return status;
    if (!why) why = EIO;
    if (owed)
        cli_say("standard output cannot be written (%s): %s", strerror(why), owed);
    else if (why != EPIPE) /* whoever reads no further, as head does, knows it */
        cli_say("standard output cannot be written: %s", strerror(why));
    return status != CLI_DONE ? status : owed ? owed_status : CLI_BAD_INPUT;
}

int cli_exit_for(int code) {
    switch (code) {
    case KN_OK:
        return CLI_DONE;
    case KN_ECANCELED:
        return CLI_INTERRUPTED;
    case KN_EUNSURE:
        return CLI_UNSURE;
    case KN_EPERM:
        return CLI_NOT_ALLOWED;
    case KN_ENOENT:
    case KN_EGONE:
    case KN_ETIMEOUT:
        return CLI_NO_FARM;
    case KN_EINVAL:
    case KN_ELIMIT:
    case KN_EPARSE:
    case KN_EMODEL:
    case KN_ESTATE:
    case KN_EEXIST:
    case KN_ECONFIG:
    case KN_EUNSUPPORTED:
        return CLI_BAD_INPUT;
    default:
        return CLI_FAILED;
    }
}

int cli_fail(const struct kn_err *err) {
    if (err->code != KN_ECANCELED) cli_say("%s", err->text[0] ? err->text : kn_err_words(err->code));
    return cli_exit_for(err->code);
}
