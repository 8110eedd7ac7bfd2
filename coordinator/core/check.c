/* Asserts the invariants of farm.h, which must hold between any two steps, by looking at everything. */
#include <stdlib.h>

#include "coordinator/core/batch.h"
#include "coordinator/core/pool.h"
#include "coordinator/core/shard.h"
#include "coordinator/core/state.h"
#include "coordinator/core/worker.h"

_Static_assert(sizeof(struct task) + sizeof(uint32_t) <= 32, "farm.h promises 32 bytes a task");

/* The queued tasks of one list: linked both ways, all queued, all of this group. */
static uint32_t check_list(const struct batch *b, const struct tasklist *l, uint32_t group) {
    uint32_t n = 0, before = NONE;
    for (uint32_t t = l->head; t != NONE; t = b->tasks[t].a) {
        assert(t < b->total && b->tasks[t].state == TASK_QUEUED);
        assert(b->tasks[t].group == group && b->tasks[t].b == before);
        before = t;
        assert(++n <= l->count);
    }
    assert(n == l->count && l->tail == before);
    return n;
}

static void check_groups(const struct farm *f, const struct batch *b) {
    uint64_t queued[KN_MODELS_PER_BATCH_MAX] = {0}, units[KN_MODELS_PER_BATCH_MAX] = {0};
    uint32_t listed[KN_MODELS_PER_BATCH_MAX] = {0};
    for (uint32_t g = 0; g < b->group_count; g++) {
        const struct group *group = &b->groups[g];
        uint32_t n = check_list(b, &group->queue, g), suspects = 0;
        for (uint32_t p = group->piece_head; p != NONE;) {
            const struct piece *piece = slab_at(&f->pieces, p);
            assert(piece->list.count > 0);
            suspects += check_list(b, &piece->list, g);
            for (uint32_t t = piece->list.head; t != NONE; t = b->tasks[t].a)
                assert(((struct trouble *)slab_at(&f->troubles, b->tasks[t].trouble))->piece == p);
            p = piece->next;
        }
        assert(suspects == group->piece_tasks);
        assert(group->listed == (n + suspects > 0));
        queued[group->lane] += n + suspects;
        units[group->lane] += (n + suspects) * ((struct shape *)slab_at(&f->shapes, group->shape))->units;
        listed[group->lane] += group->listed;
    }
    uint64_t all = 0;
    for (uint32_t l = 0; l < b->lane_count; l++) {
        const struct lane *lane = &b->lanes[l];
        assert(lane->queued == queued[l] && lane->queued_units == units[l]);
        assert(lane->ready == (b->state == KN_BATCH_ACTIVE && lane->queued > 0));
        uint32_t n = 0;
        for (uint32_t g = lane->head; g != NONE; g = b->groups[g].next) n++;
        assert(n == listed[l]);
        all += lane->queued;
    }
    assert(all == b->counts[TASK_QUEUED]); /* a queued task is in a queue, so in no shard */
}

static void check_task(const struct farm *f, const struct batch *b, uint32_t t) {
    const struct task *task = &b->tasks[t];
    if (task->trouble != NONE) {
        const struct trouble *x = slab_at(&f->troubles, task->trouble);
        assert(x->batch == b && x->task == t);
        assert(x->piece == NONE || task->state == TASK_QUEUED);
    }
    switch ((enum farm_task_state)task->state) {
    case TASK_QUEUED:
        break;
    case TASK_GRANTED:
        assert(task->a != NONE && task->a != task->b);
        for (uint32_t i = 0; i < COPIES_MAX; i++) {
            uint32_t slot = i == 0 ? task->a : task->b;
            if (slot == NONE) continue;
            const struct shard *s = slab_at(&f->shards, slot);
            assert(s->batch == b && s->slot == slot && s->group == task->group && s->left > 0);
            bool there = false;
            for (uint32_t k = 0; k < s->count; k++) there |= s->tasks[k] == t;
            assert(there);
        }
        break;
    case TASK_COMMITTING:
    case TASK_FAILING: {
        const struct pending *p = slab_at(&f->pendings, task->a);
        assert(p->batch == b && p->task == t && p->fail == (task->state == TASK_FAILING));
        break;
    }
    default:
        assert(task->trouble == NONE);
    }
}

static void check_batch(const struct farm *f, const struct batch *b) {
    uint32_t counts[TASK_CANCELLED + 1] = {0};
    for (uint32_t t = 0; t < b->total; t++) {
        assert(b->tasks[t].state <= TASK_CANCELLED);
        counts[b->tasks[t].state]++;
        check_task(f, b, t);
    }
    for (uint32_t i = 0; i <= TASK_CANCELLED; i++) assert(counts[i] == b->counts[i]);
    assert(b->log_count == batch_ended_count(b));
    uint8_t *seen = calloc(b->total, 1);
    for (uint32_t i = 0; seen && i < b->log_count; i++) {
        assert(b->tasks[b->log[i]].state >= TASK_DONE && !seen[b->log[i]]);
        seen[b->log[i]] = 1;
    }
    free(seen);
    check_groups(f, b);
    if (batch_live(b))
        assert(b->log_count < b->total);
    else
        assert(!b->shards && counts[TASK_QUEUED] == 0);
    if (b->state == KN_BATCH_DONE) assert(b->log_count == b->total);
    uint32_t left = 0, copies = 0;
    for (const struct shard *s = b->shards; s; s = s->batch_next) {
        assert(s->batch == b && s->left > 0);
        left += s->left;
    }
    for (uint32_t t = 0; t < b->total; t++)
        if (b->tasks[t].state == TASK_GRANTED) copies += b->tasks[t].b == NONE ? 1 : 2;
    assert(left == copies);
}

static void check_worker(const struct farm *f, const struct worker *w) {
    uint32_t held = 0, sent = 0;
    const struct shard *before = NULL;
    for (const struct shard *s = w->shards; s; s = s->worker_next) {
        assert(s->worker == w && s->worker_prev == before);
        before = s;
        if (s->state == SHARD_SENT)
            sent++;
        else
            held++;
        assert((s->batch != NULL) == (s->left > 0));
        if (s->state == SHARD_REVOKED) assert(s->left == 0);
        if (s->state == SHARD_OWED) assert(s->left > 0);
        uint32_t left = 0;
        for (uint32_t i = 0; s->batch && i < s->count; i++) {
            left += shard_holds(s, s->tasks[i]);
            assert(s->batch->tasks[s->tasks[i]].group == s->group);
        }
        assert(left == s->left);
    }
    assert(w->shards_last == before);
    assert(held == w->held && sent == w->sent && held <= w->credit);
    if (w->lost) assert(!w->shards && !w->conn);
    bool takes = w->conn && !w->lost && !w->drain_wish && !w->drain_said && !w->on_hold;
    assert(w->counted == takes);
    if (w->conn) assert(worker_by_conn(f, w->conn) == w);
}

static void check_pool(const struct farm *f, const struct pool *p) {
    uint32_t able = 0, known = 0;
    uint64_t speed = 0, units = 0;
    for (size_t i = 0; i < f->worker_count; i++) {
        struct worker *w = f->workers[i];
        const struct worker_model *wm = worker_model_of(w, p->model);
        if (!w->counted || !wm || !pool_serves(p, w)) continue;
        able++;
        known += wm->speed > 0;
        speed += wm->speed;
    }
    assert(able == p->able && known == p->known && speed == p->speed);
    for (uint32_t i = 0; i < p->ready_count; i++) {
        assert(p->ready[i]->pool == p && p->ready[i]->ready);
        if (i > 0) assert(pool_lane_before(p->ready[i - 1], p->ready[i]));
        units += p->ready[i]->queued_units;
    }
    assert(units == p->ready_units);
}

void farm_check(const struct farm *f) {
    uint32_t shards = 0, pendings = 0;
    for (size_t i = 0; i < f->batch_count; i++) {
        const struct batch *b = f->batches[i];
        check_batch(f, b);
        for (const struct shard *s = b->shards; s; s = s->batch_next) shards++;
        pendings += b->counts[TASK_COMMITTING] + b->counts[TASK_FAILING];
    }
    assert(shards == f->shard_count);
    assert(pendings == slab_used(&f->pendings)); /* one question about a task at a time */
    for (size_t i = 0; i < f->worker_count; i++) check_worker(f, f->workers[i]);
    size_t pos = 0;
    for (const struct model *m = kn_map_next(f->model_by_digest, &pos); m;
         m = kn_map_next(f->model_by_digest, &pos))
        for (const struct pool *p = m->pools; p; p = p->next) check_pool(f, p);
}
