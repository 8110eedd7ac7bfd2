/* See steer.h. */
#include "cli/commands/steer.h"

#include <stdlib.h>

#include "cli/talk/statuses.h"

static int steer_one(struct client *c, const struct cli_options *o, const kn_id id, enum kn_batch_verb verb,
                     struct kn_err *err) {
    if (verb != KN_VERB_REMOVE) return batch_command(c, id, verb, err);
    struct kn_msg *there;
    int rc = batch_query(c, id, &there, err);
    if (rc) return rc;
    kn_msg_destroy(there);
    rc = batch_remove(c, id, o->now, err);
    /* It was there. So the answer that it is removed was lost with its coordinator, and this is the answer to the same
     * question, asked again. */
    return rc == KN_ENOENT ? KN_OK : rc;
}

int steer_all(const struct cli_options *o, enum kn_batch_verb verb, bool over) {
    struct kn_err err = {0};
    struct client *c = NULL;
    struct statuses s = {0};
    size_t count = 0;
    cli_catch_signals();
    int rc = KN_OK;
    if (o->arg_count > 0) rc = kn_err_set(&err, KN_EINVAL, "%s: either ids or all of them", o->args[0]);
    if (rc == KN_OK) rc = farm_steer(o, &c, &err);
    if (rc == KN_OK) rc = statuses_ask(c, NULL, 0, &s, &err);
    for (size_t i = 0; rc == KN_OK && i < s.count; i++) {
        bool ended = s.v[i].state == KN_BATCH_DONE || s.v[i].state == KN_BATCH_CANCELLED;
        if (ended != over || (over && !batch_is_over(&s.v[i]))) continue;
        rc = steer_one(c, o, s.v[i].batch, verb, &err);
        if (rc == KN_ENOENT || rc == KN_ESTATE)
            rc = KN_OK;
        else
            count += rc == KN_OK;
    }
    if (rc == KN_OK) cli_say("%zu batch%s", count, count == 1 ? "" : "es");
    statuses_fini(&s);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

int steer_batches(const struct cli_options *o, enum kn_batch_verb verb) {
    struct kn_err err = {0};
    struct client *c = NULL;
    kn_id *ids = NULL;
    cli_catch_signals();
    int rc = KN_OK;
    if (o->arg_count == 0) rc = kn_err_set(&err, KN_EINVAL, "no id: kiln status lists them");
    if (rc == KN_OK) rc = farm_steer(o, &c, &err);
    if (rc == KN_OK) rc = statuses_find(c, o, &ids, &err); /* all of them, before anything is done */
    for (int i = 0; rc == KN_OK && i < o->arg_count; i++) {
        rc = steer_one(c, o, ids[i], verb, &err);
        if (rc) kn_err_prefix(&err, "%s", o->args[i]);
    }
    free(ids);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}
