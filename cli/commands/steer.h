/* The commands that tell a farm what becomes of a batch: cancel, pause, resume, retry, rm. */
#ifndef KILN_CLI_COMMANDS_STEER_H
#define KILN_CLI_COMMANDS_STEER_H

#include "cli/cli.h"
#include "proto/codec.h"

/* Finds all the batches that the arguments name, then does it to each. The exit status. */
int steer_batches(const struct cli_options *o, enum kn_batch_verb verb);

#endif
