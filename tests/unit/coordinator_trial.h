/* The coordinator's shell, whole, for tests: real sockets, collector and core, with the store in memory (or in a Redis that
 * is stopped, killed and tampered with), and a worker and a client that the test plays on the same loop. */
#ifndef KILN_TESTS_COORDINATOR_TRIAL_H
#define KILN_TESTS_COORDINATOR_TRIAL_H

#include <semaphore.h>
#include <signal.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/carry_out.h"
#include "coordinator/inspect.h"
#include "coordinator/recover.h"
#include "coordinator/server.h"
#include "coordinator/store/redis.h"
#include "coordinator/ticket.h"
#include "tests/unit/check.h"
#include "tests/unit/png_of.h"
#include "tests/unit/store_memory.h"
#include "tests/unit/store_redis_server.h"

#define INBOX_MAX 64

struct end { /* one connection of a worker or a client */
    struct kn_sock *sock;
    struct kn_msg *inbox[INBOX_MAX];
    int count;
    size_t blob_len; /* of the last message with one */
    uint64_t request;
};

struct fixture {
    uv_loop_t loop;
    char dir[64], endpoint[80];
    struct store_disk *disk;
    struct test_redis redis; /* in_redis: in place of the disk */
    bool in_redis;
    char mark[80];
    struct server *s;
    struct kn_wire *wire;
    struct end client, worker, data;
    uint64_t scrub_first_ms; /* 0: no scrub */
    uint64_t trash_ms;       /* 0: as it is */
};

/* ---- the two ends */

static inline void on_message(struct kn_sock *sock, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                              struct kn_blob *blob) {
    struct end *e = ctx;
    (void)sock;
    (void)peer;
    if (blob) e->blob_len = blob->len;
    CHECK(e->count < INBOX_MAX);
    e->inbox[e->count++] = m;
}

static inline void on_time(uv_timer_t *t) {
    *(bool *)t->data = true;
}

static inline void forget(struct end *e) {
    for (int i = 0; i < e->count; i++) kn_msg_destroy(e->inbox[i]);
    e->count = 0;
}

/* Waits for a message of that type; the others before it are dropped. Borrowed until the next call. */
static inline const struct kn_msg *await(struct fixture *f, struct end *e, enum kn_msg_type type) {
    static struct kn_msg *last;
    uv_timer_t t;
    bool over = false;
    const struct kn_msg *found = NULL;
    kn_msg_destroy(last);
    last = NULL;
    uv_timer_init(&f->loop, &t);
    t.data = &over;
    uv_timer_start(&t, on_time, 10000, 0);
    while (!found && !over) {
        while (e->count > 0 && !found) {
            struct kn_msg *m = e->inbox[0];
            memmove(e->inbox, e->inbox + 1, (size_t)--e->count * sizeof *e->inbox);
            if (m->type == type)
                found = last = m;
            else
                kn_msg_destroy(m);
        }
        if (!found) uv_run(&f->loop, UV_RUN_ONCE);
    }
    uv_close((uv_handle_t *)&t, NULL);
    uv_run(&f->loop, UV_RUN_NOWAIT);
    CHECK_MSG(found != NULL, "no %s came", kn_msg_name(type));
    return found;
}

static inline void run_ms(struct fixture *f, uint64_t ms) {
    uv_timer_t t;
    bool over = false;
    uv_timer_init(&f->loop, &t);
    t.data = &over;
    uv_timer_start(&t, on_time, ms, 0);
    while (!over) uv_run(&f->loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&t, NULL);
    uv_run(&f->loop, UV_RUN_NOWAIT);
}

static inline void tell(struct fixture *f, struct end *e, const struct kn_msg *m, struct kn_blob *blob) {
    int rc = KN_EAGAIN;
    struct kn_err err = {0};
    for (int i = 0; i < 500 && (rc = kn_sock_send(e->sock, NULL, m, blob, &err)) == KN_EAGAIN; i++)
        run_ms(f, 5);
    CHECK_MSG(rc == 0, "%s", err.text);
}

static inline const struct kn_msg *ask(struct fixture *f, struct kn_msg *m, enum kn_msg_type want) {
    m->request = ++f->client.request;
    tell(f, &f->client, m, NULL);
    const struct kn_msg *r = await(f, &f->client, want);
    CHECK_U64(r->request, m->request);
    return r;
}

static inline int ask_code(struct fixture *f, struct kn_msg *m) {
    return ask(f, m, KN_MSG_REPLY)->u.reply.code;
}

static inline void connect_end(struct fixture *f, struct end *e, const char *endpoint, bool blobs) {
    struct kn_sock_options o = {.recv = on_message, .ctx = e, .blobs = blobs};
    CHECK_INT(kn_sock_create(f->wire, &o, &e->sock, NULL), 0);
    CHECK_INT(kn_sock_connect(e->sock, endpoint, NULL), 0);
}

/* ---- the coordinator */

static inline void start(struct fixture *f) {
    struct kn_err err = {0};
    struct store *store;
    struct server_options o = {.dir = f->dir,
                               .listen = {f->endpoint},
                               .listen_count = 1,
                               .no_scrub = f->scrub_first_ms == 0,
                               .scrub_first_ms = f->scrub_first_ms,
                               .trash_ms = f->trash_ms};
    if (f->in_redis) {
        struct store_redis_options r = {.address = f->redis.address, .lead_ms = 600, .mark = f->mark};
        CHECK_MSG(store_redis_open(&r, &store, &err) == 0, "%s", err.text);
    } else {
        CHECK_INT(store_memory_open(f->disk, &f->loop, &store, &err), 0);
    }
    CHECK_MSG(server_create(&f->loop, &o, store, &f->s, &err) == 0, "%s", err.text);
    if (f->in_redis) CHECK_MSG(store_redis_start(store, &f->loop, &err) == 0, "%s", err.text);
    CHECK_MSG(server_recover(f->s, &err) == 0, "%s", err.text);
    CHECK_MSG(server_listen(f->s, &err) == 0, "%s", err.text);
    char data[96];
    snprintf(data, sizeof data, "%s-data", f->endpoint);
    connect_end(f, &f->client, f->endpoint, false);
    connect_end(f, &f->worker, f->endpoint, false);
    connect_end(f, &f->data, data, true);
}

static inline void stop(struct fixture *f) {
    struct end *ends[] = {&f->client, &f->worker, &f->data};
    for (int i = 0; i < 3; i++) {
        kn_sock_destroy(ends[i]->sock);
        forget(ends[i]);
    }
    server_close(f->s);
    for (int i = 0; i < 500 && uv_run(&f->loop, UV_RUN_NOWAIT); i++) usleep(1000);
    server_destroy(f->s);
}

static inline void setup_with(struct fixture *f, bool in_redis) {
    if (in_redis && !test_redis_installed()) SKIP("redis-server is not installed");
    *f = (struct fixture){.in_redis = in_redis, .disk = store_disk_create()};
    if (in_redis) test_redis_start(&f->redis, "always");
    kn_log_init("test", KN_LOG_ERROR);
    snprintf(f->dir, sizeof f->dir, "/tmp/kiln-server-XXXXXX");
    CHECK(mkdtemp(f->dir) != NULL);
    snprintf(f->endpoint, sizeof f->endpoint, "ipc://%s/s", f->dir);
    snprintf(f->mark, sizeof f->mark, "%s/mark", f->dir);
    CHECK_INT(uv_loop_init(&f->loop), 0);
    CHECK_INT(kn_wire_create(&f->loop, &f->wire, NULL), 0);
    start(f);
}

static inline void setup(struct fixture *f) {
    setup_with(f, false);
}

static inline void teardown(struct fixture *f) {
    char command[128];
    stop(f);
    kn_wire_destroy(f->wire);
    CHECK_INT(uv_loop_close(&f->loop), 0);
    store_disk_destroy(f->disk);
    snprintf(command, sizeof command, "rm -rf %s", f->dir);
    CHECK_INT(system(command), 0);
    if (f->in_redis) test_redis_end(&f->redis);
}

/* ---- what they say */

static const kn_id batch_a = {0xa, 1}, batch_b = {0xb, 2};

static inline struct kn_model_info model(void) {
    struct kn_model_info m = {.name = "m", .size_multiple = 8};
    m.sha256[0] = 7;
    m.defaults = (struct kn_defaults){KN_SAMPLER_EULER, KN_SCHEDULE_NORMAL, 20, 7, 64, 64, false};
    return m;
}

/* With what it says that it holds, or NULL; `before`: a program of before features were told. */
static inline void hello_with(struct fixture *f, struct kn_held_shard *held, bool before) {
    static const char *features[KN_FEATURES_MAX];
    struct kn_model_info models[] = {model()};
    struct kn_msg m = {.type = KN_MSG_WORKER_HELLO};
    m.u.worker_hello = (struct kn_worker_hello){.worker = "w",
                                                .host = "h",
                                                .device = "d",
                                                .backend = "class-1",
                                                .engine = "kiln 0",
                                                .credit = 1,
                                                .batch_max = 8,
                                                .models = models,
                                                .model_count = 1,
                                                .held = held,
                                                .held_count = held != NULL,
                                                .features = features};
    if (!before) m.u.worker_hello.feature_count = kn_features_list(kn_features(), features);
    m.u.worker_hello.instance[0] = 1;
    tell(f, &f->worker, &m, NULL);
    await(f, &f->worker, KN_MSG_WELCOME);
}

static inline void hello(struct fixture *f) {
    hello_with(f, NULL, false);
}

static inline int begin_pinned(struct fixture *f, const kn_id id, uint32_t tasks, const char *model_name,
                               const char *pin) {
    struct kn_model_info models[1] = {{.name = ""}};
    struct kn_msg m = {.type = KN_MSG_SUBMIT_BEGIN};
    snprintf(models[0].name, sizeof models[0].name, "%s", model_name);
    m.u.submit_begin = (struct kn_submit_begin){.name = "n",
                                                .pin_backend = pin,
                                                .request = "{}",
                                                .tasks = tasks,
                                                .chunks = (tasks + 999) / 1000,
                                                .models = models,
                                                .model_count = 1};
    memcpy(m.u.submit_begin.batch, id, sizeof(kn_id));
    return ask_code(f, &m);
}

static inline int begin(struct fixture *f, const kn_id id, uint32_t tasks, const char *model_name) {
    return begin_pinned(f, id, tasks, model_name, "");
}

static inline int chunk(struct fixture *f, const kn_id id, uint32_t number, uint32_t count, uint32_t width) {
    static struct kn_task tasks[1000];
    struct kn_buf b;
    kn_buf_init(&b, 1u << 20);
    for (uint32_t i = 0; i < count; i++)
        tasks[i] = (struct kn_task){.prompt = "p",
                                    .negative = "",
                                    .seed = i,
                                    .cfg = 7,
                                    .steps = 2,
                                    .width = width,
                                    .height = 64,
                                    .sampler = KN_SAMPLER_EULER,
                                    .schedule = KN_SCHEDULE_NORMAL,
                                    .set = KN_SET_ALL};
    CHECK_INT(kn_chunk_pack(tasks, count, &b, NULL), 0);
    struct kn_msg m = {.type = KN_MSG_SUBMIT_CHUNK};
    m.u.submit_chunk.chunk = number;
    m.u.submit_chunk.count = count;
    m.u.submit_chunk.tasks = (const uint8_t *)b.data;
    m.u.submit_chunk.tasks_len = b.len;
    memcpy(m.u.submit_chunk.batch, id, sizeof(kn_id));
    int code = ask_code(f, &m);
    kn_buf_fini(&b);
    return code;
}

static inline int seal(struct fixture *f, const kn_id id) {
    struct kn_msg m = {.type = KN_MSG_SUBMIT_SEAL};
    memcpy(m.u.submit_seal.batch, id, sizeof(kn_id));
    return ask_code(f, &m);
}

static inline int command(struct fixture *f, const kn_id id, enum kn_batch_verb verb) {
    struct kn_msg m = {.type = KN_MSG_BATCH_COMMAND};
    m.u.batch_command.verb = verb;
    memcpy(m.u.batch_command.batch, id, sizeof(kn_id));
    return ask_code(f, &m);
}

static inline void submit(struct fixture *f, const kn_id id, uint32_t tasks) {
    CHECK_INT(begin(f, id, tasks, "m"), 0);
    for (uint32_t k = 0; k * 1000 < tasks; k++)
        CHECK_INT(chunk(f, id, k, tasks - k * 1000 < 1000 ? tasks - k * 1000 : 1000, 64), 0);
    CHECK_INT(seal(f, id), 0);
}

static inline void free_data(void *data, void *hint) {
    (void)hint;
    free(data);
}

/* The pictures of this test: of one grey, by the first letter of their name. */
static inline void name_picture(struct kn_image_result *r, const char *text) {
    struct png_of png;
    png_of(text, 64, 64, &png);
    memcpy(r->sha256, png.sha256, sizeof r->sha256);
    memcpy(r->pixels_sha256, png.pixels, sizeof r->pixels_sha256);
}

static inline void digest_of(const char *text, uint8_t out[KN_SHA256_BYTES]) {
    struct kn_image_result r;
    name_picture(&r, text);
    memcpy(out, r.sha256, sizeof r.sha256);
}

/* A result of the worker's, with the ticket of a grant of this task alone: in `ticket`, which must outlive it. */
static inline struct kn_image_result result(struct fixture *f, const kn_id id, uint32_t task,
                                            const char *text, uint8_t ticket[TICKET_BYTES_MAX]) {
    struct kn_image_result r = {.task = task,
                                .attempt = 1,
                                .render_ms = 5,
                                .shard = 1000 + task,
                                .term = f->s->store->term,
                                .worker = "w",
                                .backend = "class-1",
                                .engine = "kiln 0",
                                .ticket = ticket};
    struct ticket_grant g = {id, r.shard, r.term, r.worker};
    memcpy(r.batch, id, sizeof(kn_id));
    name_picture(&r, text);
    r.ticket_len = ticket_make(f->s->store->secret, &g, &task, 1, ticket);
    return r;
}

static inline void bring(struct fixture *f, const struct kn_image_result *r, const char *text) {
    struct kn_msg m = {.type = KN_MSG_IMAGE_RESULT, .u.image_result = *r};
    struct png_of png;
    png_of(text, 64, 64, &png);
    struct kn_blob blob = {malloc(png.len), png.len, free_data, NULL};
    memcpy(blob.data, png.bytes, png.len);
    tell(f, &f->data, &m, &blob);
}

static inline int answer_to(struct fixture *f, const struct kn_image_result *r, const char *text) {
    bring(f, r, text);
    const struct kn_msg *a = await(f, &f->data, KN_MSG_IMAGE_ACK);
    CHECK_INT((int)a->u.image_ack.task, (int)r->task);
    return a->u.image_ack.code;
}

/* Sends a picture (whose digest may be made wrong) and returns the acknowledgement's code. */
static inline int picture(struct fixture *f, const kn_id id, uint32_t task, const char *text, bool corrupt) {
    uint8_t ticket[TICKET_BYTES_MAX];
    struct kn_image_result r = result(f, id, task, text, ticket);
    if (corrupt) r.sha256[0] ^= 1;
    return answer_to(f, &r, text);
}

static inline bool object_there(struct fixture *f, const char *text) {
    char path[KN_PATH_MAX];
    uint8_t d[KN_SHA256_BYTES];
    digest_of(text, d);
    objects_path(f->s->objects, d, path);
    return kn_fs_exists(path);
}

static inline const struct kn_results_reply *results(struct fixture *f, const kn_id id, uint64_t epoch,
                                                     uint32_t cursor) {
    struct kn_msg m = {.type = KN_MSG_RESULTS_QUERY};
    m.u.results_query.epoch = epoch;
    m.u.results_query.cursor = cursor;
    m.u.results_query.max = 1000;
    memcpy(m.u.results_query.batch, id, sizeof(kn_id));
    return &ask(f, &m, KN_MSG_RESULTS_REPLY)->u.results_reply;
}

/* ---- what several of them look at */

static inline void object_path(struct fixture *f, const char *text, char path[KN_PATH_MAX]) {
    uint8_t d[KN_SHA256_BYTES];
    digest_of(text, d);
    objects_path(f->s->objects, d, path);
}

static inline const struct kn_batch_status *status_line(struct fixture *f, const kn_id id) {
    struct kn_msg q = {.type = KN_MSG_BATCH_QUERY};
    const struct kn_batch_list *l = &ask(f, &q, KN_MSG_BATCH_LIST)->u.batch_list;
    for (size_t i = 0; i < l->count; i++)
        if (memcmp(l->v[i].batch, id, sizeof(kn_id)) == 0) return &l->v[i];
    return NULL;
}

static inline void redis_of(struct fixture *f, const char *verb, const kn_id id, const char *rest) {
    char text[KN_UUID_TEXT], command[256];
    kn_uuid_format(id, text);
    snprintf(command, sizeof command, "%s kiln:b:%s%s", verb, text, rest);
    test_redis_ask(&f->redis, command);
}

static inline int stored_state(struct fixture *f, const kn_id id) {
    char text[KN_UUID_TEXT], command[128];
    kn_uuid_format(id, text);
    snprintf(command, sizeof command, "hget kiln:b:%s state", text);
    return atoi(test_redis_ask(&f->redis, command));
}

static inline void wish(struct fixture *f, const kn_id id, enum kn_batch_verb verb) {
    struct kn_msg m = {.type = KN_MSG_BATCH_COMMAND, .request = ++f->client.request};
    m.u.batch_command.verb = verb;
    m.u.batch_command.argument = 5;
    memcpy(m.u.batch_command.batch, id, sizeof(kn_id));
    tell(f, &f->client, &m, NULL);
}

/* Whatever was asked before has been heard, and was not answered: a question about the farm, which needs no store,
 * is answered before it. */
static inline void nothing_is_answered(struct fixture *f) {
    struct kn_msg q = {.type = KN_MSG_FARM_QUERY, .request = ++f->client.request};
    tell(f, &f->client, &q, NULL);
    while (f->client.count == 0) uv_run(&f->loop, UV_RUN_ONCE);
    CHECK_INT(f->client.count, 1);
    CHECK_INT(f->client.inbox[0]->type, KN_MSG_FARM_STATUS);
    forget(&f->client);
}

static inline void all_are_answered(struct fixture *f, int count) {
    for (int i = 0; i < count; i++) CHECK_INT(await(f, &f->client, KN_MSG_REPLY)->u.reply.code, 0);
}

static inline bool store_note_says(struct fixture *f, const char *word) {
    struct kn_msg q = {.type = KN_MSG_FARM_QUERY};
    const struct kn_farm_status *s = &ask(f, &q, KN_MSG_FARM_STATUS)->u.farm_status;
    return strstr(s->store_note, word) != NULL;
}

/* The result of the next grant, which is of one task, as its worker sends it. */
static inline struct kn_image_result result_of_grant(struct fixture *f, const char *text,
                                                     uint8_t ticket[TICKET_BYTES_MAX]) {
    const struct kn_shard_grant *g = &await(f, &f->worker, KN_MSG_SHARD_GRANT)->u.shard_grant;
    struct kn_image_result r = {.task = g->index[0],
                                .attempt = g->attempt,
                                .shard = g->shard,
                                .term = g->term,
                                .worker = "w",
                                .backend = "class-1",
                                .engine = "kiln 0",
                                .ticket = ticket,
                                .ticket_len = g->ticket_len};
    CHECK_INT((int)g->count, 1);
    CHECK_INT((int)g->ticket_len, KN_SHA256_BYTES + 8);
    memcpy(ticket, g->ticket, g->ticket_len);
    memcpy(r.batch, g->batch, sizeof(kn_id));
    name_picture(&r, text);
    return r;
}

#endif
