/* kiln rm: the farm forgets batches that have ended. */
#include "cli/commands/commands.h"
#include "cli/commands/steer.h"

static int run(const struct cli_options *o) {
    return o->all_done ? steer_all(o, KN_VERB_REMOVE, true) : steer_batches(o, KN_VERB_REMOVE);
}

const struct cli_command cmd_rm = {
    .name = "rm",
    .usage = "ID… | --done",
    .words = "forget batches that have ended",
    .more =
        "The farm forgets batches that have ended, and their pictures leave its folder: they are deleted an hour "
        "later, with --now at once. What was fetched stays where it is.",
    .examples =
        "  kiln rm 3f2a\n"
        "  kiln rm --done\n"
        "  kiln rm 3f2a --now\n",
    .groups = CLI_G_FARM | CLI_G_TIMEOUT | CLI_G_DONE,
    .args_max = -1,
    .run = run,
};
