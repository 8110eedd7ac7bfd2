/* See worker.h. Everything here runs on the loop's thread. */
#include "worker/worker.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "worker/connection.h"
#include "worker/shards.h"
#include "worker/stages.h"
#include "worker/uploads.h"

#define TICK_MS 100
#define EVENTS_PER_TURN 256
#define PIXEL_BYTES_MAX (64ull << 20)
#define WINDOW_BYTES (16ull << 20) /* sent and not acknowledged */
#define UNACKED_MAX 4096
#define RESEND_MS 60000
#define FLUSH_MS 2000 /* for pictures that are ready, when the engine is given up */
#define RATE_SECONDS 60

struct worker {
    struct worker_options opt;
    char host[KN_HOST_MAX + 1];
    char name[KN_NAME_MAX + 1]; /* as the farm says, once it has */
    bool named_by_farm;
    uint64_t question; /* the last that the coordinator asked; heartbeats repeat it */
    kn_id instance;
    struct kn_model_info *infos; /* owns; as the hello wants them */
    struct connection connection;
    struct stages *stages;
    struct grant *probing; /* owns a reference; the probe picture that is being rendered, or NULL */
    uint64_t probe;        /* its number */
    int probe_code;
    char probe_reason[KN_REASON_MAX + 1];
    struct shards shards;
    struct uploads uploads;
    uv_timer_t tick;
    uv_async_t wake;
    /* leaving */
    bool draining, leaving, ended;
    bool engine_lost; /* it is dead, or nobody waits for it any more */
    int status;
    uint64_t stop_ms, end_ms; /* when what runs is stopped, and when it is over in any case; 0: never */
    char reason[KN_REASON_MAX + 1];
    /* what the hello points to */
    const char *features[KN_FEATURES_MAX];
    size_t feature_count;
    struct kn_held_shard held[KN_SHARDS_PER_WORKER_MAX];
    uint32_t held_tasks[KN_SHARDS_PER_WORKER_MAX][KN_SHARD_TASKS_MAX];
    /* pictures in each of the last seconds */
    uint32_t rate[RATE_SECONDS];
    uint64_t rate_s, started_s;
};

static void settle(struct worker *w);

/* ---- images a second */

static void rate_advance(struct worker *w) {
    uint64_t now_s = kn_clock_ms() / 1000;
    for (int i = 0; w->rate_s < now_s && i < RATE_SECONDS; i++) w->rate[++w->rate_s % RATE_SECONDS] = 0;
    w->rate_s = now_s;
}

static float rate_get(struct worker *w) {
    uint64_t sum = 0, seconds;
    rate_advance(w);
    for (int i = 0; i < RATE_SECONDS; i++) sum += w->rate[i];
    seconds = w->rate_s - w->started_s + 1;
    return (float)sum / (float)(seconds < RATE_SECONDS ? seconds : RATE_SECONDS);
}

/* ---- what it tells the coordinator */

static void tell_returned(struct worker *w, const struct kn_shard_grant *g, bool out_of_memory) {
    struct kn_msg m = {.type = KN_MSG_SHARD_RETURNED};
    m.u.shard_returned =
        (struct kn_shard_returned){.shard = g->shard, .term = g->term, .out_of_memory = out_of_memory};
    connection_tell(&w->connection, &m);
    kn_info("shard_returned shard=%llu term=%llu tasks=%zu out_of_memory=%d", (unsigned long long)g->shard,
            (unsigned long long)g->term, g->count, out_of_memory);
}

static void tell_failed(struct worker *w, const struct kn_shard_grant *g, uint32_t place, int code,
                        const char *reason) {
    struct kn_msg m = {.type = KN_MSG_TASK_FAILED};
    m.u.task_failed = (struct kn_task_failed){
        .task = g->index[place], .shard = g->shard, .term = g->term, .code = code, .reason = reason};
    memcpy(m.u.task_failed.batch, g->batch, sizeof g->batch);
    connection_tell(&w->connection, &m);
    kn_warn("task_failed shard=%llu task=%u reason=\"%s\"", (unsigned long long)g->shard, g->index[place],
            reason);
}

/* ---- pictures */

static void blob_free(void *data, void *hint) {
    (void)data;
    bytes_unref(hint);
}

static int send_upload(struct worker *w, const struct upload *up) {
    const struct kn_shard_grant *g = up->grant->shard;
    struct kn_msg m = {.type = KN_MSG_IMAGE_RESULT};
    m.u.image_result = (struct kn_image_result){
        .task = g->index[up->place],
        .attempt = g->attempt,
        .render_ms = up->render_ms,
        .shard = g->shard,
        .term = g->term,
        .flat = up->flat,
        .worker = w->name,
        .backend = w->opt.engine->backend,
        .engine = w->opt.engine->version,
        .ticket = g->ticket,
        .ticket_len = g->ticket_len,
    };
    memcpy(m.u.image_result.batch, g->batch, sizeof g->batch);
    memcpy(m.u.image_result.sha256, up->sha256, sizeof up->sha256);
    memcpy(m.u.image_result.pixels_sha256, up->pixels_sha256, sizeof up->pixels_sha256);
    struct kn_blob blob = {up->png->data, up->png->len, blob_free, bytes_ref(up->png)};
    int rc = connection_send_data(&w->connection, &m, &blob);
    if (rc != 0) bytes_unref(up->png);
    return rc;
}

static void pump_uploads(struct worker *w) {
    struct upload *up;
    while ((up = uploads_next(&w->uploads)) != NULL && send_upload(w, up) == 0)
        uploads_sent(&w->uploads, up, kn_clock_ms());
}

/* ---- events of the stages */

static void take_image(struct worker *w, struct held_shard *x, struct stage_event *e) {
    size_t len = e->upload->png->len;
    shard_image(x, e->place);
    rate_advance(w);
    w->rate[w->rate_s % RATE_SECONDS]++;
    int rc = uploads_add(&w->uploads, e->upload);
    if (rc == 0) {
        e->upload = NULL;
        return;
    }
    stages_release(w->stages,
                   len); /* KN_EEXIST: the same picture waits already, its acknowledgement counts for both */
    if (rc == KN_EEXIST) return;
    shard_failed(x, e->place);
    tell_failed(w, x->grant->shard, e->place, rc, kn_err_words(rc));
}

static void take_finished(struct worker *w, struct held_shard *x, const struct stage_event *e) {
    const struct kn_shard_grant *g = x->grant->shard;
    bool memory = e->code == KN_EOOM || e->code == KN_ENOMEM;
    bool whole =
        e->code != 0 && e->code != KN_ECANCELED && e->code != KN_EDEVICE && !(memory && g->count > 1);
    kn_debug("shard_rendered shard=%llu images=%u ms=%u rc=%d", (unsigned long long)g->shard, e->images,
             e->render_ms, e->code);
    for (uint32_t i = 0; whole && i < g->count; i++) { /* no smaller shard would do better */
        if (x->task[i] != SHARD_TASK_PENDING) continue;
        shard_failed(x, i);
        tell_failed(w, g, i, e->code, e->reason);
    }
    shard_finished(x, e->render_ms, e->images, memory);
    if (e->code == KN_EDEVICE) {
        /* Its images are handed back: the one that the engine ended with was told of. */
        kn_error("engine_failed shard=%llu reason=\"%s\"", (unsigned long long)g->shard, e->reason);
        w->engine_lost = true;
        w->status = WORKER_EXIT_ENGINE;
        worker_drain(w, true, FLUSH_MS, "its engine failed");
    } else if (memory && !whole) {
        kn_warn("out_of_memory shard=%llu tasks=%zu reason=\"%s\"", (unsigned long long)g->shard, g->count,
                e->reason);
    }
}

static void tell_probed(struct worker *w, int code, const char *reason) {
    struct kn_msg m = {.type = KN_MSG_PROBED,
                       .u.probed = {.probe = w->probe, .code = code, .reason = reason}};
    connection_tell(&w->connection, &m);
    kn_info("probed probe=%llu code=%d reason=\"%s\"", (unsigned long long)w->probe, code, reason);
}

/* Of the probe picture. */
static void take_probe(struct worker *w, const struct stage_event *e) {
    bool ill = (e->type == STAGE_FAILED || e->type == STAGE_FINISHED) && e->code != 0;
    if (ill && !w->probe_code) {
        w->probe_code = e->code;
        snprintf(w->probe_reason, sizeof w->probe_reason, "%s", e->reason);
    }
    if (e->type != STAGE_FINISHED) return;
    tell_probed(w, w->probe_code, w->probe_reason);
    grant_unref(w->probing);
    w->probing = NULL;
    if (e->code != KN_EDEVICE) return;
    w->engine_lost = true;
    w->status = WORKER_EXIT_ENGINE;
    worker_drain(w, true, FLUSH_MS, "its engine failed");
}

static void take_event(struct worker *w, struct stage_event *e) {
    if (e->grant->probe) {
        take_probe(w, e);
        return;
    }
    const struct kn_shard_grant *g = e->grant->shard;
    struct held_shard *x = shards_find(&w->shards, g->shard, g->term);
    assert(x && x->grant == e->grant); /* it is held until FINISHED */
    switch (e->type) {
    case STAGE_STARTED: {
        struct kn_msg m = {.type = KN_MSG_SHARD_STARTED, .u.shard_started = {g->shard, g->term}};
        shard_started(x);
        connection_tell(&w->connection, &m);
        kn_debug("shard_started shard=%llu tasks=%zu", (unsigned long long)g->shard, g->count);
        break;
    }
    case STAGE_IMAGE:
        take_image(w, x, e);
        break;
    case STAGE_FAILED:
        shard_failed(x, e->place);
        tell_failed(w, g, e->place, e->code, e->reason);
        break;
    case STAGE_FINISHED:
        take_finished(w, x, e);
        break;
    }
}

static void on_wake(uv_async_t *h) {
    struct worker *w = h->data;
    struct stage_event *e;
    int n = 0;
    while (!w->ended && n++ < EVENTS_PER_TURN && (e = stages_next(w->stages)) != NULL) {
        take_event(w, e);
        stage_event_free(e);
    }
    if (w->ended) return;
    if (n > EVENTS_PER_TURN) uv_async_send(h);
    pump_uploads(w);
    settle(w);
}

static void wake(void *ctx) {
    uv_async_send(&((struct worker *)ctx)->wake);
}

/* ---- what the coordinator says */

/* Takes the message. */
static void on_grant(struct worker *w, struct kn_msg *m) {
    const struct kn_shard_grant *g = &m->u.shard_grant;
    struct grant *grant = NULL;
    int rc = KN_ESTATE;
    if (!w->draining) {
        grant = grant_create(m, engine_model(w->opt.engine, g->model_sha256));
        rc = grant ? shards_take(&w->shards, grant) : KN_ENOMEM;
        if (rc == 0 && (rc = stages_submit(w->stages, grant)) != 0)
            shards_remove(&w->shards, shards_find(&w->shards, g->shard, g->term));
    }
    kn_debug("shard_granted shard=%llu term=%llu tasks=%zu rc=%d", (unsigned long long)g->shard,
             (unsigned long long)g->term, g->count, rc);
    if (rc != 0 && rc != KN_EEXIST) tell_returned(w, g, false);
    if (grant)
        grant_unref(grant);
    else
        kn_msg_destroy(m);
}

/* One at a time: asked again while one is under way (a new connection, or a coordinator that waited in vain), the
 * answer is for the last who asked. */
static void on_probe(struct worker *w, const struct kn_probe *p) {
    w->probe = p->probe;
    if (w->probing) return;
    const struct kn_model_info *model = engine_model(w->opt.engine, p->model_sha256);
    w->probe_code = 0;
    w->probe_reason[0] = '\0';
    if (!model) {
        tell_probed(w, KN_EMODEL, "this worker has no such model");
        return;
    }
    w->probing = grant_create_probe(model);
    int rc = w->probing ? stages_submit(w->stages, w->probing) : KN_ENOMEM;
    if (rc == 0) return;
    grant_unref(w->probing);
    w->probing = NULL;
    tell_probed(w, rc, kn_err_words(rc));
}

static void abort_shard(struct worker *w, struct held_shard *x) {
    if (x->abort) return;
    x->abort = true;
    stages_abort(w->stages, x->grant);
}

static void on_revoke(struct worker *w, const struct kn_shard_revoke *r) {
    struct held_shard *x = shards_find(&w->shards, r->shard, r->term);
    kn_debug("shard_revoked shard=%llu term=%llu abort=%d known=%d", (unsigned long long)r->shard,
             (unsigned long long)r->term, r->abort, x != NULL);
    if (!x || x->state == SHARD_RENDERED) return;
    if (x->state == SHARD_WAITING && stages_withdraw(w->stages, x->grant)) {
        tell_returned(w, x->grant->shard, false);
        shards_remove(&w->shards, x);
    } else if (r->abort) {
        abort_shard(w, x);
    }
}

/* True when the answer says what became of the picture. Others (the store is behind, another coordinator leads) mean
 * not yet: the bytes stay, and are sent again. */
static bool settles(int code) {
    return code != KN_EAGAIN && code != KN_ETERM && code != KN_EIO && code != KN_ENOMEM && code != KN_EUNSURE;
}

static void on_acknowledged(struct worker *w, const struct kn_image_ack *a) {
    if (!settles(a->code)) {
        kn_debug("picture_not_taken_yet task=%u reason=\"%s\"", a->task, kn_err_words(a->code));
        return;
    }
    size_t len = uploads_acknowledged(&w->uploads, a->batch, a->task);
    if (a->code != 0 && a->code != KN_EEXIST)
        kn_debug("picture_not_wanted task=%u reason=\"%s\"", a->task, kn_err_words(a->code));
    if (len) stages_release(w->stages, len);
    shards_acknowledged(&w->shards, a->batch, a->task);
}

static void on_message(void *ctx, struct kn_msg *m) {
    struct worker *w = ctx;
    switch ((int)m->type) {
    case KN_MSG_SHARD_GRANT:
        on_grant(w, m);
        return;
    case KN_MSG_SHARD_REVOKE:
        on_revoke(w, &m->u.shard_revoke);
        break;
    case KN_MSG_IMAGE_ACK:
        on_acknowledged(w, &m->u.image_ack);
        pump_uploads(w);
        break;
    case KN_MSG_DRAIN_WORKER:
        worker_drain(w, m->u.drain_worker.exit, 0, m->u.drain_worker.reason);
        break;
    case KN_MSG_REPLY:
        kn_warn("coordinator_says code=%d text=\"%s\"", m->u.reply.code, m->u.reply.text);
        if (m->u.reply.code == KN_EEXIST && w->connection.state == CONNECTION_GREETING) {
            kn_error("name_taken text=\"%s\"", m->u.reply.text);
            worker_leave_now(w, WORKER_EXIT_NAME, "its name is taken");
        }
        if (m->u.reply.code == KN_EPERM) {
            kn_error("key_refused text=\"%s\"", m->u.reply.text);
            worker_leave_now(w, WORKER_EXIT_KEY, "the farm does not take its key");
        }
        break;
    case KN_MSG_PROBE:
        on_probe(w, &m->u.probe);
        break;
    case KN_MSG_PICTURES_WANTED:
        uploads_again(&w->uploads);
        pump_uploads(w);
        break;
    case KN_MSG_STILL_THERE:
        w->question = m->u.still_there.question;
        w->connection.heartbeat_at_ms = 0;
        connection_tick(&w->connection, kn_clock_ms());
        break;
    default:
        kn_warn("message_unexpected message=%s", kn_msg_name(m->type));
        break;
    }
    kn_msg_destroy(m);
    settle(w);
}

static void on_hello(void *ctx, struct kn_worker_hello *h) {
    struct worker *w = ctx;
    const struct engine *e = w->opt.engine;
    w->feature_count = kn_features_list(kn_features(), w->features);
    *h = (struct kn_worker_hello){
        .worker = w->name,
        .host = w->host,
        .device = e->device,
        .device_uuid = w->opt.device_uuid,
        .backend = e->backend,
        .engine = e->version,
        .pid = (uint32_t)getpid(),
        .credit = w->opt.credit,
        .batch_max = e->batch_max,
        .died_of_memory = w->opt.died_of_memory,
        .models = w->infos,
        .model_count = e->model_count,
        .held = w->held,
        .held_count = w->shards.count,
        .name_base = w->opt.name_base,
        .has_machine = w->opt.name_base && w->opt.name_base[0],
        .named_by_farm = w->named_by_farm,
        .answers = true,
        .features = w->features,
        .feature_count = w->feature_count,
        .probes = true,
    };
    memcpy(h->machine, w->opt.machine, sizeof h->machine);
    memcpy(h->instance, w->instance, sizeof h->instance);
    for (size_t i = 0; i < w->shards.count; i++) {
        const struct held_shard *x = &w->shards.v[i];
        const struct kn_shard_grant *g = x->grant->shard;
        w->held[i] = (struct kn_held_shard){.shard = g->shard,
                                            .term = g->term,
                                            .tasks = w->held_tasks[i],
                                            .ticket = g->ticket,
                                            .ticket_len = g->ticket_len};
        memcpy(w->held[i].batch, g->batch, sizeof w->held[i].batch);
        w->held[i].task_count = shard_outstanding(x, w->held_tasks[i]);
    }
}

static void on_data_renewed(void *ctx) {
    struct worker *w = ctx;
    if (w->uploads.count) kn_info("sending_again pictures=%zu", w->uploads.count);
    uploads_again(&w->uploads);
    pump_uploads(w);
}

static void on_welcome(void *ctx, const struct kn_welcome *welcome, bool again) {
    struct worker *w = ctx;
    if (welcome->worker && welcome->worker[0]) { /* an older coordinator leaves it as it was said */
        if (strcmp(w->name, welcome->worker) != 0) kn_info("named name=%s", welcome->worker);
        snprintf(w->name, sizeof w->name, "%s", welcome->worker);
        w->named_by_farm = w->opt.name_base && w->opt.name_base[0];
    }
    if (again) {
        if (w->uploads.count) kn_info("sending_again pictures=%zu", w->uploads.count);
        uploads_again(&w->uploads);
    }
    pump_uploads(w);
}

static void on_heartbeat(void *ctx, struct kn_heartbeat *h) {
    struct worker *w = ctx;
    struct stages_progress p;
    stages_progress(w->stages, &p);
    *h = (struct kn_heartbeat){
        .step = p.step,
        .steps = p.steps,
        .tasks = p.tasks,
        .progress_age_ms = p.age_ms,
        .waiting = (uint32_t)shards_waiting(&w->shards),
        .images_per_s = rate_get(w),
        .draining = w->draining,
        .has_model = p.has_model,
        .answer = w->question,
        .minibatch = p.minibatch,
    };
    struct engine_now *now = w->opt.engine->now;
    unsigned loading = p.busy ? atomic_load(&now->loading) : 0;
    bool loads = loading > 0 && loading <= w->opt.engine->model_count;
    h->loading = loads ? w->opt.engine->models[loading - 1].info.name : "";
    h->loading_bytes = loads ? atomic_load(&now->loading_bytes) : 0;
    if (w->opt.watch) device_watch_get(w->opt.watch, &h->readings);
    if (p.busy) h->shard = p.shard;
    memcpy(h->batch, p.batch, sizeof h->batch);
    memcpy(h->model_sha256, p.model_sha256, sizeof h->model_sha256);
}

static void on_data_room(void *ctx) {
    pump_uploads(ctx);
}

/* ---- leaving */

static void end(struct worker *w) {
    struct kn_msg m = {.type = KN_MSG_WORKER_BYE, .u.worker_bye = {.reason = w->reason}};
    if (w->ended) return;
    w->ended = true;
    struct stages_progress p;
    stages_progress(w->stages, &p);
    if (p.busy) w->engine_lost = true; /* nobody waits for it any more */
    connection_tell(&w->connection, &m);
    kn_info("leaving status=%d reason=\"%s\" shards=%zu pictures=%zu", w->status, w->reason, w->shards.count,
            w->uploads.count);
    uv_timer_stop(&w->tick);
    w->opt.ended(w->opt.ctx, w->status);
}

/* Hands back what has not begun. */
static void return_waiting(struct worker *w) {
    for (size_t i = w->shards.count; i-- > 0;) {
        struct held_shard *x = &w->shards.v[i];
        if (x->state != SHARD_WAITING || !stages_withdraw(w->stages, x->grant)) continue;
        tell_returned(w, x->grant->shard, false);
        shards_remove(&w->shards, x);
    }
}

void worker_drain(struct worker *w, bool leave, uint32_t patience_ms, const char *reason) {
    if (w->ended) return;
    uint64_t now_ms = kn_clock_ms();
    if (!w->draining || (leave && !w->leaving)) {
        snprintf(w->reason, sizeof w->reason, "%.*s", KN_REASON_MAX, reason);
        kn_info("draining leave=%d reason=\"%s\"", leave, w->reason);
    }
    w->draining = true;
    w->leaving = w->leaving || leave;
    if (leave && patience_ms && (w->end_ms == 0 || w->end_ms > now_ms + patience_ms)) {
        w->end_ms = now_ms + patience_ms;
        w->stop_ms = now_ms + patience_ms / 3 * 2;
    }
    return_waiting(w);
    w->connection.heartbeat_at_ms = 0; /* says at once that it drains */
}

void worker_leave_now(struct worker *w, int status, const char *reason) {
    if (w->ended) return;
    w->status = status;
    snprintf(w->reason, sizeof w->reason, "%.*s", KN_REASON_MAX, reason);
    return_waiting(w);
    for (size_t i = 0; i < w->shards.count; i++) tell_returned(w, w->shards.v[i].grant->shard, false);
    end(w);
}

/* Reports what is over, and leaves when it is time. */
static void settle(struct worker *w) {
    enum shard_end how;
    struct held_shard *x;
    if (w->ended) return;
    while ((x = shards_over(&w->shards, &how)) != NULL) {
        const struct kn_shard_grant *g = x->grant->shard;
        struct kn_msg m = {.type = KN_MSG_SHARD_DONE,
                           .u.shard_done = {g->shard, g->term, x->render_ms, x->images}};
        if (how == SHARD_DONE)
            connection_tell(&w->connection, &m);
        else
            tell_returned(w, g, x->out_of_memory);
        shards_remove(&w->shards, x);
    }
    if (w->leaving && w->uploads.count == 0 && (w->shards.count == 0 || w->engine_lost)) end(w);
}

static void on_tick(uv_timer_t *h) {
    struct worker *w = h->data;
    uint64_t now_ms = kn_clock_ms(), oldest = uploads_oldest_ms(&w->uploads);
    uint32_t resend_ms = w->opt.resend_ms ? w->opt.resend_ms : RESEND_MS;
    connection_tick(&w->connection, now_ms);
    if (w->connection.state == CONNECTION_JOINED && oldest != UINT64_MAX && now_ms - oldest > resend_ms) {
        kn_warn("acknowledgement_missing pictures=%zu ms=%llu", w->uploads.count,
                (unsigned long long)(now_ms - oldest));
        connection_renew_data(&w->connection);
        uploads_again(&w->uploads);
    }
    pump_uploads(w);
    if (w->stop_ms && now_ms >= w->stop_ms) {
        struct held_shard *x = shards_running(&w->shards);
        if (x) abort_shard(w, x);
    }
    if (w->end_ms && now_ms >= w->end_ms && !w->ended) {
        bool returns = !w->engine_lost; /* what a lost engine was at is the coordinator's to judge */
        for (size_t i = 0; returns && i < w->shards.count; i++)
            tell_returned(w, w->shards.v[i].grant->shard, false);
        end(w);
        return;
    }
    settle(w);
}

/* ---- life */

static int prepare(struct worker *w, struct kn_err *err) {
    const struct engine *e = w->opt.engine;
    struct stages_options so = {
        .engine = w->opt.engine,
        .pixel_bytes_max = PIXEL_BYTES_MAX,
        .unacked_bytes_max = w->opt.unacked_bytes_max,
        .unacked_max = UNACKED_MAX,
        .wake = wake,
        .ctx = w,
    };
    struct connection_handler on = {on_hello,     on_heartbeat,    on_welcome, on_message,
                                    on_data_room, on_data_renewed, w};
    if (gethostname(w->host, sizeof w->host - 1) != 0) strcpy(w->host, "?");
    kn_uuid_random(w->instance);
    snprintf(w->name, sizeof w->name, "%s", w->opt.name);
    shards_init(&w->shards, w->opt.credit);
    w->infos = calloc(e->model_count + 1, sizeof *w->infos);
    if (!w->infos || uploads_init(&w->uploads, UNACKED_MAX + 1, WINDOW_BYTES) != 0)
        return kn_err_set(err, KN_ENOMEM, "out of memory");
    for (size_t i = 0; i < e->model_count; i++) w->infos[i] = e->models[i].info;
    w->started_s = w->rate_s = kn_clock_ms() / 1000;
    int rc = connection_open(&w->connection, w->opt.wire, w->opt.join, &on, kn_clock_ms(), err);
    return rc ? rc : stages_create(&so, &w->stages, err);
}

int worker_create(const struct worker_options *opt, struct worker **out, struct kn_err *err) {
    struct worker *w = calloc(1, sizeof *w);
    if (!w) return kn_err_set(err, KN_ENOMEM, "out of memory");
    w->opt = *opt;
    int rc = uv_async_init(opt->loop, &w->wake, on_wake);
    if (rc != 0) {
        free(w);
        return kn_err_set(err, KN_EIO, "a wake-up: %s", uv_strerror(rc));
    }
    w->wake.data = w;
    uv_timer_init(opt->loop, &w->tick);
    w->tick.data = w;
    rc = prepare(w, err);
    if (rc == 0) {
        uv_timer_start(&w->tick, on_tick, TICK_MS, TICK_MS);
        *out = w;
        return 0;
    }
    if (worker_close(w)) {
        uv_run(opt->loop, UV_RUN_NOWAIT); /* the handles end */
        worker_free(w);
    }
    return rc;
}

bool worker_close(struct worker *w) {
    w->ended = true;
    connection_close(&w->connection);
    if (w->engine_lost) return false;
    stages_destroy(w->stages); /* before its wake-up */
    w->stages = NULL;
    uv_close((uv_handle_t *)&w->tick, NULL);
    uv_close((uv_handle_t *)&w->wake, NULL);
    return true;
}

void worker_free(struct worker *w) {
    grant_unref(w->probing);
    shards_fini(&w->shards);
    uploads_fini(&w->uploads);
    free(w->infos);
    free(w);
}
