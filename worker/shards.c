/* See shards.h. */
#include "worker/shards.h"

#include <assert.h>
#include <string.h>

void shards_init(struct shards *l, uint32_t credit) {
    assert(credit >= 1 && credit <= KN_SHARDS_PER_WORKER_MAX);
    *l = (struct shards){.credit = credit};
}

void shards_fini(struct shards *l) {
    while (l->count) shards_remove(l, &l->v[l->count - 1]);
}

struct held_shard *shards_find(struct shards *l, uint64_t shard, uint64_t term) {
    for (size_t i = 0; i < l->count; i++)
        if (l->v[i].grant->shard->shard == shard && l->v[i].grant->shard->term == term) return &l->v[i];
    return NULL;
}

struct held_shard *shards_running(struct shards *l) {
    for (size_t i = 0; i < l->count; i++)
        if (l->v[i].state == SHARD_RUNNING) return &l->v[i];
    return NULL;
}

size_t shards_waiting(const struct shards *l) {
    size_t n = 0;
    for (size_t i = 0; i < l->count; i++) n += l->v[i].state == SHARD_WAITING;
    return n;
}

int shards_take(struct shards *l, struct grant *grant) {
    if (shards_find(l, grant->shard->shard, grant->shard->term)) return KN_EEXIST;
    if (l->count >= l->credit) return KN_ELIMIT;
    l->v[l->count++] = (struct held_shard){.grant = grant_ref(grant), .state = SHARD_WAITING};
    return 0;
}

void shards_remove(struct shards *l, struct held_shard *x) {
    size_t at = (size_t)(x - l->v);
    assert(at < l->count);
    grant_unref(x->grant);
    memmove(x, x + 1, (l->count - at - 1) * sizeof *x);
    l->count--;
}

void shard_started(struct held_shard *x) {
    assert(x->state == SHARD_WAITING);
    x->state = SHARD_RUNNING;
}

void shard_image(struct held_shard *x, uint32_t place) {
    assert(x->state == SHARD_RUNNING && place < x->grant->shard->count);
    if (x->task[place] == SHARD_TASK_PENDING) x->task[place] = SHARD_TASK_SENT;
}

void shard_failed(struct held_shard *x, uint32_t place) {
    assert(x->state == SHARD_RUNNING && place < x->grant->shard->count);
    x->task[place] = SHARD_TASK_OVER;
}

void shard_finished(struct held_shard *x, uint32_t render_ms, uint32_t images, bool out_of_memory) {
    assert(x->state == SHARD_RUNNING);
    x->state = SHARD_RENDERED;
    x->render_ms = render_ms;
    x->images = images;
    x->out_of_memory = out_of_memory;
}

void shards_acknowledged(struct shards *l, const kn_id batch, uint32_t task) {
    for (size_t i = 0; i < l->count; i++) {
        struct held_shard *x = &l->v[i];
        const struct kn_shard_grant *g = x->grant->shard;
        if (memcmp(g->batch, batch, KN_UUID_BYTES) != 0) continue;
        for (size_t k = 0; k < g->count; k++)
            if (g->index[k] == task && x->task[k] == SHARD_TASK_SENT) x->task[k] = SHARD_TASK_OVER;
    }
}

struct held_shard *shards_over(struct shards *l, enum shard_end *how) {
    for (size_t i = 0; i < l->count; i++) {
        struct held_shard *x = &l->v[i];
        size_t left[3] = {0};
        if (x->state != SHARD_RENDERED) continue;
        for (size_t k = 0; k < x->grant->shard->count; k++) left[x->task[k]]++;
        if (left[SHARD_TASK_SENT]) continue;
        *how = left[SHARD_TASK_PENDING] ? SHARD_RETURNED : SHARD_DONE;
        return x;
    }
    return NULL;
}

size_t shard_outstanding(const struct held_shard *x, uint32_t *out) {
    size_t n = 0;
    for (size_t k = 0; k < x->grant->shard->count; k++)
        if (x->task[k] != SHARD_TASK_OVER) out[n++] = x->grant->shard->index[k];
    return n;
}
