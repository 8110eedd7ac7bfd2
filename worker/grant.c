/* See grant.h. */
#include "worker/grant.h"

#include <stdlib.h>

struct job *job_create(struct kn_msg *msg, const struct kn_model_info *model) {
    struct job *j = calloc(1, sizeof *j);
    if (!j) return NULL;
    atomic_init(&j->refs, 1);
    j->msg = msg;
    j->g = &msg->u.shard_grant;
    j->model = model;
    return j;
}

struct job *job_ref(struct job *j) {
    atomic_fetch_add(&j->refs, 1);
    return j;
}

void job_unref(struct job *j) {
    if (!j || atomic_fetch_sub(&j->refs, 1) != 1) return;
    kn_msg_destroy(j->msg);
    free(j);
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
