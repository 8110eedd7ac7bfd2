/* The store of the simulated farm: writes wait, are carried out in their order, may be refused, and may be
 * carried out with their answer lost. A crash of the coordinator loses what was on its way. */
#include <string.h>

#include "base/planted.h"
#include "tests/sim/world.h"

#define RING (sizeof((struct world *)0)->writes / sizeof(struct w_write))

uint64_t store_pixels(const struct world *w, int batch, uint32_t task, uint32_t backend) {
    /* In a hostile world many batches ask for the same pictures. */
    uint64_t number = (uint64_t)w->batches[batch].number;
    uint64_t key[3] = {w->hostile ? number % 4 : number, task, backend};
    return kn_hash64(key, sizeof key, 77);
}

static void schedule(struct world *w) {
    if (w->write_busy || w->write_head == w->write_tail) return;
    w->write_busy = true;
    uint64_t at = w->now + world_below(w, w->chaos && world_chance(w, 3) ? 2000 : 4);
    if (at < w->store_down_until) at = w->store_down_until;
    world_at(w, at, W_STORE)->boot = w->boot;
}

void store_go_on(struct world *w) {
    w->write_busy = false;
    schedule(w);
}

void store_write(struct world *w, const struct farm_effect *fx) {
    store_write_as(w, fx, w->term);
}

void store_write_as(struct world *w, const struct farm_effect *fx, uint64_t term) {
    if (w->hostile && w->chaos && term == w->term) hostile_write(w, fx);
    struct w_write *x = &w->writes[w->write_tail++ % RING];
    W_ASSERT(w->write_tail - w->write_head < RING, "too many writes");
    x->fx = *fx;
    x->voids = false;
    x->term = term;
    if (fx->type == FX_FAIL) x->fx.u.fail.reason = x->fx.u.fail.worker = NULL;
    schedule(w);
}

void store_void(struct world *w, int i, uint32_t task) {
    struct w_write *x = &w->writes[w->write_tail++ % RING];
    W_ASSERT(w->write_tail - w->write_head < RING, "too many writes");
    *x = (struct w_write){.voids = true, .term = w->term};
    x->fx.task = task;
    world_id(w, i, x->fx.batch, sizeof x->fx.batch);
    schedule(w);
}

/* A record leaves the store: the task has not ended any more, unless its batch is cancelled. */
static int apply_void(struct world *w, struct w_batch *b, uint32_t t) {
    if (b->end[t] != TASK_DONE) return KN_EEXIST;
    w->voided++;
    b->voiding++;
    b->voids[t]++;
    b->backend[t] = 0;
    b->pixels[t] = 0;
    b->end[t] = b->state == KN_BATCH_CANCELLED ? TASK_CANCELLED : TASK_QUEUED;
    if (b->end[t] == TASK_CANCELLED) return 0;
    uint32_t kept = 0;
    for (uint32_t k = 0; k < b->log_count; k++)
        if (b->log[k] != t) b->log[kept++] = b->log[k];
    b->log_count = kept;
    if (b->state == KN_BATCH_DONE) b->state = KN_BATCH_ACTIVE;
    return 0;
}

static void end_task(struct w_batch *b, uint32_t t, enum farm_task_state state) {
    if (b->end[t] == TASK_QUEUED) b->log[b->log_count++] = t;
    b->end[t] = (uint8_t)state;
}

static int apply(struct world *w, const struct w_write *x) {
    const struct farm_effect *fx = &x->fx;
    int i = world_find(w, fx->batch);
    if (w->hostile && x->term < w->lead && !KN_PLANTED(TERM_NOT_CHECKED)) return KN_ETERM;
    if (i < 0) return KN_EGONE;
    struct w_batch *b = &w->batches[i];
    uint32_t t = fx->task;
    if (x->voids) return b->removed ? KN_EGONE : apply_void(w, b, t);
    switch (fx->type) {
    case FX_COMMIT: {
        if (b->state == KN_BATCH_CANCELLED) return KN_EGONE;
        if (b->end[t] == TASK_DONE) return KN_EEXIST;
        uint64_t pixels;
        memcpy(&pixels, fx->u.commit.pixels, sizeof pixels);
        W_ASSERT(pixels == store_pixels(w, i, t, fx->u.commit.backend), "batch %d task %u: other pixels", i,
                 t);
        W_ASSERT(b->pin < 0 || (uint32_t)b->pin == fx->u.commit.backend, "batch %d task %u: wrong class", i,
                 t);
        W_ASSERT(b->nature[t] == GOOD || (b->nature[t] == NAN_ON_CLASS_0 && fx->u.commit.backend == 1),
                 "batch %d task %u: rendered, though it cannot be", i, t);
        W_ASSERT(++b->commits[t] == b->voids[t] + 1, "batch %d task %u: committed twice", i, t);
        end_task(b, t, TASK_DONE);
        b->backend[t] = fx->u.commit.backend;
        b->pixels[t] = pixels;
        w->commits++;
        return 0;
    }
    case FX_FAIL:
        if (b->state == KN_BATCH_CANCELLED) return KN_EGONE;
        if (b->end[t] == TASK_DONE) return KN_EEXIST;
        end_task(b, t, TASK_FAILED);
        b->code[t] = fx->u.fail.code;
        w->fails++;
        return 0;
    case FX_CHARGE:
        b->charges[t] = fx->u.charge.charges;
        return 0;
    case FX_BATCH_STATE:
        if (b->state == KN_BATCH_CANCELLED && !fx->u.batch_state.retried) return 0;
        if (fx->u.batch_state.retried) {
            uint32_t kept = 0;
            for (uint32_t k = 0; k < b->log_count; k++) {
                if (b->end[b->log[k]] == TASK_FAILED || b->end[b->log[k]] == TASK_CANCELLED)
                    b->end[b->log[k]] = TASK_QUEUED;
                else
                    b->log[kept++] = b->log[k];
            }
            b->log_count = kept;
            memset(b->charges, 0, sizeof b->charges);
        }
        if (fx->u.batch_state.state == KN_BATCH_CANCELLED)
            for (uint32_t k = 0; k < b->tasks; k++)
                if (b->end[k] == TASK_QUEUED) end_task(b, k, TASK_CANCELLED);
        b->state = fx->u.batch_state.state;
        b->priority = fx->u.batch_state.priority;
        return 0;
    case FX_BATCH_REMOVE:
        b->removed = true;
        if (w->hostile) hostile_removed(w, i, x->term);
        return 0;
    default:
        return KN_EINVAL;
    }
}

void store_next(struct world *w) {
    w->write_busy = false;
    if (w->write_head == w->write_tail) return;
    struct w_write x = w->writes[w->write_head++ % RING];
    int code = 0;
    /* Nobody hears of a charge or a removal: the shell repeats those by itself. */
    bool refuse = w->chaos && x.fx.type != FX_CHARGE && x.fx.type != FX_BATCH_REMOVE && world_chance(w, 2);
    if (!refuse || world_chance(w, 50)) code = apply(w, &x); /* refused, or only its answer lost */
    if (refuse) code = KN_EIO;
    schedule(w);
    if (x.voids && code == KN_EIO) { /* it is asked again, as one whose answer was lost must be */
        int i = world_find(w, x.fx.batch);
        if (i >= 0) store_void(w, i, x.fx.task);
        return;
    }
    if (w->hostile) { /* the answer comes behind the next sync, unless it is a fault that it does not */
        if (x.voids) x.fx.type = FX_NOTE;
        uint64_t at = w->now + 1 + world_below(w, 12);
        if (at < w->sync_last) at = w->sync_last;
        w->sync_last = at;
        struct w_event *e = world_at(w, at, W_SYNC);
        e->fx = x.fx;
        e->term = x.term;
        e->code = code;
        e->power = w->power;
        e->boot = w->boot;
        if (!KN_PLANTED(ANSWER_BEFORE_DURABLE)) return;
        e->stage = 1; /* it was answered */
        store_answer(w, &x.fx, x.term, code);
        return;
    }
    if (x.voids) x.fx.type = FX_NOTE;
    store_answer(w, &x.fx, x.term, code);
}

/* What the core hears of a write; FX_NOTE stands for a void. */
void store_answer(struct world *w, const struct farm_effect *fx, uint64_t term, int code) {
    if (fx->type == FX_NOTE) {
        int i = world_find(w, fx->batch);
        if (i >= 0 && w->batches[i].voiding > 0 && term == w->term) w->batches[i].voiding--;
        if (code != 0 && code != KN_EEXIST) return;
        if (term != w->term || !w->farm) return;
        struct farm_event ev = {.type = EV_OBJECTS_LOST};
        memcpy(ev.u.objects_lost.batch, fx->batch, sizeof fx->batch);
        ev.u.objects_lost.tasks = &fx->task;
        ev.u.objects_lost.count = 1;
        int rc = world_step(w, &ev);
        W_ASSERT(rc == 0 || rc == KN_ENOENT, "objects lost: %d", rc);
        return;
    }
    if (fx->type == FX_CHARGE || fx->type == FX_BATCH_REMOVE) return;
    struct farm_event ev = {.type = EV_STORED};
    ev.u.stored.what = fx->type;
    memcpy(ev.u.stored.batch, fx->batch, sizeof fx->batch);
    ev.u.stored.task = fx->task;
    ev.u.stored.code = code;
    if (term != w->term) {
        if (term == w->old_term) hostile_old_answer(w, &ev);
        return;
    }
    W_ASSERT(world_step(w, &ev) == 0, "stored");
}

void store_crash(struct world *w) {
    uint32_t kept = w->write_tail - w->write_head;
    if (kept > 0) kept = world_below(w, kept + 1); /* a part of what was on its way had arrived */
    for (uint32_t i = 0; i < kept; i++) (void)apply(w, &w->writes[w->write_head++ % RING]);
    w->write_head = w->write_tail;
    w->write_busy = false;
}

void store_open(struct world *w, int i) {
    struct w_batch *b = &w->batches[i];
    struct farm_group groups[4] = {0};
    struct farm_done_task ended[W_TASKS] = {0};
    struct farm_charge charges[W_TASKS];
    uint32_t charge_count = 0;
    for (uint32_t g = 0; g < b->group_count; g++) {
        memcpy(groups[g].model, &b->groups[g].model, sizeof b->groups[g].model);
        groups[g].width = groups[g].height = b->groups[g].size;
        groups[g].steps = b->groups[g].steps;
    }
    for (uint32_t k = 0; k < b->log_count; k++) {
        uint32_t t = b->log[k];
        ended[k].task = t;
        ended[k].state = (enum farm_task_state)b->end[t];
        ended[k].backend = b->backend[t];
        memcpy(ended[k].pixels, &b->pixels[t], sizeof b->pixels[t]);
    }
    for (uint32_t t = 0; t < b->tasks; t++)
        if (b->charges[t] && b->end[t] == TASK_QUEUED)
            charges[charge_count++] = (struct farm_charge){t, b->charges[t]};
    struct farm_event ev = {.type = EV_BATCH_OPEN};
    struct ev_batch_open *o = &ev.u.batch_open;
    world_id(w, i, o->id, sizeof o->id);
    o->tasks = b->tasks;
    o->priority = b->priority;
    o->pin_backend = b->pin < 0 ? "" : b->pin == 0 ? "class-0" : "class-1";
    o->groups = groups;
    o->group_count = b->too_large ? KN_GROUPS_PER_BATCH_MAX + 1 : b->group_count;
    o->task_group = b->group;
    o->paused = b->state == KN_BATCH_PAUSED;
    o->cancelled = b->state == KN_BATCH_CANCELLED;
    o->done = b->state == KN_BATCH_DONE;
    o->ended = ended;
    o->ended_count = b->log_count;
    o->charges = charges;
    o->charge_count = charge_count;
    int rc = world_step(w, &ev);
    W_ASSERT(rc == 0 || rc == KN_EEXIST, "open: %d", rc);
}

void store_read_back(struct world *w) {
    for (int i = 0; i < W_BATCHES; i++)
        if (w->batches[i].used && !w->batches[i].removed) store_open(w, i);
}
