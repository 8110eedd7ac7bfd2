/* The farm's list of keys, who may connect over the network and as whom, and the tokens by which a key comes on it. In
 * memory, since the guard answers from here; read from the store at the start, and written there under the term.
 *
 * A key belongs to a machine or a person, has a role (roles.h) and a name that no other key has. A worker's names are its
 * key's name, and that with a number behind it. Who comes through a Unix socket has no key, and may do everything. */
#ifndef KILN_COORDINATOR_KEYS_H
#define KILN_COORDINATOR_KEYS_H

#include "base/token.h"
#include "coordinator/server.h"

struct known_key {
    struct kn_public_key key;
    enum kn_role role;
    bool ephemeral; /* leaves the list when it has not been seen for a while */
    bool pending;   /* the store has not answered: it does not count yet */
    uint64_t made_wall_ms, seen_wall_ms, seen_ms;
    char name[KN_NAME_MAX + 1];
};

struct known_token {
    uint8_t id[KN_TOKEN_ID_BYTES];
    kn_digest digest; /* of its secret, which is kept nowhere */
    enum kn_role role;
    bool ephemeral;
    uint32_t uses;                          /* that are left */
    uint64_t made_wall_ms, expires_wall_ms; /* 0: never */
    char name[KN_NAME_MAX + 1];
};

/* A line of the store: numbers, and behind them the name. */
#define KEYS_TEXT_MAX (KN_NAME_MAX + KN_SHA256_HEX + 128)

KN_MUST_USE int keys_init(struct server *s);
void keys_fini(struct server *s);
/* For store_reader.entry: a line that cannot be read costs itself. */
KN_MUST_USE int keys_read(struct server *s, enum store_list list, const char *field, const char *value);
/* Tells the store of all of them again. */
KN_MUST_USE int keys_store(struct server *s);

/* For the guard: those on the list, and a few others, who may enrol. */
bool keys_admit(void *server, const struct kn_public_key *who, const char *address);
struct known_key *keys_find(const struct server *s,
                            const struct kn_public_key *who); /* NULL: not on the list */
struct known_key *keys_next(const struct server *s, size_t *pos);
struct known_token *keys_token(const struct server *s, const uint8_t id[KN_TOKEN_ID_BYTES]);
struct known_token *keys_next_token(const struct server *s, size_t *pos);

/* Copied. KN_ELIMIT, KN_ENOMEM, KN_EEXIST. */
KN_MUST_USE int keys_add(struct server *s, const struct known_key *k);
KN_MUST_USE int keys_add_token(struct server *s, const struct known_token *t);
void keys_drop(struct server *s, struct known_key *k);
void keys_drop_token(struct server *s, struct known_token *t);
void keys_text(const struct known_key *k, char out[KEYS_TEXT_MAX]);
void keys_token_text(const struct known_token *t, char out[KEYS_TEXT_MAX]);

/* A name for a key: base, or, where that is another's, base with a part of the key's fingerprint. False: base is another's,
 * and no other name will do, or it is no name. */
bool keys_choose_name(const struct server *s, const struct kn_public_key *key, const char *base, bool chosen,
                      char out[KN_NAME_MAX + 1]);
/* The worker of that name may be whose key this is. */
bool keys_may_be_named(const struct known_key *k, const char *worker);
/* Whoever sent the message in hand may do this with the batch of that id. */
bool keys_may_see(const struct server *s, const kn_id batch, bool change);
/* The holder of a worker's tickets: its key, or its name where it has none. */
#define KEYS_HOLDER_MAX (2 * KN_KEY_BYTES + 1)
const char *keys_holder(const struct kn_public_key *key, const char *name, char out[KEYS_HOLDER_MAX]);

#endif
