/* The way of a task that goes well, and what a person may do on the way. */
#include "tests/sim/talk.h"

TEST(a_task_goes_from_queue_to_done) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    CHECK_INT(talk_task(&t, 1, 0), TASK_QUEUED);
    HELLO(&t, .name = "w", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    CHECK_INT(s.count, 1);
    CHECK_INT(talk_task(&t, 1, 0), TASK_LEASED);
    t.store_silent = true;
    talk_started(&t, 7, s.id);
    talk_result(&t, 7, "w", "cpu-a", 1, 0, 0);
    CHECK_INT(talk_count(&t, FX_COMMIT), 1);
    CHECK_INT(talk_count(&t, FX_ACK), 0);
    CHECK_INT(talk_task(&t, 1, 0), TASK_COMMITTING);
    talk_stored(&t, FX_COMMIT, 1, 0, 0);
    CHECK_INT(talk_must(&t, FX_ACK, 0)->u.ack.code, 0);
    CHECK_INT(talk_task(&t, 1, 0), TASK_DONE);
    CHECK_INT(talk_must(&t, FX_BATCH_STATE, 0)->u.batch_state.state, 3);
    CHECK_INT(talk_view(&t, 1).state, 3);
    talk_end(&t);
}

/* One worker renders all that it is granted until nothing comes any more. */
static void render_all(struct talk *t, uint64_t conn, const char *worker, int batch) {
    struct talk_shard queue[64];
    uint32_t head = 0, tail = 0;
    for (;;) {
        for (uint32_t n = 0; talk_grant(t, conn, n); n++)
            queue[tail++ % 64] = talk_shard(talk_grant(t, conn, n));
        if (head == tail) return;
        struct talk_shard s = queue[head++ % 64];
        talk_started(t, conn, s.id);
        for (uint32_t i = 0; i < s.count; i++)
            talk_result(t, conn, worker, "cpu-a", batch, s.tasks[i], (int)s.tasks[i]);
        t->now += 10 * s.count;
        talk_done(t, conn, s.id, 10 * s.count, s.count);
    }
}

TEST(one_worker_renders_a_batch_of_several_groups) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "w", .conn = 7);
    OPEN(&t, .id = 1, .tasks = 100, .group_count = 3);
    render_all(&t, 7, "w", 1);
    CHECK_INT(talk_view(&t, 1).done, 100);
    CHECK_INT(talk_view(&t, 1).state, 3);
    talk_end(&t);
}

TEST(cancel_takes_everything_back_and_ends_the_rest) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "w", .conn = 7);
    OPEN(&t, .id = 1, .tasks = 10);
    talk_batch_event(&t, EV_BATCH_CANCEL, 1, 0);
    CHECK_INT(talk_count(&t, FX_REVOKE), 2);
    CHECK(talk_must(&t, FX_REVOKE, 0)->u.revoke.abort);
    CHECK_INT(talk_view(&t, 1).cancelled, 10);
    CHECK_INT(talk_view(&t, 1).state, 4);
    talk_end(&t);
}

TEST(lease_requeues_once_after_worker_silence) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    talk_shard(talk_grant(&t, 7, 0));
    talk_wait(&t, 11000);
    HELLO(&t, .name = "b", .conn = 8);
    CHECK_INT(talk_must_grant(&t, 8, 0)->u.grant.attempt, 2);
    CHECK_INT(talk_count(&t, FX_GRANT), 1);
    talk_end(&t);
}

static void heartbeat_at_step(struct talk *t, uint64_t shard, uint32_t step, uint32_t age_ms) {
    struct farm_event ev = {.type = EV_WORKER_HEARTBEAT, .conn = 7};
    ev.u.heartbeat.shard = shard;
    ev.u.heartbeat.step = step;
    ev.u.heartbeat.steps = 20;
    ev.u.heartbeat.progress_age_ms = age_ms;
    CHECK_INT(talk_step(t, ev), 0);
}

/* Heartbeats for so long, at that step and without a sign of life; whether the shard was taken away. */
static bool is_taken_within(uint32_t step, uint32_t quiet_ms) {
    struct talk t;
    bool taken = false;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    uint64_t shard = talk_shard(talk_grant(&t, 7, 0)).id;
    talk_started(&t, 7, shard);
    talk_wait(&t, 2000); /* a second a step, should there be two */
    heartbeat_at_step(&t, shard, step, 0);
    for (uint32_t age = 1000; age <= quiet_ms && !taken; age += 1000) {
        talk_wait(&t, 1000);
        taken = talk_count(&t, FX_REVOKE) > 0;
        heartbeat_at_step(&t, shard, step, age);
        taken = taken || talk_count(&t, FX_REVOKE) > 0;
    }
    talk_end(&t);
    return taken;
}

TEST(a_shard_that_hangs_between_steps_is_taken_away_by_their_measure) {
    CHECK(!is_taken_within(0, 300000)); /* its model may still be loading */
    CHECK(is_taken_within(0, 340000));
    CHECK(!is_taken_within(2, 15000)); /* 20 steps of a second */
    CHECK(is_taken_within(2, 23000));
    CHECK(is_taken_within(20, 17000)); /* quick steps: 15 s */
}
