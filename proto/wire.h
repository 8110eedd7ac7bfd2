/* Sockets: ZeroMQ ROUTER and DEALER on a libuv loop. zmq is seen in wire.c alone.
 *
 * One message on the wire is [routing id, ROUTER only][frame: kiln.pb.Envelope][optional frame: raw bytes].
 * Each connection has a random routing id; who a peer *is* stands in its hello. ZMQ_FD is edge-triggered:
 * wire.c re-reads ZMQ_EVENTS after every send and receive and bounds how long one wake-up may work. A message
 * that cannot be decoded is logged and dropped, and counted; `garbled` may answer the peer.
 *
 * A wire that has a key pair speaks CURVE on every TCP connection, both ways, and never without: a peer that has no key, or
 * one that the guard does not admit, is refused, and so is a coordinator with another key than the one expected. Unix sockets
 * have no keys: the mode of their file says who may use them. All calls and callbacks on the loop's thread. Not for use after fork. */
#ifndef KN_PROTO_WIRE_H
#define KN_PROTO_WIRE_H

#include <uv.h>
#include "base/keys.h"
#include "proto/codec.h"
#include "proto/guard.h"

struct kn_wire; /* a ZeroMQ context on a loop */
struct kn_sock;

#define KN_PEER_BYTES 8
struct kn_peer { /* a ROUTER's connection */
    uint8_t id[KN_PEER_BYTES];
};

/* Bytes that travel behind an envelope. The receiver's callback may take them: copy the struct, set data to
 * NULL here, and release the copy later. free_fn may run on another thread. */
struct kn_blob {
    void *data;
    size_t len;
    void (*free_fn)(void *data, void *hint);
    void *hint;
};
void kn_blob_release(struct kn_blob *b);

/* msg is owned by the callback (kn_msg_destroy); blob NULL: none. peer is NULL on a DEALER. */
typedef void (*kn_sock_recv)(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *msg,
                             struct kn_blob *blob);
/* Room to send again after a KN_EAGAIN (DEALER: the connection). May be NULL. */
typedef void (*kn_sock_writable)(struct kn_sock *s, void *ctx);

/* A DEALER's connection has ended; ZeroMQ makes another by itself, and what was sent over this one may be lost. */
typedef void (*kn_sock_broken)(struct kn_sock *s, void *ctx);

/* A message came that could not be decoded; g and its text are the socket's. */
typedef void (*kn_sock_garbled)(struct kn_sock *s, void *ctx, const struct kn_peer *peer,
                                const struct kn_garbled *g);

struct kn_sock_options {
    bool router;
    bool blobs; /* data socket: frames up to KN_IMAGE_BYTES_MAX; else a second frame is a violation */
    kn_sock_recv recv;
    kn_sock_writable writable;
    kn_sock_garbled garbled; /* NULL: nobody answers */
    kn_sock_broken broken;   /* NULL: nobody is told */
    void *ctx;
    const struct kn_public_key
        *server; /* whom a DEALER expects at a tcp endpoint, on a wire with keys; copied */
};

KN_MUST_USE int kn_wire_create(uv_loop_t *loop, struct kn_wire **out, struct kn_err *err);
void kn_wire_destroy(struct kn_wire *w); /* after its sockets; lingers 1 s at most */

/* Gives it a key pair, before its first socket, and the key that its DEALERs expect at tcp endpoints; NULL: each socket says
 * it. Both are copied. */
void kn_wire_use_keys(struct kn_wire *w, const struct kn_key_pair *own, const struct kn_public_key *server);
/* Has admit decide who may connect to what this wire binds; without, a wire that has keys binds no tcp endpoint. */
KN_MUST_USE int kn_wire_guard(struct kn_wire *w, kn_guard_admit admit, void *ctx, struct kn_err *err);
void kn_wire_unguard(struct kn_wire *w); /* from here on nobody comes in; before the loop ends */

KN_MUST_USE int kn_sock_create(struct kn_wire *w, const struct kn_sock_options *opt, struct kn_sock **out,
                               struct kn_err *err);
void kn_sock_destroy(struct kn_sock *s); /* safe inside its own callbacks (deferred); NULL is fine */
/* Binds; a socket may bind several endpoints. tcp port "*" or 0 takes a free one: *port gets it (may be
 * NULL). ipc files are made with mode 0600 in a folder that exists; a stale one is replaced. Beyond
 * this machine it listens on a wire with keys alone. */
KN_MUST_USE int kn_sock_bind(struct kn_sock *s, const char *endpoint, uint16_t *port, struct kn_err *err);
/* Connects (returns at once; ZeroMQ connects and reconnects in the background, pausing up to 2 s). */
KN_MUST_USE int kn_sock_connect(struct kn_sock *s, const char *endpoint, struct kn_err *err);
/* Drops the connection and makes a new one with a new routing id (a DEALER that lost faith in its peer). */
KN_MUST_USE int kn_sock_reconnect(struct kn_sock *s, struct kn_err *err);
/* Why the other end was refused, or refused this one, in words; NULL: it was not. */
const char *kn_sock_refusal(const struct kn_sock *s);
/* The key by which the sender of the message came in that recv or garbled is being called with; NULL: it came without,
 * through a Unix socket or on a wire that has no keys. */
const struct kn_public_key *kn_sock_sender(const struct kn_sock *s);
/* Inside that recv or garbled: the sender is known to whoever asks for keys, and its connection stays; or it is not, and may
 * say this one thing. False: it was the second, and its connection is ended (proto/gate.h). */
void kn_sock_keep_sender(struct kn_sock *s);
bool kn_sock_is_senders_first(struct kn_sock *s);
const char *kn_sock_sender_address(const struct kn_sock *s); /* of the same; "" where it is not known */
/* While paused, nothing is received: messages wait in bounded queues here (a few a connection) and then at their senders. So a receiver bounds the memory of what it has taken. */
void kn_sock_pause(struct kn_sock *s, bool paused);
/* Sends m, and blob behind it if not NULL. 0: taken (blob too). KN_EAGAIN: no room now, nobody connected
 * yet, or more bytes than a peer may leave unread wait for it; nothing taken; KN_EGONE: that peer is not connected any more; KN_ELIMIT. The blob is the caller's
 * still on failure. */
KN_MUST_USE int kn_sock_send(struct kn_sock *s, const struct kn_peer *peer, const struct kn_msg *m,
                             struct kn_blob *blob, struct kn_err *err);

/* "tcp://host:5600" | "ipc:///path" | a farm's folder (reads DIR/endpoint) -> endpoint. */
KN_MUST_USE int kn_endpoint_resolve(const char *text, char out[KN_ENDPOINT_MAX + 1], struct kn_err *err);
/* The data endpoint that belongs to a control endpoint, as the Welcome says. */
KN_MUST_USE int kn_endpoint_data(const char *control, const struct kn_welcome *w,
                                 char out[KN_ENDPOINT_MAX + 1], struct kn_err *err);
/* Looks the host of a tcp endpoint up; it may take as long as the name server does. KN_ENOENT: there is no such
 * host; KN_EAGAIN: nobody can tell now. The words say what to do. */
KN_MUST_USE int kn_endpoint_look_up(const char *endpoint, struct kn_err *err);
bool kn_endpoint_is_loopback(const char *endpoint); /* ipc, or tcp on 127.0.0.0/8, ::1, localhost */

#endif
