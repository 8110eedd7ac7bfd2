/* The workers of the simulated farm: they hold shards, render them one after another, keep what they rendered
 * until it is acknowledged, and say hello again with what they hold. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/world.h"

static struct w_shard *shard_find(struct w_worker *v, uint64_t id, uint64_t term) {
    for (int k = 0; k < W_HELD; k++)
        if (v->held[k].used && v->held[k].id == id && v->held[k].term == term) return &v->held[k];
    return NULL;
}

static struct w_shard *shard_running(struct w_worker *v) {
    for (int k = 0; k < W_HELD; k++)
        if (v->held[k].used && v->held[k].phase == PHASE_RUNS) return &v->held[k];
    return NULL;
}

/* A message to the coordinator over the control connection: in order, or lost with the connection. */
static struct w_event *send(struct world *w, uint32_t i, enum farm_event_type type) {
    struct w_worker *v = &w->workers[i];
    uint64_t at = w->now + 1 + world_below(w, w->chaos && world_chance(w, 2) ? 400 : 8);
    if (at < v->out_last) at = v->out_last;
    v->out_last = at;
    struct w_event *e = world_at(w, at, W_TO_FARM);
    e->worker = i;
    e->conn = v->conn;
    e->boot = w->boot;
    e->ev.type = type;
    e->ev.conn = v->conn;
    if (w->lossy && w->chaos && type != EV_WORKER_HELLO && world_chance(w, 1)) e->conn = 0; /* lost */
    if (w->now < v->dumb_until) e->conn = 0;
    return e;
}

/* An image to the coordinator: a way of its own, in any order, sometimes twice, sometimes never. */
static void send_result(struct world *w, uint32_t i, const struct w_shard *s, uint32_t k) {
    struct w_worker *v = &w->workers[i];
    if (!v->conn) return; /* sent again after the next hello */
    uint32_t copies = w->chaos && world_chance(w, 5) ? 2 : 1;
    for (uint32_t c = 0; c < copies; c++) {
        uint64_t at = w->now + 1 + world_below(w, w->chaos && world_chance(w, 5) ? 2000 : 20);
        struct w_event *e = world_at(w, at, W_TO_FARM);
        e->worker = i;
        e->conn = v->conn;
        e->boot = w->boot;
        e->ev.type = EV_RESULT;
        e->ev.conn = v->conn;
        if (w->now < v->dumb_until) e->conn = 0;
        struct ev_result *r = &e->ev.u.result;
        world_id(w, s->batch, r->batch, sizeof r->batch);
        r->task = s->tasks[k];
        r->attempt = 1;
        r->backend = (uint32_t)v->backend;
        uint64_t pixels = store_pixels(w, s->batch, s->tasks[k], (uint32_t)v->backend);
        memcpy(r->pixels, &pixels, sizeof pixels);
        memcpy(r->sha256, &pixels, sizeof pixels);
        r->worker = v->name;
        r->engine = "sim";
        r->render_ms = v->us_per_image / 1000;
    }
}

void worker_stray(struct world *w, uint32_t i, int batch, uint32_t task) {
    struct w_shard s = {.batch = batch, .tasks = {task}, .count = 1};
    send_result(w, i, &s, 0);
}

static bool shard_over(const struct w_shard *s) {
    for (uint32_t k = 0; k < s->count; k++)
        if (s->images[k] != IMAGE_OVER) return false;
    return s->phase == PHASE_THROUGH;
}

/* The time that an image of this shard takes; larger ones take longer, in proportion. */
static uint64_t image_ms(const struct world *w, const struct w_worker *v, const struct w_shard *s) {
    const struct w_batch *b = &w->batches[s->batch];
    const struct w_group *g = &b->groups[b->group[s->tasks[0]]];
    uint64_t us = (uint64_t)v->us_per_image * g->steps / 10 * (g->size * g->size) / (64 * 64);
    return us / 1000 + 1;
}

bool worker_sick(const struct world *w, const struct w_worker *v) {
    return v->defect != SOUND && w->now >= v->sick_ms && (v->sound_ms == 0 || w->now < v->sound_ms);
}

static void run_next(struct world *w, uint32_t i);

/* The probe picture is ready, or is not to be. */
void worker_probe(struct world *w, uint32_t i) {
    struct w_worker *v = &w->workers[i];
    enum defect defect = worker_sick(w, v) && !v->sly ? v->defect : SOUND;
    v->probing = false;
    if (!v->apart &&
        (defect == CRASHES || defect == FREEZES)) { /* one whose engine hangs leaves after a while */
        worker_die(w, i, false, true);
        return;
    }
    static const int codes[DEFECTS] = {
        [GIVES_NAN] = KN_ENAN,   [NO_MODEL] = KN_EMODEL, [ERRS] = KN_EIO,
        [ERRS_AT_ONCE] = KN_EIO, [CRASHES] = KN_EGONE,   [FREEZES] = KN_ETIMEOUT};
    if (v->conn) {
        struct w_event *e = send(w, i, EV_PROBED);
        e->ev.u.probed.probe = v->probe;
        e->ev.u.probed.code = codes[defect];
        e->ev.u.probed.reason = "it is sick";
    }
    v->probe = 0;
    run_next(w, i);
}

static void run_next(struct world *w, uint32_t i) {
    struct w_worker *v = &w->workers[i];
    if (shard_running(v) || v->hung || v->probing) return;
    if (v->probe) {
        v->probing = true;
        struct w_event *e = world_at(w, w->now + 20, W_PROBE);
        e->worker = i;
        e->instance = v->instance;
        return;
    }
    struct w_shard *s = NULL;
    int unacknowledged = 0;
    for (int k = 0; k < W_HELD; k++) unacknowledged += v->held[k].used && v->held[k].phase == PHASE_THROUGH;
    if (unacknowledged >= W_UNACKNOWLEDGED) return; /* until an acknowledgement comes */
    for (int k = 0; k < W_HELD; k++)
        if (v->held[k].used && v->held[k].phase == PHASE_WAITS && (!s || v->held[k].order < s->order))
            s = &v->held[k];
    if (!s) {
        if (v->draining && v->exits && v->conn) {
            bool clean = true;
            for (int k = 0; k < W_HELD; k++) clean &= !v->held[k].used;
            if (!clean) return;
            struct w_event *e = send(w, i, EV_WORKER_GONE);
            e->ev.u.gone.bye = true;
            v->alive = false;
            v->conn = 0;
        }
        return;
    }
    const struct w_batch *b = &w->batches[s->batch];
    uint32_t size = b->groups[b->group[s->tasks[0]]].size;
    s->phase = PHASE_RUNS;
    s->at = 0;
    s->begun_ms = w->now;
    v->serial++;
    v->progress_ms = w->now;
    if (v->conn) {
        struct w_event *e = send(w, i, EV_SHARD_STARTED);
        e->ev.u.shard.shard = s->id;
        e->ev.u.shard.term = s->term;
    }
    if (s->count * size * size > v->memory * 64 * 64 && s->count > 1) {
        if (v->conn) {
            struct w_event *e = send(w, i, EV_SHARD_RETURNED);
            e->ev.u.shard.shard = s->id;
            e->ev.u.shard.term = s->term;
            e->ev.u.shard.out_of_memory = true;
        }
        s->used = false;
        run_next(w, i);
        return;
    }
    uint64_t ms = worker_sick(w, v) &&
                          (v->defect == ERRS_AT_ONCE || v->defect == NO_MODEL || v->defect == BRINGS_NOTHING)
                      ? 0
                      : image_ms(w, v, s);
    struct w_event *e = world_at(w, w->now + ms * (v->whole ? s->count : 1), W_IMAGE);
    e->worker = i;
    e->instance = v->instance;
    e->serial = v->serial;
}

#define HANG_SEEN_MS 5000

/* Renders the k-th image; false: the worker did not survive, or hangs. */
static bool render(struct world *w, uint32_t i, struct w_shard *s, uint32_t k) {
    struct w_worker *v = &w->workers[i];
    enum nature nature = w->batches[s->batch].nature[s->tasks[k]];
    enum defect defect = worker_sick(w, v) ? v->defect : SOUND;
    if (defect == BRINGS_NOTHING) {
        s->images[k] = IMAGE_OVER;
        return true;
    }
    bool kills = defect == CRASHES || (nature == KILLS && defect == SOUND);
    bool hangs = defect == FREEZES || (nature == HANGS && defect == SOUND);
    if (kills && !v->apart) {
        worker_die(w, i, defect == CRASHES, true);
        return false;
    }
    if (hangs && !v->apart) {
        v->hung = true;
        return false;
    }
    if (hangs) v->late_ms = HANG_SEEN_MS;
    bool nan =
        defect == GIVES_NAN || nature == NAN_EVERYWHERE || (nature == NAN_ON_CLASS_0 && v->backend == 0);
    if (nan || kills || hangs || nature == FAILS || defect != SOUND) {
        if (defect != SOUND) w->batches[s->batch].unlucky[s->tasks[k]]++;
        if (v->conn) {
            struct w_event *e = send(w, i, EV_TASK_FAILED);
            struct ev_task_failed *f = &e->ev.u.task_failed;
            world_id(w, s->batch, f->batch, sizeof f->batch);
            f->task = s->tasks[k];
            f->shard = s->id;
            f->term = s->term;
            f->code = kills                                             ? KN_EGONE
                      : hangs                                           ? KN_ETIMEOUT
                      : defect == NO_MODEL                              ? KN_EMODEL
                      : nan && defect != ERRS && defect != ERRS_AT_ONCE ? KN_ENAN
                                                                        : KN_EIO;
            f->reason = nan ? "not a number" : "device failed";
        }
        s->images[k] = IMAGE_OVER;
        return true;
    }
    s->images[k] = IMAGE_SENT;
    send_result(w, i, s, k);
    return true;
}

void worker_image(struct world *w, uint32_t i) {
    struct w_worker *v = &w->workers[i];
    struct w_shard *s = shard_running(v);
    if (!s) return;
    v->progress_ms = w->now;
    uint32_t n = v->whole ? s->count : 1;
    if (v->whole && !v->apart) /* one bad image of a batch ends it before any of them is there */
        for (uint32_t k = 0; k < s->count; k++) {
            enum nature nature = w->batches[s->batch].nature[s->tasks[k]];
            if ((nature != KILLS && nature != HANGS) || worker_sick(w, v)) continue;
            (void)render(w, i, s, k);
            return;
        }
    for (uint32_t k = 0; k < n; k++)
        if (!render(w, i, s, s->at++)) return;
    if (s->at < s->count) {
        struct w_event *e = world_at(w, w->now + v->late_ms + image_ms(w, v, s), W_IMAGE);
        e->worker = i;
        e->instance = v->instance;
        e->serial = v->serial;
        v->late_ms = 0;
        return;
    }
    s->phase = PHASE_THROUGH;
    if (v->conn) {
        struct w_event *e = send(w, i, EV_SHARD_DONE);
        e->ev.u.shard.shard = s->id;
        e->ev.u.shard.term = s->term;
        e->ev.u.shard.render_ms = (uint32_t)(w->now - s->begun_ms);
    }
    if (shard_over(s)) s->used = false;
    run_next(w, i);
}

/* ---- connections */

static void hello(struct world *w, uint32_t i) {
    struct w_worker *v = &w->workers[i];
    struct w_event *e = send(w, i, EV_WORKER_HELLO);
    struct ev_worker_hello *h = &e->ev.u.hello;
    struct block {
        struct farm_held held[W_HELD];
        uint32_t tasks[W_HELD][KN_SHARD_TASKS_MAX];
        kn_digest models[W_MODELS];
    } *block = calloc(1, sizeof *block);
    W_ASSERT(block, "memory");
    e->block = block;
    h->worker = v->name;
    h->base = v->base;
    h->named_by_farm = v->named;
    h->has_machine = v->base[0];
    memcpy(h->machine, &v->machine, sizeof v->machine);
    h->answers = !v->mute;
    h->probes = !v->mute;
    memcpy(h->instance, &v->instance, sizeof v->instance);
    h->backend = v->backend == 0 ? "class-0" : "class-1";
    h->credit = v->credit;
    h->batch_max = v->batch_max;
    h->models = block->models;
    for (uint32_t m = 0; m < W_MODELS; m++)
        if (v->models[m]) memcpy(block->models[h->model_count++], &m, sizeof m);
    h->held = block->held;
    /* The running shard first, then those that wait, then those that are only unacknowledged. */
    for (int pass = 0; pass < 3; pass++)
        for (int k = 0; k < W_HELD; k++) {
            struct w_shard *s = &v->held[k];
            static const enum w_phase phase[] = {PHASE_RUNS, PHASE_WAITS, PHASE_THROUGH};
            if (!s->used || s->phase != phase[pass]) continue;
            struct farm_held *x = &block->held[h->held_count];
            x->shard = s->id;
            x->term = s->term;
            world_id(w, s->batch, x->batch, sizeof x->batch);
            x->tasks = block->tasks[h->held_count++];
            for (uint32_t t = 0; t < s->count; t++)
                if (s->images[t] != IMAGE_OVER)
                    block->tasks[h->held_count - 1][x->task_count++] = s->tasks[t];
        }
    for (int k = 0; k < W_HELD; k++)
        for (uint32_t t = 0; v->held[k].used && t < v->held[k].count; t++)
            if (v->held[k].images[t] == IMAGE_SENT) send_result(w, i, &v->held[k], t);
}

void worker_connect(struct world *w, uint32_t i) {
    struct w_worker *v = &w->workers[i];
    if (!v->alive || v->conn) return;
    v->conn = ++w->conn;
    v->out_last = v->in_last = w->now;
    if (world_chance(w, 20))
        worker_beat(w, i); /* it does not know that the other end forgot it */
    else
        hello(w, i);
}

/* The connection breaks; messages on their way may or may not arrive. */
void worker_cut(struct world *w, uint32_t i, bool tell) {
    struct w_worker *v = &w->workers[i];
    if (!v->conn) return;
    if (tell) {
        v->out_last = w->now + 50;
        struct w_event *e = send(w, i, EV_WORKER_GONE);
        e->ev.u.gone.reason = "unreachable";
    }
    if (world_chance(w, 50)) /* lost on the way */
        for (size_t k = 0; k < w->heap_count; k++)
            if (w->heap[k]->type == W_TO_FARM && w->heap[k]->conn == v->conn &&
                w->heap[k]->ev.type != EV_WORKER_GONE)
                w->heap[k]->conn = 0;
    v->conn = 0;
}

/* Tasks in hand when something happens that is not their fault: the core may charge them for it. */
static void pity(struct world *w, struct w_worker *v) {
    for (int k = 0; k < W_HELD; k++)
        for (uint32_t t = 0; v->held[k].used && t < v->held[k].count; t++) {
            uint8_t *n = &w->batches[v->held[k].batch].unlucky[v->held[k].tasks[t]];
            if (*n < UINT8_MAX) (*n)++;
        }
}

void worker_die(struct world *w, uint32_t i, bool unlucky, bool comes_back) {
    struct w_worker *v = &w->workers[i];
    if (!v->alive) return;
    w->deaths++;
    if (unlucky) pity(w, v);
    worker_cut(w, i, world_chance(w, 50));
    v->alive = v->hung = v->draining = v->exits = v->probing = false;
    v->probe = 0;
    memset(v->held, 0, sizeof v->held);
    v->serial++;
    if (comes_back) world_at(w, w->now + 100 + world_below(w, 3000), W_START)->worker = i;
}

void worker_begin(struct world *w, uint32_t i) {
    struct w_worker *v = &w->workers[i];
    if (v->alive) return;
    v->alive = true;
    v->instance++;
    v->order = v->question = 0;
    if (v->base[0]) snprintf(v->name, sizeof v->name, "%s-0", v->base); /* until the farm gives it one */
    v->named = false;
    worker_connect(w, i);
    v->beat_ms = w->hostile ? 400 + world_below(w, 250) : 500; /* by its own clock */
    struct w_event *e = world_at(w, w->now + v->beat_ms, W_BEAT);
    e->worker = i;
    e->instance = v->instance;
}

void worker_beat(struct world *w, uint32_t i) {
    struct w_worker *v = &w->workers[i];
    if (!v->conn) return;
    struct w_shard *s = shard_running(v);
    for (int k = 0; w->lossy && k < W_HELD; k++) /* acknowledgements may be lost: ask for them again */
        for (uint32_t t = 0; v->held[k].used && v->held[k].phase == PHASE_THROUGH && t < v->held[k].count;
             t++)
            if (v->held[k].images[t] == IMAGE_SENT && world_chance(w, 10)) send_result(w, i, &v->held[k], t);
    struct w_event *e = send(w, i, EV_WORKER_HEARTBEAT);
    e->ev.u.heartbeat.draining = v->draining;
    e->ev.u.heartbeat.answer = v->question;
    if (!s) return;
    e->ev.u.heartbeat.shard = s->id;
    e->ev.u.heartbeat.progress_age_ms = (uint32_t)(w->now - v->progress_ms);
}

/* ---- messages of the coordinator */

void worker_receive(struct world *w, uint32_t i, const struct farm_effect *fx) {
    struct w_worker *v = &w->workers[i];
    switch (fx->type) {
    case FX_GRANT: {
        int slot = 0, batch = world_find(w, fx->batch);
        uint32_t busy = 0;
        while (slot < W_HELD && v->held[slot].used) slot++;
        for (int k = 0; k < W_HELD; k++) busy += v->held[k].used && v->held[k].phase < PHASE_THROUGH;
        W_ASSERT(slot < W_HELD && batch >= 0, "worker %s cannot hold more", v->name);
        W_ASSERT(w->lossy || busy < v->credit, "worker %s: more than its credit", v->name);
        W_ASSERT(fx->u.grant.task_count <= v->batch_max, "more than batch_max");
        struct w_shard *s = &v->held[slot];
        *s = (struct w_shard){.used = true, .id = fx->u.grant.shard, .term = w->term, .batch = batch};
        s->count = fx->u.grant.task_count;
        memcpy(s->tasks, fx->u.grant.tasks, s->count * sizeof *s->tasks);
        s->order = ++v->order;
        for (uint32_t k = 0; k < s->count; k++)
            W_ASSERT(w->batches[batch].group[s->tasks[k]] == w->batches[batch].group[s->tasks[0]],
                     "a shard of two groups");
        break;
    }
    case FX_REVOKE: {
        struct w_shard *s = shard_find(v, fx->u.revoke.shard, fx->u.revoke.term);
        if (!s || s->phase == PHASE_THROUGH || (s->phase == PHASE_RUNS && !fx->u.revoke.abort)) break;
        if (s->phase == PHASE_RUNS && v->hung) { /* the engine does not answer: the process ends */
            worker_die(w, i, false, true);
            return;
        }
        if (s->phase == PHASE_RUNS) v->serial++;
        struct w_event *e = send(w, i, EV_SHARD_RETURNED);
        e->ev.u.shard.shard = s->id;
        e->ev.u.shard.term = s->term;
        bool open = false;
        for (uint32_t k = 0; k < s->count; k++) {
            if (s->images[k] == IMAGE_MISSING) s->images[k] = IMAGE_OVER;
            open |= s->images[k] == IMAGE_SENT;
        }
        s->phase = PHASE_THROUGH;
        if (!open) s->used = false;
        break;
    }
    case FX_ACK: {
        int batch = world_find(w, fx->batch);
        for (int k = 0; k < W_HELD; k++) {
            struct w_shard *s = &v->held[k];
            for (uint32_t t = 0; s->used && s->batch == batch && t < s->count; t++)
                if (s->tasks[t] == fx->task && s->images[t] == IMAGE_SENT) s->images[t] = IMAGE_OVER;
            if (s->used && (shard_over(s) || batch < 0)) s->used = s->used && !shard_over(s);
        }
        break;
    }
    case FX_PROBE:
        v->probe = fx->u.probe.probe;
        break;
    case FX_ASK:
        v->question = fx->u.ask.question;
        if (!v->mute) worker_beat(w, i);
        break;
    case FX_REFUSE: /* it ends, and its supervisor tries again */
        worker_die(w, i, true, true);
        return;
    case FX_HELLO_AGAIN:
        hello(w, i);
        break;
    case FX_DRAIN:
        v->draining = true;
        v->exits |= fx->u.drain.exit;
        for (int k = 0; k < W_HELD; k++) {
            struct w_shard *s = &v->held[k];
            if (!s->used || s->phase != PHASE_WAITS) continue;
            struct w_event *e = send(w, i, EV_SHARD_RETURNED);
            e->ev.u.shard.shard = s->id;
            e->ev.u.shard.term = s->term;
            s->used = false;
        }
        break;
    default:
        break;
    }
    run_next(w, i);
}
