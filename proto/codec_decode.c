/* Bytes -> protobuf-c -> plain structs, validated: whatever a peer sends, what comes out of here is safe to
 * use. The message's arena holds what protobuf-c unpacked, and the plain struct points into it. See codec.h.
 */
#include "base/utf8.h"
#include "proto/codec_private.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The state of one decoding: the first mistake stays. */
struct dec {
    struct arena *a;
    struct kn_err *err;
    int rc;
};

static void fail(struct dec *d, int code, const char *field, const char *what) {
    if (d->rc == 0) d->rc = kn_err_set(d->err, code, "%s: %s", field, what);
}

static const char *str(struct dec *d, const char *field, char *s, size_t max) {
    size_t len = strlen(s);
    if (len > max)
        fail(d, KN_ELIMIT, field, "too long");
    else if (kn_utf8_span(s, len) != len)
        fail(d, KN_EPROTO, field, "not UTF-8");
    return s;
}

static void fixed(struct dec *d, const char *field, ProtobufCBinaryData b, void *out, size_t len) {
    if (b.len != len)
        fail(d, KN_EPROTO, field, "wrong length");
    else
        memcpy(out, b.data, len);
}

/* The same, where nothing at all is allowed too. */
static bool fixed_or_none(struct dec *d, const char *field, ProtobufCBinaryData b, void *out, size_t len) {
    if (b.len == 0) return false;
    fixed(d, field, b, out, len);
    return true;
}

static uint32_t ranged(struct dec *d, const char *field, uint32_t v, uint32_t min, uint32_t max) {
    if (v < min || v > max) fail(d, KN_EPROTO, field, "out of range");
    return v;
}

static uint32_t task_number(struct dec *d, const char *field, uint32_t v) {
    return ranged(d, field, v, 0, KN_TASKS_PER_BATCH_MAX - 1);
}

static float finite_only(struct dec *d, const char *field, float v) {
    if (!isfinite(v)) fail(d, KN_EPROTO, field, "not finite");
    return v;
}

static size_t counted(struct dec *d, const char *field, size_t n, size_t max) {
    if (n > max) fail(d, KN_ELIMIT, field, "too many");
    return n;
}

static void *array(struct dec *d, size_t count, size_t size) {
    void *p = arena_array(d->a, count, size);
    if (!p) fail(d, KN_ENOMEM, "message", "out of memory");
    return p;
}

static bool sampler_known(uint32_t v) {
    switch (v) {
#define KNOWN(id, value, a1111, comfy, diffusers) case value:
        KN_SAMPLER_TABLE(KNOWN)
#undef KNOWN
        return true;
    default:
        return false;
    }
}

static struct kn_model_info *models(struct dec *d, Kiln__Pb__ModelInfo *const *v, size_t n, size_t max,
                                    bool resolved) {
    counted(d, "models", n, max);
    if (d->rc != 0) return NULL;
    struct kn_model_info *out = array(d, n, sizeof *out);
    for (size_t i = 0; d->rc == 0 && i < n; i++) {
        struct kn_model_info *m = &out[i];
        str(d, "model.name", v[i]->name, KN_NAME_MAX);
        if (d->rc != 0) break;
        memcpy(m->name, v[i]->name, strlen(v[i]->name) + 1);
        if (!fixed_or_none(d, "model.sha256", v[i]->sha256, m->sha256, KN_SHA256_BYTES) && resolved)
            fail(d, KN_EPROTO, "model.sha256", "missing");
        if (resolved) {
            if (!sampler_known(v[i]->sampler)) fail(d, KN_EPROTO, "model.sampler", "unknown");
            ranged(d, "model.schedule", v[i]->schedule, KN_SCHEDULE_NORMAL, KN_SCHEDULE_KARRAS);
            ranged(d, "model.steps", v[i]->steps, KN_STEPS_MIN, KN_STEPS_MAX);
            ranged(d, "model.width", v[i]->width, KN_SIZE_MIN, KN_SIZE_MAX);
            ranged(d, "model.height", v[i]->height, KN_SIZE_MIN, KN_SIZE_MAX);
            ranged(d, "model.size_multiple", v[i]->size_multiple, 1, KN_SIZE_MAX);
        }
        m->defaults.sampler = (enum kn_sampler)v[i]->sampler;
        m->defaults.schedule = (enum kn_schedule)v[i]->schedule;
        m->defaults.steps = v[i]->steps;
        m->defaults.cfg = finite_only(d, "model.cfg", v[i]->cfg);
        m->defaults.width = v[i]->width;
        m->defaults.height = v[i]->height;
        m->size_multiple = v[i]->size_multiple;
        m->size_max = ranged(d, "model.size_max", v[i]->size_max, 0, KN_SIZE_MAX);
    }
    return out;
}

int codec_tasks_from_pb(struct arena *a, Kiln__Pb__Task *const *v, size_t n, size_t model_count,
                        struct kn_task **out, struct kn_err *err) {
    struct dec d = {.a = a, .err = err};
    struct kn_task *t = array(&d, n, sizeof *t);
    for (size_t i = 0; d.rc == 0 && i < n; i++) {
        if (!sampler_known(v[i]->sampler)) fail(&d, KN_EPROTO, "task.sampler", "unknown");
        ranged(&d, "task.schedule", v[i]->schedule, KN_SCHEDULE_NORMAL, KN_SCHEDULE_KARRAS);
        if (model_count && v[i]->model_index >= model_count)
            fail(&d, KN_EPROTO, "task.model_index", "out of range");
        t[i] = (struct kn_task){
            .prompt = v[i]->prompt,
            .negative = v[i]->negative,
            .extra = v[i]->extra[0] ? v[i]->extra : NULL,
            .model_index = v[i]->model_index,
            .seed = v[i]->seed,
            .cfg = v[i]->cfg,
            .steps = v[i]->steps,
            .width = v[i]->width,
            .height = v[i]->height,
            .sampler = (enum kn_sampler)v[i]->sampler,
            .schedule = (enum kn_schedule)v[i]->schedule,
            .set = KN_SET_ALL,
        };
        str(&d, "task.prompt", v[i]->prompt, KN_PROMPT_BYTES_MAX);
        str(&d, "task.negative", v[i]->negative, KN_PROMPT_BYTES_MAX);
        str(&d, "task.extra", v[i]->extra, KN_EXTRA_BYTES_MAX);
        struct kn_err why = {0};
        if (d.rc == 0 && kn_task_check(&t[i], &why) != 0)
            d.rc = kn_err_set(err, KN_EPROTO, "task %zu: %s", i, why.text);
    }
    *out = t;
    return d.rc;
}

static void batch_status(struct dec *d, const Kiln__Pb__BatchStatus *p, struct kn_batch_status *s) {
    fixed(d, "batch", p->batch, s->batch, KN_UUID_BYTES);
    s->name = str(d, "name", p->name, KN_NAME_MAX);
    s->request = str(d, "request", p->request, KN_FRAME_BYTES_MAX);
    s->state = (enum kn_batch_state)ranged(d, "state", p->state, KN_BATCH_ACTIVE, KN_BATCH_CANCELLED);
    s->total = p->total;
    s->done = p->done;
    s->failed = p->failed;
    s->cancelled = p->cancelled;
    s->queued = p->queued;
    s->running = p->running;
    s->images_per_s = finite_only(d, "images_per_s", p->images_per_s);
    s->images_per_s_mean = finite_only(d, "images_per_s_mean", p->images_per_s_mean);
    s->eta_ms = p->eta_ms;
    s->created_wall_ms = p->created_wall_ms;
    s->finished_wall_ms = p->finished_wall_ms;
    s->priority = p->priority;
}

/* ---- one function a message; each reads d->rc only through its helpers */

static void readings(struct dec *d, const Kiln__Pb__Readings *p, struct kn_readings *s) {
    if (!p) return; /* all unknown, as the struct came */
    s->memory_used = p->memory_used;
    s->memory_total = p->memory_total;
    if (p->memory_total > KN_DEVICE_BYTES_MAX || p->memory_used > KN_DEVICE_BYTES_MAX)
        fail(d, KN_EPROTO, "readings.memory", "out of range");
    s->temperature_c = ranged(d, "readings.temperature_c", p->temperature_c, 0, KN_DEVICE_C_MAX);
    s->power_mw = ranged(d, "readings.power_mw", p->power_mw, 0, KN_DEVICE_MW_MAX);
    s->sm_mhz = ranged(d, "readings.sm_mhz", p->sm_mhz, 0, KN_DEVICE_MHZ_MAX);
    s->memory_mhz = ranged(d, "readings.memory_mhz", p->memory_mhz, 0, KN_DEVICE_MHZ_MAX);
}

static void worker_hello(struct dec *d, const Kiln__Pb__WorkerHello *p, struct kn_worker_hello *s) {
    s->worker = str(d, "worker", p->worker, KN_NAME_MAX);
    if (!s->worker[0]) fail(d, KN_EPROTO, "worker", "empty");
    s->host = str(d, "host", p->host, KN_HOST_MAX);
    s->device = str(d, "device", p->device, KN_DEVICE_MAX);
    s->device_uuid = str(d, "device_uuid", p->device_uuid, KN_DEVICE_MAX);
    s->backend = str(d, "backend", p->backend, KN_BACKEND_MAX);
    if (!s->backend[0]) fail(d, KN_EPROTO, "backend", "empty");
    s->engine = str(d, "engine", p->engine, KN_NAME_MAX);
    fixed(d, "instance", p->instance, s->instance, KN_UUID_BYTES);
    s->pid = p->pid;
    s->credit = ranged(d, "credit", p->credit, 1, KN_SHARDS_PER_WORKER_MAX);
    s->batch_max = ranged(d, "batch_max", p->batch_max, 1, KN_SHARD_TASKS_MAX);
    s->model_count = p->n_models;
    s->models = models(d, p->models, p->n_models, KN_MODELS_PER_WORKER_MAX, true);
    s->held_count = counted(d, "held", p->n_held, KN_SHARDS_PER_WORKER_MAX * 4);
    s->held = d->rc == 0 ? array(d, p->n_held, sizeof *s->held) : NULL;
    for (size_t i = 0; d->rc == 0 && i < p->n_held; i++) {
        struct kn_held_shard *h = &s->held[i];
        fixed(d, "held.batch", p->held[i]->batch, h->batch, KN_UUID_BYTES);
        h->shard = p->held[i]->shard;
        h->term = p->held[i]->term;
        h->tasks = p->held[i]->tasks;
        h->task_count = counted(d, "held.tasks", p->held[i]->n_tasks, KN_SHARD_TASKS_MAX);
    }
}

static void heartbeat(struct dec *d, const Kiln__Pb__Heartbeat *p, struct kn_heartbeat *s) {
    s->shard = p->shard;
    if (!fixed_or_none(d, "batch", p->batch, s->batch, KN_UUID_BYTES) && p->shard)
        fail(d, KN_EPROTO, "batch", "missing");
    s->step = p->step;
    s->steps = p->steps;
    s->tasks = p->tasks;
    s->progress_age_ms = p->progress_age_ms;
    s->waiting = p->waiting;
    s->images_per_s = finite_only(d, "images_per_s", p->images_per_s);
    s->draining = p->draining;
    s->has_model = fixed_or_none(d, "model_sha256", p->model_sha256, s->model_sha256, KN_SHA256_BYTES);
    readings(d, p->readings, &s->readings);
}

static void task_failed(struct dec *d, const Kiln__Pb__TaskFailed *p, struct kn_task_failed *s) {
    fixed(d, "batch", p->batch, s->batch, KN_UUID_BYTES);
    s->task = task_number(d, "task", p->task);
    s->shard = p->shard;
    s->term = p->term;
    s->code = p->code;
    if (p->code >= 0) fail(d, KN_EPROTO, "code", "not an error");
    s->reason = str(d, "reason", p->reason, KN_REASON_MAX);
}

static void welcome(struct dec *d, const Kiln__Pb__Welcome *p, struct kn_welcome *s) {
    s->term = p->term;
    s->heartbeat_ms = ranged(d, "heartbeat_ms", p->heartbeat_ms, 1, 3600000);
    s->silence_ms = ranged(d, "silence_ms", p->silence_ms, 1, 3600000);
    s->data_port = ranged(d, "data_port", p->data_port, 0, 65535);
    s->data_ipc = str(d, "data_ipc", p->data_ipc, KN_ENDPOINT_MAX);
    s->objects_dir = str(d, "objects_dir", p->objects_dir, 4095);
    s->version = str(d, "version", p->version, KN_NAME_MAX);
}

static void shard_grant(struct dec *d, const Kiln__Pb__ShardGrant *p, struct kn_shard_grant *s) {
    s->shard = p->shard;
    if (!p->shard) fail(d, KN_EPROTO, "shard", "missing");
    s->term = p->term;
    s->attempt = p->attempt;
    fixed(d, "batch", p->batch, s->batch, KN_UUID_BYTES);
    fixed(d, "model_sha256", p->model_sha256, s->model_sha256, KN_SHA256_BYTES);
    s->count = counted(d, "tasks", p->n_tasks, KN_SHARD_TASKS_MAX);
    if (p->n_tasks == 0 || p->n_index != p->n_tasks)
        fail(d, KN_EPROTO, "tasks", "none, or not one index each");
    s->index = p->index;
    for (size_t i = 0; i < p->n_index; i++) task_number(d, "index", p->index[i]);
    if (d->rc == 0) d->rc = codec_tasks_from_pb(d->a, p->tasks, p->n_tasks, 0, &s->tasks, d->err);
}

static void image_result(struct dec *d, const Kiln__Pb__ImageResult *p, struct kn_image_result *s) {
    fixed(d, "batch", p->batch, s->batch, KN_UUID_BYTES);
    s->task = task_number(d, "task", p->task);
    s->shard = p->shard;
    s->term = p->term;
    s->attempt = p->attempt;
    fixed(d, "sha256", p->sha256, s->sha256, KN_SHA256_BYTES);
    fixed(d, "pixels_sha256", p->pixels_sha256, s->pixels_sha256, KN_SHA256_BYTES);
    s->render_ms = p->render_ms;
    s->flat = p->flat;
    s->worker = str(d, "worker", p->worker, KN_NAME_MAX);
    s->backend = str(d, "backend", p->backend, KN_BACKEND_MAX);
    if (!s->backend[0]) fail(d, KN_EPROTO, "backend", "empty");
    s->engine = str(d, "engine", p->engine, KN_NAME_MAX);
}

static void submit_begin(struct dec *d, const Kiln__Pb__SubmitBegin *p, struct kn_submit_begin *s) {
    fixed(d, "batch", p->batch, s->batch, KN_UUID_BYTES);
    s->name = str(d, "name", p->name, KN_NAME_MAX);
    s->tasks = ranged(d, "tasks", p->tasks, 1, KN_TASKS_PER_BATCH_MAX);
    s->chunks = ranged(d, "chunks", p->chunks, 1, KN_TASKS_PER_BATCH_MAX);
    s->priority = p->priority;
    s->pin_backend = str(d, "pin_backend", p->pin_backend, KN_BACKEND_MAX);
    s->request = str(d, "request", p->request, KN_FRAME_BYTES_MAX);
    s->model_count = p->n_models;
    if (p->n_models == 0) fail(d, KN_EPROTO, "models", "none");
    s->models = models(d, p->models, p->n_models, KN_MODELS_PER_BATCH_MAX, false);
}

static void worker_list(struct dec *d, const Kiln__Pb__WorkerList *p, struct kn_worker_list *s) {
    s->images_per_s = finite_only(d, "images_per_s", p->images_per_s);
    s->count = counted(d, "workers", p->n_workers, KN_WORKERS_MAX);
    s->v = d->rc == 0 ? array(d, s->count, sizeof *s->v) : NULL;
    for (size_t i = 0; d->rc == 0 && i < s->count; i++) {
        const Kiln__Pb__WorkerStatus *q = p->workers[i];
        struct kn_worker_status *w = &s->v[i];
        w->worker = str(d, "worker", q->worker, KN_NAME_MAX);
        w->host = str(d, "host", q->host, KN_HOST_MAX);
        w->device = str(d, "device", q->device, KN_DEVICE_MAX);
        w->device_uuid = str(d, "device_uuid", q->device_uuid, KN_DEVICE_MAX);
        w->backend = str(d, "backend", q->backend, KN_BACKEND_MAX);
        w->model = str(d, "model", q->model, KN_NAME_MAX);
        w->engine = str(d, "engine", q->engine, KN_NAME_MAX);
        w->state = (enum kn_worker_state)ranged(d, "state", q->state, KN_WORKER_IDLE, KN_WORKER_LOST);
        w->has_batch = fixed_or_none(d, "batch", q->batch, w->batch, KN_UUID_BYTES);
        w->step = q->step;
        w->steps = q->steps;
        w->tasks = q->tasks;
        w->done = q->done;
        w->failed = q->failed;
        w->last_seen_ms = q->last_seen_ms;
        w->pid = q->pid;
        w->images_per_s = finite_only(d, "images_per_s", q->images_per_s);
        readings(d, q->readings, &w->readings);
    }
}

static void results_reply(struct dec *d, const Kiln__Pb__ResultsReply *p, struct kn_results_reply *s) {
    s->epoch = p->epoch;
    s->cursor = p->cursor;
    if (p->status)
        batch_status(d, p->status, &s->status);
    else
        fail(d, KN_EPROTO, "status", "missing");
    s->count = counted(d, "results", p->n_results, KN_RESULTS_PER_REPLY_MAX);
    s->v = d->rc == 0 ? array(d, s->count, sizeof *s->v) : NULL;
    for (size_t i = 0; d->rc == 0 && i < s->count; i++) {
        const Kiln__Pb__Result *q = p->results[i];
        struct kn_result *r = &s->v[i];
        r->index = ranged(d, "index", q->index, 0, KN_TASKS_PER_BATCH_MAX - 1);
        r->status =
            (enum kn_result_status)ranged(d, "status", q->status, KN_RESULT_DONE, KN_RESULT_CANCELLED);
        if (r->status == KN_RESULT_DONE) {
            fixed(d, "sha256", q->sha256, r->sha256, KN_SHA256_BYTES);
            fixed(d, "pixels_sha256", q->pixels_sha256, r->pixels_sha256, KN_SHA256_BYTES);
        }
        r->worker = str(d, "worker", q->worker, KN_NAME_MAX);
        r->backend = str(d, "backend", q->backend, KN_BACKEND_MAX);
        r->engine = str(d, "engine", q->engine, KN_NAME_MAX);
        r->attempt = q->attempt;
        r->render_ms = q->render_ms;
        r->error = str(d, "error", q->error, KN_REASON_MAX);
        r->flat = q->flat;
    }
}

static void batch_list(struct dec *d, const Kiln__Pb__BatchList *p, struct kn_batch_list *s) {
    s->count = counted(d, "batches", p->n_batches, KN_BATCHES_MAX);
    s->v = d->rc == 0 ? array(d, s->count, sizeof *s->v) : NULL;
    for (size_t i = 0; d->rc == 0 && i < s->count; i++) batch_status(d, p->batches[i], &s->v[i]);
}

static void from_worker(struct dec *d, const Kiln__Pb__Envelope *e, struct kn_msg *m) {
    switch ((int)m->type) {
    case KN_MSG_WORKER_HELLO:
        worker_hello(d, e->worker_hello, &m->u.worker_hello);
        break;
    case KN_MSG_HEARTBEAT:
        heartbeat(d, e->heartbeat, &m->u.heartbeat);
        break;
    case KN_MSG_SHARD_STARTED:
        m->u.shard_started = (struct kn_shard_ref){e->shard_started->shard, e->shard_started->term};
        break;
    case KN_MSG_SHARD_RETURNED:
        m->u.shard_returned.shard = e->shard_returned->shard;
        m->u.shard_returned.term = e->shard_returned->term;
        m->u.shard_returned.out_of_memory = e->shard_returned->out_of_memory;
        break;
    case KN_MSG_SHARD_DONE:
        m->u.shard_done.shard = e->shard_done->shard;
        m->u.shard_done.term = e->shard_done->term;
        m->u.shard_done.render_ms = e->shard_done->render_ms;
        m->u.shard_done.images = e->shard_done->images;
        break;
    case KN_MSG_TASK_FAILED:
        task_failed(d, e->task_failed, &m->u.task_failed);
        break;
    case KN_MSG_WORKER_BYE:
        m->u.worker_bye.text = str(d, "reason", e->worker_bye->reason, KN_REASON_MAX);
        break;
    case KN_MSG_IMAGE_RESULT:
        image_result(d, e->image_result, &m->u.image_result);
        break;
    default:
        break;
    }
}

static void to_worker(struct dec *d, const Kiln__Pb__Envelope *e, struct kn_msg *m) {
    switch ((int)m->type) {
    case KN_MSG_WELCOME:
        welcome(d, e->welcome, &m->u.welcome);
        break;
    case KN_MSG_HELLO_AGAIN:
        m->u.hello_again.text = str(d, "reason", e->hello_again->reason, KN_REASON_MAX);
        break;
    case KN_MSG_SHARD_GRANT:
        shard_grant(d, e->shard_grant, &m->u.shard_grant);
        break;
    case KN_MSG_SHARD_REVOKE:
        m->u.shard_revoke.shard = e->shard_revoke->shard;
        m->u.shard_revoke.term = e->shard_revoke->term;
        m->u.shard_revoke.abort = e->shard_revoke->abort;
        break;
    case KN_MSG_IMAGE_ACK:
        fixed(d, "batch", e->image_ack->batch, m->u.image_ack.batch, KN_UUID_BYTES);
        m->u.image_ack.task = task_number(d, "task", e->image_ack->task);
        m->u.image_ack.code = e->image_ack->code;
        break;
    case KN_MSG_DRAIN_WORKER:
        m->u.drain_worker.exit = e->drain_worker->exit;
        m->u.drain_worker.reason = str(d, "reason", e->drain_worker->reason, KN_REASON_MAX);
        break;
    default:
        break;
    }
}

static void from_client(struct dec *d, const Kiln__Pb__Envelope *e, struct kn_msg *m) {
    switch ((int)m->type) {
    case KN_MSG_CLIENT_HELLO:
        m->u.client_hello.text = str(d, "client", e->client_hello->client, KN_NAME_MAX);
        break;
    case KN_MSG_SUBMIT_BEGIN:
        submit_begin(d, e->submit_begin, &m->u.submit_begin);
        break;
    case KN_MSG_SUBMIT_CHUNK:
        fixed(d, "batch", e->submit_chunk->batch, m->u.submit_chunk.batch, KN_UUID_BYTES);
        m->u.submit_chunk.chunk = e->submit_chunk->chunk;
        m->u.submit_chunk.count = ranged(d, "count", e->submit_chunk->count, 1, KN_TASKS_PER_CHUNK_MAX);
        m->u.submit_chunk.tasks = e->submit_chunk->tasks.data;
        m->u.submit_chunk.tasks_len = e->submit_chunk->tasks.len;
        break;
    case KN_MSG_SUBMIT_SEAL:
        m->u.submit_seal.has_batch = true;
        fixed(d, "batch", e->submit_seal->batch, m->u.submit_seal.batch, KN_UUID_BYTES);
        break;
    case KN_MSG_BATCH_QUERY:
        m->u.batch_query.has_batch =
            fixed_or_none(d, "batch", e->batch_query->batch, m->u.batch_query.batch, KN_UUID_BYTES);
        break;
    case KN_MSG_BATCH_COMMAND:
        fixed(d, "batch", e->batch_command->batch, m->u.batch_command.batch, KN_UUID_BYTES);
        m->u.batch_command.verb =
            (enum kn_batch_verb)ranged(d, "verb", e->batch_command->verb, KN_VERB_CANCEL, KN_VERB_PRIORITY);
        m->u.batch_command.argument = e->batch_command->argument;
        break;
    case KN_MSG_WORKER_COMMAND:
        m->u.worker_command.worker = str(d, "worker", e->worker_command->worker, KN_NAME_MAX);
        m->u.worker_command.exit = e->worker_command->exit;
        break;
    case KN_MSG_RESULTS_QUERY:
        fixed(d, "batch", e->results_query->batch, m->u.results_query.batch, KN_UUID_BYTES);
        m->u.results_query.epoch = e->results_query->epoch;
        m->u.results_query.cursor = e->results_query->cursor;
        m->u.results_query.max = ranged(d, "max", e->results_query->max, 1, KN_RESULTS_PER_REPLY_MAX);
        break;
    case KN_MSG_TASKS_QUERY:
        fixed(d, "batch", e->tasks_query->batch, m->u.tasks_query.batch, KN_UUID_BYTES);
        m->u.tasks_query.chunk = e->tasks_query->chunk;
        break;
    case KN_MSG_OBJECT_GET:
        fixed(d, "sha256", e->object_get->sha256, m->u.object_get.sha256, KN_SHA256_BYTES);
        break;
    default:
        break;
    }
}

static void to_client(struct dec *d, const Kiln__Pb__Envelope *e, struct kn_msg *m) {
    switch ((int)m->type) {
    case KN_MSG_REPLY:
        m->u.reply.code = e->reply->code;
        m->u.reply.text = str(d, "text", e->reply->text, KN_FRAME_BYTES_MAX);
        break;
    case KN_MSG_BATCH_LIST:
        batch_list(d, e->batch_list, &m->u.batch_list);
        break;
    case KN_MSG_WORKER_LIST:
        worker_list(d, e->worker_list, &m->u.worker_list);
        break;
    case KN_MSG_MODEL_LIST:
        m->u.model_list.count = e->model_list->n_models;
        m->u.model_list.v = models(d, e->model_list->models, e->model_list->n_models,
                                   (size_t)KN_WORKERS_MAX * KN_MODELS_PER_WORKER_MAX, true);
        break;
    case KN_MSG_RESULTS_REPLY:
        results_reply(d, e->results_reply, &m->u.results_reply);
        break;
    case KN_MSG_TASKS_REPLY:
        m->u.tasks_reply.chunks = e->tasks_reply->chunks;
        m->u.tasks_reply.tasks = e->tasks_reply->tasks.data;
        m->u.tasks_reply.tasks_len = e->tasks_reply->tasks.len;
        m->u.tasks_reply.model_count = e->tasks_reply->n_models;
        m->u.tasks_reply.models =
            models(d, e->tasks_reply->models, e->tasks_reply->n_models, KN_MODELS_PER_BATCH_MAX, true);
        break;
    case KN_MSG_OBJECT_REPLY:
        fixed(d, "sha256", e->object_reply->sha256, m->u.object_reply.sha256, KN_SHA256_BYTES);
        m->u.object_reply.code = e->object_reply->code;
        m->u.object_reply.text = str(d, "text", e->object_reply->text, KN_REASON_MAX);
        break;
    default:
        break;
    }
}

int kn_msg_decode(const void *data, size_t len, struct kn_msg **out, struct kn_err *err) {
    *out = NULL;
    if (len > KN_FRAME_BYTES_MAX)
        return kn_err_set(err, KN_ELIMIT, "frame: %zu bytes, more than %u", len, KN_FRAME_BYTES_MAX);
    struct codec_owned *o = calloc(1, sizeof *o);
    if (!o) return kn_err_set(err, KN_ENOMEM, "frame: out of memory");
    /* An empty nested message takes two bytes on the wire and a hundred unpacked: the maximum bounds what a
     * frame can cost. */
    arena_init(&o->arena, (size_t)64 * KN_FRAME_BYTES_MAX);
    struct dec d = {.a = &o->arena, .err = err};
    Kiln__Pb__Envelope *e = kiln__pb__envelope__unpack(&o->arena.pb, len, data);
    if (!e) {
        d.rc = kn_err_set(err, KN_EPROTO, "frame: malformed");
    } else if (e->version != KN_PROTO_VERSION) {
        d.rc = kn_err_set(err, KN_EVERSION, "frame: protocol version %u, this side speaks %d", e->version,
                          KN_PROTO_VERSION);
    } else if (e->body_case == KILN__PB__ENVELOPE__BODY__NOT_SET) {
        d.rc = kn_err_set(err, KN_EPROTO, "frame: a message that this side does not know");
    } else {
        o->msg.type = (enum kn_msg_type)e->body_case;
        o->msg.request = e->request;
        from_worker(&d, e, &o->msg);
        to_worker(&d, e, &o->msg);
        from_client(&d, e, &o->msg);
        to_client(&d, e, &o->msg);
        if (d.rc != 0) kn_err_prefix(err, "%s", kn_msg_name(o->msg.type));
    }
    if (d.rc != 0) {
        arena_fini(&o->arena);
        free(o);
        return d.rc;
    }
    *out = &o->msg;
    return 0;
}

void kn_msg_destroy(struct kn_msg *m) {
    if (!m) return;
    struct codec_owned *o = (struct codec_owned *)m;
    arena_fini(&o->arena);
    free(o);
}
