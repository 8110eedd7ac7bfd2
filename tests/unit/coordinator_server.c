/* The coordinator's shell, whole: real sockets, collector and core, with the store in memory (or in a Redis that is
 * stopped, killed and tampered with), and a worker and a client that this test plays on the same loop. */
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

static void on_message(struct kn_sock *sock, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                       struct kn_blob *blob) {
    struct end *e = ctx;
    (void)sock;
    (void)peer;
    if (blob) e->blob_len = blob->len;
    CHECK(e->count < INBOX_MAX);
    e->inbox[e->count++] = m;
}

static void on_time(uv_timer_t *t) {
    *(bool *)t->data = true;
}

static void forget(struct end *e) {
    for (int i = 0; i < e->count; i++) kn_msg_destroy(e->inbox[i]);
    e->count = 0;
}

/* Waits for a message of that type; the others before it are dropped. Borrowed until the next call. */
static const struct kn_msg *await(struct fixture *f, struct end *e, enum kn_msg_type type) {
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

static void run_ms(struct fixture *f, uint64_t ms) {
    uv_timer_t t;
    bool over = false;
    uv_timer_init(&f->loop, &t);
    t.data = &over;
    uv_timer_start(&t, on_time, ms, 0);
    while (!over) uv_run(&f->loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&t, NULL);
    uv_run(&f->loop, UV_RUN_NOWAIT);
}

static void tell(struct fixture *f, struct end *e, const struct kn_msg *m, struct kn_blob *blob) {
    int rc = KN_EAGAIN;
    struct kn_err err = {0};
    for (int i = 0; i < 500 && (rc = kn_sock_send(e->sock, NULL, m, blob, &err)) == KN_EAGAIN; i++)
        run_ms(f, 5);
    CHECK_MSG(rc == 0, "%s", err.text);
}

static const struct kn_msg *ask(struct fixture *f, struct kn_msg *m, enum kn_msg_type want) {
    m->request = ++f->client.request;
    tell(f, &f->client, m, NULL);
    const struct kn_msg *r = await(f, &f->client, want);
    CHECK_U64(r->request, m->request);
    return r;
}

static int ask_code(struct fixture *f, struct kn_msg *m) {
    return ask(f, m, KN_MSG_REPLY)->u.reply.code;
}

static void connect_end(struct fixture *f, struct end *e, const char *endpoint, bool blobs) {
    struct kn_sock_options o = {.recv = on_message, .ctx = e, .blobs = blobs};
    CHECK_INT(kn_sock_create(f->wire, &o, &e->sock, NULL), 0);
    CHECK_INT(kn_sock_connect(e->sock, endpoint, NULL), 0);
}

/* ---- the coordinator */

static void start(struct fixture *f) {
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

static void stop(struct fixture *f) {
    struct end *ends[] = {&f->client, &f->worker, &f->data};
    for (int i = 0; i < 3; i++) {
        kn_sock_destroy(ends[i]->sock);
        forget(ends[i]);
    }
    server_close(f->s);
    for (int i = 0; i < 500 && uv_run(&f->loop, UV_RUN_NOWAIT); i++) usleep(1000);
    server_destroy(f->s);
}

static void setup_with(struct fixture *f, bool in_redis) {
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

static void setup(struct fixture *f) {
    setup_with(f, false);
}

static void teardown(struct fixture *f) {
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

static struct kn_model_info model(void) {
    struct kn_model_info m = {.name = "m", .size_multiple = 8};
    m.sha256[0] = 7;
    m.defaults = (struct kn_defaults){KN_SAMPLER_EULER, KN_SCHEDULE_NORMAL, 20, 7, 64, 64, false};
    return m;
}

/* With what it says that it holds, or NULL; `before`: a program of before features were told. */
static void hello_with(struct fixture *f, struct kn_held_shard *held, bool before) {
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

static void hello(struct fixture *f) {
    hello_with(f, NULL, false);
}

static int begin_pinned(struct fixture *f, const kn_id id, uint32_t tasks, const char *model_name,
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

static int begin(struct fixture *f, const kn_id id, uint32_t tasks, const char *model_name) {
    return begin_pinned(f, id, tasks, model_name, "");
}

static int chunk(struct fixture *f, const kn_id id, uint32_t number, uint32_t count, uint32_t width) {
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

static int seal(struct fixture *f, const kn_id id) {
    struct kn_msg m = {.type = KN_MSG_SUBMIT_SEAL};
    memcpy(m.u.submit_seal.batch, id, sizeof(kn_id));
    return ask_code(f, &m);
}

static int command(struct fixture *f, const kn_id id, enum kn_batch_verb verb) {
    struct kn_msg m = {.type = KN_MSG_BATCH_COMMAND};
    m.u.batch_command.verb = verb;
    memcpy(m.u.batch_command.batch, id, sizeof(kn_id));
    return ask_code(f, &m);
}

static void submit(struct fixture *f, const kn_id id, uint32_t tasks) {
    CHECK_INT(begin(f, id, tasks, "m"), 0);
    for (uint32_t k = 0; k * 1000 < tasks; k++)
        CHECK_INT(chunk(f, id, k, tasks - k * 1000 < 1000 ? tasks - k * 1000 : 1000, 64), 0);
    CHECK_INT(seal(f, id), 0);
}

static void free_data(void *data, void *hint) {
    (void)hint;
    free(data);
}

/* The pictures of this test: of one grey, by the first letter of their name. */
static void name_picture(struct kn_image_result *r, const char *text) {
    struct png_of png;
    png_of(text, 64, 64, &png);
    memcpy(r->sha256, png.sha256, sizeof r->sha256);
    memcpy(r->pixels_sha256, png.pixels, sizeof r->pixels_sha256);
}

static void digest_of(const char *text, uint8_t out[KN_SHA256_BYTES]) {
    struct kn_image_result r;
    name_picture(&r, text);
    memcpy(out, r.sha256, sizeof r.sha256);
}

/* A result of the worker's, with the ticket of a grant of this task alone: in `ticket`, which must outlive it. */
static struct kn_image_result result(struct fixture *f, const kn_id id, uint32_t task, const char *text,
                                     uint8_t ticket[TICKET_BYTES_MAX]) {
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

static void bring(struct fixture *f, const struct kn_image_result *r, const char *text) {
    struct kn_msg m = {.type = KN_MSG_IMAGE_RESULT, .u.image_result = *r};
    struct png_of png;
    png_of(text, 64, 64, &png);
    struct kn_blob blob = {malloc(png.len), png.len, free_data, NULL};
    memcpy(blob.data, png.bytes, png.len);
    tell(f, &f->data, &m, &blob);
}

static int answer_to(struct fixture *f, const struct kn_image_result *r, const char *text) {
    bring(f, r, text);
    const struct kn_msg *a = await(f, &f->data, KN_MSG_IMAGE_ACK);
    CHECK_INT((int)a->u.image_ack.task, (int)r->task);
    return a->u.image_ack.code;
}

/* Sends a picture (whose digest may be made wrong) and returns the acknowledgement's code. */
static int picture(struct fixture *f, const kn_id id, uint32_t task, const char *text, bool corrupt) {
    uint8_t ticket[TICKET_BYTES_MAX];
    struct kn_image_result r = result(f, id, task, text, ticket);
    if (corrupt) r.sha256[0] ^= 1;
    return answer_to(f, &r, text);
}

static bool object_there(struct fixture *f, const char *text) {
    char path[KN_PATH_MAX];
    uint8_t d[KN_SHA256_BYTES];
    digest_of(text, d);
    objects_path(f->s->objects, d, path);
    return kn_fs_exists(path);
}

static const struct kn_results_reply *results(struct fixture *f, const kn_id id, uint64_t epoch,
                                              uint32_t cursor) {
    struct kn_msg m = {.type = KN_MSG_RESULTS_QUERY};
    m.u.results_query.epoch = epoch;
    m.u.results_query.cursor = cursor;
    m.u.results_query.max = 1000;
    memcpy(m.u.results_query.batch, id, sizeof(kn_id));
    return &ask(f, &m, KN_MSG_RESULTS_REPLY)->u.results_reply;
}

/* ---- the promises */

TEST(a_submission_may_be_repeated_at_every_step) {
    struct fixture f;
    setup(&f);
    hello(&f);
    CHECK_INT(seal(&f, batch_a), KN_ENOENT);
    CHECK_INT(chunk(&f, batch_a, 0, 1000, 64), KN_ENOENT);
    for (int i = 0; i < 2; i++) CHECK_INT(begin(&f, batch_a, 1500, "m"), 0);
    CHECK_INT(begin(&f, batch_a, 1600, "m"), KN_ESTATE); /* that is another batch */
    CHECK_INT(seal(&f, batch_a), KN_ESTATE);             /* chunks are missing */
    for (int i = 0; i < 2; i++) CHECK_INT(chunk(&f, batch_a, 1, 500, 64), 0);
    CHECK_INT(chunk(&f, batch_a, 1, 500, 128), KN_ESTATE); /* other tasks than before */
    for (int i = 0; i < 2; i++) CHECK_INT(chunk(&f, batch_a, 0, 1000, 64), 0);
    for (int i = 0; i < 2; i++) CHECK_INT(seal(&f, batch_a), 0);
    CHECK_INT(begin(&f, batch_a, 1500, "m"), 0);
    CHECK_INT(chunk(&f, batch_a, 0, 1000, 64), 0);
    struct kn_msg q = {.type = KN_MSG_BATCH_QUERY};
    const struct kn_batch_list *l = &ask(&f, &q, KN_MSG_BATCH_LIST)->u.batch_list;
    CHECK_INT((int)l->count, 1);
    CHECK_INT((int)l->v[0].total, 1500);
    teardown(&f);
}

TEST(a_wrong_submission_is_refused_with_its_reason) {
    struct fixture f;
    setup(&f);
    CHECK_INT(begin(&f, batch_a, 10, "m"), KN_EMODEL); /* no worker yet */
    hello(&f);
    struct kn_model_info models[1] = {{.name = "other"}};
    struct kn_msg m = {.type = KN_MSG_SUBMIT_BEGIN};
    m.u.submit_begin = (struct kn_submit_begin){.name = "n",
                                                .pin_backend = "",
                                                .request = "{}",
                                                .tasks = 10,
                                                .chunks = 1,
                                                .models = models,
                                                .model_count = 1};
    const struct kn_reply *r = &ask(&f, &m, KN_MSG_REPLY)->u.reply;
    CHECK_INT(r->code, KN_EMODEL);
    CHECK_MSG(strstr(r->text, "other is not on this farm; there is: m (07") != NULL, "%s", r->text);
    m.u.submit_begin.chunks = 2;
    CHECK_INT(ask_code(&f, &m), KN_EINVAL);
    CHECK_INT(begin(&f, batch_a, 1500, "m"), 0);
    CHECK_INT(chunk(&f, batch_a, 0, 999, 64), KN_EINVAL);
    CHECK_INT(chunk(&f, batch_a, 2, 500, 64), KN_EINVAL);
    CHECK(chunk(&f, batch_a, 0, 1000, 68) != 0); /* not a size of that model */
    CHECK_INT(seal(&f, batch_a), KN_ESTATE);
    teardown(&f);
}

/* ---- programs of other versions */

static void hello_as(struct fixture *f, const char *const *features, size_t count) {
    struct kn_model_info models[] = {model()};
    struct kn_msg m = {.type = KN_MSG_WORKER_HELLO};
    m.u.worker_hello = (struct kn_worker_hello){.worker = "w",
                                                .backend = "class-1",
                                                .engine = "kiln 0",
                                                .credit = 1,
                                                .batch_max = 8,
                                                .models = models,
                                                .model_count = 1,
                                                .features = (const char **)(uintptr_t)features,
                                                .feature_count = count};
    m.u.worker_hello.instance[0] = 1;
    tell(f, &f->worker, &m, NULL);
}

TEST(promise_versions_a_worker_is_granted_what_its_hello_lists_and_the_wait_says_so) {
    struct fixture f;
    const char *const some[] = {"sampler.ddim", "schedule.normal", "sampler.of_tomorrow"};
    setup(&f);
    hello_as(&f, some, 3);
    const struct kn_welcome *w = &await(&f, &f.worker, KN_MSG_WELCOME)->u.welcome;
    CHECK_U64(kn_features_of_peer(w->features, w->feature_count), kn_features());
    submit(&f, batch_a, 3); /* Euler */
    run_ms(&f, 300);
    for (int i = 0; i < f.worker.count; i++) CHECK(f.worker.inbox[i]->type != KN_MSG_SHARD_GRANT);
    struct kn_msg q = {.type = KN_MSG_EXPLAIN_QUERY};
    q.u.explain_query.has_task = true;
    memcpy(q.u.explain_query.batch, batch_a, sizeof(kn_id));
    const struct kn_explain_reply *r = &ask(&f, &q, KN_MSG_EXPLAIN_REPLY)->u.explain_reply;
    CHECK_INT(r->status.wait, KN_WAIT_FEATURE);
    CHECK_MSG(strstr(r->status.wait_text, "w (kiln 0) does not know sampler Euler"), "%s",
              r->status.wait_text);
    CHECK_MSG(strstr(r->text, "does not know sampler Euler"), "%s", r->text);
    hello_as(&f, NULL, 0); /* a program of before: it has what those had */
    await(&f, &f.worker, KN_MSG_SHARD_GRANT);
    teardown(&f);
}

TEST(promise_versions_a_shard_that_its_worker_cannot_read_is_not_granted_to_it_again) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    const struct kn_shard_grant *g = &await(&f, &f.worker, KN_MSG_SHARD_GRANT)->u.shard_grant;
    struct kn_msg m = {.type = KN_MSG_SHARD_RETURNED};
    m.u.shard_returned = (struct kn_shard_returned){
        .shard = g->shard, .term = g->term, .code = KN_EUNSUPPORTED, .reason = "too new for me"};
    tell(&f, &f.worker, &m, NULL);
    struct kn_msg q = {.type = KN_MSG_BATCH_QUERY};
    q.u.batch_query.has_batch = true;
    memcpy(q.u.batch_query.batch, batch_a, sizeof(kn_id));
    const struct kn_batch_status *s = NULL;
    for (int i = 0; i < 200 && !(s && s->wait == KN_WAIT_FEATURE); i++) {
        if (i) run_ms(&f, 10);
        s = &ask(&f, &q, KN_MSG_BATCH_LIST)->u.batch_list.v[0];
    }
    CHECK_INT(s->wait, KN_WAIT_FEATURE);
    CHECK_MSG(strstr(s->wait_text, "handed it back: too new for me"), "%s", s->wait_text);
    CHECK_INT(s->queued, 1);
    teardown(&f);
}

/* Whoever asks something that cannot be read is told so; it was dropped, and asked again for ever. */
TEST(promise_versions_a_request_that_cannot_be_read_is_answered_in_words) {
    struct fixture f;
    setup(&f);
    struct kn_msg m = {.type = KN_MSG_BATCH_COMMAND};
    m.u.batch_command.verb = (enum kn_batch_verb)99;
    const struct kn_reply *r = &ask(&f, &m, KN_MSG_REPLY)->u.reply;
    CHECK_INT(r->code, KN_EPROTO);
    CHECK_MSG(strstr(r->text, "cannot read this: batch_command: verb"), "%s", r->text);
    struct kn_msg h = {.type = KN_MSG_WORKER_HELLO};
    h.u.worker_hello = (struct kn_worker_hello){.worker = "w", .backend = "", .credit = 1, .batch_max = 1};
    tell(&f, &f.worker, &h, NULL);
    r = &await(&f, &f.worker, KN_MSG_REPLY)->u.reply;
    CHECK_MSG(strstr(r->text, "cannot read this worker's hello: worker_hello: backend"), "%s", r->text);
    teardown(&f);
}

TEST(promise_versions_a_batch_that_needs_what_is_not_known_here_is_refused_by_name) {
    struct fixture f;
    const char *const features[] = {"sampler.of_tomorrow"};
    setup(&f);
    hello(&f);
    struct kn_model_info models[1] = {{.name = "m"}};
    struct kn_msg m = {.type = KN_MSG_SUBMIT_BEGIN};
    m.u.submit_begin = (struct kn_submit_begin){.name = "n",
                                                .pin_backend = "",
                                                .request = "{}",
                                                .tasks = 1,
                                                .chunks = 1,
                                                .models = models,
                                                .model_count = 1,
                                                .features = (const char **)(uintptr_t)features,
                                                .feature_count = 1};
    memcpy(m.u.submit_begin.batch, batch_a, sizeof(kn_id));
    const struct kn_reply *r = &ask(&f, &m, KN_MSG_REPLY)->u.reply;
    CHECK_INT(r->code, KN_EUNSUPPORTED);
    CHECK_MSG(strstr(r->text, "needs sampler.of_tomorrow"), "%s", r->text);
    teardown(&f);
}

/* ---- bounds */

/* A thousand tasks with the longest prompts, of letters that do not compress well; free() the texts. */
static char *long_tasks(struct kn_task *tasks, uint32_t count) {
    size_t each = 2 * (KN_PROMPT_BYTES_MAX + 1);
    char *texts = malloc(each * count);
    uint64_t x = 88172645463325252u;
    CHECK(texts != NULL);
    for (size_t i = 0; i < each * count; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        texts[i] = (i + 1) % (KN_PROMPT_BYTES_MAX + 1) == 0 ? '\0' : (char)(' ' + x % 90);
    }
    for (uint32_t i = 0; i < count; i++)
        tasks[i] = (struct kn_task){.prompt = texts + i * each,
                                    .negative = texts + i * each + each / 2,
                                    .seed = i,
                                    .cfg = 7,
                                    .steps = 2,
                                    .width = 64,
                                    .height = 64,
                                    .sampler = KN_SAMPLER_EULER,
                                    .schedule = KN_SCHEDULE_NORMAL,
                                    .set = KN_SET_ALL};
    return texts;
}

static int send_part(struct fixture *f, const struct kn_buf *b, uint32_t part, uint32_t parts) {
    struct kn_msg m = {.type = KN_MSG_SUBMIT_CHUNK};
    size_t from = (size_t)part * KN_CHUNK_PART_BYTES, left = b->len - from;
    m.u.submit_chunk.count = 1000;
    m.u.submit_chunk.part = part;
    m.u.submit_chunk.parts = parts;
    m.u.submit_chunk.tasks = (const uint8_t *)b->data + from;
    m.u.submit_chunk.tasks_len = left < KN_CHUNK_PART_BYTES ? left : KN_CHUNK_PART_BYTES;
    memcpy(m.u.submit_chunk.batch, batch_a, sizeof(kn_id));
    return ask_code(f, &m);
}

/* 2,000 legal prompts of 16 KB were refused. */
TEST(promise_bounds_a_chunk_over_a_frame_comes_in_parts_and_is_kept_whole) {
    static struct kn_task tasks[1000];
    struct fixture f;
    struct kn_buf b, back;
    setup(&f);
    hello(&f);
    char *texts = long_tasks(tasks, 1000);
    kn_buf_init(&b, KN_CHUNK_BYTES_MAX);
    kn_buf_init(&back, KN_CHUNK_BYTES_MAX);
    CHECK_INT(kn_chunk_pack(tasks, 1000, &b, NULL), 0);
    uint32_t parts = (uint32_t)((b.len + KN_CHUNK_PART_BYTES - 1) / KN_CHUNK_PART_BYTES);
    CHECK(parts > 2 && parts <= KN_CHUNK_PARTS_MAX);
    CHECK_INT(begin(&f, batch_a, 1000, "m"), 0);
    CHECK_INT(send_part(&f, &b, 1, parts), KN_ESTATE); /* the first is not there */
    CHECK_INT(send_part(&f, &b, 0, parts), 0);
    CHECK_INT(send_part(&f, &b, 2, parts), KN_ESTATE); /* nor the second */
    for (uint32_t i = 0; i < 2; i++) CHECK_INT(send_part(&f, &b, 1, parts), 0);
    CHECK_INT(seal(&f, batch_a), KN_ESTATE);
    for (uint32_t i = 0; i < parts; i++)
        CHECK_INT(send_part(&f, &b, i, parts), 0); /* from the first once more */
    for (uint32_t i = 0; i < parts; i++)
        CHECK_INT(send_part(&f, &b, i, parts), 0); /* it is there, the same */
    for (uint32_t i = 0; i < 2; i++) CHECK_INT(seal(&f, batch_a), 0);
    stop(&f);
    start(&f); /* what is read back is whole */
    struct kn_msg q = {.type = KN_MSG_TASKS_QUERY};
    memcpy(q.u.tasks_query.batch, batch_a, sizeof(kn_id));
    for (uint32_t i = 0; i < parts; i++) {
        q.u.tasks_query.part = i;
        const struct kn_tasks_reply *r = &ask(&f, &q, KN_MSG_TASKS_REPLY)->u.tasks_reply;
        CHECK_INT(r->parts, parts);
        CHECK_INT(kn_buf_append(&back, r->tasks, r->tasks_len), 0);
    }
    CHECK_U64(back.len, b.len);
    CHECK_MEM(back.data, b.data, b.len);
    q.u.tasks_query.part = parts;
    CHECK_INT(ask_code(&f, &q), KN_EINVAL);
    /* As many of these tasks as the core may put in a grant fit in a frame, and one more would be too many. */
    struct kept_batch *kept = batches_find(&f.s->batches, batch_a);
    uint32_t most = batch_shard_tasks(kept), index[KN_SHARD_TASKS_MAX] = {0};
    CHECK(most > 100 && most < KN_SHARD_TASKS_MAX);
    struct kn_msg g = {.type = KN_MSG_SHARD_GRANT,
                       .u.shard_grant = {.shard = 1, .index = index, .tasks = tasks, .count = most}};
    kn_buf_clear(&back);
    CHECK_INT(kn_msg_encode(&g, &back, NULL), 0);
    g.u.shard_grant.count = KN_SHARD_TASKS_MAX;
    CHECK_INT(kn_msg_encode(&g, &back, NULL), KN_ELIMIT);
    kn_buf_fini(&b);
    kn_buf_fini(&back);
    free(texts);
    teardown(&f);
}

TEST(who_did_not_say_hello_is_asked_to) {
    struct fixture f;
    setup(&f);
    struct kn_msg m = {.type = KN_MSG_HEARTBEAT};
    tell(&f, &f.worker, &m, NULL);
    await(&f, &f.worker, KN_MSG_HELLO_AGAIN);
    teardown(&f);
}

TEST(a_grant_carries_the_tasks_as_they_were_submitted) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 1001);
    const struct kn_shard_grant *g = &await(&f, &f.worker, KN_MSG_SHARD_GRANT)->u.shard_grant;
    CHECK(g->count >= 1 && g->count <= 8);
    CHECK_MEM(g->batch, batch_a, sizeof(kn_id));
    CHECK_INT(g->model_sha256[0], 7);
    for (size_t i = 0; i < g->count; i++) {
        CHECK_STR(g->tasks[i].prompt, "p");
        CHECK_U64(g->tasks[i].seed, g->index[i] % 1000);
    }
    teardown(&f);
}

TEST(pictures_are_acknowledged_by_what_they_are) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 3);
    CHECK_INT(picture(&f, batch_b, 0, "p0", false), KN_EGONE);
    CHECK_INT(picture(&f, batch_a, 0, "p0", true), KN_ECORRUPT);
    CHECK(!object_there(&f, "p0"));
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    CHECK(object_there(&f, "p0"));
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0); /* again */
    CHECK_U64(f.s->alarms, 0);
    CHECK_INT(picture(&f, batch_a, 0, "q0", false), 0); /* of one class, with other pixels */
    CHECK_U64(f.s->alarms, 1);
    CHECK_INT(picture(&f, batch_a, 1, "p1", false), 0);
    const struct kn_results_reply *r = results(&f, batch_a, 0, 0);
    CHECK_INT((int)r->count, 2);
    CHECK_INT((int)r->v[0].index, 0);
    CHECK_STR(r->v[0].worker, "w");
    CHECK_STR(r->v[0].backend, "class-1");
    CHECK_STR(r->v[0].engine, "kiln 0");
    teardown(&f);
}

TEST(an_object_is_fetched_by_its_digest) {
    struct fixture f;
    struct kn_msg m = {.type = KN_MSG_OBJECT_GET, .request = 5};
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    CHECK_INT(picture(&f, batch_a, 0, "picture", false), 0);
    digest_of("picture", m.u.object_get.sha256);
    tell(&f, &f.data, &m, NULL);
    const struct kn_msg *r = await(&f, &f.data, KN_MSG_OBJECT_REPLY);
    CHECK_INT(r->u.object_reply.code, 0);
    CHECK_U64(r->request, 5);
    struct png_of png;
    png_of("picture", 64, 64, &png);
    CHECK_INT((int)f.data.blob_len, (int)png.len);
    m.u.object_get.sha256[3] ^= 1;
    tell(&f, &f.data, &m, NULL);
    CHECK_INT(await(&f, &f.data, KN_MSG_OBJECT_REPLY)->u.object_reply.code, KN_ENOENT);
    teardown(&f);
}

TEST(what_was_done_is_done_after_a_restart_in_the_same_order) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 5);
    CHECK_INT(begin(&f, batch_b, 2000, "m"), 0);
    CHECK_INT(chunk(&f, batch_b, 1, 1000, 64), 0);
    CHECK_INT(picture(&f, batch_a, 3, "p3", false), 0);
    CHECK_INT(picture(&f, batch_a, 1, "p1", false), 0);
    uint64_t epoch = results(&f, batch_a, 0, 0)->epoch;
    stop(&f);
    start(&f);
    const struct kn_results_reply *r = results(&f, batch_a, epoch, 2); /* of the old list: it begins anew */
    CHECK(r->epoch != epoch);
    CHECK_INT((int)r->count, 2);
    CHECK_INT((int)r->v[0].index, 3);
    CHECK_INT((int)r->v[1].index, 1);
    CHECK_STR(r->v[1].backend, "class-1");
    CHECK_INT((int)r->status.queued, 3);
    hello(&f);
    CHECK_INT(chunk(&f, batch_b, 0, 1000, 64), 0); /* the submission goes on where it was */
    CHECK_INT(seal(&f, batch_b), 0);
    await(&f, &f.worker, KN_MSG_SHARD_GRANT);
    teardown(&f);
}

TEST(a_removed_batch_takes_the_pictures_that_nobody_else_names) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 2);
    submit(&f, batch_b, 1);
    CHECK_INT(picture(&f, batch_a, 0, "shared", false), 0);
    CHECK_INT(picture(&f, batch_a, 1, "own", false), 0);
    CHECK_INT(picture(&f, batch_b, 0, "shared", false), 0);
    CHECK_INT(command(&f, batch_a, KN_VERB_REMOVE), 0);
    CHECK_INT(command(&f, batch_a, KN_VERB_REMOVE), KN_ENOENT);
    for (int i = 0; i < 100 && object_there(&f, "own"); i++) run_ms(&f, 10);
    CHECK(!object_there(&f, "own"));
    CHECK(object_there(&f, "shared"));
    stop(&f);
    start(&f);
    struct kn_msg q = {.type = KN_MSG_BATCH_QUERY};
    CHECK_INT((int)ask(&f, &q, KN_MSG_BATCH_LIST)->u.batch_list.count, 1);
    teardown(&f);
}

static void object_path(struct fixture *f, const char *text, char path[KN_PATH_MAX]) {
    uint8_t d[KN_SHA256_BYTES];
    digest_of(text, d);
    objects_path(f->s->objects, d, path);
}

TEST(a_retry_has_lost_and_damaged_pictures_rendered_again_and_no_others) {
    struct fixture f;
    char path[KN_PATH_MAX];
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 3);
    const char *const text[] = {"p0", "p1", "p2"};
    for (uint32_t i = 0; i < 3; i++) CHECK_INT(picture(&f, batch_a, i, text[i], false), 0);
    uint64_t epoch = results(&f, batch_a, 0, 0)->epoch;
    /* Nothing is lost: a retry changes nothing. */
    CHECK_INT(command(&f, batch_a, KN_VERB_RETRY), 0);
    CHECK_INT((int)results(&f, batch_a, epoch, 3)->status.state, KN_BATCH_DONE);
    CHECK_INT(results(&f, batch_a, epoch, 3)->epoch == epoch, true);

    object_path(&f, "p0", path);
    CHECK_INT(unlink(path), 0);
    object_path(&f, "p1", path);
    FILE *x = fopen(path, "w");
    CHECK(x != NULL);
    fputs("edited", x);
    fclose(x);
    CHECK_INT(command(&f, batch_a, KN_VERB_RETRY), 0);
    const struct kn_results_reply *r = results(&f, batch_a, epoch, 3);
    CHECK(r->epoch != epoch);
    CHECK_INT((int)r->count, 1);
    CHECK_INT((int)r->v[0].index, 2);
    CHECK_INT((int)r->status.state, KN_BATCH_ACTIVE);

    /* The coordinator is killed between the void and the render: the next one knows of both. */
    stop(&f);
    start(&f);
    hello(&f);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.done, 1);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    CHECK_INT(picture(&f, batch_a, 1, "p1", false), 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    CHECK(object_there(&f, "p0"));
    CHECK_INT(command(&f, batch_a, KN_VERB_RETRY), 0); /* and all is well: p1 has its bytes again */
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.done, 3);
    CHECK_INT(command(&f, batch_b, KN_VERB_RETRY), KN_ENOENT);
    teardown(&f);
}

/* ---- objects that are lost, damaged, or in the way */

static void damage_object(struct fixture *f, const char *text) {
    char path[KN_PATH_MAX];
    object_path(f, text, path);
    CHECK_INT(unlink(path), 0);
    FILE *x = fopen(path, "w");
    CHECK(x != NULL);
    fputs("edited", x);
    fclose(x);
}

static void await_done(struct fixture *f, const kn_id id, uint32_t done) {
    for (int i = 0; i < 2000 && results(f, id, 0, 0)->status.done != done; i++) run_ms(f, 5);
    CHECK_INT((int)results(f, id, 0, 0)->status.done, (int)done);
}

static void restart_with_scrub(struct fixture *f) {
    stop(f);
    f->scrub_first_ms = 1;
    start(f);
    hello(f);
}

TEST(the_scrub_has_damaged_and_lost_pictures_rendered_again_and_no_others) {
    struct fixture f;
    char path[KN_PATH_MAX];
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 3);
    submit(&f, batch_b, 1);
    const char *const text[] = {"p0", "p1", "p2"};
    for (uint32_t i = 0; i < 3; i++) CHECK_INT(picture(&f, batch_a, i, text[i], false), 0);
    CHECK_INT(picture(&f, batch_b, 0, "p0", false), 0); /* the same object */
    damage_object(&f, "p1");
    object_path(&f, "p2", path);
    CHECK_INT(unlink(path), 0);
    restart_with_scrub(&f);
    await_done(&f, batch_a, 1);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_ACTIVE);
    CHECK_INT(picture(&f, batch_a, 1, "p1", false), 0);
    CHECK_INT(picture(&f, batch_a, 2, "p2", false), 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    CHECK_INT((int)results(&f, batch_b, 0, 0)->status.state, KN_BATCH_DONE);
    teardown(&f);
}

TEST(a_scrub_that_misses_everything_blames_the_disk_and_voids_few) {
    struct fixture f;
    char text[16], path[KN_PATH_MAX];
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 100);
    for (uint32_t i = 0; i < 100; i++) {
        snprintf(text, sizeof text, "p%u", i);
        CHECK_INT(picture(&f, batch_a, i, text, false), 0);
        object_path(&f, text, path);
        CHECK_INT(unlink(path), 0);
    }
    restart_with_scrub(&f);
    await_done(&f, batch_a, 100 - 64);
    run_ms(&f, 400); /* three more turns, if there were any */
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.done, 100 - 64);
    teardown(&f);
}

static void move_to_trash(struct fixture *f, const char *text) {
    char from[KN_PATH_MAX], to[2 * KN_PATH_MAX], hex[KN_SHA256_HEX];
    uint8_t d[KN_SHA256_BYTES];
    digest_of(text, d);
    kn_hex(d, sizeof d, hex);
    object_path(f, text, from);
    snprintf(to, sizeof to, "%s/trash/%.2s", f->s->objects, hex);
    CHECK_INT(kn_fs_mkdirs(to, 0777, NULL), 0);
    snprintf(to, sizeof to, "%s/trash/%.2s/0-1-%s", f->s->objects, hex, hex);
    CHECK_INT(rename(from, to), 0);
}

TEST(whoever_misses_an_object_finds_it_in_the_trash) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 2);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    /* Behind the commit: it is looked for, and moved back. */
    move_to_trash(&f, "p0");
    for (int i = 0; i < 3000 && !object_there(&f, "p0"); i++) run_ms(&f, 5);
    CHECK(object_there(&f, "p0"));
    /* A client that fetches. */
    move_to_trash(&f, "p0");
    struct kn_msg m = {.type = KN_MSG_OBJECT_GET};
    digest_of("p0", m.u.object_get.sha256);
    tell(&f, &f.data, &m, NULL);
    CHECK_INT(await(&f, &f.data, KN_MSG_OBJECT_REPLY)->u.object_reply.code, 0);
    CHECK(object_there(&f, "p0"));
    /* A retry: nothing is lost, and nothing is rendered again. */
    CHECK_INT(picture(&f, batch_a, 1, "p1", false), 0);
    move_to_trash(&f, "p0");
    CHECK_INT(command(&f, batch_a, KN_VERB_RETRY), 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    CHECK(object_there(&f, "p0"));
    /* The same picture comes for another batch. */
    submit(&f, batch_b, 1);
    move_to_trash(&f, "p0");
    CHECK_INT(picture(&f, batch_b, 0, "p0", false), 0);
    CHECK(object_there(&f, "p0"));
    teardown(&f);
}

static const struct kn_repair_reply *repair(struct fixture *f) {
    struct kn_msg m = {.type = KN_MSG_REPAIR_COMMAND};
    return &ask(f, &m, KN_MSG_REPAIR_REPLY)->u.repair_reply;
}

TEST(only_what_is_old_in_the_trash_and_named_by_nobody_is_deleted) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    submit(&f, batch_b, 1);
    CHECK_INT(picture(&f, batch_a, 0, "own", false), 0);
    CHECK_INT(picture(&f, batch_b, 0, "named", false), 0);
    CHECK_INT(command(&f, batch_a, KN_VERB_REMOVE), 0);
    for (int i = 0; i < 3000 && object_there(&f, "own"); i++) run_ms(&f, 5);
    const struct kn_repair_reply *r = repair(&f);
    CHECK_U64(r->deleted, 0); /* it is young */
    move_to_trash(&f, "named");
    stop(&f);
    f.trash_ms = 1;
    start(&f);
    run_ms(&f, 5);
    r = repair(&f);
    CHECK(r->deleted <= 1); /* the round at the start may have been first */
    r = repair(&f);
    CHECK_U64(r->deleted, 0);
    CHECK_U64(r->restored, 0);
    CHECK_U64(r->moved, 0);
    CHECK(object_there(&f, "named"));
    char path[2 * KN_PATH_MAX], command_line[2 * KN_PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/trash", f.s->objects);
    snprintf(command_line, sizeof command_line, "test -z \"$(find %s -type f)\"", path);
    CHECK_INT(system(command_line), 0);
    teardown(&f);
}

static int refuse_commit(struct store *s, const kn_id id, uint32_t task, const struct store_record *r,
                         store_done done, void *ctx) {
    (void)s, (void)id, (void)task, (void)r, (void)done, (void)ctx;
    return KN_EAGAIN;
}

TEST(a_picture_that_waits_for_the_store_is_neither_moved_to_the_trash_nor_deleted) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 2);
    submit(&f, batch_b, 1);
    CHECK_INT(picture(&f, batch_a, 0, "shared", false), 0);
    CHECK_INT(picture(&f, batch_a, 1, "own", false), 0);
    /* The same picture comes for another batch: the object is there, and the store takes no commit now. */
    const struct store_ops *before = f.s->store->ops;
    struct store_ops busy = *before;
    busy.commit = refuse_commit;
    f.s->store->ops = &busy;
    uint8_t ticket[TICKET_BYTES_MAX];
    struct kn_image_result again = result(&f, batch_b, 0, "shared", ticket);
    bring(&f, &again, "shared");
    for (int i = 0; i < 2000 && collect_count(f.s->collect) == 0; i++) run_ms(&f, 1);
    for (int i = 0; i < 2000 && collect_count(f.s->collect) > 0; i++) run_ms(&f, 1);
    struct kn_msg rm = {.type = KN_MSG_BATCH_COMMAND};
    rm.u.batch_command.verb = KN_VERB_REMOVE;
    rm.u.batch_command.now = true;
    memcpy(rm.u.batch_command.batch, batch_a, sizeof(kn_id));
    CHECK_INT(ask_code(&f, &rm), 0);
    for (int i = 0; i < 3000 && object_there(&f, "own"); i++) run_ms(&f, 5);
    CHECK(!object_there(&f, "own"));
    repair(&f); /* and the round is over */
    CHECK(object_there(&f, "shared"));
    f.s->store->ops = before;
    CHECK_INT(await(&f, &f.data, KN_MSG_IMAGE_ACK)->u.image_ack.code, 0);
    CHECK(object_there(&f, "shared"));
    teardown(&f);
}

static sem_t moving, move_on;

/* On a thread of the collector, right before an object is moved to the trash: once. */
static void stop_the_move(const char *call) {
    if (strcmp(call, "trash") != 0) return;
    objects_switch = NULL;
    sem_post(&moving);
    sem_wait(&move_on);
}

TEST(a_picture_that_is_committed_while_it_is_moved_to_the_trash_comes_back_at_once) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    submit(&f, batch_b, 1);
    CHECK_INT(picture(&f, batch_a, 0, "shared", false), 0);
    CHECK_INT(sem_init(&moving, 0, 0), 0);
    CHECK_INT(sem_init(&move_on, 0, 0), 0);
    objects_switch = stop_the_move;
    CHECK_INT(command(&f, batch_a, KN_VERB_REMOVE), 0);
    int stopped = -1;
    for (int i = 0; i < 3000 && (stopped = sem_trywait(&moving)) != 0; i++) run_ms(&f, 5);
    CHECK_INT(stopped, 0);
    /* Nobody named it when that was decided. Now somebody does, and the look behind the commit finds it there. */
    CHECK_INT(picture(&f, batch_b, 0, "shared", false), 0);
    run_ms(&f, 300);
    CHECK(object_there(&f, "shared"));
    sem_post(&move_on);
    for (int i = 0; i < 3000 && object_there(&f, "shared"); i++) usleep(1000); /* the loop stands still */
    CHECK(!object_there(&f, "shared"));
    for (int i = 0; i < 600 && !object_there(&f, "shared"); i++) run_ms(&f, 5);
    CHECK(object_there(&f, "shared"));
    teardown(&f);
}

static void on_stored(void *ctx, int code, const void *data, size_t len) {
    (void)data;
    (void)len;
    *(int *)ctx = code;
}

TEST(a_removal_that_was_cut_short_is_gone_on_with_by_the_next_coordinator) {
    struct fixture f;
    struct store *store;
    int code = 1;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 2);
    submit(&f, batch_b, 1);
    CHECK_INT(picture(&f, batch_a, 0, "shared", false), 0);
    CHECK_INT(picture(&f, batch_a, 1, "own", false), 0);
    CHECK_INT(picture(&f, batch_b, 0, "shared", false), 0);
    stop(&f);
    /* The store was told, and that was the last. */
    CHECK_INT(store_memory_open(f.disk, &f.loop, &store, NULL), 0);
    CHECK_INT(store_remove(store, batch_a, on_stored, &code), 0);
    while (code == 1) uv_run(&f.loop, UV_RUN_ONCE);
    CHECK_INT(code, 0);
    store_close(store);
    start(&f);
    for (int i = 0; i < 3000 && object_there(&f, "own"); i++) run_ms(&f, 5);
    CHECK(!object_there(&f, "own"));
    CHECK(object_there(&f, "shared"));
    teardown(&f);
}

TEST(a_lost_picture_of_a_cancelled_batch_is_queued_with_the_rest_of_it) {
    struct fixture f;
    char path[KN_PATH_MAX];
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 2);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    CHECK_INT(command(&f, batch_a, KN_VERB_CANCEL), 0);
    object_path(&f, "p0", path);
    CHECK_INT(unlink(path), 0);
    CHECK_INT(command(&f, batch_a, KN_VERB_RETRY), 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.cancelled, 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.done, 0);
    stop(&f);
    start(&f);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.cancelled, 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_ACTIVE);
    teardown(&f);
}

TEST(an_older_worker_of_a_name_is_asked_and_the_newcomer_refused_with_both_hosts) {
    struct fixture f;
    struct end other = {0};
    setup(&f);
    hello(&f);
    connect_end(&f, &other, f.endpoint, false);
    struct kn_msg m = {.type = KN_MSG_WORKER_HELLO};
    m.u.worker_hello = (struct kn_worker_hello){.worker = "w",
                                                .host = "elsewhere",
                                                .backend = "class-1",
                                                .pid = 77,
                                                .credit = 1,
                                                .batch_max = 8,
                                                .answers = true};
    m.u.worker_hello.instance[0] = 2;
    tell(&f, &other, &m, NULL);
    await(&f, &f.worker, KN_MSG_STILL_THERE);
    struct kn_msg beat = {.type = KN_MSG_HEARTBEAT}; /* of an older kind: it repeats no number */
    tell(&f, &f.worker, &beat, NULL);
    const struct kn_reply *r = &await(&f, &other, KN_MSG_REPLY)->u.reply;
    CHECK_INT(r->code, KN_EEXIST);
    CHECK(strstr(r->text, "elsewhere (process 77)") != NULL);
    CHECK(strstr(r->text, "a worker on h ") != NULL);
    kn_sock_destroy(other.sock);
    forget(&other);
    teardown(&f);
}

TEST(a_batch_that_runs_is_not_removed_and_a_cancelled_one_takes_no_picture) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 2);
    CHECK_INT(command(&f, batch_a, KN_VERB_REMOVE), KN_ESTATE);
    CHECK_INT(command(&f, batch_b, KN_VERB_CANCEL), KN_ENOENT);
    CHECK_INT(command(&f, batch_a, KN_VERB_PAUSE), 0);
    CHECK_INT(command(&f, batch_a, KN_VERB_RESUME), 0);
    CHECK_INT(command(&f, batch_a, KN_VERB_CANCEL), 0);
    CHECK_INT(picture(&f, batch_a, 0, "late", false), KN_EGONE);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.cancelled, 2);
    stop(&f);
    start(&f);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_CANCELLED);
    teardown(&f);
}

/* ---- promise: what is refused is refused before it is durable, and one batch does not keep the farm */

TEST(promise_admit_any_number_of_pins_is_taken_and_the_farm_starts_again) {
    struct fixture f;
    enum { PINS = 300 }; /* more than there are numbers for classes of workers */
    setup(&f);
    hello(&f);
    for (int i = 0; i < PINS; i++) {
        kn_id id = {0xc, (uint8_t)i, (uint8_t)(i >> 8)};
        char pin[32];
        snprintf(pin, sizeof pin, "some-class-%d", i);
        CHECK_INT(begin_pinned(&f, id, 1, "m", pin), 0);
        CHECK_INT(chunk(&f, id, 0, 1, 64), 0);
        for (int k = 0; k < 2; k++) CHECK_INT(seal(&f, id), 0);
    }
    stop(&f);
    start(&f);
    struct kn_msg q = {.type = KN_MSG_BATCH_QUERY};
    CHECK_INT((int)ask(&f, &q, KN_MSG_BATCH_LIST)->u.batch_list.count, PINS);
    hello(&f);
    submit(&f, batch_a, 1); /* and goes on */
    await(&f, &f.worker, KN_MSG_SHARD_GRANT);
    teardown(&f);
}

static const struct kn_batch_status *status_line(struct fixture *f, const kn_id id) {
    struct kn_msg q = {.type = KN_MSG_BATCH_QUERY};
    const struct kn_batch_list *l = &ask(f, &q, KN_MSG_BATCH_LIST)->u.batch_list;
    for (size_t i = 0; i < l->count; i++)
        if (memcmp(l->v[i].batch, id, sizeof(kn_id)) == 0) return &l->v[i];
    return NULL;
}

/* The text of the answer to a seal, copied; its code in *code. */
static void seal_said(struct fixture *f, const kn_id id, int *code, char text[256]) {
    struct kn_msg m = {.type = KN_MSG_SUBMIT_SEAL};
    memcpy(m.u.submit_seal.batch, id, sizeof(kn_id));
    const struct kn_reply *r = &ask(f, &m, KN_MSG_REPLY)->u.reply;
    *code = r->code;
    snprintf(text, 256, "%s", r->text);
}

static void redis_of(struct fixture *f, const char *verb, const kn_id id, const char *rest) {
    char text[KN_UUID_TEXT], command[256];
    kn_uuid_format(id, text);
    snprintf(command, sizeof command, "%s kiln:b:%s%s", verb, text, rest);
    test_redis_ask(&f->redis, command);
}

static int stored_state(struct fixture *f, const kn_id id) {
    char text[KN_UUID_TEXT], command[128];
    kn_uuid_format(id, text);
    snprintf(command, sizeof command, "hget kiln:b:%s state", text);
    return atoi(test_redis_ask(&f->redis, command));
}

TEST(promise_admit_a_batch_that_cannot_be_read_back_is_set_aside_and_the_rest_starts) {
    struct fixture f;
    static const kn_id other[] = {{0xd, 1}, {0xd, 2}, {0xd, 3}, {0xd, 4}, {0xd, 5}, {0xd, 6}};
    static const struct {
        const char *verb, *rest, *reason;
    } damage[] = {
        {"del", ":c", "1 of 1 chunks are missing"},
        {"del", "", "is not there, or lacks a part"},
        {"hset", ":c 0 garbage", "chunk 0"},
        {"hset", " begin garbage", ""},
        {"set", ":f text", "WRONGTYPE"},
        {"setrange", ":r 0 x", "not what kiln writes there"},
    };
    enum { DAMAGES = sizeof damage / sizeof damage[0] };
    setup_with(&f, true);
    hello(&f);
    for (int i = 0; i < DAMAGES; i++) submit(&f, other[i], 1);
    submit(&f, batch_a, 2);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    for (int i = 0; i < DAMAGES; i++) redis_of(&f, damage[i].verb, other[i], damage[i].rest);
    CHECK_STR(test_redis_ask(&f.redis, "zadd kiln:batches 99 nonsense"), "1");
    stop(&f);
    start(&f);
    hello(&f);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.done, 1);
    for (int i = 0; i < DAMAGES; i++) {
        const struct kn_batch_status *s = status_line(&f, other[i]);
        CHECK(s != NULL);
        CHECK_INT((int)s->state, KN_BATCH_ASIDE);
        CHECK_MSG(s->wait_text[0] && strstr(s->wait_text, damage[i].reason), "%d: %s", i, s->wait_text);
        CHECK_INT(seal(&f, other[i]), 0); /* it was accepted, and that is said again */
        CHECK_INT(command(&f, other[i], KN_VERB_CANCEL), KN_ECORRUPT);
    }
    /* Nothing of them was changed, and a person may remove them. */
    stop(&f);
    start(&f);
    for (int i = 0; i < DAMAGES; i++) {
        CHECK(status_line(&f, other[i]) != NULL);
        CHECK_INT(command(&f, other[i], KN_VERB_REMOVE), 0);
        CHECK(status_line(&f, other[i]) == NULL);
    }
    CHECK_STR(test_redis_ask(&f.redis, "zcard kiln:batches"), "2"); /* the good one, and what is no id */
    teardown(&f);
}

TEST(promise_admit_a_batch_whose_end_was_not_written_before_a_kill_is_read_back) {
    struct fixture f;
    setup_with(&f, true);
    hello(&f);
    submit(&f, batch_a, 1);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    stop(&f);
    redis_of(&f, "hset", batch_a, " state 1");
    start(&f); /* reading back finds something to write */
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    for (int i = 0; i < 1000 && stored_state(&f, batch_a) != KN_BATCH_DONE; i++) run_ms(&f, 10);
    CHECK_INT(stored_state(&f, batch_a), KN_BATCH_DONE);
    teardown(&f);
}

TEST(promise_admit_no_object_leaves_while_a_batch_is_set_aside) {
    struct fixture f;
    setup_with(&f, true);
    hello(&f);
    submit(&f, batch_a, 1);
    submit(&f, batch_b, 1);
    CHECK_INT(picture(&f, batch_a, 0, "shared", false), 0);
    CHECK_INT(picture(&f, batch_b, 0, "shared", false), 0);
    redis_of(&f, "del", batch_a, ":c");
    stop(&f);
    start(&f);
    CHECK_INT((int)status_line(&f, batch_a)->state, KN_BATCH_ASIDE);
    CHECK_INT(command(&f, batch_b, KN_VERB_REMOVE), 0);
    struct kn_msg m = {.type = KN_MSG_REPAIR_COMMAND};
    CHECK_U64(ask(&f, &m, KN_MSG_REPAIR_REPLY)->u.repair_reply.moved, 0);
    CHECK(object_there(&f, "shared")); /* the batch that is set aside names it, and nobody can read that */
    CHECK_INT(command(&f, batch_a, KN_VERB_REMOVE), 0);
    ask(&f, &m, KN_MSG_REPAIR_REPLY);
    for (int i = 0; i < 1000 && object_there(&f, "shared"); i++) run_ms(&f, 10);
    CHECK(!object_there(&f, "shared"));
    teardown(&f);
}

TEST(promise_admit_what_was_only_begun_is_cleared_away_and_may_begin_again) {
    struct fixture f;
    setup_with(&f, true);
    hello(&f);
    CHECK_INT(begin(&f, batch_a, 2000, "m"), 0);
    CHECK_INT(chunk(&f, batch_a, 0, 1000, 64), 0);
    redis_of(&f, "hset", batch_a, ":c 0 garbage");
    stop(&f);
    start(&f);
    hello(&f);
    CHECK(status_line(&f, batch_a) == NULL); /* nobody was told that it is accepted */
    CHECK_INT(seal(&f, batch_a), KN_ENOENT);
    submit(&f, batch_a, 1500);
    stop(&f);
    start(&f);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.total, 1500);
    teardown(&f);
}

TEST(promise_admit_a_refused_seal_is_refused_again_in_the_same_words) {
    struct fixture f;
    int code[2];
    char text[2][256];
    setup_with(&f, true);
    hello(&f);
    CHECK_INT(begin(&f, batch_a, 1, "m"), 0);
    CHECK_INT(chunk(&f, batch_a, 0, 1, 64), 0);
    redis_of(&f, "del", batch_a, ":c"); /* the store lost the chunk, and refuses */
    for (int i = 0; i < 2; i++) seal_said(&f, batch_a, &code[i], text[i]);
    CHECK_INT(code[0], KN_ESTATE);
    CHECK_INT(code[1], code[0]);
    CHECK_STR(text[1], text[0]);
    CHECK_INT(chunk(&f, batch_a, 0, 1, 64), 0); /* sent again, it is as good as ever */
    CHECK_INT(seal(&f, batch_a), 0);
    /* Gone altogether: the client is told to begin again, each time. */
    CHECK_INT(begin(&f, batch_b, 1, "m"), 0);
    CHECK_INT(chunk(&f, batch_b, 0, 1, 64), 0);
    redis_of(&f, "del", batch_b, "");
    for (int i = 0; i < 2; i++) seal_said(&f, batch_b, &code[i], text[i]);
    CHECK_INT(code[0], KN_ENOENT);
    CHECK_INT(code[1], code[0]);
    CHECK_STR(text[1], text[0]);
    submit(&f, batch_b, 1);
    teardown(&f);
}

TEST(promise_admit_what_is_staged_and_not_sealed_has_a_bound_and_the_farm_starts_again) {
    struct fixture f;
    int code = 0;
    uint32_t begun = 0;
    setup(&f);
    hello(&f);
    /* So many submissions of one client, none of them sealed. */
    for (; begun < 1000 && code == 0; begun++) {
        kn_id id = {0xe, (uint8_t)begun, (uint8_t)(begun >> 8)};
        code = begin(&f, id, 1500, "m");
    }
    CHECK_INT(code, KN_ELIMIT);
    CHECK_INT((int)begun, 65);
    /* So many bytes of one client: the chunk that would go beyond is refused, and so is every other of its
     * batches, until something is sealed. As if most of a very large one were here already: */
    struct kept_batch *b = batches_find(&f.s->batches, (kn_id){0xe, 3});
    const size_t most = ((size_t)512 << 20) - 100;
    b->chunk_bytes += most;
    f.s->batches.staged_bytes += most;
    CHECK_INT(chunk(&f, b->id, 0, 1000, 64), KN_ELIMIT);
    CHECK_INT(chunk(&f, (kn_id){0xe, 4}, 0, 1000, 64), KN_ELIMIT);
    b->stager++; /* …of another */
    CHECK_INT(chunk(&f, (kn_id){0xe, 4}, 0, 1000, 64), 0);
    f.s->batches.staged_bytes += most; /* and so many of all */
    CHECK_INT(chunk(&f, (kn_id){0xe, 4}, 1, 500, 64), KN_ELIMIT);
    CHECK_INT(chunk(&f, (kn_id){0xe, 4}, 0, 1000, 64), 0); /* what is there already takes no room */
    f.s->batches.staged_bytes -= 2 * most;
    b->chunk_bytes -= most;
    stop(&f);
    start(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    teardown(&f);
}

/* ---- promise: an answer means that the store has it */

static void wish(struct fixture *f, const kn_id id, enum kn_batch_verb verb) {
    struct kn_msg m = {.type = KN_MSG_BATCH_COMMAND, .request = ++f->client.request};
    m.u.batch_command.verb = verb;
    m.u.batch_command.argument = 5;
    memcpy(m.u.batch_command.batch, id, sizeof(kn_id));
    tell(f, &f->client, &m, NULL);
}

/* Whatever was asked before has been heard, and was not answered: a question about the farm, which needs no store,
 * is answered before it. */
static void nothing_is_answered(struct fixture *f) {
    struct kn_msg q = {.type = KN_MSG_FARM_QUERY, .request = ++f->client.request};
    tell(f, &f->client, &q, NULL);
    while (f->client.count == 0) uv_run(&f->loop, UV_RUN_ONCE);
    CHECK_INT(f->client.count, 1);
    CHECK_INT(f->client.inbox[0]->type, KN_MSG_FARM_STATUS);
    forget(&f->client);
}

static void all_are_answered(struct fixture *f, int count) {
    for (int i = 0; i < count; i++) CHECK_INT(await(f, &f->client, KN_MSG_REPLY)->u.reply.code, 0);
}

static void redis_stop(struct fixture *f) {
    CHECK_INT(kill(f->redis.pid, SIGSTOP), 0);
}

TEST(promise_durable_a_wish_is_answered_when_the_store_has_it_and_a_repeated_one_waits_for_the_same_write) {
    static const struct {
        enum kn_batch_verb before, verb; /* before: 0 for none */
        int state;
    } v[] = {{0, KN_VERB_CANCEL, KN_BATCH_CANCELLED},
             {0, KN_VERB_PAUSE, KN_BATCH_PAUSED},
             {KN_VERB_PAUSE, KN_VERB_RESUME, KN_BATCH_ACTIVE},
             {0, KN_VERB_PRIORITY, KN_BATCH_ACTIVE},
             {KN_VERB_CANCEL, KN_VERB_RETRY, KN_BATCH_ACTIVE}};
    struct fixture f;
    setup_with(&f, true);
    hello(&f);
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) {
        kn_id id = {0xf, (uint8_t)i};
        submit(&f, id, 2);
        if (v[i].before) CHECK_INT(command(&f, id, v[i].before), 0);
        int before = stored_state(&f, id);
        redis_stop(&f);
        for (int k = 0; k < 3; k++) wish(&f, id, v[i].verb);
        nothing_is_answered(&f);
        const struct kn_batch_status *s = status_line(&f, id);
        CHECK(s != NULL);
        CHECK_INT((int)s->state, before); /* what is shown is not taken back */
        CHECK_INT(kill(f.redis.pid, SIGCONT), 0);
        all_are_answered(&f, 3);
        CHECK_INT(stored_state(&f, id), v[i].state);
        CHECK_INT((int)status_line(&f, id)->state, v[i].state);
    }
    teardown(&f);
}

TEST(promise_durable_a_wish_that_was_not_answered_is_forgotten_or_kept_whole_after_a_kill) {
    struct fixture f;
    setup_with(&f, true);
    hello(&f);
    submit(&f, batch_a, 2);
    redis_stop(&f);
    wish(&f, batch_a, KN_VERB_CANCEL);
    wish(&f, batch_a, KN_VERB_CANCEL);
    wish(&f, batch_a, KN_VERB_PAUSE); /* that it was cancelled is not to be said yet either */
    nothing_is_answered(&f);
    test_redis_kill(&f.redis); /* it never read the write */
    stop(&f);
    test_redis_again(&f.redis);
    start(&f);
    hello(&f);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_ACTIVE);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.cancelled, 0);
    teardown(&f);
}

TEST(promise_durable_a_batch_is_there_until_the_store_has_forgotten_it) {
    struct fixture f;
    setup_with(&f, true);
    hello(&f);
    submit(&f, batch_a, 1);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    redis_stop(&f);
    for (int i = 0; i < 3; i++) wish(&f, batch_a, KN_VERB_REMOVE);
    nothing_is_answered(&f);
    CHECK(status_line(&f, batch_a) != NULL);
    CHECK_INT(command(&f, batch_a, KN_VERB_CANCEL), KN_ESTATE);
    CHECK(object_there(&f, "p0"));
    CHECK_INT(kill(f.redis.pid, SIGCONT), 0);
    all_are_answered(&f, 3);
    CHECK(status_line(&f, batch_a) == NULL);
    CHECK_INT(command(&f, batch_a, KN_VERB_REMOVE), KN_ENOENT);
    teardown(&f);
}

TEST(promise_durable_a_submission_is_answered_step_by_step_when_the_store_has_it) {
    struct fixture f;
    setup_with(&f, true);
    hello(&f);
    CHECK_INT(begin(&f, batch_a, 1, "m"), 0);
    CHECK_INT(chunk(&f, batch_a, 0, 1, 64), 0);
    redis_stop(&f);
    struct kn_msg m = {.type = KN_MSG_SUBMIT_SEAL};
    memcpy(m.u.submit_seal.batch, batch_a, sizeof(kn_id));
    for (int i = 0; i < 3; i++) {
        m.request = ++f.client.request;
        tell(&f, &f.client, &m, NULL);
    }
    nothing_is_answered(&f);
    CHECK(status_line(&f, batch_a) == NULL);
    test_redis_kill(&f.redis);
    test_redis_again(&f.redis); /* the coordinator lives, and writes it again */
    all_are_answered(&f, 3);
    CHECK(status_line(&f, batch_a) != NULL);
    teardown(&f);
}

TEST(promise_durable_a_worker_is_drained_when_it_has_said_so) {
    struct fixture f;
    setup(&f);
    hello(&f);
    struct kn_msg m = {.type = KN_MSG_WORKER_COMMAND};
    m.u.worker_command.worker = "w";
    for (int i = 0; i < 2; i++) {
        m.request = ++f.client.request;
        tell(&f, &f.client, &m, NULL);
    }
    nothing_is_answered(&f);
    struct kn_msg beat = {.type = KN_MSG_HEARTBEAT}; /* it has not heard of it yet */
    tell(&f, &f.worker, &beat, NULL);
    await(&f, &f.worker, KN_MSG_DRAIN_WORKER);
    nothing_is_answered(&f);
    beat.u.heartbeat.draining = true;
    tell(&f, &f.worker, &beat, NULL);
    all_are_answered(&f, 2);
    teardown(&f);
}

/* ---- promise: a store that goes back is noticed, and told everything again */

/* One batch of each kind: with an image done, cancelled, paused, half submitted. */
static const kn_id half_done = {0x11, 1}, cancelled = {0x11, 2}, paused = {0x11, 3}, half_sent = {0x11, 4};

static void fill(struct fixture *f) {
    hello(f);
    submit(f, half_done, 3);
    CHECK_INT(picture(f, half_done, 1, "p1", false), 0);
    submit(f, cancelled, 2);
    CHECK_INT(picture(f, cancelled, 0, "c0", false), 0);
    CHECK_INT(command(f, cancelled, KN_VERB_CANCEL), 0);
    submit(f, paused, 1);
    CHECK_INT(command(f, paused, KN_VERB_PAUSE), 0);
    CHECK_INT(begin(f, half_sent, 1500, "m"), 0);
    CHECK_INT(chunk(f, half_sent, 1, 500, 64), 0);
}

/* All of it is there, also for a coordinator that knows nothing but the store. */
static void check_filled(struct fixture *f, uint32_t done) {
    stop(f);
    start(f);
    hello(f);
    CHECK_INT((int)results(f, half_done, 0, 0)->status.done, (int)done);
    CHECK_INT((int)results(f, half_done, 0, 0)->status.total, 3);
    const struct kn_results_reply *r = results(f, half_done, 0, 0);
    CHECK_INT((int)r->v[0].index, 1);
    CHECK_STR(r->v[0].worker, "w");
    CHECK_INT((int)results(f, cancelled, 0, 0)->status.state, KN_BATCH_CANCELLED);
    CHECK_INT((int)results(f, cancelled, 0, 0)->status.done, 1);
    CHECK_INT((int)results(f, paused, 0, 0)->status.state, KN_BATCH_PAUSED);
    CHECK_INT(chunk(f, half_sent, 0, 1000, 64), 0);
    CHECK_INT(seal(f, half_sent), 0);
}

static bool store_note_says(struct fixture *f, const char *word) {
    struct kn_msg q = {.type = KN_MSG_FARM_QUERY};
    const struct kn_farm_status *s = &ask(f, &q, KN_MSG_FARM_STATUS)->u.farm_status;
    return strstr(s->store_note, word) != NULL;
}

TEST(promise_backward_a_flushed_store_is_told_everything_again) {
    struct fixture f;
    setup_with(&f, true);
    fill(&f);
    CHECK_STR(test_redis_ask(&f.redis, "flushall"), "OK");
    CHECK_INT(picture(&f, half_done, 2, "p2", false), 0); /* is committed behind all that */
    CHECK(store_note_says(&f, "had gone back"));
    CHECK_STR(test_redis_ask(&f.redis, "exists kiln:repairing"), "0");
    CHECK_STR(test_redis_ask(&f.redis, "get kiln:format"), "1");
    check_filled(&f, 2);
    CHECK_INT((int)f.s->alarms, 0);
    teardown(&f);
}

static void redis_files(struct fixture *f, const char *from, const char *to) {
    char command[256];
    snprintf(command, sizeof command, "rm -rf %s/%s && cp -r %s/%s %s/%s", f->redis.dir, to, f->redis.dir,
             from, f->redis.dir, to);
    CHECK_INT(system(command), 0);
}

/* A token that was taken back must not come back with the old copy, and one that was made since must not be lost. */
TEST(promise_backward_tokens_are_those_that_the_coordinator_knows) {
    struct fixture f;
    struct kn_msg m = {.type = KN_MSG_TOKEN_NEW}, gone = {.type = KN_MSG_TOKEN_REMOVE};
    static const uint8_t old[8] = {1}, newer[8] = {2};
    setup_with(&f, true);
    m.u.token_new =
        (struct kn_token_new){.id = old, .id_len = 8, .role = KN_ROLE_WORKER, .name = "", .uses = 1};
    CHECK_INT(ask_code(&f, &m), 0);
    CHECK_STR(test_redis_ask(&f.redis, "--raw hkeys kiln:tokens"), "0100000000000000");
    redis_files(&f, "appendonlydir", "copy");
    gone.u.token_remove.id = old;
    gone.u.token_remove.id_len = 8;
    CHECK_INT(ask_code(&f, &gone), 0);
    m.u.token_new.id = newer;
    CHECK_INT(ask_code(&f, &m), 0);
    test_redis_kill(&f.redis);
    redis_files(&f, "copy", "appendonlydir");
    test_redis_again(&f.redis);
    for (int i = 0; i < 2000 && !store_note_says(&f, "had gone back"); i++) run_ms(&f, 5);
    gone.u.token_remove.id = (const uint8_t *)"12345678"; /* behind all that */
    CHECK_INT(ask_code(&f, &gone), 0);
    CHECK_STR(test_redis_ask(&f.redis, "--raw hkeys kiln:tokens"), "0200000000000000");
    teardown(&f);
}

TEST(promise_backward_a_farm_that_writes_nothing_notices_too) {
    struct fixture f;
    setup_with(&f, true);
    fill(&f);
    CHECK_STR(test_redis_ask(&f.redis, "flushall"), "OK");
    for (int i = 0; i < 2000 && !store_note_says(&f, "had gone back"); i++) run_ms(&f, 5);
    CHECK(store_note_says(&f, "had gone back"));
    check_filled(&f, 1);
    teardown(&f);
}

TEST(promise_backward_an_older_copy_that_is_put_back_is_told_what_it_lacks) {
    struct fixture f;
    setup_with(&f, true);
    fill(&f);
    redis_files(&f, "appendonlydir", "copy");
    CHECK_INT(picture(&f, half_done, 0, "p0", false), 0);
    submit(&f, batch_b, 1);
    test_redis_kill(&f.redis);
    redis_files(&f, "copy", "appendonlydir");
    test_redis_again(&f.redis);
    CHECK_INT(picture(&f, half_done, 2, "p2", false), 0);
    CHECK(store_note_says(&f, "had gone back"));
    stop(&f);
    start(&f);
    hello(&f);
    CHECK_INT((int)results(&f, half_done, 0, 0)->status.done, 3);
    CHECK_INT((int)results(&f, batch_b, 0, 0)->status.total, 1);
    teardown(&f);
}

TEST(promise_backward_a_store_that_is_behind_the_farms_folder_is_not_begun_with) {
    struct fixture f;
    struct kn_err err = {0};
    struct store *store = NULL;
    setup_with(&f, true);
    fill(&f);
    stop(&f);
    redis_files(&f, "appendonlydir", "copy");
    CHECK_STR(test_redis_ask(&f.redis, "flushall"), "OK");
    struct store_redis_options o = {.address = f.redis.address, .lead_ms = 600, .mark = f.mark};
    for (int i = 0; i < 2; i++) {
        CHECK_INT(store_redis_open(&o, &store, &err), KN_ESTATE);
        CHECK_MSG(strstr(err.text, "has gone back") && strstr(err.text, f.mark), "%s", err.text);
    }
    CHECK_STR(test_redis_ask(&f.redis, "dbsize"), "0"); /* nothing was written into it */
    test_redis_kill(&f.redis);
    redis_files(&f, "copy", "appendonlydir"); /* the right data is put back */
    test_redis_again(&f.redis);
    start(&f);
    check_filled(&f, 1);
    stop(&f);
    CHECK_STR(test_redis_ask(&f.redis, "flushall"), "OK");
    CHECK_INT(unlink(f.mark), 0); /* or a person accepts what there is */
    start(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    teardown(&f);
}

TEST(promise_backward_settings_that_lose_writes_stop_them_until_they_are_mended) {
    struct fixture f;
    struct kn_msg q = {.type = KN_MSG_FARM_QUERY};
    setup_with(&f, true);
    fill(&f);
    const struct kn_farm_status *s;
    CHECK_STR(test_redis_ask(&f.redis, "config set appendonly no"), "OK");
    for (int i = 0; i < 2000; i++) {
        s = &ask(&f, &q, KN_MSG_FARM_STATUS)->u.farm_status;
        if (s->store_text[0]) break;
        run_ms(&f, 5);
    }
    CHECK_MSG(strstr(s->store_text, "appendonly yes (it is no)") != NULL, "%s", s->store_text);
    wish(&f, paused, KN_VERB_RESUME);
    wish(&f, half_done, KN_VERB_PAUSE);
    nothing_is_answered(&f);
    CHECK_STR(test_redis_ask(&f.redis, "config set appendonly yes"), "OK");
    all_are_answered(&f, 2);
    CHECK_INT(command(&f, paused, KN_VERB_PAUSE), 0);
    CHECK_INT(command(&f, half_done, KN_VERB_RESUME), 0);
    check_filled(&f, 1);
    teardown(&f);
}

TEST(promise_backward_at_the_limit_of_memory_a_removal_is_taken_before_what_waits) {
    struct fixture f;
    setup_with(&f, true);
    fill(&f);
    submit(&f, batch_a, 1);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    CHECK_STR(test_redis_ask(&f.redis, "config set maxmemory 1"), "OK");
    wish(&f, paused, KN_VERB_RESUME);
    nothing_is_answered(&f);
    wish(&f, batch_a, KN_VERB_REMOVE);
    CHECK_INT(await(&f, &f.client, KN_MSG_REPLY)->u.reply.code, 0);
    CHECK(status_line(&f, batch_a) == NULL);
    redis_of(&f, "exists", batch_a, "");
    CHECK_INT((int)status_line(&f, paused)->state, KN_BATCH_PAUSED);
    CHECK_STR(test_redis_ask(&f.redis, "config set maxmemory 0"), "OK");
    all_are_answered(&f, 1);
    CHECK_INT((int)status_line(&f, paused)->state, KN_BATCH_ACTIVE);
    teardown(&f);
}

/* ---- tickets */

/* The result of the next grant, which is of one task, as its worker sends it. */
static struct kn_image_result result_of_grant(struct fixture *f, const char *text,
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

/* What a hello says of it while its picture is not acknowledged. */
static struct kn_held_shard held_of(struct kn_image_result *r) {
    struct kn_held_shard h = {.shard = r->shard,
                              .term = r->term,
                              .tasks = &r->task,
                              .task_count = 1,
                              .ticket = r->ticket,
                              .ticket_len = r->ticket_len};
    memcpy(h.batch, r->batch, sizeof h.batch);
    return h;
}

TEST(promise_ticket_a_result_that_nobody_was_granted_is_refused) {
    struct fixture f;
    uint8_t ticket[TICKET_BYTES_MAX + 8] = {0};
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 2);
    const struct kn_image_result good = result_of_grant(&f, "p0", ticket);
    submit(&f, batch_b, 2);
    struct kn_image_result r = good;
    r.ticket_len = 0; /* its worker knows of tickets */
    CHECK_INT(answer_to(&f, &r, "p0"), KN_EPERM);
    r = good;
    r.shard++;
    CHECK_INT(answer_to(&f, &r, "p0"), KN_EPERM);
    r = good;
    r.term++;
    CHECK_INT(answer_to(&f, &r, "p0"), KN_EPERM);
    r = good;
    r.worker = "w2";
    CHECK_INT(answer_to(&f, &r, "p0"), KN_EPERM);
    r = good;
    memcpy(r.batch, batch_b, sizeof(kn_id));
    CHECK_INT(answer_to(&f, &r, "p0"), KN_EPERM);
    r.task = 1;
    CHECK_INT(answer_to(&f, &r, "p0"), KN_EPERM);
    for (size_t i = 0; i < good.ticket_len; i++) { /* any bit of it, and any length */
        r = good;
        ticket[i] ^= 1;
        CHECK_INT(answer_to(&f, &r, "p0"), KN_EPERM);
        ticket[i] ^= 1;
        r.ticket_len = i;
        if (i > 0) CHECK_INT(answer_to(&f, &r, "p0"), KN_EPERM);
    }
    r.ticket_len = good.ticket_len + 8;
    CHECK_INT(answer_to(&f, &r, "p0"), KN_EPERM);
    CHECK(!object_there(&f, "p0"));
    CHECK_INT(answer_to(&f, &good, "p0"), 0);
    CHECK(object_there(&f, "p0"));
    /* Nor does a stranger's raise an alarm by other pixels. */
    r = good;
    r.ticket_len = 0;
    r.pixels_sha256[0] ^= 1;
    CHECK_INT(answer_to(&f, &r, "p0"), KN_EEXIST);
    CHECK_U64(f.s->alarms, 0);
    teardown(&f);
}

TEST(promise_ticket_a_late_result_is_taken_by_any_later_coordinator) {
    struct fixture f;
    uint8_t ticket[TICKET_BYTES_MAX];
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    const struct kn_image_result r = result_of_grant(&f, "p0", ticket);
    for (int i = 0; i < 3; i++) {
        stop(&f);
        start(&f);
    }
    CHECK_INT(answer_to(&f, &r, "p0"), 0); /* its worker has not even said hello to this one */
    teardown(&f);
}

TEST(promise_ticket_what_a_worker_holds_goes_on_where_a_ticket_shows_it) {
    struct fixture f;
    uint8_t ticket[TICKET_BYTES_MAX];
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    struct kn_image_result r = result_of_grant(&f, "p0", ticket);
    struct kn_held_shard held = held_of(&r);
    stop(&f);
    start(&f);
    hello_with(&f, &held, false);
    CHECK(farm_holds(f.s->farm, "w", r.shard, r.term, batch_a, 0));
    stop(&f);
    start(&f);
    held.ticket_len = 0;
    hello_with(&f, &held, false);
    CHECK_U64(await(&f, &f.worker, KN_MSG_SHARD_REVOKE)->u.shard_revoke.shard, r.shard);
    CHECK(!farm_holds(f.s->farm, "w", r.shard, r.term, batch_a, 0));
    teardown(&f);
}

TEST(promise_ticket_a_worker_of_before_tickets_is_believed_for_what_this_coordinator_granted_it) {
    struct fixture f;
    uint8_t ticket[TICKET_BYTES_MAX];
    setup(&f);
    hello_with(&f, NULL, true);
    submit(&f, batch_a, 1);
    struct kn_image_result r = result_of_grant(&f, "p0", ticket);
    r.ticket_len = 0;
    r.shard++;
    CHECK_INT(answer_to(&f, &r, "p0"), KN_EPERM);
    r.shard--;
    CHECK_INT(answer_to(&f, &r, "p0"), 0);
    /* Another coordinator does not know what it holds, and has it rendered again. */
    submit(&f, batch_b, 1);
    struct kn_msg done = {.type = KN_MSG_SHARD_DONE, .u.shard_done = {r.shard, r.term, 5, 1}};
    tell(&f, &f.worker, &done, NULL);
    r = result_of_grant(&f, "p1", ticket);
    r.ticket_len = 0;
    stop(&f);
    start(&f);
    CHECK_INT(answer_to(&f, &r, "p1"), KN_EPERM);
    struct kn_held_shard held = held_of(&r);
    hello_with(&f, &held, true);
    CHECK_U64(await(&f, &f.worker, KN_MSG_SHARD_REVOKE)->u.shard_revoke.shard, r.shard);
    r = result_of_grant(&f, "p1", ticket);
    r.ticket_len = 0;
    CHECK_INT(answer_to(&f, &r, "p1"), 0);
    teardown(&f);
}

TEST(promise_ticket_the_secret_outlives_coordinators_and_a_store_that_goes_back) {
    struct fixture f;
    kn_digest before;
    setup_with(&f, true);
    memcpy(before, f.s->store->secret, sizeof before);
    stop(&f);
    start(&f);
    CHECK(memcmp(before, f.s->store->secret, sizeof before) == 0);
    CHECK_STR(test_redis_ask(&f.redis, "flushall"), "OK");
    for (int i = 0; i < 2000 && !store_note_says(&f, "had gone back"); i++) run_ms(&f, 5);
    stop(&f);
    start(&f);
    CHECK(memcmp(before, f.s->store->secret, sizeof before) == 0);
    teardown(&f);
}

/* ---- pictures that are none */

/* Brings these bytes under their own digest, as the picture of the task. */
static int answer_to_bytes(struct fixture *f, const kn_id id, uint32_t task, const void *bytes, size_t len,
                           const kn_digest pixels) {
    uint8_t ticket[TICKET_BYTES_MAX];
    struct kn_msg m = {.type = KN_MSG_IMAGE_RESULT};
    struct kn_blob blob = {malloc(len), len, free_data, NULL};
    m.u.image_result = result(f, id, task, "x", ticket);
    memcpy(blob.data, bytes, len);
    kn_sha256(bytes, len, m.u.image_result.sha256);
    memcpy(m.u.image_result.pixels_sha256, pixels, sizeof(kn_digest));
    tell(f, &f->data, &m, &blob);
    return await(f, &f->data, KN_MSG_IMAGE_ACK)->u.image_ack.code;
}

static size_t objects_kept(struct fixture *f) {
    char line[KN_PATH_MAX + 64], count[32] = "";
    snprintf(line, sizeof line, "find %s -type f | wc -l", f->s->objects);
    FILE *p = popen(line, "r");
    CHECK(p && fgets(count, sizeof count, p) != NULL);
    pclose(p);
    return (size_t)atoi(count);
}

TEST(promise_picture_what_is_no_picture_as_asked_is_not_kept) {
    struct fixture f;
    struct png_of png, small;
    uint8_t bytes[sizeof png.bytes + 1] = {0};
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 2);
    png_of("p0", 64, 64, &png);
    png_of("p0", 64, 56, &small);
    /* A picture of this worker was decoded: from now on most are parsed alone. */
    CHECK_INT(picture(&f, batch_a, 1, "p1", false), 0);
    CHECK_INT(answer_to_bytes(&f, batch_a, 0, "no picture", 10, png.pixels), KN_ECORRUPT);
    CHECK_INT(answer_to_bytes(&f, batch_a, 0, small.bytes, small.len, small.pixels), KN_ECORRUPT);
    memcpy(bytes, png.bytes, png.len);
    CHECK_INT(answer_to_bytes(&f, batch_a, 0, bytes, png.len + 1, png.pixels), KN_ECORRUPT);
    for (size_t i = 0; i < png.len; i += 3) {
        bytes[i] ^= 0x10;
        CHECK_INT(answer_to_bytes(&f, batch_a, 0, bytes, png.len, png.pixels), KN_ECORRUPT);
        bytes[i] ^= 0x10;
        if (i > 0) CHECK_INT(answer_to_bytes(&f, batch_a, 0, bytes, i, png.pixels), KN_ECORRUPT);
    }
    CHECK_INT((int)objects_kept(&f), 1);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.failed, 0);
    CHECK_INT(answer_to_bytes(&f, batch_a, 0, png.bytes, png.len, png.pixels), 0);
    teardown(&f);
}

TEST(
    promise_bounds_pictures_that_there_is_no_room_for_are_refused_after_a_while_and_asked_for_when_there_is) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 2);
    size_t before = f.s->committing;
    f.s->committing = 1u << 20; /* as when Redis stands still */
    server_flow(f.s);
    CHECK(!server_refuses(f.s)); /* they wait at the worker at first */
    f.s->full_ms = kn_clock_ms() - 60000;
    CHECK_INT(picture(&f, batch_a, 0, "one", false), KN_EAGAIN);
    CHECK(!object_there(&f, "one"));
    f.s->committing = before;
    await(&f, &f.worker, KN_MSG_PICTURES_WANTED);
    CHECK_INT(picture(&f, batch_a, 0, "one", false), 0);
    CHECK_INT(picture(&f, batch_a, 1, "two", false), 0);
    teardown(&f);
}

TEST(promise_picture_the_first_of_a_worker_is_decoded_and_all_of_one_that_was_wrong) {
    struct fixture f;
    struct png_of bad, good;
    char noise[48];
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 4);
    png_of("p0", 64, 64, &good);
    /* Whole by its chunks, and no picture; one that is not in the sample. */
    int n = 0;
    do {
        snprintf(noise, sizeof noise, "nothing that was deflated %d", n++);
        png_of_bytes(noise, strlen(noise), 64, 64, &bad);
    } while (kn_hash64(bad.sha256, sizeof bad.sha256, *(uint64_t *)(void *)f.s->store->secret) %
                 INSPECT_ONE_IN ==
             0);
    CHECK(inspect_wanted(f.s, "w", bad.sha256));
    inspect_good(f.s, "w");
    CHECK(!inspect_wanted(f.s, "w", bad.sha256));
    inspect_bad(f.s, "w");
    CHECK(inspect_wanted(f.s, "w", bad.sha256));
    CHECK_INT(answer_to_bytes(&f, batch_a, 0, bad.bytes, bad.len, bad.pixels), KN_ECORRUPT);
    /* Other pixels than were told: it was wrong once, and is looked at for ever. */
    CHECK_INT(answer_to_bytes(&f, batch_a, 0, good.bytes, good.len, bad.pixels), KN_ECORRUPT);
    CHECK_INT(answer_to_bytes(&f, batch_a, 0, good.bytes, good.len, good.pixels), 0);
    CHECK_INT(answer_to_bytes(&f, batch_a, 1, bad.bytes, bad.len, bad.pixels), KN_ECORRUPT);
    /* Of a worker that is well, what the sample leaves out is parsed alone. */
    inspect_fini(f.s);
    CHECK_INT(answer_to_bytes(&f, batch_a, 1, bad.bytes, bad.len, bad.pixels), KN_ECORRUPT);
    inspect_fini(f.s);
    inspect_good(f.s, "w");
    CHECK_INT(answer_to_bytes(&f, batch_a, 1, bad.bytes, bad.len, bad.pixels), 0);
    teardown(&f);
}

TEST(promise_picture_a_bad_one_goes_back_at_once_and_three_in_a_row_hold_its_worker) {
    struct fixture f;
    uint8_t ticket[TICKET_BYTES_MAX];
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    for (int i = 0; i < 3; i++) {
        struct kn_image_result r = result_of_grant(&f, "p0", ticket);
        struct kn_msg m = {.type = KN_MSG_IMAGE_RESULT, .u.image_result = r};
        struct kn_blob blob = {strdup("no picture"), 10, free_data, NULL};
        kn_sha256("no picture", 10, m.u.image_result.sha256);
        CHECK_U64(f.s->alarms, 0);
        tell(&f, &f.data, &m, &blob);
        CHECK_INT(await(&f, &f.data, KN_MSG_IMAGE_ACK)->u.image_ack.code, KN_ECORRUPT);
        CHECK(!farm_holds(f.s->farm, "w", r.shard, r.term, batch_a, 0));
        struct kn_msg done = {.type = KN_MSG_SHARD_DONE, .u.shard_done = {r.shard, r.term, 5, 1}};
        tell(&f, &f.worker, &done, NULL);
    }
    for (int i = 0; i < 2000 && f.s->alarms == 0; i++) run_ms(&f, 1);
    CHECK_U64(f.s->alarms, 1); /* it is held */
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.failed, 0);
    teardown(&f);
}

/* Has a file stored that is whole by its chunks and no picture, as the sample may let one through. */
static void store_bad(struct fixture *f, const kn_id id, uint32_t task, struct png_of *bad) {
    char noise[48];
    inspect_good(f->s, "w");
    for (int n = 0; n == 0 || inspect_wanted(f->s, "w", bad->sha256); n++) {
        snprintf(noise, sizeof noise, "nothing that was deflated %d", n);
        png_of_bytes(noise, strlen(noise), 64, 64, bad);
    }
    CHECK_INT(answer_to_bytes(f, id, task, bad->bytes, bad->len, bad->pixels), 0);
}

TEST(promise_picture_a_retry_has_a_bad_one_rendered_again_and_its_worker_is_inspected) {
    struct fixture f;
    struct png_of bad;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 2);
    store_bad(&f, batch_a, 0, &bad);
    CHECK_INT(picture(&f, batch_a, 1, "p1", false), 0);
    CHECK(!inspect_wanted(f.s, "w", bad.sha256));
    CHECK_INT(command(&f, batch_a, KN_VERB_RETRY), 0);
    CHECK(inspect_wanted(f.s, "w", bad.sha256));
    const struct kn_batch_status *s = &results(&f, batch_a, 0, 0)->status;
    CHECK_INT((int)s->done, 1); /* the good one stays */
    CHECK_INT((int)s->state, KN_BATCH_ACTIVE);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    teardown(&f);
}

static int report(struct fixture *f, const kn_id id, uint32_t task, const kn_digest sha256) {
    struct kn_msg m = {.type = KN_MSG_PICTURE_REPORT, .u.picture_report = {.task = task}};
    memcpy(m.u.picture_report.batch, id, sizeof(kn_id));
    memcpy(m.u.picture_report.sha256, sha256, sizeof(kn_digest));
    return ask_code(f, &m);
}

TEST(promise_picture_a_report_voids_what_is_bad_and_nothing_else) {
    struct fixture f;
    struct png_of bad, good;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 2);
    store_bad(&f, batch_a, 0, &bad);
    png_of("p1", 64, 64, &good);
    CHECK_INT(picture(&f, batch_a, 1, "p1", false), 0);
    CHECK_INT(report(&f, batch_a, 1, good.sha256), KN_ESTATE); /* whoever says so is not believed */
    CHECK_INT(report(&f, batch_a, 1, bad.sha256), KN_ENOENT);
    CHECK_INT(report(&f, batch_a, 9, bad.sha256), KN_ENOENT);
    CHECK_INT(report(&f, batch_b, 0, bad.sha256), KN_ENOENT);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.done, 2);
    CHECK_INT(report(&f, batch_a, 0, bad.sha256), 0);
    for (int i = 0; i < 2000 && results(&f, batch_a, 0, 0)->status.done == 2; i++) run_ms(&f, 1);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.done, 1);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    teardown(&f);
}

/* The farm made its name of another than the hello says. */
TEST(the_models_of_a_worker_that_the_farm_named_are_there) {
    struct fixture f;
    struct kn_model_info models[] = {model()};
    struct kn_msg m = {.type = KN_MSG_WORKER_HELLO}, q = {.type = KN_MSG_MODELS_QUERY};
    setup(&f);
    m.u.worker_hello = (struct kn_worker_hello){.worker = "h-0",
                                                .name_base = "h",
                                                .has_machine = true,
                                                .host = "h",
                                                .backend = "class-1",
                                                .credit = 1,
                                                .batch_max = 8,
                                                .models = models,
                                                .model_count = 1};
    m.u.worker_hello.instance[0] = m.u.worker_hello.machine[0] = 1;
    tell(&f, &f.worker, &m, NULL);
    CHECK_STR(await(&f, &f.worker, KN_MSG_WELCOME)->u.welcome.worker, "h");
    CHECK_U64(ask(&f, &q, KN_MSG_MODEL_LIST)->u.model_list.count, 1);
    teardown(&f);
}
