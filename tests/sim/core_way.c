/* The way of a task that goes well, and what a person may do on the way. */
#include "tests/sim/talk.h"

TEST(a_task_goes_from_queue_to_done) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    CHECK_INT(talk_task(&t, 1, 0), TASK_QUEUED);
    /* A worker comes and is granted the task. */
    HELLO(&t, .name = "w", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    CHECK_INT(s.count, 1);
    CHECK_INT(talk_task(&t, 1, 0), TASK_GRANTED);
    /* It renders the task; the store is asked, and has not answered yet. */
    t.store_silent = true;
    STARTED(&t, .conn = 7, .shard = s.id);
    RESULT(&t, .conn = 7, .worker = "w", .batch = 1, .task = 0);
    CHECK_INT(talk_count(&t, FX_COMMIT), 1);
    CHECK_INT(talk_count(&t, FX_ACK), 0);
    CHECK_INT(talk_task(&t, 1, 0), TASK_COMMITTING);
    /* The store has it: the worker may forget the bytes, and the batch is done. */
    STORED(&t, FX_COMMIT, .batch = 1, .task = 0, .code = KN_OK);
    CHECK_INT(talk_must(&t, FX_ACK, 0)->u.ack.code, 0);
    CHECK_INT(talk_task(&t, 1, 0), TASK_DONE);
    CHECK_INT(talk_must(&t, FX_BATCH_STATE, 0)->u.batch_state.state, KN_BATCH_DONE);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_DONE);
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
        RENDER(t, .conn = conn, .worker = worker, .batch = batch, .shard = s);
    }
}

TEST(one_worker_renders_a_batch_of_several_groups) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "w", .conn = 7);
    OPEN(&t, .id = 1, .tasks = 100, .group_count = 3);
    render_all(&t, 7, "w", 1);
    CHECK_INT(talk_view(&t, 1).done, 100);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_DONE);
    talk_end(&t);
}

TEST(cancel_takes_everything_back_and_ends_the_rest) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "w", .conn = 7);
    OPEN(&t, .id = 1, .tasks = 10);
    /* Two shards wait at the worker, eight tasks are queued. */
    BATCH(&t, EV_BATCH_CANCEL, .id = 1);
    CHECK_INT(talk_count(&t, FX_REVOKE), 2);
    CHECK(talk_must(&t, FX_REVOKE, 0)->u.revoke.abort);
    CHECK_INT(talk_view(&t, 1).cancelled, 10);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_CANCELLED);
    talk_end(&t);
}
