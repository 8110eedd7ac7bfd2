/* See connection.h. */
#include "worker/connection.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

#define SILENCE_MS 10000   /* before a welcome says otherwise */
#define QUIET_TIMES 3      /* so many times the silence before the coordinator is asked whether it is there */
#define HELLO_PAUSE_MS 500 /* between two hellos that a HelloAgain asks for */
#define APART_MS 1000
#define LOOK_MS 2000 /* how often a farm's folder is looked at for another endpoint */
#define COMPLAIN_MS 10000

static void on_control(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                       struct kn_blob *blob);
static void on_data(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                    struct kn_blob *blob);
static void on_garbled(struct kn_sock *s, void *ctx, const struct kn_peer *peer, const struct kn_garbled *g);
static void on_control_writable(struct kn_sock *s, void *ctx);
static void on_data_writable(struct kn_sock *s, void *ctx);
static void on_control_broken(struct kn_sock *s, void *ctx);
static void on_data_broken(struct kn_sock *s, void *ctx);

static void enter(struct connection *c, enum connection_state state, uint64_t now_ms) {
    if (state == CONNECTION_CONNECTING && c->state != state) c->complain_at_ms = now_ms + COMPLAIN_MS;
    c->state = state;
    c->since_ms = now_ms;
}

static void drop_sockets(struct connection *c) {
    kn_sock_destroy(c->control);
    kn_sock_destroy(c->data);
    c->control = c->data = NULL;
    c->data_endpoint[0] = '\0';
    c->hello_ms = c->probe_ms = 0;
    c->hello_due = false;
    c->again = true;
}

/* Makes a new control connection. The data connection follows with the welcome. */
static int dial(struct connection *c, uint64_t now_ms, struct kn_err *err) {
    struct kn_sock_options opt = {.recv = on_control,
                                  .writable = on_control_writable,
                                  .garbled = on_garbled,
                                  .broken = on_control_broken,
                                  .ctx = c};
    drop_sockets(c);
    int rc = kn_endpoint_resolve(c->join.v[c->at], c->endpoint, err);
    if (rc == 0) rc = kn_sock_create(c->wire, &opt, &c->control, err);
    if (rc == 0) rc = kn_sock_connect(c->control, c->endpoint, err);
    if (rc != 0) {
        drop_sockets(c);
        enter(c, CONNECTION_APART, now_ms);
        return rc;
    }
    enter(c, CONNECTION_CONNECTING, now_ms);
    return 0;
}

static void redial(struct connection *c, uint64_t now_ms) {
    struct kn_err err = {0};
    if (dial(c, now_ms, &err) == 0) return;
    if (now_ms < c->complain_at_ms) return;
    c->complain_at_ms = now_ms + COMPLAIN_MS;
    kn_warn("join_failed join=%s reason=\"%s\"", c->join.v[c->at], err.text);
}

/* Nobody answers there: perhaps one that stood by does now. */
static void redial_next(struct connection *c, uint64_t now_ms) {
    c->at = (c->at + 1) % c->join.count;
    redial(c, now_ms);
}

int connection_open(struct connection *c, struct kn_wire *wire, const char *join,
                    const struct connection_handler *on, uint64_t now_ms, struct kn_err *err) {
    *c = (struct connection){.wire = wire, .on = *on, .heartbeat_ms = 1000, .silence_ms = SILENCE_MS};
    int rc = kn_join_split(join, &c->join, err);
    if (rc == 0) rc = dial(c, now_ms, err);
    if (rc) return rc;
    /* Once, at the start: a name that is not there will not come, and one that nobody can look up now may. */
    struct kn_err why = {0};
    for (int i = 0; i < c->join.count && rc != KN_ENOENT; i++)
        rc = kn_endpoint_look_up(c->join.count > 1 ? c->join.v[i] : c->endpoint, &why);
    if (rc == KN_ENOENT) {
        connection_close(c);
        return kn_err_set(err, KN_EINVAL, "%s", why.text);
    }
    if (rc) kn_warn("join_unresolved reason=\"%s\"; it is tried again", why.text);
    return 0;
}

void connection_close(struct connection *c) {
    drop_sockets(c);
}

/* ---- sending */

static void say_hello(struct connection *c, uint64_t now_ms) {
    struct kn_msg m = {.type = KN_MSG_WORKER_HELLO};
    struct kn_err err = {0};
    c->hello_due = false;
    c->on.hello(c->on.ctx, &m.u.worker_hello);
    int rc = kn_sock_send(c->control, NULL, &m, NULL, &err);
    if (rc == 0) {
        c->hello_ms = now_ms;
        c->probe_ms = 0;
        enter(c, CONNECTION_GREETING, now_ms);
    } else if (rc == KN_EAGAIN) { /* the writable callback comes */
        enter(c, CONNECTION_CONNECTING, now_ms);
    } else {
        kn_error("hello_failed reason=\"%s\"", err.text);
        drop_sockets(c);
        enter(c, CONNECTION_APART, now_ms);
    }
}

void connection_tell(struct connection *c, const struct kn_msg *m) {
    struct kn_err err = {0};
    if (!c->control || c->state == CONNECTION_CONNECTING) return;
    int rc = kn_sock_send(c->control, NULL, m, NULL, &err);
    if (rc == KN_EAGAIN) {
        c->again = true;
        enter(c, CONNECTION_CONNECTING, kn_clock_ms());
    } else if (rc != 0) {
        kn_error("send_failed message=%s reason=\"%s\"", kn_msg_name(m->type), err.text);
    }
}

int connection_send_data(struct connection *c, const struct kn_msg *m, struct kn_blob *blob) {
    struct kn_err err = {0};
    if (!c->data || c->again) return KN_EAGAIN; /* the welcome that is due has all of it sent anyway */
    int rc = kn_sock_send(c->data, NULL, m, blob, &err);
    if (rc != 0 && rc != KN_EAGAIN) kn_error("upload_failed reason=\"%s\"", err.text);
    return rc;
}

static int open_data(struct connection *c, struct kn_err *err) {
    struct kn_sock_options opt = {
        .blobs = true, .recv = on_data, .writable = on_data_writable, .broken = on_data_broken, .ctx = c};
    kn_sock_destroy(c->data);
    c->data = NULL;
    c->data_up = false;
    int rc = kn_sock_create(c->wire, &opt, &c->data, err);
    if (rc == 0) rc = kn_sock_connect(c->data, c->data_endpoint, err);
    if (rc != 0) {
        kn_sock_destroy(c->data);
        c->data = NULL;
    }
    return rc;
}

void connection_renew_data(struct connection *c) {
    struct kn_err err = {0};
    if (!c->data) return; /* the next welcome opens it */
    if (open_data(c, &err) != 0) kn_error("data_connection_failed reason=\"%s\"", err.text);
}

/* ---- receiving */

static void welcomed(struct connection *c, const struct kn_welcome *w, uint64_t now_ms) {
    struct kn_err err = {0};
    char endpoint[KN_ENDPOINT_MAX + 1];
    bool again = c->again || c->term != w->term;
    if (kn_endpoint_data(c->endpoint, w, endpoint, &err) != 0) {
        kn_error("welcome_useless reason=\"%s\"", err.text);
        return;
    }
    if (!c->data || again || strcmp(endpoint, c->data_endpoint) != 0) {
        again = true;
        memcpy(c->data_endpoint, endpoint, sizeof endpoint);
        if (open_data(c, &err) != 0) kn_error("data_connection_failed reason=\"%s\"", err.text);
    }
    if (c->state != CONNECTION_JOINED || c->term != w->term)
        kn_log(again ? KN_LOG_INFO : KN_LOG_DEBUG, "joined endpoint=%s term=%llu coordinator=%s", c->endpoint,
               (unsigned long long)w->term, w->version);
    c->term = w->term;
    c->heartbeat_ms = w->heartbeat_ms;
    c->silence_ms = w->silence_ms;
    c->again = c->deaf = false;
    c->heartbeat_at_ms = now_ms + c->heartbeat_ms;
    enter(c, CONNECTION_JOINED, now_ms);
    c->on.welcome(c->on.ctx, w, again);
}

/* A coordinator that heard a heartbeat and not the hello before it has dropped the hello: an older one does so with
 * what it cannot read, and says nothing. */
static void hello_not_read(struct connection *c, uint64_t now_ms) {
    if (c->deaf && now_ms < c->complain_at_ms) return;
    c->deaf = true;
    c->complain_at_ms = now_ms + COMPLAIN_MS;
    kn_error(
        "hello_not_read endpoint=%s text=\"the coordinator there answers, and cannot read the hello of this "
        "kiln-worker (%s): it is older. Upgrade kiln-coordinator first, or run the kiln-worker of its "
        "version\"",
        c->endpoint, KILN_VERSION);
}

static void on_garbled(struct kn_sock *s, void *ctx, const struct kn_peer *peer, const struct kn_garbled *g) {
    struct connection *c = ctx;
    struct kn_msg m = {.type = KN_MSG_SHARD_RETURNED};
    struct kn_err why = {0};
    (void)peer;
    if (s != c->control) return;
    c->heard_ms = kn_clock_ms();
    if (g->type != KN_MSG_SHARD_GRANT || g->shard == 0) return;
    kn_err_set(&why, g->code, "kiln-worker %s cannot read it: %.300s", KILN_VERSION, g->text);
    m.u.shard_returned = (struct kn_shard_returned){
        .shard = g->shard, .term = g->term, .code = KN_EUNSUPPORTED, .reason = why.text};
    connection_tell(c, &m);
}

static void on_control(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                       struct kn_blob *blob) {
    (void)peer;
    (void)blob;
    struct connection *c = ctx;
    uint64_t now_ms = kn_clock_ms();
    if (s != c->control) { /* a connection that was given up */
        kn_msg_destroy(m);
        return;
    }
    c->heard_ms = now_ms;
    switch ((int)m->type) {
    case KN_MSG_WELCOME:
        welcomed(c, &m->u.welcome, now_ms);
        break;
    case KN_MSG_HELLO_AGAIN:
        kn_info("hello_again reason=\"%s\"", m->u.hello_again.reason);
        if (c->probe_ms) hello_not_read(c, now_ms);
        c->again = true;
        c->hello_due = true;
        if (now_ms - c->hello_ms >= HELLO_PAUSE_MS) say_hello(c, now_ms);
        break;
    default:
        c->on.message(c->on.ctx, m);
        return;
    }
    kn_msg_destroy(m);
}

static void on_data(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                    struct kn_blob *blob) {
    (void)peer;
    (void)blob;
    struct connection *c = ctx;
    if (s != c->data) {
        kn_msg_destroy(m);
        return;
    }
    c->heard_ms = kn_clock_ms();
    c->on.message(c->on.ctx, m);
}

/* A coordinator ends connections by TCP that say nothing under a key that it knows, and the first picture may be long in
 * coming. */
static void say_data_hello(struct connection *c) {
    struct kn_msg m = {.type = KN_MSG_DATA_HELLO};
    struct kn_err err = {0};
    if (kn_sock_send(c->data, NULL, &m, NULL, &err) != 0)
        kn_debug("data_hello_not_sent reason=\"%s\"", err.text);
}

static void on_control_writable(struct kn_sock *s, void *ctx) {
    struct connection *c = ctx;
    if (s == c->control && c->state == CONNECTION_CONNECTING) say_hello(c, kn_clock_ms());
}

static void on_data_writable(struct kn_sock *s, void *ctx) {
    struct connection *c = ctx;
    if (s != c->data) return;
    if (!c->data_up && strncmp(c->data_endpoint, "tcp://", 6) == 0) say_data_hello(c);
    c->data_up = true;
    c->on.data_writable(c->on.ctx);
}

/* A connection that never stood is ZeroMQ's to try again, with its growing pause. */
static void on_control_broken(struct kn_sock *s, void *ctx) {
    struct connection *c = ctx;
    if (s != c->control || c->state == CONNECTION_CONNECTING) return;
    kn_info("connection_broken endpoint=%s", c->endpoint);
    redial(c, kn_clock_ms());
}

static void on_data_broken(struct kn_sock *s, void *ctx) {
    struct connection *c = ctx;
    if (s != c->data || !c->data_up) return;
    kn_info("connection_broken endpoint=%s", c->data_endpoint);
    connection_renew_data(c);
    c->on.data_renewed(c->on.ctx);
}

/* ---- time */

static void complain(struct connection *c, uint64_t now_ms) {
    if (now_ms < c->complain_at_ms) return;
    c->complain_at_ms = now_ms + COMPLAIN_MS;
    kn_warn("no_answer endpoint=%s", c->endpoint);
}

static void tick_connecting(struct connection *c, uint64_t now_ms) {
    char endpoint[KN_ENDPOINT_MAX + 1];
    complain(c, now_ms);
    if (now_ms - c->since_ms < LOOK_MS) return;
    c->since_ms = now_ms;
    if (c->join.count > 1)
        redial_next(c, now_ms);
    else if (kn_endpoint_resolve(c->join.v[0], endpoint, NULL) == 0 && strcmp(endpoint, c->endpoint) != 0)
        redial(c, now_ms);
}

static void say_heartbeat(struct connection *c) {
    struct kn_msg m = {.type = KN_MSG_HEARTBEAT};
    c->on.heartbeat(c->on.ctx, &m.u.heartbeat);
    connection_tell(c, &m);
}

static void tick_joined(struct connection *c, uint64_t now_ms) {
    if (now_ms >= c->heartbeat_at_ms) {
        c->heartbeat_at_ms = now_ms + c->heartbeat_ms;
        say_heartbeat(c);
    }
    if (c->state == CONNECTION_JOINED && now_ms - c->heard_ms > QUIET_TIMES * (uint64_t)c->silence_ms)
        say_hello(c, now_ms);
}

void connection_tick(struct connection *c, uint64_t now_ms) {
    if (c->control && c->hello_due && now_ms - c->hello_ms >= HELLO_PAUSE_MS) say_hello(c, now_ms);
    switch (c->state) {
    case CONNECTION_APART:
        if (now_ms - c->since_ms >= APART_MS) redial(c, now_ms);
        break;
    case CONNECTION_CONNECTING:
        tick_connecting(c, now_ms);
        break;
    case CONNECTION_GREETING:
        if (!c->probe_ms && now_ms - c->since_ms >= c->silence_ms / 2) {
            c->probe_ms = now_ms;
            say_heartbeat(c);
        }
        if (now_ms - c->since_ms < c->silence_ms) break;
        kn_warn("coordinator_silent endpoint=%s ms=%llu", c->endpoint,
                (unsigned long long)(now_ms - c->since_ms));
        redial_next(c, now_ms);
        break;
    case CONNECTION_JOINED:
        tick_joined(c, now_ms);
        break;
    }
}
