/* Pictures that are none. */
#include "tests/unit/coordinator_trial.h"

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
