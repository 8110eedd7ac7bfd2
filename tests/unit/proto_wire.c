/* Sockets: two ends on one loop talk over ipc and tcp. Each test has a folder and a loop of its own and
 * leaves nothing behind. */
#include "tests/unit/check.h"

#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/log.h"
#include "proto/wire.h"
#include "tests/unit/proto_messages.h"

#define PATIENCE_MS 20000

struct side {
    struct kn_sock *s;
    struct kn_peer peer; /* of the last message */
    struct kn_msg *last; /* owns */
    int received, writable;
    size_t blob_len;
    uint64_t blob_sum;
    bool echo, take_blob, destroy_inside;
    struct kn_blob taken;
};

static uv_loop_t loop;
static struct kn_wire *wire;
static char dir[64], ipc[128];

static void on_tick(uv_timer_t *t) {
    (void)t;
}

/* Turns the loop until the condition holds. */
static bool turn_until(bool (*is)(void *), void *arg, uint64_t ms) {
    uv_timer_t tick;
    uint64_t end = kn_clock_ms() + ms;
    uv_timer_init(&loop, &tick);
    uv_timer_start(&tick, on_tick, 5, 5);
    bool ok;
    while (!(ok = is(arg)) && kn_clock_ms() < end) uv_run(&loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&tick, NULL);
    uv_run(&loop, UV_RUN_NOWAIT);
    return ok;
}

static bool never(void *arg) {
    (void)arg;
    return false;
}

static void begin(void) {
    struct kn_err err = {0};
    kn_log_level_now = KN_LOG_ERROR;
    strcpy(dir, "/tmp/kn-wire-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    snprintf(ipc, sizeof ipc, "ipc://%s/s", dir);
    CHECK_INT(uv_loop_init(&loop), 0);
    CHECK_MSG(kn_wire_create(&loop, &wire, &err) == 0, "%s", err.text);
}

static void fini(struct side *a) {
    kn_sock_destroy(a->s);
    kn_msg_destroy(a->last);
    kn_blob_release(&a->taken);
    *a = (struct side){0};
}

static void end(void) {
    uv_run(&loop, UV_RUN_DEFAULT);
    CHECK_INT(uv_loop_close(&loop), 0);
    kn_wire_destroy(wire);
    unlink(ipc + 6);
    CHECK_INT(rmdir(dir), 0);
}

static void on_recv(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                    struct kn_blob *blob) {
    struct side *a = ctx;
    struct kn_err err = {0};
    CHECK(s == a->s);
    if (peer) a->peer = *peer;
    kn_msg_destroy(a->last);
    a->last = m;
    a->received++;
    a->blob_len = blob ? blob->len : 0;
    a->blob_sum = 0;
    for (size_t i = 0; blob && i < blob->len; i++) a->blob_sum += ((uint8_t *)blob->data)[i];
    if (a->echo) CHECK_INT(kn_sock_send(s, peer, m, NULL, &err), 0);
    if (blob && a->take_blob) {
        kn_blob_release(&a->taken);
        a->taken = *blob;
        blob->data = NULL;
    }
    if (a->destroy_inside) {
        kn_sock_destroy(s);
        a->s = NULL;
    }
}

static void on_writable(struct kn_sock *s, void *ctx) {
    (void)s;
    ((struct side *)ctx)->writable++;
}

static void make(struct side *a, bool router, bool blobs) {
    struct kn_sock_options opt = {
        .router = router, .blobs = blobs, .recv = on_recv, .writable = on_writable, .ctx = a};
    struct kn_err err = {0};
    CHECK_MSG(kn_sock_create(wire, &opt, &a->s, &err) == 0, "%s", err.text);
}

static bool is_writable(void *arg) {
    return ((struct side *)arg)->writable > 0;
}
static bool has_received(void *arg) {
    return ((struct side *)arg)->received > 0;
}

static void connect_pair(struct side *r, struct side *d, const char *endpoint, bool blobs, char *reached) {
    struct kn_err err = {0};
    uint16_t port = 0;
    char e[KN_ENDPOINT_MAX + 1];
    make(r, true, blobs);
    make(d, false, blobs);
    CHECK_MSG(kn_sock_bind(r->s, endpoint, &port, &err) == 0, "%s", err.text);
    snprintf(e, sizeof e, "%s", endpoint);
    if (port) snprintf(e, sizeof e, "tcp://127.0.0.1:%u", port);
    if (reached) strcpy(reached, e);
    CHECK_MSG(kn_sock_connect(d->s, e, &err) == 0, "%s", err.text);
    CHECK(turn_until(is_writable, d, PATIENCE_MS));
}

/* Every message from the dealer to the router and back. */
static void converse(const char *endpoint) {
    struct side r = {.echo = true}, d = {0};
    begin();
    connect_pair(&r, &d, endpoint[0] ? endpoint : ipc, false, NULL);
    for (size_t i = 0; i < proto_type_count; i++) {
        struct kn_msg m;
        struct kn_err err = {0};
        proto_example(proto_types[i], &m);
        d.received = 0;
        CHECK_INT(kn_sock_send(d.s, NULL, &m, NULL, &err), 0);
        CHECK(turn_until(has_received, &d, PATIENCE_MS));
        proto_check_same(&m, d.last);
    }
    CHECK_INT(r.received, (int)proto_type_count);
    fini(&r);
    fini(&d);
    end();
}

TEST(two_ends_talk_over_ipc) {
    converse("");
}

TEST(two_ends_talk_over_tcp_on_a_free_port) {
    converse("tcp://127.0.0.1:*");
}

TEST(localhost_is_this_machine) {
    converse("tcp://localhost:0");
}

/* ---- bytes behind a message */

static atomic_int freed;
static void count_free(void *data, void *hint) {
    (void)hint;
    free(data);
    atomic_fetch_add(&freed, 1);
}

static struct kn_blob make_blob(size_t len) {
    char *p = malloc(len ? len : 1);
    memset(p, 3, len ? len : 1);
    return (struct kn_blob){p, len, count_free, NULL};
}

static bool blob_freed(void *arg) {
    return atomic_load(&freed) >= *(int *)arg;
}

TEST(bytes_travel_behind_a_message_and_are_freed_once) {
    static const size_t lens[] = {0, 1, 100, 1 << 20, 20u << 20};
    struct side r = {.take_blob = true}, d = {0};
    int sent = 0;
    begin();
    atomic_store(&freed, 0);
    connect_pair(&r, &d, ipc, true, NULL);
    for (size_t i = 0; i < sizeof lens / sizeof lens[0]; i++) {
        struct kn_msg m;
        struct kn_blob b = make_blob(lens[i]);
        proto_example(KN_MSG_IMAGE_RESULT, &m);
        r.received = 0;
        CHECK_INT(kn_sock_send(d.s, NULL, &m, &b, NULL), 0);
        CHECK(b.data == NULL);
        sent++;
        CHECK(turn_until(has_received, &r, PATIENCE_MS));
        proto_check_same(&m, r.last);
        CHECK_U64(r.blob_len, lens[i]);
        CHECK_U64(r.blob_sum, 3 * lens[i]);
        CHECK(r.taken.data != NULL);
    }
    CHECK(turn_until(blob_freed, &sent, PATIENCE_MS));
    fini(&r);
    fini(&d);
    end();
    CHECK_INT(atomic_load(&freed), sent);
}

TEST(bytes_over_the_limit_stay_the_callers) {
    struct side r = {0}, d = {0};
    struct kn_msg m;
    struct kn_err err = {0};
    char one = 1;
    struct kn_blob b = {&one, (size_t)KN_IMAGE_BYTES_MAX + 1, NULL, NULL};
    begin();
    connect_pair(&r, &d, ipc, true, NULL);
    proto_example(KN_MSG_IMAGE_RESULT, &m);
    CHECK_INT(kn_sock_send(d.s, NULL, &m, &b, &err), KN_ELIMIT);
    CHECK(b.data == &one);
    fini(&r);
    fini(&d);
    end();
}

TEST(bytes_on_a_control_socket_are_dropped_and_the_next_message_arrives) {
    struct side r = {0}, control = {0}, data = {0};
    struct kn_msg m;
    struct kn_blob b;
    begin();
    make(&r, true, false);
    make(&data, false, true); /* a peer that takes the control socket for the data socket */
    CHECK_INT(kn_sock_bind(r.s, ipc, NULL, NULL), 0);
    CHECK_INT(kn_sock_connect(data.s, ipc, NULL), 0);
    CHECK(turn_until(is_writable, &data, PATIENCE_MS));
    proto_example(KN_MSG_IMAGE_RESULT, &m);
    b = make_blob(10);
    CHECK_INT(kn_sock_send(data.s, NULL, &m, &b, NULL), 0);
    proto_example(KN_MSG_HEARTBEAT, &m);
    CHECK_INT(kn_sock_send(data.s, NULL, &m, NULL, NULL), 0);
    CHECK(turn_until(has_received, &r, PATIENCE_MS));
    CHECK_INT(r.last->type, KN_MSG_HEARTBEAT);
    CHECK_INT(r.received, 1);
    fini(&r);
    fini(&control);
    fini(&data);
    end();
}

/* ---- room, and its lack */

TEST(nobody_there_is_told_as_no_room) {
    struct side d = {0};
    struct kn_msg m;
    begin();
    make(&d, false, false);
    CHECK_INT(kn_sock_connect(d.s, ipc, NULL), 0);
    proto_example(KN_MSG_HEARTBEAT, &m);
    CHECK_INT(kn_sock_send(d.s, NULL, &m, NULL, NULL), KN_EAGAIN);
    CHECK(!turn_until(is_writable, &d, 200));
    struct side r = {0};
    make(&r, true, false);
    CHECK_INT(kn_sock_bind(r.s, ipc, NULL, NULL), 0);
    CHECK(turn_until(is_writable, &d, PATIENCE_MS));
    CHECK_INT(kn_sock_send(d.s, NULL, &m, NULL, NULL), 0);
    CHECK(turn_until(has_received, &r, PATIENCE_MS));
    fini(&r);
    fini(&d);
    end();
}

static bool got_everything(void *arg) {
    const int *want = ((void **)arg)[1];
    return ((struct side *)((void **)arg)[0])->received >= *want;
}

/* The data socket is bounded: a peer that does not read stops the sender, who is told when it can go on;
 * nothing is lost. */
TEST(a_full_socket_refuses_keeps_the_bytes_and_tells_of_room) {
    struct side r = {0}, d = {0};
    struct kn_msg m;
    struct kn_blob b = {0};
    int sent = 0, rc = 0;
    begin();
    atomic_store(&freed, 0);
    connect_pair(&r, &d, ipc, true, NULL);
    proto_example(KN_MSG_IMAGE_RESULT, &m);
    while (sent < 100000) { /* the loop does not turn, so nobody reads */
        b = make_blob(1 << 20);
        if ((rc = kn_sock_send(d.s, NULL, &m, &b, NULL)) != 0) break;
        sent++;
    }
    CHECK_INT(rc, KN_EAGAIN);
    CHECK(b.data != NULL && sent < 200);
    d.writable = 0;
    CHECK(turn_until(is_writable, &d, PATIENCE_MS));
    CHECK_INT(kn_sock_send(d.s, NULL, &m, &b, NULL), 0);
    sent++;
    void *arg[] = {&r, &sent};
    CHECK(turn_until(got_everything, arg, PATIENCE_MS));
    fini(&r);
    fini(&d);
    end();
    CHECK_INT(atomic_load(&freed), sent);
}

static int offer(struct side *r, const struct kn_peer *to, int most) {
    struct kn_msg m;
    struct kn_blob b = {0};
    int sent = 0;
    proto_example(KN_MSG_OBJECT_REPLY, &m);
    while (sent < most) {
        b = make_blob(1 << 20);
        if (kn_sock_send(r->s, to, &m, &b, NULL) != 0) break;
        sent++;
    }
    kn_blob_release(&b);
    return sent;
}

/* A peer without ZeroMQ, which reads what it wants to: it greets (ZMTP 3.0, no keys) and sends one message. */
static int connect_deaf(struct side *r, const struct kn_msg *m) {
    static const uint8_t ready[] =
        "\x04\x31\x05READY\x0bSocket-Type\0\0\0\x06"
        "DEALER\x08Identity\0\0\0\x08"
        "1 deaf 1";
    uint8_t greeting[64] = {[0] = 0xff, [9] = 0x7f, [10] = 3, [12] = 'N', 'U', 'L', 'L'}, head[2] = {0};
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    struct kn_buf b;
    kn_buf_init(&b, 255);
    strcpy(at.sun_path, ipc + 6);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK_INT(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    CHECK_INT(write(fd, greeting, sizeof greeting), sizeof greeting);
    CHECK_INT(recv(fd, greeting, sizeof greeting, MSG_WAITALL), sizeof greeting);
    CHECK_INT(write(fd, ready, sizeof ready - 1), sizeof ready - 1);
    CHECK_INT(recv(fd, head, 2, MSG_WAITALL), 2); /* its READY has come: ours has been heard, or will be */
    CHECK_INT(kn_msg_encode(m, &b, NULL), 0);
    head[0] = 0;
    head[1] = (uint8_t)b.len;
    CHECK_INT(write(fd, head, 2), 2);
    CHECK_INT(write(fd, b.data, b.len), (int)b.len);
    kn_buf_fini(&b);
    CHECK(turn_until(has_received, r, PATIENCE_MS));
    return fd;
}

static bool has_read(void *arg) {
    static uint8_t part[1 << 16];
    struct {
        int fd;
        size_t left;
    } *d = arg;
    ssize_t n;
    while (d->left > 0 && (n = recv(d->fd, part, sizeof part, MSG_DONTWAIT)) > 0)
        d->left = d->left > (size_t)n ? d->left - (size_t)n : 0;
    return d->left == 0;
}

/* Answers to one that asks and does not read took 850 MiB and more: as many as there were questions. */
TEST(promise_bounds_a_peer_that_does_not_read_takes_its_share_of_memory_and_no_more) {
    struct side r = {0}, other = {0};
    struct kn_msg m;
    begin();
    connect_pair(&r, &other, ipc, true, NULL);
    proto_example(KN_MSG_OBJECT_GET, &m);
    int deaf = connect_deaf(&r, &m);
    struct kn_peer to_deaf = r.peer;
    int sent = 0, before;
    do { /* until its queue, the kernel's and its share are full */
        before = sent;
        sent += offer(&r, &to_deaf, 400 - sent);
        for (int i = 0; i < 50; i++) {
            uv_run(&loop, UV_RUN_NOWAIT);
            usleep(2000);
        }
    } while (sent > before && sent < 400);
    CHECK_MSG(sent > 100 && sent < 200, "%d MiB", sent);
    /* Whoever reads is served meanwhile, and it too once it reads again. */
    r.received = 0;
    CHECK_INT(kn_sock_send(other.s, NULL, &m, NULL, NULL), 0);
    CHECK(turn_until(has_received, &r, PATIENCE_MS));
    CHECK_INT(offer(&r, &r.peer, 1), 1);
    CHECK(turn_until(has_received, &other, PATIENCE_MS));
    struct {
        int fd;
        size_t left;
    } reads = {deaf, (size_t)sent << 20};
    CHECK(turn_until(has_read, &reads, PATIENCE_MS));
    CHECK_INT(offer(&r, &to_deaf, 1), 1);
    close(deaf);
    fini(&r);
    fini(&other);
    end();
}

/* libzmq ends the process (stream_engine_base.cpp: !_io_error) when its timer comes to ping over a connection that has
 * ended, and of which something waits because the queue is full. So whoever has a full queue must not ping. */
TEST(promise_bounds_a_peer_that_leaves_behind_what_nobody_reads_ends_nothing) {
    struct side r = {0}, d = {0};
    struct kn_msg m;
    begin();
    connect_pair(&r, &d, ipc, true, NULL);
    kn_sock_pause(r.s, true);
    proto_example(KN_MSG_IMAGE_RESULT, &m);
    for (int i = 0; i < 100; i++) {
        struct kn_blob b = make_blob(1000);
        if (kn_sock_send(d.s, NULL, &m, &b, NULL) != 0) {
            kn_blob_release(&b);
            turn_until(never, NULL, 10);
        }
    }
    turn_until(never, NULL, 100);
    fini(&d);
    turn_until(never, NULL, 2500); /* a ping is due every two seconds */
    kn_sock_pause(r.s, false);
    CHECK(turn_until(has_received, &r, PATIENCE_MS)); /* and what it left can be read */
    fini(&r);
    end();
}

TEST(promise_bounds_a_dealer_that_reads_late_outlives_its_router) {
    struct side r = {0}, d = {0};
    struct kn_msg m;
    begin();
    connect_pair(&r, &d, ipc, true, NULL);
    proto_example(KN_MSG_OBJECT_GET, &m);
    CHECK_INT(kn_sock_send(d.s, NULL, &m, NULL, NULL), 0);
    CHECK(turn_until(has_received, &r, PATIENCE_MS));
    kn_sock_pause(d.s, true); /* as when its process was stopped */
    proto_example(KN_MSG_IMAGE_ACK, &m);
    for (int i = 0; i < 2000; i++) CHECK_INT(kn_sock_send(r.s, &r.peer, &m, NULL, NULL), 0);
    turn_until(never, NULL, 100);
    fini(&r);
    turn_until(never, NULL, 2500);
    fini(&d);
    end();
}

TEST(a_router_with_one_full_peer_does_not_spin) {
    struct side r = {0}, full = {0}, other = {0};
    struct kn_msg m;
    begin();
    connect_pair(&r, &full, ipc, true, NULL);
    make(&other, false, true);
    CHECK_INT(kn_sock_connect(other.s, ipc, NULL), 0);
    CHECK(turn_until(is_writable, &other, PATIENCE_MS));
    proto_example(KN_MSG_OBJECT_GET, &m);
    CHECK_INT(kn_sock_send(full.s, NULL, &m, NULL, NULL), 0);
    CHECK(turn_until(has_received, &r, PATIENCE_MS));
    proto_example(KN_MSG_OBJECT_REPLY, &m);
    struct kn_blob b = {0};
    for (int i = 0; i < 40000; i++) {
        b = make_blob(1 << 10);
        if (kn_sock_send(r.s, &r.peer, &m, &b, NULL) != 0) break;
    }
    CHECK(b.data != NULL); /* refused */
    r.writable = 0;
    CHECK(turn_until(is_writable, &r, PATIENCE_MS)); /* since `other` has room */
    kn_blob_release(&b);
    fini(&r);
    fini(&full);
    fini(&other);
    end();
}

struct insist {
    struct kn_sock *s;
    struct kn_peer peer;
    int tries, received;
};
static void insist_recv(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                        struct kn_blob *blob) {
    struct insist *in = ctx;
    (void)s;
    (void)blob;
    in->peer = *peer;
    in->received++;
    kn_msg_destroy(m);
}
static int insist_once(struct insist *in) {
    struct kn_msg m;
    struct kn_blob b = make_blob(1 << 10);
    proto_example(KN_MSG_OBJECT_REPLY, &m);
    int rc = kn_sock_send(in->s, &in->peer, &m, &b, NULL);
    kn_blob_release(&b);
    return rc;
}
static void insist_writable(struct kn_sock *s, void *ctx) {
    (void)s;
    struct insist *in = ctx;
    in->tries++;
    while (insist_once(in) == 0) {
    }
}
static bool insisted(void *arg) {
    return ((struct insist *)arg)->received > 0;
}

/* A sender that tries again each time it is told of room, at a peer that never reads: its loop must not eat
 * the processor. */
TEST(trying_again_at_a_full_peer_is_paced) {
    struct insist in = {0};
    struct side silent = {0}, reader = {0};
    struct kn_sock_options opt = {
        .router = true, .blobs = true, .recv = insist_recv, .writable = insist_writable, .ctx = &in};
    struct kn_msg m;
    uv_loop_t elsewhere;
    struct kn_wire *other_wire;
    begin();
    CHECK_INT(kn_sock_create(wire, &opt, &in.s, NULL), 0);
    CHECK_INT(kn_sock_bind(in.s, ipc, NULL, NULL), 0);
    make(&reader, false, true);
    CHECK_INT(kn_sock_connect(reader.s, ipc, NULL), 0);
    /* The silent one lives on a loop that turns no more once its request is out. */
    CHECK_INT(uv_loop_init(&elsewhere), 0);
    CHECK_INT(kn_wire_create(&elsewhere, &other_wire, NULL), 0);
    struct kn_sock_options so = {.blobs = true, .recv = on_recv, .writable = on_writable, .ctx = &silent};
    CHECK_INT(kn_sock_create(other_wire, &so, &silent.s, NULL), 0);
    CHECK_INT(kn_sock_connect(silent.s, ipc, NULL), 0);
    proto_example(KN_MSG_OBJECT_GET, &m);
    for (uint64_t until = kn_clock_ms() + PATIENCE_MS; kn_clock_ms() < until;) {
        uv_run(&elsewhere, UV_RUN_NOWAIT);
        if (kn_sock_send(silent.s, NULL, &m, NULL, NULL) == 0) break;
        usleep(1000);
    }
    CHECK(turn_until(insisted, &in, PATIENCE_MS));
    while (insist_once(&in) == 0) {
    }
    in.tries = 0;
    turn_until(never, NULL, 300);
    CHECK_MSG(in.tries > 0 && in.tries < 100, "%d tries in 300 ms", in.tries);
    kn_sock_destroy(silent.s);
    uv_run(&elsewhere, UV_RUN_DEFAULT);
    CHECK_INT(uv_loop_close(&elsewhere), 0);
    kn_wire_destroy(other_wire);
    kn_msg_destroy(silent.last);
    kn_sock_destroy(in.s);
    fini(&reader);
    end();
}

/* ---- coming and going */

static bool is_gone(void *arg) {
    struct side *r = arg;
    struct kn_msg m;
    proto_example(KN_MSG_SHARD_REVOKE, &m);
    return kn_sock_send(r->s, &r->peer, &m, NULL, NULL) == KN_EGONE;
}

TEST(a_peer_that_left_is_gone) {
    struct side r = {0}, d = {0};
    struct kn_msg m;
    begin();
    connect_pair(&r, &d, ipc, false, NULL);
    proto_example(KN_MSG_HEARTBEAT, &m);
    CHECK_INT(kn_sock_send(d.s, NULL, &m, NULL, NULL), 0);
    CHECK(turn_until(has_received, &r, PATIENCE_MS));
    fini(&d);
    CHECK(turn_until(is_gone, &r, PATIENCE_MS));
    fini(&r);
    end();
}

TEST(a_reconnect_is_another_peer_and_goes_on) {
    struct side r = {0}, d = {0};
    struct kn_msg m;
    struct kn_peer first;
    begin();
    connect_pair(&r, &d, ipc, false, NULL);
    proto_example(KN_MSG_HEARTBEAT, &m);
    CHECK_INT(kn_sock_send(d.s, NULL, &m, NULL, NULL), 0);
    CHECK(turn_until(has_received, &r, PATIENCE_MS));
    first = r.peer;
    for (int i = 0; i < 5; i++) {
        d.writable = r.received = 0;
        CHECK_INT(kn_sock_reconnect(d.s, NULL), 0);
        CHECK(turn_until(is_writable, &d, PATIENCE_MS));
        CHECK_INT(kn_sock_send(d.s, NULL, &m, NULL, NULL), 0);
        CHECK(turn_until(has_received, &r, PATIENCE_MS));
        CHECK(memcmp(&first.id, &r.peer.id, KN_PEER_BYTES) != 0);
        r.echo = true;
    }
    CHECK(turn_until(has_received, &d, PATIENCE_MS));
    fini(&r);
    fini(&d);
    end();
}

TEST(a_router_that_comes_back_is_found_again) {
    struct side r = {0}, d = {0};
    struct kn_msg m;
    char reached[KN_ENDPOINT_MAX + 1];
    begin();
    connect_pair(&r, &d, "tcp://127.0.0.1:*", false, reached);
    fini(&r);
    d.writable = 0;
    proto_example(KN_MSG_HEARTBEAT, &m);
    for (int i = 0; i < 1000 && kn_sock_send(d.s, NULL, &m, NULL, NULL) != KN_EAGAIN; i++)
        turn_until(never, NULL, 10);
    CHECK(!is_writable(&d));
    make(&r, true, false);
    CHECK_INT(kn_sock_bind(r.s, reached, NULL, NULL), 0);
    CHECK(turn_until(is_writable, &d, PATIENCE_MS));
    CHECK_INT(kn_sock_send(d.s, NULL, &m, NULL, NULL), 0);
    CHECK(turn_until(has_received, &r, PATIENCE_MS));
    fini(&r);
    fini(&d);
    end();
}

TEST(a_socket_may_be_destroyed_inside_its_own_callback) {
    struct side r = {.destroy_inside = true}, d = {0};
    struct kn_msg m;
    begin();
    connect_pair(&r, &d, ipc, false, NULL);
    proto_example(KN_MSG_HEARTBEAT, &m);
    for (int i = 0; i < 10; i++) CHECK_INT(kn_sock_send(d.s, NULL, &m, NULL, NULL), 0);
    CHECK(turn_until(has_received, &r, PATIENCE_MS));
    turn_until(never, NULL, 50);
    CHECK_INT(r.received, 1);
    fini(&r);
    fini(&d);
    end();
}

/* ---- where it listens */

TEST(nothing_listens_beyond_this_machine_without_keys) {
    static const char *const far[] = {"tcp://0.0.0.0:0", "tcp://*:0", "tcp://[::]:0"};
    struct side r = {0};
    begin();
    make(&r, true, false);
    for (size_t i = 0; i < 3; i++) {
        struct kn_err err = {0};
        CHECK_INT(kn_sock_bind(r.s, far[i], NULL, &err), KN_ECONFIG);
        CHECK(strstr(err.text, "has no keys"));
    }
    fini(&r);
    end();
}

TEST(an_ipc_socket_is_its_owners_alone) {
    struct side r = {0};
    struct stat st;
    begin();
    make(&r, true, false);
    CHECK_INT(kn_sock_bind(r.s, ipc, NULL, NULL), 0);
    CHECK_INT(stat(ipc + 6, &st), 0);
    CHECK_INT(st.st_mode & 0777, 0600);
    fini(&r);
    end();
}

TEST(a_port_in_use_is_told) {
    struct side r = {0}, q = {0};
    uint16_t port = 0;
    char e[64];
    struct kn_err err = {0};
    begin();
    make(&r, true, false);
    make(&q, true, false);
    CHECK_INT(kn_sock_bind(r.s, "tcp://127.0.0.1:0", &port, NULL), 0);
    snprintf(e, sizeof e, "tcp://127.0.0.1:%u", port);
    CHECK_INT(kn_sock_bind(q.s, e, NULL, &err), KN_EEXIST);
    CHECK(strstr(err.text, e));
    fini(&r);
    fini(&q);
    end();
}

TEST(endpoints_are_read_strictly) {
    char out[KN_ENDPOINT_MAX + 1], name[300];
    struct kn_err err = {0};
    CHECK_INT(kn_endpoint_resolve("tcp://host:5600", out, &err), 0);
    CHECK_STR(out, "tcp://host:5600");
    CHECK_INT(kn_endpoint_resolve("tcp://[::1]:5600", out, &err), 0);
    CHECK_INT(kn_endpoint_resolve("ipc:///run/k", out, &err), 0);
    static const char *const bad[] = {"tcp://",         "tcp://host",    "tcp://host:", "tcp://host:x",
                                      "tcp://host:-1",  "tcp://h:65536", "tcp://:5600", "http://host:1",
                                      "udp://host:500", "ipc://",        "tcp://h:5 "};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK_MSG(kn_endpoint_resolve(bad[i], out, &err) == KN_EINVAL, "%s", bad[i]);
    memset(name, 'x', sizeof name);
    memcpy(name, "ipc:///", 7);
    name[6 + 108] = '\0';
    CHECK_INT(kn_endpoint_resolve(name, out, &err), KN_ELIMIT);
}

TEST(a_farms_folder_says_its_endpoint) {
    char out[KN_ENDPOINT_MAX + 1], file[128];
    struct kn_err err = {0};
    begin();
    snprintf(file, sizeof file, "%s/endpoint", dir);
    CHECK_INT(kn_endpoint_resolve(dir, out, &err), KN_ENOENT);
    CHECK(strstr(err.text, "no farm there"));
    CHECK_INT(kn_fs_replace(file, "ipc:///run/k/c\n", 15, false, &err), 0);
    CHECK_INT(kn_endpoint_resolve(dir, out, &err), 0);
    CHECK_STR(out, "ipc:///run/k/c");
    CHECK_INT(kn_fs_replace(file, "", 0, false, &err), 0);
    CHECK_INT(kn_endpoint_resolve(dir, out, &err), KN_EINVAL);
    unlink(file);
    end();
}

TEST(the_data_endpoint_follows_from_the_welcome) {
    char out[KN_ENDPOINT_MAX + 1];
    struct kn_err err = {0};
    struct kn_welcome w = {.data_port = 5601, .data_ipc = "ipc:///run/k/c-data"};
    CHECK_INT(kn_endpoint_data("tcp://render1:5600", &w, out, &err), 0);
    CHECK_STR(out, "tcp://render1:5601");
    CHECK_INT(kn_endpoint_data("tcp://[::1]:5600", &w, out, &err), 0);
    CHECK_STR(out, "tcp://[::1]:5601");
    CHECK_INT(kn_endpoint_data("ipc:///run/k/c", &w, out, &err), 0);
    CHECK_STR(out, "ipc:///run/k/c-data");
    w = (struct kn_welcome){.data_ipc = ""};
    CHECK_INT(kn_endpoint_data("tcp://render1:5600", &w, out, &err), KN_EPROTO);
    CHECK_INT(kn_endpoint_data("ipc:///run/k/c", &w, out, &err), KN_EPROTO);
}

TEST(loopback_is_told_from_the_rest) {
    CHECK(kn_endpoint_is_loopback("ipc:///x"));
    CHECK(kn_endpoint_is_loopback("tcp://127.0.0.1:1"));
    CHECK(kn_endpoint_is_loopback("tcp://127.9.9.9:1"));
    CHECK(kn_endpoint_is_loopback("tcp://localhost:1"));
    CHECK(kn_endpoint_is_loopback("tcp://[::1]:1"));
    CHECK(!kn_endpoint_is_loopback("tcp://10.0.0.1:1"));
    CHECK(!kn_endpoint_is_loopback("tcp://*:1"));
    CHECK(!kn_endpoint_is_loopback("tcp://[::]:1"));
    CHECK(!kn_endpoint_is_loopback("tcp://localhost.example:1"));
    CHECK(!kn_endpoint_is_loopback("tcp://127.0.0.1.example:1"));
}
