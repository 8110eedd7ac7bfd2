/* See keys.h. */
#include "coordinator/keys.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

#define NAME_LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
#define STRANGERS_A_SECOND 10 /* keys that are not on the list, let in to enrol */

int keys_init(struct server *s) {
    s->keys = kn_map_create(KN_KEYS_MAX);
    s->tokens = kn_map_create(KN_TOKENS_MAX);
    return s->keys && s->tokens ? 0 : KN_ENOMEM;
}

void keys_fini(struct server *s) {
    size_t pos = 0;
    void *v;
    while (s->keys && (v = kn_map_next(s->keys, &pos))) free(v);
    pos = 0;
    while (s->tokens && (v = kn_map_next(s->tokens, &pos))) free(v);
    kn_map_destroy(s->keys);
    kn_map_destroy(s->tokens);
}

/* ---- the lists */

struct known_key *keys_find(const struct server *s, const struct kn_public_key *who) {
    return kn_map_get(s->keys, who->bytes, sizeof who->bytes);
}

struct known_key *keys_next(const struct server *s, size_t *pos) {
    return kn_map_next(s->keys, pos);
}

struct known_token *keys_token(const struct server *s, const uint8_t id[KN_TOKEN_ID_BYTES]) {
    return kn_map_get(s->tokens, id, KN_TOKEN_ID_BYTES);
}

struct known_token *keys_next_token(const struct server *s, size_t *pos) {
    return kn_map_next(s->tokens, pos);
}

static int put_copy(struct kn_map *m, const void *key, size_t key_len, const void *value, size_t len) {
    void *copy = malloc(len);
    if (!copy) return KN_ENOMEM;
    memcpy(copy, value, len);
    int rc = kn_map_put(m, key, key_len, copy);
    if (rc != 0) free(copy);
    return rc;
}

int keys_add(struct server *s, const struct known_key *k) {
    return put_copy(s->keys, k->key.bytes, sizeof k->key.bytes, k, sizeof *k);
}

int keys_add_token(struct server *s, const struct known_token *t) {
    return put_copy(s->tokens, t->id, sizeof t->id, t, sizeof *t);
}

void keys_drop(struct server *s, struct known_key *k) {
    kn_map_remove(s->keys, k->key.bytes, sizeof k->key.bytes);
    free(k);
}

void keys_drop_token(struct server *s, struct known_token *t) {
    kn_map_remove(s->tokens, t->id, sizeof t->id);
    free(t);
}

/* ---- as the store has them */

void keys_text(const struct known_key *k, char out[KEYS_TEXT_MAX]) {
    snprintf(out, KEYS_TEXT_MAX, "%d %d %" PRIu64 " %s", (int)k->role, k->ephemeral, k->made_wall_ms,
             k->name);
}

void keys_token_text(const struct known_token *t, char out[KEYS_TEXT_MAX]) {
    char digest[KN_SHA256_HEX];
    kn_hex(t->digest, sizeof t->digest, digest);
    snprintf(out, KEYS_TEXT_MAX, "%u %s %d %d %" PRIu64 " %" PRIu64 " %s", t->uses, digest, (int)t->role,
             t->ephemeral, t->made_wall_ms, t->expires_wall_ms, t->name);
}

static bool is_role(int n) {
    return n >= KN_ROLE_WORKER && n <= KN_ROLE_READ;
}

static int read_key(struct server *s, const char *field, const char *value) {
    struct known_key k = {.seen_ms = kn_clock_ms()};
    int role = 0, ephemeral = 0, at = 0;
    if (kn_unhex(field, k.key.bytes, sizeof k.key.bytes) != 0 ||
        sscanf(value, "%d %d %" SCNu64 " %n", &role, &ephemeral, &k.made_wall_ms, &at) != 3 || at == 0 ||
        !is_role(role))
        return KN_EPARSE;
    k.role = (enum kn_role)role;
    k.ephemeral = ephemeral != 0;
    snprintf(k.name, sizeof k.name, "%s", value + at);
    return keys_add(s, &k);
}

static int read_token(struct server *s, const char *field, const char *value) {
    struct known_token t = {0};
    char digest[KN_SHA256_HEX];
    int role = 0, ephemeral = 0, at = 0;
    if (kn_unhex(field, t.id, sizeof t.id) != 0 ||
        sscanf(value, "%u %64s %d %d %" SCNu64 " %" SCNu64 " %n", &t.uses, digest, &role, &ephemeral,
               &t.made_wall_ms, &t.expires_wall_ms, &at) != 6 ||
        at == 0 || !is_role(role) || kn_unhex(digest, t.digest, sizeof t.digest) != 0)
        return KN_EPARSE;
    t.role = (enum kn_role)role;
    t.ephemeral = ephemeral != 0;
    snprintf(t.name, sizeof t.name, "%s", value + at);
    return keys_add_token(s, &t);
}

int keys_read(struct server *s, enum store_list list, const char *field, const char *value) {
    int rc = list == STORE_KEYS ? read_key(s, field, value) : read_token(s, field, value);
    if (rc == 0 || rc == KN_ENOMEM) return rc;
    kn_error("%s_unreadable field=%.80s code=%d", list == STORE_KEYS ? "key" : "token", field, rc);
    return 0;
}

/* The lists in the store may be older than these: a key that was taken off must not come back. */
int keys_store(struct server *s) {
    char field[2 * KN_KEY_BYTES + 1], text[KEYS_TEXT_MAX];
    size_t pos = 0;
    const struct known_key *k;
    const struct known_token *t;
    int rc = store_put(s->store, STORE_KEYS, "", "", NULL, NULL);
    if (rc == 0) rc = store_put(s->store, STORE_TOKENS, "", "", NULL, NULL);
    while (rc == 0 && (k = keys_next(s, &pos))) {
        if (k->pending) continue;
        kn_hex(k->key.bytes, sizeof k->key.bytes, field);
        keys_text(k, text);
        rc = store_put(s->store, STORE_KEYS, field, text, NULL, NULL);
    }
    for (pos = 0; rc == 0 && (t = keys_next_token(s, &pos));) {
        kn_hex(t->id, sizeof t->id, field);
        keys_token_text(t, text);
        rc = store_put(s->store, STORE_TOKENS, field, text, NULL, NULL);
    }
    return rc;
}

/* ---- who comes in */

bool keys_admit(void *server, const struct kn_public_key *who, const char *address) {
    struct server *s = server;
    char name[KN_FINGERPRINT_TEXT];
    uint64_t now = kn_clock_ms();
    const struct known_key *k = keys_find(s, who);
    if (k && !k->pending) return true;
    if (now - s->strangers_since_ms >= 1000) {
        s->strangers_since_ms = now;
        s->strangers = 0;
    }
    if (s->strangers >= STRANGERS_A_SECOND) return false; /* it tries again */
    s->strangers++;
    kn_fingerprint(who, name);
    kn_debug("stranger_let_in address=%s key=%s", address, name);
    return true;
}

/* ---- names */

/* "NAME-7", "NAME-gpu0", "NAME-gpu0-2" of NAME. */
static bool is_numbered(const char *text, const char *name) {
    size_t len = strlen(name);
    if (strncmp(text, name, len) != 0 || !text[len]) return false;
    for (const char *p = text + len; *p;) {
        if (*p++ != '-') return false;
        if (strncmp(p, "gpu", 3) == 0) p += 3;
        size_t digits = strspn(p, "0123456789");
        if (digits == 0) return false;
        p += digits;
    }
    return true;
}

static bool is_free(const struct server *s, const struct kn_public_key *key, const char *name) {
    size_t pos = 0;
    const struct known_key *k;
    while ((k = keys_next(s, &pos)))
        if (memcmp(&k->key, key, sizeof *key) != 0 &&
            (strcmp(k->name, name) == 0 || is_numbered(k->name, name) || is_numbered(name, k->name)))
            return false;
    return true;
}

bool keys_choose_name(const struct server *s, const struct kn_public_key *key, const char *base, bool chosen,
                      char out[KN_NAME_MAX + 1]) {
    char print[KN_FINGERPRINT_TEXT];
    if (!base[0]) base = "key";
    if (strspn(base, NAME_LETTERS) != strlen(base)) return false;
    snprintf(out, KN_NAME_MAX + 1, "%s", base);
    if (is_free(s, key, out)) return true;
    if (chosen) return false;
    kn_fingerprint(key, print);
    snprintf(out, KN_NAME_MAX + 1, "%.40s_%.8s", base, print);
    return is_free(s, key, out);
}

bool keys_may_be_named(const struct known_key *k, const char *worker) {
    return strcmp(worker, k->name) == 0 || is_numbered(worker, k->name);
}

/* ---- what they may see */

bool keys_may_see(const struct server *s, const kn_id batch, bool change) {
    const struct known_key *k = s->asker;
    if (!k || k->role == KN_ROLE_ADMIN) return true;
    if (k->role == KN_ROLE_READ) return !change;
    const struct kept_batch *b = batches_find(&s->batches, batch);
    return k->role == KN_ROLE_CLIENT && b && b->has_owner && memcmp(&b->owner, &k->key, sizeof b->owner) == 0;
}

const char *keys_holder(const struct kn_public_key *key, const char *name, char out[KEYS_HOLDER_MAX]) {
    if (!key) return name;
    kn_hex(key->bytes, sizeof key->bytes, out);
    return out;
}
