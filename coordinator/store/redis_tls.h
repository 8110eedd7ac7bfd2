/* TLS between hiredis and a Redis: hiredis 0.14, which Debian 12 has, knows none. For each connection hiredis is given a
 * Unix socket, and a thread carries what goes through it to the Redis and back, encrypted (OpenSSL). */
#ifndef KILN_COORDINATOR_STORE_REDIS_TLS_H
#define KILN_COORDINATOR_STORE_REDIS_TLS_H

#include "base/redis_address.h"

/* A socket for one connection. hiredis connects to `path` at once; then the door is closed, and nothing is left of it. */
struct redis_tls_door {
    char folder[64], path[80];
    int listener;
};
KN_MUST_USE int redis_tls_open(struct redis_tls_door *d, struct kn_err *err);
/* Takes the connection that came, and begins to carry. The Redis' certificate must be one of its host, by an authority of
 * the system's or of $SSL_CERT_FILE. Where that fails, the connection ends, and redis_tls_why() says why. */
void redis_tls_close(struct redis_tls_door *d, const struct kn_redis_address *to);
/* Why the last connection that failed did so: KN_ECONFIG where trying again is no use, else KN_EAGAIN; 0: none has failed
 * since the last one that came up. */
int redis_tls_why(char *out, size_t max);

#endif
