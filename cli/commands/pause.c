/* kiln pause: what is not handed out yet waits. */
#include "cli/commands/commands.h"
#include "cli/commands/steer.h"

static int run(const struct cli_options *o) {
    return steer_batches(o, KN_VERB_PAUSE);
}

const struct cli_command cmd_pause = {
    .name = "pause",
    .usage = "ID…",
    .words = "hold batches",
    .more = "What is not handed out yet waits for kiln resume.",
    .examples = "  kiln pause 3f2a\n",
    .groups = CLI_G_FARM | CLI_G_TIMEOUT,
    .args_min = 1,
    .args_max = -1,
    .run = run,
};
