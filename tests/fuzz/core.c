/* The core under any events at all: the bytes are a history of peers that make no sense. Whatever a worker, a
 * store or a person says, no invariant breaks (farm_check after each event), and nothing worse happens than
 * that it is refused.
 *
 * Each event is an operation byte and a few bytes of arguments from small ranges, so that they meet: four
 * worker names, six connections, four batches, shards that were granted, and now and then a number out of
 * nowhere. */
#include <string.h>

#include "coordinator/core/farm.h"
#include "tests/fuzz/fuzz.h"

struct input {
    const uint8_t *data;
    size_t left;
};

static uint8_t byte(struct input *in) {
    if (in->left == 0) return 0;
    in->left--;
    return *in->data++;
}

#define GRANTS 16
static uint64_t grants[GRANTS]; /* the last ones, a ring */
static uint32_t grant_count;

static void set_id(uint8_t *id, size_t size, uint8_t n) {
    memset(id, 0, size);
    id[0] = n;
}

static uint64_t any_shard(struct input *in) {
    uint8_t n = byte(in);
    if (n < 240 && grant_count > 0)
        return grants[(grant_count - 1 - n % (grant_count < GRANTS ? grant_count : GRANTS)) % GRANTS];
    return n == 240 ? 0 : n;
}

static int any_code(struct input *in) {
    return -(int)(byte(in) % 25);
}

static void open_batch(struct input *in, struct farm_event *ev) {
    static struct farm_group groups[4];
    static uint16_t task_group[64];
    static struct farm_done_task ended[4];
    static struct farm_charge charges[4];
    struct ev_batch_open *o = &ev->u.batch_open;
    uint8_t flags = byte(in);
    ev->type = EV_BATCH_OPEN;
    set_id(o->id, sizeof o->id, byte(in) % 4);
    o->tasks = byte(in) % 65;
    o->group_count = 1 + byte(in) % 4;
    o->priority = (int)(flags & 3) - 1;
    o->paused = flags & 4;
    o->cancelled = flags & 8;
    o->pin_backend = flags & 16 ? "cpu-a" : "";
    for (uint32_t g = 0; g < 4; g++) {
        set_id(groups[g].model, sizeof groups[g].model, byte(in) % 3);
        groups[g].width = groups[g].height = 64;
        groups[g].steps = flags & 32 ? 0 : g;
    }
    for (uint32_t t = 0; t < o->tasks && t < 64; t++)
        task_group[t] = (uint16_t)(t % (o->group_count + (flags >> 7)));
    o->groups = groups;
    o->task_group = task_group;
    if (flags & 64) {
        o->ended_count = byte(in) % 5;
        for (uint32_t i = 0; i < o->ended_count; i++)
            ended[i] = (struct farm_done_task){.task = byte(in), .state = byte(in) % 8, .backend = byte(in)};
        o->charge_count = byte(in) % 5;
        for (uint32_t i = 0; i < o->charge_count; i++) charges[i] = (struct farm_charge){byte(in), byte(in)};
    }
    o->ended = ended;
    o->charges = charges;
    if (o->tasks > 64) o->tasks = 64;
}

static void hello(struct input *in, struct farm_event *ev) {
    static const char *names[] = {"a", "b", "c", "d"};
    static kn_digest models[3];
    static struct farm_held held[3];
    static uint32_t tasks[3][4];
    struct ev_worker_hello *h = &ev->u.hello;
    uint8_t flags = byte(in);
    ev->type = EV_WORKER_HELLO;
    h->worker = names[flags % 4];
    set_id(h->instance, sizeof h->instance, byte(in) % 3);
    h->backend = flags & 4 ? "cpu-a" : "cuda-b";
    h->credit = byte(in) % 10;
    h->batch_max = byte(in) % 20;
    h->model_count = flags >> 3 & 3;
    for (uint32_t i = 0; i < h->model_count; i++) set_id(models[i], sizeof models[i], byte(in) % 3);
    h->models = (const kn_digest *)models;
    h->held_count = (flags >> 5) % 4;
    for (uint32_t i = 0; i < h->held_count; i++) {
        held[i].shard = any_shard(in);
        held[i].term = byte(in) % 2;
        set_id(held[i].batch, sizeof held[i].batch, byte(in) % 4);
        held[i].task_count = byte(in) % 5;
        for (uint32_t k = 0; k < held[i].task_count; k++) tasks[i][k] = byte(in) % 70;
        held[i].tasks = tasks[i];
    }
    h->held = held;
}

static void result(struct input *in, struct farm_event *ev) {
    static const char *names[] = {"a", "b", "c", "d", "nobody"};
    struct ev_result *r = &ev->u.result;
    ev->type = EV_RESULT;
    set_id(r->batch, sizeof r->batch, byte(in) % 5);
    r->task = byte(in) % 70;
    r->backend = byte(in) % 3;
    set_id(r->pixels, sizeof r->pixels, byte(in) % 2);
    r->worker = names[byte(in) % 5];
    r->engine = "kiln";
}

static void shard_event(struct input *in, struct farm_event *ev, uint8_t op) {
    static const enum farm_event_type types[] = {EV_SHARD_STARTED, EV_SHARD_RETURNED, EV_SHARD_DONE};
    ev->type = types[op % 3];
    ev->u.shard.shard = any_shard(in);
    ev->u.shard.term = byte(in) % 8 ? 1 : 0;
    ev->u.shard.out_of_memory = byte(in) % 4 == 0;
    ev->u.shard.render_ms = byte(in) * 100u;
}

static void next_event(struct input *in, struct farm_event *ev) {
    uint8_t op = byte(in);
    ev->conn = byte(in) % 7;
    switch (op % 16) {
    case 0:
        ev->type = EV_TICK;
        break;
    case 1:
        open_batch(in, ev);
        break;
    case 2:
    case 3:
        hello(in, ev);
        break;
    case 4:
        ev->type = EV_WORKER_HEARTBEAT;
        ev->u.heartbeat.shard = byte(in) % 3 ? any_shard(in) : 0;
        ev->u.heartbeat.progress_age_ms = byte(in) * 2000u;
        ev->u.heartbeat.draining = byte(in) % 16 == 0;
        ev->u.heartbeat.has_model = byte(in) % 2;
        set_id(ev->u.heartbeat.model, sizeof ev->u.heartbeat.model, byte(in) % 4);
        break;
    case 5:
    case 6:
    case 7:
        shard_event(in, ev, byte(in));
        break;
    case 8:
        ev->type = EV_TASK_FAILED;
        set_id(ev->u.task_failed.batch, sizeof ev->u.task_failed.batch, byte(in) % 4);
        ev->u.task_failed.task = byte(in) % 70;
        ev->u.task_failed.shard = any_shard(in);
        ev->u.task_failed.term = 1;
        ev->u.task_failed.code = any_code(in);
        ev->u.task_failed.reason = byte(in) % 2 ? "it went wrong" : "";
        break;
    case 9:
    case 10:
        result(in, ev);
        break;
    case 11:
    case 12: {
        static const uint32_t what[] = {FX_COMMIT, FX_FAIL, FX_BATCH_STATE, FX_ALARM};
        ev->type = EV_STORED;
        ev->u.stored.what = what[byte(in) % 4];
        set_id(ev->u.stored.batch, sizeof ev->u.stored.batch, byte(in) % 4);
        ev->u.stored.task = byte(in) % 70;
        ev->u.stored.code = byte(in) % 2 ? 0 : any_code(in);
        if (ev->u.stored.code == KN_ETERM && byte(in) % 8) ev->u.stored.code = 0; /* it ends the story */
        break;
    }
    case 13:
        ev->type = (enum farm_event_type)(EV_BATCH_CANCEL + byte(in) % 6);
        set_id(ev->u.batch.id, sizeof ev->u.batch.id, byte(in) % 4);
        ev->u.batch.priority = byte(in) % 3;
        break;
    case 14:
        ev->type = EV_WORKER_GONE;
        ev->u.gone.reason = "gone";
        ev->u.gone.bye = byte(in) % 2;
        break;
    default:
        ev->type = EV_WORKER_DRAIN;
        ev->u.drain.worker = byte(in) % 2 ? "a" : "nobody";
    }
}

/* Looking never fails where something is, and what is seen adds up. */
static void look(const struct farm *f, uint64_t now) {
    struct farm_batch_view b;
    struct farm_worker_view w;
    uint32_t tasks[64], count;
    uint64_t epoch;
    for (size_t i = 0; i < farm_batch_count(f); i++) {
        FUZZ_CHECK(farm_batch_at(f, i, now, &b) == 0);
        FUZZ_CHECK(b.done + b.failed + b.cancelled + b.queued + b.running == b.total);
        FUZZ_CHECK(b.eta_ms >= -1 && b.images_per_s >= 0 && b.images_per_s_mean >= 0);
        FUZZ_CHECK(farm_batch_ended(f, b.id, 1, 64, tasks, &count, &epoch) == 0);
        FUZZ_CHECK(count == (b.ended > 0 ? b.ended - 1 : 0));
        for (uint32_t k = 0; k < count; k++) {
            enum farm_task_state state;
            FUZZ_CHECK(farm_task_state(f, b.id, tasks[k], &state) == 0 && state >= TASK_DONE);
            FUZZ_CHECK(farm_wants(f, b.id, tasks[k]) != 0);
        }
    }
    for (size_t i = 0; i < farm_worker_count(f); i++) {
        FUZZ_CHECK(farm_worker_at(f, i, now, &w) == 0);
        FUZZ_CHECK(w.state >= KN_WORKER_IDLE && w.state <= KN_WORKER_LOST);
        FUZZ_CHECK(w.conn != 0 || w.state == KN_WORKER_LOST);
    }
    FUZZ_CHECK(farm_images_per_s(f, now) >= 0);
}

int kn_fuzz(const uint8_t *data, size_t size) {
    struct input in = {data, size};
    struct farm_config c;
    struct farm *f = NULL;
    struct farm_effects fx = {0};
    uint64_t now = 1;
    uint32_t backend;
    farm_config_default(&c);
    FUZZ_CHECK(farm_create(&c, &f) == 0);
    FUZZ_CHECK(farm_backend(f, "cpu-a", &backend) == 0);
    FUZZ_CHECK(farm_backend(f, "cuda-b", &backend) == 0);
    grant_count = 0;
    for (int n = 0; in.left > 0 && n < 2000; n++) {
        struct farm_event ev = {0};
        uint8_t pause = byte(&in);
        now += pause < 128 ? pause : (pause - 128u) * 100u;
        next_event(&in, &ev);
        farm_effects_clear(&fx);
        int rc = farm_step(f, &ev, now, &fx);
        FUZZ_CHECK(rc <= 0);
        farm_check(f);
        look(f, now);
        for (size_t i = 0; i < fx.count; i++) {
            if (fx.v[i].type != FX_GRANT) continue;
            FUZZ_CHECK(fx.v[i].u.grant.task_count > 0 && fx.v[i].u.grant.task_count <= KN_SHARD_TASKS_MAX);
            grants[grant_count++ % GRANTS] = fx.v[i].u.grant.shard;
        }
        FUZZ_CHECK(farm_next_tick(f, now) > now);
    }
    farm_effects_fini(&fx);
    farm_destroy(f);
    return 0;
}
