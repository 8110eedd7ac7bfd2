/* The shards a worker holds, and the pictures that wait for their acknowledgement. */
#include "tests/unit/check.h"

#include "worker/shards.h"
#include "worker/uploads.h"

static struct kn_msg *grant(uint64_t shard, uint64_t term, uint32_t first, uint32_t count) {
    static char prompt[] = "p", negative[] = "";
    uint32_t index[KN_SHARD_TASKS_MAX];
    struct kn_task tasks[KN_SHARD_TASKS_MAX];
    struct kn_msg m = {.type = KN_MSG_SHARD_GRANT}, *out = NULL;
    for (uint32_t i = 0; i < count; i++) {
        index[i] = first + i;
        tasks[i] = (struct kn_task){.prompt = prompt,
                                    .negative = negative,
                                    .seed = i,
                                    .cfg = 7,
                                    .steps = 20,
                                    .width = 64,
                                    .height = 64,
                                    .sampler = KN_SAMPLER_EULER,
                                    .schedule = KN_SCHEDULE_NORMAL,
                                    .set = KN_SET_ALL};
    }
    m.u.shard_grant =
        (struct kn_shard_grant){.shard = shard, .term = term, .index = index, .tasks = tasks, .count = count};
    struct kn_buf b;
    kn_buf_init(&b, KN_FRAME_BYTES_MAX);
    CHECK_INT(kn_msg_encode(&m, &b, NULL), 0);
    CHECK_INT(kn_msg_decode(b.data, b.len, &out, NULL), 0);
    kn_buf_fini(&b);
    return out;
}

static int hold(struct shards *l, uint64_t shard, uint64_t term, uint32_t first, uint32_t count) {
    struct grant *one = grant_create(grant(shard, term, first, count), NULL);
    int rc = shards_take(l, one);
    grant_unref(one);
    return rc;
}

static const kn_id batch = {0};

TEST(a_worker_holds_no_more_than_its_credit) {
    struct shards l;
    shards_init(&l, 2);
    CHECK_INT(hold(&l, 1, 1, 0, 4), 0);
    CHECK_INT(hold(&l, 1, 1, 0, 4), KN_EEXIST);
    CHECK_INT(hold(&l, 1, 2, 4, 4), 0); /* the same number of another term is another shard */
    CHECK_INT(hold(&l, 3, 1, 8, 4), KN_ELIMIT);
    CHECK_U64(shards_waiting(&l), 2);
    shards_fini(&l);
    CHECK_U64(l.count, 0);
}

TEST(a_shard_is_done_when_all_its_pictures_are_acknowledged) {
    struct shards l;
    enum shard_end how;
    uint32_t left[KN_SHARD_TASKS_MAX];
    shards_init(&l, 3);
    CHECK_INT(hold(&l, 1, 1, 10, 3), 0);
    struct held_shard *x = shards_find(&l, 1, 1);
    CHECK_U64(shard_outstanding(x, left), 3);
    shard_started(x);
    CHECK(shards_running(&l) == x && shards_waiting(&l) == 0);
    for (uint32_t i = 0; i < 3; i++) shard_image(x, i);
    shard_finished(x, 500, 3, false);
    CHECK(shards_running(&l) == NULL);
    CHECK(shards_over(&l, &how) == NULL);
    shards_acknowledged(&l, batch, 10);
    shards_acknowledged(&l, batch, 12);
    CHECK(shards_over(&l, &how) == NULL);
    CHECK_U64(shard_outstanding(x, left), 1);
    CHECK_INT(left[0], 11);
    shards_acknowledged(&l, batch, 11);
    CHECK(shards_over(&l, &how) == x);
    CHECK_INT(how, SHARD_DONE);
    CHECK_INT(x->render_ms, 500);
    shards_remove(&l, x);
    CHECK_U64(l.count, 0);
}

TEST(an_acknowledgement_before_the_end_counts) {
    struct shards l;
    enum shard_end how;
    shards_init(&l, 1);
    CHECK_INT(hold(&l, 1, 1, 0, 2), 0);
    struct held_shard *x = shards_find(&l, 1, 1);
    shard_started(x);
    shard_image(x, 0);
    shards_acknowledged(&l, batch, 0);
    shards_acknowledged(&l, batch, 1); /* of another shard with the same task: this one has not rendered it */
    shard_image(x, 1);
    shard_finished(x, 1, 2, false);
    CHECK(shards_over(&l, &how) == NULL);
    shards_acknowledged(&l, batch, 1);
    CHECK(shards_over(&l, &how) == x && how == SHARD_DONE);
    shards_fini(&l);
}

TEST(a_reported_failure_is_no_longer_outstanding) {
    struct shards l;
    enum shard_end how;
    uint32_t left[KN_SHARD_TASKS_MAX];
    shards_init(&l, 1);
    CHECK_INT(hold(&l, 1, 1, 5, 1), 0);
    struct held_shard *x = shards_find(&l, 1, 1);
    shard_started(x);
    shard_failed(x, 0);
    CHECK_U64(shard_outstanding(x, left), 0);
    shard_finished(x, 1, 0, false);
    CHECK(shards_over(&l, &how) == x && how == SHARD_DONE);
    shards_fini(&l);
}

TEST(a_shard_that_was_stopped_is_returned_once_what_it_rendered_is_safe) {
    struct shards l;
    enum shard_end how;
    shards_init(&l, 1);
    CHECK_INT(hold(&l, 1, 1, 0, 3), 0);
    struct held_shard *x = shards_find(&l, 1, 1);
    shard_started(x);
    shard_image(x, 0);
    shard_finished(x, 1, 1, true);
    CHECK(shards_over(&l, &how) == NULL);
    shards_acknowledged(&l, batch, 0);
    CHECK(shards_over(&l, &how) == x);
    CHECK_INT(how, SHARD_RETURNED);
    CHECK(x->out_of_memory);
    shards_fini(&l);
}

TEST(removing_one_keeps_the_order_of_the_others) {
    struct shards l;
    shards_init(&l, 3);
    for (uint64_t i = 1; i <= 3; i++) CHECK_INT(hold(&l, i, 1, (uint32_t)i, 1), 0);
    shards_remove(&l, shards_find(&l, 2, 1));
    CHECK_U64(l.count, 2);
    CHECK_U64(l.v[0].grant->shard->shard, 1);
    CHECK_U64(l.v[1].grant->shard->shard, 3);
    CHECK(shards_find(&l, 2, 1) == NULL);
    shards_fini(&l);
}

/* ---- uploads */

static struct upload *a_picture(struct grant *one, uint32_t place, size_t len) {
    struct upload *up = calloc(1, sizeof *up);
    struct kn_buf b;
    void *room;
    kn_buf_init(&b, len);
    CHECK_INT(kn_buf_reserve(&b, len, &room), 0);
    memset(room, 1, len);
    b.len = len;
    up->grant = grant_ref(one);
    up->place = place;
    up->png = bytes_create(&b);
    return up;
}

static uint32_t place_of(const struct uploads *u) {
    return uploads_next(u) ? uploads_next(u)->place : 99;
}

TEST(pictures_are_sent_in_order_within_a_window) {
    struct uploads u;
    struct grant *one = grant_create(grant(1, 1, 0, 5), NULL);
    CHECK_INT(uploads_init(&u, 100, 250), 0);
    CHECK(uploads_next(&u) == NULL);
    CHECK_U64(uploads_oldest_ms(&u), UINT64_MAX);
    for (uint32_t i = 0; i < 4; i++) CHECK_INT(uploads_add(&u, a_picture(one, i, 100)), 0);
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_INT(place_of(&u), i);
        uploads_sent(&u, uploads_next(&u), 1000 + i);
    }
    CHECK(uploads_next(&u) == NULL); /* a third would pass the window */
    CHECK_U64(uploads_oldest_ms(&u), 1000);
    CHECK_U64(uploads_acknowledged(&u, batch, 1), 100);
    CHECK_INT(place_of(&u), 2);
    CHECK_U64(uploads_acknowledged(&u, batch, 1), 0); /* again: known */
    CHECK_U64(u.bytes, 300);
    uploads_fini(&u);
    grant_unref(one);
}

TEST(one_picture_larger_than_the_window_still_goes) {
    struct uploads u;
    struct grant *one = grant_create(grant(1, 1, 0, 2), NULL);
    CHECK_INT(uploads_init(&u, 100, 50), 0);
    CHECK_INT(uploads_add(&u, a_picture(one, 0, 100)), 0);
    CHECK_INT(uploads_add(&u, a_picture(one, 1, 100)), 0);
    CHECK_INT(place_of(&u), 0);
    uploads_sent(&u, uploads_next(&u), 1);
    CHECK(uploads_next(&u) == NULL);
    CHECK_U64(uploads_acknowledged(&u, batch, 0), 100);
    CHECK_INT(place_of(&u), 1);
    uploads_fini(&u);
    grant_unref(one);
}

TEST(after_a_reconnect_all_that_is_not_acknowledged_is_sent_again) {
    struct uploads u;
    struct grant *one = grant_create(grant(1, 1, 0, 4), NULL);
    CHECK_INT(uploads_init(&u, 100, 1000), 0);
    for (uint32_t i = 0; i < 4; i++) CHECK_INT(uploads_add(&u, a_picture(one, i, 100)), 0);
    for (uint32_t i = 0; i < 3; i++) uploads_sent(&u, uploads_next(&u), 1);
    CHECK_U64(uploads_acknowledged(&u, batch, 1), 100);
    uploads_again(&u);
    CHECK_U64(u.sent_bytes, 0);
    static const uint32_t want[] = {0, 2, 3};
    for (size_t i = 0; i < 3; i++) {
        CHECK_INT(place_of(&u), want[i]);
        uploads_sent(&u, uploads_next(&u), 2);
    }
    CHECK(uploads_next(&u) == NULL);
    uploads_fini(&u);
    grant_unref(one);
}

TEST(a_picture_that_waits_already_is_refused) {
    struct uploads u;
    struct grant *one = grant_create(grant(1, 1, 0, 2), NULL), *again = grant_create(grant(2, 1, 0, 2), NULL);
    CHECK_INT(uploads_init(&u, 100, 1000), 0);
    CHECK_INT(uploads_add(&u, a_picture(one, 0, 100)), 0);
    struct upload *twice = a_picture(again, 0, 100);
    CHECK_INT(uploads_add(&u, twice), KN_EEXIST);
    upload_free(twice);
    CHECK_U64(uploads_acknowledged(&u, batch, 0), 100);
    CHECK_U64(u.count, 0);
    CHECK(u.first == NULL && u.last == NULL && u.unsent == NULL);
    uploads_fini(&u);
    grant_unref(one);
    grant_unref(again);
}
