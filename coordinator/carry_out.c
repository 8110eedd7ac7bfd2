/* See carry_out.h. An effect that writes to the store is an op until the store answers; its answer is fed
 * back as EV_STORED. */
#include "coordinator/carry_out.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/history.h"
#include "coordinator/keys.h"
#include "coordinator/send.h"
#include "coordinator/ticket.h"
#include "coordinator/trash.h"

#define COLLECT_BYTES_MAX (256u << 20) /* taken off the sockets and not durable yet */
#define COLLECT_COUNT_MAX 4096
#define COMMITTING_MAX 8192
#define FULL_PAUSE_MS 3000 /* below what a peer waits for the answer to its ping (proto/wire.c) */
#define HISTORY_TEXT_MAX 8192

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

void server_forget_events(struct server *s) {
    while (s->again) {
        struct again *a = s->again;
        s->again = a->next;
        free(a);
    }
}

static void forget_conn(struct server *s, struct known_worker *w) {
    if (w->conn) kn_map_remove(s->conns, &w->conn, sizeof w->conn);
    w->conn = 0;
}

/* Frees a worker that the table of names does not have (any more). */
static void drop_worker(struct server *s, struct known_worker *w) {
    forget_conn(s, w);
    kn_msg_destroy(w->msg);
    free(w);
}

/* Only a peer that is not connected any more is gone. A message that does not go out for another reason is said again
 * by whoever misses it; the reason is a fault of this side, or a peer that reads too slowly. */
int server_tell(struct server *s, uint64_t conn, const struct kn_msg *m) {
    struct kn_err err = {0};
    struct kn_peer peer = send_peer(conn);
    struct known_worker *w = kn_map_get(s->conns, &conn, sizeof conn);
    if (!w) {
        kn_debug("message_to_nobody message=%s", kn_msg_name(m->type));
        return KN_EGONE;
    }
    const char *name = w->name[0] ? w->name : w->hello->worker;
    int rc = kn_sock_send(w->listener->sock, &peer, m, NULL, &err);
    if (rc == 0) return 0;
    if (rc != KN_EGONE) {
        kn_warn("message_not_sent worker=%s message=%s code=%d reason=\"%s\"", name, kn_msg_name(m->type), rc,
                err.text);
        return rc;
    }
    kn_info("worker_unreachable worker=%s message=%s reason=\"%s\"", name, kn_msg_name(m->type), err.text);
    forget_conn(s, w);
    if (!w->name[0]) drop_worker(s, w);
    struct farm_event ev = {.type = EV_WORKER_GONE, .conn = conn};
    ev.u.gone.reason = "its connection is gone";
    server_step(s, &ev);
    return rc;
}

void server_ack(struct server *s, uint64_t conn, const kn_id batch, uint32_t task, int code) {
    struct kn_msg m = {.type = KN_MSG_IMAGE_ACK};
    struct kn_peer peer = send_peer(conn);
    memcpy(m.u.image_ack.batch, batch, sizeof m.u.image_ack.batch);
    m.u.image_ack.task = task;
    m.u.image_ack.code = code;
    if (kn_map_get(s->conns, &conn, sizeof conn)) {
        (void)server_tell(s, conn, &m);
        return;
    }
    send_to(s->data, &peer, &m);
}

/* ---- effects */

struct op { /* a write that the core waits for */
    struct server *s;
    struct commit commit; /* of an FX_COMMIT */
    kn_id batch;
    uint32_t what, task;
    union {
        struct store_record record;
        struct {
            struct store_failure f;
            char *text; /* owns: worker and reason */
        } fail;
        struct {
            uint64_t finished;
            enum kn_batch_state state;
            bool retried;
        } state;
    } u;
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

/* The store did not take the write: the core is told, and asks again later. */
static void not_taken(struct server *s, struct op *o, const struct farm_effect *e, int code) {
    kn_warn("store_busy effect=%d code=%d", (int)e->type, code);
    free(o);
    stored(s, e->type, e->batch, e->task, code);
}

static uint16_t name_number(struct server *s, struct kept_batch *b, const char *text) {
    uint16_t n;
    bool is_new;
    if (batch_name(b, text ? text : "", &n, &is_new) != 0) return 0;
    if (is_new && store_name(s->store, b->id, n, text) != 0) kn_warn("name_not_stored name=%s", text);
    return n;
}

static void link_commit(struct server *s, struct commit *c) {
    c->prev = NULL;
    c->next = s->commits;
    if (s->commits) s->commits->prev = c;
    s->commits = c;
    s->committing++;
}

static void unlink_commit(struct server *s, struct commit *c) {
    if (c->next) c->next->prev = c->prev;
    if (c->prev)
        c->prev->next = c->next;
    else
        s->commits = c->next;
    s->committing--;
}

static void on_committed(void *ctx, int code, const void *data, size_t len) {
    struct op *o = ctx;
    struct server *s = o->s;
    unlink_commit(s, &o->commit);
    if (!s->closing) {
        struct kept_batch *b = batches_find(&s->batches, o->batch);
        if (code == KN_EGONE) trash_orphan(s, o->u.record.sha256);
        if (code == KN_EEXIST && len == STORE_RECORD_BYTES) {
            struct store_record mine = o->u.record;
            if (!store_record_unpack(data, &o->u.record)) code = KN_ECORRUPT;
            if (memcmp(mine.sha256, o->u.record.sha256, KN_SHA256_BYTES) != 0) trash_orphan(s, mine.sha256);
        }
        if (b && (code == 0 || code == KN_EEXIST)) {
            int rc = batch_set_record(b, o->task, &o->u.record);
            if (rc != 0) kn_error("record_not_kept task=%u code=%d", o->task, rc);
            trash_committed(s, o->u.record.sha256);
        }
        stored(s, FX_COMMIT, o->batch, o->task, code);
        server_flow(s);
    }
    free(o);
}

static void do_commit(struct server *s, const struct farm_effect *e) {
    struct kept_batch *b = batches_find(&s->batches, e->batch);
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
    memcpy(o->commit.sha256, e->u.commit.sha256, sizeof o->commit.sha256);
    link_commit(s, &o->commit);
    trash_named(s, o->commit.sha256);
}

static void on_failed(void *ctx, int code, const void *data, size_t len) {
    struct op *o = ctx;
    struct server *s = o->s;
    (void)data;
    (void)len;
    if (!s->closing) {
        struct kept_batch *b = batches_find(&s->batches, o->batch);
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
    struct kept_batch *b = batches_find(&s->batches, e->batch);
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

/* Answers those who wait for the batch's state, once it is durable, or can be so no more. A write that was not
 * taken is asked for again by the core, and they go on waiting. */
static void settle(struct server *s, struct kept_batch *b, int code) {
    if (code == 0 && !farm_batch_settled(s->farm, b->id)) return;
    for (int i = 0; i < b->state_waiter_count; i++) {
        struct reply_to *to = &b->state_waiters[i];
        send_reply(s, to, code ? code : to->code, code ? "" : to->text);
    }
    b->state_waiter_count = 0;
}

void server_await_state(struct server *s, struct kept_batch *b, const struct reply_to *to, int code,
                        const char *text) {
    struct reply_to waiter = *to;
    waiter.code = code;
    waiter.text = text;
    reply_to_add(b->state_waiters, &b->state_waiter_count, &waiter);
    settle(s, b, 0);
}

static void on_state(void *ctx, int code, const void *data, size_t len) {
    struct op *o = ctx;
    struct server *s = o->s;
    (void)data;
    (void)len;
    if (!s->closing) {
        struct kept_batch *b = batches_find(&s->batches, o->batch);
        if (b && code == 0) {
            b->state = o->u.state.state;
            b->finished_wall_ms = o->u.state.finished;
            if (o->u.state.retried) batch_clear_failures(b);
        }
        stored(s, FX_BATCH_STATE, o->batch, o->task, code);
        if (b) settle(s, b, code == KN_EGONE || code == KN_ETERM ? code : 0);
    }
    free(o);
}

static void do_state(struct server *s, const struct farm_effect *e) {
    struct kept_batch *b = batches_find(&s->batches, e->batch);
    struct op *o = b ? op_create(s, e) : NULL;
    int rc = b ? KN_ENOMEM : KN_EGONE;
    if (o) {
        enum kn_batch_state state = (enum kn_batch_state)e->u.batch_state.state;
        bool over = state == KN_BATCH_DONE || state == KN_BATCH_CANCELLED;
        o->u.state.retried = e->u.batch_state.retried;
        o->u.state.finished = !over ? 0 : b->finished_wall_ms ? b->finished_wall_ms : kn_wall_ms();
        o->u.state.state = state;
        char id[KN_UUID_TEXT];
        kn_uuid_format(b->id, id);
        kn_info("batch_state batch=%s state=%s", id, kn_batch_state_name(state));
        rc = store_state(s->store, b->id, state, e->u.batch_state.priority, o->u.state.finished,
                         o->u.state.retried, on_state, o);
    }
    if (rc != 0) not_taken(s, o, e, rc);
}

/* Adds how an attempt ended to its task's story, or takes charges back in it. False: no story is kept. */
static bool tell_history(struct server *s, struct kept_batch *b, const struct farm_effect *e) {
    struct history h;
    struct kn_buf text;
    kn_buf_init(&text, HISTORY_TEXT_MAX);
    struct kn_attempt a = {.task = e->task,
                           .wall_ms = kn_wall_ms(),
                           .code = e->u.charge.code,
                           .charged = e->u.charge.charged,
                           .worker = e->u.charge.worker ? e->u.charge.worker : "",
                           .backend = e->u.charge.backend ? e->u.charge.backend : "",
                           .reason = e->u.charge.reason ? e->u.charge.reason : ""};
    int rc = history_read(batch_history(b, e->task), &h);
    if (rc == 0 && e->u.charge.backend)
        history_add(&h, &a);
    else if (rc == 0)
        history_refund(&h, a.worker);
    if (rc == 0) rc = history_write(&h, &text);
    if (rc == 0) rc = batches_set_history(&s->batches, b, e->task, text.data);
    history_fini(&h);
    kn_buf_fini(&text);
    if (rc != 0) kn_debug("history_not_kept task=%u code=%d", e->task, rc);
    return rc == 0;
}

static void do_charge(struct server *s, const struct farm_effect *e) {
    struct kept_batch *b = batches_find(&s->batches, e->batch);
    char id[KN_UUID_TEXT];
    kn_uuid_format(e->batch, id);
    if (!e->u.charge.backend || e->u.charge.charged)
        kn_warn("task_charged batch=%s task=%u charges=%u reason=\"%s\"", id, e->task, e->u.charge.charges,
                e->u.charge.reason ? e->u.charge.reason : "");
    bool told = b && tell_history(s, b, e);
    /* Where no story can be kept, the count of charges is what must not be lost. */
    if (!told && e->u.charge.backend && !e->u.charge.charged) return;
    int rc =
        store_charge(s->store, e->batch, e->task, e->u.charge.charges, b ? batch_history(b, e->task) : "");
    if (rc != 0) kn_warn("charge_not_stored code=%d", rc);
}

/* The proof of the grant, by whom it is for; returns its length. */
static size_t ticket_of(struct server *s, const struct farm_effect *e, uint8_t out[TICKET_BYTES_MAX]) {
    const struct known_worker *w = kn_map_get(s->conns, &e->conn, sizeof e->conn);
    char hex[KEYS_HOLDER_MAX];
    struct ticket_grant t = {e->batch, e->u.grant.shard, s->store->term,
                             w ? keys_holder(w->keyed ? &w->key : NULL, w->name, hex) : ""};
    return ticket_make(s->store->secret, &t, e->u.grant.tasks, e->u.grant.task_count, out);
}

static void do_grant(struct server *s, const struct farm_effect *e) {
    struct kn_msg m = {.type = KN_MSG_SHARD_GRANT};
    struct kn_shard_grant *g = &m.u.shard_grant;
    struct kn_err err = {0};
    struct kept_batch *b = batches_find(&s->batches, e->batch);
    struct kn_task tasks[KN_SHARD_TASKS_MAX];
    uint32_t index[KN_SHARD_TASKS_MAX];
    uint8_t ticket[TICKET_BYTES_MAX];
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
            rc = err.code ? err.code : KN_EINTERNAL;
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
    if (rc == 0) {
        g->shard = e->u.grant.shard;
        g->term = s->store->term;
        g->attempt = e->u.grant.attempt;
        memcpy(g->batch, e->batch, sizeof g->batch);
        memcpy(g->model_sha256, e->u.grant.model, sizeof g->model_sha256);
        g->index = index;
        g->tasks = tasks;
        g->count = n;
        g->ticket = ticket;
        g->ticket_len = ticket_of(s, e, ticket);
        rc = server_tell(s, e->conn, &m);
    }
    if (rc != 0 && rc != KN_EGONE) { /* it goes elsewhere, or there again after a pause */
        kn_error("grant_failed shard=%llu code=%d reason=\"%s\"", (unsigned long long)e->u.grant.shard, rc,
                 err.text[0] ? err.text : kn_err_words(rc));
        struct farm_event ev = {.type = EV_SHARD_RETURNED, .conn = e->conn};
        ev.u.shard.shard = e->u.grant.shard;
        ev.u.shard.term = s->store->term;
        server_step(s, &ev);
    }
    kn_buf_fini(&text);
}

static void do_revoke(struct server *s, const struct farm_effect *e) {
    struct kn_msg m = {.type = KN_MSG_SHARD_REVOKE};
    m.u.shard_revoke.shard = e->u.revoke.shard;
    m.u.shard_revoke.term = e->u.revoke.term;
    m.u.shard_revoke.abort = e->u.revoke.abort;
    (void)server_tell(s, e->conn, &m);
}

/* The core has taken a hello: who sent it is the worker of that name from now on. */
static void do_welcome(struct server *s, const struct farm_effect *e) {
    const char *name = e->u.welcome.worker;
    struct kn_peer peer = send_peer(e->conn);
    struct known_worker *w = kn_map_get(s->conns, &e->conn, sizeof e->conn),
                        *old = kn_map_get(s->workers, name, strlen(name));
    if (!w) return;
    if (old != w) {
        if (old) {
            kn_map_remove(s->workers, name, strlen(name));
            drop_worker(s, old);
        }
        if (w->name[0]) kn_map_remove(s->workers, w->name, strlen(w->name));
        snprintf(w->name, sizeof w->name, "%s", name);
        if (kn_map_put(s->workers, name, strlen(name), w) != 0) {
            kn_error("worker_not_kept worker=%s reason=\"out of memory\"", name);
            w->name[0] = 0;
        }
    }
    if (strcmp(name, w->hello->worker) != 0)
        kn_info("worker_named worker=%s host=%s pid=%u", name, w->hello->host, w->hello->pid);
    send_welcome(s, w->listener, &peer, 0, false, name);
}

static void do_refuse(struct server *s, const struct farm_effect *e) {
    const char *name = e->u.refuse.worker;
    struct known_worker *w = kn_map_get(s->conns, &e->conn, sizeof e->conn),
                        *other = kn_map_get(s->workers, name, strlen(name));
    char text[KN_REASON_MAX];
    if (!w) return;
    snprintf(
        text, sizeof text,
        "the name %s is taken: a worker on %s (process %u) has it and answers; this one is on %s (process "
        "%u). Choose another with --name, or leave --name out",
        name, other ? other->hello->host : "another host", other ? other->hello->pid : 0, w->hello->host,
        w->hello->pid);
    kn_warn("worker_refused worker=%s reason=\"%s\"", name, text);
    struct kn_msg m = {.type = KN_MSG_REPLY};
    m.u.reply.code = KN_EEXIST;
    m.u.reply.text = text;
    (void)server_tell(s, e->conn, &m);
    w = kn_map_get(s->conns, &e->conn, sizeof e->conn);
    if (!w) return;
    if (!w->name[0]) {
        drop_worker(s, w);
        return;
    }
    /* A worker that has a name asked for another's over the same connection: what it was by the first is gone. */
    forget_conn(s, w);
    struct farm_event ev = {.type = EV_WORKER_GONE, .conn = e->conn};
    ev.u.gone.reason = "it asked for another's name";
    server_step(s, &ev);
}

static void do_ask(struct server *s, const struct farm_effect *e) {
    struct kn_msg m = {.type = KN_MSG_STILL_THERE};
    m.u.still_there.question = e->u.ask.question;
    (void)server_tell(s, e->conn, &m);
}

static void do_hello_again(struct server *s, const struct farm_effect *e) {
    struct kn_msg m = {.type = KN_MSG_HELLO_AGAIN};
    m.u.hello_again.reason = "not known here";
    (void)server_tell(s, e->conn, &m);
}

static void do_probe(struct server *s, const struct farm_effect *e) {
    struct kn_msg m = {.type = KN_MSG_PROBE};
    m.u.probe.probe = e->u.probe.probe;
    memcpy(m.u.probe.model_sha256, e->u.probe.model, sizeof m.u.probe.model_sha256);
    server_tell(s, e->conn, &m);
}

static void do_drain(struct server *s, const struct farm_effect *e) {
    struct kn_msg m = {.type = KN_MSG_DRAIN_WORKER};
    m.u.drain_worker.exit = e->u.drain.exit;
    m.u.drain_worker.reason = e->u.drain.reason ? e->u.drain.reason : "";
    (void)server_tell(s, e->conn, &m);
}

/* Its records stand in the store as a tombstone now: their objects go, unless another batch names them. */
static void leave_tomb(struct server *s, struct kept_batch *b) {
    if (b->records && trash_tomb(s, b->id, b->remove_now, b->records, b->tasks) != 0)
        kn_warn("tombstone_left reason=\"out of memory: the next coordinator sees to it\"");
    b->records = NULL;
}

static void on_removed(void *ctx, int code, const void *data, size_t len) {
    struct op *o = ctx;
    struct server *s = o->s;
    (void)data;
    (void)len;
    struct kept_batch *b = s->closing ? NULL : batches_find(&s->batches, o->batch);
    free(o);
    if (!b) return;
    b->removal_open = false;
    if (code == 0 || code == KN_ETERM) send_replies(s, b->waiters, &b->waiter_count, code, "");
    if (code == 0) {
        leave_tomb(s, b);
        batches_drop(&s->batches, b);
    }
}

/* Removes the batch from the store, and then its pictures. Where the store takes nothing, the sweep asks it
 * again, and whoever waits goes on waiting. */
void server_remove(struct server *s, struct kept_batch *b) {
    struct farm_effect e = {.type = FX_BATCH_REMOVE};
    memcpy(e.batch, b->id, sizeof e.batch);
    struct op *o = op_create(s, &e);
    int rc = !o              ? KN_ENOMEM
             : b->remove_now ? store_remove_now(s->store, b->id, on_removed, o)
                             : store_remove(s->store, b->id, on_removed, o);
    b->removal_open = rc == 0;
    if (rc != 0) free(o);
}

static void carry_out(struct server *s) {
    for (size_t i = 0; i < s->fx.count; i++) {
        const struct farm_effect *e = &s->fx.v[i];
        struct kept_batch *b;
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
            if (b) server_remove(s, b);
            break;
        case FX_ACK:
            server_ack(s, e->conn, e->batch, e->task, e->u.ack.code);
            break;
        case FX_WELCOME:
            do_welcome(s, e);
            break;
        case FX_REFUSE:
            do_refuse(s, e);
            break;
        case FX_ASK:
            do_ask(s, e);
            break;
        case FX_HELLO_AGAIN:
            do_hello_again(s, e);
            break;
        case FX_DRAIN:
            do_drain(s, e);
            break;
        case FX_PROBE:
            do_probe(s, e);
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

/* ---- flow */

/* Pictures that there is no room for wait at their senders, whose connections are not read meanwhile. Not for long: a
 * connection of which nothing is read answers no ping. Then they are read and refused, and asked for when there is room. */
void server_flow(struct server *s) {
    bool full = collect_bytes(s->collect) >= COLLECT_BYTES_MAX ||
                collect_count(s->collect) >= COLLECT_COUNT_MAX || s->committing >= COMMITTING_MAX;
    if (!full)
        s->full_ms = 0;
    else if (s->full_ms == 0)
        s->full_ms = kn_clock_ms();
    if (s->data) kn_sock_pause(s->data, full && !server_refuses(s));
}

bool server_refuses(const struct server *s) {
    return s->full_ms != 0 && kn_clock_ms() - s->full_ms >= FULL_PAUSE_MS;
}
