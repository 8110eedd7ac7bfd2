/* See grant.h. */
#include "worker/grant.h"

#include <stdlib.h>

struct grant *grant_create(struct kn_msg *msg, const struct kn_model_info *model) {
    struct grant *grant = calloc(1, sizeof *grant);
    if (!grant) return NULL;
    atomic_init(&grant->refs, 1);
    grant->msg = msg;
    grant->shard = &msg->u.shard_grant;
    grant->model = model;
    return grant;
}

struct grant *grant_ref(struct grant *grant) {
    atomic_fetch_add(&grant->refs, 1);
    return grant;
}

void grant_unref(struct grant *grant) {
    if (!grant || atomic_fetch_sub(&grant->refs, 1) != 1) return;
    kn_msg_destroy(grant->msg);
    free(grant);
}

struct bytes *bytes_create(struct kn_buf *buf) {
    struct bytes *b = calloc(1, sizeof *b);
    if (!b) return NULL;
    atomic_init(&b->refs, 1);
    b->len = buf->len;
    b->data = buf->data;
    char *fit =
        realloc(b->data, b->len ? b->len : 1); /* a growing buffer may be twice as large as what is in it */
    if (fit) b->data = fit;
    kn_buf_init(buf, buf->max);
    return b;
}

struct bytes *bytes_ref(struct bytes *b) {
    atomic_fetch_add(&b->refs, 1);
    return b;
}

void bytes_unref(struct bytes *b) {
    if (!b || atomic_fetch_sub(&b->refs, 1) != 1) return;
    free(b->data);
    free(b);
}
