/* kiln retry: images that failed, or whose pictures the farm has lost, are rendered again. */
#include "cli/commands/commands.h"
#include "cli/commands/steer.h"

static int run(const struct cli_options *o) {
    return steer_batches(o, KN_VERB_RETRY);
}

const struct cli_command cmd_retry = {
    .name = "retry",
    .usage = "ID…",
    .words = "render failed and lost images again",
    .more =
        "Images that failed are rendered again, uncharged; and so are those whose pictures are lost or damaged "
        "on the farm: it looks at every picture of the batch first. Of a batch that was "
        "cancelled, what was cancelled is queued again too.",
    .examples = "  kiln retry 3f2a\n",
    .groups = CLI_G_FARM | CLI_G_TIMEOUT,
    .args_min = 1,
    .args_max = -1,
    .run = run,
};
