/* One connection to a farm's coordinator, synchronous: ask, wait, answer. It has a libuv loop of its own,
 * which runs while a call waits.
 *
 * The coordinator may die and come back during a call: what was asked is then asked again on a new connection
 * (requests are safe to repeat: a batch carries the client's own id), until the time given is over. Ctrl-C
 * ends a call with KN_ECANCELED when the client was told to listen to it. One thread. */
#ifndef KILN_CLI_TALK_CLIENT_H
#define KILN_CLI_TALK_CLIENT_H

#include "proto/codec.h"

struct client;

#define CLIENT_PATIENCE_MS 10000 /* for a farm that should be there */
#define CLIENT_RESTART_MS                                                                                    \
    (10 * 60000) /* for one that died in the middle of a batch: it is being started again */

/* Connects and greets. `farm` as kn_endpoint_resolve() takes it, already resolved. KN_ETIMEOUT: nobody
 * answers; KN_EPERM: it is another user's; KN_EVERSION. */
KN_MUST_USE int client_open(const char *endpoint, int timeout_ms, struct client **out, struct kn_err *err);
void client_close(struct client *c); /* NULL is fine */

/* From then on calls listen to cli_interrupted (they do at first); false: they do not (to say "cancel" after
 * a Ctrl-C). */
void client_heed_interrupt(struct client *c, bool on);
/* From then on no call waits longer than this, whatever it is given; 0: no such bound. */
void client_limit(struct client *c, int ms);
/* Called about twice a second while a call waits (a progress bar); may be NULL. Must not call the client.
 * A result other than KN_OK ends the call; err then holds its words. */
void client_on_idle(struct client *c, int (*fn)(void *ctx, int silent_ms, struct kn_err *err), void *ctx);

/* Why nobody answers the call that waits, as far as that can be seen: a store that hangs, a coordinator that is
 * stopped; "" while there is nothing to tell. Without client_on_idle() the client tells the person itself. */
const char *client_silence(void);

/* Sends m and waits for an answer of type `want`; KN_EUNSURE: none came, so nobody knows whether it was done; an error that the coordinator answers with comes back as
 * err. *reply is the caller's to destroy; NULL when only success matters. */
KN_MUST_USE int client_call(struct client *c, struct kn_msg *m, enum kn_msg_type want, int timeout_ms,
                            struct kn_msg **reply, struct kn_err *err);
/* Asks one question after another, with several on their way at once, each to be answered by Reply; they are taken in order.
 * `next` makes the next one; its bytes may stand in buf, which is kept until the answer came (of at most bytes_max).
 * KN_ENOENT of it: that was all. Any other error of it or of an answer ends it: those behind may have been done. */
#define CLIENT_WINDOW 8
typedef int (*client_next)(void *ctx, struct kn_msg *m, struct kn_buf *buf, struct kn_err *err);
KN_MUST_USE int client_calls(struct client *c, client_next next, void *ctx, size_t bytes_max, int timeout_ms,
                             struct kn_err *err);
/* Waits ms, heeding Ctrl-C. */
KN_MUST_USE int client_sleep(struct client *c, int ms, struct kn_err *err);

const struct kn_welcome *client_welcome(const struct client *c); /* of the last greeting */
/* KN_EUNSUPPORTED, in words, where the farm's coordinator lacks one of these features. */
KN_MUST_USE int client_needs(const struct client *c, uint64_t features, struct kn_err *err);
const char *client_endpoint(const struct client *c);

/* Fetches objects over the data socket, several at once, each checked against its digest. `got` is called
 * once an object, in any order; data is borrowed. A non-zero return of it ends the fetch. An object that the
 * farm has not got is `missing`. */
struct client_objects {
    const uint8_t *batch;  /* a kn_id: that names them (NULL: not known), */
    const uint32_t *tasks; /* …each by this task */
    const kn_digest *digests;
    size_t count;
    int (*got)(void *ctx, size_t i, const void *data, size_t len, struct kn_err *err);
    void (*missing)(void *ctx, size_t i, const char *why);
    void *ctx;
};
KN_MUST_USE int client_fetch(struct client *c, const struct client_objects *objects, struct kn_err *err);

#endif
