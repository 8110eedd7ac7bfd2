/* Key pairs (Curve25519) by which processes know each other over a network. A pair is made once, where it is used, and
 * kept in a file that its user alone may read; only the public half ever leaves. By libcrypto. */
#ifndef KN_BASE_KEYS_H
#define KN_BASE_KEYS_H

#include <stdint.h>
#include "base/err.h"

#define KN_KEY_BYTES 32
#define KN_FINGERPRINT_TEXT 17 /* 16 hex digits and the terminating 0 */

struct kn_public_key {
    uint8_t bytes[KN_KEY_BYTES];
};

struct kn_key_pair {
    struct kn_public_key own;
    uint8_t secret[KN_KEY_BYTES];
};

/* Reads the pair in DIR/NAME; makes it (0600), and DIR (0700), where there is none. However many processes come for it at
 * once, all get the same one, and a kill leaves the whole file or none. KN_EPERM: the folder or the file is another user's,
 * or somebody else may read it; KN_EPARSE: that is no key pair. */
KN_MUST_USE int kn_key_pair_keep(const char *dir, const char *name, struct kn_key_pair *out,
                                 struct kn_err *err);
void kn_key_pair_forget(struct kn_key_pair *p); /* its bytes leave the memory */
/* A short name of a public key, for logs and for a person to compare. */
void kn_fingerprint(const struct kn_public_key *key, char out[KN_FINGERPRINT_TEXT]);

#endif
