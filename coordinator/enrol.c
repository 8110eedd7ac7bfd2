/* See enrol.h.
 *
 * A key that is not on the list may say one thing, Enrol, with a token's secret: then the store takes a use of the token and
 * puts the key on the list in one script, and from that answer on the key is known. Asked again by the same key, the answer
 * is the same, and no other use is taken. A key that is taken off the list counts no more from that moment on, and what its
 * worker held goes back; the answer waits for the store. */
#include "coordinator/enrol.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/keys.h"
#include "coordinator/roles.h"
#include "coordinator/send.h"
#include "coordinator/workers.h"

#define EPHEMERAL_MS (10 * 60 * 1000ull)       /* without a word from it, such a key leaves the list */
#define TOKEN_KEPT_MS (24 * 60 * 60 * 1000ull) /* a token that has expired, so that its refusal has words */

/* ---- who it is */

static void refuse(struct kn_sock *sock, const struct kn_peer *peer, const struct kn_msg *msg, int code,
                   const char *text) {
    struct kn_msg m = {.type = KN_MSG_REPLY, .request = msg->request};
    if (msg->type == KN_MSG_OBJECT_GET) {
        m.type = KN_MSG_OBJECT_REPLY;
        memcpy(m.u.object_reply.sha256, msg->u.object_get.sha256, sizeof m.u.object_reply.sha256);
        m.u.object_reply.code = code;
        m.u.object_reply.text = text;
    } else {
        m.u.reply.code = code;
        m.u.reply.text = text;
    }
    send_to(sock, peer, &m);
}

static void on_stranger(struct kn_sock *sock, const struct kn_peer *peer, const struct kn_msg *msg) {
    char name[KN_FINGERPRINT_TEXT], text[KN_REASON_MAX];
    kn_fingerprint(kn_sock_sender(sock), name);
    snprintf(
        text, sizeof text,
        "this farm does not know the key %s of this machine: it was removed (kiln keys rm), or has never enrolled. "
        "kiln token new, on the farm, makes a token that lets it in, with --token @FILE",
        name);
    kn_warn_of(send_conn(peer), "key_refused address=%s key=%s message=%s", kn_sock_sender_address(sock),
               name, kn_msg_name(msg->type));
    refuse(sock, peer, msg, KN_EPERM, text);
}

bool enrol_admits(struct server *s, struct listener *l, struct kn_sock *sock, const struct kn_peer *peer,
                  const struct kn_msg *msg) {
    const struct kn_public_key *who = kn_sock_sender(sock);
    char text[KN_REASON_MAX], roles[ROLES_TEXT_MAX];
    struct known_key *k = who ? keys_find(s, who) : NULL;
    s->asker = NULL;
    if (!who) return true; /* through a Unix socket */
    if (!k || k->pending) {
        if (!kn_sock_is_senders_first(sock)) return false;
        if (l && msg->type == KN_MSG_ENROL) return true;
        on_stranger(sock, peer, msg);
        return false;
    }
    kn_sock_keep_sender(sock);
    k->seen_ms = kn_clock_ms();
    k->seen_wall_ms = kn_wall_ms();
    s->asker = k;
    if (!role_may(k->role, msg->type)) {
        snprintf(text, sizeof text, "the key of this machine (%s) is %s's, and this is for: %s", k->name,
                 k->role == KN_ROLE_READ ? "a reader" : kn_role_name(k->role), roles_of(msg->type, roles));
        kn_warn_of(send_conn(peer), "message_refused address=%s name=%s role=%s message=%s",
                   kn_sock_sender_address(sock), k->name, kn_role_name(k->role), kn_msg_name(msg->type));
        refuse(sock, peer, msg, KN_EPERM, text);
        return false;
    }
    const uint8_t *batch = roles_batch_of(msg);
    if (!batch || keys_may_see(s, batch, roles_changes(msg->type))) return true;
    if (msg->type == KN_MSG_SUBMIT_BEGIN && !batches_find(&s->batches, batch))
        return true;                                     /* it will be its own */
    refuse(sock, peer, msg, KN_ENOENT, "no such batch"); /* of its own; others are none of its business */
    return false;
}

bool enrol_admits_garbled(struct server *s, struct kn_sock *sock) {
    const struct kn_public_key *who = kn_sock_sender(sock);
    const struct known_key *k = who ? keys_find(s, who) : NULL;
    if (!who || (k && !k->pending)) return true;
    (void)kn_sock_is_senders_first(sock);
    return false;
}

/* ---- enrolment */

struct wish { /* a request that waits for the store */
    struct server *s;
    struct reply_to to;
    bool enrols;
    struct known_key key; /* enrols: as it will be on the list */
    struct known_token token;
    bool adds; /* a token: it is added when the store has it */
};

static struct wish *wish_create(struct server *s, struct listener *l, const struct kn_peer *peer,
                                const struct kn_msg *msg) {
    struct wish *w = calloc(1, sizeof *w);
    if (w) *w = (struct wish){.s = s, .to = {.sock = l->sock, .peer = *peer, .request = msg->request}};
    return w;
}

static void welcome_key(const struct reply_to *to, const struct known_key *k) {
    struct kn_msg m = {.type = KN_MSG_ENROLLED, .request = to->request};
    m.u.enrolled.role = k->role;
    m.u.enrolled.name = k->name;
    send_to(to->sock, &to->peer, &m);
}

static void on_enrolled(void *ctx, int code, const void *data, size_t len) {
    struct wish *w = ctx;
    struct server *s = w->s;
    (void)data;
    (void)len;
    struct known_key *k = s->closing ? NULL : keys_find(s, &w->key.key);
    struct known_token *t = k ? keys_token(s, w->token.id) : NULL;
    char name[KN_FINGERPRINT_TEXT];
    kn_fingerprint(&w->key.key, name);
    if (t && code == 0 && t->uses > 0) t->uses--;
    if (k && (code == 0 || code == KN_EEXIST)) {
        k->pending = false;
        kn_info("key_enrolled key=%s name=%s role=%s", name, k->name, kn_role_name(k->role));
        welcome_key(&w->to, k);
    } else if (k) {
        kn_warn("enrol_refused key=%s code=%d", name, code);
        keys_drop(s, k);
        send_reply(s, &w->to, code == KN_EGONE ? KN_EPERM : code,
                   code == KN_EGONE ? "the token is used up: make another (kiln token new)" : "");
    }
    free(w);
}

/* Why the token does not let anybody in; NULL: it does. Who does not know its secret learns nothing of it. */
static const char *fault_of(const struct known_token *t, const struct kn_enrol *e, char out[KN_REASON_MAX]) {
    uint64_t now = kn_wall_ms();
    if (!t || !kn_token_fits(e->id, e->secret, t->digest))
        return "this farm has no such token (any more): it was removed, or is another farm's";
    if (t->uses == 0)
        return "the token is used up: make another (kiln token new, with --uses N for several machines)";
    if (t->made_wall_ms > now + 60000) {
        snprintf(
            out, KN_REASON_MAX,
            "the clock of the coordinator's machine is wrong: by it, the token will be made in %llu s. Mend that clock",
            (unsigned long long)((t->made_wall_ms - now) / 1000));
        return out;
    }
    if (t->expires_wall_ms && now >= t->expires_wall_ms) {
        snprintf(
            out, KN_REASON_MAX,
            "the token expired %llu s ago by the coordinator's clock: make another (kiln token new, --ttl says for how "
            "long), or look at that clock",
            (unsigned long long)((now - t->expires_wall_ms) / 1000));
        return out;
    }
    return NULL;
}

static void on_enrol(struct server *s, struct listener *l, const struct kn_peer *peer,
                     const struct kn_msg *msg) {
    const struct kn_enrol *e = &msg->u.enrol;
    const struct kn_public_key *who = kn_sock_sender(l->sock);
    struct reply_to to = {.sock = l->sock, .peer = *peer, .request = msg->request};
    char why[KN_REASON_MAX], name[KN_FINGERPRINT_TEXT];
    const char *fault = NULL;
    struct known_key *k = who ? keys_find(s, who) : NULL;
    if (k && !k->pending) {
        welcome_key(&to, k);
        return;
    }
    if (!who || k) {
        send_reply(s, &to, who ? KN_EAGAIN : KN_EINVAL,
                   who ? "it is being enrolled" : "through a Unix socket nobody needs a key");
        return;
    }
    struct wish *w = wish_create(s, l, peer, msg);
    int rc = w ? KN_EPERM : KN_ENOMEM;
    const struct known_token *t = NULL;
    if (e->id_len != KN_TOKEN_ID_BYTES || e->secret_len != KN_TOKEN_SECRET_BYTES)
        fault = "that is no token";
    else if (!(fault = fault_of(t = keys_token(s, e->id), e, why)) && w) {
        w->enrols = true;
        w->token = *t;
        w->key = (struct known_key){.key = *who,
                                    .role = t->role,
                                    .ephemeral = t->ephemeral,
                                    .pending = true,
                                    .made_wall_ms = kn_wall_ms(),
                                    .seen_ms = kn_clock_ms()};
        const char *base = t->name[0] ? t->name : e->name;
        bool ok = keys_choose_name(s, who, base, e->chosen && !t->name[0], w->key.name);
        if (!ok) {
            snprintf(
                why, sizeof why,
                "%.80s is another key's name on this farm, or no name: choose another (--name), or take that key off "
                "the list (kiln keys rm) if its machine is gone",
                base);
            fault = why;
            rc = KN_EEXIST;
        }
    }
    if (w && !fault && (rc = keys_add(s, &w->key)) == 0) {
        char key[2 * KN_KEY_BYTES + 1], token[2 * KN_TOKEN_ID_BYTES + 1], text[KEYS_TEXT_MAX];
        kn_hex(who->bytes, sizeof who->bytes, key);
        kn_hex(t->id, sizeof t->id, token);
        keys_text(&w->key, text);
        rc = store_enrol(s->store, key, text, token, on_enrolled, w);
        if (rc == 0) return;
        keys_drop(s, keys_find(s, who));
    }
    free(w);
    kn_fingerprint(who, name);
    kn_warn_of(send_conn(peer), "enrol_refused address=%s key=%s reason=\"%s\"",
               kn_sock_sender_address(l->sock), name, fault ? fault : kn_err_words(rc));
    send_reply(s, &to, rc,
               fault             ? fault
               : rc == KN_ELIMIT ? "the farm's list of keys is full (kiln keys rm)"
                                 : "");
}

/* ---- what an admin asks */

static void on_written(void *ctx, int code, const void *data, size_t len) {
    struct wish *w = ctx;
    struct server *s = w->s;
    (void)data;
    (void)len;
    if (!s->closing && code == 0 && w->adds) {
        int rc = keys_add_token(s, &w->token);
        if (rc != 0 && rc != KN_EEXIST) code = rc;
    }
    send_reply(s, &w->to, code, "");
    free(w);
}

static void write_for(struct server *s, struct wish *w, enum store_list list, const char *field,
                      const char *value, struct reply_to *to) {
    int rc = w ? store_put(s->store, list, field, value, on_written, w) : KN_ENOMEM;
    if (rc == 0) return;
    free(w);
    send_reply(s, to, rc, "the store takes nothing now");
}

/* Makes room by a token that lets nobody in any more. */
static bool has_room_for_token(struct server *s) {
    size_t pos = 0;
    struct known_token *t;
    char field[2 * KN_TOKEN_ID_BYTES + 1];
    if (kn_map_count(s->tokens) < KN_TOKENS_MAX) return true;
    while ((t = keys_next_token(s, &pos)) && t->uses > 0 &&
           (t->expires_wall_ms == 0 || t->expires_wall_ms > kn_wall_ms())) {
    }
    if (!t) return false;
    kn_hex(t->id, sizeof t->id, field);
    if (store_put(s->store, STORE_TOKENS, field, "", NULL, NULL) != 0) return false;
    keys_drop_token(s, t);
    return true;
}

static void on_token_new(struct server *s, struct listener *l, const struct kn_peer *peer,
                         const struct kn_msg *msg) {
    const struct kn_token_new *n = &msg->u.token_new;
    struct reply_to to = {.sock = l->sock, .peer = *peer, .request = msg->request};
    char field[2 * KN_TOKEN_ID_BYTES + 1], text[KEYS_TEXT_MAX], name[KN_NAME_MAX + 1];
    static const struct kn_public_key nobody;
    if (n->id_len != KN_TOKEN_ID_BYTES) {
        send_reply(s, &to, KN_EPROTO, "that is no token's id");
        return;
    }
    if (n->name[0] && !keys_choose_name(s, &nobody, n->name, false, name)) {
        send_reply(s, &to, KN_EINVAL, "--name: expected letters, digits, '.', '_' and '-'");
        return;
    }
    if (!keys_token(s, n->id) && !has_room_for_token(s)) {
        send_reply(s, &to, KN_ELIMIT, "the farm has as many tokens as it takes; remove some (kiln token rm)");
        return;
    }
    struct wish *w = wish_create(s, l, peer, msg);
    if (w) {
        struct known_token *t = &w->token;
        uint64_t now = kn_wall_ms();
        *t = (struct known_token){.role = n->role,
                                  .ephemeral = n->ephemeral,
                                  .uses = n->uses,
                                  .made_wall_ms = now,
                                  .expires_wall_ms = n->ttl_ms ? now + n->ttl_ms : 0};
        memcpy(t->id, n->id, sizeof t->id);
        memcpy(t->digest, n->digest, sizeof t->digest);
        snprintf(t->name, sizeof t->name, "%s", n->name);
        w->adds = true;
        kn_hex(t->id, sizeof t->id, field);
        keys_token_text(t, text);
        kn_info("token_made id=%s role=%s uses=%u", field, kn_role_name(t->role), t->uses);
    }
    write_for(s, w, STORE_TOKENS, field, text, &to);
}

static void on_token_remove(struct server *s, struct listener *l, const struct kn_peer *peer,
                            const struct kn_msg *msg) {
    struct reply_to to = {.sock = l->sock, .peer = *peer, .request = msg->request};
    char field[2 * KN_TOKEN_ID_BYTES + 1];
    if (msg->u.token_remove.id_len != KN_TOKEN_ID_BYTES) {
        send_reply(s, &to, KN_EPROTO, "that is no token's id");
        return;
    }
    struct known_token *t = keys_token(s, msg->u.token_remove.id);
    if (t) keys_drop_token(s, t);
    kn_hex(msg->u.token_remove.id, KN_TOKEN_ID_BYTES, field);
    kn_info("token_removed id=%s", field);
    write_for(s, wish_create(s, l, peer, msg), STORE_TOKENS, field, "", &to);
}

/* From here on it counts no more; the store is the caller's. */
static void forget_key(struct server *s, struct known_key *k, const char *why) {
    struct kn_public_key key = k->key;
    char name[KN_FINGERPRINT_TEXT];
    kn_fingerprint(&key, name);
    kn_warn("key_removed key=%s name=%s role=%s reason=\"%s\"", name, k->name, kn_role_name(k->role), why);
    if (s->asker == k) s->asker = NULL;
    keys_drop(s, k);
    workers_revoke(s, &key, why);
}

static void on_key_remove(struct server *s, struct listener *l, const struct kn_peer *peer,
                          const struct kn_msg *msg) {
    struct reply_to to = {.sock = l->sock, .peer = *peer, .request = msg->request};
    struct kn_public_key key;
    char field[2 * KN_KEY_BYTES + 1];
    memcpy(key.bytes, msg->u.key_remove.key, sizeof key.bytes);
    struct known_key *k = keys_find(s, &key);
    if (k) forget_key(s, k, "its key was taken off the farm's list");
    kn_hex(key.bytes, sizeof key.bytes, field);
    write_for(s, wish_create(s, l, peer, msg), STORE_KEYS, field, "", &to);
}

static void on_tokens_query(struct server *s, struct listener *l, const struct kn_peer *peer,
                            uint64_t request) {
    struct kn_msg m = {.type = KN_MSG_TOKEN_LIST, .request = request};
    struct kn_token_list *list = &m.u.token_list;
    size_t pos = 0;
    const struct known_token *t;
    list->v = calloc(kn_map_count(s->tokens) + 1, sizeof *list->v);
    while (list->v && (t = keys_next_token(s, &pos)))
        list->v[list->count++] = (struct kn_token_info){.id = t->id,
                                                        .id_len = sizeof t->id,
                                                        .role = t->role,
                                                        .name = t->name,
                                                        .ephemeral = t->ephemeral,
                                                        .made_wall_ms = t->made_wall_ms,
                                                        .expires_wall_ms = t->expires_wall_ms,
                                                        .uses = t->uses};
    send_to(l->sock, peer, &m);
    free(list->v);
}

static void on_keys_query(struct server *s, struct listener *l, const struct kn_peer *peer,
                          uint64_t request) {
    struct kn_msg m = {.type = KN_MSG_KEY_LIST, .request = request};
    struct kn_key_list *list = &m.u.key_list;
    size_t pos = 0;
    const struct known_key *k;
    list->v = calloc(kn_map_count(s->keys) + 1, sizeof *list->v);
    while (list->v && (k = keys_next(s, &pos))) {
        if (k->pending) continue;
        struct kn_key_info *i = &list->v[list->count++];
        *i = (struct kn_key_info){.role = k->role,
                                  .name = k->name,
                                  .ephemeral = k->ephemeral,
                                  .made_wall_ms = k->made_wall_ms,
                                  .seen_wall_ms = k->seen_wall_ms};
        memcpy(i->key, k->key.bytes, sizeof i->key);
    }
    send_to(l->sock, peer, &m);
    free(list->v);
}

bool enrol_message(struct server *s, struct listener *l, const struct kn_peer *peer,
                   const struct kn_msg *msg) {
    switch ((int)msg->type) {
    case KN_MSG_ENROL:
        on_enrol(s, l, peer, msg);
        return true;
    case KN_MSG_TOKEN_NEW:
        on_token_new(s, l, peer, msg);
        return true;
    case KN_MSG_TOKEN_REMOVE:
        on_token_remove(s, l, peer, msg);
        return true;
    case KN_MSG_TOKENS_QUERY:
        on_tokens_query(s, l, peer, msg->request);
        return true;
    case KN_MSG_KEYS_QUERY:
        on_keys_query(s, l, peer, msg->request);
        return true;
    case KN_MSG_KEY_REMOVE:
        on_key_remove(s, l, peer, msg);
        return true;
    default:
        return false;
    }
}

/* ---- time */

void enrol_sweep(struct server *s) {
    uint64_t now = kn_clock_ms(), wall = kn_wall_ms();
    char field[2 * KN_KEY_BYTES + 1];
    size_t pos = 0;
    struct known_key *k;
    struct known_token *t;
    while ((k = keys_next(s, &pos))) {
        if (!k->ephemeral || k->pending || now - k->seen_ms <= EPHEMERAL_MS) continue;
        kn_hex(k->key.bytes, sizeof k->key.bytes, field);
        if (store_put(s->store, STORE_KEYS, field, "", NULL, NULL) != 0) return;
        forget_key(s, k, "its key was for a while, and had not been heard of");
        pos = 0; /* the map has changed */
    }
    for (pos = 0; (t = keys_next_token(s, &pos));) {
        if (!t->expires_wall_ms || wall < t->expires_wall_ms + TOKEN_KEPT_MS) continue;
        kn_hex(t->id, sizeof t->id, field);
        if (store_put(s->store, STORE_TOKENS, field, "", NULL, NULL) != 0) return;
        keys_drop_token(s, t);
        pos = 0;
    }
}
