/* The contract is talk.h. */
#include "tests/sim/talk.h"

#include <stdlib.h>

void talk_begin_with(struct talk *t, const struct farm_config *c) {
    *t = (struct talk){.now = 1000};
    CHECK_INT(farm_create(c, &t->farm), 0);
}

void talk_begin(struct talk *t) {
    struct farm_config c;
    farm_config_default(&c);
    talk_begin_with(t, &c);
}

void talk_end(struct talk *t) {
    farm_effects_fini(&t->fx);
    farm_destroy(t->farm);
}

void talk_id(int n, uint8_t *id, size_t size) {
    memset(id, 0, size);
    memcpy(id, &n, sizeof n);
}

int talk_number(const kn_id id) {
    int n;
    memcpy(&n, id, sizeof n);
    return n;
}

/* The store says yes to what is asked, and probe pictures come out well, in the order of the effects; the effects of
 * that come behind. */
static void others_answer(struct talk *t) {
    for (size_t i = 0; i < t->fx.count; i++) {
        const struct farm_effect *e = &t->fx.v[i];
        struct farm_event ev = {.type = EV_STORED};
        if (e->type == FX_PROBE && !t->probes_silent) {
            ev.type = EV_PROBED;
            ev.conn = e->conn;
            ev.u.probed.probe = e->u.probe.probe;
        } else if ((e->type == FX_COMMIT || e->type == FX_FAIL || e->type == FX_BATCH_STATE) &&
                   !t->store_silent) {
            ev.u.stored.what = e->type;
            ev.u.stored.task = e->task;
            memcpy(ev.u.stored.batch, e->batch, sizeof e->batch);
        } else {
            continue;
        }
        CHECK_INT(farm_step(t->farm, &ev, t->now, &t->fx), 0);
        farm_check(t->farm);
    }
}

int talk_step(struct talk *t, struct farm_event ev) {
    farm_effects_clear(&t->fx);
    t->rc = farm_step(t->farm, &ev, t->now, &t->fx);
    farm_check(t->farm);
    others_answer(t);
    return t->rc;
}

void talk_wait(struct talk *t, uint64_t ms) {
    struct farm_effects all = {0};
    uint64_t end = t->now + ms;
    do {
        uint64_t next = farm_next_tick(t->farm, t->now);
        t->now = next < end ? next : end;
        struct farm_event ev = {.type = EV_TICK};
        CHECK_INT(farm_step(t->farm, &ev, t->now, &all), 0);
        farm_check(t->farm);
    } while (t->now < end);
    farm_effects_fini(&t->fx);
    t->fx = all;
    others_answer(t);
}

int talk_open(struct talk *t, struct talk_batch b) {
    uint32_t group_count = b.group_count ? b.group_count : 1;
    struct farm_group *groups = calloc(group_count, sizeof *groups);
    uint16_t *task_group = calloc(b.tasks + 1, sizeof *task_group);
    CHECK(groups && task_group);
    for (uint32_t g = 0; g < group_count; g++) {
        talk_id(b.model ? b.model : 1, groups[g].model, sizeof groups[g].model);
        groups[g].width = groups[g].height = b.size ? b.size : 64;
        groups[g].steps = 20 + g;
        groups[g].needs = b.needs;
    }
    for (uint32_t i = 0; i < b.tasks; i++) task_group[i] = (uint16_t)(i % group_count);
    struct farm_event ev = {.type = EV_BATCH_OPEN};
    ev.u.batch_open = (struct ev_batch_open){
        .tasks = b.tasks,
        .priority = b.priority,
        .pin_backend = b.pin ? b.pin : "",
        .groups = groups,
        .group_count = group_count,
        .task_group = task_group,
        .paused = b.paused,
        .cancelled = b.cancelled,
        .shard_tasks_max = b.shard_tasks_max,
        .ended = b.ended,
        .ended_count = b.ended_count,
        .charges = b.charges,
        .charge_count = b.charge_count,
    };
    talk_id(b.id, ev.u.batch_open.id, sizeof ev.u.batch_open.id);
    int rc = talk_step(t, ev);
    free(groups);
    free(task_group);
    return rc;
}

int talk_hello(struct talk *t, struct talk_worker w) {
    kn_digest models[4];
    uint32_t count = 0;
    if (!w.models[0]) w.models[0] = 1;
    for (; count < 4 && w.models[count]; count++) talk_id(w.models[count], models[count], sizeof models[0]);
    struct farm_event ev = {.type = EV_WORKER_HELLO, .conn = w.conn};
    ev.u.hello = (struct ev_worker_hello){
        .worker = w.name,
        .backend = w.backend ? w.backend : "cpu-a",
        .credit = w.credit ? w.credit : 2,
        .batch_max = w.batch_max ? w.batch_max : 8,
        .features = w.features,
        .died_of_memory = w.died_of_memory,
        .models = models,
        .model_count = count,
        .held = w.held,
        .held_count = w.held_count,
        .base = w.base,
        .has_machine = w.machine != 0,
        .named_by_farm = w.named,
        .answers = !w.mute,
        .probes = !w.no_probes,
    };
    talk_id(w.machine, ev.u.hello.machine, sizeof ev.u.hello.machine);
    talk_id(w.instance ? w.instance : 1, ev.u.hello.instance, sizeof ev.u.hello.instance);
    return talk_step(t, ev);
}

int talk_wish(struct talk *t, enum farm_event_type type, struct talk_wish w) {
    struct farm_event ev = {.type = type};
    talk_id(w.id, ev.u.batch.id, sizeof ev.u.batch.id);
    ev.u.batch.priority = w.priority;
    return talk_step(t, ev);
}

void talk_heartbeat(struct talk *t, struct talk_heartbeat h) {
    struct farm_event ev = {.type = EV_WORKER_HEARTBEAT, .conn = h.conn};
    ev.u.heartbeat.shard = h.shard;
    ev.u.heartbeat.progress_age_ms = h.age_ms;
    ev.u.heartbeat.answer = h.answer;
    ev.u.heartbeat.step = h.step;
    ev.u.heartbeat.steps = h.steps;
    ev.u.heartbeat.minibatch = h.minibatch;
    CHECK_INT(talk_step(t, ev), 0);
}

void talk_shard_event(struct talk *t, enum farm_event_type type, struct talk_shard_event e) {
    struct farm_event ev = {.type = type, .conn = e.conn};
    ev.u.shard = (struct ev_shard){
        .shard = e.shard,
        .term = 1,
        .out_of_memory = e.out_of_memory,
        .unsupported = e.unsupported,
        .render_ms = e.render_ms,
    };
    CHECK_INT(talk_step(t, ev), 0);
}

void talk_failed(struct talk *t, struct talk_failure e) {
    struct farm_event ev = {.type = EV_TASK_FAILED, .conn = e.conn};
    ev.u.task_failed = (struct ev_task_failed){
        .task = e.task,
        .shard = e.shard,
        .term = 1,
        .code = e.code,
        .reason = "it went wrong",
    };
    talk_id(e.batch, ev.u.task_failed.batch, sizeof ev.u.task_failed.batch);
    CHECK_INT(talk_step(t, ev), 0);
}

void talk_probed(struct talk *t, struct talk_probed p) {
    struct farm_event ev = {.type = EV_PROBED, .conn = p.conn};
    ev.u.probed = (struct ev_probed){.probe = p.probe, .code = p.code, .reason = "it went wrong"};
    CHECK_INT(talk_step(t, ev), 0);
}

void talk_gone(struct talk *t, struct talk_gone g) {
    struct farm_event ev = {.type = EV_WORKER_GONE, .conn = g.conn};
    ev.u.gone.reason = g.bye ? "bye" : "unreachable";
    ev.u.gone.bye = g.bye;
    CHECK_INT(talk_step(t, ev), 0);
}

void talk_result(struct talk *t, struct talk_result r) {
    struct farm_event ev = {.type = EV_RESULT, .conn = r.conn};
    ev.u.result = (struct ev_result){.task = r.task, .attempt = 1, .worker = r.worker, .engine = "kiln"};
    talk_id(r.batch, ev.u.result.batch, sizeof ev.u.result.batch);
    int pixels = r.pixels ? r.pixels : (int)r.task;
    talk_id(pixels, ev.u.result.pixels, sizeof ev.u.result.pixels);
    talk_id(pixels, ev.u.result.sha256, sizeof ev.u.result.sha256);
    CHECK_INT(farm_backend(t->farm, r.backend ? r.backend : "cpu-a", &ev.u.result.backend), 0);
    CHECK_INT(talk_step(t, ev), 0);
}

void talk_stored(struct talk *t, enum farm_effect_type what, struct talk_stored s) {
    struct farm_event ev = {.type = EV_STORED};
    ev.u.stored = (struct ev_stored){.what = what, .task = s.task, .code = s.code};
    talk_id(s.batch, ev.u.stored.batch, sizeof ev.u.stored.batch);
    CHECK_INT(talk_step(t, ev), 0);
}

const struct farm_effect *talk_fx(const struct talk *t, enum farm_effect_type type, uint32_t n) {
    for (size_t i = 0; i < t->fx.count; i++)
        if (t->fx.v[i].type == type && n-- == 0) return &t->fx.v[i];
    return NULL;
}

uint32_t talk_count(const struct talk *t, enum farm_effect_type type) {
    uint32_t n = 0;
    for (size_t i = 0; i < t->fx.count; i++) n += t->fx.v[i].type == type;
    return n;
}

const struct farm_effect *talk_grant(const struct talk *t, uint64_t conn, uint32_t n) {
    for (size_t i = 0; i < t->fx.count; i++)
        if (t->fx.v[i].type == FX_GRANT && t->fx.v[i].conn == conn && n-- == 0) return &t->fx.v[i];
    return NULL;
}

const struct farm_effect *talk_must(const struct talk *t, enum farm_effect_type type, uint32_t n) {
    const struct farm_effect *e = talk_fx(t, type, n);
    CHECK_MSG(e, "no effect %d of type %d", (int)n, (int)type);
    return e;
}

const struct farm_effect *talk_must_grant(const struct talk *t, uint64_t conn, uint32_t n) {
    const struct farm_effect *e = talk_grant(t, conn, n);
    CHECK_MSG(e, "no grant %d to connection %d", (int)n, (int)conn);
    return e;
}

struct farm_worker_view talk_worker(const struct talk *t, const char *name) {
    struct farm_worker_view v;
    for (size_t i = 0; i < farm_worker_count(t->farm); i++) {
        CHECK_INT(farm_worker_at(t->farm, i, t->now, &v), 0);
        if (strcmp(v.worker, name) == 0) return v;
    }
    CHECK_MSG(false, "no worker %s", name);
    return v;
}

struct farm_batch_view talk_view(const struct talk *t, int batch) {
    kn_id id;
    struct farm_batch_view v;
    talk_id(batch, id, sizeof id);
    CHECK_INT(farm_batch_view(t->farm, id, t->now, &v), 0);
    return v;
}

enum farm_task_state talk_task(const struct talk *t, int batch, uint32_t task) {
    kn_id id;
    enum farm_task_state s;
    talk_id(batch, id, sizeof id);
    CHECK_INT(farm_task_state(t->farm, id, task, &s), 0);
    return s;
}

struct talk_shard talk_shard(const struct farm_effect *grant) {
    CHECK(grant && grant->type == FX_GRANT);
    struct talk_shard s = {.id = grant->u.grant.shard, .count = grant->u.grant.task_count};
    memcpy(s.tasks, grant->u.grant.tasks, s.count * sizeof *s.tasks);
    return s;
}

void talk_render(struct talk *t, struct talk_render r) {
    uint32_t ms = (r.ms ? r.ms : 10) * r.shard.count;
    STARTED(t, .conn = r.conn, .shard = r.shard.id);
    t->now += ms;
    for (uint32_t i = 0; i < r.shard.count; i++)
        RESULT(t, .conn = r.conn, .worker = r.worker, .backend = r.backend, .batch = r.batch,
               .task = r.shard.tasks[i]);
    DONE(t, .conn = r.conn, .shard = r.shard.id, .render_ms = ms);
}
