/* See join.h. */
#include "proto/join.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/token.h"

#define ASK_MS 5000 /* one endpoint, before the next is asked */
#define TICK_MS 50
#define AGAIN_MS 200
#define COMPLAIN_MS 10000
#define VARIABLE "KILN_TOKEN"
#define SYSTEM_DIR "/var/lib/kiln/keys"

int kn_join_split(const char *text, struct kn_join_list *out, struct kn_err *err) {
    out->count = 0;
    if (!strstr(text, "://")) { /* a folder, whatever is in its name */
        if (strlen(text) > KN_ENDPOINT_MAX)
            return kn_err_set(err, KN_ELIMIT, "longer than %d bytes", KN_ENDPOINT_MAX);
        snprintf(out->v[out->count++], sizeof out->v[0], "%s", text);
        return 0;
    }
    for (const char *p = text;; p++) {
        size_t len = strcspn(p, ",");
        if (len == 0) return kn_err_set(err, KN_EINVAL, "\"%.100s\": an endpoint is missing", text);
        if (len > KN_ENDPOINT_MAX) return kn_err_set(err, KN_ELIMIT, "longer than %d bytes", KN_ENDPOINT_MAX);
        if (out->count == KN_JOIN_MAX)
            return kn_err_set(err, KN_ELIMIT, "more than %d endpoints", KN_JOIN_MAX);
        snprintf(out->v[out->count++], sizeof out->v[0], "%.*s", (int)len, p);
        p += len;
        if (!*p) return 0;
    }
}

/* ---- the folder of keys */

static bool is_tcp(const char *endpoint) {
    return strncmp(endpoint, "tcp://", 6) == 0;
}

static int keys_dir(char out[KN_PATH_MAX], struct kn_err *err) {
    const char *state = getenv("STATE_DIRECTORY"), *home = getenv("HOME");
    int n = state && state[0] == '/'
                ? snprintf(out, KN_PATH_MAX, "%.*s/keys", (int)strcspn(state, ":"), state)
            : home && home[0] == '/' ? snprintf(out, KN_PATH_MAX, "%s/.kiln/keys", home)
                                     : snprintf(out, KN_PATH_MAX, "%s", SYSTEM_DIR);
    return n > 0 && n < KN_PATH_MAX ? 0
                                    : kn_err_set(err, KN_ELIMIT, "the folder of keys: its path is too long");
}

static int farm_path(const char *dir, const char *endpoint, char out[KN_PATH_MAX]) {
    char name[32];
    snprintf(name, sizeof name, "farm-%016llx", (unsigned long long)kn_hash64(endpoint, strlen(endpoint), 0));
    return kn_fs_join(out, KN_PATH_MAX, dir, name);
}

/* KN_ENOENT: it is not known here. */
static int recall(const char *dir, const char *endpoint, struct kn_public_key *out) {
    char path[KN_PATH_MAX];
    struct kn_buf b;
    int rc = farm_path(dir, endpoint, path);
    kn_buf_init(&b, KN_ENDPOINT_MAX + 2 * KN_KEY_BYTES + 3);
    if (rc == 0) rc = kn_fs_read(path, &b, NULL);
    if (rc == 0 && (b.len < 2 * KN_KEY_BYTES + 2 || b.data[2 * KN_KEY_BYTES] != ' ')) rc = KN_EPARSE;
    if (rc == 0) {
        b.data[2 * KN_KEY_BYTES] = '\0';
        char *named = (char *)b.data + 2 * KN_KEY_BYTES + 1;
        named[strcspn(named, "\n")] = '\0';
        rc = strcmp(named, endpoint) == 0 ? kn_unhex((char *)b.data, out->bytes, KN_KEY_BYTES) : KN_ENOENT;
    }
    kn_buf_fini(&b);
    return rc == 0 ? 0 : KN_ENOENT;
}

static int remember(const char *dir, const char *endpoint, const struct kn_public_key *server,
                    struct kn_err *err) {
    char path[KN_PATH_MAX], hex[2 * KN_KEY_BYTES + 1], text[KN_ENDPOINT_MAX + 2 * KN_KEY_BYTES + 3];
    struct kn_public_key known;
    if (recall(dir, endpoint, &known) == 0 && memcmp(&known, server, sizeof known) == 0) return 0;
    int rc = farm_path(dir, endpoint, path);
    if (rc != 0) return kn_err_set(err, rc, "%.200s: too long", dir);
    kn_hex(server->bytes, KN_KEY_BYTES, hex);
    int n = snprintf(text, sizeof text, "%s %s\n", hex, endpoint);
    return kn_fs_replace(path, text, (size_t)n, true, err);
}

/* ---- enrolment */

struct enrolment {
    uv_loop_t loop;
    struct kn_sock *sock;
    const struct kn_join_options *o;
    const struct kn_token *token;
    bool answered;
    int code;
    struct kn_err why; /* code's words */
    enum kn_role role;
};

static void on_writable(struct kn_sock *s, void *ctx) {
    struct enrolment *e = ctx;
    struct kn_msg m = {.type = KN_MSG_ENROL, .request = 1};
    m.u.enrol = (struct kn_enrol){.id = e->token->id,
                                  .id_len = sizeof e->token->id,
                                  .secret = e->token->secret,
                                  .secret_len = sizeof e->token->secret,
                                  .name = e->o->name,
                                  .chosen = e->o->chosen};
    (void)!kn_sock_send(s, NULL, &m, NULL, NULL);
}

static void on_answer(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                      struct kn_blob *blob) {
    struct enrolment *e = ctx;
    (void)s;
    (void)peer;
    (void)blob;
    if (m->request == 1 && m->type == KN_MSG_REPLY && m->u.reply.code != 0) {
        e->answered = true;
        e->code = kn_err_set(&e->why, m->u.reply.code, "%s", m->u.reply.text);
    } else if (m->request == 1 && m->type == KN_MSG_ENROLLED) {
        e->answered = true;
        e->code = 0;
        e->role = m->u.enrolled.role;
    }
    kn_msg_destroy(m);
}

static void on_tick(uv_timer_t *t) {
    (void)t;
}

/* Asks at one endpoint. KN_ETIMEOUT, KN_EAGAIN: again. */
static int ask(const struct kn_join_options *o, const struct kn_join *j, const struct kn_token *token,
               const char *endpoint, int timeout_ms, enum kn_role *role, struct kn_err *err) {
    struct enrolment e = {.o = o, .token = token};
    struct kn_wire *wire = NULL;
    struct kn_sock_options opt = {.recv = on_answer, .writable = on_writable, .ctx = &e};
    uv_timer_t tick;
    const char *said = NULL;
    uint64_t end = kn_clock_ms() + (uint64_t)timeout_ms;
    if (uv_loop_init(&e.loop) != 0) return kn_err_set(err, KN_EIO, "no event loop");
    uv_timer_init(&e.loop, &tick);
    uv_timer_start(&tick, on_tick, TICK_MS, TICK_MS);
    int rc = kn_wire_create(&e.loop, &wire, err);
    if (rc == 0) kn_wire_use_keys(wire, &j->own, &j->server);
    if (rc == 0) rc = kn_sock_create(wire, &opt, &e.sock, err);
    if (rc == 0) rc = kn_sock_connect(e.sock, endpoint, err);
    while (rc == 0 && !e.answered && kn_clock_ms() < end) {
        uv_run(&e.loop, UV_RUN_ONCE);
        const char *refusal = kn_sock_refusal(e.sock);
        if (refusal && refusal != said && o->say) o->say(endpoint, refusal);
        if (refusal) said = refusal;
    }
    if (rc == 0 && !e.answered && said)
        rc = kn_err_set(err, KN_ETIMEOUT, "%s: %s", endpoint, said);
    else if (rc == 0 && !e.answered)
        rc = kn_err_set(err, KN_ETIMEOUT, "the farm at %s does not answer", endpoint);
    else if (rc == 0 && e.code != 0)
        rc = kn_err_set(err, e.code, "%s: %s", endpoint, e.why.text[0] ? e.why.text : kn_err_words(e.code));
    *role = e.role;
    kn_sock_destroy(e.sock);
    uv_close((uv_handle_t *)&tick, NULL);
    uv_run(&e.loop, UV_RUN_DEFAULT);
    uv_loop_close(&e.loop);
    kn_wire_destroy(wire);
    return rc;
}

static bool fits_role(const struct kn_join_options *o, enum kn_role role) {
    return role == KN_ROLE_ADMIN || (role == KN_ROLE_WORKER) == o->worker;
}

static int enrol(const struct kn_join_options *o, const struct kn_join *j, const struct kn_token *token,
                 struct kn_err *err) {
    uint64_t begun = kn_clock_ms(), complain = begun + COMPLAIN_MS;
    enum kn_role role = KN_ROLE_READ;
    for (int i = 0;; i++) {
        uint64_t waited = kn_clock_ms() - begun;
        int left = o->timeout_ms ? o->timeout_ms - (int)waited : ASK_MS;
        int rc = ask(o, j, token, o->farm->v[i % o->farm->count], left < ASK_MS ? left : ASK_MS, &role, err);
        if (rc != KN_ETIMEOUT && rc != KN_EAGAIN && rc != 0) return rc;
        if (rc == 0 && !fits_role(o, role))
            return kn_err_set(
                err, KN_EPERM,
                "the token is for another role: this machine's key is now on the farm's list as %s, and it "
                "needs to be %s. Take it off (kiln keys rm), and make the right token",
                kn_role_name(role) ? kn_role_name(role) : "something newer", o->worker ? "worker" : "client");
        if (rc == 0) return 0;
        if (o->timeout_ms && kn_clock_ms() - begun + AGAIN_MS >= (uint64_t)o->timeout_ms) return rc;
        if (!o->timeout_ms && kn_clock_ms() >= complain) {
            kn_warn("not_enrolled reason=\"%s\"", err->text);
            complain = kn_clock_ms() + COMPLAIN_MS;
        }
        uv_sleep(AGAIN_MS);
    }
}

/* ---- both */

/* KN_ENOENT: there is none. What is no token is told, unless the farm is known without. */
static int find_token(const struct kn_join_options *o, bool known, struct kn_token *out, struct kn_err *err) {
    const char *variable = getenv(VARIABLE);
    if (!o->token && !(variable && variable[0])) return KN_ENOENT;
    int rc = kn_token_read(o->token, out, err);
    unsetenv(VARIABLE);
    if (rc == 0 || rc == KN_EINVAL) return rc == 0 ? 0 : kn_err_prefix(err, "--token");
    if (!known) return kn_err_prefix(err, "--token");
    kn_info("token_not_read reason=\"%s\"; it is not needed any more", err->text);
    return KN_ENOENT;
}

int kn_join(const struct kn_join_options *o, struct kn_join *out, struct kn_err *err) {
    char dir[KN_PATH_MAX], print[KN_FINGERPRINT_TEXT], name[KN_FINGERPRINT_TEXT + 16];
    struct kn_token token = {0};
    *out = (struct kn_join){.keyed = is_tcp(o->farm->v[0])};
    for (int i = 1; i < o->farm->count; i++)
        if (is_tcp(o->farm->v[i]) != out->keyed)
            return kn_err_set(err, KN_EINVAL, "several endpoints are all tcp://… or none is");
    if (!out->keyed) {
        unsetenv(VARIABLE); /* no child is to have it */
        return 0;
    }
    bool known = false;
    int rc = keys_dir(dir, err);
    for (int i = 0; rc == 0 && !known && i < o->farm->count; i++)
        known = recall(dir, o->farm->v[i], &out->server) == 0;
    int with = rc == 0 ? find_token(o, known, &token, err) : rc;
    if (with != 0 && with != KN_ENOENT) return with;
    if (with == 0) out->server = token.server;
    for (int i = 0; with != 0 && !known && i < o->farm->count; i++) { /* is that an endpoint at all? */
        char unused[KN_ENDPOINT_MAX + 1];
        rc = kn_endpoint_resolve(o->farm->v[i], unused, err);
        if (rc == 0 && (rc = kn_endpoint_look_up(o->farm->v[i], err)) == KN_ENOENT) rc = KN_EINVAL;
        if (rc == KN_EINVAL || rc == KN_ELIMIT) return rc;
    }
    if (with != 0 && !known)
        return kn_err_set(
            err, KN_ECONFIG,
            "%s: this machine has no key for that farm yet. kiln token new%s, on the farm, makes a token; give "
            "it once, with --token @FILE",
            o->farm->v[0], o->worker ? " --worker" : " --client");
    kn_fingerprint(&out->server, print);
    snprintf(name, sizeof name, "%s-%s.key", print, o->worker ? "worker" : "client");
    rc = kn_key_pair_keep(dir, name, &out->own, err);
    if (rc == 0 && with == 0) rc = enrol(o, out, &token, err);
    for (int i = 0; rc == 0 && with == 0 && i < o->farm->count; i++)
        rc = remember(dir, o->farm->v[i], &out->server, err);
    OPENSSL_cleanse(&token, sizeof token);
    if (rc != 0) kn_key_pair_forget(&out->own);
    return rc;
}
