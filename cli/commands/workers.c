/* kiln workers: who renders for a farm, and what they do. */
#include "cli/commands/commands.h"
#include "cli/print/print.h"
#include "cli/talk/batch.h"

static int run(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    struct kn_msg q = {.type = KN_MSG_WORKERS_QUERY}, *r = NULL;
    cli_catch_signals();
    int rc = farm_connect(o, &c, &err);
    if (rc == KN_OK) rc = client_call(c, &q, KN_MSG_WORKER_LIST, CLIENT_PATIENCE_MS, &r, &err);
    if (rc == KN_OK) print_for(o)->workers(&r->u.worker_list);
    kn_msg_destroy(r);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

const struct cli_command cmd_workers = {
    .name = "workers",
    .usage = "[options]",
    .words = "the workers and what they do",
    .examples =
        "  kiln workers\n"
        "  kiln workers --json\n",
    .groups = CLI_G_FARM | CLI_G_JSON,
    .run = run,
};
