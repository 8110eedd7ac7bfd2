/* kiln drain: a worker finishes what it renders and gets nothing more. */
#include <string.h>

#include "cli/commands/commands.h"
#include "cli/talk/batch.h"

static int run(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    cli_catch_signals();
    int rc = farm_steer(o, &c, &err);
    for (int i = 0; rc == KN_OK && i < o->arg_count; i++) {
        struct kn_msg m = {.type = KN_MSG_WORKER_COMMAND};
        if (strlen(o->args[i]) > KN_NAME_MAX) {
            rc = kn_err_set(&err, KN_ENOENT, "%.60s…: no worker has such a name", o->args[i]);
            break;
        }
        m.u.worker_command.worker = o->args[i];
        m.u.worker_command.exit = o->exit_worker;
        rc = client_call(c, &m, KN_MSG_REPLY, CLIENT_PATIENCE_MS, NULL, &err);
        if (rc) kn_err_prefix(&err, "%s", o->args[i]);
    }
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

const struct cli_command cmd_drain = {
    .name = "drain",
    .usage = "WORKER… [options]",
    .words = "give a worker no more work",
    .more = "The worker finishes what it renders, hands back the rest and gets nothing more.",
    .examples =
        "  kiln drain worker-1\n"
        "  kiln drain gpu3 --exit\n",
    .groups = CLI_G_FARM | CLI_G_TIMEOUT | CLI_G_EXIT,
    .args_min = 1,
    .args_max = -1,
    .run = run,
};
