/* Reading the store back after a start, into the batches and the core. */
#ifndef KILN_COORDINATOR_RECOVER_H
#define KILN_COORDINATOR_RECOVER_H

#include "coordinator/server.h"

/* Once, after server_create() and before server_listen(). */
KN_MUST_USE int server_recover(struct server *s, struct kn_err *err);

#endif
