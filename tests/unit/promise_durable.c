/* An answer means that the store has it. */
#include "tests/unit/coordinator_trial.h"

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
