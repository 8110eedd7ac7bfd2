/* A whole worker with the simulated engine, on one loop with a coordinator that the test plays: each test
 * reads like the conversation. */
#include "tests/unit/check.h"

#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "proto/wire.h"
#include "worker/models.h"
#include "worker/worker.h"

#define PATIENCE_MS 20000
#define HEARD_MAX 4096

struct heard {
    struct kn_msg *m; /* owns */
    kn_digest bytes;  /* of what came behind it */
    size_t len;
};

/* ---- the coordinator */

static struct {
    uv_loop_t loop;
    struct kn_wire *wire;
    struct kn_sock *control, *data;
    struct kn_peer peer, data_peer;
    struct heard heard[HEARD_MAX];
    size_t count, seen; /* messages, and how many the test has looked at */
    bool welcomes, acknowledges;
    uint64_t term;
    uint32_t silence_ms;
    char dir[64], endpoint[128], data_endpoint[128];
    /* the worker */
    struct engine *engine;
    struct model_list models;
    struct worker *worker;
    int ended, status; /* how often, and with what */
    const char *name;  /* that the welcome gives */
} t;

static void say(const struct kn_msg *m) {
    struct kn_err err = {0};
    int rc = kn_sock_send(t.control, &t.peer, m, NULL, &err);
    CHECK_MSG(rc == 0, "%s: %s", kn_msg_name(m->type), err.text);
}

static void say_welcome(void) {
    struct kn_msg m = {.type = KN_MSG_WELCOME,
                       .u.welcome = {.term = t.term,
                                     .heartbeat_ms = 20,
                                     .silence_ms = t.silence_ms,
                                     .data_ipc = t.data_endpoint,
                                     .objects_dir = "",
                                     .version = "test",
                                     .worker = t.name ? t.name : ""}};
    say(&m);
}

static void say_ack(const struct kn_image_result *r, int code) {
    struct kn_msg m = {.type = KN_MSG_IMAGE_ACK, .u.image_ack = {.task = r->task, .code = code}};
    memcpy(m.u.image_ack.batch, r->batch, sizeof r->batch);
    if (kn_sock_send(t.control, &t.peer, &m, NULL, NULL) !=
        0) { /* after a restart, before the hello: it comes again */
    }
}

static void on_recv(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                    struct kn_blob *blob) {
    (void)ctx;
    if (s == t.control)
        t.peer = *peer;
    else
        t.data_peer = *peer;
    if (t.count == HEARD_MAX) abort();
    struct heard *h = &t.heard[t.count++];
    *h = (struct heard){.m = m};
    if (blob) {
        kn_sha256(blob->data, blob->len, h->bytes);
        h->len = blob->len;
    }
    if (m->type == KN_MSG_WORKER_HELLO && t.welcomes) say_welcome();
    if (m->type == KN_MSG_IMAGE_RESULT && t.acknowledges) say_ack(&m->u.image_result, 0);
}

static void listen_now(void) {
    struct kn_err err = {0};
    struct kn_sock_options control = {.router = true, .recv = on_recv}, data = control;
    data.blobs = true;
    CHECK_INT(kn_sock_create(t.wire, &control, &t.control, &err), 0);
    CHECK_INT(kn_sock_create(t.wire, &data, &t.data, &err), 0);
    CHECK_MSG(kn_sock_bind(t.control, t.endpoint, NULL, &err) == 0, "%s", err.text);
    CHECK_MSG(kn_sock_bind(t.data, t.data_endpoint, NULL, &err) == 0, "%s", err.text);
}

static void die(void) {
    kn_sock_destroy(t.control);
    kn_sock_destroy(t.data);
    t.control = t.data = NULL;
}

static void on_tick(uv_timer_t *h) {
    (void)h;
}

/* Turns the loop once or until something was heard. */
static void turn(uint64_t ms) {
    uv_timer_t tick;
    uint64_t end = kn_clock_ms() + ms;
    size_t before = t.count;
    uv_timer_init(&t.loop, &tick);
    uv_timer_start(&tick, on_tick, 2, 2);
    do {
        uv_run(&t.loop, UV_RUN_ONCE);
    } while (t.count == before && kn_clock_ms() < end && !t.ended);
    uv_close((uv_handle_t *)&tick, NULL);
    uv_run(&t.loop, UV_RUN_NOWAIT);
}

/* The next message of a type that the test has not looked at; heartbeats are passed over unless asked for. */
static struct heard *expect(enum kn_msg_type type) {
    uint64_t end = kn_clock_ms() + PATIENCE_MS;
    for (;;) {
        for (; t.seen < t.count; t.seen++) {
            struct heard *h = &t.heard[t.seen];
            if (h->m->type == type) {
                t.seen++;
                return h;
            }
            CHECK_MSG(h->m->type == KN_MSG_HEARTBEAT, "waiting for %s, but %s came", kn_msg_name(type),
                      kn_msg_name(h->m->type));
        }
        CHECK_MSG(kn_clock_ms() < end, "no %s came", kn_msg_name(type));
        turn(100);
    }
}

/* What is heard for a while, heartbeats aside. */
static int heard_within(uint64_t ms) {
    int n = 0;
    for (uint64_t end = kn_clock_ms() + ms; kn_clock_ms() < end;) turn(10);
    for (; t.seen < t.count; t.seen++) n += t.heard[t.seen].m->type != KN_MSG_HEARTBEAT;
    return n;
}

/* ---- the worker */

static void on_ended(void *ctx, int status) {
    (void)ctx;
    t.ended++;
    t.status = status;
}

static void start(const char *spec, uint32_t credit, uint64_t unacked_bytes_max, uint32_t resend_ms) {
    struct kn_err err = {0};
    const char *more =
        getenv("KILN_TEST_SIM"); /* ",staged=1": all of this once more with an engine in stages */
    char with[160];
    snprintf(with, sizeof with, "%s%s", spec, more ? more : "");
    spec = with;
    struct engine_options eo = {.spec = spec, .program = KILN_WORKER, .hang_ms = 300};
    struct engine_sim_options so;
    struct kn_model_info info;
    memset(&t, 0, sizeof t);
    kn_log_level_now = getenv("KILN_TEST_LOG") ? KN_LOG_DEBUG : KN_LOG_ERROR;
    t.welcomes = t.acknowledges = true;
    t.term = 7;
    t.silence_ms = 60000;
    strcpy(t.dir, "/tmp/kn-worker-XXXXXX");
    CHECK(mkdtemp(t.dir) != NULL);
    snprintf(t.endpoint, sizeof t.endpoint, "ipc://%s/c", t.dir);
    snprintf(t.data_endpoint, sizeof t.data_endpoint, "ipc://%s/d", t.dir);
    CHECK_INT(uv_loop_init(&t.loop), 0);
    CHECK_INT(kn_wire_create(&t.loop, &t.wire, &err), 0);
    CHECK_INT(engine_sim_parse(spec, &so, &err), 0);
    engine_sim_model(&so, &info);
    CHECK_INT(models_add(&t.models, &info, &err), 0);
    CHECK_MSG(engine_open_child(&eo, t.models.v, t.models.count, &t.engine, &err) == 0, "%s", err.text);
    struct worker_options wo = {.loop = &t.loop,
                                .wire = t.wire,
                                .engine = t.engine,
                                .join = t.endpoint,
                                .name = "w",
                                .credit = credit,
                                .unacked_bytes_max = unacked_bytes_max,
                                .resend_ms = resend_ms,
                                .ended = on_ended};
    CHECK_MSG(worker_create(&wo, &t.worker, &err) == 0, "%s", err.text);
}

static void start_simply(const char *spec) {
    start(spec, 3, 1 << 20, 0);
    listen_now();
}

static void finish(void) {
    if (worker_close(t.worker)) {
        die();
        uv_run(&t.loop, UV_RUN_DEFAULT);
        worker_free(t.worker);
        CHECK_INT(uv_loop_close(&t.loop), 0);
        kn_wire_destroy(t.wire);
        engine_close(t.engine);
        models_fini(&t.models);
    }
    for (size_t i = 0; i < t.count; i++) kn_msg_destroy(t.heard[i].m);
    unlink(t.endpoint + 6);
    unlink(t.data_endpoint + 6);
    CHECK_INT(rmdir(t.dir), 0);
}

/* For a worker that leaves its engine's thread behind: as in life, its process ends without waiting for it.
 */
static void in_a_process_of_its_own(void (*test)(void)) {
    fflush(NULL);
    pid_t pid = fork();
    int status = 0;
    if (pid == 0) {
        if (setjmp(check_jump) != 0) _exit(1);
        test();
        CHECK(!worker_close(t.worker));
        die();
        kn_wire_destroy(t.wire);
        unlink(t.endpoint + 6);
        unlink(t.data_endpoint + 6);
        CHECK_INT(rmdir(t.dir), 0);
        _exit(0);
    }
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    CHECK_INT(status, 0);
}

/* ---- what the coordinator grants */

#define BATCH 0xba

static void grant(uint64_t shard, uint32_t first, uint32_t count) {
    static char prompt[] = "a red circle", negative[] = "";
    uint32_t index[KN_SHARD_TASKS_MAX];
    struct kn_task tasks[KN_SHARD_TASKS_MAX];
    for (uint32_t i = 0; i < count; i++) {
        index[i] = first + i;
        tasks[i] = (struct kn_task){.prompt = prompt,
                                    .negative = negative,
                                    .seed = first + i,
                                    .cfg = 7,
                                    .steps = 5,
                                    .width = 64,
                                    .height = 64,
                                    .sampler = KN_SAMPLER_EULER,
                                    .schedule = KN_SCHEDULE_NORMAL,
                                    .set = KN_SET_ALL};
    }
    struct kn_msg m = {
        .type = KN_MSG_SHARD_GRANT,
        .u.shard_grant = {
            .shard = shard, .term = t.term, .attempt = 1, .index = index, .tasks = tasks, .count = count}};
    memset(m.u.shard_grant.batch, BATCH, KN_UUID_BYTES);
    memcpy(m.u.shard_grant.model_sha256, t.models.v[0].info.sha256, KN_SHA256_BYTES);
    say(&m);
}

static void take_back(uint64_t shard, bool abort) {
    struct kn_msg m = {.type = KN_MSG_SHARD_REVOKE, .u.shard_revoke = {shard, t.term, abort}};
    say(&m);
}

static void expect_started(uint64_t shard) {
    CHECK_U64(expect(KN_MSG_SHARD_STARTED)->m->u.shard_started.shard, shard);
}
static const struct kn_image_result *expect_image(uint32_t task) {
    struct heard *h = expect(KN_MSG_IMAGE_RESULT);
    const struct kn_image_result *r = &h->m->u.image_result;
    CHECK_INT(r->task, task);
    CHECK(h->len > 100);
    CHECK_MEM(h->bytes, r->sha256, sizeof h->bytes);
    return r;
}
static void expect_done(uint64_t shard, uint32_t images) {
    const struct kn_shard_done *d = &expect(KN_MSG_SHARD_DONE)->m->u.shard_done;
    CHECK_U64(d->shard, shard);
    CHECK_INT(d->images, images);
}
static void expect_returned(uint64_t shard, bool out_of_memory) {
    const struct kn_shard_returned *r = &expect(KN_MSG_SHARD_RETURNED)->m->u.shard_returned;
    CHECK_U64(r->shard, shard);
    CHECK_INT(r->out_of_memory, out_of_memory);
}
static void expect_end(int status) {
    for (uint64_t end = kn_clock_ms() + PATIENCE_MS; !t.ended && kn_clock_ms() < end;) turn(20);
    CHECK_INT(t.ended, 1);
    CHECK_INT(t.status, status);
}

/* ---- the tests */

TEST(a_worker_says_hello_renders_what_it_is_granted_and_drains) {
    start_simply("sim:ms=0");
    const struct kn_worker_hello *h = &expect(KN_MSG_WORKER_HELLO)->m->u.worker_hello;
    CHECK_STR(h->worker, "w");
    CHECK_STR(h->backend, "sim-1");
    CHECK_STR(h->engine, "kiln " KN_ENGINE_VERSION);
    CHECK_INT(h->credit, 3);
    CHECK_INT(h->pid, getpid());
    CHECK_U64(h->model_count, 1);
    CHECK_STR(h->models[0].name, "sim");
    CHECK_U64(h->held_count, 0);
    expect(KN_MSG_HEARTBEAT);
    grant(1, 10, 2);
    expect_started(1);
    const struct kn_image_result *r = expect_image(10);
    CHECK_STR(r->worker, "w");
    CHECK_STR(r->backend, "sim-1");
    CHECK_INT(r->attempt, 1);
    CHECK_U64(r->term, 7);
    expect_image(11);
    expect_done(1, 2);
    worker_drain(t.worker, true, 5000, "asked");
    CHECK_STR(expect(KN_MSG_WORKER_BYE)->m->u.worker_bye.reason, "asked");
    expect_end(WORKER_EXIT_OK);
    finish();
}

/* It was dropped without a word, and granted again every five seconds. */
TEST(promise_versions_a_grant_that_cannot_be_read_is_handed_back_with_the_reason) {
    start_simply("sim:ms=100");
    expect(KN_MSG_WORKER_HELLO);
    static char prompt[] = "a red circle", negative[] = "";
    uint32_t index[1] = {0};
    struct kn_task task = {.prompt = prompt,
                           .negative = negative,
                           .cfg = 7,
                           .steps = 5,
                           .width = 64,
                           .height = 64,
                           .sampler = (enum kn_sampler)25,
                           .schedule = KN_SCHEDULE_NORMAL,
                           .set = KN_SET_ALL};
    struct kn_msg m = {
        .type = KN_MSG_SHARD_GRANT,
        .u.shard_grant = {
            .shard = 9, .term = t.term, .attempt = 1, .index = index, .tasks = &task, .count = 1}};
    memset(m.u.shard_grant.batch, BATCH, KN_UUID_BYTES);
    memcpy(m.u.shard_grant.model_sha256, t.models.v[0].info.sha256, KN_SHA256_BYTES);
    say(&m);
    const struct kn_shard_returned *r = &expect(KN_MSG_SHARD_RETURNED)->m->u.shard_returned;
    CHECK_U64(r->shard, 9);
    CHECK_U64(r->term, t.term);
    CHECK_INT(r->code, KN_EUNSUPPORTED);
    CHECK_MSG(strstr(r->reason, "cannot read it") && strstr(r->reason, "sampler"), "%s", r->reason);
    grant(1, 0, 1); /* and it goes on */
    expect_started(1);
    finish();
}

TEST(promise_versions_a_hello_lists_the_features_of_the_program) {
    start_simply("sim:ms=0");
    const struct kn_worker_hello *h = &expect(KN_MSG_WORKER_HELLO)->m->u.worker_hello;
    CHECK_U64(kn_features_of_peer(h->features, h->feature_count), kn_features());
    CHECK(h->feature_count >= KN_SAMPLER_COUNT + 2);
    finish();
}

/* An older coordinator drops a hello that it cannot read, and answers a heartbeat with HelloAgain. */
TEST(promise_versions_a_coordinator_that_answers_but_not_the_hello_is_told_of_in_words) {
    char path[64] = "/tmp/kn-worker-log-XXXXXX", text[4096] = "";
    start("sim:ms=0", 3, 1 << 20, 0);
    int log = mkstemp(path), before = dup(STDERR_FILENO);
    CHECK(log >= 0 && before >= 0);
    t.silence_ms = 200;
    listen_now();
    expect(KN_MSG_WORKER_HELLO);
    expect(KN_MSG_HEARTBEAT);
    t.welcomes = false; /* another coordinator takes over, of an older version */
    struct kn_msg m = {.type = KN_MSG_HELLO_AGAIN};
    m.u.hello_again.reason = "this connection has not said hello";
    t.seen = t.count;
    say(&m);
    expect(KN_MSG_WORKER_HELLO);
    expect(KN_MSG_HEARTBEAT);
    dup2(log, STDERR_FILENO);
    say(&m);
    expect(KN_MSG_WORKER_HELLO);
    dup2(before, STDERR_FILENO);
    CHECK(pread(log, text, sizeof text - 1, 0) > 0);
    CHECK_MSG(strstr(text, "hello_not_read") && strstr(text, "Upgrade kiln-coordinator first"), "%s", text);
    close(log);
    close(before);
    unlink(path);
    finish();
}

TEST(a_worker_has_the_name_that_the_welcome_gives) {
    start_simply("sim:ms=0");
    t.name = "w-2";
    CHECK_STR(expect(KN_MSG_WORKER_HELLO)->m->u.worker_hello.worker, "w");
    expect(KN_MSG_HEARTBEAT);
    grant(1, 10, 1);
    expect_started(1);
    CHECK_STR(expect_image(10)->worker, "w-2");
    finish();
}

TEST(a_worker_answers_a_question_at_once) {
    start_simply("sim:ms=0");
    expect(KN_MSG_WORKER_HELLO);
    expect(KN_MSG_HEARTBEAT);
    struct kn_msg m = {.type = KN_MSG_STILL_THERE, .u.still_there = {.question = 5}};
    say(&m);
    while (expect(KN_MSG_HEARTBEAT)->m->u.heartbeat.answer != 5) {
    }
    finish();
}

static const struct kn_probed *probe(uint64_t number) {
    struct kn_msg m = {.type = KN_MSG_PROBE, .u.probe = {.probe = number}};
    memcpy(m.u.probe.model_sha256, t.engine->models[0].info.sha256, KN_SHA256_BYTES);
    say(&m);
    return &expect(KN_MSG_PROBED)->m->u.probed;
}

TEST(a_probe_picture_is_rendered_for_nobody_and_tells_of_the_worker) {
    start_simply("sim:ms=0,nan=1"); /* a fate of tasks is no sickness of the worker */
    CHECK(expect(KN_MSG_WORKER_HELLO)->m->u.worker_hello.probes);
    expect(KN_MSG_HEARTBEAT);
    const struct kn_probed *p = probe(5);
    CHECK_U64(p->probe, 5);
    CHECK_INT(p->code, 0);
    CHECK_INT(probe(6)->code, 0); /* nothing of the first is left in the way of another */
    finish();
}

TEST(a_sick_worker_says_so_of_its_probe_picture) {
    static const struct {
        const char *spec;
        int code;
        const char *reason;
    } v[] = {
        {"sim:ms=0,sick=nan", KN_ENAN, "not a number"},
        {"sim:ms=0,sick=model", KN_EMODEL, "its files are gone"},
        {"sim:ms=0,sick=error", KN_EIO, "sick"},
    };
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) {
        start_simply(v[i].spec);
        expect(KN_MSG_WORKER_HELLO);
        expect(KN_MSG_HEARTBEAT);
        const struct kn_probed *p = probe(1);
        CHECK_INT(p->code, v[i].code);
        CHECK_MSG(strstr(p->reason, v[i].reason), "%s", p->reason);
        finish();
    }
}

TEST(an_answer_that_settles_nothing_frees_no_picture) {
    start_simply("sim:ms=0");
    expect(KN_MSG_WORKER_HELLO);
    t.acknowledges = false;
    turn(50);
    grant(1, 0, 1);
    expect_started(1);
    const struct kn_image_result *r = expect_image(0);
    static const int unsettled[] = {KN_EAGAIN, KN_ETERM, KN_EIO, KN_ENOMEM};
    for (size_t i = 0; i < sizeof unsettled / sizeof unsettled[0]; i++) say_ack(r, unsettled[i]);
    /* The coordinator takes pictures again, and asks for what it has not. */
    struct kn_msg m = {.type = KN_MSG_PICTURES_WANTED};
    say(&m);
    r = expect_image(0);
    say_ack(r, 0);
    expect_done(1, 1);
    finish();
}

TEST(a_worker_whose_name_is_taken_ends_and_says_so) {
    start_simply("sim:ms=0");
    t.welcomes = false;
    expect(KN_MSG_WORKER_HELLO);
    struct kn_msg m = {.type = KN_MSG_REPLY, .u.reply = {.code = KN_EEXIST, .text = "the name w is taken"}};
    say(&m);
    expect_end(WORKER_EXIT_NAME);
    finish();
}

TEST(a_shard_is_done_only_when_its_pictures_are_acknowledged) {
    start_simply("sim:ms=0");
    expect(KN_MSG_WORKER_HELLO);
    t.acknowledges = false;
    turn(50);
    grant(1, 0, 2);
    expect_started(1);
    const struct kn_image_result *a = expect_image(0), *b = expect_image(1);
    CHECK_INT(heard_within(100), 0);
    say_ack(a, 0);
    CHECK_INT(heard_within(100), 0);
    say_ack(b, KN_EGONE); /* not wanted any more: the bytes may go too */
    expect_done(1, 2);
    finish();
}

TEST(the_same_task_is_the_same_picture_from_another_shard) {
    kn_digest first;
    start_simply("sim:ms=0");
    expect(KN_MSG_WORKER_HELLO);
    turn(50);
    grant(1, 5, 1);
    expect_started(1);
    memcpy(first, expect_image(5)->sha256, sizeof first);
    expect_done(1, 1);
    grant(2, 4, 3);
    expect_started(2);
    expect_image(4);
    CHECK_MEM(expect_image(5)->sha256, first, sizeof first);
    CHECK(memcmp(expect_image(6)->sha256, first, sizeof first) != 0);
    expect_done(2, 3);
    finish();
}

TEST(what_waits_is_given_back_at_once_and_what_runs_only_by_force) {
    start_simply("sim:ms=300");
    expect(KN_MSG_WORKER_HELLO);
    turn(50);
    grant(1, 0, 2);
    grant(2, 2, 2);
    expect_started(1);
    take_back(2, false);
    expect_returned(2, false);
    take_back(1, false); /* it runs: nothing happens */
    expect_image(0);
    take_back(1, true);
    expect_returned(1, false); /* within a step */
    CHECK_INT(heard_within(100), 0);
    finish();
}

TEST(over_its_credit_and_while_it_drains_it_takes_nothing) {
    start("sim:ms=200", 2, 1 << 20, 0);
    listen_now();
    expect(KN_MSG_WORKER_HELLO);
    turn(50);
    grant(1, 10, 1);
    expect_started(1);
    grant(2, 20, 1);
    grant(3, 30, 1);
    expect_returned(3, false);
    struct kn_msg m = {.type = KN_MSG_DRAIN_WORKER, .u.drain_worker = {false, "a person's wish"}};
    say(&m);
    expect_returned(2, false);
    expect_image(10);
    expect_done(1, 1);
    grant(4, 40, 1);
    expect_returned(4, false);
    CHECK(expect(KN_MSG_HEARTBEAT)->m->u.heartbeat.draining);
    CHECK_INT(t.ended, 0); /* it stays */
    m.u.drain_worker.exit = true;
    say(&m);
    expect(KN_MSG_WORKER_BYE);
    expect_end(WORKER_EXIT_OK);
    finish();
}

static void drain_too_long(void) {
    start_simply("sim:ms=60000");
    expect(KN_MSG_WORKER_HELLO);
    turn(50);
    grant(1, 0, 1);
    expect_started(1);
    uint64_t begun = kn_clock_ms();
    worker_drain(t.worker, true, 600, "asked"); /* a step takes 12 s: the engine does not look up in time */
    expect_returned(1, false);
    expect(KN_MSG_WORKER_BYE);
    expect_end(WORKER_EXIT_OK);
    CHECK(kn_clock_ms() - begun < 3000);
}

TEST(a_drain_that_takes_too_long_stops_what_runs_and_ends_in_time) {
    in_a_process_of_its_own(drain_too_long);
}

static void leave_at_once(void) {
    start_simply("sim:ms=300");
    expect(KN_MSG_WORKER_HELLO);
    turn(50);
    grant(1, 0, 2);
    grant(2, 2, 2);
    expect_started(1);
    worker_leave_now(t.worker, 0, "asked twice");
    expect_returned(2, false);
    expect_returned(1, false);
    expect(KN_MSG_WORKER_BYE);
    expect_end(0);
}

TEST(leaving_at_once_hands_everything_back) {
    in_a_process_of_its_own(leave_at_once);
}

TEST(not_a_number_is_reported_and_the_rest_goes_on) {
    start_simply("sim:ms=0,nan=0.5,seed=3");
    expect(KN_MSG_WORKER_HELLO);
    turn(50);
    grant(1, 0, 16);
    int images = 0, failed = 0;
    bool done = false;
    while (!done) {
        for (uint64_t end = kn_clock_ms() + PATIENCE_MS; t.seen == t.count && kn_clock_ms() < end;) turn(50);
        CHECK(t.seen < t.count);
        const struct kn_msg *m = t.heard[t.seen++].m;
        images += m->type == KN_MSG_IMAGE_RESULT;
        if (m->type == KN_MSG_TASK_FAILED) {
            CHECK_INT(m->u.task_failed.code, KN_ENAN);
            CHECK(strstr(m->u.task_failed.reason, "not a number"));
            failed++;
        }
        done = m->type == KN_MSG_SHARD_DONE;
    }
    CHECK_INT(images + failed, 16);
    CHECK(images > 0 && failed > 0);
    finish();
}

TEST(out_of_memory_gives_the_shard_back_whole_and_fails_a_single_task) {
    start_simply("sim:ms=0,oom=1");
    expect(KN_MSG_WORKER_HELLO);
    turn(50);
    grant(1, 0, 2);
    expect_started(1);
    expect_returned(1, true);
    grant(2, 0, 1);
    expect_started(2);
    expect_image(0);
    expect_done(2, 1);
    finish();
}

TEST(a_model_it_has_not_fails_the_tasks_with_the_reason) {
    start_simply("sim:ms=0");
    expect(KN_MSG_WORKER_HELLO);
    turn(50);
    t.models.v[0].info.sha256[0] ^= 1;
    grant(1, 3, 1);
    t.models.v[0].info.sha256[0] ^= 1;
    struct kn_msg *m = NULL;
    for (int i = 0; i < 100 && !m; i++) {
        turn(50);
        for (; t.seen < t.count; t.seen++)
            if (t.heard[t.seen].m->type == KN_MSG_TASK_FAILED) m = t.heard[t.seen].m;
    }
    CHECK(m && m->u.task_failed.code == KN_EMODEL && m->u.task_failed.task == 3);
    finish();
}

/* ---- losing the coordinator */

TEST(a_coordinator_that_starts_again_gets_what_is_held_and_every_picture_not_acknowledged) {
    start_simply("sim:ms=0");
    expect(KN_MSG_WORKER_HELLO);
    t.acknowledges = false;
    turn(50);
    grant(1, 0, 3);
    expect_started(1);
    expect_image(0);
    say_ack(expect_image(1), 0);
    expect_image(2);
    turn(20);
    die();
    turn(100);
    t.term = 8;
    t.acknowledges = true;
    listen_now();
    const struct kn_worker_hello *h = &expect(KN_MSG_WORKER_HELLO)->m->u.worker_hello;
    CHECK_U64(h->held_count, 1);
    CHECK_U64(h->held[0].shard, 1);
    CHECK_U64(h->held[0].term, 7);
    CHECK_U64(h->held[0].task_count, 2);
    CHECK_INT(h->held[0].tasks[0], 0);
    CHECK_INT(h->held[0].tasks[1], 2);
    expect_image(0);
    expect_image(2);
    expect_done(1, 3);
    finish();
}

TEST(it_goes_on_rendering_while_nobody_is_there) {
    start_simply("sim:ms=10");
    expect(KN_MSG_WORKER_HELLO);
    turn(50);
    grant(1, 0, 5);
    grant(2, 5, 5);
    expect_started(1);
    die();
    for (uint64_t end = kn_clock_ms() + 1000; kn_clock_ms() < end;) turn(20);
    size_t before = t.count;
    listen_now();
    int done = 0;
    bool seen[10] = {false};
    for (uint64_t end = kn_clock_ms() + PATIENCE_MS; done < 2 && kn_clock_ms() < end;) {
        turn(50);
        for (; t.seen < t.count; t.seen++) {
            const struct kn_msg *m = t.heard[t.seen].m;
            CHECK(m->type != KN_MSG_SHARD_STARTED ||
                  t.seen < before); /* 2 began while nobody was there to hear it */
            if (m->type == KN_MSG_IMAGE_RESULT) seen[m->u.image_result.task] = true;
            done += m->type == KN_MSG_SHARD_DONE;
        }
    }
    CHECK_INT(done, 2);
    for (int i = 0; i < 10; i++) CHECK(seen[i]);
    finish();
}

TEST(a_task_rendered_twice_before_its_acknowledgement_is_sent_once_and_ends_both_shards) {
    start_simply("sim:ms=0");
    expect(KN_MSG_WORKER_HELLO);
    t.acknowledges = false;
    turn(50);
    grant(1, 3, 1);
    expect_started(1);
    const struct kn_image_result *r = expect_image(3);
    grant(2, 3, 1);
    expect_started(2);
    CHECK_INT(heard_within(100), 0);
    say_ack(r, 0);
    expect_done(1, 1);
    expect_done(2, 1);
    finish();
}

TEST(hello_again_is_answered_with_a_hello_and_the_pictures) {
    start_simply("sim:ms=0");
    expect(KN_MSG_WORKER_HELLO);
    t.acknowledges = false;
    turn(50);
    grant(1, 0, 1);
    expect_started(1);
    expect_image(0);
    struct kn_msg m = {.type = KN_MSG_HELLO_AGAIN, .u.hello_again = {.reason = "who are you?"}};
    say(&m);
    CHECK_U64(expect(KN_MSG_WORKER_HELLO)->m->u.worker_hello.held_count, 1);
    say_ack(expect_image(0), 0);
    expect_done(1, 1);
    finish();
}

TEST(a_silent_coordinator_is_asked_and_then_called_anew_under_another_id) {
    start("sim:ms=0", 3, 1 << 20, 0);
    t.silence_ms = 200;
    listen_now();
    expect(KN_MSG_WORKER_HELLO);
    struct kn_peer first = t.peer;
    expect(KN_MSG_WORKER_HELLO); /* a question: nothing was heard for 600 ms */
    CHECK_MEM(t.peer.id, first.id, KN_PEER_BYTES);
    t.welcomes = false;
    uint64_t end = kn_clock_ms() + PATIENCE_MS;
    while (memcmp(t.peer.id, first.id, KN_PEER_BYTES) == 0 && kn_clock_ms() < end) turn(50);
    CHECK(memcmp(t.peer.id, first.id, KN_PEER_BYTES) != 0);
    t.welcomes = true;
    say_welcome();
    t.silence_ms = 60000;
    turn(50);
    grant(1, 0, 1);
    t.seen = t.count;
    finish();
}

TEST(an_acknowledgement_that_never_comes_is_asked_for_again) {
    start("sim:ms=0", 3, 1 << 20, 300);
    listen_now();
    expect(KN_MSG_WORKER_HELLO);
    t.acknowledges = false;
    turn(50);
    grant(1, 0, 1);
    expect_started(1);
    expect_image(0);
    struct kn_peer first = t.data_peer;
    say_ack(expect_image(0), 0);
    CHECK(memcmp(t.data_peer.id, first.id, KN_PEER_BYTES) != 0);
    expect_done(1, 1);
    finish();
}

/* Pictures that nobody takes are bounded, and the engine that waits for them does not look as if it hung. */
TEST(pictures_not_acknowledged_are_bounded_and_waiting_is_no_hanging) {
    start("sim:ms=0", 3, 3000, 0);
    listen_now();
    expect(KN_MSG_WORKER_HELLO);
    t.acknowledges = false;
    turn(50);
    uint32_t count =
        200; /* 200 × 12 KB of pixels do not fill the other queue, so the encoder is what waits */
    grant(1, 0, count);
    expect_started(1);
    heard_within(300);
    size_t images = 0, bytes = 0;
    for (size_t i = 0; i < t.count; i++) {
        images += t.heard[i].m->type == KN_MSG_IMAGE_RESULT;
        bytes += t.heard[i].len;
    }
    CHECK(images > 0 && bytes < 3000 + 5000);
    struct heard *h;
    do h = expect(KN_MSG_HEARTBEAT);
    while (t.seen < t.count);
    CHECK(h->m->u.heartbeat.progress_age_ms < 1000);
    t.acknowledges = true;
    for (size_t i = 0; i < t.count; i++)
        if (t.heard[i].m->type == KN_MSG_IMAGE_RESULT) say_ack(&t.heard[i].m->u.image_result, 0);
    bool done = false;
    for (uint64_t end = kn_clock_ms() + PATIENCE_MS; !done && kn_clock_ms() < end;) {
        turn(50);
        for (; t.seen < t.count; t.seen++) done = done || t.heard[t.seen].m->type == KN_MSG_SHARD_DONE;
    }
    CHECK(done);
    finish();
}

TEST(heartbeats_tell_what_runs_and_how_far_it_is) {
    start_simply("sim:ms=500");
    expect(KN_MSG_WORKER_HELLO);
    CHECK_U64(expect(KN_MSG_HEARTBEAT)->m->u.heartbeat.shard, 0);
    grant(1, 0, 2);
    grant(2, 2, 1);
    expect_started(1);
    uint64_t end = kn_clock_ms() + PATIENCE_MS;
    const struct kn_heartbeat *b;
    do b = &expect(KN_MSG_HEARTBEAT)->m->u.heartbeat;
    while ((b->shard != 1 || b->step < 2) && kn_clock_ms() < end);
    CHECK_INT(b->steps, 5);
    CHECK_INT(b->tasks, 2);
    CHECK_INT(b->waiting, 1);
    CHECK_INT(b->batch[0], BATCH);
    CHECK(b->progress_age_ms < 400);
    finish();
}

/* All that is said of a shard of `count` tasks from 0 on, until it is done. How many failed, with this code; each of the
 * others came once. */
static int expect_all_but_the_guilty(uint32_t count, int code, const char *words) {
    int failed = 0, fate[KN_SHARD_TASKS_MAX] = {0};
    bool done = false;
    for (uint64_t end = kn_clock_ms() + PATIENCE_MS; !done;) {
        for (; t.seen < t.count && !done; t.seen++) {
            const struct kn_msg *m = t.heard[t.seen].m;
            CHECK(m->type != KN_MSG_WORKER_HELLO && m->type != KN_MSG_WORKER_BYE);
            CHECK(m->type != KN_MSG_SHARD_RETURNED);
            if (m->type == KN_MSG_IMAGE_RESULT) fate[m->u.image_result.task]++;
            done = m->type == KN_MSG_SHARD_DONE;
            if (m->type != KN_MSG_TASK_FAILED) continue;
            CHECK_INT(m->u.task_failed.code, code);
            CHECK_MSG(strstr(m->u.task_failed.reason, words), "%s", m->u.task_failed.reason);
            fate[m->u.task_failed.task]++;
            failed++;
        }
        CHECK(kn_clock_ms() < end);
        if (!done) turn(50);
    }
    for (uint32_t i = 0; i < count; i++) CHECK_MSG(fate[i] == 1, "task %u: %d", i, fate[i]);
    return failed;
}

TEST(promise_poison_a_crash_fails_its_image_alone_and_the_connection_lives) {
    start_simply("sim:ms=1,crash=0.2,seed=5");
    expect(KN_MSG_WORKER_HELLO);
    turn(50);
    grant(1, 0, 24);
    expect_started(1);
    int failed = expect_all_but_the_guilty(24, KN_EGONE, "died while it rendered this image");
    CHECK_MSG(failed > 0 && failed < 24, "%d", failed);
    grant(2, 0, 1); /* the same process goes on, over the same connection */
    expect_started(2);
    CHECK_INT(t.ended, 0);
    t.seen = t.count;
    finish();
}

TEST(promise_poison_a_hang_fails_its_image_alone_and_the_connection_lives) {
    start_simply("sim:ms=1,hang=0.2,seed=5");
    expect(KN_MSG_WORKER_HELLO);
    turn(50);
    grant(1, 0, 12);
    expect_started(1);
    int failed = expect_all_but_the_guilty(12, KN_ETIMEOUT, "no progress");
    CHECK_MSG(failed > 0 && failed < 12, "%d", failed);
    CHECK_INT(t.ended, 0);
    finish();
}

TEST(an_engine_that_does_not_stop_is_ended_and_the_next_shard_is_rendered) {
    start_simply("sim:ms=60000"); /* a step takes 12 s */
    expect(KN_MSG_WORKER_HELLO);
    turn(50);
    grant(1, 0, 1);
    expect_started(1);
    take_back(1, true);
    expect_returned(1, false);
    grant(2, 1, 1);
    expect_started(2);
    take_back(2, true);
    expect_returned(2, false);
    CHECK_INT(t.ended, 0);
    finish();
}

TEST(a_farm_that_is_not_there_is_told_at_once) {
    struct kn_err err = {0};
    struct worker *w = NULL;
    start_simply("sim:ms=0");
    struct worker_options wo = {.loop = &t.loop,
                                .wire = t.wire,
                                .engine = t.engine,
                                .join = "/nowhere/at/all",
                                .name = "w",
                                .credit = 1,
                                .unacked_bytes_max = 1,
                                .ended = on_ended};
    CHECK_INT(worker_create(&wo, &w, &err), KN_ENOENT);
    CHECK(strstr(err.text, "no farm there"));
    finish();
}
