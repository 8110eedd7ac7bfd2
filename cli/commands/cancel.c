/* kiln cancel: what is not rendered yet ends as cancelled. */
#include "cli/commands/commands.h"
#include "cli/commands/steer.h"

static int run(const struct cli_options *o) {
    return steer_batches(o, KN_VERB_CANCEL);
}

const struct cli_command cmd_cancel = {
    .name = "cancel",
    .usage = "ID…",
    .words = "stop batches",
    .more = "What is not rendered yet ends as cancelled.",
    .examples = "  kiln cancel 3f2a\n",
    .groups = CLI_G_FARM,
    .args_min = 1,
    .args_max = -1,
    .run = run,
};
