/* Messages that the coordinator sends on its own: answers to clients, and the welcome. The core's go out in
 * carry_out.c. A message that cannot be sent is dropped: clients ask again, and workers say hello
 * again.
 *
 * A connection is known to the core by the number that its routing id makes. */
#ifndef KILN_COORDINATOR_SEND_H
#define KILN_COORDINATOR_SEND_H

#include "coordinator/server.h"

uint64_t send_conn(const struct kn_peer *peer);
struct kn_peer send_peer(uint64_t conn);

void send_to(struct kn_sock *sock, const struct kn_peer *peer, const struct kn_msg *m);
/* objects: with the folder of the pictures, where the peer may link them from there. worker: the name of one;
 * to clients "". */
void send_welcome(struct server *s, struct listener *l, const struct kn_peer *peer, uint64_t request,
                  bool objects, const char *worker);
/* Answers whoever waits, if anybody does, and empties *to. Without a text it is the code's words. */
void send_reply(struct server *s, struct reply_to *to, int code, const char *text);
/* The same to all of them, and empties the list. */
void send_replies(struct server *s, struct reply_to *v, int *count, int code, const char *text);

#endif
