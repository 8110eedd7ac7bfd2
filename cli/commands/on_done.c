/* See on_done.h. */
#include "cli/commands/on_done.h"

#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

int on_done_split(const char *command, char buffer[CLI_ON_DONE_BYTES], char *argv[CLI_ON_DONE_WORDS + 1],
                  struct kn_err *err) {
    size_t n = 0;
    int count = 0;
    bool in_word = false;
    char quote = '\0';
    if (strlen(command) >= CLI_ON_DONE_BYTES)
        return kn_err_set(err, KN_ELIMIT, "--on-done: longer than %d bytes", CLI_ON_DONE_BYTES - 1);
    for (const char *p = command; *p; p++) {
        bool blank = !quote && isspace((unsigned char)*p);
        if (blank && in_word) buffer[n++] = '\0';
        if (blank) {
            in_word = false;
            continue;
        }
        if (!in_word) {
            if (count == CLI_ON_DONE_WORDS)
                return kn_err_set(err, KN_ELIMIT, "--on-done: more than %d words", CLI_ON_DONE_WORDS);
            argv[count++] = buffer + n;
            in_word = true;
        }
        if (quote && *p == quote)
            quote = '\0';
        else if (!quote && (*p == '\'' || *p == '"'))
            quote = *p;
        else if (*p == '\\' && quote != '\'' && p[1])
            buffer[n++] = *++p;
        else
            buffer[n++] = *p;
    }
    buffer[n] = '\0';
    argv[count] = NULL;
    if (quote) return kn_err_set(err, KN_EINVAL, "--on-done: a %c is not closed", quote);
    return count ? KN_OK : kn_err_set(err, KN_EINVAL, "--on-done: an empty command");
}

/* True for a variable that may hold what opens a door: tokens, passwords, keys. */
static bool is_secret(const char *variable) {
    static const char *const parts[] = {"TOKEN", "SECRET", "PASSW", "CREDENTIAL", "AUTH", "KEY"};
    char name[256];
    size_t len = strcspn(variable, "=");
    if (len >= sizeof name) len = sizeof name - 1;
    for (size_t i = 0; i < len; i++) name[i] = (char)toupper((unsigned char)variable[i]);
    name[len] = '\0';
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (strstr(name, parts[i])) return true;
    /* an address may carry a password: redis://user:password@host */
    return strstr(variable + strcspn(variable, "="), "://") && strchr(variable, '@');
}

static void drop_secrets(void) {
    for (char **e = environ; *e;) {
        if (!is_secret(*e)) {
            e++;
            continue;
        }
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(*e, "="), *e);
        if (unsetenv(name)) e++;
    }
}

void on_done_run(const struct cli_options *o, const char *id, const char *dir, const char *state) {
    char buffer[CLI_ON_DONE_BYTES], *argv[CLI_ON_DONE_WORDS + 1];
    struct kn_err err = {0};
    int status = 0;
    if (!o->on_done || on_done_split(o->on_done, buffer, argv, &err)) return; /* it was looked at before */
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        cli_say("--on-done: fork: %s", strerror(errno));
        return;
    }
    if (pid == 0) {
        drop_secrets();
        setenv("KILN_BATCH_ID", id, 1);
        setenv("KILN_DIR", dir, 1);
        setenv("KILN_STATE", state, 1);
        signal(SIGPIPE, SIG_DFL);
        dup2(STDERR_FILENO, STDOUT_FILENO);
        execvp(argv[0], argv);
        cli_say("--on-done: %s: %s", argv[0], strerror(errno));
        _exit(127);
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) return;
    if (WIFSIGNALED(status))
        cli_say("--on-done: %s ended by signal %d", argv[0], WTERMSIG(status));
    else if (WEXITSTATUS(status) && WEXITSTATUS(status) != 127)
        cli_say("--on-done: %s ended with status %d", argv[0], WEXITSTATUS(status));
}
