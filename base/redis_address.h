/* Where a Redis is and how to be let in, as a person writes it. */
#ifndef KN_BASE_REDIS_ADDRESS_H
#define KN_BASE_REDIS_ADDRESS_H

#include <stdbool.h>
#include "base/err.h"

#define KN_REDIS_HOST_MAX 255
#define KN_REDIS_USER_MAX 127
#define KN_REDIS_PASSWORD_MAX 511
#define KN_REDIS_SHOWN_MAX (KN_REDIS_HOST_MAX + 32)

struct kn_redis_address {
    char host[KN_REDIS_HOST_MAX + 1]; /* the path of a Unix socket when port is 0 */
    int port;
    bool tls;
    char user[KN_REDIS_USER_MAX + 1], password[KN_REDIS_PASSWORD_MAX + 1]; /* ""; none */
    int db;
    char shown[KN_REDIS_SHOWN_MAX + 1]; /* for messages: without the password */
};

/* unix:/path | HOST:PORT | redis://[USER[:PASSWORD]@]HOST[:PORT][/DB] | rediss://… (TLS) | unix://[USER:PASSWORD@]/path |
 * @FILE, which holds one of these. A password stands in a file that its user alone may read, and is refused elsewhere:
 * everybody on the machine can read a command line. In a URL, %2F is a '/'. No error's words hold a password. KN_EINVAL,
 * KN_EPERM, KN_ENOENT, KN_EIO. */
KN_MUST_USE int kn_redis_address_read(const char *text, struct kn_redis_address *out, struct kn_err *err);

#endif
