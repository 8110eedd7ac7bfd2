/* kiln cancel: what is not rendered yet ends as cancelled. */
#include "cli/commands/commands.h"
#include "cli/commands/steer.h"

static int run(const struct cli_options *o) {
    return o->all ? steer_all(o, KN_VERB_CANCEL, false) : steer_batches(o, KN_VERB_CANCEL);
}

const struct cli_command cmd_cancel = {
    .name = "cancel",
    .usage = "ID… | --all",
    .words = "stop batches",
    .more = "What is not rendered yet ends as cancelled; kiln retry queues it again.",
    .examples =
        "  kiln cancel 3f2a\n"
        "  kiln cancel --all\n",
    .groups = CLI_G_FARM | CLI_G_TIMEOUT | CLI_G_ALL,
    .args_max = -1,
    .run = run,
};
