/* What a hostile world adds to the simulated farm: pictures as files on a disk that forgets what was not synced, a
 * store whose answers come only after a sync and that loses its tail when the power fails, a coordinator that was
 * stopped and wakes when another leads, connections that are open at one end only, clocks at different rates.
 *
 * The judge is outside the core: it remembers what anybody was told (a batch is accepted, a picture is kept, a wish is
 * done) and looks, each time that a coordinator reads the store back and at the end, whether it is still so. */
#include <stdlib.h>
#include <string.h>

#include "base/planted.h"
#include "tests/sim/world.h"

#define OBJECTS (sizeof((struct world *)0)->objects / sizeof(struct w_object))
#define PURGE_MS 3600000

uint64_t world_clock(const struct world *w, uint64_t rate) {
    return rate ? w->now * rate / 1000 : w->now;
}

/* ---- pictures on the disk */

static struct w_object *object(struct world *w, uint64_t digest) {
    for (uint64_t k = 0; k < OBJECTS; k++) {
        struct w_object *o = &w->objects[(digest + k) % OBJECTS];
        if (o->digest == 0) o->digest = digest;
        if (o->digest == digest) return o;
    }
    W_ASSERT(false, "too many objects");
    return NULL;
}

static bool object_there(struct world *w, uint64_t digest) {
    const struct w_object *o = object(w, digest);
    return o->named || o->trashed;
}

/* A result came: written, synced, renamed, its directory synced; then the core hears of it. */
void hostile_result(struct world *w, const struct w_event *came) {
    struct w_event *e = world_at(w, w->now + 1 + world_below(w, 4), W_OBJECT);
    e->ev = came->ev;
    e->conn = came->conn;
    e->boot = w->boot;
    e->power = w->power;
}

void hostile_object(struct world *w, const struct w_event *came) {
    if (came->boot != w->boot || !w->farm || came->power != w->power) return; /* its process is gone */
    uint64_t digest;
    memcpy(&digest, came->ev.u.result.sha256, sizeof digest);
    struct w_object *o = object(w, digest);
    int step = came->stage;
    bool durable = o->named && o->synced && o->dir_synced;
    if (durable) step = 3;
    if (step == 0) {
        o->next_synced = !KN_PLANTED(ACK_BEFORE_FSYNC); /* of a temporary file, written and synced here */
    } else if (step == 1) {
        o->named = true; /* renamed: the trash has no part in it */
        o->synced = o->next_synced;
        o->dir_synced = false;
    } else if (step == 2 && !KN_PLANTED(NO_DIRECTORY_FSYNC)) {
        o->dir_synced = true;
    }
    if (step < 3) {
        struct w_event *e =
            world_at(w, w->now + 1 + world_below(w, w->chaos && world_chance(w, 2) ? 500 : 3), W_OBJECT);
        e->ev = came->ev;
        e->conn = came->conn;
        e->boot = came->boot;
        e->power = came->power;
        e->stage = step + 1;
        return;
    }
    W_ASSERT(world_step(w, &came->ev) == 0, "a result is an error");
}

/* ---- removal */

static bool named_by_a_record(const struct world *w, uint64_t digest) {
    for (int i = 0; i < W_BATCHES; i++) {
        const struct w_batch *b = &w->batches[i];
        for (uint32_t t = 0; b->used && !b->removed && t < b->tasks; t++)
            if (b->end[t] == TASK_DONE && b->pixels[t] == digest) return true;
    }
    return false;
}

/* The store has removed a batch: its pictures go, one after another, by whoever asked for the removal. */
void hostile_removed(struct world *w, int i, uint64_t term) {
    struct w_batch *b = &w->batches[i];
    for (uint32_t t = 0; t < b->tasks; t++) {
        if (b->end[t] != TASK_DONE) continue;
        struct w_event *e = world_at(w, w->now + 1 + world_below(w, 4000), W_TRASH);
        e->digest = b->pixels[t];
        e->term = term;
    }
}

/* The look at who names an object and the rename are two calls, and a process may be stopped between them; what is in
 * the trash by mistake is found there, and only the leader empties it, after a second look. */
void hostile_trash(struct world *w, const struct w_event *e) {
    struct w_object *o = object(w, e->digest);
    if (KN_PLANTED(DELETION_WITHOUT_TERM)) {
        o->named = false;
        return;
    }
    if (e->stage == 0) {
        if (e->term != w->term || named_by_a_record(w, e->digest)) return;
        struct w_event *next = world_at(w, w->now + (world_chance(w, 10) ? 3000 : 1), W_TRASH);
        next->digest = e->digest;
        next->term = e->term;
        next->stage = 1;
    } else if (e->stage == 1 && o->named) {
        o->named = false;
        o->trashed = true;
        struct w_event *next = world_at(w, w->now + PURGE_MS, W_TRASH);
        next->digest = e->digest;
        next->term = e->term;
        next->stage = 2;
    } else if (e->stage == 2 && o->trashed) {
        if (named_by_a_record(w, e->digest)) o->named = true; /* back: somebody names it */
        o->trashed = false;
    }
}

/* ---- what survives */

/* The disk and the store as they are after the power failed. */
static void power_fails(struct world *w) {
    w->power++;
    w->powers++;
    for (size_t k = 0; k < OBJECTS; k++) {
        struct w_object *o = &w->objects[k];
        if (o->named && !(o->synced && o->dir_synced)) o->named = false;
    }
    for (int i = 0; i < W_BATCHES; i++) {
        struct w_batch live = w->batches[i];
        w->batches[i] = w->synced[i];
        memcpy(w->batches[i].unlucky, live.unlucky, sizeof live.unlucky);
        memcpy(w->batches[i].kept, live.kept, sizeof live.kept);
        w->batches[i].told = live.told;
        w->batches[i].answered = live.answered;
        W_ASSERT(w->batches[i].used || !live.told, "batch %d: accepted, and lost with the power", i);
    }
}

void hostile_sync(struct world *w, const struct w_event *e) {
    if (e->power != w->power) return;
    int i = world_find(w, e->fx.batch);
    if (i >= 0) w->synced[i] = w->batches[i];
    store_answer(w, &e->fx, e->term, e->code);
}

/* A coordinator reads the store back. Redis answers a read only behind a sync of all that it had written by then, so
 * nothing is read that the power can still take away. What was told to anybody is so. */
void hostile_judge(struct world *w) {
    memcpy(w->synced, w->batches, sizeof w->synced);
    for (int i = 0; i < W_BATCHES; i++) {
        struct w_batch *b = &w->batches[i];
        if (!b->used || b->removed) continue;
        for (uint32_t t = 0; t < b->tasks; t++) {
            if (b->kept[t] == b->voids[t] + 1)
                W_ASSERT(b->end[t] == TASK_DONE, "batch %d task %u: said to be kept, and is not", i, t);
            if (b->end[t] == TASK_DONE)
                W_ASSERT(object_there(w, b->pixels[t]), "batch %d task %u: a record, and no picture", i, t);
        }
        if (b->answered == KN_BATCH_CANCELLED)
            W_ASSERT(b->state == KN_BATCH_CANCELLED, "batch %d: cancelled, as was answered, and is not", i);
        if (b->answered == KN_BATCH_PAUSED)
            W_ASSERT(b->state == KN_BATCH_PAUSED || b->state == KN_BATCH_DONE,
                     "batch %d: paused, as was answered, and is not", i);
    }
}

/* What the core believes of settled batches is what the store has. */
void hostile_agree(struct world *w) {
    for (int i = 0; i < W_BATCHES; i++) {
        struct w_batch *b = &w->batches[i];
        kn_id id;
        struct farm_batch_view v;
        if (!b->used || b->removed || b->voiding > 0) continue;
        world_id(w, i, id, sizeof id);
        if (farm_batch_view(w->farm, id, world_clock(w, w->rate), &v) != 0) continue;
        if (!farm_batch_settled(w->farm, id)) continue;
        W_ASSERT(v.state == b->state && v.priority == b->priority, "batch %d: %s here, %s in the store", i,
                 kn_batch_state_name(v.state), kn_batch_state_name(b->state));
        for (uint32_t t = 0; w->steps % 16 == 0 && t < b->tasks; t++) {
            enum farm_task_state state;
            if (farm_task_state(w->farm, id, t, &state) != 0 || state >= TASK_COMMITTING) continue;
            W_ASSERT(b->end[t] == TASK_QUEUED || b->end[t] == TASK_DONE,
                     "batch %d task %u: open here, and has failed in the store", i, t);
        }
    }
}

/* ---- two coordinators */

static void old_step(struct world *w, const struct farm_event *ev) {
    bool knew = w->old_told;
    farm_effects_clear(&w->old_fx);
    int rc = farm_step(w->old, ev, world_clock(w, w->old_rate), &w->old_fx);
    W_ASSERT(rc == 0 || rc == KN_ESTATE || rc == KN_ENOENT, "%d", rc);
    farm_check(w->old);
    for (size_t k = 0; k < w->old_fx.count; k++) {
        const struct farm_effect *e = &w->old_fx.v[k];
        bool durable = e->type == FX_COMMIT || e->type == FX_FAIL || e->type == FX_BATCH_STATE;
        W_ASSERT(!durable || !knew, "a coordinator that knows that it was deposed writes on");
        if (durable || e->type == FX_CHARGE || e->type == FX_BATCH_REMOVE) store_write_as(w, e, w->old_term);
        /* Who connected to it is told as before: an answer of it must be as true as one of the leader's. */
        if (e->type == FX_ACK && e->u.ack.code == 0) hostile_kept(w, e);
    }
}

void hostile_kept(struct world *w, const struct farm_effect *e) {
    int i = world_find(w, e->batch);
    if (i >= 0) w->batches[i].kept[e->task] = (uint16_t)(w->batches[i].voids[e->task] + 1);
}

void hostile_old_answer(struct world *w, const struct farm_event *ev) {
    if (!w->old) return;
    old_step(w, ev);
    w->old_told |= ev->u.stored.code == KN_ETERM;
}

void hostile_old_forget(struct world *w) {
    farm_effects_fini(&w->old_fx);
    farm_destroy(w->old);
    w->old = NULL;
    w->old_fx = (struct farm_effects){0};
}

/* The coordinator is stopped, and another takes the lead: what the first had on its way arrives or not. */
static void stop_leader(struct world *w) {
    hostile_old_forget(w);
    w->old = w->farm;
    w->old_term = w->term;
    w->old_rate = w->rate;
    w->old_told = false;
    w->takeovers++;
    w->farm = NULL;
    coordinator_gone(w);
    store_go_on(w);
    for (int k = 0; k < 6; k++) world_at(w, w->now + world_below(w, 12000), W_OLD)->term = w->old_term;
}

/* It wakes, and somebody who is still connected to it has a wish. */
void hostile_old(struct world *w, const struct w_event *e) {
    if (!w->old || e->term != w->old_term || w->term == w->old_term) return;
    struct farm_event ev = {.type = EV_TICK};
    old_step(w, &ev);
    int i = (int)world_below(w, W_BATCHES);
    struct w_batch *b = &w->batches[i];
    if (!b->used || b->removed) return;
    static const enum farm_event_type wishes[] = {EV_BATCH_PAUSE, EV_BATCH_RESUME, EV_BATCH_RETRY,
                                                  EV_BATCH_REMOVE};
    ev.type = wishes[world_below(w, 4)];
    world_id(w, i, ev.u.batch.id, sizeof ev.u.batch.id);
    old_step(w, &ev);
}

/* ---- misfortunes */

/* A batch's state is on its way: a good time to find out that one of its pictures is damaged, and to die. A failure
 * is on its way: a good time for a retry. */
void hostile_write(struct world *w, const struct farm_effect *fx) {
    int i = world_find(w, fx->batch);
    struct w_batch *b = &w->batches[i < 0 ? 0 : i];
    if (fx->type == FX_FAIL && world_chance(w, 15))
        memcpy(world_at(w, w->now + world_below(w, 8), W_RETRY)->fx.batch, fx->batch, sizeof fx->batch);
    if (fx->type != FX_BATCH_STATE) return;
    if (i < 0 || b->log_count == 0) return;
    uint32_t t = b->log[world_below(w, b->log_count)];
    enum farm_task_state state;
    if (world_chance(w, 20) && b->end[t] == TASK_DONE &&
        farm_task_state(w->farm, fx->batch, t, &state) == 0 && state == TASK_DONE)
        store_void(w, i, t);
    if (world_chance(w, 10)) world_at(w, w->now + world_below(w, 30), W_DOOM);
}

void hostile_misfortune(struct world *w) {
    uint32_t dice = world_below(w, 100), i = world_below(w, w->worker_max);
    struct w_worker *v = &w->workers[i];
    if (dice < 2) {
        coordinator_crash(w);
        power_fails(w);
    } else if (dice < 4 && w->farm) {
        stop_leader(w);
    } else if (dice < 20 &&
               v->conn) { /* a picture that nobody asked it for: of another farm's life, or a lie */
        int k = (int)world_below(w, W_BATCHES);
        struct w_batch *b = &w->batches[k];
        uint32_t t = world_below(w, b->tasks);
        if (b->used && !b->removed && b->nature[t] == GOOD) worker_stray(w, i, k, t);
    } else if (dice < 26 && v->conn) { /* one way or both: nobody is told */
        uint64_t until = w->now + world_below(w, 9000);
        if (world_chance(w, 60)) v->deaf_until = until;
        if (world_chance(w, 60)) v->dumb_until = until;
        for (int k = 0; k < W_HELD; k++)
            for (uint32_t t = 0; v->held[k].used && t < v->held[k].count; t++)
                if (w->batches[v->held[k].batch].unlucky[v->held[k].tasks[t]] < UINT8_MAX)
                    w->batches[v->held[k].batch].unlucky[v->held[k].tasks[t]]++;
    }
}
