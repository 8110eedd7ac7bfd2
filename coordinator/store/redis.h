/* The store in Redis: how it is opened. See store.h for all that it does. */
#ifndef KILN_COORDINATOR_STORE_REDIS_H
#define KILN_COORDINATOR_STORE_REDIS_H

#include "coordinator/store/store.h"

struct store_redis_options {
    const char *address; /* unix:/path or HOST:PORT */
    bool allow_volatile; /* do not insist on the settings that make its writes durable */
    bool standby;        /* another coordinator leads: wait until it ends, however long */
    const char
        *mark; /* a file that tells how far the store had come: one that is behind it is refused, unless
                            allow_volatile. Deleting it accepts the store as it is. NULL: none */
    uint32_t lead_ms; /* how long the lead lasts without a sign of life (10,000) */
};
/* Connects (waiting for a Redis that is still loading), checks its version and settings, takes the lead.
 * Synchronous. KN_ECONFIG: a setting, the text says which and how to change it; KN_ESTATE: another
 * coordinator leads, or the store has gone back; KN_EIO. Nothing else happens before store_redis_start(). */
KN_MUST_USE int store_redis_open(const struct store_redis_options *opt, struct store **out,
                                 struct kn_err *err);
/* Begins to take writes; the loop carries them out once it runs. Before store_load(), since reading back finds
 * things to write. */
KN_MUST_USE int store_redis_start(struct store *s, uv_loop_t *loop, struct kn_err *err);

#endif
