/* See workers.h.
 *
 * A worker is known by its name; its connection by the number of its routing id, which changes when it
 * connects anew. A worker that speaks without a hello on that connection is asked for one. Pictures
 * come on the data socket from connections of their own; their acknowledgements go back the way they came. */
#include "coordinator/workers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/carry_out.h"
#include "coordinator/inspect.h"
#include "coordinator/keys.h"
#include "coordinator/send.h"
#include "coordinator/ticket.h"
#include "coordinator/trash.h"

#define NEWCOMER_MS 60000

/* ---- control */

static void forget_conn(struct server *s, struct known_worker *w) {
    if (!w->conn) return;
    kn_map_remove(s->conns, &w->conn, sizeof w->conn);
    w->conn = 0;
}

static void workers_free(struct known_worker *w) {
    kn_msg_destroy(w->msg);
    free(w);
}

static void worker_forget(struct server *s, struct known_worker *w) {
    forget_conn(s, w);
    if (w->name[0]) kn_map_remove(s->workers, w->name, strlen(w->name));
    workers_free(w);
}

/* The sender of a hello by its connection, made if it is new; takes msg on success. Which worker it is, the
 * core says (FX_WELCOME). */
static int sender_of(struct server *s, struct listener *l, uint64_t conn, struct kn_msg *msg,
                     struct known_worker **out) {
    struct known_worker *w = kn_map_get(s->conns, &conn, sizeof conn);
    if (!w) {
        w = calloc(1, sizeof *w);
        int rc = w ? kn_map_put(s->conns, &conn, sizeof conn, w) : KN_ENOMEM;
        if (rc != 0) {
            free(w);
            return rc;
        }
        w->conn = conn;
    }
    kn_msg_destroy(w->msg);
    w->msg = msg;
    w->hello = &msg->u.worker_hello;
    w->listener = l;
    w->readings = (struct kn_readings){0};
    w->loading[0] = w->refused[0] = '\0';
    w->left = false;
    w->asked_ms = kn_clock_ms();
    *out = w;
    return 0;
}

static void refuse(struct listener *l, const struct kn_peer *peer, int code, const char *text) {
    struct kn_msg m = {.type = KN_MSG_REPLY};
    m.u.reply.code = code;
    m.u.reply.text = text;
    send_to(l->sock, peer, &m);
}

void workers_garbled(struct listener *l, const struct kn_peer *peer, const struct kn_garbled *g) {
    char text[KN_REASON_MAX];
    if (g->type != KN_MSG_WORKER_HELLO) return;
    snprintf(
        text, sizeof text,
        "the coordinator (kiln %s) cannot read this worker's hello: %.200s; both should be of one version",
        KILN_VERSION, g->text);
    refuse(l, peer, g->code, text);
}

/* The key of whoever sent the message in hand. */
static const struct kn_public_key *key_of_asker(const struct server *s) {
    return s->asker ? &s->asker->key : NULL;
}

static bool held_is_proven(const struct server *s, const struct kn_worker_hello *h,
                           const struct kn_held_shard *x) {
    char hex[KEYS_HOLDER_MAX];
    struct ticket_grant g = {x->batch, x->shard, x->term, keys_holder(key_of_asker(s), h->worker, hex)};
    bool proven = ticket_is_good(s->store->secret, &g, x->ticket, x->ticket_len);
    for (size_t i = 0; proven && i < x->task_count; i++)
        proven = ticket_names(x->ticket, x->ticket_len, x->tasks[i]);
    return proven;
}

/* A worker's name is its key's. False: it was refused, in words. */
static bool has_its_name(const struct server *s, struct listener *l, const struct kn_peer *peer,
                         const struct kn_worker_hello *h) {
    char text[KN_REASON_MAX];
    if (!s->asker || h->name_base[0] || keys_may_be_named(s->asker, h->worker)) return true;
    snprintf(
        text, sizeof text,
        "the key of this machine has the name %s on this farm: its workers are %s, or %s-0, %s-1 … by --name, and not "
        "%s",
        s->asker->name, s->asker->name, s->asker->name, s->asker->name, h->worker);
    kn_warn_of(send_conn(peer), "worker_refused worker=%s key=%s reason=\"the name is not its key's\"",
               h->worker, s->asker->name);
    refuse(l, peer, KN_EPERM, text);
    return false;
}

/* Names that the farm makes are made of the key's, and no other key gets them back by naming the same machine. */
static void bind_to_key(const struct known_key *k, struct ev_worker_hello *e) {
    uint8_t both[KN_UUID_BYTES + KN_KEY_BYTES];
    kn_digest digest;
    if (!k || !e->base[0]) return;
    if (!keys_may_be_named(k, e->base)) e->base = k->name;
    e->named_by_farm = e->named_by_farm && keys_may_be_named(k, e->worker);
    memcpy(both, e->machine, sizeof e->machine);
    memcpy(both + KN_UUID_BYTES, k->key.bytes, KN_KEY_BYTES);
    kn_sha256(both, sizeof both, digest);
    memcpy(e->machine, digest, sizeof e->machine);
}

static void on_hello(struct server *s, struct listener *l, const struct kn_peer *peer, struct kn_msg *msg) {
    struct known_worker *w;
    uint64_t conn = send_conn(peer);
    kn_digest models[KN_MODELS_PER_WORKER_MAX];
    struct farm_held held[KN_SHARDS_PER_WORKER_MAX * 4];
    if (!has_its_name(s, l, peer, &msg->u.worker_hello)) {
        kn_msg_destroy(msg);
        return;
    }
    int rc = sender_of(s, l, conn, msg, &w);
    if (rc != 0) {
        refuse(l, peer, rc, "the farm cannot take this worker");
        kn_msg_destroy(msg);
        return;
    }
    const struct kn_worker_hello *h = w->hello;
    w->keyed = s->asker != NULL;
    if (w->keyed) w->key = s->asker->key;
    for (size_t i = 0; i < h->model_count; i++) memcpy(models[i], h->models[i].sha256, sizeof models[i]);
    for (size_t i = 0; i < h->held_count; i++) {
        held[i].shard = h->held[i].shard;
        held[i].term = h->held[i].term;
        memcpy(held[i].batch, h->held[i].batch, sizeof held[i].batch);
        held[i].tasks = h->held[i].tasks;
        held[i].task_count = (uint32_t)h->held[i].task_count;
        held[i].unproven = !held_is_proven(s, h, &h->held[i]);
    }
    for (size_t i = 0; i < h->model_count; i++) workers_remember_model(s, &h->models[i], 0);
    kn_info("worker_hello worker=%s host=%s pid=%u backend=%s models=%zu held=%zu credit=%u", h->worker,
            h->host, h->pid, h->backend, h->model_count, h->held_count, h->credit);
    struct farm_event ev = {.type = EV_WORKER_HELLO, .conn = conn};
    struct ev_worker_hello *e = &ev.u.hello;
    e->worker = h->worker;
    e->base = h->name_base;
    e->named_by_farm = h->named_by_farm;
    e->has_machine = h->has_machine;
    memcpy(e->machine, h->machine, sizeof e->machine);
    e->answers = h->answers;
    memcpy(e->instance, h->instance, sizeof e->instance);
    e->backend = h->backend;
    e->credit = h->credit;
    e->batch_max = h->batch_max;
    e->features = kn_features_of_peer(h->features, h->feature_count);
    e->died_of_memory = h->died_of_memory;
    e->probes = h->probes;
    e->models = (const kn_digest *)models;
    e->model_count = (uint32_t)h->model_count;
    e->held = held;
    e->held_count = (uint32_t)h->held_count;
    bind_to_key(s->asker, e);
    rc = server_step(s, &ev);
    if (rc == KN_EAGAIN) {
        kn_info("worker_waits worker=%s host=%s pid=%u reason=\"another process has that name: it is asked\"",
                h->worker, h->host, h->pid);
    } else if (rc != 0) {
        kn_warn("worker_refused worker=%s code=%d", h->worker, rc);
        refuse(l, peer, rc, "the farm cannot take this worker");
        w = kn_map_get(s->conns, &conn, sizeof conn); /* the step may have dropped it */
        if (w) worker_forget(s, w);
    }
}

/* ---- drained */

static void drains_answer(struct server *s) {
    int kept = 0;
    for (int i = 0; i < s->drain_count; i++) {
        struct drain_wait *d = &s->drains[i];
        struct farm_worker_view v = {.state = KN_WORKER_LOST};
        for (size_t k = 0; k < farm_worker_count(s->farm); k++) {
            if (farm_worker_at(s->farm, k, kn_clock_ms(), &v) == 0 && strcmp(v.worker, d->worker) == 0) break;
            v = (struct farm_worker_view){.state = KN_WORKER_LOST};
        }
        const struct known_worker *w = kn_map_get(s->workers, d->worker, strlen(d->worker));
        if (v.drains || !w || w->left)
            send_reply(s, &d->to, 0, "");
        else if (farm_worker_is_lost(s->farm, d->worker))
            send_reply(s, &d->to, KN_EGONE, "it is not there any more, and nobody knows if it heard of it");
        else
            s->drains[kept++] = *d;
    }
    s->drain_count = kept;
}

void workers_await_drain(struct server *s, const char *worker, const struct reply_to *to) {
    if (s->drain_count == DRAINS_MAX) { /* the oldest has asked again by now */
        memmove(s->drains, s->drains + 1, (DRAINS_MAX - 1) * sizeof s->drains[0]);
        s->drain_count--;
    }
    struct drain_wait *d = &s->drains[s->drain_count++];
    snprintf(d->worker, sizeof d->worker, "%s", worker);
    d->to = *to;
    drains_answer(s);
}

static void on_heartbeat(struct server *s, struct known_worker *w, const struct kn_heartbeat *h) {
    struct farm_event ev = {.type = EV_WORKER_HEARTBEAT, .conn = w->conn};
    w->readings = h->readings;
    snprintf(w->loading, sizeof w->loading, "%s", h->loading);
    w->loading_bytes = h->loading_bytes;
    struct ev_worker_heartbeat *e = &ev.u.heartbeat;
    e->shard = h->shard;
    e->step = h->step;
    e->steps = h->steps;
    e->minibatch = h->minibatch;
    e->progress_age_ms = h->progress_age_ms;
    e->draining = h->draining;
    e->has_model = h->has_model;
    memcpy(e->model, h->model_sha256, sizeof e->model);
    e->answer = h->answer;
    server_step(s, &ev);
    if (s->drain_count > 0) drains_answer(s);
}

static void on_task_failed(struct server *s, uint64_t conn, const struct kn_task_failed *f) {
    struct farm_event ev = {.type = EV_TASK_FAILED, .conn = conn};
    struct ev_task_failed *e = &ev.u.task_failed;
    memcpy(e->batch, f->batch, sizeof e->batch);
    e->task = f->task;
    e->shard = f->shard;
    e->term = f->term;
    e->code = f->code;
    e->reason = f->reason;
    server_step(s, &ev);
}

/* Remembers for people what a worker says that it cannot do. */
static void note_returned(struct known_worker *w, const struct kn_shard_returned *r) {
    if (r->code == 0 && !r->reason[0]) return;
    kn_warn("shard_returned worker=%s shard=%llu code=%d reason=\"%s\"", w->name,
            (unsigned long long)r->shard, r->code, r->reason);
    if (r->code == KN_EUNSUPPORTED) snprintf(w->refused, sizeof w->refused, "%s", r->reason);
}

static void on_probed(struct server *s, uint64_t conn, const struct kn_probed *p) {
    struct farm_event ev = {.type = EV_PROBED, .conn = conn};
    ev.u.probed = (struct ev_probed){.probe = p->probe, .code = p->code, .reason = p->reason};
    server_step(s, &ev);
}

static void on_shard(struct server *s, uint64_t conn, const struct kn_msg *m) {
    struct farm_event ev = {.conn = conn};
    struct ev_shard *e = &ev.u.shard;
    if (m->type == KN_MSG_SHARD_STARTED) {
        ev.type = EV_SHARD_STARTED;
        e->shard = m->u.shard_started.shard;
        e->term = m->u.shard_started.term;
    } else if (m->type == KN_MSG_SHARD_RETURNED) {
        ev.type = EV_SHARD_RETURNED;
        e->shard = m->u.shard_returned.shard;
        e->term = m->u.shard_returned.term;
        e->out_of_memory = m->u.shard_returned.out_of_memory;
        e->unsupported = m->u.shard_returned.code == KN_EUNSUPPORTED;
    } else {
        ev.type = EV_SHARD_DONE;
        e->shard = m->u.shard_done.shard;
        e->term = m->u.shard_done.term;
        e->render_ms = m->u.shard_done.render_ms;
    }
    server_step(s, &ev);
}

static void on_bye(struct server *s, struct known_worker *w, bool revoked, const char *reason) {
    struct farm_event ev = {.type = EV_WORKER_GONE, .conn = w->conn};
    ev.u.gone.reason = reason;
    ev.u.gone.bye = true;
    ev.u.gone.revoked = revoked;
    kn_info("worker_bye worker=%s reason=\"%s\"", w->name, reason);
    server_step(s, &ev);
    forget_conn(s, w);
    w->left = true;
    if (s->drain_count > 0) drains_answer(s);
    if (!w->name[0]) worker_forget(s, w); /* a newcomer that went */
}

static bool is_its_key(const struct server *s, const struct known_worker *w) {
    const struct kn_public_key *key = key_of_asker(s);
    return w->keyed == (key != NULL) && (!key || memcmp(&w->key, key, sizeof *key) == 0);
}

void workers_revoke(struct server *s, const struct kn_public_key *key, const char *why) {
    uint64_t conns[KN_WORKERS_MAX];
    size_t pos = 0, count = 0;
    struct known_worker *w;
    while (count < KN_WORKERS_MAX && (w = kn_map_next(s->conns, &pos)))
        if (w->keyed && memcmp(&w->key, key, sizeof *key) == 0) conns[count++] = w->conn;
    for (size_t i = 0; i < count; i++)
        if ((w = kn_map_get(s->conns, &conns[i], sizeof conns[i]))) on_bye(s, w, true, why);
}

bool workers_message(struct server *s, struct listener *l, const struct kn_peer *peer, struct kn_msg *msg) {
    uint64_t conn = send_conn(peer);
    struct known_worker *w = kn_map_get(s->conns, &conn, sizeof conn);
    switch ((int)msg->type) {
    case KN_MSG_WORKER_HELLO:
        on_hello(s, l, peer, msg);
        return true;
    case KN_MSG_HEARTBEAT:
    case KN_MSG_SHARD_STARTED:
    case KN_MSG_SHARD_RETURNED:
    case KN_MSG_SHARD_DONE:
    case KN_MSG_TASK_FAILED:
    case KN_MSG_PROBED:
    case KN_MSG_WORKER_BYE:
        break;
    default:
        return false;
    }
    if (!w || w->listener != l || !is_its_key(s, w)) {
        struct kn_msg m = {.type = KN_MSG_HELLO_AGAIN};
        m.u.hello_again.reason = "this connection has not said hello";
        send_to(l->sock, peer, &m);
    } else if (msg->type == KN_MSG_HEARTBEAT) {
        on_heartbeat(s, w, &msg->u.heartbeat);
    } else if (msg->type == KN_MSG_TASK_FAILED) {
        on_task_failed(s, conn, &msg->u.task_failed);
    } else if (msg->type == KN_MSG_PROBED) {
        on_probed(s, conn, &msg->u.probed);
    } else if (msg->type == KN_MSG_WORKER_BYE) {
        on_bye(s, w, false, msg->u.worker_bye.reason);
    } else {
        if (msg->type == KN_MSG_SHARD_RETURNED) note_returned(w, &msg->u.shard_returned);
        on_shard(s, conn, msg);
    }
    kn_msg_destroy(msg);
    return true;
}

/* ---- data */

struct arrival {
    struct server *s;
    struct commit link; /* in the server's arrivals */
    struct kn_msg *msg; /* owns */
    uint64_t conn;
    bool decoded;
};

static void link_arrival(struct arrival *u) {
    struct server *s = u->s;
    memcpy(u->link.sha256, u->msg->u.image_result.sha256, sizeof u->link.sha256);
    u->link.next = s->arrivals;
    if (s->arrivals) s->arrivals->prev = &u->link;
    s->arrivals = &u->link;
    trash_named(s, u->link.sha256);
}

static void unlink_arrival(struct arrival *u) {
    if (u->link.next) u->link.next->prev = u->link.prev;
    if (u->link.prev)
        u->link.prev->next = u->link.next;
    else
        u->s->arrivals = u->link.next;
}

static void feed_result(struct server *s, uint64_t conn, const struct kn_image_result *r) {
    struct farm_event ev = {.type = EV_RESULT, .conn = conn};
    struct ev_result *e = &ev.u.result;
    memcpy(e->batch, r->batch, sizeof e->batch);
    e->task = r->task;
    e->attempt = r->attempt;
    memcpy(e->sha256, r->sha256, sizeof e->sha256);
    memcpy(e->pixels, r->pixels_sha256, sizeof e->pixels);
    e->render_ms = r->render_ms;
    e->flat = r->flat;
    e->worker = r->worker;
    e->engine = r->engine;
    int rc = farm_backend(s->farm, r->backend, &e->backend);
    if (rc != 0) {
        kn_warn("result_refused backend=%s code=%d", r->backend, rc);
        server_ack(s, conn, r->batch, r->task, rc);
        return;
    }
    server_step(s, &ev);
}

/* The core has the task rendered again, elsewhere if it can. */
static void feed_bad(struct server *s, const struct kn_image_result *r, const char *why) {
    struct farm_event ev = {.type = EV_RESULT_BAD};
    struct ev_result_bad *e = &ev.u.result_bad;
    memcpy(e->batch, r->batch, sizeof e->batch);
    e->task = r->task;
    e->shard = r->shard;
    e->term = r->term;
    e->worker = r->worker;
    e->reason = why;
    server_step(s, &ev);
}

/* The disk took a picture (why NULL), or refused it: a person is told for as long as it is so (waits.c). */
static void note_disk(struct server *s, const char *why) {
    s->disk_refused_ms = why ? kn_clock_ms() : 0;
    s->some_refused |= why != NULL;
    if (why) snprintf(s->disk_why, sizeof s->disk_why, "%s", why);
}

static void on_collected(void *ctx, int code, const char *why) {
    struct arrival *u = ctx;
    const struct kn_image_result *r = &u->msg->u.image_result;
    note_disk(u->s, code == 0 || code == KN_ECORRUPT ? NULL : why && why[0] ? why : kn_err_words(code));
    if (code == 0) {
        int wanted = farm_wants(u->s->farm, r->batch, r->task);
        struct kept_batch *b = batches_find(&u->s->batches, r->batch);
        struct store_record have;
        if (wanted != 0 && !(b && batch_record(b, r->task, &have) &&
                             memcmp(have.sha256, r->sha256, sizeof have.sha256) == 0))
            trash_orphan(u->s, r->sha256); /* somebody was faster, or the batch is over */
        if (u->decoded) inspect_good(u->s, r->worker);
        feed_result(u->s, u->conn, r);
    } else {
        kn_error("image_not_kept task=%u worker=%s code=%d reason=\"%s\"", r->task, r->worker, code,
                 why ? why : "");
        /* Corrupt bytes will not get better. What the disk refused stays with the worker, which tries again.
         */
        if (code == KN_ECORRUPT) {
            inspect_bad(u->s, r->worker);
            server_ack(u->s, u->conn, r->batch, r->task, code);
            feed_bad(u->s, r, why);
        }
    }
    unlink_arrival(u);
    server_flow(u->s);
    kn_msg_destroy(u->msg);
    free(u);
}

/* The picture was asked for. Its ticket shows it; a program of before tickets has none to bring, and is believed
 * for what this coordinator knows that it holds. */
static bool is_granted(const struct server *s, const struct kn_image_result *r) {
    char hex[KEYS_HOLDER_MAX];
    struct ticket_grant g = {r->batch, r->shard, r->term, keys_holder(key_of_asker(s), r->worker, hex)};
    if (s->asker && !keys_may_be_named(s->asker, r->worker)) return false;
    if (r->ticket_len == 0) {
        const struct known_worker *w = kn_map_get(s->workers, r->worker, strlen(r->worker));
        return w && !(kn_features_of_peer(w->hello->features, w->hello->feature_count) & KN_FEATURE_TICKET) &&
               farm_holds(s->farm, r->worker, r->shard, r->term, r->batch, r->task);
    }
    return ticket_is_good(s->store->secret, &g, r->ticket, r->ticket_len) &&
           ticket_names(r->ticket, r->ticket_len, r->task);
}

/* What to say of a picture that nobody can be shown to have asked for. One that is on its way to the store may be
 * the very same, sent again by a program of before tickets: it keeps the bytes. */
static int refusal(const struct server *s, const struct kn_image_result *r) {
    enum farm_task_state state;
    int wanted = farm_wants(s->farm, r->batch, r->task);
    if (wanted != 0) return wanted;
    bool waits = farm_task_state(s->farm, r->batch, r->task, &state) == 0 && state == TASK_COMMITTING;
    return waits && r->ticket_len == 0 ? KN_EAGAIN : KN_EPERM;
}

void workers_image(struct server *s, const struct kn_peer *peer, struct kn_msg *msg, struct kn_blob *blob) {
    const struct kn_image_result *r = &msg->u.image_result;
    uint64_t conn = send_conn(peer);
    int wanted = farm_wants(s->farm, r->batch, r->task);
    if (!is_granted(s, r)) {
        int code = refusal(s, r);
        if (code == KN_EPERM)
            kn_warn("result_refused worker=%s shard=%llu term=%llu task=%u reason=\"%s\"", r->worker,
                    (unsigned long long)r->shard, (unsigned long long)r->term, r->task,
                    r->ticket_len ? "its ticket is not for this"
                                  : "no ticket, and not granted by this coordinator");
        server_ack(s, conn, r->batch, r->task, code);
    } else if (wanted == KN_EEXIST) {
        feed_result(s, conn, r); /* the core compares it with the one that is there */
    } else if (wanted != 0) {
        server_ack(s, conn, r->batch, r->task, wanted);
    } else if (!blob || blob->len == 0) {
        kn_warn("image_without_bytes task=%u worker=%s", r->task, r->worker);
        server_ack(s, conn, r->batch, r->task, KN_EPROTO);
    } else if (server_refuses(s)) {
        server_ack(s, conn, r->batch, r->task, KN_EAGAIN);
        s->some_refused = true;
    } else {
        struct arrival *u = malloc(sizeof *u);
        if (u) {
            struct kn_picture want = {.decoded = inspect_wanted(s, r->worker, r->sha256)};
            memcpy(want.pixels, r->pixels_sha256, sizeof want.pixels);
            farm_task_size(s->farm, r->batch, r->task, &want.width, &want.height);
            *u = (struct arrival){.s = s, .msg = msg, .conn = conn, .decoded = want.decoded};
            if (collect_put(s->collect, r->sha256, blob, &want, on_collected, u) == 0) {
                link_arrival(u);
                server_flow(s);
                return;
            }
            free(u);
        }
        kn_error("image_not_taken task=%u reason=\"out of memory\"", r->task);
        s->some_refused = true;
    }
    kn_msg_destroy(msg);
}

void workers_want_pictures(struct server *s) {
    struct kn_msg m = {.type = KN_MSG_PICTURES_WANTED};
    uint64_t conns[KN_WORKERS_MAX];
    size_t pos = 0, count = 0;
    struct known_worker *w;
    while (count < KN_WORKERS_MAX && (w = kn_map_next(s->workers, &pos)))
        if (w->conn) conns[count++] = w->conn;
    for (size_t i = 0; i < count; i++) server_tell(s, conns[i], &m); /* which may forget some */
}

/* ---- the models of all workers, and workers that are gone */

static bool is_zero(const uint8_t sha256[KN_SHA256_BYTES]) {
    for (int i = 0; i < KN_SHA256_BYTES; i++)
        if (sha256[i]) return false;
    return true;
}

#define REMEMBERED_MS (24 * 3600 * 1000ull) /* the store hears of a model again after so long */

static int store_one(struct server *s, const struct known_model *k) {
    struct kn_msg m = {.type = KN_MSG_MODEL_LIST};
    struct kn_buf b;
    m.u.model_list.v = (struct kn_model_info *)&k->info;
    m.u.model_list.count = 1;
    kn_buf_init(&b, KN_FRAME_BYTES_MAX);
    int rc = kn_msg_encode(&m, &b, NULL);
    if (rc == 0) rc = store_model(s->store, k->info.sha256, k->wall_ms, b.data, b.len);
    if (rc != 0) kn_warn("model_not_stored model=%s code=%d", k->info.name, rc);
    kn_buf_fini(&b);
    return rc;
}

int workers_store_models(struct server *s) {
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < s->model_count; i++) rc = store_one(s, &s->models[i]);
    return rc;
}

void workers_remember_model(struct server *s, const struct kn_model_info *m, uint64_t wall_ms) {
    uint64_t now = kn_wall_ms();
    struct known_model *k = NULL;
    for (size_t i = 0; i < s->model_count && !k; i++)
        if (memcmp(s->models[i].info.sha256, m->sha256, sizeof m->sha256) == 0) k = &s->models[i];
    if (k && !wall_ms && k->wall_ms + REMEMBERED_MS > now) return;
    if (!k && s->model_count == KN_KNOWN_MODELS_MAX) { /* the one that was announced longest ago gives way */
        k = &s->models[0];
        for (size_t i = 1; i < s->model_count; i++)
            if (s->models[i].wall_ms < k->wall_ms) k = &s->models[i];
    }
    if (!k) {
        struct known_model *v = realloc(s->models, (s->model_count + 1) * sizeof *v);
        if (!v) return; /* it is remembered when it is announced again */
        s->models = v;
        k = &v[s->model_count++];
    }
    *k = (struct known_model){.info = *m, .wall_ms = wall_ms ? wall_ms : now};
    if (!wall_ms) store_one(s, k);
}

/* True where the digest was not in the set yet; it is now. KN_ENOMEM in *rc. */
static bool new_in(struct kn_map *set, const uint8_t sha256[KN_SHA256_BYTES], const void *value, int *rc) {
    int put = kn_map_put(set, sha256, KN_SHA256_BYTES, (void *)(uintptr_t)value);
    if (put != 0 && put != KN_EEXIST) *rc = put;
    return put == 0;
}

int workers_models(struct server *s, struct kn_model_info **out, size_t *count) {
    size_t pos = 0, cap = 0;
    struct known_worker *w;
    struct kn_map *seen = kn_map_create(KN_WORKERS_MAX * KN_MODELS_PER_WORKER_MAX);
    int rc = seen ? 0 : KN_ENOMEM;
    *out = NULL;
    *count = 0;
    while (rc == 0 && (w = kn_map_next(s->workers, &pos))) {
        if (w->left || farm_worker_is_lost(s->farm, w->name)) continue;
        for (size_t i = 0; rc == 0 && i < w->hello->model_count; i++) {
            if (!new_in(seen, w->hello->models[i].sha256, w, &rc)) continue;
            if (*count == cap) {
                cap = cap ? cap * 2 : 16;
                struct kn_model_info *v = realloc(*out, cap * sizeof *v);
                if (!v) {
                    rc = KN_ENOMEM;
                    break;
                }
                *out = v;
            }
            (*out)[(*count)++] = w->hello->models[i];
        }
    }
    kn_map_destroy(seen);
    if (rc == 0) return 0;
    free(*out);
    *out = NULL;
    return rc;
}

struct kn_map *workers_model_index(struct server *s) {
    size_t pos = 0;
    struct known_worker *w;
    struct kn_map *index = kn_map_create(KN_WORKERS_MAX * KN_MODELS_PER_WORKER_MAX);
    int rc = index ? 0 : KN_ENOMEM;
    while (rc == 0 && (w = kn_map_next(s->workers, &pos)))
        for (size_t i = 0; rc == 0 && i < w->hello->model_count; i++)
            (void)new_in(index, w->hello->models[i].sha256, &w->hello->models[i], &rc);
    if (rc == 0) return index;
    kn_map_destroy(index);
    return NULL;
}

const char *workers_model_name(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]) {
    size_t pos = 0;
    struct known_worker *w;
    while ((w = kn_map_next(s->workers, &pos)))
        for (size_t i = 0; i < w->hello->model_count; i++)
            if (memcmp(w->hello->models[i].sha256, sha256, KN_SHA256_BYTES) == 0)
                return w->hello->models[i].name;
    return "";
}

int workers_model(struct server *s, const char *name, const uint8_t sha256[KN_SHA256_BYTES],
                  struct kn_model_info *out, struct kn_err *err) {
    struct kn_model_info *v;
    size_t count, found = 0;
    int rc = workers_models(s, &v, &count);
    if (rc != 0) return kn_err_set(err, rc, "models: out of memory");
    for (size_t i = 0; i < count; i++) {
        bool fits = is_zero(sha256) ? strcmp(v[i].name, name) == 0
                                    : memcmp(v[i].sha256, sha256, KN_SHA256_BYTES) == 0;
        if (!fits) continue;
        if (found++ == 0) *out = v[i];
    }
    for (size_t i = 0; found == 0 && i < s->model_count; i++) { /* nobody who has it is there now */
        const struct kn_model_info *m = &s->models[i].info;
        if (is_zero(sha256) ? strcmp(m->name, name) != 0 : memcmp(m->sha256, sha256, KN_SHA256_BYTES) != 0)
            continue;
        found = 1;
        *out = *m;
    }
    if (found == 0) {
        struct kn_buf list;
        kn_buf_init(&list, KN_ERR_TEXT_MAX - 200);
        for (size_t i = 0; i < count; i++) {
            char hex[KN_SHA256_HEX];
            kn_hex(v[i].sha256, KN_SHA256_BYTES, hex);
            if (kn_buf_appendf(&list, "%s%s (%.12s)", i ? ", " : "", v[i].name, hex) != 0) break;
        }
        rc = kn_err_set(err, KN_EMODEL, "model %s is not on this farm; there is: %s", name,
                        list.len ? list.data : "none, no worker has joined yet");
        kn_buf_fini(&list);
    } else if (found > 1) {
        rc =
            kn_err_set(err, KN_EMODEL, "model %s: the farm has %zu different ones of that name", name, found);
    }
    free(v);
    return rc;
}

/* Newcomers that nobody will decide about any more: they went without a word. */
static void forget_newcomers(struct server *s) {
    size_t pos = 0, count = 0;
    struct known_worker *w, *old[64];
    uint64_t now = kn_clock_ms();
    while (count < 64 && (w = kn_map_next(s->conns, &pos)))
        if (!w->name[0] && now - w->asked_ms > NEWCOMER_MS) old[count++] = w;
    for (size_t i = 0; i < count; i++) worker_forget(s, old[i]);
}

void workers_forget(struct server *s) {
    if (s->drain_count > 0) drains_answer(s);
    /* Rare and small: a worker is dropped when the core no longer lists its worker. */
    size_t pos = 0, gone_count = 0, workers = farm_worker_count(s->farm);
    struct known_worker *w, *gone[64];
    forget_newcomers(s);
    if (kn_map_count(s->workers) <= workers) return;
    struct kn_map *listed = kn_map_create(KN_WORKERS_MAX * 2);
    for (size_t i = 0; listed && i < workers; i++) {
        struct farm_worker_view v;
        if (farm_worker_at(s->farm, i, kn_clock_ms(), &v) == 0 &&
            kn_map_put(listed, v.worker, strlen(v.worker), s) != 0)
            break;
    }
    if (listed && kn_map_count(listed) == workers)
        while (gone_count < 64 && (w = kn_map_next(s->workers, &pos)))
            if (!kn_map_get(listed, w->name, strlen(w->name))) gone[gone_count++] = w;
    kn_map_destroy(listed);
    for (size_t i = 0; i < gone_count; i++) worker_forget(s, gone[i]);
}

void workers_fini(struct server *s) {
    size_t pos = 0;
    struct known_worker *w;
    while (s->workers && s->conns && (w = kn_map_next(s->conns, &pos)))
        if (!w->name[0]) workers_free(w); /* the others are in the table of names too */
    pos = 0;
    while (s->workers && (w = kn_map_next(s->workers, &pos))) workers_free(w);
    while (s->arrivals) { /* the collector has gone before, and calls nobody for those that it was keeping */
        struct arrival *u = (struct arrival *)((char *)s->arrivals - offsetof(struct arrival, link));
        s->arrivals = u->link.next;
        kn_msg_destroy(u->msg);
        free(u);
    }
}
