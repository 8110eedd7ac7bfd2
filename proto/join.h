/* A machine's way onto a farm that is reached by TCP: it keeps a key pair of its own for each farm, remembers the farm's key,
 * and is put on the farm's list by a token, once. Through a Unix socket none of this is needed.
 *
 *     $STATE_DIRECTORY/keys (of a unit of systemd: /var/lib/kiln/keys), else ~/.kiln/keys:
 *     FARM-worker.key, FARM-client.key   its key pairs, by the fingerprint of the farm's key
 *     farm-NAME                          the farm's key and its endpoint, NAME made of that */
#ifndef KN_PROTO_JOIN_H
#define KN_PROTO_JOIN_H

#include "proto/wire.h"

#define KN_JOIN_MAX 8 /* endpoints of a farm: of its coordinator and of those that stand by */

/* "A" or "A,B,…": each as kn_endpoint_resolve() takes it. */
struct kn_join_list {
    char v[KN_JOIN_MAX][KN_ENDPOINT_MAX + 1];
    int count;
};
KN_MUST_USE int kn_join_split(const char *text, struct kn_join_list *out, struct kn_err *err);

struct kn_join_options {
    const struct kn_join_list *farm;
    const char *token; /* as kn_token_read(); NULL: of $KILN_TOKEN, if it is there */
    bool worker;       /* else a client */
    const char *name;  /* for its key on the list, where the token has none */
    bool chosen;       /* a person chose it */
    void (*say)(const char *endpoint,
                const char *why); /* as soon as it is known that it may never answer; NULL: the log does */
    int timeout_ms;               /* for an answer; 0: as long as it takes, and the log tells */
};

struct kn_join {
    bool keyed; /* the farm is reached by TCP: */
    struct kn_key_pair own;
    struct kn_public_key server;
};

/* Enrols, where there is a token, and remembers the farm. KN_ECONFIG: it is not known here, and there is no token; KN_EPERM,
 * KN_EEXIST: refused, in words; KN_ETIMEOUT. The keys are the caller's to forget. */
KN_MUST_USE int kn_join(const struct kn_join_options *o, struct kn_join *out, struct kn_err *err);

#endif
