/* A grant and a picture's bytes, as they pass between the worker's threads. Both count their users, since the
 * loop, the engine, the encoder and ZeroMQ let go of them in any order. Any thread. */
#ifndef KILN_WORKER_GRANT_H
#define KILN_WORKER_GRANT_H

#include <stdatomic.h>
#include "proto/codec.h"

/* A shard as it was granted. Nothing in it changes. */
struct grant {
    atomic_int refs;
    struct kn_msg *msg;                 /* owns */
    const struct kn_shard_grant *shard; /* in msg */
    const struct kn_model_info *model;  /* borrowed from the engine; NULL: this worker has no such model */
    bool probe; /* a probe picture: a grant of its own making, whose shard is nobody's */
};

/* Takes the message on success (a shard_grant). NULL: out of memory. One reference, the caller's. */
struct grant *grant_create(struct kn_msg *msg, const struct kn_model_info *model);
/* One tiny picture of this model, in few steps: whether the engine is well shows in it. NULL: out of memory, or the
 * model has settings of which none can be made. One reference, the caller's. */
struct grant *grant_create_probe(const struct kn_model_info *model);
struct grant *grant_ref(struct grant *grant);
void grant_unref(struct grant *grant); /* NULL is fine */

/* An encoded picture. */
struct bytes {
    atomic_int refs;
    size_t len;
    char *data; /* owns */
};

/* Takes the buffer's memory on success. NULL: out of memory. */
struct bytes *bytes_create(struct kn_buf *b);
struct bytes *bytes_ref(struct bytes *b);
void bytes_unref(struct bytes *b); /* NULL is fine */

#endif
