/* See proto_messages.h. */
#include "tests/unit/proto_messages.h"

#include "tests/unit/check.h"

const enum kn_msg_type proto_types[] = {
    KN_MSG_WORKER_HELLO,  KN_MSG_HEARTBEAT,     KN_MSG_SHARD_STARTED,  KN_MSG_SHARD_RETURNED,
    KN_MSG_SHARD_DONE,    KN_MSG_TASK_FAILED,   KN_MSG_WORKER_BYE,     KN_MSG_WELCOME,
    KN_MSG_HELLO_AGAIN,   KN_MSG_SHARD_GRANT,   KN_MSG_SHARD_REVOKE,   KN_MSG_IMAGE_ACK,
    KN_MSG_DRAIN_WORKER,  KN_MSG_IMAGE_RESULT,  KN_MSG_CLIENT_HELLO,   KN_MSG_SUBMIT_BEGIN,
    KN_MSG_SUBMIT_CHUNK,  KN_MSG_SUBMIT_SEAL,   KN_MSG_REPLY,          KN_MSG_BATCH_QUERY,
    KN_MSG_BATCH_LIST,    KN_MSG_WORKERS_QUERY, KN_MSG_WORKER_LIST,    KN_MSG_MODELS_QUERY,
    KN_MSG_MODEL_LIST,    KN_MSG_BATCH_COMMAND, KN_MSG_WORKER_COMMAND, KN_MSG_RESULTS_QUERY,
    KN_MSG_RESULTS_REPLY, KN_MSG_TASKS_QUERY,   KN_MSG_TASKS_REPLY,    KN_MSG_OBJECT_GET,
    KN_MSG_OBJECT_REPLY,
};
const size_t proto_type_count = sizeof proto_types / sizeof proto_types[0];

static void bytes_from(void *out, size_t len, unsigned start) {
    for (size_t i = 0; i < len; i++) ((uint8_t *)out)[i] = (uint8_t)(start + i);
}
#define ID(field, start) bytes_from((field), sizeof(field), (start))

static struct kn_model_info *two_models(void) {
    static struct kn_model_info m[2];
    for (unsigned i = 0; i < 2; i++) {
        m[i] = (struct kn_model_info){.name = "model-a",
                                      .defaults = {.sampler = KN_SAMPLER_EULER,
                                                   .schedule = KN_SCHEDULE_KARRAS,
                                                   .steps = 20 + i,
                                                   .cfg = 7.5f,
                                                   .width = 512,
                                                   .height = 768},
                                      .size_multiple = 64,
                                      .size_max = 2048};
        m[i].name[6] = (char)('a' + i);
        ID(m[i].sha256, 11 + i);
    }
    return m;
}

static struct kn_task *two_tasks(void) {
    static char prompt[] = "a red circle \xc3\xa4\xe2\x82\xac", negative[] = "blur", extra[] = "{\"k\":1}",
                none[] = "";
    static struct kn_task t[2];
    t[0] = (struct kn_task){.prompt = prompt,
                            .negative = negative,
                            .extra = extra,
                            .model_index = 1,
                            .seed = UINT64_MAX,
                            .cfg = 7.25f,
                            .steps = 30,
                            .width = 512,
                            .height = 640,
                            .sampler = KN_SAMPLER_DPMPP_2M,
                            .schedule = KN_SCHEDULE_KARRAS,
                            .set = KN_SET_ALL};
    t[1] = t[0];
    t[1].prompt = t[1].negative = none;
    t[1].extra = NULL;
    t[1].seed = 0;
    t[1].sampler = KN_SAMPLER_DDIM;
    t[1].schedule = KN_SCHEDULE_NORMAL;
    return t;
}

static struct kn_batch_status a_status(void) {
    struct kn_batch_status s = {.name = "evening",
                                .request = "{\"steps\":20}",
                                .state = KN_BATCH_PAUSED,
                                .total = 100,
                                .done = 50,
                                .failed = 2,
                                .cancelled = 3,
                                .queued = 40,
                                .running = 5,
                                .images_per_s = 1.5f,
                                .images_per_s_mean = 1.25f,
                                .eta_ms = -1,
                                .created_wall_ms = 1700000000000,
                                .finished_wall_ms = 1700000001000,
                                .priority = -7};
    ID(s.batch, 77);
    return s;
}

static void worker_example(struct kn_msg *m) {
    static uint32_t held_tasks[] = {3, 4, 999999}, index[] = {17, 0};
    static struct kn_held_shard held[2];
    switch ((int)m->type) {
    case KN_MSG_WORKER_HELLO:
        for (unsigned i = 0; i < 2; i++) {
            held[i] = (struct kn_held_shard){
                .shard = 5 + i, .term = UINT64_MAX - i, .tasks = held_tasks, .task_count = 3 * i};
            ID(held[i].batch, 40 + i);
        }
        m->u.worker_hello = (struct kn_worker_hello){.worker = "gpu-3",
                                                     .host = "render1",
                                                     .device = "AMD EPYC, 2 threads",
                                                     .device_uuid = "GPU-0123",
                                                     .backend = "cpu-avx2-3fa1c2",
                                                     .engine = "kiln 0.1.0",
                                                     .pid = 4242,
                                                     .credit = 3,
                                                     .batch_max = 64,
                                                     .models = two_models(),
                                                     .model_count = 2,
                                                     .held = held,
                                                     .held_count = 2};
        ID(m->u.worker_hello.instance, 90);
        break;
    case KN_MSG_HEARTBEAT:
        m->u.heartbeat = (struct kn_heartbeat){.shard = 9,
                                               .step = 3,
                                               .steps = 20,
                                               .tasks = 8,
                                               .progress_age_ms = 120,
                                               .waiting = 2,
                                               .images_per_s = 0.5f,
                                               .draining = true,
                                               .has_model = true,
                                               .readings = {1ull << 40, 1ull << 41, 64, 350000, 1980, 2619}};
        ID(m->u.heartbeat.batch, 1);
        ID(m->u.heartbeat.model_sha256, 2);
        break;
    case KN_MSG_SHARD_STARTED:
        m->u.shard_started = (struct kn_shard_ref){1ull << 60, 2};
        break;
    case KN_MSG_SHARD_RETURNED:
        m->u.shard_returned = (struct kn_shard_returned){3, 4, true};
        break;
    case KN_MSG_SHARD_DONE:
        m->u.shard_done = (struct kn_shard_done){5, 6, 700, 8};
        break;
    case KN_MSG_TASK_FAILED:
        m->u.task_failed = (struct kn_task_failed){
            .task = 12, .shard = 13, .term = 14, .code = KN_ENAN, .reason = "not a number, seen at step 3"};
        ID(m->u.task_failed.batch, 3);
        break;
    case KN_MSG_WORKER_BYE:
        m->u.worker_bye.text = "drained";
        break;
    case KN_MSG_WELCOME:
        m->u.welcome = (struct kn_welcome){.term = 7,
                                           .heartbeat_ms = 1000,
                                           .silence_ms = 10000,
                                           .data_port = 5601,
                                           .data_ipc = "ipc:///run/k-data",
                                           .objects_dir = "/farm/objects",
                                           .version = "kiln 0.1.0"};
        break;
    case KN_MSG_HELLO_AGAIN:
        m->u.hello_again.text = "started again";
        break;
    case KN_MSG_SHARD_GRANT:
        m->u.shard_grant = (struct kn_shard_grant){
            .shard = 21, .term = 22, .attempt = 2, .index = index, .tasks = two_tasks(), .count = 2};
        ID(m->u.shard_grant.batch, 4);
        ID(m->u.shard_grant.model_sha256, 5);
        break;
    case KN_MSG_SHARD_REVOKE:
        m->u.shard_revoke = (struct kn_shard_revoke){23, 24, true};
        break;
    case KN_MSG_IMAGE_ACK:
        m->u.image_ack = (struct kn_image_ack){.task = 25, .code = KN_EGONE};
        ID(m->u.image_ack.batch, 6);
        break;
    case KN_MSG_DRAIN_WORKER:
        m->u.drain_worker = (struct kn_drain_worker){true, "a person's wish"};
        break;
    case KN_MSG_IMAGE_RESULT:
        m->u.image_result = (struct kn_image_result){.task = 26,
                                                     .attempt = 3,
                                                     .render_ms = 450,
                                                     .shard = 27,
                                                     .term = 28,
                                                     .flat = true,
                                                     .worker = "gpu-3",
                                                     .backend = "sim-1",
                                                     .engine = "kiln 0.1.0"};
        ID(m->u.image_result.batch, 7);
        ID(m->u.image_result.sha256, 8);
        ID(m->u.image_result.pixels_sha256, 9);
        break;
    default:
        break;
    }
}

static void client_example(struct kn_msg *m) {
    static struct kn_batch_status statuses[2];
    static struct kn_worker_status workers[2];
    static struct kn_result results[3];
    static const uint8_t chunk[] = {1, 0, 2, 255};
    switch ((int)m->type) {
    case KN_MSG_CLIENT_HELLO:
        m->u.client_hello.text = "kiln 0.1.0";
        break;
    case KN_MSG_SUBMIT_BEGIN:
        m->u.submit_begin = (struct kn_submit_begin){.name = "evening",
                                                     .pin_backend = "sim-1",
                                                     .request = "{}",
                                                     .tasks = 1500,
                                                     .chunks = 2,
                                                     .priority = -3,
                                                     .models = two_models(),
                                                     .model_count = 2};
        ID(m->u.submit_begin.batch, 10);
        break;
    case KN_MSG_SUBMIT_CHUNK:
        m->u.submit_chunk =
            (struct kn_submit_chunk){.chunk = 1, .count = 500, .tasks = chunk, .tasks_len = 4};
        ID(m->u.submit_chunk.batch, 11);
        break;
    case KN_MSG_SUBMIT_SEAL:
    case KN_MSG_BATCH_QUERY:
        m->u.batch_query.has_batch = true;
        ID(m->u.batch_query.batch, 12);
        break;
    case KN_MSG_REPLY:
        m->u.reply = (struct kn_reply){KN_EMODEL, "no such model on this farm; there are: tiny"};
        break;
    case KN_MSG_BATCH_LIST:
        statuses[0] = statuses[1] = a_status();
        statuses[1].state = KN_BATCH_DONE;
        m->u.batch_list = (struct kn_batch_list){statuses, 2};
        break;
    case KN_MSG_WORKER_LIST:
        workers[0] = (struct kn_worker_status){.worker = "gpu-3",
                                               .host = "render1",
                                               .device = "a device",
                                               .device_uuid = "GPU-4567",
                                               .backend = "sim-1",
                                               .model = "tiny",
                                               .engine = "kiln 0.1.0",
                                               .state = KN_WORKER_DRAINING,
                                               .has_batch = true,
                                               .step = 1,
                                               .steps = 2,
                                               .tasks = 3,
                                               .done = 4,
                                               .failed = 5,
                                               .last_seen_ms = 6,
                                               .pid = 7,
                                               .images_per_s = 8,
                                               .readings = {1, 2, 3, 4, 5, 6}};
        ID(workers[0].batch, 13);
        workers[1] = workers[0];
        workers[1].has_batch = false;
        workers[1].readings = (struct kn_readings){0};
        memset(workers[1].batch, 0, sizeof workers[1].batch);
        m->u.worker_list = (struct kn_worker_list){workers, 2, 3.5f};
        break;
    case KN_MSG_MODEL_LIST:
        m->u.model_list = (struct kn_model_list){two_models(), 2};
        break;
    case KN_MSG_BATCH_COMMAND:
        m->u.batch_command = (struct kn_batch_command){.verb = KN_VERB_PRIORITY, .argument = -20};
        ID(m->u.batch_command.batch, 14);
        break;
    case KN_MSG_WORKER_COMMAND:
        m->u.worker_command = (struct kn_worker_command){"gpu-3", true};
        break;
    case KN_MSG_RESULTS_QUERY:
        m->u.results_query = (struct kn_results_query){.epoch = 2, .cursor = 300, .max = 1000};
        ID(m->u.results_query.batch, 15);
        break;
    case KN_MSG_RESULTS_REPLY:
        for (unsigned i = 0; i < 3; i++) {
            results[i] = (struct kn_result){.index = 5 + i,
                                            .attempt = 2,
                                            .render_ms = 300,
                                            .status = KN_RESULT_DONE + i,
                                            .worker = "gpu-3",
                                            .backend = "sim-1",
                                            .engine = "kiln 0.1.0",
                                            .error = i ? "it killed its worker" : "",
                                            .flat = i == 0};
            if (i == 0) ID(results[i].sha256, 16);
            if (i == 0) ID(results[i].pixels_sha256, 17);
        }
        m->u.results_reply = (struct kn_results_reply){
            .epoch = 2, .cursor = 303, .v = results, .count = 3, .status = a_status()};
        break;
    case KN_MSG_TASKS_QUERY:
        m->u.tasks_query.chunk = 4;
        ID(m->u.tasks_query.batch, 18);
        break;
    case KN_MSG_TASKS_REPLY:
        m->u.tasks_reply = (struct kn_tasks_reply){
            .chunks = 5, .tasks = chunk, .tasks_len = 4, .models = two_models(), .model_count = 2};
        break;
    case KN_MSG_OBJECT_REPLY:
        m->u.object_reply.code = KN_ENOENT;
        m->u.object_reply.text = "no such object";
        ID(m->u.object_reply.sha256, 19);
        break;
    case KN_MSG_OBJECT_GET:
        ID(m->u.object_get.sha256, 20);
        break;
    default:
        break;
    }
}

void proto_example(enum kn_msg_type type, struct kn_msg *out) {
    *out = (struct kn_msg){.type = type, .request = 0x1234567890abcdefull};
    worker_example(out);
    client_example(out);
}

/* ---- comparing */

#define SAME(field) CHECK_U64((uint64_t)(x->field), (uint64_t)(y->field))
#define SAME_FLOAT(field) CHECK(x->field == y->field)
#define SAME_STR(field) CHECK_STR(x->field, y->field)
#define SAME_BYTES(field) CHECK_MEM(x->field, y->field, sizeof x->field)
#define BOTH(type, member) const type *x = &a->u.member, *y = &b->u.member

static void same_models(const struct kn_model_info *v, const struct kn_model_info *w, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const struct kn_model_info *x = &v[i], *y = &w[i];
        SAME_STR(name);
        SAME_BYTES(sha256);
        SAME(defaults.sampler);
        SAME(defaults.schedule);
        SAME(defaults.steps);
        SAME_FLOAT(defaults.cfg);
        SAME(defaults.width);
        SAME(defaults.height);
        SAME(size_multiple);
        SAME(size_max);
    }
}

static void same_status(const struct kn_batch_status *x, const struct kn_batch_status *y) {
    SAME_BYTES(batch);
    SAME_STR(name);
    SAME_STR(request);
    SAME(state);
    SAME(total);
    SAME(done);
    SAME(failed);
    SAME(cancelled);
    SAME(queued);
    SAME(running);
    SAME_FLOAT(images_per_s);
    SAME_FLOAT(images_per_s_mean);
    SAME(eta_ms);
    SAME(created_wall_ms);
    SAME(finished_wall_ms);
    SAME(priority);
}

static void same_readings(const struct kn_readings *x, const struct kn_readings *y) {
    SAME(memory_used);
    SAME(memory_total);
    SAME(temperature_c);
    SAME(power_mw);
    SAME(sm_mhz);
    SAME(memory_mhz);
}

static void same_hello(const struct kn_worker_hello *x, const struct kn_worker_hello *y) {
    SAME_STR(worker);
    SAME_STR(host);
    SAME_STR(device);
    SAME_STR(device_uuid);
    SAME_STR(backend);
    SAME_STR(engine);
    SAME_BYTES(instance);
    SAME(pid);
    SAME(credit);
    SAME(batch_max);
    SAME(model_count);
    same_models(x->models, y->models, x->model_count);
    SAME(held_count);
    for (size_t i = 0; i < x->held_count; i++) {
        SAME_BYTES(held[i].batch);
        SAME(held[i].shard);
        SAME(held[i].term);
        SAME(held[i].task_count);
        for (size_t k = 0; k < x->held[i].task_count; k++) SAME(held[i].tasks[k]);
    }
}

static void same_grant(const struct kn_shard_grant *x, const struct kn_shard_grant *y) {
    SAME(shard);
    SAME(term);
    SAME(attempt);
    SAME_BYTES(batch);
    SAME_BYTES(model_sha256);
    SAME(count);
    for (size_t i = 0; i < x->count; i++) {
        SAME(index[i]);
        SAME_STR(tasks[i].prompt);
        SAME_STR(tasks[i].negative);
        SAME_STR(tasks[i].extra);
        SAME(tasks[i].model_index);
        SAME(tasks[i].seed);
        SAME_FLOAT(tasks[i].cfg);
        SAME(tasks[i].steps);
        SAME(tasks[i].width);
        SAME(tasks[i].height);
        SAME(tasks[i].sampler);
        SAME(tasks[i].schedule);
        SAME(tasks[i].set);
    }
}

static void same_worker_list(const struct kn_worker_list *x, const struct kn_worker_list *y) {
    SAME(count);
    SAME_FLOAT(images_per_s);
    for (size_t i = 0; i < x->count; i++) {
        SAME_STR(v[i].worker);
        SAME_STR(v[i].host);
        SAME_STR(v[i].device);
        SAME_STR(v[i].device_uuid);
        SAME_STR(v[i].backend);
        SAME_STR(v[i].model);
        SAME_STR(v[i].engine);
        SAME(v[i].state);
        SAME(v[i].has_batch);
        SAME_BYTES(v[i].batch);
        SAME(v[i].step);
        SAME(v[i].steps);
        SAME(v[i].tasks);
        SAME(v[i].done);
        SAME(v[i].failed);
        SAME(v[i].last_seen_ms);
        SAME(v[i].pid);
        SAME_FLOAT(v[i].images_per_s);
        same_readings(&x->v[i].readings, &y->v[i].readings);
    }
}

static void same_results(const struct kn_results_reply *x, const struct kn_results_reply *y) {
    SAME(epoch);
    SAME(cursor);
    SAME(count);
    same_status(&x->status, &y->status);
    for (size_t i = 0; i < x->count; i++) {
        SAME(v[i].index);
        SAME(v[i].attempt);
        SAME(v[i].render_ms);
        SAME(v[i].status);
        SAME_BYTES(v[i].sha256);
        SAME_BYTES(v[i].pixels_sha256);
        SAME_STR(v[i].worker);
        SAME_STR(v[i].backend);
        SAME_STR(v[i].engine);
        SAME_STR(v[i].error);
        SAME(v[i].flat);
    }
}

static void same_of_worker(const struct kn_msg *a, const struct kn_msg *b) {
    switch ((int)a->type) {
    case KN_MSG_WORKER_HELLO:
        same_hello(&a->u.worker_hello, &b->u.worker_hello);
        break;
    case KN_MSG_HEARTBEAT: {
        BOTH(struct kn_heartbeat, heartbeat);
        SAME(shard);
        SAME_BYTES(batch);
        SAME(step);
        SAME(steps);
        SAME(tasks);
        SAME(progress_age_ms);
        SAME(waiting);
        SAME_FLOAT(images_per_s);
        SAME(draining);
        SAME(has_model);
        SAME_BYTES(model_sha256);
        same_readings(&x->readings, &y->readings);
        break;
    }
    case KN_MSG_SHARD_STARTED: {
        BOTH(struct kn_shard_ref, shard_started);
        SAME(shard);
        SAME(term);
        break;
    }
    case KN_MSG_SHARD_RETURNED: {
        BOTH(struct kn_shard_returned, shard_returned);
        SAME(shard);
        SAME(term);
        SAME(out_of_memory);
        break;
    }
    case KN_MSG_SHARD_DONE: {
        BOTH(struct kn_shard_done, shard_done);
        SAME(shard);
        SAME(term);
        SAME(render_ms);
        SAME(images);
        break;
    }
    case KN_MSG_TASK_FAILED: {
        BOTH(struct kn_task_failed, task_failed);
        SAME_BYTES(batch);
        SAME(task);
        SAME(shard);
        SAME(term);
        SAME(code);
        SAME_STR(reason);
        break;
    }
    case KN_MSG_IMAGE_RESULT: {
        BOTH(struct kn_image_result, image_result);
        SAME_BYTES(batch);
        SAME(task);
        SAME(attempt);
        SAME(render_ms);
        SAME(shard);
        SAME(term);
        SAME_BYTES(sha256);
        SAME_BYTES(pixels_sha256);
        SAME(flat);
        SAME_STR(worker);
        SAME_STR(backend);
        SAME_STR(engine);
        break;
    }
    case KN_MSG_WELCOME: {
        BOTH(struct kn_welcome, welcome);
        SAME(term);
        SAME(heartbeat_ms);
        SAME(silence_ms);
        SAME(data_port);
        SAME_STR(data_ipc);
        SAME_STR(objects_dir);
        SAME_STR(version);
        break;
    }
    case KN_MSG_SHARD_GRANT:
        same_grant(&a->u.shard_grant, &b->u.shard_grant);
        break;
    case KN_MSG_SHARD_REVOKE: {
        BOTH(struct kn_shard_revoke, shard_revoke);
        SAME(shard);
        SAME(term);
        SAME(abort);
        break;
    }
    case KN_MSG_IMAGE_ACK: {
        BOTH(struct kn_image_ack, image_ack);
        SAME_BYTES(batch);
        SAME(task);
        SAME(code);
        break;
    }
    case KN_MSG_DRAIN_WORKER: {
        BOTH(struct kn_drain_worker, drain_worker);
        SAME(exit);
        SAME_STR(reason);
        break;
    }
    default:
        break;
    }
}

static void same_of_client(const struct kn_msg *a, const struct kn_msg *b) {
    switch ((int)a->type) {
    case KN_MSG_WORKER_BYE:
    case KN_MSG_HELLO_AGAIN:
    case KN_MSG_CLIENT_HELLO:
    case KN_MSG_REPLY: {
        BOTH(struct kn_reply, reply);
        SAME(code);
        SAME_STR(text);
        break;
    }
    case KN_MSG_SUBMIT_BEGIN: {
        BOTH(struct kn_submit_begin, submit_begin);
        SAME_BYTES(batch);
        SAME_STR(name);
        SAME_STR(pin_backend);
        SAME_STR(request);
        SAME(tasks);
        SAME(chunks);
        SAME(priority);
        SAME(model_count);
        same_models(x->models, y->models, x->model_count);
        break;
    }
    case KN_MSG_SUBMIT_CHUNK: {
        BOTH(struct kn_submit_chunk, submit_chunk);
        SAME_BYTES(batch);
        SAME(chunk);
        SAME(count);
        SAME(tasks_len);
        CHECK_MEM(x->tasks, y->tasks, x->tasks_len);
        break;
    }
    case KN_MSG_SUBMIT_SEAL:
    case KN_MSG_BATCH_QUERY: {
        BOTH(struct kn_batch_ref, batch_query);
        SAME(has_batch);
        SAME_BYTES(batch);
        break;
    }
    case KN_MSG_BATCH_LIST: {
        BOTH(struct kn_batch_list, batch_list);
        SAME(count);
        for (size_t i = 0; i < x->count; i++) same_status(&x->v[i], &y->v[i]);
        break;
    }
    case KN_MSG_WORKER_LIST:
        same_worker_list(&a->u.worker_list, &b->u.worker_list);
        break;
    case KN_MSG_MODEL_LIST: {
        BOTH(struct kn_model_list, model_list);
        SAME(count);
        same_models(x->v, y->v, x->count);
        break;
    }
    case KN_MSG_BATCH_COMMAND: {
        BOTH(struct kn_batch_command, batch_command);
        SAME_BYTES(batch);
        SAME(verb);
        SAME(argument);
        break;
    }
    case KN_MSG_WORKER_COMMAND: {
        BOTH(struct kn_worker_command, worker_command);
        SAME_STR(worker);
        SAME(exit);
        break;
    }
    case KN_MSG_RESULTS_QUERY: {
        BOTH(struct kn_results_query, results_query);
        SAME_BYTES(batch);
        SAME(epoch);
        SAME(cursor);
        SAME(max);
        break;
    }
    case KN_MSG_RESULTS_REPLY:
        same_results(&a->u.results_reply, &b->u.results_reply);
        break;
    case KN_MSG_TASKS_QUERY: {
        BOTH(struct kn_tasks_query, tasks_query);
        SAME_BYTES(batch);
        SAME(chunk);
        break;
    }
    case KN_MSG_TASKS_REPLY: {
        BOTH(struct kn_tasks_reply, tasks_reply);
        SAME(chunks);
        SAME(tasks_len);
        CHECK_MEM(x->tasks, y->tasks, x->tasks_len);
        SAME(model_count);
        same_models(x->models, y->models, x->model_count);
        break;
    }
    case KN_MSG_OBJECT_GET:
    case KN_MSG_OBJECT_REPLY: {
        BOTH(struct kn_object_ref, object_reply);
        SAME_BYTES(sha256);
        if (a->type == KN_MSG_OBJECT_GET) break;
        SAME(code);
        SAME_STR(text);
        break;
    }
    default:
        break;
    }
}

void proto_check_same(const struct kn_msg *a, const struct kn_msg *b) {
    CHECK_INT(a->type, b->type);
    CHECK_U64(a->request, b->request);
    same_of_worker(a, b);
    same_of_client(a, b);
}
