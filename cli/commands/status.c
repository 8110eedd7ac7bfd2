/* kiln status: how the batches of a farm stand, or those that are named. */
#include <stdlib.h>

#include "cli/commands/commands.h"
#include "cli/print/print.h"
#include "cli/talk/statuses.h"

static int run(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    struct statuses s = {0};
    kn_id *ids = NULL;
    cli_catch_signals();
    int rc = farm_connect(o, &c, &err);
    if (rc == KN_OK) rc = statuses_find(c, o, &ids, &err);
    if (rc == KN_OK) rc = statuses_ask(c, (const kn_id *)ids, (size_t)o->arg_count, &s, &err);
    if (rc == KN_OK) print_for(o)->batches(s.v, s.count, o->arg_count == 1);
    statuses_fini(&s);
    free(ids);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

const struct cli_command cmd_status = {
    .name = "status",
    .usage = "[ID…]",
    .words = "how batches stand",
    .more = "Shows the batches of the farm, or those asked for. An id may be shortened.",
    .examples =
        "  kiln status\n"
        "  kiln status 3f2a --json\n",
    .groups = CLI_G_FARM | CLI_G_JSON,
    .args_max = -1,
    .run = run,
};
