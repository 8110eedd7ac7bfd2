/* The worker's way to its coordinator: a control socket, a data socket, and the conversation that keeps them.
 * The loop's thread.
 *
 *     APART → CONNECTING → GREETING → JOINED
 *
 *     APART       there are no sockets (the last try failed); another try comes soon
 *     CONNECTING  the sockets are there, and nobody has answered yet; ZeroMQ keeps trying
 *     GREETING    a hello was sent, and no welcome has come yet. After some seconds a heartbeat is sent too: an
 *                 older coordinator that dropped the hello answers that, and a person is told
 *     JOINED      welcomed: heartbeats go out
 *
 * A connection that breaks, or over which nothing comes any more (proto/wire.c), is made anew at once, with a new
 * hello; the data connection alone where only that breaks. A coordinator that says nothing for three times silence_ms
 * over one that stands is asked with another hello. If that is not
 * answered, the worker makes a new connection with a new routing id: ZeroMQ mends broken connections by
 * itself, but a coordinator that has not noticed the break yet refuses the old routing id. After any doubt (a
 * new connection, a HelloAgain, another term), the welcome says `again`: all that was sent and not
 * acknowledged must be sent again. The hello tells what is held, so nothing else needs to be repeated:
 * control messages that cannot be sent are dropped. */
#ifndef KILN_WORKER_CONNECTION_H
#define KILN_WORKER_CONNECTION_H

#include "proto/join.h"

enum connection_state { CONNECTION_APART, CONNECTION_CONNECTING, CONNECTION_GREETING, CONNECTION_JOINED };

struct connection_handler {
    /* Fills what the hello says; what it points to must live until the next call. */
    void (*hello)(void *ctx, struct kn_worker_hello *out);
    void (*heartbeat)(void *ctx, struct kn_heartbeat *out);
    void (*welcome)(void *ctx, const struct kn_welcome *w, bool again);
    /* Every other message; owned by the callee. */
    void (*message)(void *ctx, struct kn_msg *m);
    void (*data_writable)(void *ctx);
    /* The data connection broke and was made anew: everything must be sent again. */
    void (*data_renewed)(void *ctx);
    void *ctx;
};

struct connection {
    struct kn_wire *wire; /* borrowed */
    struct connection_handler on;
    struct kn_join_list join; /* as the person said it: endpoints, or a farm's folder */
    int at;                   /* which of them */
    char endpoint[KN_ENDPOINT_MAX + 1], data_endpoint[KN_ENDPOINT_MAX + 1];
    struct kn_sock *control, *data; /* owns */
    enum connection_state state;
    bool again;     /* what the next welcome will say */
    bool hello_due; /* as soon as the rate allows it */
    uint64_t term;  /* of the last welcome */
    uint32_t heartbeat_ms, silence_ms;
    bool data_up;      /* the data connection has stood */
    bool deaf;         /* the coordinator answers, and cannot read the hello: it is older */
    uint64_t since_ms; /* of the state */
    uint64_t probe_ms; /* when a heartbeat asked whether anybody is there, since the last hello; 0: not yet */
    uint64_t hello_ms; /* the last hello; 0: none on this connection */
    uint64_t heard_ms; /* the last message from there */
    uint64_t heartbeat_at_ms, complain_at_ms;
    int refused; /* attempts in a row that failed */
};

/* join: see kn_join_split; a farm's folder is read again with each attempt, and of several endpoints the next is tried
 * where nobody answers. KN_ENOENT, KN_EINVAL: it names no farm. Nothing is sent before the loop runs. */
KN_MUST_USE int connection_open(struct connection *c, struct kn_wire *wire, const char *join,
                                const struct connection_handler *on, uint64_t now_ms, struct kn_err *err);
void connection_close(struct connection *c);
/* Every 100 ms or so. */
void connection_tick(struct connection *c, uint64_t now_ms);
/* A control message, if the worker is connected: else it is dropped, since the next hello says all. */
void connection_tell(struct connection *c, const struct kn_msg *m);
/* KN_EAGAIN: not now; data_writable() comes. The blob is taken on success only. */
KN_MUST_USE int connection_send_data(struct connection *c, const struct kn_msg *m, struct kn_blob *blob);
/* Drops the data connection for a new one, on which everything must be sent again. */
void connection_renew_data(struct connection *c);

#endif
