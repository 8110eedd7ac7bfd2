/* Who may connect to this process over the network: each connection to a TCP endpoint that it binds shows a public key,
 * which the guard takes or refuses. It answers libzmq's ZAP requests on the loop's thread, from memory: while it does not
 * answer, nobody comes in. */
#ifndef KN_PROTO_GUARD_H
#define KN_PROTO_GUARD_H

#include <uv.h>
#include <stdbool.h>
#include "base/keys.h"

/* The ZAP domains of the endpoints: the guard asks for a key in the one, and in the other for none. */
#define KN_GUARD_NETWORK "network"
#define KN_GUARD_UNIX "unix"

struct kn_guard;

/* True: let it in. address is the peer's, without a port. */
typedef bool (*kn_guard_admit)(void *ctx, const struct kn_public_key *who, const char *address);

/* zmq_ctx is the context whose sockets it guards; one guard each. */
KN_MUST_USE int kn_guard_create(uv_loop_t *loop, void *zmq_ctx, kn_guard_admit admit, void *ctx,
                                struct kn_guard **out, struct kn_err *err);
/* An IPv4 address as a person writes it: our sockets speak IPv6 and see it mapped. */
const char *kn_guard_plain(const char *address);
void kn_guard_destroy(struct kn_guard *g); /* before the loop ends and the context goes; NULL is fine */

#endif
