/* Workers: how they come, stay and go. The contract is fleet.h, the data state.h.
 *
 * A worker is its name. A hello under that name with another instance number comes from a new process. As
 * long as the old one is connected it is asked first (name.c), and nobody is charged for that. If its
 * connection is broken it is dead, and the task that it was executing is charged (or the shard halved); if it
 * merely gives no answer, its work goes elsewhere and nobody is charged. The same instance over a new
 * connection keeps what it holds. A broken connection alone is no death yet: shards that had not begun go
 * elsewhere at once, the one that was executing gets until silence_ms (and may be rendered twice meanwhile,
 * tail.c). */
#include "coordinator/core/fleet.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/planted.h"
#include "coordinator/core/batch.h"
#include "coordinator/core/blame.h"
#include "coordinator/core/health.h"
#include "coordinator/core/name.h"
#include "coordinator/core/pool.h"
#include "coordinator/core/shard.h"
#include "coordinator/core/speed.h"
#include "coordinator/core/task.h"
#include "coordinator/core/trouble.h"
#include "coordinator/core/worker.h"

#define MEMORY_KILLS_MAX 3 /* of an image that was alone, before it is charged */

#define HELD_MAX 32 /* shards that a hello may name */

static uint32_t at_most(uint32_t n, uint32_t max) {
    return n < max ? n : max;
}

/* ---- coming and going */

static int worker_reserve(struct farm *f, struct farm_effects *fx, const struct worker *w, uint32_t more) {
    uint32_t tasks = more, shards = 0;
    for (const struct shard *s = w->shards; s; s = s->worker_next, shards++) tasks += s->left;
    return farm_reserve(f, fx, 3 * tasks + 2 * shards + 16, tasks + 1, tasks + 1);
}

static void worker_disconnect(struct farm *f, struct worker *w) {
    if (w->conn) kn_map_remove(f->worker_by_conn, &w->conn, sizeof w->conn);
    w->conn = 0;
    worker_recount(f, w);
}

/* The shard that a worker was executing when it died, or NULL. It is the one that began last, of those that
 * its last heartbeat named or that began since: a shard that a later heartbeat did not name was through, its
 * pictures on their way. If none is known to have begun, it is one that was lost too often already. */
static struct shard *worker_executing(struct worker *w) {
    struct shard *found = NULL;
    bool began = false;
    for (struct shard *s = w->shards; s; s = s->worker_next) {
        if (s->state != SHARD_STARTED) continue;
        began = true;
        if (s->id != w->running && s->started_ms < w->beat_ms) continue;
        if (!found || s->started_ms >= found->started_ms) found = s;
    }
    for (struct shard *s = w->shards; s && !found && !began; s = s->worker_next) {
        for (uint32_t i = 0; i < s->count && !found; i++)
            if (shard_holds(s, s->tasks[i]) && s->batch->tasks[s->tasks[i]].losses >= LOSSES_MAX) found = s;
    }
    return found;
}

/* A kill for want of memory, as it is for the shard that was executing: nobody is to blame, and the worker is given
 * fewer images at once from now on, as if it had handed the shard back. A single image leaves nothing to halve: it
 * is tried again, for it may have been another program that took the memory, but not for ever. */
static enum shard_fate fate_of_memory(struct worker *w, const struct shard *s) {
    if (s->count > 1) {
        speed_out_of_memory(w, s->shape_uid, s->count);
        return FATE_REQUEUE;
    }
    if (s->left > 0 && s->batch->tasks[s->tasks[0]].losses < MEMORY_KILLS_MAX) return FATE_LOST;
    speed_out_of_memory(w, s->shape_uid, s->count);
    return FATE_GUILTY;
}

/* The worker is at something else than its probe picture, or was told to stop it: if it ends now, that is why. */
static bool worker_busy(const struct worker *w) {
    for (const struct shard *s = w->shards; s; s = s->worker_next)
        if (s->state == SHARD_STARTED || s->state == SHARD_REVOKED) return true;
    return false;
}

/* All its shards end. code: what the one that was executing is charged with; 0: its process did not die, and nothing
 * is. Room is reserved by the caller. */
static void worker_lose(struct farm *f, struct worker *w, bool bye, int code, const char *reason,
                        struct farm_effects *fx) {
    struct shard *executing = code ? worker_executing(w) : NULL;
    if (code && !bye && !worker_busy(w)) health_ended(f, w, fx);
    w->probe = 0;
    worker_disconnect(f, w);
    w->lost = true;
    w->lost_ms = f->now;
    while (w->shards) {
        struct shard *s = w->shards;
        enum shard_fate fate = s == executing || (code && KN_PLANTED(DEATH_BLAMES_ALL)) ? FATE_GUILTY
                               : bye                                                    ? FATE_REQUEUE
                                                                                        : FATE_LOST;
        if (s == executing && code == KN_EOOM) fate = fate_of_memory(w, s);
        shard_end(f, s, fate, code, reason, fx);
    }
    w->running = 0;
    w->step = w->steps = 0;
    w->idle_since = 0;
    w->loaded = NULL;
}

static void models_drop(struct farm *f, struct worker_model *models, uint32_t count) {
    for (uint32_t k = 0; k < count; k++) pool_model_put(f, models[k].model);
    free(models);
}

void fleet_worker_destroy(struct farm *f, struct worker *w) {
    if (!w) return;
    models_drop(f, w->models, w->model_count);
    free(w);
}

/* Forgets a lost worker; it has no shards. */
static void worker_forget(struct farm *f, size_t i) {
    struct worker *w = f->workers[i];
    assert(w->lost && !w->shards && !w->counted && !w->conn);
    if (w->hold_fresh) f->holds_fresh--;
    for (struct worker **at = &f->woken; w->woken && *at; at = &(*at)->woken_next)
        if (*at == w) {
            *at = w->woken_next;
            break;
        }
    kn_map_remove(f->worker_by_name, w->name, strlen(w->name));
    f->worker_count--;
    memmove(&f->workers[i], &f->workers[i + 1], (f->worker_count - i) * sizeof *f->workers);
    fleet_worker_destroy(f, w);
}

static int worker_create(struct farm *f, const char *name, struct worker **out) {
    size_t len = strlen(name);
    if (len == 0 || len > KN_NAME_MAX) return KN_EINVAL;
    if (f->worker_count >= KN_WORKERS_MAX) { /* the one lost for longest makes room */
        size_t oldest = f->worker_count;
        for (size_t i = 0; i < f->worker_count; i++)
            if (f->workers[i]->lost &&
                (oldest == f->worker_count || f->workers[i]->lost_ms < f->workers[oldest]->lost_ms))
                oldest = i;
        if (oldest == f->worker_count) return KN_ELIMIT;
        worker_forget(f, oldest);
    }
    if (f->worker_count == f->worker_cap) {
        size_t cap = f->worker_cap ? f->worker_cap * 2 : 16;
        struct worker **v = realloc(f->workers, cap * sizeof(struct worker *));
        if (!v) return KN_ENOMEM;
        f->workers = v;
        struct worker **order = realloc(f->order, cap * sizeof(struct worker *));
        if (!order) return KN_ENOMEM;
        f->order = order;
        f->worker_cap = cap;
    }
    struct worker *w = calloc(1, sizeof *w);
    if (!w) return KN_ENOMEM;
    memcpy(w->name, name, len + 1);
    w->lost = true; /* until the hello is through */
    int rc = kn_map_put(f->worker_by_name, name, len, w);
    if (rc) {
        free(w);
        return rc;
    }
    w->uid = ++f->worker_uid;
    f->workers[f->worker_count++] = w;
    *out = w;
    return KN_OK;
}

static int models_copy(struct farm *f, const struct ev_worker_hello *h, struct worker_model **out,
                       uint32_t *count) {
    struct worker_model *models = calloc(h->model_count + 1, sizeof *models);
    if (!models) return KN_ENOMEM;
    uint32_t n = 0;
    for (uint32_t k = 0; k < h->model_count; k++) {
        struct model *m;
        int rc = pool_model_get(f, h->models[k], &m);
        if (rc) {
            models_drop(f, models, n);
            return rc;
        }
        bool twice = false;
        for (uint32_t i = 0; i < n; i++) twice |= models[i].model == m;
        if (twice)
            pool_model_put(f, m);
        else
            models[n++].model = m;
    }
    *out = models;
    *count = n;
    return KN_OK;
}

/* Replaces the models that the worker has; a speed that was measured on the same class stays. */
static void models_replace(struct farm *f, struct worker *w, struct worker_model *models, uint32_t count,
                           uint16_t backend) {
    pool_worker_leave(w);
    if (w->backend != backend) w->shape_count = 0;
    bool loaded = false;
    for (uint32_t k = 0; k < count; k++) {
        struct worker_model *old = w->backend == backend ? worker_model_of(w, models[k].model) : NULL;
        if (old) models[k].speed = old->speed;
        loaded |= w->loaded == models[k].model;
    }
    if (!loaded) w->loaded = NULL;
    models_drop(f, w->models, w->model_count);
    w->models = models;
    w->model_count = count;
    w->backend = backend;
}

static void hello_revoke(const struct worker *w, uint64_t shard, uint64_t term, struct farm_effects *fx) {
    struct farm_effect *e = fx_add(fx, FX_REVOKE);
    e->conn = w->conn;
    e->u.revoke.shard = shard;
    e->u.revoke.term = term;
    e->u.revoke.abort = true;
}

static bool held_lists(const struct farm_held *held, uint32_t t) {
    for (uint32_t i = 0; i < held->task_count; i++)
        if (held->tasks[i] == t) return true;
    return false;
}

/* The same process over a new connection: shards that it still holds go on, the others end. */
static void hello_reconcile(struct farm *f, struct worker *w, const struct ev_worker_hello *h,
                            struct farm_effects *fx) {
    struct shard *next;
    for (struct shard *s = w->shards; s; s = next) {
        next = s->worker_next;
        const struct farm_held *held = NULL;
        for (uint32_t i = 0; i < h->held_count && !held; i++)
            if (h->held[i].shard == s->id && h->held[i].term == s->term) held = &h->held[i];
        if (!held) {
            shard_end(f, s, FATE_REQUEUE, 0, NULL, fx);
            continue;
        }
        if (s->state == SHARD_REVOKED) { /* it may not have heard */
            hello_revoke(w, s->id, s->term, fx);
            shard_end(f, s, FATE_REQUEUE, 0, NULL, fx);
            continue;
        }
        s->alive_ms = f->now;
        for (uint32_t i = 0; i < s->count && s->left > 0; i++) {
            uint32_t t = s->tasks[i];
            if (!shard_holds(s, t) || held_lists(held, t)) continue;
            struct batch *b = s->batch;
            shard_drop(f, s, t);
            if (b->tasks[t].a == NONE) blame_requeue(f, b, &t, 1, fx);
        }
        if (s->left == 0 && (s->state == SHARD_SENT || s->state == SHARD_OWED))
            shard_end(f, s, FATE_REQUEUE, 0, NULL, fx); /* nothing of it is awaited any more */
    }
}

/* A shard that is not known here: of another term, or ended while the worker was away. Those of its tasks
 * that are still wanted are adopted, if it was granted at all. */
static void hello_adopt(struct farm *f, struct worker *w, const struct farm_held *held,
                        struct farm_effects *fx) {
    uint32_t tasks[KN_SHARD_TASKS_MAX], count = 0, group = 0;
    struct batch *b = held->unproven ? NULL : batch_find(f, held->batch);
    for (uint32_t i = 0; b && batch_live(b) && i < held->task_count && count < KN_SHARD_TASKS_MAX; i++) {
        uint32_t t = held->tasks[i];
        if (t >= b->total) continue;
        struct task *task = &b->tasks[t];
        bool twice = false;
        for (uint32_t k = 0; k < count; k++) twice |= tasks[k] == t;
        if (twice || (count > 0 && task->group != group)) continue;
        if (task->state == TASK_QUEUED || (task->state == TASK_GRANTED && task->b == NONE)) {
            if (task->state == TASK_GRANTED && ((struct shard *)slab_at(&f->shards, task->a))->worker == w)
                continue;
            group = task->group;
            tasks[count++] = t;
        }
    }
    if (b && b->pin && b->pin->backend != w->backend) count = 0;
    for (uint32_t i = 0; i < count; i++)
        if (b->tasks[tasks[i]].state == TASK_QUEUED) {
            task_unqueue(f, b, tasks[i]);
            task_set(f, b, tasks[i], TASK_GRANTED);
        }
    if (count > 0 && shard_adopt(f, w, b, held, tasks, count)) return;
    for (uint32_t i = count; i-- > 0;)
        if (b->tasks[tasks[i]].a == NONE) blame_requeue(f, b, &tasks[i], 1, fx);
    hello_revoke(w, held->shard, held->term, fx); /* nothing of it is wanted */
}

/* Everything that a hello needs, made before anything of the farm is changed. */
struct hello {
    const char *name;      /* borrowed, as name_of_hello() gives it */
    struct worker *worker; /* found, or made and lost until the hello is through */
    uint32_t backend;
    struct worker_model *models; /* the worker's, once models_replace has them */
    uint32_t model_count;
    bool moved; /* over another connection than before */
};

/* The part of a hello that can fail. */
static int hello_prepare(struct farm *f, uint64_t conn, const struct ev_worker_hello *h, struct hello *x,
                         struct farm_effects *fx) {
    uint32_t held_tasks = 0;
    for (uint32_t i = 0; i < h->held_count; i++)
        held_tasks += at_most(h->held[i].task_count, KN_SHARD_TASKS_MAX);
    struct worker *w = worker_by_name(f, x->name), *other = worker_by_conn(f, conn);
    if (other && other != w) return KN_ESTATE; /* one connection, one worker */
    int rc = farm_backend(f, h->backend, &x->backend);
    if (rc == 0 && !w) rc = worker_create(f, x->name, &w);
    if (rc == 0) rc = worker_reserve(f, fx, w, held_tasks + HELD_MAX);
    if (rc == 0) rc = models_copy(f, h, &x->models, &x->model_count);
    if (rc) return rc;
    x->worker = w;
    x->moved = other != w;
    if (!x->moved) return KN_OK;
    rc = kn_map_put(f->worker_by_conn, &conn, sizeof conn, w);
    if (rc) models_drop(f, x->models, x->model_count);
    return rc;
}

/* Another process under the same name: the old one is dead, and what it was executing is charged. */
static void hello_new_process(struct farm *f, struct worker *w, const struct ev_worker_hello *h,
                              struct farm_effects *fx) {
    if (!w->lost) {
        char reason[KN_REASON_MAX];
        bool memory = h->died_of_memory;
        snprintf(reason, sizeof reason,
                 memory ? "out of memory: the kernel killed worker %s while it rendered this image alone"
                        : "worker %s died while it rendered this image",
                 w->name);
        if (memory) fx_note(fx, FX_NOTE, NULL, "out_of_memory worker=%s: killed by the kernel", w->name);
        uint64_t conn = w->conn;
        w->conn = 0; /* the new process is not to be told of revokes that concern the old one */
        worker_lose(f, w, false, memory ? KN_EOOM : KN_EGONE, reason, fx);
        w->conn = conn;
    }
    memcpy(w->instance, h->instance, sizeof w->instance);
    w->drain_wish = w->drain_said = false;
    health_restarted(f, w, fx);
}

/* A worker that can hold fewer shards than it holds keeps the first ones; of the others only images are
 * awaited. */
static void hello_fit_credit(struct worker *w) {
    for (struct shard *s = w->shards_last; s && w->held > w->credit; s = s->worker_prev) {
        if (s->state == SHARD_SENT) continue;
        w->held--;
        w->sent++;
        s->state = SHARD_SENT;
    }
}

int fleet_hello(struct farm *f, uint64_t conn, const struct ev_worker_hello *h, struct farm_effects *fx) {
    struct hello x = {0};
    char room[KN_NAME_MAX + 1];
    if (!conn || h->model_count > KN_MODELS_PER_WORKER_MAX || h->held_count > HELD_MAX) return KN_EINVAL;
    int rc = name_of_hello(f, conn, h, room, &x.name, fx);
    if (rc == 0) rc = hello_prepare(f, conn, h, &x, fx);
    if (rc) return rc;
    struct worker *w = x.worker;
    struct farm_effect *welcome = fx_add(fx, FX_WELCOME);
    welcome->conn = conn;
    welcome->u.welcome.worker =
        w->name; /* not a copy, for which memory may be lacking: the name is an answer */
    if (x.moved) {
        uint64_t before = w->conn;
        if (before) kn_map_remove(f->worker_by_conn, &before, sizeof before);
        w->conn = conn;
    }
    w->can_probe = h->probes;
    bool known = memcmp(w->instance, h->instance, sizeof w->instance) == 0;
    /* Said twice over one connection (two FX_HELLO_AGAIN crossed it): shards granted between the two are on
     * their way and cannot be in its list, so the list is not looked at. */
    bool again = known && !x.moved && !w->lost && !w->resync;
    w->resync = false;
    if (!known) hello_new_process(f, w, h, fx);
    name_keep(w, h);
    models_replace(f, w, x.models, x.model_count, (uint16_t)x.backend);
    w->lost = w->left = false;
    w->seen_ms = f->now;
    w->cool_until = 0;
    w->credit = at_most(h->credit < 1 ? 1 : h->credit, KN_SHARDS_PER_WORKER_MAX);
    w->batch_max = at_most(h->batch_max < 1 ? 1 : h->batch_max, KN_SHARD_TASKS_MAX);
    w->features = h->features;
    if (!known || x.moved) worker_said_hello(w);
    if (!again) {
        w->running = w->idle_since = w->unknown_since = 0;
        hello_reconcile(f, w, h, fx);
    }
    hello_fit_credit(w);
    for (uint32_t i = 0; i < h->held_count && !again; i++)
        if (!shard_find(w, h->held[i].shard, h->held[i].term)) hello_adopt(f, w, &h->held[i], fx);
    if (x.moved) health_arrived(f, w, fx);
    worker_recount(f, w);
    worker_wake(f, w);
    return KN_OK;
}

/* A heartbeat that names a shard is a sign of life of it. False: the worker has no such shard. */
static bool heartbeat_of_shard(struct farm *f, struct worker *w, const struct ev_worker_heartbeat *h) {
    bool found = false;
    for (struct shard *s = w->shards; s; s = s->worker_next) {
        if (s->id != h->shard) continue;
        found = true;
        if (s->state == SHARD_WAITING) shard_started(f, s);
        uint64_t age = h->progress_age_ms < f->now ? h->progress_age_ms : f->now;
        if (f->now - age > s->alive_ms) s->alive_ms = f->now - age;
        if (s->alive_ms > w->moved_ms) w->moved_ms = s->alive_ms;
        s->step = h->step;
        s->steps = h->steps;
        s->minibatch = h->minibatch ? h->minibatch : 1;
        s->minibatch_step = h->step;
        if (s->batch) speed_steps(f, s->batch, s);
    }
    return found;
}

int fleet_heartbeat(struct farm *f, struct worker *w, const struct ev_worker_heartbeat *h,
                    struct farm_effects *fx) {
    int rc = fx_reserve(fx, 4);
    if (rc) return rc;
    name_answer(w, h->answer);
    w->running = h->shard;
    w->beat_ms = f->now;
    w->step = h->shard ? h->step : 0;
    w->steps = h->shard ? h->steps : 0;
    w->drain_said = h->draining;
    if (h->has_model) {
        struct model *m = kn_map_get(f->model_by_digest, h->model, sizeof h->model);
        /* While it holds shards, the model of the last grant counts: it will be loaded by then. */
        if (m && worker_model_of(w, m) && (w->held == 0 || !w->loaded)) w->loaded = m;
    }
    bool unknown = h->shard != 0 && !heartbeat_of_shard(f, w, h);
    if (h->shard)
        w->idle_since = 0;
    else if (!w->idle_since)
        w->idle_since = f->now ? f->now : 1;
    if (!unknown) {
        w->unknown_since = 0;
    } else if (!w->unknown_since) {
        w->unknown_since = f->now ? f->now : 1;
    } else if (f->now - w->unknown_since >= f->config.silence_ms) { /* our last word to it was lost */
        w->unknown_since = f->now;
        w->resync = true;
        w->cool_until = f->now + f->config.silence_ms; /* grants on their way arrive before it answers */
        fx_add(fx, FX_HELLO_AGAIN)->conn = w->conn;
    }
    worker_recount(f, w);
    return KN_OK;
}

int fleet_gone(struct farm *f, struct worker *w, const struct farm_event *ev, struct farm_effects *fx) {
    bool bye = ev->u.gone.bye;
    const char *reason = ev->u.gone.reason;
    int rc = worker_reserve(f, fx, w, 0);
    if (rc) return rc;
    fx_note(fx, FX_NOTE, NULL, "worker_%s worker=%s: %s", bye ? "left" : "unreachable", w->name,
            reason ? reason : "");
    if (bye) { /* it handed back what it could: a shard that it was executing all the same made it go */
        worker_lose(f, w, true, ev->u.gone.revoked ? 0 : KN_EGONE,
                    reason && *reason ? reason : "its worker left", fx);
        w->left = true;
        return KN_OK;
    }
    if (worker_busy(w)) w->probe = 0; /* asked for again when it is back */
    worker_disconnect(f, w);
    struct shard *next;
    for (struct shard *s = w->shards; s; s = next) {
        next = s->worker_next;
        if (s->state == SHARD_REVOKED || s->state == SHARD_WAITING)
            shard_end(f, s, FATE_REQUEUE, 0, NULL, fx);
    }
    return KN_OK;
}

int fleet_drain(struct farm *f, const char *name, bool exit, struct farm_effects *fx) {
    struct worker *w = worker_by_name(f, name);
    if (!w || !w->conn) return KN_ENOENT;
    int rc = fx_reserve(fx, 4);
    if (rc) return rc;
    w->drain_wish = true;
    worker_recount(f, w);
    struct farm_effect *e = fx_add(fx, FX_DRAIN);
    e->conn = w->conn;
    e->u.drain.exit = exit;
    e->u.drain.reason = "asked to";
    return KN_OK;
}

void fleet_holds(struct farm *f, struct farm_effects *fx) {
    for (size_t i = 0; f->holds_fresh > 0 && i < f->worker_count; i++) {
        struct worker *w = f->workers[i];
        if (!w->hold_fresh) continue;
        if (worker_reserve(f, fx, w, 0)) return; /* the next step tries again */
        w->hold_fresh = false;
        f->holds_fresh--;
        struct shard *next;
        for (struct shard *s = w->shards; s; s = next) {
            next = s->worker_next;
            if (s->state == SHARD_OWED)
                shard_end(f, s, FATE_LOST, 0, NULL, fx);
            else if (s->state == SHARD_WAITING || s->state == SHARD_STARTED)
                shard_withdraw(f, s, true, FATE_REQUEUE, fx);
        }
    }
}

void fleet_rivals(struct farm *f, struct farm_effects *fx) {
    struct worker *w;
    for (uint32_t i = 0; f->rival_count > 0 && i < RIVALS_MAX; i++) {
        struct rival *r = &f->rivals[i];
        if (!name_settle(f, r, fx)) continue;
        while ((w = name_silent(f, r))) {
            if (worker_reserve(f, fx, w, 0)) return; /* the next step tries again */
            fx_note(fx, FX_NOTE, NULL, "worker_replaced worker=%s: it gave no answer for %llu ms", w->name,
                    (unsigned long long)(f->now - r->since_ms));
            worker_lose(f, w, false, 0, "its worker gave no answer", fx);
        }
        (void)name_settle(f, r, fx);
    }
}

void fleet_sweep(struct farm *f, struct farm_effects *fx) {
    for (size_t i = 0; i < f->worker_count; i++) {
        struct worker *w = f->workers[i];
        if (w->lost) {
            if (f->now - w->lost_ms >= LOST_KEEP_MS) worker_forget(f, i--);
            continue;
        }
        if (f->now - w->seen_ms >= f->config.silence_ms && !KN_PLANTED(SILENCE_IGNORED)) {
            if (worker_reserve(f, fx, w, 0)) return; /* the next tick tries again */
            char reason[KN_REASON_MAX];
            snprintf(reason, sizeof reason, "worker %s fell silent while it rendered this image", w->name);
            fx_note(fx, FX_NOTE, NULL, "worker_lost worker=%s silent_ms=%llu", w->name,
                    (unsigned long long)(f->now - w->seen_ms));
            worker_lose(f, w, false, KN_EGONE, reason, fx);
            continue;
        }
        if (w->shards) shard_sweep(f, w, fx);
    }
}
