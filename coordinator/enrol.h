/* Who sent a message, and whether it may: before anything else looks at it. And what is asked about keys and tokens. */
#ifndef KILN_COORDINATOR_ENROL_H
#define KILN_COORDINATOR_ENROL_H

#include "coordinator/server.h"

/* A message that came on sock; l is NULL for the data socket. True: whoever it is may send it, and s->asker is set for as
 * long as it is worked at. False: it was refused, in words, or answered; msg is still the caller's. */
bool enrol_admits(struct server *s, struct listener *l, struct kn_sock *sock, const struct kn_peer *peer,
                  const struct kn_msg *msg);
/* The same of one that could not be decoded. */
bool enrol_admits_garbled(struct server *s, struct kn_sock *sock);
/* A request about keys or tokens. False: it is none. */
bool enrol_message(struct server *s, struct listener *l, const struct kn_peer *peer,
                   const struct kn_msg *msg);
void enrol_sweep(struct server *s); /* keys and tokens whose time is over: every few seconds */

#endif
