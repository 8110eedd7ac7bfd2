/* What a person sees of a batch: why nothing of it is rendered, how far it is, and how long it will take. */
#include "tests/sim/talk.h"

/* Nothing moves, so no speed and no time left is told. */
static void check_waits(const struct talk *t, int batch, enum kn_wait why) {
    struct farm_batch_view v = talk_view(t, batch);
    CHECK_INT(v.wait, why);
    CHECK_INT(v.eta_ms, -1);
    CHECK(v.images_per_s <= 0 && v.steps_per_s <= 0);
}

TEST(a_batch_whose_model_no_worker_has_says_so) {
    struct talk t;
    uint8_t digest[KN_SHA256_BYTES];
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .models = {2});
    OPEN(&t, .id = 1, .tasks = 2);
    check_waits(&t, 1, KN_WAIT_NO_WORKER);
    talk_id(1, digest, sizeof digest);
    CHECK_MEM(talk_view(&t, 1).wait_model, digest, sizeof digest);
    CHECK_STR(talk_view(&t, 1).wait_worker, "");
    talk_end(&t);
}

TEST(a_worker_that_is_lost_does_not_count_as_having_a_model) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7);
    OPEN(&t, .id = 1, .tasks = 200);
    HEARTBEAT(&t, .conn = 7);
    CHECK_INT(talk_view(&t, 1).wait, KN_WAIT_NONE);
    /* It falls silent: that is told after four seconds, before it is given up after ten. */
    talk_wait(&t, 4100);
    check_waits(&t, 1, KN_WAIT_SILENT);
    CHECK_STR(talk_view(&t, 1).wait_worker, "a");
    talk_wait(&t, 7000);
    check_waits(&t, 1, KN_WAIT_NO_WORKER);
    CHECK_STR(talk_view(&t, 1).wait_worker, "a"); /* that had it */
    talk_end(&t);
}

TEST(workers_that_drain_or_are_of_another_class_are_named) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7);
    struct farm_event drain = {.type = EV_WORKER_DRAIN};
    drain.u.drain.worker = "a";
    CHECK_INT(talk_step(&t, drain), 0);
    OPEN(&t, .id = 1, .tasks = 2);
    check_waits(&t, 1, KN_WAIT_DRAINING);
    CHECK_STR(talk_view(&t, 1).wait_worker, "a");
    HELLO(&t, .name = "b", .conn = 8);
    OPEN(&t, .id = 2, .tasks = 2, .pin = "cuda-x");
    check_waits(&t, 2, KN_WAIT_CLASS);
    CHECK_STR(talk_view(&t, 2).wait_class, "cuda-x");
    talk_end(&t);
}

TEST(a_paused_batch_and_one_behind_another_say_so) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    OPEN(&t, .id = 1, .tasks = 50, .priority = 5);
    OPEN(&t, .id = 2, .tasks = 2, .priority = 1);
    OPEN(&t, .id = 3, .tasks = 2, .priority = 5);
    check_waits(&t, 2, KN_WAIT_PRIORITY);
    CHECK_INT(talk_number(talk_view(&t, 2).wait_batch), 1);
    check_waits(&t, 3, KN_WAIT_TURN);
    BATCH(&t, EV_BATCH_PAUSE, .id = 2);
    check_waits(&t, 2, KN_WAIT_PAUSED);
    talk_end(&t);
}

TEST(progress_and_speed_count_steps_before_the_first_picture) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1, .batch_max = 1);
    OPEN(&t, .id = 1, .tasks = 2); /* 20 steps each */
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    for (uint32_t step = 1; step <= 10; step++) { /* a step a second */
        t.now += 1000;
        HEARTBEAT(&t, .conn = 7, .shard = s.id, .step = step, .steps = 20, .minibatch = 1);
    }
    /* Ten of forty steps are made: a quarter of the batch, and half a minute is left. */
    struct farm_batch_view v = talk_view(&t, 1);
    CHECK_INT(v.done, 0);
    CHECK_MSG(v.progress > 0.24f && v.progress < 0.26f, "%f", (double)v.progress);
    CHECK_MSG(v.steps_per_s > 0.9f && v.steps_per_s < 1.2f, "%f", (double)v.steps_per_s);
    CHECK_MSG(v.eta_ms > 25000 && v.eta_ms < 34000, "%lld", (long long)v.eta_ms);
    talk_end(&t);
}

TEST(steps_are_counted_once_however_the_pictures_come) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1, .batch_max = 1);
    OPEN(&t, .id = 1, .tasks = 30);
    /* Two seconds an image, with heartbeats in the middle of each: ten steps a second, all the way. */
    for (int i = 0; i < 20; i++) {
        struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
        STARTED(&t, .conn = 7, .shard = s.id);
        t.now += 1000;
        HEARTBEAT(&t, .conn = 7, .shard = s.id, .step = 10, .steps = 20, .minibatch = 1);
        t.now += 1000;
        RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = s.tasks[0]);
        DONE(&t, .conn = 7, .shard = s.id, .render_ms = 2000);
    }
    struct farm_batch_view v = talk_view(&t, 1);
    CHECK_MSG(v.steps_per_s > 9 && v.steps_per_s < 11, "%f", (double)v.steps_per_s);
    CHECK_MSG(v.eta_ms > 18000 && v.eta_ms < 23000, "%lld", (long long)v.eta_ms); /* ten images */
    struct farm_worker_view w;
    CHECK_INT(farm_worker_at(t.farm, 0, t.now, &w), 0);
    CHECK_MSG(w.steps_per_s > 9 && w.steps_per_s < 11, "%f", (double)w.steps_per_s);
    talk_end(&t);
}

TEST(no_time_left_is_told_while_a_part_of_the_batch_cannot_be_rendered) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1, .batch_max = 1);
    OPEN(&t, .id = 1, .tasks = 20);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    for (uint32_t step = 1; step <= 4; step++) {
        t.now += 1000;
        HEARTBEAT(&t, .conn = 7, .shard = s.id, .step = step, .steps = 20, .minibatch = 1);
    }
    CHECK(talk_view(&t, 1).eta_ms > 0);
    /* The only worker drains: it finishes what it holds, and what is queued will not be rendered. */
    struct farm_event drain = {.type = EV_WORKER_DRAIN};
    drain.u.drain.worker = "a";
    CHECK_INT(talk_step(&t, drain), 0);
    CHECK_INT(talk_view(&t, 1).eta_ms, -1);
    talk_end(&t);
}

TEST(each_attempt_is_told_with_its_worker_and_whether_it_was_charged) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    FAILED(&t, .conn = 7, .batch = 1, .task = 0, .shard = s.id, .code = KN_EDEVICE);
    const struct farm_effect *e = talk_must(&t, FX_CHARGE, 0);
    CHECK(e->u.charge.charged);
    CHECK_INT(e->u.charge.charges, 1);
    CHECK_INT(e->u.charge.code, KN_EDEVICE);
    CHECK_STR(e->u.charge.worker, "a");
    CHECK_STR(e->u.charge.backend, "cpu-a");
    struct farm_task_view v;
    kn_id id;
    talk_id(1, id, sizeof id);
    CHECK_INT(farm_task_view(t.farm, id, 0, &v), 0);
    CHECK_INT(v.charges, 1);
    CHECK(v.suspect);
    CHECK_INT(farm_task_view(t.farm, id, 1, &v), KN_ENOENT);
    talk_end(&t);
}
