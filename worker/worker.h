/* A worker: what it holds, what it sends, and how it leaves. It ties the connection (connection.h), the
 * shards (shards.h), the threads (stages.h) and the bytes that wait (uploads.h) together on a libuv loop; it
 * has no other thread of its own.
 *
 * Leaving: worker_drain() hands back what has not begun and lets what runs come to its end; `patience_ms`
 * bounds it, and then what runs is stopped and handed back too. worker_leave_now() hands back everything at
 * once. Either way `ended` is called once, with the status that the process should end with; then
 * worker_close(), the loop until it is empty, and worker_free(). */
#ifndef KILN_WORKER_WORKER_H
#define KILN_WORKER_WORKER_H

#include <uv.h>
#include "proto/wire.h"
#include "worker/device.h"
#include "worker/engine.h"

enum {
    WORKER_EXIT_OK = 0,
    WORKER_EXIT_USAGE = 1,
    WORKER_EXIT_ENGINE = 3, /* start me again */
    WORKER_EXIT_NAME = 4,   /* another worker has the name: it may be free later */
    WORKER_EXIT_KEY = 5,    /* the farm does not take this machine's key */
};

#define WORKER_PATIENCE_MS 15000 /* from a first signal to the end; a supervisor waits 20 s */

struct worker;

struct worker_options {
    uv_loop_t *loop;            /* borrowed */
    struct kn_wire *wire;       /* borrowed */
    struct engine *engine;      /* borrowed until worker_free */
    const char *device_uuid;    /* of a GPU; NULL or "" for none */
    struct device_watch *watch; /* borrowed; NULL: no readings in heartbeats */
    const char *join, *name;
    const char *name_base; /* nobody chose the name, and the farm makes one of this; NULL or "": chosen */
    kn_id machine;         /* with name_base */
    uint32_t credit;
    bool died_of_memory;        /* the process of this name before: the hello says so */
    uint64_t unacked_bytes_max; /* encoded pictures kept in memory */
    uint32_t resend_ms;         /* for an acknowledgement; 0: 60 s */
    void (*ended)(void *ctx, int status);
    void *ctx;
};

KN_MUST_USE int worker_create(const struct worker_options *opt, struct worker **out, struct kn_err *err);
/* Hands back the shards that have not begun, and takes no more. With leave, it ends when the last shard is
 * over, after patience_ms at the latest (0: whenever that is); without, it stays connected. */
void worker_drain(struct worker *w, bool leave, uint32_t patience_ms, const char *reason);
void worker_leave_now(struct worker *w, int status, const char *reason);
/* Ends its threads and begins to close its handles: run the loop until they are closed, then worker_free().
 * False: the engine does not answer; its thread cannot be ended and still uses what it was given: leave by
 * _exit(). */
bool worker_close(struct worker *w);
void worker_free(struct worker *w);

#endif
