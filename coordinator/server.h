/* The shell around the core: sockets, store, collector and clock on one libuv loop. It turns messages into
 * events, carries out the effects, and feeds what came of them back. All decisions are the core's.
 *
 *   server.c   life, the loop, events and effects
 *   workers.c    what workers say, on the control and the data socket
 *   clients.c  what people's commands ask: submission, queries, commands
 *   recover.c  reading the store back
 *
 * One thread. A connection of a worker is known to the core by the number that its routing id makes. */
#ifndef KILN_COORDINATOR_SERVER_H
#define KILN_COORDINATOR_SERVER_H

#include <stdatomic.h>
#include <uv.h>
#include "base/map.h"
#include "coordinator/batches.h"
#include "coordinator/collect.h"
#include "coordinator/core/farm.h"
#include "coordinator/store/store.h"
#include "proto/wire.h"

#define LISTEN_MAX 16

struct server_options {
    const char *dir; /* the farm's folder; objects lie below it */
    const char *listen[LISTEN_MAX];
    int listen_count;
    int data_port; /* 0: a free one */
    bool insecure;
    const char *ready_file; /* NULL: none */
};

struct listener { /* a control socket */
    struct server *s;
    struct kn_sock *sock;
    bool ipc;
    char endpoint[KN_ENDPOINT_MAX + 1]; /* as bound */
    char data_ipc[KN_ENDPOINT_MAX + 1];
};

struct known_worker {   /* a worker that said hello; the core knows whether it is still there */
    struct kn_msg *msg; /* owns: the hello */
    const struct kn_worker_hello *hello; /* in msg */
    uint64_t conn;                       /* 0: none */
    struct listener *listener;
    struct kn_readings readings; /* of its device, by the last heartbeat */
    bool left;                   /* said bye: its models do not count any more */
};

struct server {
    struct server_options opt;
    uv_loop_t *loop;
    struct kn_wire *wire;
    struct listener listeners[LISTEN_MAX];
    int listener_count;
    struct kn_sock *data;
    uint16_t data_port;
    char objects[KN_PATH_MAX];

    struct store *store;
    struct collect *collect;
    struct farm *farm;
    struct farm_effects fx;
    bool stepping;
    struct again *again, *again_last; /* events that came up while effects were carried out */
    struct reply_to asking;           /* the client behind the current event, until an effect takes it over */

    struct batches batches;
    struct kn_map *workers; /* name -> struct known_worker */
    struct kn_map *conns;   /* number -> struct known_worker */
    uv_timer_t tick, sweep;
    uint64_t ticked_ms;     /* when the last tick came */
    atomic_size_t sending;  /* bytes of objects handed to the data socket */
    struct op *commits;     /* that the store has not answered */
    struct kn_map *orphans; /* digest -> anything: pictures that came and were not committed */
    size_t committing;      /* commits that the store has not answered */
    uint64_t images, alarms;
    bool closing;
    int exit_code;
    void (*stopped)(void *ctx, int exit_code); /* the lead is lost: end */
    void *stopped_ctx;
};

/* Takes the store, which is open and not read yet. */
KN_MUST_USE int server_create(uv_loop_t *loop, const struct server_options *opt, struct store *store,
                              struct server **out, struct kn_err *err);
/* Reads the store back into the core. */
KN_MUST_USE int server_recover(struct server *s, struct kn_err *err); /* recover.c */
/* Binds, starts the timers, writes the ready file. */
KN_MUST_USE int server_listen(struct server *s, struct kn_err *err);
/* Closes everything; the loop must run until it has nothing more to do, then server_destroy(). */
void server_close(struct server *s);
void server_destroy(struct server *s);

/* One event into the core, and its effects out. */
int server_step(struct server *s, const struct farm_event *ev);

/* A picture that is kept as an object and will not be committed by who brought it: it goes at the next sweep,
 * unless somebody names it. */
void server_orphan(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]);
/* Takes off the collector's list of objects to delete what some batch names, or is about to. */
void server_keep_named(struct server *s);

/* Whether the store or the disk are behind: data stays with the workers then. */
void server_flow(struct server *s);

uint64_t server_conn(const struct kn_peer *peer);
/* Sends to a worker's connection; a connection that is gone becomes an event. */
void server_tell(struct server *s, uint64_t conn, const struct kn_msg *m);

/* workers.c */
bool workers_message(struct server *s, struct listener *l, const struct kn_peer *peer, struct kn_msg *msg);
void workers_data(struct server *s, const struct kn_peer *peer, struct kn_msg *msg, struct kn_blob *blob);
void workers_ack(struct server *s, uint64_t conn, const kn_id batch, uint32_t task, int code);
void workers_forget(struct server *s); /* workers that the core has forgotten */
/* A model that some worker has. By hash, or by name when sha256 is all zero. KN_EMODEL says what there is. */
KN_MUST_USE int workers_model(struct server *s, const char *name, const uint8_t sha256[KN_SHA256_BYTES],
                              struct kn_model_info *out, struct kn_err *err);
const char *workers_model_name(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]); /* "" when unknown */
/* All models that workers have, each once; free() the list. */
KN_MUST_USE int workers_models(struct server *s, struct kn_model_info **out, size_t *count);
void workers_fini(struct server *s);

/* clients.c */
void clients_message(struct server *s, struct listener *l, const struct kn_peer *peer, struct kn_msg *msg);
void clients_reply(struct server *s, struct reply_to *to, int code, const char *text); /* and empties *to */
void clients_answer_waiters(struct server *s, struct batch *b, int code, const char *text);
/* The core gave the batch up: out of the store, then its pictures that nobody else names. */
void clients_remove(struct server *s, struct batch *b);
void clients_sweep(struct server *s); /* submissions that were never finished */

#endif
