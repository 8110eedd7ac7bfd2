/* The batches that a command line names. */
#ifndef KILN_CLI_TALK_STATUSES_H
#define KILN_CLI_TALK_STATUSES_H

#include "cli/talk/batch.h"

/* The ids that the arguments are or begin, all of them or none: one for each argument, the caller's to free. */
KN_MUST_USE int statuses_find(struct client *c, const struct cli_options *o, kn_id **out, struct kn_err *err);

struct statuses {
    struct kn_batch_status *v; /* owns; the strings are borrowed from the replies */
    size_t count;
    struct kn_msg **replies; /* owns */
    size_t reply_count;
};

/* Asks how the batches stand, in the order of the ids; none given (count 0): all of the farm's. On failure
 * there is nothing to fini. */
KN_MUST_USE int statuses_ask(struct client *c, const kn_id *ids, size_t count, struct statuses *out,
                             struct kn_err *err);
void statuses_fini(struct statuses *s);

#endif
