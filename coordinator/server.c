/* See server.h. */
#include "coordinator/server.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

#define TICK_MAX_MS 100
#define STALL_MS 2000
#define SWEEP_MS 10000
#define COLLECT_BYTES_MAX (256u << 20) /* taken off the sockets and not durable yet */
#define SENDING_BYTES_MAX (256u << 20) /* objects on their way to clients */
#define COLLECT_COUNT_MAX 4096
#define COMMITTING_MAX 8192
#define CONNS_MAX (KN_WORKERS_MAX * 2)

struct again { /* an event to feed later */
    struct again *next;
    struct farm_event ev; /* without pointers */
};

static void carry_out(struct server *s);

/* ---- events */

static void feed_later(struct server *s, const struct farm_event *ev) {
    struct again *a = malloc(sizeof *a);
    if (!a) {
        kn_error("event_lost type=%d reason=\"out of memory\"", (int)ev->type);
        return;
    }
    *a = (struct again){.ev = *ev};
    if (s->again_last)
        s->again_last->next = a;
    else
        s->again = a;
    s->again_last = a;
}

int server_step(struct server *s, const struct farm_event *ev) {
    if (s->closing) return KN_ECANCELED;
    if (s->stepping) {
        feed_later(s, ev);
        return 0;
    }
    s->stepping = true;
    int rc = farm_step(s->farm, ev, kn_clock_ms(), &s->fx);
    carry_out(s);
    while (s->again) {
        struct again *a = s->again;
        s->again = a->next;
        if (!s->again) s->again_last = NULL;
        int again_rc = farm_step(s->farm, &a->ev, kn_clock_ms(), &s->fx);
        if (again_rc != 0) kn_debug("event_refused type=%d code=%d", (int)a->ev.type, again_rc);
        carry_out(s);
        free(a);
    }
    s->stepping = false;
    return rc;
}

static void stored(struct server *s, uint32_t what, const kn_id batch, uint32_t task, int code) {
    struct farm_event ev = {.type = EV_STORED};
    ev.u.stored.what = what;
    memcpy(ev.u.stored.batch, batch, sizeof(kn_id));
    ev.u.stored.task = task;
    ev.u.stored.code = code;
    int rc = server_step(s, &ev);
    if (rc != 0 && rc != KN_ECANCELED && rc != KN_ENOENT) kn_warn("stored_refused what=%u code=%d", what, rc);
}

uint64_t server_conn(const struct kn_peer *peer) {
    uint64_t n;
    static_assert(sizeof n == KN_PEER_BYTES, "a routing id is a number");
    memcpy(&n, peer->id, sizeof n);
    return n;
}

static struct kn_peer peer_of(uint64_t conn) {
    struct kn_peer p = {0};
    memcpy(p.id, &conn, sizeof conn);
    return p;
}

void server_tell(struct server *s, uint64_t conn, const struct kn_msg *m) {
    struct kn_err err = {0};
    struct kn_peer peer = peer_of(conn);
    struct known_worker *w = kn_map_get(s->conns, &conn, sizeof conn);
    if (!w) {
        kn_debug("message_to_nobody message=%s", kn_msg_name(m->type));
        return;
    }
    int rc = kn_sock_send(w->listener->sock, &peer, m, NULL, &err);
    if (rc == 0) return;
    kn_info("worker_unreachable worker=%s message=%s reason=\"%s\"", w->hello->worker, kn_msg_name(m->type),
            err.text);
    kn_map_remove(s->conns, &conn, sizeof conn);
    w->conn = 0;
    struct farm_event ev = {.type = EV_WORKER_GONE, .conn = conn};
    ev.u.gone.reason = "its connection is gone";
    server_step(s, &ev);
}

/* ---- effects */

struct op { /* a write that the core waits for */
    struct server *s;
    struct op *next, *prev; /* commits */
    kn_id batch;
    uint32_t what, task;
    union {
        struct store_record record;
        struct {
            struct store_failure f;
            char *text; /* owns: worker and reason */
        } fail;
        struct {
            uint32_t state;
            uint64_t finished;
            bool retried;
        } state;
    } u;
    struct reply_to asking;
};

static struct op *op_create(struct server *s, const struct farm_effect *e) {
    struct op *o = calloc(1, sizeof *o);
    if (!o) return NULL;
    o->s = s;
    memcpy(o->batch, e->batch, sizeof o->batch);
    o->what = e->type;
    o->task = e->task;
    return o;
}

/* The store did not take it: the core asks again later. */
static void not_taken(struct server *s, struct op *o, const struct farm_effect *e, int code) {
    kn_warn("store_busy effect=%d code=%d", (int)e->type, code);
    if (o) clients_reply(s, &o->asking, code, "the store is not reachable");
    free(o);
    stored(s, e->type, e->batch, e->task, code);
}

static uint16_t name_number(struct server *s, struct batch *b, const char *text) {
    uint16_t n;
    bool is_new;
    if (batch_name(b, text ? text : "", &n, &is_new) != 0) return 0;
    if (is_new && store_name(s->store, b->id, n, text) != 0) kn_warn("name_not_stored name=%s", text);
    return n;
}

#define ORPHANS_MAX 100000

void server_orphan(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]) {
    uint8_t *copy = malloc(KN_SHA256_BYTES);
    if (!copy) return;
    memcpy(copy, sha256, KN_SHA256_BYTES);
    if (kn_map_put(s->orphans, sha256, KN_SHA256_BYTES, copy) != 0) free(copy);
}

void server_keep_named(struct server *s) {
    size_t pos = 0;
    struct batch *b;
    struct store_record r;
    while ((b = kn_map_next(s->batches.by_id, &pos))) {
        if (b->phase == BATCH_REMOVING) continue;
        for (uint32_t i = 0; b->records && i < b->tasks; i++)
            if (batch_record(b, i, &r)) collect_keep(s->collect, r.sha256);
    }
    for (struct op *o = s->commits; o; o = o->next) collect_keep(s->collect, o->u.record.sha256);
    collect_keep_busy(s->collect);
}

static void drop_orphans(struct server *s, bool discard) {
    size_t pos = 0;
    uint8_t *x;
    if (!s->orphans || kn_map_count(s->orphans) == 0) return;
    while ((x = kn_map_next(s->orphans, &pos))) {
        if (discard && collect_discard(s->collect, x) != 0) kn_debug("orphan_stays");
        free(x);
    }
    kn_map_destroy(s->orphans);
    s->orphans = kn_map_create(ORPHANS_MAX);
    if (discard) server_keep_named(s);
}

static void on_committed(void *ctx, int code, const void *data, size_t len) {
    struct op *o = ctx;
    struct server *s = o->s;
    s->committing--;
    if (o->next) o->next->prev = o->prev;
    if (o->prev)
        o->prev->next = o->next;
    else
        s->commits = o->next;
    if (!s->closing) {
        struct batch *b = batches_find(&s->batches, o->batch);
        if (code == KN_EGONE) server_orphan(s, o->u.record.sha256);
        if (code == KN_EEXIST && len == STORE_RECORD_BYTES) {
            struct store_record mine = o->u.record;
            if (!store_record_unpack(data, &o->u.record)) code = KN_ECORRUPT;
            if (memcmp(mine.sha256, o->u.record.sha256, KN_SHA256_BYTES) != 0) server_orphan(s, mine.sha256);
        }
        if (b && (code == 0 || code == KN_EEXIST)) {
            int rc = batch_set_record(b, o->task, &o->u.record);
            if (rc != 0) kn_error("record_not_kept task=%u code=%d", o->task, rc);
            s->images += code == 0;
        }
        stored(s, FX_COMMIT, o->batch, o->task, code);
        server_flow(s);
    }
    free(o);
}

static void do_commit(struct server *s, const struct farm_effect *e) {
    struct batch *b = batches_find(&s->batches, e->batch);
    struct op *o = b ? op_create(s, e) : NULL;
    int rc = b ? KN_ENOMEM : KN_EGONE;
    if (o) {
        struct store_record *r = &o->u.record;
        const char *backend = farm_backend_name(s->farm, e->u.commit.backend);
        memcpy(r->sha256, e->u.commit.sha256, sizeof r->sha256);
        memcpy(r->pixels, e->u.commit.pixels, sizeof r->pixels);
        r->order = ++b->order;
        r->render_ms = e->u.commit.render_ms;
        r->attempt = e->u.commit.attempt > UINT8_MAX ? UINT8_MAX : (uint8_t)e->u.commit.attempt;
        r->flat = e->u.commit.flat;
        r->worker = name_number(s, b, e->u.commit.worker);
        r->backend = name_number(s, b, backend);
        r->engine = name_number(s, b, e->u.commit.engine);
        rc = store_commit(s->store, b->id, e->task, r, on_committed, o);
    }
    if (rc != 0) {
        not_taken(s, o, e, rc);
        return;
    }
    o->next = s->commits;
    if (s->commits) s->commits->prev = o;
    s->commits = o;
    s->committing++;
}

static void on_failed(void *ctx, int code, const void *data, size_t len) {
    struct op *o = ctx;
    struct server *s = o->s;
    (void)data;
    (void)len;
    if (!s->closing) {
        struct batch *b = batches_find(&s->batches, o->batch);
        if (b && code == 0) {
            int rc = batch_set_failure(b, &o->u.fail.f);
            if (rc != 0) kn_error("failure_not_kept task=%u code=%d", o->task, rc);
        }
        stored(s, FX_FAIL, o->batch, o->task, code);
    }
    free(o->u.fail.text);
    free(o);
}

static void do_fail(struct server *s, const struct farm_effect *e) {
    struct batch *b = batches_find(&s->batches, e->batch);
    struct op *o = b ? op_create(s, e) : NULL;
    int rc = b ? KN_ENOMEM : KN_EGONE;
    if (o) {
        const char *worker = e->u.fail.worker ? e->u.fail.worker : "",
                   *reason = e->u.fail.reason ? e->u.fail.reason : "";
        size_t a = strlen(worker) + 1, z = strlen(reason) + 1;
        char *text = malloc(a + z);
        if (text) {
            memcpy(text, worker, a);
            memcpy(text + a, reason, z);
            o->u.fail.text = text;
            o->u.fail.f = (struct store_failure){.task = e->task,
                                                 .code = e->u.fail.code,
                                                 .attempt = e->u.fail.attempt,
                                                 .order = ++b->order,
                                                 .worker = text,
                                                 .reason = text + a};
            rc = store_fail(s->store, b->id, &o->u.fail.f, on_failed, o);
            if (rc != 0) free(text);
        }
    }
    if (rc != 0) not_taken(s, o, e, rc);
}

static void on_state(void *ctx, int code, const void *data, size_t len) {
    struct op *o = ctx;
    struct server *s = o->s;
    (void)data;
    (void)len;
    if (!s->closing) {
        struct batch *b = batches_find(&s->batches, o->batch);
        if (b && code == 0) {
            b->finished_wall_ms = o->u.state.finished;
            if (o->u.state.retried) batch_clear_failures(b);
        }
        stored(s, FX_BATCH_STATE, o->batch, o->task, code);
        clients_reply(s, &o->asking, code, "");
    }
    free(o);
}

static void do_state(struct server *s, const struct farm_effect *e) {
    struct batch *b = batches_find(&s->batches, e->batch);
    struct op *o = b ? op_create(s, e) : NULL;
    int rc = b ? KN_ENOMEM : KN_EGONE;
    if (o) {
        uint32_t state = e->u.batch_state.state;
        bool over = state == KN_BATCH_DONE || state == KN_BATCH_CANCELLED;
        o->u.state.state = state;
        o->u.state.retried = e->u.batch_state.retried;
        o->u.state.finished = !over ? 0 : b->finished_wall_ms ? b->finished_wall_ms : kn_wall_ms();
        o->asking = s->asking;
        s->asking.sock = NULL;
        char id[KN_UUID_TEXT];
        kn_uuid_format(b->id, id);
        kn_info("batch_state batch=%s state=%s", id, kn_batch_state_name((enum kn_batch_state)state));
        rc = store_state(s->store, b->id, state, e->u.batch_state.priority, o->u.state.finished,
                         o->u.state.retried, on_state, o);
    }
    if (rc != 0) not_taken(s, o, e, rc);
}

static void do_charge(struct server *s, const struct farm_effect *e) {
    int rc = store_charge(s->store, e->batch, e->task, e->u.charge.charges);
    char id[KN_UUID_TEXT];
    kn_uuid_format(e->batch, id);
    kn_warn("task_charged batch=%s task=%u charges=%u reason=\"%s\"", id, e->task, e->u.charge.charges,
            e->u.charge.reason ? e->u.charge.reason : "");
    if (rc != 0) kn_warn("charge_not_stored code=%d", rc);
}

static void do_grant(struct server *s, const struct farm_effect *e) {
    struct kn_msg m = {.type = KN_MSG_SHARD_GRANT};
    struct kn_shard_grant *g = &m.u.shard_grant;
    struct kn_err err = {0};
    struct batch *b = batches_find(&s->batches, e->batch);
    struct kn_task tasks[KN_SHARD_TASKS_MAX];
    uint32_t index[KN_SHARD_TASKS_MAX];
    struct kn_buf text; /* strings of one chunk do not outlive the unpacking of another */
    size_t n = e->u.grant.task_count;
    assert(n <= KN_SHARD_TASKS_MAX);
    if (!b) return;
    kn_buf_init(&text, KN_SHARD_TASKS_MAX * (2 * KN_PROMPT_BYTES_MAX + 2));
    size_t at[KN_SHARD_TASKS_MAX][2];
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        const struct kn_task *t = batches_task(&s->batches, b, e->u.grant.tasks[i], &err);
        if (!t) {
            rc = err.code;
            break;
        }
        tasks[i] = *t;
        tasks[i].extra = NULL; /* the worker has no use for it */
        index[i] = e->u.grant.tasks[i];
        at[i][0] = text.len;
        rc = kn_buf_append(&text, t->prompt, strlen(t->prompt) + 1);
        at[i][1] = text.len;
        if (rc == 0) rc = kn_buf_append(&text, t->negative, strlen(t->negative) + 1);
    }
    for (size_t i = 0; rc == 0 && i < n; i++) {
        tasks[i].prompt = text.data + at[i][0];
        tasks[i].negative = text.data + at[i][1];
    }
    if (rc != 0) {
        kn_error("grant_failed shard=%llu code=%d reason=\"%s\"", (unsigned long long)e->u.grant.shard, rc,
                 err.text);
        struct farm_event ev = {.type = EV_SHARD_RETURNED, .conn = e->conn};
        ev.u.shard.shard = e->u.grant.shard;
        ev.u.shard.term = s->store->term;
        server_step(s, &ev);
    } else {
        g->shard = e->u.grant.shard;
        g->term = s->store->term;
        g->attempt = e->u.grant.attempt;
        memcpy(g->batch, e->batch, sizeof g->batch);
        memcpy(g->model_sha256, e->u.grant.model, sizeof g->model_sha256);
        g->index = index;
        g->tasks = tasks;
        g->count = n;
        server_tell(s, e->conn, &m);
    }
    kn_buf_fini(&text);
}

static void do_revoke(struct server *s, const struct farm_effect *e) {
    struct kn_msg m = {.type = KN_MSG_SHARD_REVOKE};
    m.u.shard_revoke.shard = e->u.revoke.shard;
    m.u.shard_revoke.term = e->u.revoke.term;
    m.u.shard_revoke.abort = e->u.revoke.abort;
    server_tell(s, e->conn, &m);
}

static void do_hello_again(struct server *s, const struct farm_effect *e) {
    struct kn_msg m = {.type = KN_MSG_HELLO_AGAIN};
    m.u.hello_again.reason = "not known here";
    server_tell(s, e->conn, &m);
}

static void do_drain(struct server *s, const struct farm_effect *e) {
    struct kn_msg m = {.type = KN_MSG_DRAIN_WORKER};
    m.u.drain_worker.exit = e->u.drain.exit;
    m.u.drain_worker.reason = e->u.drain.reason ? e->u.drain.reason : "";
    server_tell(s, e->conn, &m);
}

static void carry_out(struct server *s) {
    for (size_t i = 0; i < s->fx.count; i++) {
        const struct farm_effect *e = &s->fx.v[i];
        struct batch *b;
        switch (e->type) {
        case FX_GRANT:
            do_grant(s, e);
            break;
        case FX_REVOKE:
            do_revoke(s, e);
            break;
        case FX_COMMIT:
            do_commit(s, e);
            break;
        case FX_FAIL:
            do_fail(s, e);
            break;
        case FX_CHARGE:
            do_charge(s, e);
            break;
        case FX_BATCH_STATE:
            do_state(s, e);
            break;
        case FX_BATCH_REMOVE:
            b = batches_find(&s->batches, e->batch);
            if (b) clients_remove(s, b);
            break;
        case FX_ACK:
            workers_ack(s, e->conn, e->batch, e->task, e->u.ack.code);
            break;
        case FX_HELLO_AGAIN:
            do_hello_again(s, e);
            break;
        case FX_DRAIN:
            do_drain(s, e);
            break;
        case FX_ALARM:
            s->alarms++;
            kn_error("alarm text=\"%s\"", e->u.note.text);
            break;
        case FX_NOTE:
            kn_info("note text=\"%s\"", e->u.note.text);
            break;
        }
    }
    farm_effects_clear(&s->fx);
}

/* ---- flow and time */

void server_flow(struct server *s) {
    bool full = collect_bytes(s->collect) >= COLLECT_BYTES_MAX ||
                collect_count(s->collect) >= COLLECT_COUNT_MAX || s->committing >= COMMITTING_MAX;
    if (s->data) kn_sock_pause(s->data, full);
}

static void on_tick(uv_timer_t *t) {
    struct server *s = t->data;
    struct farm_event ev = {.type = EV_TICK};
    uint64_t now = kn_clock_ms(), before = s->ticked_ms;
    s->ticked_ms = now;
    server_flow(s);
    if (before && now - before > STALL_MS) {
        /* This process stood still. What workers said meanwhile waits in the sockets: hear it first. */
        kn_warn("stalled ms=%llu", (unsigned long long)(now - before));
        uv_timer_start(t, on_tick, TICK_MAX_MS, 0);
        return;
    }
    server_step(s, &ev);
    now = kn_clock_ms();
    uint64_t next = farm_next_tick(s->farm, now), ms = next > now ? next - now : 1;
    uv_timer_start(t, on_tick, ms < TICK_MAX_MS ? ms : TICK_MAX_MS, 0);
}

static void on_sweep(uv_timer_t *t) {
    struct server *s = t->data;
    workers_forget(s);
    clients_sweep(s);
    drop_orphans(s, true);
}

/* ---- life */

static void on_control(struct kn_sock *sock, void *ctx, const struct kn_peer *peer, struct kn_msg *msg,
                       struct kn_blob *blob) {
    struct listener *l = ctx;
    (void)sock;
    (void)blob;
    if (l->s->closing)
        kn_msg_destroy(msg);
    else if (!workers_message(l->s, l, peer, msg))
        clients_message(l->s, l, peer, msg);
}

static void on_data(struct kn_sock *sock, void *ctx, const struct kn_peer *peer, struct kn_msg *msg,
                    struct kn_blob *blob) {
    struct server *s = ctx;
    (void)sock;
    if (s->closing)
        kn_msg_destroy(msg);
    else
        workers_data(s, peer, msg, blob);
}

static void on_lost(void *ctx, int code, const char *text) {
    struct server *s = ctx;
    (void)code;
    kn_error("giving_up reason=\"%s\"", text);
    if (s->stopped) s->stopped(s->stopped_ctx, 4);
}

/* The folder's whole name: clients on this machine link its files from wherever they are. */
static int find_objects(struct server *s, struct kn_err *err) {
    int rc = kn_fs_mkdirs(s->opt.dir, 0755, err);
    if (rc != 0) return kn_err_prefix(err, "--dir");
    char *whole = realpath(s->opt.dir, NULL);
    if (!whole) return kn_err_set(err, KN_EIO, "--dir %s: %s", s->opt.dir, strerror(errno));
    rc = kn_fs_join(s->objects, sizeof s->objects, whole, "objects");
    free(whole);
    return rc == 0 ? 0 : kn_err_set(err, rc, "--dir: too long");
}

int server_create(uv_loop_t *loop, const struct server_options *opt, struct store *store, struct server **out,
                  struct kn_err *err) {
    struct server *s = calloc(1, sizeof *s);
    if (!s) return kn_err_set(err, KN_ENOMEM, "coordinator: out of memory");
    struct farm_config config;
    farm_config_default(&config);
    config.term = store->term;
    s->opt = *opt;
    s->loop = loop;
    s->store = store;
    uv_timer_init(loop, &s->tick);
    uv_timer_init(loop, &s->sweep);
    s->tick.data = s->sweep.data = s;
    s->workers = kn_map_create(KN_WORKERS_MAX * 2);
    s->conns = kn_map_create(CONNS_MAX);
    s->orphans = kn_map_create(ORPHANS_MAX);
    int rc = s->workers && s->conns && s->orphans ? batches_init(&s->batches) : KN_ENOMEM;
    if (rc == 0) rc = farm_create(&config, &s->farm);
    if (rc != 0) kn_err_set(err, rc, "coordinator: %s", kn_err_words(rc));
    if (rc == 0) rc = find_objects(s, err);
    if (rc == 0) rc = kn_wire_create(loop, &s->wire, err);
    if (rc == 0) rc = collect_create(loop, s->objects, &s->collect, err);
    store->lost = on_lost;
    store->lost_ctx = s;
    *out = s; /* also on failure: server_close() and server_destroy() take what there is */
    return rc;
}

static int bind_data(struct server *s, struct listener *l, const char *endpoint, struct kn_err *err) {
    char data[KN_ENDPOINT_MAX + 1];
    if (l->ipc) {
        int n = snprintf(l->data_ipc, sizeof l->data_ipc, "%s-data", endpoint);
        if (n < 0 || (size_t)n >= sizeof l->data_ipc)
            return kn_err_set(err, KN_ELIMIT, "%.200s: too long", endpoint);
        return kn_sock_bind(s->data, l->data_ipc, s->opt.insecure, NULL, err);
    }
    const char *port = strrchr(endpoint, ':');
    uint16_t want = s->data_port ? s->data_port : (uint16_t)s->opt.data_port, got = 0;
    int n = snprintf(data, sizeof data, "%.*s:%u", (int)(port - endpoint), endpoint, want);
    if (n < 0 || (size_t)n >= sizeof data) return kn_err_set(err, KN_ELIMIT, "%.200s: too long", endpoint);
    int rc = kn_sock_bind(s->data, data, s->opt.insecure, &got, err);
    if (rc == 0) s->data_port = got;
    return rc;
}

static int listen_on(struct server *s, const char *endpoint, struct kn_err *err) {
    struct listener *l = &s->listeners[s->listener_count];
    struct kn_sock_options opt = {.router = true, .recv = on_control, .ctx = l};
    char resolved[KN_ENDPOINT_MAX + 1];
    uint16_t port = 0;
    l->s = s;
    int rc = kn_endpoint_resolve(endpoint, resolved, err);
    if (rc == 0) rc = kn_sock_create(s->wire, &opt, &l->sock, err);
    if (rc != 0) return rc;
    s->listener_count++;
    l->ipc = strncmp(resolved, "ipc://", 6) == 0;
    rc = kn_sock_bind(l->sock, resolved, s->opt.insecure, &port, err);
    if (rc == 0) rc = bind_data(s, l, resolved, err);
    if (rc != 0) return rc;
    if (l->ipc)
        snprintf(l->endpoint, sizeof l->endpoint, "%s", resolved);
    else
        snprintf(l->endpoint, sizeof l->endpoint, "%.*s:%u", (int)(strrchr(resolved, ':') - resolved),
                 resolved, port);
    kn_info("listening endpoint=%s data_port=%u", l->endpoint, l->ipc ? 0u : s->data_port);
    if (!kn_endpoint_is_loopback(l->endpoint))
        kn_warn("insecure endpoint=%s: whoever reaches it can use this farm", l->endpoint);
    return 0;
}

int server_listen(struct server *s, struct kn_err *err) {
    struct kn_sock_options opt = {.router = true, .blobs = true, .recv = on_data, .ctx = s};
    int rc = kn_sock_create(s->wire, &opt, &s->data, err);
    for (int i = 0; rc == 0 && i < s->opt.listen_count; i++) rc = listen_on(s, s->opt.listen[i], err);
    if (rc != 0) return rc;
    uv_timer_start(&s->tick, on_tick, 1, 0);
    uv_timer_start(&s->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    if (!s->opt.ready_file) return 0;
    char text[LISTEN_MAX * (KN_ENDPOINT_MAX + 2)];
    size_t used = 0;
    for (int i = 0; i < s->listener_count; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s\n", s->listeners[i].endpoint);
    rc = kn_fs_replace(s->opt.ready_file, text, used, false, err);
    return rc == 0 ? 0 : kn_err_prefix(err, "--ready-file");
}

void server_close(struct server *s) {
    if (s->closing) return;
    s->closing = true;
    if (s->opt.ready_file) unlink(s->opt.ready_file);
    for (int i = 0; i < s->listener_count; i++) kn_sock_destroy(s->listeners[i].sock);
    kn_sock_destroy(s->data);
    store_close(s->store);
    s->store = NULL;
    collect_destroy(s->collect);
    s->collect = NULL;
    uv_close((uv_handle_t *)&s->tick, NULL);
    uv_close((uv_handle_t *)&s->sweep, NULL);
}

void server_destroy(struct server *s) {
    if (!s) return;
    kn_wire_destroy(s->wire);
    workers_fini(s);
    batches_fini(&s->batches);
    farm_effects_fini(&s->fx);
    farm_destroy(s->farm);
    drop_orphans(s, false);
    kn_map_destroy(s->orphans);
    kn_map_destroy(s->workers);
    kn_map_destroy(s->conns);
    while (s->again) {
        struct again *a = s->again;
        s->again = a->next;
        free(a);
    }
    free(s);
}
