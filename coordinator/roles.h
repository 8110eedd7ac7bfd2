/* Which role may send which message: one table. Pure. */
#ifndef KILN_COORDINATOR_ROLES_H
#define KILN_COORDINATOR_ROLES_H

#include <stdbool.h>
#include "proto/messages.h"

#define ROLES_TEXT_MAX 64

bool role_may(enum kn_role role, enum kn_msg_type type);
/* Who may: "admin, client"; "nobody" of what no peer sends. */
const char *roles_of(enum kn_msg_type type, char out[ROLES_TEXT_MAX]);
/* The batch that a request speaks of; NULL: none in particular. */
const uint8_t *roles_batch_of(const struct kn_msg *m);
/* A request that changes something of that batch. */
bool roles_changes(enum kn_msg_type type);

#endif
