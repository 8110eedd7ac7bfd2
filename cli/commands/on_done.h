/* --on-done COMMAND: a command of the person's own, run by their own waiting kiln when its batches have ended;
 * never by the coordinator or the supervisor. */
#ifndef KILN_CLI_COMMANDS_ON_DONE_H
#define KILN_CLI_COMMANDS_ON_DONE_H

#include "cli/cli.h"

/* Splits the command into words: blanks part them, '…' and "…" keep blanks, \ takes the next character as it is.
 * There is no shell: nothing is expanded. KN_EINVAL with words for the person: a quote is open, or it is empty.
 * argv (of at most CLI_ON_DONE_WORDS, ended by NULL) points into buffer. */
#define CLI_ON_DONE_WORDS 64
#define CLI_ON_DONE_BYTES 4096
KN_MUST_USE int on_done_split(const char *command, char buffer[CLI_ON_DONE_BYTES],
                              char *argv[CLI_ON_DONE_WORDS + 1], struct kn_err *err);

/* Runs the command, if one was given, and waits for it: with KILN_BATCH_ID, KILN_DIR (the folder; "" for none)
 * and KILN_STATE ("done", "failed", "cancelled") in its environment, without anything there that looks like a
 * password, token or key, and with standard output going where messages go. Its own end changes no exit
 * status; a failure is said. */
void on_done_run(const struct cli_options *o, const char *id, const char *dir, const char *state);

#endif
