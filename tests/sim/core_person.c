/* What a person may do with a batch, and what they see of it. */
#include "tests/sim/talk.h"

TEST(a_batch_is_opened_once) {
    struct talk t;
    talk_begin(&t);
    CHECK_INT(OPEN(&t, .id = 1, .tasks = 2), 0);
    CHECK_INT(OPEN(&t, .id = 1, .tasks = 2), KN_EEXIST);
    CHECK_INT(OPEN(&t, .id = 2, .tasks = 0), KN_EINVAL);
    CHECK_INT(OPEN(&t, .id = 2, .tasks = KN_TASKS_PER_BATCH_MAX + 1), KN_ELIMIT);
    CHECK_INT(farm_batch_count(t.farm), 1);
    talk_end(&t);
}

TEST(nobody_knows_that_batch) {
    struct talk t;
    talk_begin(&t);
    CHECK_INT(BATCH(&t, EV_BATCH_CANCEL, .id = 1), KN_ENOENT);
    CHECK_INT(BATCH(&t, EV_BATCH_REMOVE, .id = 1), KN_ENOENT);
    talk_end(&t);
}

TEST(pause_takes_back_what_waits_and_lets_finish_what_runs) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7);
    OPEN(&t, .id = 1, .tasks = 5);
    struct talk_shard runs = talk_shard(talk_grant(&t, 7, 0)), waits = talk_shard(talk_grant(&t, 7, 1));
    STARTED(&t, .conn = 7, .shard = runs.id);
    /* One shard runs and one waits; the one that waits is taken back, without force. */
    CHECK_INT(BATCH(&t, EV_BATCH_PAUSE, .id = 1), 0);
    CHECK_INT(talk_count(&t, FX_REVOKE), 1);
    CHECK_INT(talk_must(&t, FX_REVOKE, 0)->u.revoke.shard, waits.id);
    CHECK(!talk_must(&t, FX_REVOKE, 0)->u.revoke.abort);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_PAUSED);
    /* The running one is finished, and nothing more is granted … */
    RETURNED(&t, .conn = 7, .shard = waits.id);
    RENDER(&t, .conn = 7, .worker = "a", .batch = 1, .shard = runs);
    CHECK_INT(talk_view(&t, 1).done, 1);
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    /* … until a person wants it. */
    BATCH(&t, EV_BATCH_RESUME, .id = 1);
    CHECK_INT(talk_count(&t, FX_GRANT), 2);
    talk_end(&t);
}

TEST(a_batch_that_was_paused_before_a_restart_stays_so) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7);
    OPEN(&t, .id = 1, .tasks = 5, .paused = true);
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_PAUSED);
    talk_end(&t);
}

TEST(cancel_waits_for_the_worker_before_it_gives_its_place_away) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    OPEN(&t, .id = 1, .tasks = 1);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    /* Another batch waits for the place that the cancelled one holds. */
    OPEN(&t, .id = 2, .tasks = 1);
    BATCH(&t, EV_BATCH_CANCEL, .id = 1);
    CHECK_INT(talk_count(&t, FX_REVOKE), 1);
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    /* The worker has let go of it: now there is room. */
    RETURNED(&t, .conn = 7, .shard = s.id);
    CHECK_INT(talk_count(&t, FX_GRANT), 1);
    talk_end(&t);
}

TEST(an_ended_batch_cannot_be_cancelled_and_a_live_one_cannot_be_removed) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    CHECK_INT(BATCH(&t, EV_BATCH_REMOVE, .id = 1), KN_ESTATE);
    /* Its only task is done, so the batch is. */
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0);
    CHECK_INT(BATCH(&t, EV_BATCH_CANCEL, .id = 1), KN_ESTATE);
    CHECK_INT(BATCH(&t, EV_BATCH_PAUSE, .id = 1), KN_ESTATE);
    CHECK_INT(BATCH(&t, EV_BATCH_REMOVE, .id = 1), 0);
    CHECK_INT(talk_count(&t, FX_BATCH_REMOVE), 1);
    CHECK_INT(farm_batch_count(t.farm), 0);
    talk_end(&t);
}

/* A batch of two tasks that has ended: one failed, then the other was done. Gives the log of ends and its
 * epoch. */
static void fail_one(struct talk *t, uint32_t *log, uint64_t *epoch) {
    kn_id id;
    uint32_t count;
    talk_begin(t);
    OPEN(t, .id = 1, .tasks = 2);
    HELLO(t, .name = "a", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(t, 7, 0)), other = talk_shard(talk_grant(t, 7, 1));
    STARTED(t, .conn = 7, .shard = s.id);
    FAILED(t, .conn = 7, .batch = 1, .task = s.tasks[0], .shard = s.id, .code = KN_ENAN);
    DONE(t, .conn = 7, .shard = s.id);
    RENDER(t, .conn = 7, .worker = "a", .batch = 1, .shard = other);
    CHECK_INT(talk_view(t, 1).state, KN_BATCH_DONE);
    CHECK_INT(talk_view(t, 1).failed, 1);
    talk_id(1, id, sizeof id);
    CHECK_INT(farm_batch_ended(t->farm, id, 0, 10, log, &count, epoch), 0);
    CHECK_INT(count, 2);
}

TEST(retry_queues_what_failed_uncharged_in_a_new_epoch) {
    struct talk t;
    uint32_t log[10], count;
    uint64_t before, after;
    kn_id id;
    fail_one(&t, log, &before);
    uint32_t failed = log[0];
    t.store_silent = true;
    CHECK_INT(BATCH(&t, EV_BATCH_RETRY, .id = 1), 0);
    CHECK(talk_must(&t, FX_BATCH_STATE, 0)->u.batch_state.retried);
    CHECK_INT(talk_must(&t, FX_BATCH_STATE, 0)->u.batch_state.state, KN_BATCH_ACTIVE);
    CHECK_INT(talk_must_grant(&t, 7, 0)->u.grant.tasks[0], failed);
    talk_id(1, id, sizeof id);
    CHECK_INT(farm_batch_ended(t.farm, id, 0, 10, log, &count, &after), 0);
    CHECK_INT(count, 1);
    CHECK(after != before);
    talk_end(&t);
}

static int lose(struct talk *t, int batch, const uint32_t *tasks, uint32_t count) {
    struct farm_event ev = {.type = EV_OBJECTS_LOST};
    talk_id(batch, ev.u.objects_lost.batch, sizeof ev.u.objects_lost.batch);
    ev.u.objects_lost.tasks = tasks;
    ev.u.objects_lost.count = count;
    return talk_step(t, ev);
}

TEST(a_done_task_whose_object_is_lost_is_rendered_again_and_the_batch_is_active) {
    struct talk t;
    kn_id id;
    uint32_t ended[4], count;
    uint64_t epoch, later;
    const uint32_t lost[] = {1, 1, 2, 77}; /* twice the same, and one that is not there */
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    OPEN(&t, .id = 1, .tasks = 4);
    talk_id(1, id, sizeof id);
    for (uint32_t i = 0; i < 4; i++) RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = i);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_DONE);
    CHECK_INT(farm_batch_ended(t.farm, id, 0, 4, ended, &count, &epoch), 0);
    CHECK_INT(lose(&t, 1, lost, 4), 0);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_ACTIVE);
    CHECK_INT(talk_must(&t, FX_BATCH_STATE, 0)->u.batch_state.state, KN_BATCH_ACTIVE);
    CHECK(!talk_must(&t, FX_BATCH_STATE, 0)->u.batch_state.retried);
    CHECK_INT(talk_view(&t, 1).done, 2);
    CHECK_INT(farm_batch_ended(t.farm, id, 0, 4, ended, &count, &later), 0);
    CHECK_INT(count, 2);
    CHECK(later != epoch);
    /* The same pictures are welcome, and are committed a second time. */
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 1);
    CHECK_INT(talk_count(&t, FX_COMMIT), 1);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 2);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_DONE);
    CHECK_INT(talk_view(&t, 1).done, 4);
    talk_end(&t);
}

TEST(only_a_done_task_can_lose_its_object) {
    struct talk t;
    const uint32_t lost[] = {0, 1, 2};
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1, .batch_max = 1);
    OPEN(&t, .id = 1, .tasks = 3);
    t.store_silent = true;
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 2); /* on its way to the store */
    CHECK_INT(lose(&t, 1, lost, 3), 0);
    CHECK_INT(talk_task(&t, 1, 2), TASK_COMMITTING);
    CHECK_INT(talk_view(&t, 1).queued + talk_view(&t, 1).running, 3);
    CHECK_INT(lose(&t, 2, lost, 3), KN_ENOENT);
    talk_end(&t);
}

TEST(in_a_paused_batch_a_lost_object_waits_and_in_a_cancelled_one_it_is_cancelled) {
    struct talk t;
    const uint32_t lost[] = {0};
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1, .batch_max = 1);
    OPEN(&t, .id = 1, .tasks = 3);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0);
    BATCH(&t, EV_BATCH_PAUSE, .id = 1);
    CHECK_INT(lose(&t, 1, lost, 1), 0);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_PAUSED);
    CHECK_INT(talk_task(&t, 1, 0), TASK_QUEUED);
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0);
    BATCH(&t, EV_BATCH_CANCEL, .id = 1);
    CHECK_INT(lose(&t, 1, lost, 1), 0);
    CHECK_INT(talk_task(&t, 1, 0), TASK_CANCELLED);
    CHECK_INT(talk_view(&t, 1).cancelled, 3);
    CHECK_INT(BATCH(&t, EV_BATCH_REMOVE, .id = 1), 0);
    talk_end(&t);
}

TEST(retry_of_a_cancelled_batch_queues_what_was_cancelled) {
    struct talk t;
    uint32_t log[10], count;
    uint64_t before, after;
    kn_id id;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    OPEN(&t, .id = 1, .tasks = 3);
    talk_id(1, id, sizeof id);
    /* One image is done, the others are cancelled. */
    RENDER(&t, .conn = 7, .worker = "a", .batch = 1, .shard = talk_shard(talk_grant(&t, 7, 0)));
    struct talk_shard runs = talk_shard(talk_grant(&t, 7, 0));
    BATCH(&t, EV_BATCH_CANCEL, .id = 1);
    RETURNED(&t, .conn = 7, .shard = runs.id);
    CHECK_INT(talk_view(&t, 1).cancelled, 2);
    CHECK_INT(farm_batch_ended(t.farm, id, 0, 10, log, &count, &before), 0);
    CHECK_INT(BATCH(&t, EV_BATCH_RETRY, .id = 1), 0);
    CHECK_INT(talk_must(&t, FX_BATCH_STATE, 0)->u.batch_state.state, KN_BATCH_ACTIVE);
    CHECK(talk_must(&t, FX_BATCH_STATE, 0)->u.batch_state.retried);
    CHECK_INT(talk_view(&t, 1).cancelled, 0);
    CHECK_INT(talk_view(&t, 1).done, 1);
    CHECK_INT(farm_batch_ended(t.farm, id, 0, 10, log, &count, &after), 0);
    CHECK_INT(count, 1);
    CHECK(after != before);
    /* They are rendered, and the batch is done. */
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 1);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 2);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_DONE);
    talk_end(&t);
}

TEST(retry_of_a_cancelled_batch_that_lacks_nothing_ends_as_done) {
    struct talk t;
    talk_begin(&t);
    t.store_silent = true;
    OPEN(&t, .id = 1, .tasks = 1);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 0);
    BATCH(&t, EV_BATCH_CANCEL, .id = 1);
    STORED(&t, FX_COMMIT, .batch = 1, .task = 0, .code = KN_OK); /* it was faster than the cancelling */
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_CANCELLED);
    CHECK_INT(BATCH(&t, EV_BATCH_RETRY, .id = 1), 0);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_DONE);
    talk_end(&t);
}

TEST(a_failure_waits_until_the_store_knows_of_the_retry) {
    struct talk t;
    uint32_t log[10];
    uint64_t epoch;
    fail_one(&t, log, &epoch);
    t.store_silent = true;
    BATCH(&t, EV_BATCH_RETRY, .id = 1);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    /* The task fails again before the store has heard of the retry. */
    FAILED(&t, .conn = 7, .batch = 1, .task = s.tasks[0], .shard = s.id, .code = KN_ENAN);
    CHECK_INT(talk_count(&t, FX_FAIL), 0);
    talk_wait(&t, 300);
    CHECK_INT(talk_count(&t, FX_FAIL), 0);
    /* The store knows: this failure is not void. */
    STORED(&t, FX_BATCH_STATE, .batch = 1, .code = KN_OK);
    talk_wait(&t, 300);
    CHECK_INT(talk_count(&t, FX_FAIL), 1);
    talk_end(&t);
}

TEST(a_failed_task_takes_no_late_result_until_it_is_retried) {
    struct talk t;
    uint32_t log[10];
    uint64_t epoch;
    fail_one(&t, log, &epoch);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = log[0]);
    CHECK_INT(talk_must(&t, FX_ACK, 0)->u.ack.code, KN_ESTATE);
    /* After a retry the same result is welcome. */
    BATCH(&t, EV_BATCH_RETRY, .id = 1);
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = log[0]);
    CHECK_INT(talk_view(&t, 1).done, 2);
    talk_end(&t);
}

TEST(the_log_of_ends_is_in_the_order_of_the_ends) {
    struct talk t;
    uint32_t log[4], count;
    uint64_t epoch;
    kn_id id;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 4);
    const uint32_t order[] = {2, 0, 3};
    for (int i = 0; i < 3; i++) RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = order[i]);
    talk_id(1, id, sizeof id);
    CHECK_INT(farm_batch_ended(t.farm, id, 1, 10, log, &count, &epoch), 0);
    CHECK_INT(count, 2);
    CHECK_INT(log[0], 0);
    CHECK_INT(log[1], 3);
    talk_end(&t);
}

TEST(a_restart_goes_on_where_it_was) {
    struct talk t;
    talk_begin(&t);
    const struct farm_done_task ended[] = {{.task = 3, .state = TASK_DONE},
                                           {.task = 1, .state = TASK_FAILED}};
    OPEN(&t, .id = 1, .tasks = 5, .ended = ended, .ended_count = 2);
    CHECK_INT(talk_view(&t, 1).done, 1);
    CHECK_INT(talk_view(&t, 1).failed, 1);
    CHECK_INT(talk_view(&t, 1).queued, 3);
    HELLO(&t, .name = "a", .conn = 7);
    CHECK_INT(talk_must_grant(&t, 7, 0)->u.grant.tasks[0], 0);
    CHECK_INT(talk_must_grant(&t, 7, 1)->u.grant.tasks[0], 2);
    talk_end(&t);
}

TEST(a_batch_whose_last_commit_was_all_that_was_written_is_done) {
    struct talk t;
    talk_begin(&t);
    const struct farm_done_task ended[] = {{.task = 0, .state = TASK_DONE}};
    OPEN(&t, .id = 1, .tasks = 1, .ended = ended, .ended_count = 1);
    CHECK_INT(talk_must(&t, FX_BATCH_STATE, 0)->u.batch_state.state, KN_BATCH_DONE);
    talk_end(&t);
}

TEST(nonsense_from_the_store_is_refused_whole) {
    struct talk t;
    talk_begin(&t);
    const struct farm_done_task twice[] = {{.task = 0, .state = TASK_DONE}, {.task = 0, .state = TASK_DONE}};
    CHECK_INT(OPEN(&t, .id = 1, .tasks = 2, .ended = twice, .ended_count = 2), KN_EINVAL);
    const struct farm_done_task outside[] = {{.task = 2, .state = TASK_DONE}};
    CHECK_INT(OPEN(&t, .id = 1, .tasks = 2, .ended = outside, .ended_count = 1), KN_EINVAL);
    const struct farm_charge charges[] = {{7, 1}};
    CHECK_INT(OPEN(&t, .id = 1, .tasks = 2, .charges = charges, .charge_count = 1), KN_EINVAL);
    CHECK_INT(farm_batch_count(t.farm), 0);
    CHECK_INT(OPEN(&t, .id = 1, .tasks = 2), 0);
    talk_end(&t);
}

TEST(speed_and_time_left_are_seen) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1000);
    CHECK_INT(talk_view(&t, 1).eta_ms, -1); /* nothing is known */
    HELLO(&t, .name = "a", .conn = 7, .batch_max = 1);
    struct talk_shard queue[2] = {talk_shard(talk_grant(&t, 7, 0)), talk_shard(talk_grant(&t, 7, 1))};
    /* A hundred images at ten a second. */
    for (int i = 0; i < 100; i++) { /* ten a second */
        struct talk_shard s = queue[0];
        queue[0] = queue[1];
        STARTED(&t, .conn = 7, .shard = s.id);
        t.now += 100;
        RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = s.tasks[0]);
        DONE(&t, .conn = 7, .shard = s.id, .render_ms = 100);
        queue[1] = talk_shard(talk_grant(&t, 7, 0));
    }
    /* Nine hundred are left: some ninety seconds. */
    struct farm_batch_view v = talk_view(&t, 1);
    CHECK_MSG(v.images_per_s > 9 && v.images_per_s < 11, "%f", (double)v.images_per_s);
    CHECK_MSG(v.images_per_s_mean > 9 && v.images_per_s_mean < 11, "%f", (double)v.images_per_s_mean);
    CHECK_MSG(v.eta_ms > 80000 && v.eta_ms < 100000, "%lld", (long long)v.eta_ms); /* 900 left */
    struct farm_worker_view w;
    CHECK_INT(farm_worker_at(t.farm, 0, t.now, &w), 0);
    CHECK_INT(w.done, 100);
    CHECK_INT(w.state, KN_WORKER_BUSY);
    CHECK_MSG(farm_images_per_s(t.farm, t.now) > 5, "%f", (double)farm_images_per_s(t.farm, t.now));
    /* The last image is longer ago than the window that speed is measured over. */
    talk_wait(&t, 20000);
    CHECK_INT((int)talk_view(&t, 1).images_per_s, 0); /* the window has passed */
    talk_end(&t);
}
