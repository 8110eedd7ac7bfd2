/* kiln priority: which batch goes first, after the submit. */
#include <stdlib.h>

#include "base/options.h"
#include "cli/commands/commands.h"
#include "cli/talk/batch.h"

static int run(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    struct kn_msg m = {.type = KN_MSG_BATCH_COMMAND};
    char *end;
    long n = strtol(o->args[1], &end, 10);
    cli_catch_signals();
    int rc = KN_OK;
    if (end == o->args[1] || *end || n < -1000 || n > 1000)
        rc = kn_err_set(&err, KN_EINVAL, "\"%.60s\": a priority is a whole number from -1000 to 1000",
                        o->args[1]);
    if (rc == KN_OK) rc = farm_steer(o, &c, &err);
    if (rc == KN_OK) rc = batch_find(c, o->args[0], m.u.batch_command.batch, &err);
    if (rc == KN_OK) {
        m.u.batch_command.verb = KN_VERB_PRIORITY;
        m.u.batch_command.argument = (int)n;
        rc = client_call(c, &m, KN_MSG_REPLY, CLIENT_RESTART_MS, NULL, &err);
        if (rc) kn_err_prefix(&err, "%s", o->args[0]);
    }
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

const struct cli_command cmd_priority = {
    .name = "priority",
    .usage = "ID N",
    .words = "change which batch goes first",
    .more =
        "Gives a batch another priority, from -1000 to 1000; 0 is usual, and a higher one goes first. A "
        "number below 0 stands behind --.",
    .examples =
        "  kiln priority 3f2a 5\n"
        "  kiln priority -- 3f2a -5\n",
    .groups = CLI_G_FARM | CLI_G_TIMEOUT,
    .args_min = 2,
    .args_max = 2,
    .run = run,
};
