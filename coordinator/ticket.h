/* Tickets: proof that a shard was granted.
 *
 * A grant carries a ticket, and whoever brings a result of it, or lists it as held, brings the ticket back. It names
 * the tasks of the grant and has an HMAC-SHA-256 over batch, tasks, term, shard and holder under the farm's secret,
 * which all coordinators of a farm read from its store. So nothing is kept of a grant, and any later coordinator
 * can tell a late result from one that nobody asked for.
 *
 *     HMAC (32 bytes) | first task, number of tasks (4 bytes each, the lowest first): a pair for each run
 *
 * The holder is who the grant was given to: the key of its worker, or its name where it has none. Pure; any thread. */
#ifndef KILN_COORDINATOR_TICKET_H
#define KILN_COORDINATOR_TICKET_H

#include "base/hash.h"
#include "base/limits.h"

#define TICKET_BYTES_MAX (KN_SHA256_BYTES + 8 * KN_SHARD_TASKS_MAX) /* no two tasks in a row */

struct ticket_grant {
    const uint8_t *batch; /* kn_id */
    uint64_t shard, term;
    const char *holder; /* keys_holder() */
};

/* The ticket of a grant of these tasks, at most KN_SHARD_TASKS_MAX; returns its length. */
size_t ticket_make(const kn_digest secret, const struct ticket_grant *g, const uint32_t *tasks, size_t count,
                   uint8_t out[TICKET_BYTES_MAX]);
/* This farm made the ticket, for this grant. Bytes of a peer. */
bool ticket_is_good(const kn_digest secret, const struct ticket_grant *g, const uint8_t *ticket, size_t len);
/* A good ticket is for this task too. */
bool ticket_names(const uint8_t *ticket, size_t len, uint32_t task);

#endif
