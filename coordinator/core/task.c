/* Tasks and their queues. The contract is task.h, the data state.h.
 *
 * A task is in one place at a time: in its group's queue, in a piece (suspects, see blame.c), in one or two
 * shards, in a pending, or at its end. Counts follow task_set, task_queue and task_unqueue, nothing else. */
#include "coordinator/core/task.h"

#include "coordinator/core/pool.h"
#include "coordinator/core/trouble.h"

/* ---- lists of tasks, linked through a (next) and b (previous) */

static void list_push(struct batch *b, struct tasklist *l, uint32_t t, bool front) {
    struct task *task = &b->tasks[t];
    task->a = front ? l->head : NONE;
    task->b = front ? NONE : l->tail;
    if (task->a != NONE) b->tasks[task->a].b = t;
    if (task->b != NONE) b->tasks[task->b].a = t;
    if (front || l->head == NONE) l->head = t;
    if (!front || l->tail == NONE) l->tail = t;
    l->count++;
}

static void list_remove(struct batch *b, struct tasklist *l, uint32_t t) {
    struct task *task = &b->tasks[t];
    if (task->b != NONE)
        b->tasks[task->b].a = task->a;
    else
        l->head = task->a;
    if (task->a != NONE)
        b->tasks[task->a].b = task->b;
    else
        l->tail = task->b;
    task->a = task->b = NONE;
    assert(l->count > 0);
    l->count--;
}

/* ---- groups in the list of their lane */

static void group_list(struct batch *b, uint32_t g, bool front) {
    struct group *group = &b->groups[g];
    struct lane *lane = &b->lanes[group->lane];
    if (group->listed) return;
    group->listed = true;
    group->next = front ? lane->head : NONE;
    group->prev = front ? NONE : lane->tail;
    if (group->next != NONE) b->groups[group->next].prev = g;
    if (group->prev != NONE) b->groups[group->prev].next = g;
    if (front || lane->head == NONE) lane->head = g;
    if (!front || lane->tail == NONE) lane->tail = g;
}

static void group_unlist(struct batch *b, uint32_t g) {
    struct group *group = &b->groups[g];
    struct lane *lane = &b->lanes[group->lane];
    if (!group->listed) return;
    group->listed = false;
    if (group->prev != NONE)
        b->groups[group->prev].next = group->next;
    else
        lane->head = group->next;
    if (group->next != NONE)
        b->groups[group->next].prev = group->prev;
    else
        lane->tail = group->prev;
}

/* So many more (or, below 0, fewer) tasks are queued in a group. */
static void group_queued(struct farm *f, struct batch *b, uint32_t g, int change, bool front) {
    struct group *group = &b->groups[g];
    struct lane *lane = &b->lanes[group->lane];
    uint64_t units = ((struct shape *)slab_at(&f->shapes, group->shape))->units;
    if (change > 0) {
        pool_lane_queued(f, lane, change, units * (uint64_t)change);
        group_list(b, g, front);
        f->work_arrived = true;
    } else {
        pool_lane_queued(f, lane, change, units * (uint64_t)-change);
        if (group->queue.count + group->piece_tasks == 0) group_unlist(b, g);
    }
}

/* ---- tasks */

void task_set(struct farm *f, struct batch *b, uint32_t t, enum farm_task_state state) {
    struct task *task = &b->tasks[t];
    assert(b->counts[task->state] > 0);
    assert(task->state < TASK_DONE); /* only a retry leaves an end, and it does so itself */
    b->counts[task->state]--;
    b->counts[state]++;
    task->state = (uint8_t)state;
    if (state < TASK_DONE) return;
    assert(b->log_count < b->total);
    b->log[b->log_count++] = t;
    struct group *group = &b->groups[task->group];
    const struct shape *shape = slab_at(&f->shapes, group->shape);
    b->lanes[group->lane].open_units -= shape->units;
    b->open_steps -= shape->key.steps;
    task->a = task->b = NONE;
    trouble_forget(f, b, t);
}

void task_queue(struct farm *f, struct batch *b, uint32_t t, bool front) {
    struct task *task = &b->tasks[t];
    task_set(f, b, t, TASK_QUEUED);
    list_push(b, &b->groups[task->group].queue, t, front);
    group_queued(f, b, task->group, 1, front);
}

void task_queue_piece(struct farm *f, struct batch *b, const uint32_t *tasks, uint32_t count) {
    uint32_t g = b->tasks[tasks[0]].group, slot = slab_take(&f->pieces);
    struct group *group = &b->groups[g];
    struct piece *piece = slab_at(&f->pieces, slot);
    piece->list = (struct tasklist){NONE, NONE, 0};
    for (uint32_t i = 0; i < count; i++) {
        struct task *task = &b->tasks[tasks[i]];
        assert(task->group == g && task->trouble != NONE);
        task_set(f, b, tasks[i], TASK_QUEUED);
        list_push(b, &piece->list, tasks[i], false);
        ((struct trouble *)slab_at(&f->troubles, task->trouble))->piece = slot;
    }
    piece->prev = group->piece_tail;
    piece->next = NONE;
    if (piece->prev != NONE)
        ((struct piece *)slab_at(&f->pieces, piece->prev))->next = slot;
    else
        group->piece_head = slot;
    group->piece_tail = slot;
    group->piece_tasks += count;
    group_queued(f, b, g, (int)count, true);
}

static void piece_free(struct farm *f, struct group *group, uint32_t slot) {
    struct piece *piece = slab_at(&f->pieces, slot);
    if (piece->prev != NONE)
        ((struct piece *)slab_at(&f->pieces, piece->prev))->next = piece->next;
    else
        group->piece_head = piece->next;
    if (piece->next != NONE)
        ((struct piece *)slab_at(&f->pieces, piece->next))->prev = piece->prev;
    else
        group->piece_tail = piece->prev;
    slab_give(&f->pieces, slot);
}

void task_unqueue(struct farm *f, struct batch *b, uint32_t t) {
    struct task *task = &b->tasks[t];
    struct group *group = &b->groups[task->group];
    assert(task->state == TASK_QUEUED);
    struct trouble *trouble = task->trouble == NONE ? NULL : slab_at(&f->troubles, task->trouble);
    if (trouble && trouble->piece != NONE) {
        struct piece *piece = slab_at(&f->pieces, trouble->piece);
        list_remove(b, &piece->list, t);
        group->piece_tasks--;
        if (piece->list.count == 0) piece_free(f, group, trouble->piece);
        trouble->piece = NONE;
    } else {
        list_remove(b, &group->queue, t);
    }
    group_queued(f, b, task->group, -1, false);
}
