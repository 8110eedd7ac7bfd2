/* The scrub: reads the objects that records name back, slowly, and has those that are damaged or lost
 * rendered again, before somebody comes for them.
 *
 * A round goes through all batches, from one chosen at random, since a coordinator may be started more often
 * than a round takes. When it finds too much it is not the pictures but the disk (a mount that is missing):
 * then it stops, says so, and voids nothing more until the next day. The loop's thread. */
#ifndef KILN_COORDINATOR_SCRUB_H
#define KILN_COORDINATOR_SCRUB_H

#include "coordinator/server.h"

/* first_ms: how long after the start the first round begins; 0: a minute. */
KN_MUST_USE int scrub_begin(struct server *s, uint64_t first_ms);
void scrub_end(struct server *s);  /* before the collector's end; nothing begins any more */
void scrub_fini(struct server *s); /* when the loop has run out */

#endif
