/* Time, randomness, the coordinator's shell and the person of the simulated farm. */
#include "tests/sim/world.h"

#include "base/planted.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHAOS_EVERY_MS 150
#define HEALED_MS 3600000 /* everything must have ended by then, once nothing goes wrong any more */

static struct world *failing; /* whose story is told when an assertion fails */

_Noreturn void world_fail(const char *file, int line, const char *cond, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "%s:%d: not so: %s: ", file, line, cond);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\nseed %llu, step %llu, at %llu ms\n", (unsigned long long)failing->seed,
            (unsigned long long)failing->steps, (unsigned long long)failing->now);
    abort();
}

/* An assertion of the core ends here too: it knows of no seed. */
static void tell_seed(int number) {
    (void)number;
    char text[64];
    int n = snprintf(text, sizeof text, "seed %llu, step %llu\n", (unsigned long long)failing->seed,
                     (unsigned long long)failing->steps);
    if (write(STDERR_FILENO, text, (size_t)n) < 0) _exit(134);
}

uint64_t world_random(struct world *w) { /* splitmix64 */
    uint64_t z = (w->rng += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint32_t world_below(struct world *w, uint32_t n) {
    return n ? (uint32_t)(world_random(w) % n) : 0;
}

bool world_chance(struct world *w, uint32_t percent) {
    return world_below(w, 100) < percent;
}

/* ---- events to come: a heap by time, then by order of making */

static bool before(const struct w_event *a, const struct w_event *b) {
    return a->at != b->at ? a->at < b->at : a->seq < b->seq;
}

struct w_event *world_at(struct world *w, uint64_t at, enum w_event_type type) {
    if (w->heap_count == w->heap_cap) {
        w->heap_cap = w->heap_cap ? w->heap_cap * 2 : 256;
        w->heap = realloc(w->heap, w->heap_cap * sizeof(struct w_event *));
        W_ASSERT(w->heap, "memory");
    }
    struct w_event *e = calloc(1, sizeof *e);
    W_ASSERT(e, "memory");
    e->at = at;
    e->seq = ++w->seq;
    e->type = type;
    size_t i = w->heap_count++;
    while (i > 0 && before(e, w->heap[(i - 1) / 2])) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = e;
    return e;
}

static struct w_event *next_event(struct world *w) {
    struct w_event *top = w->heap[0], *last = w->heap[--w->heap_count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= w->heap_count) break;
        if (child + 1 < w->heap_count && before(w->heap[child + 1], w->heap[child])) child++;
        if (!before(w->heap[child], last)) break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    if (w->heap_count > 0) w->heap[i] = last;
    return top;
}

static void free_event(struct w_event *e) {
    free(e->block);
    free(e);
}

/* ---- the coordinator's shell */

/* A hello is taken: no process that is there may lose its name by it. */
static void take_name(struct world *w, const struct farm_effect *e) {
    struct w_worker *taken = NULL;
    for (uint32_t i = 0; i < w->worker_max; i++)
        if (w->workers[i].alive && w->workers[i].conn == e->conn) taken = &w->workers[i];
    if (!taken) return; /* it is gone meanwhile */
    W_ASSERT(taken->base[0] || strcmp(taken->name, e->u.welcome.worker) == 0,
             "%s: another name was chosen: %s", taken->name, e->u.welcome.worker);
    if (taken->base[0]) {
        W_ASSERT(strncmp(e->u.welcome.worker, taken->base, strlen(taken->base)) == 0, "%s of %s",
                 e->u.welcome.worker, taken->base);
        snprintf(taken->name, sizeof taken->name, "%s", e->u.welcome.worker);
        taken->named = true;
    }
    taken->taken = taken->conn;
    for (uint32_t i = 0; i < w->worker_max && !w->lossy; i++) {
        const struct w_worker *v = &w->workers[i];
        bool there = v != taken && v->alive && v->conn && v->taken == v->conn;
        W_ASSERT(!there || strcmp(v->name, taken->name) != 0, "%s: taken from one who is there", v->name);
    }
}

void world_id(const struct world *w, int batch, uint8_t *id, size_t size) {
    memset(id, 0, size);
    memcpy(id, &w->batches[batch].number, sizeof w->batches[batch].number);
}

int world_find(const struct world *w, const kn_id id) {
    int number;
    memcpy(&number, id, sizeof number);
    for (int i = 0; i < W_BATCHES; i++)
        if (w->batches[i].used && w->batches[i].number == number) return i;
    return -1;
}

static void hash_number(struct world *w, uint64_t n) {
    w->hash = kn_hash64(&n, sizeof n, w->hash);
}

static void hash_bytes(struct world *w, const void *bytes, size_t size) {
    w->hash = kn_hash64(bytes, size, w->hash);
}

static void hash_text(struct world *w, const char *text) {
    hash_bytes(w, text ? text : "", text ? strlen(text) : 0);
}

/* Every field of an effect goes into the digest of the history, and when it came. */
static void hash_effect(struct world *w, const struct farm_effect *e) {
    hash_number(w, e->type);
    hash_number(w, e->conn);
    hash_number(w, e->task);
    hash_number(w, w->now);
    hash_bytes(w, e->batch, sizeof e->batch);
    switch (e->type) {
    case FX_GRANT:
        hash_number(w, e->u.grant.shard);
        hash_number(w, e->u.grant.attempt);
        hash_bytes(w, e->u.grant.model, sizeof e->u.grant.model);
        hash_bytes(w, e->u.grant.tasks, e->u.grant.task_count * sizeof *e->u.grant.tasks);
        break;
    case FX_REVOKE:
        hash_number(w, e->u.revoke.shard);
        hash_number(w, e->u.revoke.term);
        hash_number(w, e->u.revoke.abort);
        break;
    case FX_COMMIT:
        hash_number(w, e->u.commit.attempt);
        hash_number(w, e->u.commit.render_ms);
        hash_number(w, e->u.commit.backend);
        hash_bytes(w, e->u.commit.sha256, sizeof e->u.commit.sha256);
        hash_bytes(w, e->u.commit.pixels, sizeof e->u.commit.pixels);
        hash_number(w, e->u.commit.flat);
        hash_text(w, e->u.commit.worker);
        hash_text(w, e->u.commit.engine);
        break;
    case FX_FAIL:
        hash_number(w, (uint64_t)e->u.fail.code);
        hash_number(w, e->u.fail.attempt);
        hash_text(w, e->u.fail.reason);
        hash_text(w, e->u.fail.worker);
        break;
    case FX_CHARGE:
        hash_number(w, e->u.charge.charges);
        hash_text(w, e->u.charge.reason);
        break;
    case FX_BATCH_STATE:
        hash_number(w, e->u.batch_state.state);
        hash_number(w, (uint64_t)e->u.batch_state.priority);
        hash_number(w, e->u.batch_state.retried);
        break;
    case FX_ACK:
        hash_number(w, (uint64_t)e->u.ack.code);
        break;
    case FX_DRAIN:
        hash_number(w, e->u.drain.exit);
        hash_text(w, e->u.drain.reason);
        break;
    case FX_WELCOME:
        hash_text(w, e->u.welcome.worker);
        break;
    case FX_REFUSE:
        hash_text(w, e->u.refuse.worker);
        break;
    case FX_ASK:
        hash_number(w, e->u.ask.question);
        break;
    case FX_PROBE:
        hash_number(w, e->u.probe.probe);
        hash_bytes(w, e->u.probe.model, sizeof e->u.probe.model);
        break;
    case FX_ALARM:
    case FX_NOTE:
        hash_text(w, e->u.note.text);
        break;
    case FX_BATCH_REMOVE:
    case FX_HELLO_AGAIN:
        break;
    }
}

static void trace_effect(const struct world *w, const struct farm_effect *e) {
    static const char *names[] = {"grant",  "revoke", "commit",  "fail",   "charge", "state",
                                  "remove", "ack",    "welcome", "refuse", "ask",    "hello_again",
                                  "drain",  "probe",  "alarm",   "note"};
    int number;
    memcpy(&number, e->batch, sizeof number);
    printf("%8llu   -> %s conn=%llu batch=%d task=%u", (unsigned long long)w->now, names[e->type],
           (unsigned long long)e->conn, number, e->task);
    if (e->type == FX_GRANT) {
        printf(" shard=%llu:", (unsigned long long)e->u.grant.shard);
        for (uint32_t i = 0; i < e->u.grant.task_count; i++) printf(" %u", e->u.grant.tasks[i]);
    }
    if (e->type == FX_REVOKE)
        printf(" shard=%llu abort=%d", (unsigned long long)e->u.revoke.shard, e->u.revoke.abort);
    if (e->type == FX_FAIL) printf(" %s", e->u.fail.reason);
    if (e->type == FX_CHARGE) printf(" %u %s", e->u.charge.charges, e->u.charge.reason);
    if (e->type == FX_NOTE || e->type == FX_ALARM) printf(" %s", e->u.note.text);
    if (e->type == FX_BATCH_STATE) printf(" %u", e->u.batch_state.state);
    printf("\n");
}

static void to_worker(struct world *w, const struct farm_effect *fx) {
    for (uint32_t i = 0; i < w->worker_max; i++) {
        struct w_worker *v = &w->workers[i];
        if (!v->alive || v->conn != fx->conn) continue;
        uint64_t at = w->now + 1 + world_below(w, w->chaos && world_chance(w, 2) ? 400 : 8);
        if (at < v->in_last) at = v->in_last;
        v->in_last = at;
        struct w_event *e = world_at(w, at, W_TO_WORKER);
        e->worker = i;
        e->conn = fx->conn;
        e->fx = *fx;
        if (w->now < v->deaf_until) e->conn = 0;
        if (w->lossy && w->chaos && world_chance(w, 1)) e->conn = 0;
        if (fx->type != FX_GRANT) return;
        size_t size = fx->u.grant.task_count * sizeof(uint32_t);
        e->block = malloc(size);
        W_ASSERT(e->block, "memory");
        memcpy(e->block, fx->u.grant.tasks, size);
        e->fx.u.grant.tasks = e->block;
        return;
    }
}

/* A person's wish is answered once the core says that it is settled: then the store has it, whatever dies next. */
static void answer_wishes(struct world *w) {
    for (int i = 0; i < W_BATCHES; i++) {
        struct w_batch *b = &w->batches[i];
        struct farm_batch_view v;
        kn_id id;
        if (!b->wished) continue;
        world_id(w, i, id, sizeof id);
        if (!farm_batch_settled(w->farm, id)) continue;
        b->wished = false;
        if (b->removed || farm_batch_view(w->farm, id, world_clock(w, w->rate), &v) != 0) continue;
        w->answers++;
        b->answered = v.state;
        W_ASSERT(v.state == b->state, "batch %d: answered %s, and the store has %s", i,
                 kn_batch_state_name(v.state), kn_batch_state_name(b->state));
        W_ASSERT(v.priority == b->priority, "batch %d: answered priority %d, and the store has %d", i,
                 v.priority, b->priority);
    }
}

int world_step(struct world *w, const struct farm_event *ev) {
    if (!w->farm) return 0;
    farm_effects_clear(&w->fx);
    memory_starve(w->starved && w->chaos ? w : NULL);
    if (w->trace)
        printf("%8llu event %d conn=%llu\n", (unsigned long long)w->now, (int)ev->type,
               (unsigned long long)ev->conn);
    uint64_t now = world_clock(w, w->rate);
    int rc = farm_step(w->farm, ev, now, &w->fx);
    memory_starve(NULL);
    w->steps++;
    farm_check(w->farm);
    if (rc == KN_ENOMEM) rc = farm_step(w->farm, ev, now, &w->fx); /* nothing was changed: once more */
    farm_check(w->farm);
    hash_number(w, (uint64_t)rc);
    for (size_t i = 0; i < w->fx.count; i++) {
        const struct farm_effect *e = &w->fx.v[i];
        hash_effect(w, e);
        if (w->trace) trace_effect(w, e);
        switch (e->type) {
        case FX_COMMIT:
        case FX_FAIL:
        case FX_CHARGE:
        case FX_BATCH_STATE:
        case FX_BATCH_REMOVE:
            store_write(w, e);
            break;
        case FX_ALARM:
            w->alarms++;
            W_ASSERT(strncmp(e->u.note.text, "duplicate", 9) != 0, "%s", e->u.note.text);
            break;
        case FX_NOTE:
            break;
        case FX_WELCOME:
            take_name(w, e);
            break;
        default:
            w->asked += e->type == FX_ASK;
            w->grants += e->type == FX_GRANT;
            w->refusals += e->type == FX_REFUSE;
            if (w->hostile && e->type == FX_ACK && e->u.ack.code == 0) hostile_kept(w, e);
            to_worker(w, e);
        }
    }
    answer_wishes(w);
    if (w->hostile) hostile_agree(w);
    return rc;
}

static void coordinator_start(struct world *w) {
    struct farm_config c;
    farm_config_default(&c);
    c.term = ++w->term;
    w->lead = w->term;
    if (w->hostile) w->rate = 900 + world_below(w, 200);
    if (w->hostile) hostile_judge(w);
    for (int i = 0; i < W_BATCHES; i++) w->batches[i].wished = false, w->batches[i].voiding = 0;
    c.silence_ms = 3000;
    c.progress_ms = 4000;
    c.ask_ms = 1200;
    c.shard_target_ms = 500;
    W_ASSERT(farm_create(&c, &w->farm) == 0, "memory");
    for (int k = 0; k < W_CLASSES; k++) {
        uint32_t n;
        W_ASSERT(farm_backend(w->farm, k == 0 ? "class-0" : "class-1", &n) == 0 && n == (uint32_t)k, "class");
    }
    store_read_back(w);
    world_at(w, w->now + 1, W_TICK)->boot = w->boot;
}

void coordinator_crash(struct world *w) {
    w->restarts++;
    store_crash(w);
    farm_destroy(w->farm);
    w->farm = NULL;
    coordinator_gone(w);
}

/* No coordinator is there: everybody's connection breaks, and a new one comes up after a while. */
void coordinator_gone(struct world *w) {
    farm_effects_clear(&w->fx);
    w->boot++;
    for (uint32_t i = 0; i < w->worker_max; i++) {
        struct w_worker *v = &w->workers[i];
        if (!v->alive || !v->conn) continue;
        v->conn = 0;
        world_at(w, w->now + 20 + world_below(w, 3000), W_CONNECT)->worker = i;
    }
    struct w_event *e = world_at(w, w->now + world_below(w, 2000), W_TICK);
    e->boot = w->boot; /* comes up again there */
}

/* ---- the person, and misfortunes */

static void open_batch(struct world *w) {
    int i = 0;
    while (i < W_BATCHES && w->batches[i].used) i++;
    if (i == W_BATCHES) return;
    struct w_batch *b = &w->batches[i];
    *b = (struct w_batch){.used = true, .number = ++w->batch_number, .state = KN_BATCH_ACTIVE, .pin = -1};
    b->tasks = 1 + world_below(w, w->worker_max > W_WORKERS ? W_TASKS : W_TASKS / 5);
    b->group_count = 1 + world_below(w, 4);
    b->priority = world_chance(w, 70) ? 0 : (int)world_below(w, 3) - 1;
    if (world_chance(w, 15)) b->pin = (int)world_below(w, W_CLASSES);
    for (uint32_t g = 0; g < b->group_count; g++) {
        b->groups[g].model = world_below(w, W_MODELS);
        b->groups[g].size = world_chance(w, 70) ? 64 : 128;
        b->groups[g].steps = 5 + g;
    }
    uint32_t evil = world_chance(w, 40) ? 0 : 1 + world_below(w, 6); /* in a hundred */
    for (uint32_t t = 0; t < b->tasks; t++) {
        b->group[t] = (uint16_t)world_below(w, b->group_count);
        if (world_chance(w, evil)) b->nature[t] = (enum nature)(1 + world_below(w, 5));
    }
    if (w->hostile) {
        b->too_large = world_chance(w, 3);
        if (b->too_large && !KN_PLANTED(ADMISSION_AFTER_COMMIT)) { /* refused before anything is written */
            *b = (struct w_batch){0};
            return;
        }
        w->synced[i] = *b; /* durable, then said to be accepted */
        b->told = w->synced[i].told = true;
    }
    store_open(w, i);
}

static void person(struct world *w) {
    int i = (int)world_below(w, W_BATCHES);
    struct w_batch *b = &w->batches[i];
    if (!b->used || b->removed) {
        if (world_chance(w, 60)) open_batch(w);
        return;
    }
    if (world_chance(w, 20)) { /* not a wish: an object is gone, and a retry has found out */
        kn_id id;
        enum farm_task_state state;
        uint32_t t = world_below(w, b->tasks);
        world_id(w, i, id, sizeof id);
        if (farm_task_state(w->farm, id, t, &state) == 0 && state == TASK_DONE && b->end[t] == TASK_DONE)
            store_void(w, i, t);
        return;
    }
    static const enum farm_event_type wishes[] = {EV_BATCH_PAUSE,    EV_BATCH_RESUME, EV_BATCH_RESUME,
                                                  EV_BATCH_PRIORITY, EV_BATCH_RETRY,  EV_BATCH_CANCEL,
                                                  EV_BATCH_REMOVE};
    struct farm_event ev = {.type = wishes[world_below(w, 7)]};
    if (ev.type == EV_BATCH_CANCEL && !world_chance(w, 15)) return;
    if (ev.type == EV_BATCH_REMOVE && !world_chance(w, 30)) return;
    world_id(w, i, ev.u.batch.id, sizeof ev.u.batch.id);
    ev.u.batch.priority = (int)world_below(w, 3) - 1;
    bool waited = w->batches[i].wished;
    w->batches[i].wished = ev.type != EV_BATCH_REMOVE;
    w->batches[i].answered = KN_BATCH_ACTIVE; /* what it will be is not known before the next answer */
    int rc = world_step(w, &ev);
    W_ASSERT(rc == 0 || rc == KN_ESTATE || rc == KN_ENOENT, "%d", rc);
    if (rc != 0) w->batches[i].wished = waited;
}

static void worker_invent(struct world *w, uint32_t i) {
    struct w_worker *v = &w->workers[i];
    *v = (struct w_worker){.used = true, .instance = (int)(i * 1000)};
    snprintf(v->name, sizeof v->name, "w%u", i);
    v->mute = world_chance(w, 10);
    if (i >= 4 && !w->hostile &&
        world_chance(w, 15)) { /* two chose one name; where silence takes it, for good */
        struct w_worker *other = &w->workers[world_below(w, w->worker_max)];
        if (other->used && !other->base[0]) memcpy(v->name, other->name, sizeof v->name);
    } else if (i >= 4 && world_chance(w, 25)) { /* nobody chose; some machines are clones of each other */
        v->machine = 1 + (int)world_below(w, 3);
        snprintf(v->base, sizeof v->base, "host%u", world_below(w, 2));
    }
    v->backend = i < 4 ? (int)(i & 1) : (int)world_below(w, W_CLASSES);
    v->us_per_image = 2000 + world_below(w, 100) * world_below(w, 2000);
    v->credit = 1 + world_below(w, 3);
    v->batch_max = 1u << world_below(w, 6);
    v->memory = 1u << world_below(w, 6);
    v->whole = world_chance(w, 50);
    v->apart = !v->mute && v->us_per_image % 3 > 0; /* today's; the others are of before */
    bool any = false;
    for (uint32_t m = 0; m < W_MODELS; m++) any |= v->models[m] = i < 4 || world_chance(w, 60);
    if (!any) v->models[0] = true;
    if (w->broken && i == 4) v->defect = (enum defect)(1 + world_below(w, DEFECTS - 1));
    if (v->memory < 4) v->memory = 4; /* one image of 128x128 */
    worker_begin(w, i);
}

static void pity_all(struct world *w, uint32_t i) {
    struct w_worker *v = &w->workers[i];
    for (int k = 0; k < W_HELD; k++)
        for (uint32_t t = 0; v->held[k].used && t < v->held[k].count; t++)
            w->batches[v->held[k].batch].unlucky[v->held[k].tasks[t]]++;
}

static void misfortune(struct world *w) {
    uint32_t i = world_below(w, w->worker_max);
    struct w_worker *v = &w->workers[i];
    uint32_t dice = world_below(w, 100);
    if (dice < 3) {
        coordinator_crash(w);
    } else if (dice < 6) {
        w->store_down_until = w->now + world_below(w, 4000);
    } else if (!v->used) {
        if (dice < 20) worker_invent(w, i);
    } else if (dice < 22) {
        if (v->alive)
            worker_die(w, i, true, i < 4 || world_chance(w, 90));
        else if (world_chance(w, 10))
            worker_begin(w, i);
    } else if (dice < 36 && v->conn) {
        pity_all(w, i);
        worker_cut(w, i, world_chance(w, 50));
        world_at(w, w->now + world_below(w, world_chance(w, 50) ? 500 : 8000), W_CONNECT)->worker = i;
    } else if (dice < 38 && v->alive && w->farm) {
        struct farm_event ev = {.type = EV_WORKER_DRAIN};
        ev.u.drain.worker = v->name;
        ev.u.drain.exit = world_chance(w, 50);
        int rc = world_step(w, &ev);
        W_ASSERT(rc == 0 || rc == KN_ENOENT, "%d", rc);
    }
}

/* ---- a history */

static void happen(struct world *w, struct w_event *e) {
    w->now = e->at;
    struct w_worker *v = &w->workers[e->worker];
    switch (e->type) {
    case W_TO_FARM:
        if (w->hostile && e->ev.type == EV_RESULT) {
            if (w->farm && e->conn && e->boot == w->boot) hostile_result(w, e);
            break;
        }
        if (w->farm && e->conn && e->boot == w->boot && world_step(w, &e->ev) != 0)
            W_ASSERT(e->ev.type == EV_WORKER_HELLO, "an event of a worker is an error");
        break;
    case W_TO_WORKER:
        if (v->alive && v->conn == e->conn && e->conn) worker_receive(w, e->worker, &e->fx);
        break;
    case W_IMAGE:
        if (v->alive && v->instance == e->instance && v->serial == e->serial) worker_image(w, e->worker);
        break;
    case W_PROBE:
        if (v->alive && v->instance == e->instance && v->probing) worker_probe(w, e->worker);
        break;
    case W_BEAT:
        if (!v->alive || v->instance != e->instance) break;
        worker_beat(w, e->worker);
        struct w_event *beat = world_at(w, w->now + v->beat_ms, W_BEAT);
        beat->worker = e->worker;
        beat->instance = e->instance;
        break;
    case W_CONNECT:
        if (!v->alive || v->conn) break;
        if (w->farm)
            worker_connect(w, e->worker);
        else
            world_at(w, w->now + 100, W_CONNECT)->worker = e->worker;
        break;
    case W_START:
        if (w->chaos || !w->hostile || e->worker < 8) worker_begin(w, e->worker);
        break;
    case W_STORE:
        if (e->boot == w->boot) store_next(w);
        break;
    case W_TICK:
        if (e->boot != w->boot) break;
        if (!w->farm) {
            coordinator_start(w);
            break;
        }
        struct farm_event ev = {.type = EV_TICK};
        W_ASSERT(world_step(w, &ev) == 0, "tick");
        uint64_t clock = world_clock(w, w->rate), wait = farm_next_tick(w->farm, clock) - clock;
        world_at(w, w->now + wait, W_TICK)->boot = w->boot;
        break;
    case W_CHAOS:
        if (!w->chaos) break;
        if (w->farm) person(w);
        if (w->farm) misfortune(w);
        if (w->farm && w->hostile) hostile_misfortune(w);
        world_at(w, w->now + 1 + world_below(w, CHAOS_EVERY_MS * W_WORKERS / w->worker_max), W_CHAOS);
        break;
    case W_OBJECT:
        hostile_object(w, e);
        break;
    case W_RETRY:
        if (w->farm && w->chaos && world_find(w, e->fx.batch) >= 0) {
            struct farm_event retry = {.type = EV_BATCH_RETRY};
            memcpy(retry.u.batch.id, e->fx.batch, sizeof retry.u.batch.id);
            w->batches[world_find(w, e->fx.batch)].answered = KN_BATCH_ACTIVE;
            int rc = world_step(w, &retry);
            W_ASSERT(rc == 0 || rc == KN_ENOENT, "retry: %d", rc);
        }
        break;
    case W_DOOM:
        if (w->farm && w->chaos) coordinator_crash(w);
        break;
    case W_SYNC:
        hostile_sync(w, e);
        break;
    case W_TRASH:
        hostile_trash(w, e);
        break;
    case W_OLD:
        hostile_old(w, e);
        break;
    }
    free_event(e);
}

static bool all_ended(const struct world *w) {
    for (int i = 0; i < W_BATCHES; i++)
        if (w->batches[i].used && !w->batches[i].removed && w->batches[i].state < KN_BATCH_DONE) return false;
    for (size_t i = 0; w->farm && i < farm_batch_count(w->farm); i++) { /* the core has heard of it too */
        struct farm_batch_view v;
        if (farm_batch_at(w->farm, i, world_clock(w, w->rate), &v) || v.running > 0) return false;
    }
    return true;
}

/* From now on nothing goes wrong: whoever is down comes up, whoever is paused goes on. */
static void heal(struct world *w) {
    w->chaos = false;
    w->store_down_until = 0;
    while (!w->farm) happen(w, next_event(w));
    for (uint32_t i = 0; i < w->worker_max; i++) {
        if (!w->workers[i].used) {
            if (i < 4) worker_invent(w, i);
            continue;
        }
        w->workers[i].deaf_until = w->workers[i].dumb_until = 0;
        if (w->hostile && i >= 8) { /* these never come back, and may not be missed by anybody's word */
            worker_die(w, i, true, false);
            continue;
        }
        if (w->workers[i].draining) worker_die(w, i, true, true);
        if (!w->workers[i].alive) world_at(w, w->now + 100, W_START)->worker = i;
        if (w->workers[i].alive && !w->workers[i].conn) world_at(w, w->now + 100, W_CONNECT)->worker = i;
    }
    for (int i = 0; i < W_BATCHES; i++) {
        if (!w->batches[i].used || w->batches[i].removed) continue;
        struct farm_event ev = {.type = EV_BATCH_RESUME};
        world_id(w, i, ev.u.batch.id, sizeof ev.u.batch.id);
        (void)world_step(w, &ev);
    }
}

static void check_batch(struct world *w, int i) {
    struct w_batch *b = &w->batches[i];
    W_ASSERT(b->log_count == b->tasks, "batch %d: %u ends of %u", i, b->log_count, b->tasks);
    kn_id id;
    world_id(w, i, id, sizeof id);
    struct farm_batch_view view;
    W_ASSERT(farm_batch_view(w->farm, id, world_clock(w, w->rate), &view) == 0, "batch %d", i);
    W_ASSERT(view.done + view.failed + view.cancelled == b->tasks && view.queued + view.running == 0,
             "batch %d: counts", i);
    for (uint32_t t = 0; t < b->tasks; t++) {
        enum farm_task_state state;
        W_ASSERT(farm_task_state(w->farm, id, t, &state) == 0, "batch %d task %u", i, t);
        /* An answer that was lost on a cancelled batch leaves a picture more in the store than is known. */
        W_ASSERT((uint8_t)state == b->end[t] || b->state == KN_BATCH_CANCELLED,
                 "batch %d task %u: %d in the store, %d here", i, t, b->end[t], (int)state);
        if (b->end[t] == TASK_CANCELLED) {
            W_ASSERT(b->state == KN_BATCH_CANCELLED, "batch %d task %u: cancelled by nobody", i, t);
        } else if (b->end[t] == TASK_FAILED) {
            W_ASSERT(b->nature[t] != GOOD || (b->unlucky[t] >= 3 && !w->clinic),
                     "batch %d task %u: innocent, failed with %d", i, t, b->code[t]);
            W_ASSERT(b->code[t] < 0, "batch %d task %u: no reason", i, t);
        } else {
            W_ASSERT(b->nature[t] == GOOD || b->nature[t] == NAN_ON_CLASS_0, "batch %d task %u: evil, done",
                     i, t);
        }
    }
}

static void tell_open(const struct world *w) {
    for (int i = 0; i < W_BATCHES; i++) {
        const struct w_batch *b = &w->batches[i];
        if (!b->used || b->removed || b->state >= KN_BATCH_DONE) continue;
        kn_id id;
        struct farm_batch_view v = {0};
        world_id(w, i, id, sizeof id);
        if (farm_batch_view(w->farm, id, world_clock(w, w->rate), &v))
            fprintf(stderr, "batch %d: unknown here\n", i);
        fprintf(stderr,
                "batch %d: state %u in the store, %u here; %u of %u done, %u failed, %u queued, %u running\n",
                i, b->state, v.state, v.done, v.total, v.failed, v.queued, v.running);
        for (uint32_t t = 0; t < b->tasks; t++) {
            enum farm_task_state state;
            if (farm_task_state(w->farm, id, t, &state) == 0 && state < TASK_DONE)
                fprintf(stderr, "  task %u: state %d, nature %d, %u charges\n", t, (int)state,
                        (int)b->nature[t], b->charges[t]);
        }
    }
}

static void tell_workers(const struct world *w) {
    for (size_t i = 0; i < farm_worker_count(w->farm); i++) {
        struct farm_worker_view v;
        if (farm_worker_at(w->farm, i, world_clock(w, w->rate), &v) || v.state == KN_WORKER_LOST) continue;
        const struct w_worker *x = NULL;
        for (uint32_t k = 0; k < w->worker_max; k++)
            if (w->workers[k].used && strcmp(w->workers[k].name, v.worker) == 0) x = &w->workers[k];
        fprintf(stderr, "  %s %s conn %llu state %u shards %u of %u\n", v.worker, v.backend,
                (unsigned long long)v.conn, v.state, v.shards, x ? x->credit : 0);
        for (int k = 0; x && k < W_HELD; k++)
            if (x->held[k].used)
                fprintf(stderr, "    has shard %llu of %llu phase %d\n", (unsigned long long)x->held[k].id,
                        (unsigned long long)x->held[k].term, x->held[k].phase);
    }
}

static void play(struct world *w, uint64_t steps, uint32_t workers);

void world_run(struct world *w, uint64_t seed, uint64_t steps, uint32_t workers, bool trace) {
    *w = (struct world){.seed = seed, .rng = seed * 2654435761u + 12345, .chaos = true, .trace = trace};
    play(w, steps, workers);
}

void world_hostile(struct world *w, uint64_t seed, uint64_t steps, bool trace) {
    *w = (struct world){.seed = seed, .rng = seed * 2654435761u + 98765, .chaos = true, .trace = trace};
    w->hostile = true;
    play(w, steps, 12);
    hostile_judge(w);
}

static void play(struct world *w, uint64_t steps, uint32_t workers) {
    failing = w;
    (void)signal(SIGABRT, tell_seed);
    w->worker_max = workers;
    w->workers = calloc(workers, sizeof *w->workers);
    W_ASSERT(w->workers, "memory");
    w->now = 1000;
    w->lossy = world_chance(w, 25) || w->hostile;
    w->broken = world_chance(w, 25);
    w->starved = world_chance(w, 25);
    w->memory_rng = w->seed;
    coordinator_start(w);
    uint32_t first = 1 + world_below(w, workers / 5);
    for (uint32_t i = 0; i < first; i++) worker_invent(w, i);
    open_batch(w);
    world_at(w, w->now + 1, W_CHAOS);
    while (w->steps < steps) happen(w, next_event(w));
    heal(w);
    uint64_t limit = w->now + HEALED_MS;
    while (!all_ended(w) || w->write_head != w->write_tail || !w->farm) {
        if (w->now >= limit) tell_open(w), tell_workers(w);
        W_ASSERT(w->now < limit, "a batch does not end");
        happen(w, next_event(w));
    }
    for (int i = 0; i < W_BATCHES; i++)
        if (w->batches[i].used && !w->batches[i].removed) check_batch(w, i);
}

/* ---- sick fleets */

static void sick_batch(struct world *w, uint32_t tasks, uint32_t guilty) {
    struct w_batch *b = &w->batches[w->batch_number];
    *b = (struct w_batch){.used = true, .number = w->batch_number + 1, .state = KN_BATCH_ACTIVE, .pin = -1};
    w->batch_number++;
    b->tasks = tasks;
    b->group_count = 1;
    b->groups[0] = (struct w_group){.size = 64, .steps = 10};
    for (uint32_t t = 0; t < tasks; t++)
        if (world_below(w, 1000) < guilty) b->nature[t] = (enum nature)(1 + world_below(w, NAN_EVERYWHERE));
    store_open(w, (int)(b - w->batches));
}

/* Every batch has ended, or (held) is not to be waited for. */
static bool all_settled(struct world *w, bool held) {
    bool all = w->write_head == w->write_tail;
    for (int i = 0; i < w->batch_number && all; i++) {
        kn_id id;
        struct farm_batch_view v;
        world_id(w, i, id, sizeof id);
        W_ASSERT(farm_batch_view(w->farm, id, w->now, &v) == 0, "batch %d", i);
        all = v.state == KN_BATCH_DONE ? w->batches[i].state == KN_BATCH_DONE : held && v.held;
        w->held_batches += v.held;
    }
    return all;
}

void world_sick(struct world *w, uint64_t seed, bool trace) {
    static const uint32_t fleets[][2] = {{1, 0}, {1, 1}, {16, 1}, {6, 3}, {5, 3}, {4, 1}, {4, 4}, {2, 1}};
    *w = (struct world){.seed = seed, .rng = seed * 2654435761u + 54321, .clinic = true, .trace = trace};
    failing = w;
    w->broken = true;
    w->worker_max = fleets[seed % 8][0];
    w->workers = calloc(w->worker_max, sizeof *w->workers);
    W_ASSERT(w->workers, "memory");
    w->now = 1000;
    uint32_t sick = fleets[seed % 8][1];
    bool all_sick = sick == w->worker_max, mixed = world_chance(w, 30);
    enum defect kind = (enum defect)(1 + world_below(w, DEFECTS - 1));
    coordinator_start(w);
    for (uint32_t i = 0; i < w->worker_max; i++) {
        struct w_worker *v = &w->workers[i];
        *v = (struct w_worker){.used = true, .instance = (int)(i * 1000)};
        snprintf(v->name, sizeof v->name, "w%u", i);
        v->us_per_image = 5000 + world_below(w, 40000);
        v->credit = 1 + world_below(w, 4);
        v->batch_max = 1u << world_below(w, 6);
        v->memory = 256;
        v->whole = world_chance(w, 50);
        v->apart = !v->mute && v->us_per_image % 3 > 0;
        v->models[0] = true;
        if (i < sick) {
            v->defect = mixed ? (enum defect)(1 + world_below(w, DEFECTS - 1)) : kind;
            v->sly = !all_sick && world_chance(w, 25);
            v->sick_ms = world_chance(w, 50) ? 0 : world_below(w, 3000);
        }
        worker_begin(w, i);
    }
    uint32_t guilty = world_chance(w, 50) ? 0 : world_chance(w, 80) ? 1 + world_below(w, 40) : 1000;
    for (int k = 0; k < 2; k++) sick_batch(w, 1 + world_below(w, guilty == 1000 ? 12 : 300), guilty);
    uint64_t limit = w->now + 1800000;
    while (!all_settled(w, all_sick)) {
        if (w->now >= limit) tell_open(w), tell_workers(w);
        W_ASSERT(w->now < limit, "a batch neither ends nor is told to be held");
        happen(w, next_event(w));
    }
    for (uint32_t i = 0; i < w->worker_max; i++) w->workers[i].sound_ms = w->now; /* all are mended */
    limit = w->now + 1800000;
    while (!all_settled(w, false)) {
        if (w->now >= limit) tell_open(w), tell_workers(w);
        W_ASSERT(w->now < limit, "a batch does not end though all workers are well again");
        happen(w, next_event(w));
    }
    for (int i = 0; i < w->batch_number; i++) check_batch(w, i);
}

void world_end(struct world *w) {
    while (w->heap_count > 0) free_event(next_event(w));
    free(w->heap);
    free(w->workers);
    hostile_old_forget(w);
    farm_effects_fini(&w->fx);
    farm_destroy(w->farm);
    w->farm = NULL;
}
