/* Who talks to clients, which are people's commands: submission, queries and commands on the control socket,
 * objects on the data socket. */
#ifndef KILN_COORDINATOR_CLIENTS_H
#define KILN_COORDINATOR_CLIENTS_H

#include "coordinator/server.h"

/* A message on the control socket that no worker sends; takes msg. */
void clients_message(struct server *s, struct listener *l, const struct kn_peer *peer, struct kn_msg *msg);
/* A message that could not be decoded: a client that asked something is told why. */
void clients_garbled(struct server *s, struct listener *l, const struct kn_peer *peer,
                     const struct kn_garbled *g);
/* An ObjectGet on the data socket. */
void clients_object(struct server *s, const struct kn_peer *peer, const struct kn_msg *msg);
void clients_sweep(struct server *s); /* submissions that were never finished */

#endif
