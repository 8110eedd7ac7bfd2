/* The way into the store: what it refuses, what it says late, and what is not asked twice. */
#include "tests/sim/talk.h"

static void open_one(struct talk *t) {
    talk_begin(t);
    OPEN(t, .id = 1, .tasks = 2);
    t->store_silent = true;
}

TEST(a_refused_commit_is_asked_for_again_after_a_pause) {
    struct talk t;
    open_one(&t);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0);
    /* The store refuses: the task waits, and the store is not pressed at once. */
    STORED(&t, FX_COMMIT, .batch = 1, .task = 0, .code = KN_EIO);
    CHECK_INT(talk_count(&t, FX_COMMIT), 0);
    CHECK_INT(talk_task(&t, 1, 0), TASK_COMMITTING);
    /* The same question comes again, and the answer is that it had been written after all. */
    talk_wait(&t, 700);
    CHECK_INT(talk_count(&t, FX_COMMIT), 1);
    CHECK_STR(talk_must(&t, FX_COMMIT, 0)->u.commit.worker, "a");
    STORED(&t, FX_COMMIT, .batch = 1, .task = 0, .code = KN_EEXIST); /* it had been written after all */
    CHECK_INT(talk_task(&t, 1, 0), TASK_DONE);
    CHECK_INT(talk_must(&t, FX_ACK, 0)->u.ack.code, 0);
    talk_end(&t);
}

TEST(a_result_that_the_store_never_takes_is_rendered_again) {
    struct talk t;
    open_one(&t);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0);
    /* Refused and asked again, until the core gives up. */
    for (int i = 0; i < 20 && talk_task(&t, 1, 0) == TASK_COMMITTING; i++) {
        STORED(&t, FX_COMMIT, .batch = 1, .task = 0, .code = KN_EIO);
        if (talk_task(&t, 1, 0) == TASK_COMMITTING) talk_wait(&t, 9000);
    }
    CHECK_INT(talk_task(&t, 1, 0), TASK_QUEUED);
    CHECK(talk_must(&t, FX_ACK, 0)->u.ack.code != 0); /* the worker drops the bytes */
    talk_end(&t);
}

TEST(one_question_about_a_task_at_a_time) {
    struct talk t;
    open_one(&t);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0);
    CHECK_INT(talk_count(&t, FX_COMMIT), 1);
    /* A second result while the store has not answered for the first. */
    RESULT(&t, .conn = 8, .worker = "b", .batch = 1, .task = 0);
    CHECK_INT(talk_count(&t, FX_COMMIT), 0);
    talk_end(&t);
}

TEST(an_answer_that_was_not_asked_for_changes_nothing) {
    struct talk t;
    open_one(&t);
    /* Nothing was asked about these tasks, or they do not exist. */
    STORED(&t, FX_COMMIT, .batch = 1, .task = 0, .code = KN_OK);
    CHECK_INT(talk_task(&t, 1, 0), TASK_QUEUED);
    STORED(&t, FX_FAIL, .batch = 1, .task = 1, .code = KN_OK);
    CHECK_INT(talk_task(&t, 1, 1), TASK_QUEUED);
    STORED(&t, FX_COMMIT, .batch = 1, .task = 99, .code = KN_OK);
    STORED(&t, FX_BATCH_STATE, .batch = 5, .code = KN_OK);
    talk_end(&t);
}

TEST(a_commit_that_meets_a_cancelled_batch_is_cancelled) {
    struct talk t;
    open_one(&t);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0);
    /* Cancelled while the commit is on its way: only the other task ends at once. */
    BATCH(&t, EV_BATCH_CANCEL, .id = 1);
    CHECK_INT(talk_view(&t, 1).cancelled, 1);
    CHECK_INT(talk_view(&t, 1).running, 1);
    /* The store had heard of the cancelling first. */
    STORED(&t, FX_COMMIT, .batch = 1, .task = 0, .code = KN_EGONE);
    CHECK_INT(talk_view(&t, 1).cancelled, 2);
    CHECK_INT(talk_must(&t, FX_ACK, 0)->u.ack.code, KN_EGONE);
    talk_end(&t);
}

TEST(a_commit_that_was_ahead_of_the_cancel_stays) {
    struct talk t;
    open_one(&t);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0);
    BATCH(&t, EV_BATCH_CANCEL, .id = 1);
    /* The store had written the commit before it heard of the cancelling. */
    STORED(&t, FX_COMMIT, .batch = 1, .task = 0, .code = KN_OK);
    CHECK_INT(talk_view(&t, 1).done, 1);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_CANCELLED);
    talk_end(&t);
}

TEST(a_refused_failure_is_asked_for_until_it_is_written) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    /* The task fails for good, but the store refuses to write that, a dozen times. */
    t.store_silent = true;
    FAILED(&t, .conn = 7, .batch = 1, .task = 0, .shard = s.id, .code = KN_ENAN);
    for (int i = 0; i < 12; i++) {
        CHECK_INT(talk_count(&t, FX_FAIL), 1);
        STORED(&t, FX_FAIL, .batch = 1, .task = 0, .code = KN_EIO);
        CHECK_INT(talk_view(&t, 1).running, 1);
        t.now += 8000;
        farm_effects_clear(&t.fx);
        struct farm_event tick = {.type = EV_TICK};
        CHECK_INT(farm_step(t.farm, &tick, t.now, &t.fx), 0);
    }
    STORED(&t, FX_FAIL, .batch = 1, .task = 0, .code = KN_OK);
    CHECK_INT(talk_task(&t, 1, 0), TASK_FAILED);
    talk_end(&t);
}

TEST(a_state_that_was_refused_is_asked_for_again_and_the_newest_wins) {
    struct talk t;
    open_one(&t);
    BATCH(&t, EV_BATCH_PAUSE, .id = 1);
    CHECK_INT(talk_must(&t, FX_BATCH_STATE, 0)->u.batch_state.state, KN_BATCH_PAUSED);
    /* Resumed before the store has answered for the pause. */
    BATCH(&t, EV_BATCH_RESUME, .id = 1);
    CHECK_INT(talk_count(&t, FX_BATCH_STATE), 0); /* one at a time */
    /* The pause could not be written: only the newest state is asked for again. */
    STORED(&t, FX_BATCH_STATE, .batch = 1, .code = KN_EIO);
    talk_wait(&t, 1500);
    CHECK_INT(talk_must(&t, FX_BATCH_STATE, 0)->u.batch_state.state, KN_BATCH_ACTIVE);
    STORED(&t, FX_BATCH_STATE, .batch = 1, .code = KN_OK);
    CHECK_INT(talk_count(&t, FX_BATCH_STATE), 0);
    talk_end(&t);
}

TEST(who_lost_the_lead_hands_out_nothing_any_more) {
    struct talk t;
    open_one(&t);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0);
    /* Another coordinator leads, says the store. */
    STORED(&t, FX_COMMIT, .batch = 1, .task = 0, .code = KN_ETERM);
    /* From now on nothing is granted and nothing is written. */
    HELLO(&t, .name = "a", .conn = 7);
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 1);
    CHECK_INT(talk_count(&t, FX_COMMIT), 0);
    talk_end(&t);
}

TEST(a_result_for_an_unknown_batch_or_task_is_refused) {
    struct talk t;
    open_one(&t);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 2, .task = 0);
    CHECK_INT(talk_must(&t, FX_ACK, 0)->u.ack.code, KN_EGONE);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 2);
    CHECK_INT(talk_must(&t, FX_ACK, 0)->u.ack.code, KN_EINVAL);
    talk_end(&t);
}

TEST(what_is_wanted_can_be_asked_before_the_bytes_are_taken) {
    struct talk t;
    kn_id id, other;
    talk_begin(&t);
    talk_id(1, id, sizeof id);
    talk_id(2, other, sizeof other);
    OPEN(&t, .id = 1, .tasks = 2);
    CHECK_INT(farm_wants(t.farm, id, 0), 0);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0);
    CHECK_INT(farm_wants(t.farm, id, 0), KN_EEXIST);
    CHECK_INT(farm_wants(t.farm, other, 0), KN_EGONE);
    BATCH(&t, EV_BATCH_CANCEL, .id = 1);
    CHECK_INT(farm_wants(t.farm, id, 1), KN_EGONE);
    talk_end(&t);
}

TEST(nothing_more_is_handed_out_while_the_store_does_not_keep_up) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 8200);
    t.store_silent = true;
    struct farm_event ev = {.type = EV_RESULT};
    talk_id(1, ev.u.result.batch, sizeof ev.u.result.batch);
    CHECK_INT(farm_backend(t.farm, "cpu-a", &ev.u.result.backend), 0);
    /* As many results as may be on their way to a store that does not answer. */
    for (ev.u.result.task = 0; ev.u.result.task < 8192; ev.u.result.task++) {
        farm_effects_clear(&t.fx);
        CHECK_INT(farm_step(t.farm, &ev, t.now, &t.fx), 0);
    }
    HELLO(&t, .name = "a", .conn = 7);
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    /* One answer makes room again. */
    STORED(&t, FX_COMMIT, .batch = 1, .task = 0, .code = KN_OK);
    talk_wait(&t, 100);
    CHECK(talk_count(&t, FX_GRANT) > 0);
    talk_end(&t);
}
