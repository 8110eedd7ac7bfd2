/* kiln's commands: one a file, which holds what --help says of it, what it accepts, and what it does. */
#ifndef KILN_CLI_COMMANDS_COMMANDS_H
#define KILN_CLI_COMMANDS_COMMANDS_H

#include "cli/args.h"

#define CLI_USAGE_INPUT "FILE… [options]"

extern const struct cli_command cmd_render, cmd_up, cmd_down, cmd_submit, cmd_status, cmd_wait, cmd_fetch,
    cmd_cancel, cmd_pause, cmd_resume, cmd_retry, cmd_rm, cmd_workers, cmd_drain, cmd_top, cmd_verify,
    cmd_doctor, cmd_explain, cmd_priority, cmd_token, cmd_keys;

const struct cli_command *command_find(const char *name); /* NULL: there is none */
const char *command_suggest(const char *name);            /* the nearest name, or NULL */
void commands_help(void);                                 /* what `kiln --help` prints */

#endif
