/* See grant.h. */
#include "worker/grant.h"

#include <stdlib.h>
#include <string.h>

#define PROBE_STEPS 2
#define PROBE_SEED 7

struct grant *grant_create(struct kn_msg *msg, const struct kn_model_info *model) {
    struct grant *grant = calloc(1, sizeof *grant);
    if (!grant) return NULL;
    atomic_init(&grant->refs, 1);
    grant->msg = msg;
    grant->shard = &msg->u.shard_grant;
    grant->model = model;
    return grant;
}

/* The smallest size that the model can do, and that a task may have. */
static uint32_t probe_size(const struct kn_model_info *model) {
    uint32_t multiple = model->size_multiple ? model->size_multiple : KN_SIZE_MULTIPLE;
    return (KN_SIZE_MIN + multiple - 1) / multiple * multiple;
}

struct grant *grant_create_probe(const struct kn_model_info *model) {
    char prompt[] = "a probe picture", negative[] = "";
    uint32_t index = 0, size = probe_size(model);
    struct kn_task task = {.prompt = prompt,
                           .negative = negative,
                           .seed = PROBE_SEED,
                           .steps = PROBE_STEPS,
                           .width = size,
                           .height = size,
                           .set = KN_SET_NEGATIVE | KN_SET_SEED | KN_SET_STEPS | KN_SET_SIZE};
    if (model->defaults.sampler == KN_SAMPLER_UNSET) { /* the folder names none of ours */
        task.sampler = KN_SAMPLER_EULER;
        task.schedule = KN_SCHEDULE_NORMAL;
        task.set |= KN_SET_SAMPLER | KN_SET_SCHEDULE;
    }
    struct kn_msg m = {.type = KN_MSG_SHARD_GRANT}, *owned = NULL;
    struct kn_buf frame;
    if (kn_task_resolve(&task, model, NULL)) return NULL;
    m.u.shard_grant =
        (struct kn_shard_grant){.shard = 1, .attempt = 1, .index = &index, .tasks = &task, .count = 1};
    memcpy(m.u.shard_grant.model_sha256, model->sha256, sizeof m.u.shard_grant.model_sha256);
    kn_buf_init(&frame, KN_FRAME_BYTES_MAX);
    int rc = kn_msg_encode(&m, &frame, NULL);
    if (!rc) rc = kn_msg_decode(frame.data, frame.len, &owned, NULL); /* so that it owns what it points to */
    kn_buf_fini(&frame);
    struct grant *grant = rc ? NULL : grant_create(owned, model);
    if (grant)
        grant->probe = true;
    else
        kn_msg_destroy(owned);
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
