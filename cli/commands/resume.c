/* kiln resume: paused batches go on. */
#include "cli/commands/commands.h"
#include "cli/commands/steer.h"

static int run(const struct cli_options *o) {
    return steer_batches(o, KN_VERB_RESUME);
}

const struct cli_command cmd_resume = {
    .name = "resume",
    .usage = "ID…",
    .words = "let paused batches go on",
    .examples = "  kiln resume 3f2a\n",
    .groups = CLI_G_FARM | CLI_G_TIMEOUT,
    .args_min = 1,
    .args_max = -1,
    .run = run,
};
