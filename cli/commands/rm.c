/* kiln rm: the farm forgets batches that have ended. */
#include "cli/commands/commands.h"
#include "cli/commands/steer.h"

static int run(const struct cli_options *o) {
    return steer_batches(o, KN_VERB_REMOVE);
}

const struct cli_command cmd_rm = {
    .name = "rm",
    .usage = "ID…",
    .words = "forget batches that have ended",
    .more =
        "The farm forgets batches that have ended, and their pictures leave its folder. What was "
        "fetched stays where it is.",
    .examples = "  kiln rm 3f2a\n",
    .groups = CLI_G_FARM,
    .args_min = 1,
    .args_max = -1,
    .run = run,
};
