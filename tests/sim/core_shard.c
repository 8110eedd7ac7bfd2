/* Shards: what is granted, what becomes of it when workers fall silent, leave, come back or say nothing. */
#include "tests/sim/talk.h"

TEST(a_grant_requeues_once_after_worker_silence) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    talk_shard(talk_grant(&t, 7, 0));
    /* The worker was granted the task and says nothing any more. */
    talk_wait(&t, 9900);
    CHECK_INT(talk_task(&t, 1, 0), TASK_GRANTED);
    talk_wait(&t, 200);
    CHECK_INT(talk_task(&t, 1, 0), TASK_QUEUED);
    /* The next worker gets it, as the second attempt. */
    HELLO(&t, .name = "b", .conn = 8);
    CHECK_INT(talk_must_grant(&t, 8, 0)->u.grant.attempt, 2);
    CHECK_INT(talk_count(&t, FX_GRANT), 1);
    CHECK_INT(talk_count(&t, FX_CHARGE), 0); /* it had not begun */
    talk_end(&t);
}

TEST(a_worker_never_holds_more_than_its_credit) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 100);
    HELLO(&t, .name = "a", .conn = 7, .credit = 3);
    CHECK_INT(talk_count(&t, FX_GRANT), 3);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    /* Time alone gives it no more; a shard that is done makes room for one. */
    talk_wait(&t, 500);
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    RENDER(&t, .conn = 7, .worker = "a", .batch = 1, .shard = s);
    CHECK_INT(talk_count(&t, FX_GRANT), 1);
    talk_end(&t);
}

TEST(a_late_result_is_as_good_as_any) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    talk_wait(&t, 11000); /* given up; the task is queued */
    CHECK_INT(talk_task(&t, 1, 0), TASK_QUEUED);
    RESULT(&t, .conn = 99, .worker = "a", .batch = 1, .task = 0);
    CHECK_INT(talk_task(&t, 1, 0), TASK_DONE);
    CHECK_INT(talk_must(&t, FX_ACK, 0)->u.ack.code, 0);
    talk_end(&t);
}

TEST(a_duplicate_is_acknowledged_and_not_committed_again) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 2);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0, .pixels = 5);
    /* Another worker had rendered the same, with the same pixels. */
    RESULT(&t, .conn = 8, .worker = "b", .batch = 1, .task = 0, .pixels = 5);
    CHECK_INT(talk_count(&t, FX_COMMIT), 0);
    CHECK_INT(talk_must(&t, FX_ACK, 0)->u.ack.code, 0);
    CHECK_INT(talk_count(&t, FX_ALARM), 0);
    talk_end(&t);
}

TEST(a_duplicate_of_one_class_with_other_pixels_is_an_alarm) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 2);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0, .pixels = 5);
    RESULT(&t, .conn = 8, .worker = "b", .batch = 1, .task = 0, .pixels = 6);
    CHECK_INT(talk_count(&t, FX_ALARM), 1);
    talk_end(&t);
}

TEST(a_duplicate_that_differs_is_noticed_while_the_first_is_being_committed) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 2);
    t.store_silent = true;
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0, .pixels = 5);
    /* The second comes before the store has answered for the first. */
    RESULT(&t, .conn = 8, .worker = "b", .batch = 1, .task = 0, .pixels = 6);
    CHECK_INT(talk_count(&t, FX_ALARM), 1);
    CHECK_INT(talk_count(&t, FX_COMMIT), 0);
    STORED(&t, FX_COMMIT, .batch = 1, .task = 0, .code = KN_OK);
    CHECK_INT(talk_count(&t, FX_ACK), 2); /* both may forget their bytes */
    talk_end(&t);
}

TEST(two_classes_may_have_different_pixels) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 2);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0, .pixels = 5);
    RESULT(&t, .conn = 8, .worker = "b", .backend = "cuda-b", .batch = 1, .task = 0, .pixels = 6);
    CHECK_INT(talk_count(&t, FX_ALARM), 0);
    talk_end(&t);
}

TEST(images_that_never_come_are_rendered_again) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    /* All images were sent, says the worker, but none arrives. */
    DONE(&t, .conn = 7, .shard = s.id, .render_ms = 10);
    CHECK_INT(talk_task(&t, 1, 0), TASK_GRANTED); /* it may be on its way */
    /* It stays there, idle, until the images are given up; it is granted the task again after a pause. */
    for (int i = 0; i < 4; i++) {
        talk_wait(&t, 1000);
        CHECK_INT(talk_count(&t, FX_CHARGE), 0);
        HEARTBEAT(&t, .conn = 7);
    }
    talk_wait(&t, 1000);
    CHECK(!talk_must(&t, FX_CHARGE, 0)->u.charge.charged);
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    talk_wait(&t, 300);
    CHECK_INT(talk_count(&t, FX_GRANT), 1);
    talk_end(&t);
}

TEST(a_returned_shard_is_queued_uncharged) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    RETURNED(&t, .conn = 7, .shard = s.id);
    CHECK_INT(talk_task(&t, 1, 0), TASK_QUEUED); /* not back to the same worker at once */
    CHECK_INT(talk_count(&t, FX_CHARGE), 0);
    talk_wait(&t, 1000);
    CHECK_INT(talk_task(&t, 1, 0), TASK_GRANTED);
    talk_end(&t);
}

TEST(who_is_not_known_is_asked_to_say_hello_again) {
    struct talk t;
    talk_begin(&t);
    /* Before any hello; after one; and when the worker was given up for its silence. */
    HEARTBEAT(&t, .conn = 7);
    CHECK_INT(talk_must(&t, FX_HELLO_AGAIN, 0)->conn, 7);
    HELLO(&t, .name = "a", .conn = 7);
    HEARTBEAT(&t, .conn = 7);
    CHECK_INT(talk_count(&t, FX_HELLO_AGAIN), 0);
    talk_wait(&t, 11000);
    HEARTBEAT(&t, .conn = 7); /* given up meanwhile */
    CHECK_INT(talk_count(&t, FX_HELLO_AGAIN), 1);
    talk_end(&t);
}

TEST(news_of_a_shard_that_has_ended_is_dropped_with_a_note) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7);
    STARTED(&t, .conn = 7, .shard = 12345);
    DONE(&t, .conn = 7, .shard = 12345, .render_ms = 1);
    CHECK_INT(talk_count(&t, FX_NOTE), 1);
    FAILED(&t, .conn = 7, .batch = 1, .task = 0, .shard = 12345, .code = KN_EIO);
    CHECK_INT(talk_count(&t, FX_CHARGE), 0);
    talk_end(&t);
}

TEST(goodbye_requeues_uncharged) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 2);
    HELLO(&t, .name = "a", .conn = 7);
    /* It holds two shards of one task each, and begins the first. */
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    t.now += 1000;
    HEARTBEAT(&t, .conn = 7); /* through with it, its picture is on its way */
    GONE(&t, .conn = 7, .bye = true);
    CHECK_INT(talk_view(&t, 1).queued, 2);
    CHECK_INT(talk_count(&t, FX_CHARGE), 0);
    talk_end(&t);
}

TEST(goodbye_in_the_middle_of_an_image_charges_it) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 2);
    HELLO(&t, .name = "a", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    /* It leaves while it executes the first of its two shards. */
    STARTED(&t, .conn = 7, .shard = s.id);
    GONE(&t, .conn = 7, .bye = true); /* its engine failed; else it would have handed the shard back */
    CHECK_INT(talk_must(&t, FX_CHARGE, 0)->task, s.tasks[0]);
    CHECK_INT(talk_count(&t, FX_CHARGE), 1);
    talk_end(&t);
}

TEST(a_broken_connection_gives_back_what_waits_and_keeps_what_runs) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 2);
    HELLO(&t, .name = "a", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    /* It executes one of its two shards when the connection breaks. */
    STARTED(&t, .conn = 7, .shard = s.id);
    GONE(&t, .conn = 7);
    CHECK_INT(talk_view(&t, 1).running, 1);
    CHECK_INT(talk_view(&t, 1).queued, 1);
    talk_wait(&t, 10000); /* it does not come back */
    CHECK_INT(talk_count(&t, FX_CHARGE), 1);
    CHECK_INT(talk_view(&t, 1).queued, 2);
    talk_end(&t);
}

TEST(the_same_process_over_a_new_connection_goes_on) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 2);
    HELLO(&t, .name = "a", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    /* The connection breaks while it executes one of its two shards … */
    GONE(&t, .conn = 7);
    /* … and the process comes back, still holding that one. */
    struct farm_held held = {.shard = s.id, .term = 1, .tasks = s.tasks, .task_count = s.count};
    talk_id(1, held.batch, sizeof held.batch);
    HELLO(&t, .name = "a", .conn = 8, .held = &held, .held_count = 1);
    CHECK_INT(talk_count(&t, FX_REVOKE), 0);
    CHECK_INT(talk_count(&t, FX_GRANT), 1); /* the one that waited */
    /* It finishes as if nothing had happened. */
    RESULT(&t, .conn = 8, .worker = "a", .batch = 1, .task = s.tasks[0]);
    DONE(&t, .conn = 8, .shard = s.id, .render_ms = 10);
    CHECK_INT(talk_view(&t, 1).done, 1);
    CHECK_INT(talk_count(&t, FX_NOTE), 0);
    talk_end(&t);
}

TEST(what_the_process_no_longer_holds_is_queued) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 2);
    HELLO(&t, .name = "a", .conn = 7);
    uint64_t first = talk_must_grant(&t, 7, 0)->u.grant.shard;
    HELLO(&t, .name = "a", .conn = 8); /* the grants were lost with the connection */
    CHECK_INT(talk_count(&t, FX_GRANT), 2);
    CHECK(talk_must_grant(&t, 8, 0)->u.grant.shard != first);
    CHECK_INT(talk_count(&t, FX_CHARGE), 0);
    talk_end(&t);
}

TEST(a_hello_said_twice_does_not_end_what_is_on_its_way) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 2);
    HELLO(&t, .name = "a", .conn = 7);
    CHECK_INT(talk_count(&t, FX_GRANT), 2);
    HELLO(&t, .name = "a", .conn = 7); /* sent before the grants arrived */
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    CHECK_INT(talk_view(&t, 1).running, 2);
    talk_end(&t);
}

TEST(a_new_coordinator_adopts_what_workers_hold) {
    struct talk t;
    struct farm_config c;
    farm_config_default(&c);
    c.term = 5;
    talk_begin_with(&t, &c);
    OPEN(&t, .id = 1, .tasks = 3);
    /* The worker holds tasks 1 and 2 by a grant of the coordinator before, of term 4. */
    const uint32_t tasks[] = {1, 2};
    struct farm_held held = {.shard = 77, .term = 4, .tasks = tasks, .task_count = 2};
    talk_id(1, held.batch, sizeof held.batch);
    HELLO(&t, .name = "a", .conn = 7, .held = &held, .held_count = 1);
    CHECK_INT(talk_count(&t, FX_GRANT), 1);
    CHECK_INT(talk_must_grant(&t, 7, 0)->u.grant.tasks[0], 0); /* the rest is its own already */
    CHECK_INT(talk_task(&t, 1, 1), TASK_GRANTED);
    /* A result of an adopted shard counts as any other. */
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 1, .pixels = 1);
    CHECK_INT(talk_task(&t, 1, 1), TASK_DONE);
    talk_end(&t);
}

TEST(what_nobody_wants_any_more_is_taken_from_who_says_hello) {
    struct talk t;
    talk_begin(&t);
    const uint32_t tasks[] = {1, 2};
    struct farm_held held = {.shard = 77, .term = 4, .tasks = tasks, .task_count = 2};
    talk_id(9, held.batch, sizeof held.batch); /* no such batch */
    HELLO(&t, .name = "a", .conn = 7, .held = &held, .held_count = 1);
    CHECK_INT(talk_must(&t, FX_REVOKE, 0)->u.revoke.shard, 77);
    CHECK_INT(talk_must(&t, FX_REVOKE, 0)->u.revoke.term, 4);
    talk_end(&t);
}

TEST(a_shard_that_an_idle_worker_never_begins_was_lost) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    uint64_t first = talk_must_grant(&t, 7, 0)->u.grant.shard;
    /* Its heartbeats say that it is idle: the grant never arrived. */
    uint32_t grants = 0;
    for (int i = 0; i < 30 && grants == 0; i++) {
        HEARTBEAT(&t, .conn = 7);
        grants += talk_count(&t, FX_GRANT);
        talk_wait(&t, 500);
        grants += talk_count(&t, FX_GRANT);
    }
    CHECK_INT(grants, 1);
    CHECK(talk_must_grant(&t, 7, 0)->u.grant.shard != first);
    talk_end(&t);
}

TEST(a_draining_worker_gets_nothing_more) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7);
    struct farm_event ev = {.type = EV_WORKER_DRAIN};
    ev.u.drain.worker = "a";
    ev.u.drain.exit = true;
    CHECK_INT(talk_step(&t, ev), 0);
    CHECK(talk_must(&t, FX_DRAIN, 0)->u.drain.exit);
    /* Work comes, but not to the one that drains. */
    OPEN(&t, .id = 1, .tasks = 5);
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    ev.u.drain.worker = "nobody";
    CHECK_INT(talk_step(&t, ev), KN_ENOENT);
    /* A new process under the same name does not drain. */
    GONE(&t, .conn = 7);
    HELLO(&t, .name = "a", .conn = 8, .instance = 2); /* started again */
    CHECK_INT(talk_count(&t, FX_GRANT), 2);
    talk_end(&t);
}

TEST(who_hands_everything_back_is_asked_less_and_less_often) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    uint32_t grants = 1;
    uint64_t shard = talk_must_grant(&t, 7, 0)->u.grant.shard;
    /* For a minute it returns each shard at once. */
    for (int i = 0; i < 600; i++) { /* a minute */
        if (shard) RETURNED(&t, .conn = 7, .shard = shard);
        shard = 0;
        talk_wait(&t, 100);
        if (talk_grant(&t, 7, 0)) shard = talk_grant(&t, 7, 0)->u.grant.shard;
        grants += shard != 0;
        if (i % 20 == 0) HEARTBEAT(&t, .conn = 7);
        if (talk_grant(&t, 7, 0) && !shard) shard = talk_grant(&t, 7, 0)->u.grant.shard;
    }
    CHECK_MSG(grants >= 5 && grants <= 15, "%u", grants);
    talk_end(&t);
}
