/* Which pictures are decoded before they are kept. Each is parsed; decoding all would make the coordinator the farm's
 * limit. So the first of each worker is decoded, then one in INSPECT_ONE_IN, and all from a worker of which one was ever
 * found bad, for as long as this coordinator lives. */
#ifndef KILN_COORDINATOR_INSPECT_H
#define KILN_COORDINATOR_INSPECT_H

#include "coordinator/server.h"

#define INSPECT_ONE_IN 100

/* This picture of the worker is to be decoded. Who brings it cannot tell. */
bool inspect_wanted(const struct server *s, const char *worker, const kn_digest sha256);
/* A picture of the worker was decoded, and is what it should be. */
void inspect_good(struct server *s, const char *worker);
/* One of its pictures was bad: from now on all are decoded. */
void inspect_bad(struct server *s, const char *worker);
void inspect_fini(struct server *s);

#endif
