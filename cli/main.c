/* kiln: the person's command. From the words of a command line into the command that they name. One thread. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/log.h"
#include "cli/commands/commands.h"

/* A closed standard output takes nothing: what is written to it is lost, and that is told (cli_finish). */
static void open_standard(void) {
    bool closed = fcntl(STDOUT_FILENO, F_GETFD) < 0;
    kn_fs_standard();
    int full = closed ? open("/dev/full", O_WRONLY | O_CLOEXEC) : -1;
    if (full >= 0 && dup2(full, STDOUT_FILENO) >= 0) close(full);
    signal(SIGPIPE, SIG_IGN);
}

static int command(int argc, char **argv) {
    kn_log_init("kiln", KN_LOG_ERROR);
    if (argc < 2) {
        commands_help();
        return CLI_BAD_INPUT;
    }
    const char *name = argv[1];
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        puts("kiln " KILN_VERSION);
        return CLI_DONE;
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        const struct cli_command *about = argc > 2 ? command_find(argv[2]) : NULL;
        if (about)
            cli_help_command(about);
        else
            commands_help();
        return CLI_DONE;
    }
    const struct cli_command *cmd = command_find(name);
    if (!cmd) {
        const char *near = command_suggest(name);
        if (near)
            cli_say("%s: unknown command, did you mean %s?", name, near);
        else
            cli_say("%s: unknown command; see kiln --help", name);
        return CLI_BAD_INPUT;
    }
    static struct cli_options options; /* large */
    struct kn_err err = {0};
    int rc = cli_parse(cmd, argc - 1, argv + 1, &options, &err);
    if (rc == 1) {
        cli_help_command(cmd);
        return CLI_DONE;
    }
    if (rc) {
        cli_say("%s", err.text);
        return CLI_BAD_INPUT;
    }
    cli_token = options.token;
    return cmd->run(&options);
}

int main(int argc, char **argv) {
    open_standard();
    return cli_finish(command(argc, argv));
}
