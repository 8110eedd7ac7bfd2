/* See send.h. */
#include "coordinator/send.h"

#include <assert.h>
#include <string.h>

#include "base/log.h"

uint64_t send_conn(const struct kn_peer *peer) {
    uint64_t n;
    static_assert(sizeof n == KN_PEER_BYTES, "a routing id is a number");
    memcpy(&n, peer->id, sizeof n);
    return n;
}

struct kn_peer send_peer(uint64_t conn) {
    struct kn_peer p = {0};
    memcpy(p.id, &conn, sizeof conn);
    return p;
}

void send_to(struct kn_sock *sock, const struct kn_peer *peer, const struct kn_msg *m) {
    struct kn_err err = {0};
    int rc = kn_sock_send(sock, peer, m, NULL, &err);
    if (rc != 0) kn_debug("send_failed message=%s reason=\"%s\"", kn_msg_name(m->type), err.text);
}

void send_welcome(struct server *s, struct listener *l, const struct kn_peer *peer, uint64_t request,
                  bool objects, const char *worker) {
    struct kn_msg m = {.type = KN_MSG_WELCOME, .request = request};
    const char *features[KN_FEATURES_MAX];
    m.u.welcome = (struct kn_welcome){.term = s->store->term,
                                      .heartbeat_ms = 1000,
                                      .silence_ms = 10000,
                                      .data_port = s->data_port,
                                      .data_ipc = l->data_ipc,
                                      .objects_dir = objects && l->ipc ? s->objects : "",
                                      .version = "kiln " KILN_VERSION,
                                      .worker = worker,
                                      .default_model = s->opt.default_model ? s->opt.default_model : "",
                                      .features = features,
                                      .feature_count = kn_features_list(kn_features(), features),
                                      .farm_key = s->pair.own.bytes,
                                      .farm_key_len = s->has_pair ? sizeof s->pair.own.bytes : 0};
    send_to(l->sock, peer, &m);
}

void send_reply(struct server *s, struct reply_to *to, int code, const char *text) {
    struct kn_msg m = {.type = KN_MSG_REPLY, .request = to->request};
    struct kn_err err = {0};
    if (!to->sock || s->closing) return;
    m.u.reply.code = code;
    m.u.reply.text = code != 0 && !text[0] ? kn_err_words(code) : text;
    int rc = kn_sock_send(to->sock, &to->peer, &m, NULL, &err);
    if (rc != 0) kn_debug("reply_not_sent reason=\"%s\"", err.text);
    to->sock = NULL;
}

void send_replies(struct server *s, struct reply_to *v, int *count, int code, const char *text) {
    for (int i = 0; i < *count; i++) send_reply(s, &v[i], code, text);
    *count = 0;
}
