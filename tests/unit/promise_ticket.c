/* A result needs a grant, and a grant a ticket. */
#include "tests/unit/coordinator_trial.h"

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
