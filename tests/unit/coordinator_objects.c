/* Objects that are lost, damaged, or in the way. */
#include "tests/unit/coordinator_trial.h"

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
