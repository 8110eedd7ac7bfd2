/* A token: one string that a node or a client shows once, to have its own key put on a farm's list. It holds the farm's
 * public key, so that its secret is sent to no other farm. The farm keeps only a digest of it. */
#ifndef KN_BASE_TOKEN_H
#define KN_BASE_TOKEN_H

#include <stdbool.h>
#include <stdint.h>
#include "base/hash.h"
#include "base/keys.h"

#define KN_TOKEN_ID_BYTES 8
#define KN_TOKEN_SECRET_BYTES 16
#define KN_TOKEN_HEAD "kiln1."
#define KN_TOKEN_TEXT                                                                                        \
    (sizeof KN_TOKEN_HEAD + 2 * (KN_KEY_BYTES + KN_TOKEN_ID_BYTES + KN_TOKEN_SECRET_BYTES) +                 \
     2) /* with the terminating 0 */

struct kn_token {
    struct kn_public_key server;
    uint8_t id[KN_TOKEN_ID_BYTES];
    uint8_t secret[KN_TOKEN_SECRET_BYTES];
};

KN_MUST_USE int kn_token_make(const struct kn_public_key *server, struct kn_token *out, struct kn_err *err);
/* kiln1.SERVER.ID.SECRET, in hexadecimal digits: no shell takes any of it for something else. */
void kn_token_format(const struct kn_token *t, char out[KN_TOKEN_TEXT]);
KN_MUST_USE int kn_token_parse(const char *text, struct kn_token *out, struct kn_err *err);
/* From "@FILE", from standard input ("-") or, with NULL, from $KILN_TOKEN, which is wiped: no child and nobody who looks at this
 * process's environment finds it there afterwards. KN_ENOENT: the variable is not set. A token itself is refused, since
 * everybody on the machine can read a command line. No error's words hold any of the text. */
KN_MUST_USE int kn_token_read(const char *where, struct kn_token *out, struct kn_err *err);
/* For a person who says --insecure: three commands that change a farm over. */
extern const char kn_insecure_gone[];
/* The digest that a farm keeps instead of the secret. */
void kn_token_digest(const uint8_t id[KN_TOKEN_ID_BYTES], const uint8_t secret[KN_TOKEN_SECRET_BYTES],
                     kn_digest out);
/* Takes the same time wherever the two differ. */
bool kn_token_fits(const uint8_t id[KN_TOKEN_ID_BYTES], const uint8_t secret[KN_TOKEN_SECRET_BYTES],
                   const kn_digest kept);

#endif
