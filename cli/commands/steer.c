/* See steer.h. */
#include "cli/commands/steer.h"

#include <stdlib.h>

#include "cli/talk/statuses.h"

int steer_batches(const struct cli_options *o, enum kn_batch_verb verb) {
    struct kn_err err = {0};
    struct client *c = NULL;
    kn_id *ids = NULL;
    cli_catch_signals();
    int rc = farm_connect(o, &c, &err);
    if (rc == KN_OK) rc = statuses_find(c, o, &ids, &err); /* all of them, before anything is done */
    for (int i = 0; rc == KN_OK && i < o->arg_count; i++) {
        rc = batch_command(c, ids[i], verb, &err);
        if (rc) kn_err_prefix(&err, "%s", o->args[i]);
    }
    free(ids);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}
