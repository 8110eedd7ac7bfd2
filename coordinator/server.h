/* The shell around the core: sockets, store, collector and clock on one libuv loop. It turns messages into
 * events, carries out the effects, and feeds what came of them back. All decisions are the core's. This
 * header is what its files share, and how main() starts and ends it. Each file calls only those below it:
 *
 *     server.c      life, sockets and timers: who hears what
 *     recover.c     reads the store back after a start
 *     repair.c      writes it again, where the store has gone back
 *     enrol.c       who may say what; keys and tokens
 *     clients.c     talks to clients: submission, queries, commands, objects
 *     scrub.c       reads objects back, slowly, and has the damaged ones rendered again
 *     aside.c       batches that cannot be read back
 *     lost.c        looks at the objects of a batch that is retried, and voids what is lost
 *     explain.c     answers why a batch or a task stands as it does
 *     waits.c       why something does not go on, in words
 *     workers.c     talks to workers: hello, heartbeats, what became of shards, pictures
 *     carry_out.c   feeds the core's events, and carries out its effects
 *     trash.c       moves pictures that nobody names to the trash, and deletes them there
 *     send.c        answers to clients, the welcome
 *     keys.c        the lists of keys and tokens
 *     roles.c       what each role may ask
 *     batches.c     what is kept of each batch beside the core
 *     inspect.c     which pictures are decoded
 *     history.c     the story of a task's attempts, as a text
 *     ticket.c      proof that a shard was granted
 *     collect.c     keeps pictures, as files
 *     objects.c     the folder of these files: all that changes anything in it
 *     store/        keeps the state, in Redis
 *     core/         decides: batches, tasks, shards, workers
 *
 * One thread. */
#ifndef KILN_COORDINATOR_SERVER_H
#define KILN_COORDINATOR_SERVER_H

#include <uv.h>
#include "base/map.h"
#include "coordinator/batches.h"
#include "coordinator/collect.h"
#include "coordinator/core/farm.h"
#include "coordinator/store/store.h"
#include "proto/wire.h"

#define LISTEN_MAX 16
#define DRAINS_MAX 64

struct server_options {
    const char *dir; /* the farm's folder; objects lie below it */
    const char *listen[LISTEN_MAX];
    int listen_count;
    int data_port;                     /* 0: a free one */
    const char *ready_file;            /* NULL: none */
    bool no_scrub;                     /* pictures are not read back */
    uint64_t scrub_first_ms, trash_ms; /* for tests; 0: a minute, an hour */
    uint32_t workers_fit;              /* by the limit of open files; 0: not known */
    const char *default_model;         /* its name, for clients that name none; NULL: the model that ships */
};

struct listener { /* a control socket */
    struct server *s;
    struct kn_sock *sock;
    bool ipc;
    char endpoint[KN_ENDPOINT_MAX + 1]; /* as bound */
    char data_ipc[KN_ENDPOINT_MAX + 1];
};

/* A worker that said hello; the core knows whether it is still there. Until the core has taken its hello it is
 * found by its connection alone. */
struct known_worker {
    char name[KN_NAME_MAX + 1];          /* as the core gave it; "" until then */
    uint64_t asked_ms;                   /* when it came, for one that nobody decides about */
    struct kn_msg *msg;                  /* owns: the hello */
    const struct kn_worker_hello *hello; /* in msg */
    uint64_t conn;                       /* 0: none */
    struct listener *listener;
    struct kn_readings readings;   /* of its device, by the last heartbeat */
    bool left;                     /* said bye: its models do not count any more */
    char loading[KN_NAME_MAX + 1]; /* the model that it reads into memory, by the last heartbeat; "": none */
    uint64_t loading_bytes;
    char refused[KN_REASON_MAX + 1]; /* why it cannot do what it was granted, since its hello; "": nothing */
    bool keyed;                      /* it came with a key: */
    struct kn_public_key key;
};

struct known_model {
    struct kn_model_info info;
    uint64_t wall_ms; /* when it was announced last, to within a day */
};

struct commit { /* a picture that a task is about to name, in a list of them */
    struct commit *next, *prev;
    kn_digest sha256;
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

    struct kn_key_pair pair; /* owns: this coordinator's, where it listens by TCP */
    bool has_pair;
    struct kn_map *keys, *tokens;  /* keys.c; owns what is in them */
    const struct known_key *asker; /* who sent the message in hand; NULL: somebody through a Unix socket */
    uint64_t strangers_since_ms;   /* keys that are not on the list and were let in since then */
    uint32_t strangers;

    struct batches batches;
    struct kn_map *asides;  /* aside.c: id -> struct aside, owned; NULL: none */
    size_t aside_sealed;    /* how many of them were accepted */
    struct kn_map *workers; /* name -> struct known_worker */
    struct drain_wait {     /* a client that waits until a worker says that it drains */
        char worker[KN_NAME_MAX + 1];
        struct reply_to to;
    } drains[DRAINS_MAX];
    int drain_count;
    struct kn_map *inspected; /* inspect.c: name -> how its pictures were; NULL: none */
    struct kn_map *conns;     /* number -> struct known_worker */
    uv_timer_t tick, sweep;
    uint64_t ticked_ms;         /* when the last tick came */
    struct commit *commits;     /* those that the store has not answered */
    struct commit *arrivals;    /* those that are being kept */
    size_t committing;          /* how many */
    struct retry *retries;      /* lost.c: those under way */
    size_t lost_asked;          /* objects that clients came for and that are lost, since the last sweep */
    kn_digest lost_sha256;      /* the last of them, */
    int lost_code;              /* and how it was lost */
    struct trash *trash;        /* trash.c */
    struct scrub *scrub;        /* scrub.c; NULL: there is none */
    struct known_model *models; /* owns; that some worker announced, now or once */
    size_t model_count;
    uint64_t repairs, repaired_wall_ms; /* repair.c: how often, and when last */
    uint64_t alarms;                    /* FX_ALARMs since the start */
    uint64_t disk_refused_ms;           /* when the disk refused a picture last; 0: it has taken one since */
    char disk_why[320];
    uint64_t gate_told; /* connections that were put out or refused, as the log has them */
    bool some_refused;  /* pictures that workers have not been asked for since */
    uint64_t full_ms;   /* since when there is room for no picture more; 0: there is */
    uint64_t wanted_ms; /* when they were asked last */
    bool closing;
    void (*stopped)(void *ctx, int exit_code); /* the lead is lost: end */
    void *stopped_ctx;
};

/* Takes the store, which is open and not read yet. */
KN_MUST_USE int server_create(uv_loop_t *loop, const struct server_options *opt, struct store *store,
                              struct server **out, struct kn_err *err);
/* Binds, starts the timers, writes the ready file. */
KN_MUST_USE int server_listen(struct server *s, struct kn_err *err);
/* Closes everything; the loop must run until it has nothing more to do, then server_destroy(). */
void server_close(struct server *s);
void server_destroy(struct server *s);

#endif
