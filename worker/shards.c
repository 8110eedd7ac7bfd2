/* See shards.h. */
#include "worker/shards.h"

#include <assert.h>
#include <string.h>

void leases_init(struct leases *l, uint32_t credit) {
    assert(credit >= 1 && credit <= KN_SHARDS_PER_WORKER_MAX);
    *l = (struct leases){.credit = credit};
}

void leases_fini(struct leases *l) {
    while (l->count) lease_remove(l, &l->v[l->count - 1]);
}

struct lease *lease_find(struct leases *l, uint64_t shard, uint64_t term) {
    for (size_t i = 0; i < l->count; i++)
        if (l->v[i].job->g->shard == shard && l->v[i].job->g->term == term) return &l->v[i];
    return NULL;
}

struct lease *lease_running(struct leases *l) {
    for (size_t i = 0; i < l->count; i++)
        if (l->v[i].state == LEASE_RUNNING) return &l->v[i];
    return NULL;
}

size_t leases_waiting(const struct leases *l) {
    size_t n = 0;
    for (size_t i = 0; i < l->count; i++) n += l->v[i].state == LEASE_WAITING;
    return n;
}

int lease_grant(struct leases *l, struct job *j) {
    if (lease_find(l, j->g->shard, j->g->term)) return KN_EEXIST;
    if (l->count >= l->credit) return KN_ELIMIT;
    l->v[l->count++] = (struct lease){.job = job_ref(j), .state = LEASE_WAITING};
    return 0;
}

void lease_remove(struct leases *l, struct lease *x) {
    size_t at = (size_t)(x - l->v);
    assert(at < l->count);
    job_unref(x->job);
    memmove(x, x + 1, (l->count - at - 1) * sizeof *x);
    l->count--;
}

void lease_started(struct lease *x) {
    assert(x->state == LEASE_WAITING);
    x->state = LEASE_RUNNING;
}

void lease_image(struct lease *x, uint32_t place) {
    assert(x->state == LEASE_RUNNING && place < x->job->g->count);
    if (x->task[place] == LEASE_TASK_PENDING) x->task[place] = LEASE_TASK_SENT;
}

void lease_failed(struct lease *x, uint32_t place) {
    assert(x->state == LEASE_RUNNING && place < x->job->g->count);
    x->task[place] = LEASE_TASK_OVER;
}

void lease_finished(struct lease *x, uint32_t render_ms, uint32_t images, bool out_of_memory) {
    assert(x->state == LEASE_RUNNING);
    x->state = LEASE_RENDERED;
    x->render_ms = render_ms;
    x->images = images;
    x->out_of_memory = out_of_memory;
}

void leases_acknowledged(struct leases *l, const kn_id batch, uint32_t task) {
    for (size_t i = 0; i < l->count; i++) {
        struct lease *x = &l->v[i];
        const struct kn_shard_grant *g = x->job->g;
        if (memcmp(g->batch, batch, KN_UUID_BYTES) != 0) continue;
        for (size_t k = 0; k < g->count; k++)
            if (g->index[k] == task && x->task[k] == LEASE_TASK_SENT) x->task[k] = LEASE_TASK_OVER;
    }
}

struct lease *leases_over(struct leases *l, enum lease_end *how) {
    for (size_t i = 0; i < l->count; i++) {
        struct lease *x = &l->v[i];
        size_t left[3] = {0};
        if (x->state != LEASE_RENDERED) continue;
        for (size_t k = 0; k < x->job->g->count; k++) left[x->task[k]]++;
        if (left[LEASE_TASK_SENT]) continue;
        *how = left[LEASE_TASK_PENDING] ? LEASE_RETURNED : LEASE_DONE;
        return x;
    }
    return NULL;
}

size_t lease_outstanding(const struct lease *x, uint32_t *out) {
    size_t n = 0;
    for (size_t k = 0; k < x->job->g->count; k++)
        if (x->task[k] != LEASE_TASK_OVER) out[n++] = x->job->g->index[k];
    return n;
}
