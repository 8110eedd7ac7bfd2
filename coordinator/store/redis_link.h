/* A connection to Redis on a libuv loop, that lasts: a queue of commands, sent in order and sent again on a
 * new connection until they are answered. hiredis (0.14 has no timers, no reconnect, and its own libuv
 * adapter does not report a refused connection) does the protocol, this file the rest: deadlines, backoff
 * with jitter, a bound on what waits.
 *
 * An answer such as LOADING, OOM, MISCONF, READONLY or NOSCRIPT means "not now": the connection is dropped
 * and made anew after a pause, and the command stays in the queue. The loop's thread. */
#ifndef KILN_COORDINATOR_STORE_REDIS_LINK_H
#define KILN_COORDINATOR_STORE_REDIS_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <uv.h>
#include "base/err.h"
#include "base/redis_address.h"

struct redisReply; /* hiredis' */
struct redis_link;

/* r is borrowed; an error that is not "not now" comes as REDIS_REPLY_ERROR. NULL: the link was destroyed
 * before there was an answer (queued commands only). */
typedef void (*redis_link_reply)(void *ctx, const struct redisReply *r);

struct redis_link_options {
    const struct kn_redis_address *address; /* borrowed, for as long as the link lives */
    /* A connection was made, and the user and the data base were given: send what it begins with (redis_link_direct) and call redis_link_up() in the
     * last answer; only then the queue goes on. */
    void (*greet)(void *ctx);
    /* True: this answer says "not now" like those above. NULL: none does. */
    bool (*hold)(void *ctx, const struct redisReply *r);
    void *ctx;
    size_t bytes_max; /* of the queue */
};

KN_MUST_USE int redis_link_create(uv_loop_t *loop, const struct redis_link_options *opt,
                                  struct redis_link **out, struct kn_err *err);
/* Commands that still wait are answered with NULL. The handles end with the loop's next turns. */
void redis_link_destroy(struct redis_link *l);

/* Queues a command; everything is copied. KN_EAGAIN: the queue is full; KN_ENOMEM. */
KN_MUST_USE int redis_link_send(struct redis_link *l, int argc, const char **argv, const size_t *len,
                                redis_link_reply fn, void *ctx);
/* From `on` until it is taken back, within one callback: commands are queued in their order before all that were not
 * sent yet, whatever bytes_max says. */
void redis_link_front(struct redis_link *l, bool on);
/* Sends on this connection only, past the queue: it is not repeated, and not answered if the connection
 * breaks. */
void redis_link_direct(struct redis_link *l, int argc, const char **argv, const size_t *len,
                       redis_link_reply fn, void *ctx);
void redis_link_up(struct redis_link *l);
void redis_link_drop(struct redis_link *l, const char *why); /* make a new connection after a pause */
bool redis_link_is_up(const struct redis_link *l);
/* For how long Redis has not answered what it was asked; it is asked something every second. *why: the last
 * error, "" for none; borrowed. */
uint64_t redis_link_silent_ms(const struct redis_link *l, const char **why);

#endif
