/* Who comes in over TCP: a coordinator's end that has keys, and peers that have the right ones, wrong ones or none. */
#include "tests/unit/check.h"

#include <unistd.h>
#include <zmq.h>

#include "base/clock.h"
#include "base/log.h"
#include "proto/wire.h"
#include "tests/unit/proto_messages.h"

#define PATIENCE_MS 20000

struct end { /* of a connection, with a context of its own */
    struct kn_wire *wire;
    struct kn_sock *s;
    struct kn_key_pair keys;
    int received, ended;
    bool had_sender;
    struct kn_public_key sender;
};

static uv_loop_t loop;
static char dir[64], ipc[128], tcp[64];
static struct end server;
static struct kn_public_key known; /* the only one that is let in */
static int asked;

static void on_tick(uv_timer_t *t) {
    (void)t;
}

static bool turn_until(bool (*is)(void *), void *arg, uint64_t ms) {
    uv_timer_t tick;
    uint64_t until = kn_clock_ms() + ms;
    uv_timer_init(&loop, &tick);
    uv_timer_start(&tick, on_tick, 5, 5);
    bool ok;
    while (!(ok = is(arg)) && kn_clock_ms() < until) uv_run(&loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&tick, NULL);
    uv_run(&loop, UV_RUN_NOWAIT);
    return ok;
}

static bool is_refused(void *arg) {
    return kn_sock_refusal(((struct end *)arg)->s) != NULL;
}

static bool was_heard(void *arg) {
    (void)arg;
    return server.received > 0;
}

static bool admit(void *ctx, const struct kn_public_key *who, const char *address) {
    (void)ctx;
    asked++;
    CHECK_STR(address, "127.0.0.1");
    return memcmp(who, &known, sizeof known) == 0;
}

static void on_recv(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                    struct kn_blob *blob) {
    struct end *e = ctx;
    const struct kn_public_key *sender = kn_sock_sender(s);
    (void)peer;
    (void)blob;
    e->received++;
    e->had_sender = sender != NULL;
    if (sender) e->sender = *sender;
    kn_msg_destroy(m);
}

static void on_writable(struct kn_sock *s, void *ctx) {
    struct kn_msg m;
    (void)ctx;
    proto_example(KN_MSG_HEARTBEAT, &m);
    (void)!kn_sock_send(s, NULL, &m, NULL, NULL);
}

static void on_broken(struct kn_sock *s, void *ctx) {
    (void)s;
    ((struct end *)ctx)->ended++;
}

static void make_keys(const char *name, struct kn_key_pair *out) {
    struct kn_err err = {0};
    char path[160];
    CHECK_MSG(kn_key_pair_keep(dir, name, out, &err) == 0, "%s", err.text);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}

/* The coordinator's end listens on a Unix socket and by TCP with one socket, as the data socket does. */
static void begin(void) {
    struct kn_sock_options opt = {.router = true, .recv = on_recv, .ctx = &server};
    struct kn_err err = {0};
    uint16_t port = 0;
    kn_log_level_now = KN_LOG_ERROR;
    asked = 0;
    server = (struct end){0};
    strcpy(dir, "/tmp/kn-keys-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    snprintf(ipc, sizeof ipc, "ipc://%s/s", dir);
    CHECK_INT(uv_loop_init(&loop), 0);
    CHECK_INT(kn_wire_create(&loop, &server.wire, &err), 0);
    make_keys("server", &server.keys);
    kn_wire_use_keys(server.wire, &server.keys, NULL);
    CHECK_INT(kn_sock_create(server.wire, &opt, &server.s, &err), 0);
    CHECK_INT(kn_sock_bind(server.s, "tcp://127.0.0.1:0", &port, &err), KN_ESTATE); /* nobody guards it */
    CHECK_INT(kn_wire_guard(server.wire, admit, NULL, &err), 0);
    CHECK_MSG(kn_sock_bind(server.s, "tcp://127.0.0.1:0", &port, &err) == 0, "%s", err.text);
    CHECK_MSG(kn_sock_bind(server.s, ipc, NULL, &err) == 0, "%s", err.text);
    snprintf(tcp, sizeof tcp, "tcp://127.0.0.1:%u", port);
}

/* A peer with keys, or without (expected NULL), that sends as soon as it can. */
static void connect_peer(struct end *e, const struct kn_public_key *expected, const char *endpoint) {
    struct kn_sock_options opt = {
        .recv = on_recv, .writable = on_writable, .broken = on_broken, .ctx = e, .server = expected};
    struct kn_err err = {0};
    CHECK_INT(kn_wire_create(&loop, &e->wire, &err), 0);
    if (expected) {
        make_keys("peer", &e->keys);
        kn_wire_use_keys(e->wire, &e->keys, NULL);
    }
    CHECK_INT(kn_sock_create(e->wire, &opt, &e->s, &err), 0);
    CHECK_MSG(kn_sock_connect(e->s, endpoint, &err) == 0, "%s", err.text);
}

static void end_all(struct end *peer) {
    kn_sock_destroy(peer->s);
    kn_sock_destroy(server.s);
    kn_wire_unguard(server.wire);
    uv_run(&loop, UV_RUN_DEFAULT);
    CHECK_INT(uv_loop_close(&loop), 0);
    kn_wire_destroy(peer->wire);
    kn_wire_destroy(server.wire);
    unlink(ipc + 6);
    CHECK_INT(rmdir(dir), 0);
}

TEST(a_known_key_comes_in_and_the_receiver_knows_whose_each_message_is) {
    struct end peer = {0};
    begin();
    connect_peer(&peer, &server.keys.own, tcp);
    known = peer.keys.own;
    CHECK(turn_until(was_heard, NULL, PATIENCE_MS));
    CHECK(server.had_sender && memcmp(&server.sender, &peer.keys.own, sizeof known) == 0);
    CHECK(kn_sock_sender(server.s) == NULL); /* outside of its callback */
    CHECK(kn_sock_refusal(peer.s) == NULL);
    CHECK_INT(asked, 1);
    end_all(&peer);
}

TEST(an_unknown_key_is_refused_in_words_and_let_in_once_it_is_known) {
    struct end peer = {0};
    begin();
    known = server.keys.own;
    connect_peer(&peer, &server.keys.own, tcp);
    CHECK(turn_until(is_refused, &peer, PATIENCE_MS));
    CHECK_STR(kn_sock_refusal(peer.s), "the farm does not know this key");
    CHECK_INT(server.received, 0);
    known = peer.keys.own;
    CHECK(turn_until(was_heard, NULL, PATIENCE_MS)); /* it tries again by itself */
    CHECK(kn_sock_refusal(peer.s) == NULL);
    end_all(&peer);
}

TEST(a_farm_with_another_key_is_refused_in_words_and_gets_nothing) {
    struct end peer = {0};
    struct kn_key_pair other;
    begin();
    make_keys("other", &other);
    connect_peer(&peer, &other.own, tcp);
    known = peer.keys.own;
    CHECK(turn_until(is_refused, &peer, PATIENCE_MS));
    CHECK(strstr(kn_sock_refusal(peer.s), "does not have the key that is expected"));
    CHECK_INT(peer.ended, 0); /* a connection that never stood has no end */
    CHECK_INT(server.received, 0);
    CHECK_INT(asked, 0);
    end_all(&peer);
}

static bool has_ended(void *arg) {
    return ((struct end *)arg)->ended > 0;
}

/* A socket has one monitor: it tells of both. */
TEST(who_has_keys_is_told_of_the_end_of_its_connection) {
    struct end peer = {0};
    begin();
    connect_peer(&peer, &server.keys.own, tcp);
    known = peer.keys.own;
    CHECK(turn_until(was_heard, NULL, PATIENCE_MS));
    CHECK_INT(peer.ended, 0);
    kn_sock_destroy(server.s);
    server.s = NULL;
    CHECK(turn_until(has_ended, &peer, PATIENCE_MS));
    CHECK_INT(peer.ended, 1);
    CHECK(kn_sock_refusal(peer.s) == NULL);
    end_all(&peer);
}

/* A second peer, with the right key, is heard; what the one without sent before it, is not. */
TEST(who_has_no_key_is_refused) {
    struct end peer = {0}, good = {0};
    begin();
    connect_peer(&peer, NULL, tcp);
    connect_peer(&good, &server.keys.own, tcp);
    known = good.keys.own;
    CHECK(turn_until(was_heard, NULL, PATIENCE_MS));
    CHECK(server.had_sender && memcmp(&server.sender, &good.keys.own, sizeof known) == 0);
    struct kn_msg m;
    proto_example(KN_MSG_HEARTBEAT, &m);
    CHECK_INT(kn_sock_send(peer.s, NULL, &m, NULL, NULL), KN_EAGAIN); /* it has nobody to send to */
    CHECK_INT(server.received, 1);
    kn_sock_destroy(good.s);
    uv_run(&loop, UV_RUN_NOWAIT);
    end_all(&peer);
    kn_wire_destroy(good.wire);
}

TEST(who_comes_through_a_unix_socket_needs_no_key) {
    struct end peer = {0};
    begin();
    connect_peer(&peer, &server.keys.own, ipc);
    CHECK(turn_until(was_heard, NULL, PATIENCE_MS));
    CHECK(!server.had_sender);
    CHECK_INT(asked, 0);
    end_all(&peer);
}

/* libzmq lets everybody in where no ZAP handler is: ours has gone, and the socket still listens. */
TEST(nobody_comes_in_when_the_guard_has_gone) {
    struct end peer = {0};
    begin();
    kn_wire_unguard(server.wire);
    connect_peer(&peer, &server.keys.own, tcp);
    known = peer.keys.own;
    CHECK(turn_until(is_refused, &peer, PATIENCE_MS));
    CHECK_INT(server.received, 0);
    end_all(&peer);
}

/* A wire with keys sends nothing without them: it expects a key of every farm that it reaches by TCP. */
TEST(without_the_farms_key_nothing_is_sent_by_tcp) {
    struct end peer = {0};
    struct kn_sock_options opt = {.recv = on_recv, .ctx = &peer};
    struct kn_err err = {0};
    begin();
    CHECK_INT(kn_wire_create(&loop, &peer.wire, &err), 0);
    kn_wire_use_keys(peer.wire, &server.keys, NULL);
    CHECK_INT(kn_sock_create(peer.wire, &opt, &peer.s, &err), 0);
    CHECK_INT(kn_sock_connect(peer.s, tcp, &err), KN_ECONFIG);
    end_all(&peer);
}
