/* The commands that steer batches: each of those named, once all are found, or a whole kind of them. */
#ifndef KILN_CLI_COMMANDS_STEER_H
#define KILN_CLI_COMMANDS_STEER_H

#include "cli/cli.h"
#include "proto/codec.h"

int steer_batches(const struct cli_options *o, enum kn_batch_verb verb);
/* The same to every batch that has ended (`over`), or to every one that has not. One that changes meanwhile is
 * left out. */
int steer_all(const struct cli_options *o, enum kn_batch_verb verb, bool over);

#endif
