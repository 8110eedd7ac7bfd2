/* ROUTER and DEALER sockets on a libuv loop. See wire.h.
 *
 * How ZeroMQ is driven: its descriptor is edge-triggered and tells only that something may have changed, so
 * after every send and receive the socket's events are read again: a send starts `again`, an idle handle that
 * pumps the socket on the loop's next turn and stops itself when there is nothing more to do. One turn takes
 * at most PUMP_MAX messages, so that timers and others are served. */
#include "proto/wire.h"

#include "base/hash.h"
#include "base/log.h"
#include "base/map.h"
#include "proto/gate.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <zmq.h>

#define PUMP_MAX 64
#define LINGER_MS 1000
#define BACKLOG 1024 /* connections that wait to be accepted */
/* A DEALER pings, and a connection over which nothing comes is broken after PING_MS and QUIET_MS together. A ROUTER
 * does not ping: libzmq (4.3.4, 4.3.5) ends the process when a ping is due on a connection that has ended and of which
 * something waits because the receive queue is full, and a ROUTER's queues are short. So a DEALER's queue is never full,
 * and a ROUTER, which answers pings, leaves it to the kernel to find hosts that are gone. What it has not taken stays
 * unread in the kernel: TCP is more patient with pictures. */
#define PING_MS 2000
#define QUIET_MS 5000
#define QUIET_BLOBS_MS 60000
#define RETRY_MS 10 /* between two tries to send where the last one still found no room */

/* Bytes that ZeroMQ has and has not sent yet. A ROUTER counts those of each peer: one that asks and does not read must
 * not fill the memory. Short messages (acknowledgements come in bursts) are bounded by their number instead. */
#define COUNTED_BYTES_MIN 1024
#define CONTROL_PEER_BYTES_MAX (4 * (size_t)KN_FRAME_BYTES_MAX)
#define DATA_PEER_BYTES_MAX (2 * (size_t)KN_IMAGE_BYTES_MAX)
#define WIRE_BYTES_MAX ((size_t)512 << 20) /* of all peers */
#define PEERS_MAX 65536                    /* that have bytes waiting, at once */
#define PEERS_SWEPT 64                     /* so many more before those without are forgotten */
#define SEND_COUNT_MAX 10000               /* messages that wait for one peer, */
#define BLOB_COUNT_MAX 32                  /* or with bytes behind them, on their way from a DEALER */
#define HEARD_COUNT_MAX 64                 /* of one peer, on a ROUTER, that are not taken yet */
#define BLOBS_HEARD_MAX 8

/* Refuses a handshake that no ZAP handler answers, where libzmq would let it pass. A draft option: it has a number in the
 * library, and no name in the installed header. */
#define ZAP_ENFORCE_DOMAIN 93
#define KEYED_HANDSHAKE_MS                                                                                   \
    2000 /* whoever has another key than expected is silent: its words must come soon */
#define SHAKES_MAX                                                                                           \
    2 /* handshakes in a row that came to nothing: one alone may have been cut by an end of the farm's */
#define REFUSED_PAUSE_MS 2000 /* before a refused DEALER tries again */

struct kn_wire {
    uv_loop_t *loop;         /* borrowed */
    void *ctx;               /* owns */
    bool keyed;              /* it has a key pair: */
    struct kn_key_pair keys; /* owns */
    bool has_server;         /* its DEALERs expect: */
    struct kn_public_key server;
    struct kn_guard *guard; /* owns; NULL: it binds no tcp endpoint with keys */
    atomic_size_t waiting;  /* bytes of all peers */
};

/* The bytes on their way to one peer. ZeroMQ's thread counts them down when it frees a message, also after the peer and
 * the socket are gone. */
struct outgoing {
    atomic_size_t bytes;
    atomic_uint refs; /* its messages, and the socket while it knows the peer */
    uint8_t peer[KN_PEER_BYTES];
};

/* A message on its way: what is given back when ZeroMQ frees it. */
struct counted {
    struct kn_wire *wire;
    struct outgoing *to;
    size_t len;
    struct kn_blob bytes; /* owns */
};

enum link {
    LINK_DOWN,
    LINK_SHAKING, /* connected, and the handshake goes on */
    LINK_UP,
};

/* The one listener that libzmq tells how a socket's handshakes and connections end. */
struct monitor {
    void *z;         /* owns; NULL: there is none */
    uv_poll_t *poll; /* owns */
};

struct kn_sock {
    struct kn_wire *wire; /* borrowed */
    struct kn_sock_options opt;
    void *z;         /* owns; NULL once destroyed */
    uv_poll_t *poll; /* owns; a handle of its own, since a reconnect brings a new descriptor */
    uv_idle_t again;
    uv_timer_t
        retry; /* a ROUTER counts as writable when any of its peers is: without a pause the loop would spin */
    int closing;                        /* handles not closed yet */
    bool pumping;                       /* inside pump(): its caller goes on with the socket */
    bool paused;                        /* see kn_sock_pause */
    bool want_writable;                 /* a send was refused for want of room */
    struct kn_map *peers;               /* a ROUTER's: id -> struct outgoing */
    size_t peers_swept;                 /* how many were left when it was swept last */
    struct kn_buf frame;                /* reused for each encoded envelope */
    char endpoint[KN_ENDPOINT_MAX + 1]; /* a DEALER's, for reconnecting */
    uint64_t bad;                       /* messages dropped because they could not be decoded */
    bool has_server;
    struct kn_public_key server; /* whom a DEALER expects */
    bool has_sender;             /* the message being delivered came with a key: */
    struct kn_public_key sender;
    int sender_fd;              /* of its connection; -1: not known */
    const char *sender_address; /* in the message */
    struct monitor monitor;     /* of a DEALER, where somebody wants to know */
    uv_timer_t refused;         /* a keyed DEALER tries again after a refusal */
    enum link link;
    int shaken;          /* handshakes in a row that came to nothing */
    const char *refusal; /* NULL: none */
};

void kn_blob_release(struct kn_blob *b) {
    if (b->data && b->free_fn) b->free_fn(b->data, b->hint);
    b->data = NULL;
}

static int zmq_err(struct kn_err *err, const char *what) {
    return kn_err_set(err, errno == ENOMEM ? KN_ENOMEM : KN_EIO, "%s: %s", what, zmq_strerror(errno));
}

int kn_wire_create(uv_loop_t *loop, struct kn_wire **out, struct kn_err *err) {
    struct kn_wire *w = calloc(1, sizeof *w);
    if (!w) return kn_err_set(err, KN_ENOMEM, "sockets: out of memory");
    w->loop = loop;
    w->ctx = zmq_ctx_new();
    if (!w->ctx) {
        free(w);
        return zmq_err(err, "zmq_ctx_new");
    }
    *out = w;
    return 0;
}

void kn_wire_destroy(struct kn_wire *w) {
    if (!w) return;
    assert(!w->guard);
    while (zmq_ctx_term(w->ctx) != 0 && errno == EINTR) {
    }
    kn_key_pair_forget(&w->keys);
    free(w);
}

void kn_wire_use_keys(struct kn_wire *w, const struct kn_key_pair *own, const struct kn_public_key *server) {
    w->keys = *own;
    w->keyed = true;
    w->has_server = server != NULL;
    if (server) w->server = *server;
}

int kn_wire_guard(struct kn_wire *w, kn_guard_admit admit, void *ctx, struct kn_err *err) {
    assert(w->keyed && !w->guard);
    kn_gate_guarded();
    return kn_guard_create(w->loop, w->ctx, admit, ctx, &w->guard, err);
}

void kn_wire_unguard(struct kn_wire *w) {
    kn_guard_destroy(w->guard);
    w->guard = NULL;
}

/* ---- receiving */

static void free_zmq_msg(void *data, void *hint) {
    (void)data;
    zmq_msg_close(hint);
    free(hint);
}

static void dropped(struct kn_sock *s, const struct kn_peer *peer, const char *why) {
    uint64_t who;
    memcpy(&who, peer->id, sizeof who);
    s->bad++;
    kn_warn_of(who, "message_dropped count=%llu reason=\"%s\"", (unsigned long long)s->bad, why);
}

/* Takes the parts of one message off the socket: three at most, further ones are thrown away. Returns their
 * number, 0 if no message was there. */
static int recv_parts(struct kn_sock *s, zmq_msg_t part[3]) {
    int n = 0;
    for (;;) {
        zmq_msg_t extra, *p = n < 3 ? &part[n] : &extra;
        zmq_msg_init(p);
        int rc;
        while ((rc = zmq_msg_recv(p, s->z, ZMQ_DONTWAIT)) < 0 && errno == EINTR) {
        }
        if (rc < 0) {
            zmq_msg_close(p);
            return n;
        }
        bool more = zmq_msg_more(p);
        if (n >= 3) zmq_msg_close(p);
        if (n < 4) n++;
        if (!more) return n;
    }
}

/* Decodes and hands over what recv_parts brought. The callback may destroy the socket. */
static void deliver(struct kn_sock *s, zmq_msg_t part[3], int n) {
    int first = s->opt.router ? 1 : 0;
    int have = n > 3 ? 3 : n;
    struct kn_peer peer = {0};
    struct kn_msg *m = NULL;
    struct kn_err err = {0};
    zmq_msg_t *bytes = NULL;
    if (n <= first || n > first + 2 || (n == first + 2 && !s->opt.blobs)) {
        dropped(s, &peer, "wrong number of frames");
        goto out;
    }
    if (s->opt.router) {
        if (zmq_msg_size(&part[0]) != KN_PEER_BYTES) {
            dropped(s, &peer, "routing id of a wrong length");
            goto out;
        }
        memcpy(peer.id, zmq_msg_data(&part[0]), KN_PEER_BYTES);
    }
    const char *user = zmq_msg_gets(&part[first], "User-Id");
    s->has_sender = user && kn_unhex(user, s->sender.bytes, KN_KEY_BYTES) == 0;
    s->sender_fd = s->has_sender ? zmq_msg_get(&part[first], ZMQ_SRCFD) : -1;
    s->sender_address = s->has_sender ? zmq_msg_gets(&part[first], "Peer-Address") : NULL;
    if (kn_msg_decode(zmq_msg_data(&part[first]), zmq_msg_size(&part[first]), &m, &err) != 0) {
        struct kn_garbled g;
        dropped(s, &peer, err.text);
        if (!s->opt.garbled) goto out;
        kn_msg_look(zmq_msg_data(&part[first]), zmq_msg_size(&part[first]), &g);
        g.code = err.code;
        g.text = err.text;
        s->opt.garbled(s, s->opt.ctx, s->opt.router ? &peer : NULL, &g);
        goto out;
    }
    struct kn_blob blob = {0};
    if (n == first + 2) {
        bytes = malloc(sizeof *bytes);
        if (!bytes) {
            dropped(s, &peer, "out of memory");
            kn_msg_destroy(m);
            goto out;
        }
        zmq_msg_init(bytes);
        zmq_msg_move(bytes, &part[first + 1]);
        blob = (struct kn_blob){zmq_msg_data(bytes), zmq_msg_size(bytes), free_zmq_msg, bytes};
    }
    s->opt.recv(s, s->opt.ctx, s->opt.router ? &peer : NULL, m, bytes ? &blob : NULL);
    if (bytes) kn_blob_release(&blob); /* unless the callback took it */
out:
    s->has_sender = false;
    s->sender_address = NULL;
    s->sender_fd = -1;
    for (int i = 0; i < have; i++) zmq_msg_close(&part[i]);
}

const struct kn_public_key *kn_sock_sender(const struct kn_sock *s) {
    return s->has_sender ? &s->sender : NULL;
}

const char *kn_sock_sender_address(const struct kn_sock *s) {
    return s->sender_address ? kn_guard_plain(s->sender_address) : "";
}

void kn_sock_keep_sender(struct kn_sock *s) {
    kn_gate_keep(s->sender_fd);
}

bool kn_sock_is_senders_first(struct kn_sock *s) {
    return kn_gate_once(s->sender_fd);
}

static int events(struct kn_sock *s) {
    int ev = 0;
    size_t len = sizeof ev;
    if (zmq_getsockopt(s->z, ZMQ_EVENTS, &ev, &len) != 0) return 0;
    return ev;
}

static void on_again(uv_idle_t *h);
static void on_retry(uv_timer_t *h);

static void pump_later(struct kn_sock *s) {
    if (!s->pumping) uv_idle_start(&s->again, on_again);
}

/* Works off the messages that are there. Afterwards `s` may be closed (its memory lives until the loop has
 * closed its handles). */
static void pump(struct kn_sock *s) {
    s->pumping = true;
    int done = 0, ev;
    bool refused = false;
    while (s->z && !s->paused && done < PUMP_MAX && (events(s) & ZMQ_POLLIN)) {
        zmq_msg_t part[3];
        int n = recv_parts(s, part);
        if (n == 0) break;
        deliver(s, part, n);
        done++;
    }
    if (s->z && s->want_writable && (events(s) & ZMQ_POLLOUT)) {
        s->want_writable = false;
        if (s->opt.writable) s->opt.writable(s, s->opt.ctx);
        refused = s->want_writable;
    }
    s->pumping = false;
    if (!s->z) return;
    ev = events(s);
    bool room = s->want_writable && (ev & ZMQ_POLLOUT);
    if (room && refused) uv_timer_start(&s->retry, on_retry, RETRY_MS, 0);
    if ((!s->paused && (ev & ZMQ_POLLIN)) || (room && !refused))
        uv_idle_start(&s->again, on_again);
    else
        uv_idle_stop(&s->again);
}

static void on_again(uv_idle_t *h) {
    pump(h->data);
}

static void on_retry(uv_timer_t *h) {
    pump(h->data);
}

static void on_readable(uv_poll_t *h, int status, int uv_events) {
    (void)status;
    (void)uv_events;
    pump(h->data);
}

/* ---- life of a socket */

static void on_poll_closed(uv_handle_t *h) {
    free(h);
}

static void outgoing_unref(struct outgoing *o) {
    if (atomic_fetch_sub(&o->refs, 1) == 1) free(o);
}

static void peers_destroy(struct kn_sock *s) {
    size_t pos = 0;
    struct outgoing *o;
    while (s->peers && (o = kn_map_next(s->peers, &pos))) outgoing_unref(o);
    kn_map_destroy(s->peers);
    s->peers = NULL;
}

static void on_closed(uv_handle_t *h) {
    struct kn_sock *s = h->data;
    if (--s->closing > 0) return;
    peers_destroy(s);
    kn_buf_fini(&s->frame);
    free(s);
}

static int set_int(struct kn_sock *s, int option, int value) {
    return zmq_setsockopt(s->z, option, &value, sizeof value);
}

static int open_zmq(struct kn_sock *s, struct kn_err *err) {
    s->z = zmq_socket(s->wire->ctx, s->opt.router ? ZMQ_ROUTER : ZMQ_DEALER);
    if (!s->z) return zmq_err(err, "zmq_socket");
    int64_t frame_max = s->opt.blobs ? KN_IMAGE_BYTES_MAX : KN_FRAME_BYTES_MAX;
    int rc = zmq_setsockopt(s->z, ZMQ_MAXMSGSIZE, &frame_max, sizeof frame_max);
    rc |= set_int(s, ZMQ_LINGER, LINGER_MS);
    rc |= set_int(s, ZMQ_RECONNECT_IVL, 100);
    rc |= set_int(s, ZMQ_RECONNECT_IVL_MAX, 2000);
    rc |= set_int(s, ZMQ_BACKLOG, BACKLOG);
    if (!s->opt.router) {
        rc |= set_int(s, ZMQ_HEARTBEAT_IVL, PING_MS);
        rc |= set_int(s, ZMQ_HEARTBEAT_TIMEOUT, QUIET_MS);
    }
    rc |= set_int(s, ZMQ_TCP_KEEPALIVE, 1);
    rc |= set_int(s, ZMQ_TCP_KEEPALIVE_IDLE, PING_MS / 1000);
    rc |= set_int(s, ZMQ_TCP_KEEPALIVE_INTVL, 1);
    rc |= set_int(s, ZMQ_TCP_KEEPALIVE_CNT, QUIET_MS / 1000);
    rc |= set_int(s, ZMQ_TCP_MAXRT, s->opt.blobs ? QUIET_BLOBS_MS : PING_MS + QUIET_MS);
    rc |= set_int(s, ZMQ_HANDSHAKE_IVL, 10000);
    rc |= set_int(s, ZMQ_IPV6, 1);
    /* Acknowledgements come in bursts, hence long queues where messages are short. What a ROUTER has not taken yet
     * waits at its senders beyond a few. */
    rc |= set_int(s, ZMQ_SNDHWM, s->opt.blobs && !s->opt.router ? BLOB_COUNT_MAX : SEND_COUNT_MAX);
    rc |= set_int(s, ZMQ_RCVHWM,
                  !s->opt.router ? 0 /* any number: of the one peer that it chose */
                  : s->opt.blobs ? BLOBS_HEARD_MAX
                                 : HEARD_COUNT_MAX);
    if (s->opt.router) {
        rc |= set_int(s, ZMQ_ROUTER_MANDATORY, 1);
        /* A peer that connects anew takes the place of its connection that broke unseen. */
        rc |= set_int(s, ZMQ_ROUTER_HANDOVER, 1);
    } else {
        uint8_t id[KN_PEER_BYTES];
        if (getrandom(id, sizeof id, 0) != (ssize_t)sizeof id) {
            zmq_close(s->z);
            s->z = NULL;
            return kn_err_set(err, KN_EIO, "getrandom: %s", strerror(errno));
        }
        id[0] |= 1; /* ZeroMQ keeps ids that begin with 0 for itself */
        rc |= zmq_setsockopt(s->z, ZMQ_ROUTING_ID, id, sizeof id);
        rc |= set_int(s, ZMQ_IMMEDIATE, 1);
    }
    int fd = -1;
    size_t fd_len = sizeof fd;
    if (rc != 0 || zmq_getsockopt(s->z, ZMQ_FD, &fd, &fd_len) != 0) {
        rc = zmq_err(err, "zmq_setsockopt");
        zmq_close(s->z);
        s->z = NULL;
        return rc;
    }
    s->poll = malloc(sizeof *s->poll);
    if (!s->poll || (rc = uv_poll_init(s->wire->loop, s->poll, fd)) != 0) {
        free(s->poll);
        s->poll = NULL;
        zmq_close(s->z);
        s->z = NULL;
        return kn_err_set(err, KN_ENOMEM, "watching a socket: %s", rc ? uv_strerror(rc) : "out of memory");
    }
    s->poll->data = s;
    uv_poll_start(s->poll, UV_READABLE, on_readable);
    return 0;
}

/* z is the socket that it listens to. libzmq would wait for ever to tell a listener that has gone, so it is stopped first. */
static void monitor_close(struct monitor *m, void *z) {
    if (!m->z) return;
    zmq_socket_monitor(z, NULL, 0);
    uv_close((uv_handle_t *)m->poll, on_poll_closed);
    zmq_close(m->z);
    *m = (struct monitor){0};
}

static void close_zmq(struct kn_sock *s) {
    monitor_close(&s->monitor, s->z);
    uv_close((uv_handle_t *)s->poll, on_poll_closed); /* leaves epoll at once, so the descriptor may go */
    s->poll = NULL;
    zmq_close(s->z);
    s->z = NULL;
}

int kn_sock_create(struct kn_wire *w, const struct kn_sock_options *opt, struct kn_sock **out,
                   struct kn_err *err) {
    struct kn_sock *s = calloc(1, sizeof *s);
    if (!s) return kn_err_set(err, KN_ENOMEM, "socket: out of memory");
    s->wire = w;
    s->opt = *opt;
    s->has_server = opt->server || w->has_server;
    if (s->has_server) s->server = opt->server ? *opt->server : w->server;
    kn_buf_init(&s->frame, KN_FRAME_BYTES_MAX + 1);
    int rc = 0;
    if (opt->router && !(s->peers = kn_map_create(PEERS_MAX)))
        rc = kn_err_set(err, KN_ENOMEM, "socket: out of memory");
    if (rc == 0) rc = open_zmq(s, err);
    if (rc != 0) {
        peers_destroy(s);
        free(s);
        return rc;
    }
    uv_idle_init(w->loop, &s->again);
    uv_timer_init(w->loop, &s->retry);
    uv_timer_init(w->loop, &s->refused);
    s->again.data = s->retry.data = s->refused.data = s;
    *out = s;
    return 0;
}

void kn_sock_destroy(struct kn_sock *s) {
    if (!s || !s->z) return;
    close_zmq(s);
    s->closing = 3;
    uv_close((uv_handle_t *)&s->refused, on_closed);
    uv_close((uv_handle_t *)&s->again, on_closed);
    uv_close((uv_handle_t *)&s->retry, on_closed);
}

/* ---- keys */

static bool is_keyed(const struct kn_sock *s, const char *endpoint) {
    return s->wire->keyed && strncmp(endpoint, "tcp://", 6) == 0;
}

/* Whoever comes to the endpoint that is bound next, shows a key, or needs none. */
static int use_keys_of_server(struct kn_sock *s, bool keyed, struct kn_err *err) {
    int rc = 0;
    if (!s->wire->keyed) return 0;
    if (!s->wire->guard)
        return keyed ? kn_err_set(err, KN_ESTATE, "nobody decides which keys are let in") : 0;
    const char *domain = keyed ? KN_GUARD_NETWORK : KN_GUARD_UNIX;
    rc |= set_int(s, ZAP_ENFORCE_DOMAIN, 1);
    rc |= zmq_setsockopt(s->z, ZMQ_ZAP_DOMAIN, domain, strlen(domain));
    if (keyed) rc |= zmq_setsockopt(s->z, ZMQ_CURVE_SECRETKEY, s->wire->keys.secret, KN_KEY_BYTES);
    rc |= set_int(s, ZMQ_CURVE_SERVER, keyed);
    return rc == 0 ? 0 : kn_err_set(err, KN_EUNSUPPORTED, "this libzmq cannot use keys (CURVE)");
}

static void on_refused(uv_timer_t *t) {
    struct kn_err err = {0};
    if (kn_sock_reconnect(t->data, &err) != 0) kn_warn("reconnect_failed reason=\"%s\"", err.text);
}

/* libzmq tries no more after a handshake that the other end has refused. */
static void refused(struct kn_sock *s, const char *why, bool final) {
    if (s->refusal != why) kn_warn("refused endpoint=%s reason=\"%s\"", s->endpoint, why);
    s->refusal = why;
    if (final) uv_timer_start(&s->refused, on_refused, REFUSED_PAUSE_MS, 0);
}

static void monitored(struct kn_sock *s, uint16_t event, uint32_t value) {
    enum link before = s->link;
    bool keyed = is_keyed(s, s->endpoint);
    s->link = event == ZMQ_EVENT_CONNECTED             ? LINK_SHAKING
              : event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED ? LINK_UP
                                                       : LINK_DOWN;
    if (s->link == LINK_UP) {
        s->refusal = NULL;
        s->shaken = 0;
    }
    if (keyed && event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
        refused(s, "the farm does not know this key", true);
    else if (keyed && event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL)
        refused(s,
                value == ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
                    ? "the farm uses no keys at that endpoint"
                    : "what answers at that endpoint is no farm that uses keys",
                true);
    else if (keyed && s->link == LINK_DOWN && before == LINK_SHAKING && ++s->shaken >= SHAKES_MAX)
        refused(s,
                "the farm at that endpoint does not have the key that is expected of it, or does not answer",
                false);
    if (s->link == LINK_DOWN && before == LINK_UP && s->opt.broken) s->opt.broken(s, s->opt.ctx);
}

/* The next event. False: there is none. */
static bool monitor_take(struct monitor *from, uint16_t *event, uint32_t *value) {
    for (;;) {
        zmq_msg_t m;
        zmq_msg_init(&m);
        int rc;
        while ((rc = zmq_msg_recv(&m, from->z, ZMQ_DONTWAIT)) < 0 && errno == EINTR) {
        }
        bool number = rc == sizeof *event + sizeof *value && zmq_msg_more(&m); /* an address follows */
        if (number) {
            memcpy(event, zmq_msg_data(&m), sizeof *event);
            memcpy(value, (const uint8_t *)zmq_msg_data(&m) + sizeof *event, sizeof *value);
        }
        zmq_msg_close(&m);
        if (rc < 0) return false;
        if (number) return true;
    }
}

static void on_monitor(uv_poll_t *h, int status, int uv_events) {
    struct kn_sock *s = h->data;
    uint16_t event;
    uint32_t value;
    (void)status;
    (void)uv_events;
    /* Whoever is told may reconnect or destroy the socket. */
    while (s->monitor.z && monitor_take(&s->monitor, &event, &value)) monitored(s, event, value);
}

/* From here on the socket hears how its handshakes and connections end: libzmq tells nobody else. */
static int monitor_open(struct kn_sock *s, struct kn_err *err) {
    static atomic_uint count;
    char name[48];
    int fd = -1, linger = 0;
    size_t len = sizeof fd;
    struct monitor m = {zmq_socket(s->wire->ctx, ZMQ_PAIR), malloc(sizeof *m.poll)};
    snprintf(name, sizeof name, "inproc://monitor-%u", atomic_fetch_add(&count, 1));
    if (!m.z || !m.poll ||
        zmq_socket_monitor(s->z, name,
                           ZMQ_EVENT_CONNECTED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED |
                               ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                               ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) != 0 ||
        zmq_setsockopt(m.z, ZMQ_LINGER, &linger, sizeof linger) != 0 || zmq_connect(m.z, name) != 0 ||
        zmq_getsockopt(m.z, ZMQ_FD, &fd, &len) != 0 || uv_poll_init(s->wire->loop, m.poll, fd) != 0) {
        int rc = zmq_err(err, "listening to a connection");
        zmq_socket_monitor(s->z, NULL, 0);
        if (m.z) zmq_close(m.z);
        free(m.poll);
        return rc;
    }
    m.poll->data = s;
    uv_poll_start(m.poll, UV_READABLE, on_monitor);
    s->monitor = m;
    s->link = LINK_DOWN;
    on_monitor(m.poll, 0, UV_READABLE); /* its descriptor tells of changes alone */
    return 0;
}

static int use_keys_of_client(struct kn_sock *s, struct kn_err *err) {
    if (!is_keyed(s, s->endpoint)) return 0;
    if (!s->has_server)
        return kn_err_set(err, KN_ECONFIG, "%s: the key of the farm there is not known", s->endpoint);
    int rc = zmq_setsockopt(s->z, ZMQ_CURVE_SERVERKEY, s->server.bytes, KN_KEY_BYTES);
    rc |= zmq_setsockopt(s->z, ZMQ_CURVE_PUBLICKEY, s->wire->keys.own.bytes, KN_KEY_BYTES);
    rc |= zmq_setsockopt(s->z, ZMQ_CURVE_SECRETKEY, s->wire->keys.secret, KN_KEY_BYTES);
    rc |= set_int(s, ZMQ_HANDSHAKE_IVL, KEYED_HANDSHAKE_MS);
    return rc == 0 ? 0 : kn_err_set(err, KN_EUNSUPPORTED, "this libzmq cannot use keys (CURVE)");
}

static int dial(struct kn_sock *s, struct kn_err *err) {
    int rc = use_keys_of_client(s, err);
    if (rc == 0 && (s->opt.broken || is_keyed(s, s->endpoint))) rc = monitor_open(s, err);
    if (rc != 0) return rc;
    if (zmq_connect(s->z, s->endpoint) != 0) return zmq_err(err, s->endpoint);
    s->want_writable = true;
    pump_later(s);
    return 0;
}

const char *kn_sock_refusal(const struct kn_sock *s) {
    return s->refusal;
}

/* ---- endpoints */

int kn_sock_bind(struct kn_sock *s, const char *endpoint, uint16_t *port, struct kn_err *err) {
    char e[KN_ENDPOINT_MAX + 1];
    int rc = kn_endpoint_resolve(endpoint, e, err);
    if (rc == 0) rc = use_keys_of_server(s, is_keyed(s, e), err);
    if (rc != 0) return rc;
    if (!is_keyed(s, e) && !kn_endpoint_is_loopback(e))
        return kn_err_set(err, KN_ECONFIG, "%s: listens beyond this machine, and has no keys", e);
    if (strncmp(e, "tcp://localhost:", 16) == 0) {
        char rest[KN_ENDPOINT_MAX + 1];
        snprintf(rest, sizeof rest, "%s", e + 16);
        snprintf(e, sizeof e, "tcp://127.0.0.1:%.200s", rest);
    }
    mode_t mask = umask(0177); /* an ipc socket's file is made inside zmq_bind */
    rc = zmq_bind(s->z, e);
    int saved = errno;
    umask(mask);
    if (rc != 0) {
        errno = saved;
        return kn_err_set(err, saved == EADDRINUSE ? KN_EEXIST : KN_EIO, "%s: %s", e, zmq_strerror(saved));
    }
    if (port) {
        char last[KN_ENDPOINT_MAX + 1];
        size_t len = sizeof last;
        *port = 0;
        if (zmq_getsockopt(s->z, ZMQ_LAST_ENDPOINT, last, &len) == 0 && strncmp(last, "tcp://", 6) == 0)
            *port = (uint16_t)strtoul(strrchr(last, ':') + 1, NULL, 10);
    }
    pump_later(s);
    return 0;
}

int kn_sock_connect(struct kn_sock *s, const char *endpoint, struct kn_err *err) {
    assert(!s->opt.router);
    int rc = kn_endpoint_resolve(endpoint, s->endpoint, err);
    return rc == 0 ? dial(s, err) : rc;
}

int kn_sock_reconnect(struct kn_sock *s, struct kn_err *err) {
    assert(!s->opt.router && s->endpoint[0]);
    set_int(s, ZMQ_LINGER, 0);
    void *old_z = s->z;
    uv_poll_t *old_poll = s->poll;
    int rc = open_zmq(s, err);
    if (rc != 0) { /* the old connection stays */
        s->z = old_z;
        s->poll = old_poll;
        return rc;
    }
    uv_close((uv_handle_t *)old_poll, on_poll_closed);
    monitor_close(&s->monitor, old_z);
    zmq_close(old_z);
    uv_timer_stop(&s->refused);
    return dial(s, err);
}

void kn_sock_pause(struct kn_sock *s, bool paused) {
    if (s->paused == paused) return;
    s->paused = paused;
    if (!paused && s->z) pump_later(s);
}

/* ---- sending */

static int send_part(struct kn_sock *s, zmq_msg_t *p, int flags) {
    int rc;
    while ((rc = zmq_msg_send(p, s->z, flags | ZMQ_DONTWAIT)) < 0 && errno == EINTR) {
    }
    return rc < 0 ? -1 : 0;
}

static int send_copy(struct kn_sock *s, const void *data, size_t len, int flags) {
    zmq_msg_t p;
    if (zmq_msg_init_size(&p, len) != 0) return -1;
    memcpy(zmq_msg_data(&p), data, len);
    int rc = send_part(s, &p, flags);
    if (rc != 0) {
        int saved = errno;
        zmq_msg_close(&p);
        errno = saved;
    }
    return rc;
}

/* ---- bytes on their way */

static void counted_free(void *data, void *hint) {
    struct counted *c = hint;
    (void)data;
    atomic_fetch_sub(&c->to->bytes, c->len);
    atomic_fetch_sub(&c->wire->waiting, c->len);
    outgoing_unref(c->to);
    kn_blob_release(&c->bytes);
    free(c);
}

/* Forgets the peers for which nothing waits any more, now and then. */
static void peers_sweep(struct kn_sock *s) {
    struct outgoing *idle[PEERS_SWEPT];
    size_t count, pos;
    if (kn_map_count(s->peers) < 2 * s->peers_swept + PEERS_SWEPT) return;
    do {
        struct outgoing *o;
        for (count = pos = 0; count < PEERS_SWEPT && (o = kn_map_next(s->peers, &pos));)
            if (atomic_load(&o->refs) == 1) idle[count++] = o;
        for (size_t i = 0; i < count; i++) {
            kn_map_remove(s->peers, idle[i]->peer, KN_PEER_BYTES);
            outgoing_unref(idle[i]);
        }
    } while (count == PEERS_SWEPT);
    s->peers_swept = kn_map_count(s->peers);
}

static struct outgoing *outgoing_to(struct kn_sock *s, const struct kn_peer *peer) {
    struct outgoing *o = kn_map_get(s->peers, peer->id, KN_PEER_BYTES);
    if (o) return o;
    peers_sweep(s);
    o = calloc(1, sizeof *o);
    if (!o) return NULL;
    atomic_init(&o->refs, 1);
    memcpy(o->peer, peer->id, KN_PEER_BYTES);
    if (kn_map_put(s->peers, peer->id, KN_PEER_BYTES, o) == 0) return o;
    free(o);
    return NULL;
}

/* True while so many more bytes may wait for a peer: one message always may. */
static bool has_room(const struct kn_sock *s, const struct outgoing *o, size_t len) {
    size_t most = s->opt.blobs ? DATA_PEER_BYTES_MAX : CONTROL_PEER_BYTES_MAX;
    size_t waiting = atomic_load(&o->bytes);
    return waiting == 0 || (waiting + len <= most && atomic_load(&s->wire->waiting) + len <= WIRE_BYTES_MAX);
}

/* A message part of these bytes, which it takes. They are counted until ZeroMQ frees them. */
static int counted_part(struct kn_sock *s, struct outgoing *o, struct kn_blob *bytes, zmq_msg_t *p) {
    struct counted *c = malloc(sizeof *c);
    if (!c) {
        errno = ENOMEM;
        return -1;
    }
    *c = (struct counted){s->wire, o, bytes->len, *bytes};
    atomic_fetch_add(&o->refs, 1);
    atomic_fetch_add(&o->bytes, c->len);
    atomic_fetch_add(&s->wire->waiting, c->len);
    if (zmq_msg_init_data(p, bytes->data, bytes->len, counted_free, c) != 0) {
        c->bytes.data = NULL; /* still the caller's */
        counted_free(NULL, c);
        return -1;
    }
    bytes->data = NULL;
    return 0;
}

static void free_copy(void *data, void *hint) {
    (void)hint;
    free(data);
}

/* Sends the encoded frame to a peer, behind its routing id. */
static int send_frame(struct kn_sock *s, struct outgoing *o, int flags) {
    zmq_msg_t p;
    if (!o) return send_copy(s, s->frame.data, s->frame.len, flags);
    struct kn_blob copy = {malloc(s->frame.len), s->frame.len, free_copy, NULL};
    if (!copy.data) {
        errno = ENOMEM;
        return -1;
    }
    memcpy(copy.data, s->frame.data, s->frame.len);
    if (counted_part(s, o, &copy, &p) != 0) {
        kn_blob_release(&copy);
        return -1;
    }
    int rc = send_part(s, &p, flags);
    if (rc != 0) {
        int saved = errno;
        zmq_msg_close(&p);
        errno = saved;
    }
    return rc;
}

int kn_sock_send(struct kn_sock *s, const struct kn_peer *peer, const struct kn_msg *m, struct kn_blob *blob,
                 struct kn_err *err) {
    if (!s->z) return kn_err_set(err, KN_EGONE, "socket is closed");
    assert(!blob || s->opt.blobs);
    assert((peer != NULL) == s->opt.router);
    if (blob && blob->len > KN_IMAGE_BYTES_MAX)
        return kn_err_set(err, KN_ELIMIT, "%zu bytes behind a message, more than %u", blob->len,
                          KN_IMAGE_BYTES_MAX);
    kn_buf_clear(&s->frame);
    int rc = kn_msg_encode(m, &s->frame, err);
    if (rc != 0) return rc;
    struct outgoing *o = NULL;
    size_t len = s->frame.len + (blob ? blob->len : 0);
    if (peer && len >= COUNTED_BYTES_MIN) {
        if (!(o = outgoing_to(s, peer))) return kn_err_set(err, KN_ENOMEM, "sending: out of memory");
        if (!has_room(s, o, len))
            return kn_err_set(err, KN_EAGAIN, "%zu bytes wait for that peer already: it does not read",
                              atomic_load(&o->bytes));
    }
    /* ZeroMQ decides at the first part whether it takes a message; the parts behind it never fail for want of
     * room. */
    int more = blob ? ZMQ_SNDMORE : 0;
    rc = peer ? send_copy(s, peer->id, KN_PEER_BYTES, ZMQ_SNDMORE)
              : send_copy(s, s->frame.data, s->frame.len, more);
    if (rc != 0) {
        pump_later(s);
        if (errno == EAGAIN) {
            s->want_writable = true;
            return kn_err_set(err, KN_EAGAIN, "no room to send, or nobody there");
        }
        if (errno == EHOSTUNREACH) return kn_err_set(err, KN_EGONE, "that peer is not connected any more");
        return zmq_err(err, "zmq_msg_send");
    }
    if (peer && send_frame(s, o, more) != 0)
        kn_warn("send_lost message=%s reason=\"%s\"", kn_msg_name(m->type), zmq_strerror(errno));
    if (blob) {
        zmq_msg_t p;
        struct kn_blob b = *blob;
        blob->data = NULL;
        if ((o ? counted_part(s, o, &b, &p) : zmq_msg_init_data(&p, b.data, b.len, b.free_fn, b.hint)) != 0) {
            kn_warn("send_lost message=%s reason=\"%s\"", kn_msg_name(m->type), zmq_strerror(errno));
            kn_blob_release(&b);
            zmq_msg_init(&p); /* the message must end, or the next one would be glued to it */
        }
        if (send_part(s, &p, 0) != 0) zmq_msg_close(&p);
    }
    pump_later(s);
    return 0;
}
