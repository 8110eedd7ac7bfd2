/* What passes between the worker's threads: a granted shard, and bytes, both counted, since the loop, the
 * engine, the encoder and ZeroMQ let go of them in any order. Any thread. */
#ifndef KILN_WORKER_JOB_H
#define KILN_WORKER_JOB_H

#include <stdatomic.h>
#include "proto/codec.h"

/* A shard: the grant as it came. Nothing in it changes. */
struct job {
    atomic_int refs;
    struct kn_msg *msg;                /* owns */
    const struct kn_shard_grant *g;    /* in msg */
    const struct kn_model_info *model; /* borrowed from the engine; NULL: this worker has no such model */
};

/* Takes the message on success (a shard_grant). NULL: out of memory. One reference, the caller's. */
struct job *job_create(struct kn_msg *msg, const struct kn_model_info *model);
struct job *job_ref(struct job *j);
void job_unref(struct job *j); /* NULL is fine */

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
