/* See clients.h.
 *
 * A submission is begin, chunks, seal; each is answered when it is durable, and each may be repeated: the
 * batch's id is the client's own, so that asking again gives the same answer and never doubles the work. The
 * seal is the acceptance. */
#include "coordinator/clients.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/aside.h"
#include "coordinator/carry_out.h"
#include "coordinator/explain.h"
#include "coordinator/keys.h"
#include "coordinator/lost.h"
#include "coordinator/repair.h"
#include "coordinator/send.h"
#include "coordinator/trash.h"
#include "coordinator/waits.h"
#include "coordinator/workers.h"

#define STAGED_MS (60 * 60 * 1000ull)          /* a submission that nobody goes on with */
#define STAGED_AGE_MS (24 * 60 * 60 * 1000ull) /* …and one that goes on for ever */

#define BEING_REMOVED "it is being removed"

static void send_answer(const struct reply_to *to, struct kn_msg *m) {
    struct kn_err err = {0};
    m->request = to->request;
    int rc = kn_sock_send(to->sock, &to->peer, m, NULL, &err);
    if (rc == KN_ELIMIT) {
        struct kn_msg r = {.type = KN_MSG_REPLY, .request = to->request};
        r.u.reply.code = rc;
        r.u.reply.text = err.text;
        rc = kn_sock_send(to->sock, &to->peer, &r, NULL, NULL);
    }
    if (rc != 0) kn_debug("answer_not_sent message=%s reason=\"%s\"", kn_msg_name(m->type), err.text);
}

/* ---- submission */

struct ask { /* a client that waits for the store */
    struct server *s;
    struct reply_to to;
    kn_id batch;
};

static struct ask *ask_create(struct server *s, const struct reply_to *to, const kn_id batch) {
    struct ask *a = malloc(sizeof *a);
    if (!a) return NULL;
    *a = (struct ask){.s = s, .to = *to};
    memcpy(a->batch, batch, sizeof a->batch);
    return a;
}

static void on_staged(void *ctx, int code, const void *data, size_t len) {
    struct ask *a = ctx;
    struct server *s = a->s;
    (void)data;
    (void)len;
    struct kept_batch *b = s->closing ? NULL : batches_find(&s->batches, a->batch);
    if (code == KN_EGONE) { /* the store has nothing of it (any more), so that nothing of it counts */
        if (b && b->phase == BATCH_STAGED) batches_drop(&s->batches, b);
        send_reply(s, &a->to, KN_ENOENT, "no such batch is being submitted: begin again");
    } else {
        send_reply(s, &a->to, code == KN_EEXIST ? 0 : code, "");
    }
    free(a);
}

/* True when a client tells all that a batch of this model needs: its hash and its defaults. */
static bool is_complete(const struct kn_model_info *m) {
    static const kn_digest none;
    return memcmp(m->sha256, none, sizeof none) != 0 && m->name[0] && m->defaults.steps >= KN_STEPS_MIN &&
           m->defaults.width >= KN_SIZE_MIN && m->defaults.height >= KN_SIZE_MIN && m->size_multiple >= 1;
}

/* Replaces what the client says of each model by what the farm knows of it, hash and defaults. */
static int pin_models(struct server *s, struct kn_submit_begin *g, struct kn_err *err) {
    for (size_t i = 0; i < g->model_count; i++) {
        struct kn_model_info m;
        int rc = workers_model(s, g->models[i].name, g->models[i].sha256, &m, err);
        if (rc == KN_EMODEL && is_complete(&g->models[i])) continue; /* the client read its files itself */
        if (rc != 0) return rc;
        g->models[i] = m;
    }
    return 0;
}

static void on_begin(struct server *s, struct reply_to *to, struct kn_msg *msg) {
    struct kn_submit_begin *g = &msg->u.submit_begin;
    struct kn_err err = {0};
    struct kept_batch *b = batches_find(&s->batches, g->batch);
    struct aside *aside = aside_find(s, g->batch);
    int rc = 0;
    if ((aside && aside->sealed) || (b && b->phase != BATCH_STAGED)) {
        bool leaves = b && b->phase == BATCH_REMOVING;
        send_reply(s, to, leaves ? KN_ESTATE : 0, leaves ? BEING_REMOVED : "");
        kn_msg_destroy(msg);
        return;
    }
    if (aside && (rc = aside_forget(s, aside)) != 0) kn_err_set(&err, rc, "the store takes nothing now");
    if (rc == 0 && g->chunks != (g->tasks + KN_TASKS_PER_CHUNK_MAX - 1) / KN_TASKS_PER_CHUNK_MAX)
        rc = kn_err_set(&err, KN_EINVAL, "%u tasks make %u chunks of %d, not %u", g->tasks,
                        (g->tasks + KN_TASKS_PER_CHUNK_MAX - 1) / KN_TASKS_PER_CHUNK_MAX,
                        KN_TASKS_PER_CHUNK_MAX, g->chunks);
    if (rc == 0 && !b && kn_map_count(s->batches.by_id) + aside_count(s) >= KN_BATCHES_MAX)
        rc = kn_err_set(&err, KN_ELIMIT, "the farm has %d batches; remove some (kiln rm)", KN_BATCHES_MAX);
    g->owner = s->asker ? s->asker->key.bytes : NULL;
    g->owner_len = s->asker ? sizeof s->asker->key.bytes : 0;
    if (rc == 0) rc = pin_models(s, g, &err);
    bool is_new = !b;
    if (rc == 0 && is_new) rc = batches_may_begin(&s->batches, send_conn(&to->peer), &err);
    if (rc == 0 && b && b->tasks != g->tasks)
        rc = kn_err_set(&err, KN_ESTATE, "this batch was begun with %u tasks", b->tasks);
    if (rc == 0 && is_new) rc = batches_add(&s->batches, msg, &b, &err);
    if (rc != 0 || !is_new) kn_msg_destroy(msg);
    struct kn_buf packed;
    kn_buf_init(&packed, KN_FRAME_BYTES_MAX + 1);
    if (rc == 0) {
        struct kn_msg bare =
            *b->msg; /* begun again: as it was begun first, in case the store never heard of it */
        bare.request = 0;
        rc = kn_msg_encode(&bare, &packed, &err);
        struct kn_msg *back = NULL; /* it must be possible to read back what is about to be kept */
        if (rc == 0) rc = kn_msg_decode(packed.data, packed.len, &back, &err);
        kn_msg_destroy(back);
        if (rc != 0 && is_new) batches_drop(&s->batches, b);
    }
    if (rc != 0) {
        send_reply(s, to, rc, err.text);
        kn_buf_fini(&packed);
        return;
    }
    if (is_new) b->created_wall_ms = kn_wall_ms();
    b->stager = send_conn(&to->peer);
    struct store_batch sb = {.begin = packed.data,
                             .begin_len = packed.len,
                             .tasks = b->tasks,
                             .chunks = b->chunk_count,
                             .priority = b->priority,
                             .created_wall_ms = b->created_wall_ms};
    memcpy(sb.id, b->id, sizeof sb.id);
    struct ask *a = ask_create(s, to, b->id);
    rc = a ? store_begin(s->store, &sb, on_staged, a) : KN_ENOMEM;
    if (rc != 0) {
        free(a);
        send_reply(s, to, rc, "the store takes nothing now");
        if (is_new) batches_drop(&s->batches, b);
    }
    kn_buf_fini(&packed);
}

/* Makes a chunk durable that the batch has: the same again too, since it may not be stored yet. */
static int store_again(struct server *s, struct reply_to *to, struct kept_batch *b, uint32_t chunk) {
    struct ask *a = ask_create(s, to, b->id);
    const struct batch_chunk *c = &b->chunks[chunk];
    int rc = a ? store_chunk(s->store, b->id, chunk, c->data, c->len, on_staged, a) : KN_ENOMEM;
    if (rc != 0) free(a);
    return rc;
}

static void on_chunk(struct server *s, struct reply_to *to, const struct kn_submit_chunk *c) {
    struct kn_err err = {0};
    struct kept_batch *b = batches_find(&s->batches, c->batch);
    const struct aside *aside = aside_find(s, c->batch);
    int rc = 0;
    if (aside && aside->sealed)
        rc = KN_EEXIST;
    else if (!b)
        rc = kn_err_set(&err, KN_ENOENT, "no such batch is being submitted: begin again");
    else if (b->phase != BATCH_STAGED)
        rc = KN_EEXIST;
    else if (c->parts > 1)
        rc = batches_add_part(&s->batches, b, c, &err);
    else if (c->tasks_len > KN_CHUNK_PART_BYTES)
        rc = kn_err_set(&err, KN_ELIMIT, "chunk %u: %zu bytes, more than %u", c->chunk, c->tasks_len,
                        KN_CHUNK_PART_BYTES);
    else if ((rc = batches_may_stage(&s->batches, b, c->chunk, c->tasks_len, &err)) == 0)
        rc = batches_add_chunk(&s->batches, b, c->chunk, c->tasks, c->tasks_len, &err);
    if (b && b->phase == BATCH_STAGED && (rc == 0 || rc == KN_EEXIST)) {
        rc = store_again(s, to, b, c->chunk);
        if (rc == 0) return;
        kn_err_set(&err, rc, "the store takes nothing now");
    }
    send_reply(s, to, rc == KN_EEXIST || rc == PART_HELD ? 0 : rc, err.text);
}

/* The batch is durable: the core may hand it out. */
static void open_batch(struct server *s, struct kept_batch *b) {
    struct farm_event ev = {.type = EV_BATCH_OPEN};
    struct ev_batch_open *o = &ev.u.batch_open;
    memcpy(o->id, b->id, sizeof o->id);
    o->tasks = b->tasks;
    o->priority = b->priority;
    o->pin_backend = b->begin->pin_backend;
    o->groups = b->groups;
    o->group_count = b->group_count;
    o->task_group = b->task_group;
    o->shard_tasks_max = batch_shard_tasks(b);
    int rc = server_step(s, &ev);
    batches_sealed(&s->batches, b);
    if (rc == 0) {
        char id[KN_UUID_TEXT];
        kn_uuid_format(b->id, id);
        kn_info("batch_accepted batch=%s tasks=%u groups=%zu", id, b->tasks, b->begin->model_count);
        return;
    }
    /* Its limits were looked at before it was sealed: the memory is lacking. It is accepted all the same. */
    char why[KN_REASON_MAX];
    snprintf(why, sizeof why, "the coordinator could not open it (%s), and takes it up at its next start",
             kn_err_words(rc));
    if (aside_add(s, b->id, true, b, why) != 0) kn_error("batch_not_opened code=%d", rc);
    batches_drop(&s->batches, b);
}

static void on_sealed(void *ctx, int code, const void *data, size_t len) {
    struct ask *a = ctx;
    struct server *s = a->s;
    (void)data;
    (void)len;
    struct kept_batch *b = s->closing ? NULL : batches_find(&s->batches, a->batch);
    free(a);
    if (!b || b->phase != BATCH_SEALING) return;
    b->phase = BATCH_STAGED;
    if (code == 0 || code == KN_EEXIST) {
        send_replies(s, b->waiters, &b->waiter_count, 0, "");
        open_batch(s, b);
    } else if (code == KN_EGONE) {
        send_replies(s, b->waiters, &b->waiter_count, KN_ENOENT,
                     "no such batch is being submitted: begin again");
        batches_drop(&s->batches, b);
    } else {
        send_replies(s, b->waiters, &b->waiter_count, code,
                     code == KN_ESTATE ? "chunks are missing: send them again" : "");
    }
}

static void on_seal(struct server *s, struct reply_to *to, const kn_id id) {
    struct kn_err err = {0};
    struct kept_batch *b = batches_find(&s->batches, id);
    uint32_t missing = b && b->phase == BATCH_STAGED ? batch_chunks_missing(b) : 0;
    const struct aside *aside = aside_find(s, id);
    if (aside && aside->sealed) {
        send_reply(s, to, 0, "");
    } else if (!b) {
        send_reply(s, to, KN_ENOENT, "no such batch is being submitted: begin again");
    } else if (b->phase == BATCH_SEALED || b->phase == BATCH_REMOVING) {
        send_reply(s, to, 0, "");
    } else if (missing) {
        kn_err_set(&err, KN_ESTATE, "%u of %u chunks are missing", missing, b->chunk_count);
        send_reply(s, to, KN_ESTATE, err.text);
    } else if (b->phase == BATCH_SEALING) {
        reply_to_add(b->waiters, &b->waiter_count, to);
    } else {
        struct ask *a = ask_create(s, to, id);
        int rc = a ? store_seal(s->store, id, b->chunk_count, on_sealed, a) : KN_ENOMEM;
        if (rc != 0) {
            free(a);
            send_reply(s, to, rc, "the store takes nothing now");
            return;
        }
        b->phase = BATCH_SEALING;
        reply_to_add(b->waiters, &b->waiter_count, to);
    }
}

/* Submissions without a word for long, or begun long ago: a clock that jumps ahead costs their bytes alone, since
 * none of them was accepted. */
static void drop_old_submissions(struct server *s) {
    uint64_t now = kn_clock_ms(), wall = kn_wall_ms();
    for (;;) {
        size_t pos = 0;
        struct kept_batch *b;
        while ((b = batches_next(&s->batches, &pos, BATCH_STAGED)) && now - b->touched_ms <= STAGED_MS &&
               (wall < b->created_wall_ms || wall - b->created_wall_ms <= STAGED_AGE_MS)) {
        }
        if (!b || store_remove(s->store, b->id, NULL, NULL) != 0) return;
        char id[KN_UUID_TEXT];
        kn_uuid_format(b->id, id);
        kn_info("submission_dropped batch=%s bytes=%zu", id, b->chunk_bytes);
        batches_drop(&s->batches, b); /* the map has changed: from its beginning again */
    }
}

void clients_sweep(struct server *s) {
    size_t pos = 0;
    struct kept_batch *b;
    drop_old_submissions(s);
    while (s->batches.removing > 0 && (b = batches_next(&s->batches, &pos, BATCH_REMOVING)))
        if (!b->removal_open) server_remove(s, b);
}

/* ---- commands */

/* Answers to: that there is no such batch, or why nothing can be done with this one. */
static void no_batch(struct server *s, struct reply_to *to, const kn_id id) {
    const struct kept_batch *b = batches_find(&s->batches, id);
    if (b && b->phase == BATCH_REMOVING)
        send_reply(s, to, KN_ESTATE, BEING_REMOVED);
    else
        aside_reply(s, to, id);
}

/* Why a person's wish cannot be done in the batch's state, and what can. */
static const char *refusal(const struct server *s, const struct kn_batch_command *c) {
    struct farm_batch_view v;
    bool cancelled =
        farm_batch_view(s->farm, c->batch, kn_clock_ms(), &v) == 0 && v.state == KN_BATCH_CANCELLED;
    if (c->verb == KN_VERB_REMOVE) return "it has not ended: kiln cancel stops it first";
    if (c->verb == KN_VERB_RESUME && cancelled)
        return "it was cancelled: kiln retry queues its cancelled images again";
    return cancelled ? "it was cancelled" : "it has ended";
}

static void on_batch_command(struct server *s, struct reply_to *to, const struct kn_batch_command *c) {
    static const enum farm_event_type types[] = {[KN_VERB_CANCEL] = EV_BATCH_CANCEL,
                                                 [KN_VERB_PAUSE] = EV_BATCH_PAUSE,
                                                 [KN_VERB_RESUME] = EV_BATCH_RESUME,
                                                 [KN_VERB_REMOVE] = EV_BATCH_REMOVE,
                                                 [KN_VERB_PRIORITY] = EV_BATCH_PRIORITY};
    struct kept_batch *b = batches_find(&s->batches, c->batch);
    struct aside *aside = aside_find(s, c->batch);
    struct farm_batch_view before;
    bool removes = c->verb == KN_VERB_REMOVE;
    if (aside && aside->sealed && removes) {
        aside_remove(s, aside, to);
        return;
    }
    if (b && b->phase == BATCH_REMOVING && removes) { /* asked again: for the same removal */
        reply_to_add(b->waiters, &b->waiter_count, to);
        return;
    }
    if (!b || b->phase != BATCH_SEALED || farm_batch_view(s->farm, c->batch, kn_clock_ms(), &before) != 0) {
        no_batch(s, to, c->batch);
        return;
    }
    if (c->verb == KN_VERB_RETRY) {
        lost_retry(s, to, c->batch);
        return;
    }
    if (removes) b->remove_now = c->now;
    struct farm_event ev = {.type = types[c->verb]};
    memcpy(ev.u.batch.id, c->batch, sizeof ev.u.batch.id);
    ev.u.batch.priority = c->argument;
    int rc = server_step(s, &ev);
    if (rc == KN_ESTATE) {
        server_await_state(s, b, to, rc, refusal(s, c));
    } else if (rc != 0) {
        send_reply(s, to, rc, "");
    } else if (removes) {
        reply_to_add(b->waiters, &b->waiter_count, to);
        batch_leaves(&s->batches, b, &before);
    } else {
        server_await_state(s, b, to, 0, "");
    }
}

static void on_worker_command(struct server *s, struct reply_to *to, const struct kn_worker_command *c) {
    struct farm_event ev = {.type = EV_WORKER_DRAIN};
    ev.u.drain.worker = c->worker;
    ev.u.drain.exit = c->exit;
    int rc = server_step(s, &ev);
    if (rc == 0)
        workers_await_drain(s, c->worker, to);
    else
        send_reply(s, to, rc, rc == KN_ENOENT ? "no such worker" : "");
}

/* ---- queries */

static void on_batch_query(struct server *s, struct reply_to *to, const struct kn_batch_query *q) {
    struct kn_msg m = {.type = KN_MSG_BATCH_LIST};
    struct kn_batch_list *list = &m.u.batch_list;
    struct status one;
    struct farm_batch_view v;
    struct loadings loadings;
    uint64_t now = kn_clock_ms();
    loadings_of(s, &loadings);
    if (q->has_batch) {
        struct kept_batch *b = batches_find(&s->batches, q->batch);
        const struct aside *aside = aside_find(s, q->batch);
        if (aside && aside->sealed) {
            aside_status(aside, &one.s);
        } else if (b && b->phase == BATCH_REMOVING && b->leaving) {
            status_of(s, b, b->leaving, &loadings, true, &one);
        } else if (b && farm_batch_view(s->farm, q->batch, now, &v) == 0) {
            status_of(s, b, &v, &loadings, true, &one);
        } else {
            send_reply(s, to, KN_ENOENT, "no such batch");
            return;
        }
        list->v = &one.s;
        list->count = 1;
        send_answer(to, &m);
        return;
    }
    size_t count = farm_batch_count(s->farm), pos = 0;
    size_t all = count + s->batches.removing + aside_count(s);
    list->v = calloc(all ? all : 1, sizeof *list->v);
    char **texts = calloc(count ? count : 1, sizeof *texts); /* of those that wait */
    for (size_t i = 0; list->v && texts && i < count; i++) {
        struct kept_batch *b;
        if (farm_batch_at(s->farm, i, now, &v) != 0 || !(b = batches_find(&s->batches, v.id)) ||
            !keys_may_see(s, b->id, false))
            continue;
        status_of(s, b, &v, &loadings, false, &one);
        if (one.text[0] && (texts[list->count] = strdup(one.text))) one.s.wait_text = texts[list->count];
        if (one.text[0] && !texts[list->count]) one.s.wait_text = "";
        list->v[list->count++] = one.s;
    }
    /* Those that the core does not have: they are there as long as the store has them. */
    struct kept_batch *leaving;
    while (list->v && s->batches.removing > 0 &&
           (leaving = batches_next(&s->batches, &pos, BATCH_REMOVING))) {
        if (!leaving->leaving || !keys_may_see(s, leaving->id, false)) continue;
        status_of(s, leaving, leaving->leaving, &loadings, false, &one);
        one.s.wait_text = "";
        list->v[list->count++] = one.s;
    }
    const struct aside *aside;
    pos = 0;
    while (list->v && s->asides && (aside = kn_map_next(s->asides, &pos)))
        if (aside->sealed && keys_may_see(s, aside->id, false)) aside_status(aside, &list->v[list->count++]);
    if (list->v && texts)
        send_answer(to, &m);
    else
        send_reply(s, to, KN_ENOMEM, "");
    for (size_t i = 0; texts && i < count; i++) free(texts[i]);
    free(texts);
    free(list->v);
}

static void on_workers_query(struct server *s, struct reply_to *to) {
    struct kn_msg m = {.type = KN_MSG_WORKER_LIST};
    struct kn_worker_list *list = &m.u.worker_list;
    size_t count = farm_worker_count(s->farm);
    uint64_t now = kn_clock_ms();
    list->images_per_s = farm_images_per_s(s->farm, now);
    struct kn_map *models = workers_model_index(s);
    list->v = calloc(count ? count : 1, sizeof *list->v);
    if (!list->v || !models) {
        send_reply(s, to, KN_ENOMEM, "");
        free(list->v);
        kn_map_destroy(models);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        struct farm_worker_view v;
        const struct kn_model_info *loaded;
        if (farm_worker_at(s->farm, i, now, &v) != 0) continue;
        struct known_worker *k = kn_map_get(s->workers, v.worker, strlen(v.worker));
        struct kn_worker_status *w = &list->v[list->count++];
        w->worker = v.worker;
        w->backend = v.backend;
        w->host = k ? k->hello->host : "";
        w->device = k ? k->hello->device : "";
        w->device_uuid = k ? k->hello->device_uuid : "";
        if (k) w->readings = k->readings;
        w->engine = k ? k->hello->engine : "";
        w->pid = k ? k->hello->pid : 0;
        loaded = v.has_model ? kn_map_get(models, v.model, sizeof v.model) : NULL;
        w->model = loaded ? loaded->name : "";
        w->state = (enum kn_worker_state)v.state;
        w->has_batch = v.has_batch;
        memcpy(w->batch, v.batch, sizeof w->batch);
        w->step = v.step;
        w->steps = v.steps;
        w->tasks = v.tasks;
        w->done = v.done;
        w->failed = v.failed;
        w->last_seen_ms = v.last_seen_ms;
        w->hold_reason = v.hold_reason;
        w->images_per_s = v.images_per_s;
        w->steps_per_s = v.steps_per_s;
        w->loading = k && v.state != KN_WORKER_LOST ? k->loading : "";
        w->loading_bytes = w->loading[0] ? k->loading_bytes : 0;
        w->phase = w->loading[0] ? KN_PHASE_LOADING : v.step > 0 ? KN_PHASE_RENDERING : KN_PHASE_NONE;
    }
    send_answer(to, &m);
    free(list->v);
    kn_map_destroy(models);
}

static void on_models_query(struct server *s, struct reply_to *to) {
    struct kn_msg m = {.type = KN_MSG_MODEL_LIST};
    if (workers_models(s, &m.u.model_list.v, &m.u.model_list.count) != 0) {
        send_reply(s, to, KN_ENOMEM, "");
        return;
    }
    struct kn_model_list *l = &m.u.model_list;
    struct kn_map *there = kn_map_create(l->count + 1);
    bool full = false;
    for (size_t i = 0; there && i < l->count; i++)
        full |= kn_map_put(there, l->v[i].sha256, KN_SHA256_BYTES, &l->v[i]) != 0;
    l->known = calloc(s->model_count + 1, sizeof *l->known);
    for (size_t i = 0; there && !full && l->known && i < s->model_count; i++)
        if (!kn_map_get(there, s->models[i].info.sha256, KN_SHA256_BYTES))
            l->known[l->known_count++] = s->models[i].info;
    kn_map_destroy(there);
    send_answer(to, &m);
    free(l->known);
    free(l->v);
}

static void result_of(const struct server *s, const struct kept_batch *b, uint32_t task,
                      struct kn_result *r) {
    enum farm_task_state state = TASK_CANCELLED;
    struct store_record rec;
    const struct batch_failure *f;
    *r = (struct kn_result){
        .index = task, .status = KN_RESULT_CANCELLED, .worker = "", .backend = "", .engine = "", .error = ""};
    if (farm_task_state(s->farm, b->id, task, &state) != 0) return;
    if (state == TASK_DONE && batch_record(b, task, &rec)) {
        r->status = KN_RESULT_DONE;
        memcpy(r->sha256, rec.sha256, sizeof r->sha256);
        memcpy(r->pixels_sha256, rec.pixels, sizeof r->pixels_sha256);
        r->attempt = rec.attempt;
        r->render_ms = rec.render_ms;
        r->flat = rec.flat;
        r->worker = batch_name_text(b, rec.worker);
        r->backend = batch_name_text(b, rec.backend);
        r->engine = batch_name_text(b, rec.engine);
    } else if (state == TASK_FAILED) {
        r->status = KN_RESULT_FAILED;
        r->error = "unknown";
        if ((f = batch_failure(b, task))) {
            r->attempt = f->attempt;
            r->worker = f->worker;
            r->error = f->reason[0] ? f->reason : kn_err_words(f->code);
        }
    }
}

static void on_results_query(struct server *s, struct reply_to *to, const struct kn_results_query *q) {
    struct kn_msg m = {.type = KN_MSG_RESULTS_REPLY};
    struct kn_results_reply *r = &m.u.results_reply;
    struct kept_batch *b = batches_find(&s->batches, q->batch);
    struct farm_batch_view v;
    uint32_t tasks[KN_RESULTS_PER_REPLY_MAX], count = 0, cursor = q->cursor;
    uint64_t epoch = 0;
    if (!b || farm_batch_view(s->farm, q->batch, kn_clock_ms(), &v) != 0) {
        no_batch(s, to, q->batch);
        return;
    }
    int rc = farm_batch_ended(s->farm, q->batch, 0, 0, tasks, &count, &epoch);
    /* A coordinator that started again may list the ends in another order: its term is part of the epoch. */
    r->epoch = s->store->term << 32 | (epoch & UINT32_MAX);
    if (q->epoch != r->epoch || cursor > v.ended) cursor = 0;
    if (rc == 0) rc = farm_batch_ended(s->farm, q->batch, cursor, q->max, tasks, &count, &epoch);
    r->v = calloc(count ? count : 1, sizeof *r->v);
    if (rc != 0 || !r->v) {
        send_reply(s, to, rc ? rc : KN_ENOMEM, "");
        free(r->v);
        return;
    }
    for (uint32_t i = 0; i < count; i++) result_of(s, b, tasks[i], &r->v[i]);
    r->count = count;
    r->cursor = cursor + count;
    struct loadings loadings;
    struct status status;
    loadings_of(s, &loadings);
    status_of(s, b, &v, &loadings, false, &status);
    r->status = status.s;
    send_answer(to, &m);
    free(r->v);
}

static void on_tasks_query(struct server *s, struct reply_to *to, const struct kn_tasks_query *q) {
    struct kn_msg m = {.type = KN_MSG_TASKS_REPLY};
    struct kn_tasks_reply *r = &m.u.tasks_reply;
    struct kept_batch *b = batches_find(&s->batches, q->batch);
    if (!b || b->phase != BATCH_SEALED) {
        no_batch(s, to, q->batch);
    } else if (q->chunk >= b->chunk_count) {
        send_reply(s, to, KN_EINVAL, "no such chunk");
    } else {
        const struct batch_chunk *c = &b->chunks[q->chunk];
        size_t from = (size_t)q->part * KN_CHUNK_PART_BYTES;
        r->chunks = b->chunk_count;
        r->parts = (c->len + KN_CHUNK_PART_BYTES - 1) / KN_CHUNK_PART_BYTES;
        if (from >= c->len) {
            send_reply(s, to, KN_EINVAL, "no such part of that chunk");
            return;
        }
        r->tasks = c->data + from;
        r->tasks_len = c->len - from < KN_CHUNK_PART_BYTES ? c->len - from : KN_CHUNK_PART_BYTES;
        if (r->parts == 1) r->parts = 0;
        r->models = b->begin->models;
        r->model_count = b->begin->model_count;
        send_answer(to, &m);
    }
}

static void on_farm_query(struct server *s, struct reply_to *to) {
    struct kn_msg m = {.type = KN_MSG_FARM_STATUS};
    char store[KN_WAIT_TEXT_MAX], disk[KN_WAIT_TEXT_MAX], note[KN_WAIT_TEXT_MAX];
    struct kn_farm_status *f = &m.u.farm_status;
    f->version = KILN_VERSION;
    f->pid = (uint32_t)getpid();
    f->workers_fit = s->opt.workers_fit;
    f->store_silent_ms = waits_store(s, store);
    f->store_text = store;
    waits_disk(s, disk);
    f->disk_text = disk;
    repair_note(s, note);
    f->store_note = note;
    for (size_t i = 0; i < farm_worker_count(s->farm); i++) {
        struct farm_worker_view v;
        f->workers += farm_worker_at(s->farm, i, kn_clock_ms(), &v) == 0 && v.state != KN_WORKER_LOST;
    }
    send_answer(to, &m);
}

static void on_explain_query(struct server *s, struct reply_to *to, const struct kn_explain_query *q) {
    struct kn_msg m = {.type = KN_MSG_EXPLAIN_REPLY};
    struct explanation x;
    struct farm_batch_view v;
    struct kn_err err = {0};
    int rc = explain(s, q, &x, &err);
    if (rc == 0) {
        m.u.explain_reply = x.reply;
        send_answer(to, &m);
    } else if (rc == KN_ENOENT && farm_batch_view(s->farm, q->batch, kn_clock_ms(), &v) != 0) {
        no_batch(s, to, q->batch);
    } else {
        send_reply(s, to, rc, err.text);
    }
    explain_fini(&x);
}

/* ---- objects */

struct object_fetch {
    struct server *s;
    struct kn_peer peer;
    uint64_t request;
    kn_digest sha256;
};

static void free_data(void *data, void *hint) {
    (void)hint;
    free(data);
}

static void object_reply(struct object_fetch *f, int code, void *data, size_t len) {
    struct kn_msg m = {.type = KN_MSG_OBJECT_REPLY, .request = f->request};
    struct kn_err err = {0};
    struct kn_blob blob = {0};
    if (data) blob = (struct kn_blob){data, len, free_data, NULL};
    memcpy(m.u.object_reply.sha256, f->sha256, sizeof f->sha256);
    m.u.object_reply.code = code;
    m.u.object_reply.text = code == 0             ? ""
                            : code == KN_ENOENT   ? "the farm has no such object"
                            : code == KN_ECORRUPT ? "the farm's object is damaged"
                            : code == KN_EPERM    ? "no batch of this key has that picture"
                                                  : kn_err_words(code);
    int rc = kn_sock_send(f->s->data, &f->peer, &m, data ? &blob : NULL, &err);
    if (rc != 0) {
        kn_debug("object_not_sent reason=\"%s\"", err.text);
        kn_blob_release(&blob);
    }
}

static void on_read(void *ctx, int code, void *data, size_t len) {
    struct object_fetch *f = ctx;
    if (code != 0) lost_note(f->s, f->sha256, code);
    object_reply(f, code, data, len);
    free(f);
}

/* An object is for whoever may read a batch that names it; a client says which. */
static bool may_get(const struct server *s, const struct kn_object_get *g) {
    struct store_record have;
    const struct kept_batch *b = g->has_batch ? batches_find(&s->batches, g->batch) : NULL;
    if (!s->asker || s->asker->role != KN_ROLE_CLIENT) return true;
    return b && keys_may_see(s, g->batch, false) && g->task < b->tasks && batch_record(b, g->task, &have) &&
           memcmp(have.sha256, g->sha256, sizeof have.sha256) == 0;
}

void clients_object(struct server *s, const struct kn_peer *peer, const struct kn_msg *msg) {
    struct object_fetch *f = malloc(sizeof *f);
    if (!f) return;
    *f = (struct object_fetch){.s = s, .peer = *peer, .request = msg->request};
    memcpy(f->sha256, msg->u.object_get.sha256, sizeof f->sha256);
    if (!may_get(s, &msg->u.object_get)) {
        object_reply(f, KN_EPERM, NULL, 0);
        free(f);
        return;
    }
    int rc = collect_get(s->collect, f->sha256, on_read, f);
    if (rc != 0) {
        kn_debug("object_not_read code=%d", rc); /* too many at once: the client asks again */
        free(f);
    }
}

void clients_garbled(struct server *s, struct listener *l, const struct kn_peer *peer,
                     const struct kn_garbled *g) {
    struct reply_to to = {.sock = l->sock, .peer = *peer, .request = g->request};
    struct kn_err err = {0};
    if (!g->request) return; /* of no client */
    kn_err_set(&err, KN_EPROTO,
               "the coordinator (kiln %s) cannot read this: %s; both should be of one version", KILN_VERSION,
               g->text);
    send_reply(s, &to, g->code, err.text);
}

void clients_message(struct server *s, struct listener *l, const struct kn_peer *peer, struct kn_msg *msg) {
    struct reply_to to = {.sock = l->sock, .peer = *peer, .request = msg->request};
    switch ((int)msg->type) {
    case KN_MSG_CLIENT_HELLO:
        send_welcome(s, l, peer, msg->request, true, "");
        break;
    case KN_MSG_SUBMIT_BEGIN:
        on_begin(s, &to, msg); /* takes it */
        return;
    case KN_MSG_SUBMIT_CHUNK:
        on_chunk(s, &to, &msg->u.submit_chunk);
        break;
    case KN_MSG_SUBMIT_SEAL:
        on_seal(s, &to, msg->u.submit_seal.batch);
        break;
    case KN_MSG_BATCH_QUERY:
        on_batch_query(s, &to, &msg->u.batch_query);
        break;
    case KN_MSG_WORKERS_QUERY:
        on_workers_query(s, &to);
        break;
    case KN_MSG_MODELS_QUERY:
        on_models_query(s, &to);
        break;
    case KN_MSG_BATCH_COMMAND:
        on_batch_command(s, &to, &msg->u.batch_command);
        break;
    case KN_MSG_WORKER_COMMAND:
        on_worker_command(s, &to, &msg->u.worker_command);
        break;
    case KN_MSG_RESULTS_QUERY:
        on_results_query(s, &to, &msg->u.results_query);
        break;
    case KN_MSG_FARM_QUERY:
        on_farm_query(s, &to);
        break;
    case KN_MSG_PICTURE_REPORT:
        lost_report(s, &to, &msg->u.picture_report);
        break;
    case KN_MSG_REPAIR_COMMAND:
        trash_repair(s, &to);
        break;
    case KN_MSG_EXPLAIN_QUERY:
        on_explain_query(s, &to, &msg->u.explain_query);
        break;
    case KN_MSG_TASKS_QUERY:
        on_tasks_query(s, &to, &msg->u.tasks_query);
        break;
    default:
        kn_warn_of(send_conn(peer), "message_unexpected socket=control message=%s", kn_msg_name(msg->type));
        send_reply(s, &to, KN_EPROTO, "not a request");
        break;
    }
    kn_msg_destroy(msg);
}
