/* Writes everything that the coordinator knows into a store that has gone back: batches, what is being submitted,
 * models. Nothing that the store still has is made worse by it, and what waits for an answer follows behind it. */
#ifndef KILN_COORDINATOR_REPAIR_H
#define KILN_COORDINATOR_REPAIR_H

#include "coordinator/server.h"

/* The store's `back`; ctx is the server. Other than 0: the store did not take all of it, and asks again. */
int server_repair(void *ctx);
/* When that happened last, in words for people; "" while it has not. */
void repair_note(const struct server *s, char out[KN_WAIT_TEXT_MAX]);

#endif
