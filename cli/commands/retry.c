/* kiln retry: failed images are rendered again. */
#include "cli/commands/commands.h"
#include "cli/commands/steer.h"

static int run(const struct cli_options *o) {
    return steer_batches(o, KN_VERB_RETRY);
}

const struct cli_command cmd_retry = {
    .name = "retry",
    .usage = "ID…",
    .words = "render failed images again",
    .examples = "  kiln retry 3f2a\n",
    .groups = CLI_G_FARM,
    .args_min = 1,
    .args_max = -1,
    .run = run,
};
