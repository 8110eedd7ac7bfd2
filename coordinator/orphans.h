/* Pictures that were kept as objects and that no task came to name: somebody was faster, or the batch was
 * over. They wait here for the next sweep, and go then unless some batch names them. */
#ifndef KILN_COORDINATOR_ORPHANS_H
#define KILN_COORDINATOR_ORPHANS_H

#include "coordinator/server.h"

KN_MUST_USE int orphans_init(struct server *s);
void orphans_fini(struct server *s);

void orphans_add(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]);
/* Deletes the objects of those that have come since the last time. */
void orphans_sweep(struct server *s);
/* Takes off the collector's list of objects to delete what some batch names, or is about to. */
void orphans_keep_named(struct server *s);

#endif
