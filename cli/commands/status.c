/* kiln status: how the batches of a farm stand, or those that are named. */
#include <stdlib.h>
#include <string.h>

#include "cli/commands/commands.h"
#include "cli/print/print.h"
#include "cli/talk/statuses.h"

/* The batches that are asked for, newest first: the farm tells of the oldest first. */
static void pick(struct statuses *s, const struct cli_options *o) {
    size_t n = 0;
    for (size_t i = 0, z = s->count; o->arg_count == 0 && i + 1 < z; i++) {
        struct kn_batch_status x = s->v[i];
        s->v[i] = s->v[--z];
        s->v[z] = x;
    }
    for (size_t i = 0; i < s->count && (!o->limit || n < (size_t)o->limit); i++) {
        char text[32];
        bool waits = s->v[i].wait && !batch_is_over(&s->v[i]);
        if (o->state && strcmp(o->state, "waiting") == 0 ? !waits
            : o->state ? strcmp(batch_state_text(&s->v[i], text), o->state) != 0
                       : false)
            continue;
        s->v[n++] = s->v[i];
    }
    s->count = n;
}

static int run(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    struct statuses s = {0};
    kn_id *ids = NULL;
    cli_catch_signals();
    int rc = farm_connect(o, &c, &err);
    if (rc == KN_OK) rc = statuses_find(c, o, &ids, &err);
    if (rc == KN_OK) rc = statuses_ask(c, (const kn_id *)ids, (size_t)o->arg_count, &s, &err);
    if (rc == KN_OK) {
        pick(&s, o);
        print_for(o)->batches(s.v, s.count, o->arg_count == 1);
    }
    statuses_fini(&s);
    free(ids);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

const struct cli_command cmd_status = {
    .name = "status",
    .usage = "[ID…] [options]",
    .words = "how batches stand",
    .more =
        "Shows the batches of the farm, the newest first, or those asked for; below the table, why one of them "
        "does not go on. An id may be shortened.",
    .examples =
        "  kiln status\n"
        "  kiln status --state active --limit 5\n"
        "  kiln status 3f2a --json\n",
    .groups = CLI_G_FARM | CLI_G_JSON | CLI_G_LIST,
    .args_max = -1,
    .run = run,
};
