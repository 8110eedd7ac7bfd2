/* Plain structs -> protobuf-c -> bytes. Strings and arrays are borrowed while a message is packed. See
 * codec.h. */
#include "proto/codec_private.h"

#include <string.h>

#define STR(s) ((char *)(uintptr_t)((s) ? (s) : ""))

static ProtobufCBinaryData bin(const void *p, size_t n) {
    return (ProtobufCBinaryData){.len = n, .data = (uint8_t *)(uintptr_t)p};
}

/* A new message of a type in the arena, or NULL. */
static void *new_msg(struct arena *a, const ProtobufCMessageDescriptor *type) {
    void *p = arena_alloc(a, type->sizeof_message);
    if (p) protobuf_c_message_init(type, p);
    return p;
}

static Kiln__Pb__ModelInfo **models_to_pb(struct arena *a, const struct kn_model_info *m, size_t count) {
    Kiln__Pb__ModelInfo **v = arena_array(a, count, sizeof *v);
    for (size_t i = 0; v && i < count; i++) {
        Kiln__Pb__ModelInfo *p = new_msg(a, &kiln__pb__model_info__descriptor);
        if (!p) return NULL;
        p->name = STR(m[i].name);
        p->sha256 = bin(m[i].sha256, KN_SHA256_BYTES);
        p->sampler = (uint32_t)m[i].defaults.sampler;
        p->schedule = (uint32_t)m[i].defaults.schedule;
        p->steps = m[i].defaults.steps;
        p->cfg = m[i].defaults.cfg;
        p->width = m[i].defaults.width;
        p->height = m[i].defaults.height;
        p->size_multiple = m[i].size_multiple;
        p->size_max = m[i].size_max;
        v[i] = p;
    }
    return v;
}

Kiln__Pb__Task **codec_tasks_to_pb(struct arena *a, const struct kn_task *t, size_t count) {
    Kiln__Pb__Task **v = arena_array(a, count, sizeof *v);
    for (size_t i = 0; v && i < count; i++) {
        Kiln__Pb__Task *p = new_msg(a, &kiln__pb__task__descriptor);
        if (!p) return NULL;
        p->prompt = STR(t[i].prompt);
        p->negative = STR(t[i].negative);
        p->extra = STR(t[i].extra);
        p->model_index = t[i].model_index;
        p->seed = t[i].seed;
        p->cfg = t[i].cfg;
        p->steps = t[i].steps;
        p->width = t[i].width;
        p->height = t[i].height;
        p->sampler = (uint32_t)t[i].sampler;
        p->schedule = (uint32_t)t[i].schedule;
        v[i] = p;
    }
    return v;
}

static Kiln__Pb__BatchStatus *status_to_pb(struct arena *a, const struct kn_batch_status *s) {
    Kiln__Pb__BatchStatus *p = new_msg(a, &kiln__pb__batch_status__descriptor);
    if (!p) return NULL;
    p->batch = bin(s->batch, KN_UUID_BYTES);
    p->name = STR(s->name);
    p->request = STR(s->request);
    p->state = (uint32_t)s->state;
    p->total = s->total;
    p->done = s->done;
    p->failed = s->failed;
    p->cancelled = s->cancelled;
    p->queued = s->queued;
    p->running = s->running;
    p->images_per_s = s->images_per_s;
    p->images_per_s_mean = s->images_per_s_mean;
    p->eta_ms = s->eta_ms;
    p->created_wall_ms = s->created_wall_ms;
    p->finished_wall_ms = s->finished_wall_ms;
    p->priority = s->priority;
    return p;
}

/* NULL in *out when there are none: KN_ENOMEM is told apart by the result. */
static int readings_to_pb(struct arena *a, const struct kn_readings *r, Kiln__Pb__Readings **out) {
    static const struct kn_readings none;
    *out = NULL;
    if (memcmp(r, &none, sizeof none) == 0) return 0;
    Kiln__Pb__Readings *p = new_msg(a, &kiln__pb__readings__descriptor);
    if (!p) return KN_ENOMEM;
    p->memory_used = r->memory_used;
    p->memory_total = r->memory_total;
    p->temperature_c = r->temperature_c;
    p->power_mw = r->power_mw;
    p->sm_mhz = r->sm_mhz;
    p->memory_mhz = r->memory_mhz;
    *out = p;
    return 0;
}

#define BODY(field, type, descriptor)                                                                        \
    type *p = new_msg(a, &(descriptor));                                                                     \
    if (!p) return KN_ENOMEM;                                                                                \
    e->field = p

static int worker_body(struct arena *a, const struct kn_msg *m, Kiln__Pb__Envelope *e) {
    switch ((int)m->type) {
    case KN_MSG_WORKER_HELLO: {
        const struct kn_worker_hello *s = &m->u.worker_hello;
        BODY(worker_hello, Kiln__Pb__WorkerHello, kiln__pb__worker_hello__descriptor);
        p->worker = STR(s->worker);
        p->host = STR(s->host);
        p->device = STR(s->device);
        p->device_uuid = STR(s->device_uuid);
        p->backend = STR(s->backend);
        p->engine = STR(s->engine);
        p->instance = bin(s->instance, KN_UUID_BYTES);
        p->pid = s->pid;
        p->credit = s->credit;
        p->batch_max = s->batch_max;
        p->n_models = s->model_count;
        p->models = models_to_pb(a, s->models, s->model_count);
        p->n_held = s->held_count;
        p->held = arena_array(a, s->held_count, sizeof *p->held);
        if (!p->models || !p->held) return KN_ENOMEM;
        for (size_t i = 0; i < s->held_count; i++) {
            Kiln__Pb__HeldShard *h = new_msg(a, &kiln__pb__held_shard__descriptor);
            if (!h) return KN_ENOMEM;
            h->batch = bin(s->held[i].batch, KN_UUID_BYTES);
            h->shard = s->held[i].shard;
            h->term = s->held[i].term;
            h->n_tasks = s->held[i].task_count;
            h->tasks = s->held[i].tasks;
            p->held[i] = h;
        }
        return 0;
    }
    case KN_MSG_HEARTBEAT: {
        const struct kn_heartbeat *s = &m->u.heartbeat;
        BODY(heartbeat, Kiln__Pb__Heartbeat, kiln__pb__heartbeat__descriptor);
        p->shard = s->shard;
        if (s->shard) p->batch = bin(s->batch, KN_UUID_BYTES);
        p->step = s->step;
        p->steps = s->steps;
        p->tasks = s->tasks;
        p->progress_age_ms = s->progress_age_ms;
        p->waiting = s->waiting;
        p->images_per_s = s->images_per_s;
        p->draining = s->draining;
        if (s->has_model) p->model_sha256 = bin(s->model_sha256, KN_SHA256_BYTES);
        return readings_to_pb(a, &s->readings, &p->readings);
    }
    case KN_MSG_SHARD_STARTED: {
        BODY(shard_started, Kiln__Pb__ShardStarted, kiln__pb__shard_started__descriptor);
        p->shard = m->u.shard_started.shard;
        p->term = m->u.shard_started.term;
        return 0;
    }
    case KN_MSG_SHARD_RETURNED: {
        BODY(shard_returned, Kiln__Pb__ShardReturned, kiln__pb__shard_returned__descriptor);
        p->shard = m->u.shard_returned.shard;
        p->term = m->u.shard_returned.term;
        p->out_of_memory = m->u.shard_returned.out_of_memory;
        return 0;
    }
    case KN_MSG_SHARD_DONE: {
        BODY(shard_done, Kiln__Pb__ShardDone, kiln__pb__shard_done__descriptor);
        p->shard = m->u.shard_done.shard;
        p->term = m->u.shard_done.term;
        p->render_ms = m->u.shard_done.render_ms;
        p->images = m->u.shard_done.images;
        return 0;
    }
    case KN_MSG_TASK_FAILED: {
        const struct kn_task_failed *s = &m->u.task_failed;
        BODY(task_failed, Kiln__Pb__TaskFailed, kiln__pb__task_failed__descriptor);
        p->batch = bin(s->batch, KN_UUID_BYTES);
        p->task = s->task;
        p->shard = s->shard;
        p->term = s->term;
        p->code = s->code;
        p->reason = STR(s->reason);
        return 0;
    }
    case KN_MSG_WORKER_BYE: {
        BODY(worker_bye, Kiln__Pb__WorkerBye, kiln__pb__worker_bye__descriptor);
        p->reason = STR(m->u.worker_bye.text);
        return 0;
    }
    case KN_MSG_IMAGE_RESULT: {
        const struct kn_image_result *s = &m->u.image_result;
        BODY(image_result, Kiln__Pb__ImageResult, kiln__pb__image_result__descriptor);
        p->batch = bin(s->batch, KN_UUID_BYTES);
        p->task = s->task;
        p->shard = s->shard;
        p->term = s->term;
        p->attempt = s->attempt;
        p->sha256 = bin(s->sha256, KN_SHA256_BYTES);
        p->pixels_sha256 = bin(s->pixels_sha256, KN_SHA256_BYTES);
        p->render_ms = s->render_ms;
        p->flat = s->flat;
        p->worker = STR(s->worker);
        p->backend = STR(s->backend);
        p->engine = STR(s->engine);
        return 0;
    }
    default:
        return KN_EINVAL;
    }
}

static int to_worker_body(struct arena *a, const struct kn_msg *m, Kiln__Pb__Envelope *e) {
    switch ((int)m->type) {
    case KN_MSG_WELCOME: {
        const struct kn_welcome *s = &m->u.welcome;
        BODY(welcome, Kiln__Pb__Welcome, kiln__pb__welcome__descriptor);
        p->term = s->term;
        p->heartbeat_ms = s->heartbeat_ms;
        p->silence_ms = s->silence_ms;
        p->data_port = s->data_port;
        p->data_ipc = STR(s->data_ipc);
        p->objects_dir = STR(s->objects_dir);
        p->version = STR(s->version);
        return 0;
    }
    case KN_MSG_HELLO_AGAIN: {
        BODY(hello_again, Kiln__Pb__HelloAgain, kiln__pb__hello_again__descriptor);
        p->reason = STR(m->u.hello_again.text);
        return 0;
    }
    case KN_MSG_SHARD_GRANT: {
        const struct kn_shard_grant *s = &m->u.shard_grant;
        BODY(shard_grant, Kiln__Pb__ShardGrant, kiln__pb__shard_grant__descriptor);
        p->shard = s->shard;
        p->term = s->term;
        p->attempt = s->attempt;
        p->batch = bin(s->batch, KN_UUID_BYTES);
        p->model_sha256 = bin(s->model_sha256, KN_SHA256_BYTES);
        p->n_index = s->count;
        p->index = s->index;
        p->n_tasks = s->count;
        p->tasks = codec_tasks_to_pb(a, s->tasks, s->count);
        return p->tasks ? 0 : KN_ENOMEM;
    }
    case KN_MSG_SHARD_REVOKE: {
        BODY(shard_revoke, Kiln__Pb__ShardRevoke, kiln__pb__shard_revoke__descriptor);
        p->shard = m->u.shard_revoke.shard;
        p->term = m->u.shard_revoke.term;
        p->abort = m->u.shard_revoke.abort;
        return 0;
    }
    case KN_MSG_IMAGE_ACK: {
        BODY(image_ack, Kiln__Pb__ImageAck, kiln__pb__image_ack__descriptor);
        p->batch = bin(m->u.image_ack.batch, KN_UUID_BYTES);
        p->task = m->u.image_ack.task;
        p->code = m->u.image_ack.code;
        return 0;
    }
    case KN_MSG_DRAIN_WORKER: {
        BODY(drain_worker, Kiln__Pb__DrainWorker, kiln__pb__drain_worker__descriptor);
        p->exit = m->u.drain_worker.exit;
        p->reason = STR(m->u.drain_worker.reason);
        return 0;
    }
    default:
        return KN_EINVAL;
    }
}

static int from_client_body(struct arena *a, const struct kn_msg *m, Kiln__Pb__Envelope *e) {
    switch ((int)m->type) {
    case KN_MSG_CLIENT_HELLO: {
        BODY(client_hello, Kiln__Pb__ClientHello, kiln__pb__client_hello__descriptor);
        p->client = STR(m->u.client_hello.text);
        return 0;
    }
    case KN_MSG_SUBMIT_BEGIN: {
        const struct kn_submit_begin *s = &m->u.submit_begin;
        BODY(submit_begin, Kiln__Pb__SubmitBegin, kiln__pb__submit_begin__descriptor);
        p->batch = bin(s->batch, KN_UUID_BYTES);
        p->name = STR(s->name);
        p->tasks = s->tasks;
        p->chunks = s->chunks;
        p->priority = s->priority;
        p->pin_backend = STR(s->pin_backend);
        p->request = STR(s->request);
        p->n_models = s->model_count;
        p->models = models_to_pb(a, s->models, s->model_count);
        return p->models ? 0 : KN_ENOMEM;
    }
    case KN_MSG_SUBMIT_CHUNK: {
        const struct kn_submit_chunk *s = &m->u.submit_chunk;
        BODY(submit_chunk, Kiln__Pb__SubmitChunk, kiln__pb__submit_chunk__descriptor);
        p->batch = bin(s->batch, KN_UUID_BYTES);
        p->chunk = s->chunk;
        p->count = s->count;
        p->tasks = bin(s->tasks, s->tasks_len);
        return 0;
    }
    case KN_MSG_SUBMIT_SEAL: {
        BODY(submit_seal, Kiln__Pb__SubmitSeal, kiln__pb__submit_seal__descriptor);
        p->batch = bin(m->u.submit_seal.batch, KN_UUID_BYTES);
        return 0;
    }
    case KN_MSG_BATCH_QUERY: {
        BODY(batch_query, Kiln__Pb__BatchQuery, kiln__pb__batch_query__descriptor);
        if (m->u.batch_query.has_batch) p->batch = bin(m->u.batch_query.batch, KN_UUID_BYTES);
        return 0;
    }
    case KN_MSG_WORKERS_QUERY: {
        BODY(workers_query, Kiln__Pb__WorkersQuery, kiln__pb__workers_query__descriptor);
        return 0;
    }
    case KN_MSG_MODELS_QUERY: {
        BODY(models_query, Kiln__Pb__ModelsQuery, kiln__pb__models_query__descriptor);
        return 0;
    }
    case KN_MSG_BATCH_COMMAND: {
        BODY(batch_command, Kiln__Pb__BatchCommand, kiln__pb__batch_command__descriptor);
        p->batch = bin(m->u.batch_command.batch, KN_UUID_BYTES);
        p->verb = (uint32_t)m->u.batch_command.verb;
        p->argument = m->u.batch_command.argument;
        return 0;
    }
    case KN_MSG_WORKER_COMMAND: {
        BODY(worker_command, Kiln__Pb__WorkerCommand, kiln__pb__worker_command__descriptor);
        p->worker = STR(m->u.worker_command.worker);
        p->exit = m->u.worker_command.exit;
        return 0;
    }
    case KN_MSG_RESULTS_QUERY: {
        BODY(results_query, Kiln__Pb__ResultsQuery, kiln__pb__results_query__descriptor);
        p->batch = bin(m->u.results_query.batch, KN_UUID_BYTES);
        p->epoch = m->u.results_query.epoch;
        p->cursor = m->u.results_query.cursor;
        p->max = m->u.results_query.max;
        return 0;
    }
    case KN_MSG_TASKS_QUERY: {
        BODY(tasks_query, Kiln__Pb__TasksQuery, kiln__pb__tasks_query__descriptor);
        p->batch = bin(m->u.tasks_query.batch, KN_UUID_BYTES);
        p->chunk = m->u.tasks_query.chunk;
        return 0;
    }
    case KN_MSG_OBJECT_GET: {
        BODY(object_get, Kiln__Pb__ObjectGet, kiln__pb__object_get__descriptor);
        p->sha256 = bin(m->u.object_get.sha256, KN_SHA256_BYTES);
        return 0;
    }
    default:
        return KN_EINVAL;
    }
}

static int to_client_body(struct arena *a, const struct kn_msg *m, Kiln__Pb__Envelope *e) {
    switch ((int)m->type) {
    case KN_MSG_REPLY: {
        BODY(reply, Kiln__Pb__Reply, kiln__pb__reply__descriptor);
        p->code = m->u.reply.code;
        p->text = STR(m->u.reply.text);
        return 0;
    }
    case KN_MSG_BATCH_LIST: {
        const struct kn_batch_list *s = &m->u.batch_list;
        BODY(batch_list, Kiln__Pb__BatchList, kiln__pb__batch_list__descriptor);
        p->n_batches = s->count;
        p->batches = arena_array(a, s->count, sizeof *p->batches);
        for (size_t i = 0; p->batches && i < s->count; i++)
            if (!(p->batches[i] = status_to_pb(a, &s->v[i]))) return KN_ENOMEM;
        return p->batches ? 0 : KN_ENOMEM;
    }
    case KN_MSG_WORKER_LIST: {
        const struct kn_worker_list *s = &m->u.worker_list;
        BODY(worker_list, Kiln__Pb__WorkerList, kiln__pb__worker_list__descriptor);
        p->images_per_s = s->images_per_s;
        p->n_workers = s->count;
        p->workers = arena_array(a, s->count, sizeof *p->workers);
        for (size_t i = 0; p->workers && i < s->count; i++) {
            const struct kn_worker_status *w = &s->v[i];
            Kiln__Pb__WorkerStatus *q = new_msg(a, &kiln__pb__worker_status__descriptor);
            if (!q) return KN_ENOMEM;
            q->worker = STR(w->worker);
            q->host = STR(w->host);
            q->device = STR(w->device);
            q->device_uuid = STR(w->device_uuid);
            q->backend = STR(w->backend);
            q->model = STR(w->model);
            q->engine = STR(w->engine);
            q->state = (uint32_t)w->state;
            if (w->has_batch) q->batch = bin(w->batch, KN_UUID_BYTES);
            q->step = w->step;
            q->steps = w->steps;
            q->tasks = w->tasks;
            q->done = w->done;
            q->failed = w->failed;
            q->last_seen_ms = w->last_seen_ms;
            q->pid = w->pid;
            q->images_per_s = w->images_per_s;
            if (readings_to_pb(a, &w->readings, &q->readings) != 0) return KN_ENOMEM;
            p->workers[i] = q;
        }
        return p->workers ? 0 : KN_ENOMEM;
    }
    case KN_MSG_MODEL_LIST: {
        BODY(model_list, Kiln__Pb__ModelList, kiln__pb__model_list__descriptor);
        p->n_models = m->u.model_list.count;
        p->models = models_to_pb(a, m->u.model_list.v, m->u.model_list.count);
        return p->models ? 0 : KN_ENOMEM;
    }
    case KN_MSG_RESULTS_REPLY: {
        const struct kn_results_reply *s = &m->u.results_reply;
        BODY(results_reply, Kiln__Pb__ResultsReply, kiln__pb__results_reply__descriptor);
        p->epoch = s->epoch;
        p->cursor = s->cursor;
        p->n_results = s->count;
        p->results = arena_array(a, s->count, sizeof *p->results);
        p->status = status_to_pb(a, &s->status);
        if (!p->results || !p->status) return KN_ENOMEM;
        for (size_t i = 0; i < s->count; i++) {
            const struct kn_result *r = &s->v[i];
            Kiln__Pb__Result *q = new_msg(a, &kiln__pb__result__descriptor);
            if (!q) return KN_ENOMEM;
            q->index = r->index;
            q->status = (uint32_t)r->status;
            if (r->status == KN_RESULT_DONE) {
                q->sha256 = bin(r->sha256, KN_SHA256_BYTES);
                q->pixels_sha256 = bin(r->pixels_sha256, KN_SHA256_BYTES);
            }
            q->worker = STR(r->worker);
            q->backend = STR(r->backend);
            q->engine = STR(r->engine);
            q->attempt = r->attempt;
            q->render_ms = r->render_ms;
            q->error = STR(r->error);
            q->flat = r->flat;
            p->results[i] = q;
        }
        return 0;
    }
    case KN_MSG_TASKS_REPLY: {
        const struct kn_tasks_reply *s = &m->u.tasks_reply;
        BODY(tasks_reply, Kiln__Pb__TasksReply, kiln__pb__tasks_reply__descriptor);
        p->chunks = s->chunks;
        p->tasks = bin(s->tasks, s->tasks_len);
        p->n_models = s->model_count;
        p->models = models_to_pb(a, s->models, s->model_count);
        return p->models ? 0 : KN_ENOMEM;
    }
    case KN_MSG_OBJECT_REPLY: {
        BODY(object_reply, Kiln__Pb__ObjectReply, kiln__pb__object_reply__descriptor);
        p->sha256 = bin(m->u.object_reply.sha256, KN_SHA256_BYTES);
        p->code = m->u.object_reply.code;
        p->text = STR(m->u.object_reply.text);
        return 0;
    }
    default:
        return KN_EINVAL;
    }
}

int kn_msg_encode(const struct kn_msg *m, struct kn_buf *out, struct kn_err *err) {
    struct arena a;
    arena_init(&a, 64u << 20);
    Kiln__Pb__Envelope e = KILN__PB__ENVELOPE__INIT;
    e.version = KN_PROTO_VERSION;
    e.request = m->request;
    e.body_case = (Kiln__Pb__Envelope__BodyCase)m->type;
    int (*const bodies[])(struct arena *, const struct kn_msg *, Kiln__Pb__Envelope *) = {
        worker_body, to_worker_body, from_client_body, to_client_body};
    int rc = KN_EINVAL;
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0] && rc == KN_EINVAL; i++)
        rc = bodies[i](&a, m, &e);
    if (rc != 0) {
        kn_err_set(err, rc, "encoding %s: %s", kn_msg_name(m->type), kn_err_words(rc));
        goto out;
    }
    size_t len = kiln__pb__envelope__get_packed_size(&e);
    if (len > KN_FRAME_BYTES_MAX) {
        rc = kn_err_set(err, KN_ELIMIT, "encoding %s: %zu bytes, more than %u", kn_msg_name(m->type), len,
                        KN_FRAME_BYTES_MAX);
        goto out;
    }
    void *dst;
    if ((rc = kn_buf_reserve(out, len, &dst)) != 0) {
        kn_err_set(err, rc, "encoding %s: %zu bytes", kn_msg_name(m->type), len);
        goto out;
    }
    out->len += kiln__pb__envelope__pack(&e, dst);
out:
    arena_fini(&a);
    return rc;
}
