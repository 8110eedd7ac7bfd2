/* Who does not deliver is not believed: neither that shards are done, nor how fast it is, nor that it is there. */
#include "tests/sim/talk.h"

/* The grants to this connection among the last effects: each is answered with "begun", and at once with "done". */
static uint32_t claim_done(struct talk *t, uint64_t conn) {
    struct talk_shard granted[8];
    uint32_t count = 0;
    for (; count < 8 && talk_grant(t, conn, count); count++)
        granted[count] = talk_shard(talk_grant(t, conn, count));
    uint32_t all = count;
    for (uint32_t i = 0; i < count; i++) {
        STARTED(t, .conn = conn, .shard = granted[i].id);
        DONE(t, .conn = conn, .shard = granted[i].id, .render_ms = 1);
        all += talk_count(t, FX_GRANT);
    }
    return all;
}

TEST(who_says_done_and_brings_nothing_gets_little_and_is_held) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1000);
    HELLO(&t, .name = "liar", .conn = 7, .credit = 4);
    uint32_t grants = claim_done(&t, 7), held = 0, hopeless = 0;
    for (int i = 0; i < 6000; i++) { /* ten minutes */
        talk_wait(&t, 100);
        grants += claim_done(&t, 7);
        if (i % 10 == 0) HEARTBEAT(&t, .conn = 7);
        grants += claim_done(&t, 7);
        held += strcmp(talk_worker(&t, "liar").hold_reason,
                       "it says that shards are done, and their pictures do not come") == 0;
        hopeless += talk_view(&t, 1).held;
    }
    /* Its probe pictures come out well, so it is let in again, but later and later; the batch is not waited for. */
    printf("  %u grants in ten minutes, held for %u s\n", grants, held / 10);
    CHECK_MSG(grants <= 60, "%u grants", grants);
    CHECK(held > 4500 && hopeless > 4000);
    CHECK_INT(talk_view(&t, 1).failed, 0);
    talk_end(&t);
}

TEST(pictures_that_are_owed_are_rendered_by_others_at_the_tail) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 3);
    HELLO(&t, .name = "liar", .conn = 7, .credit = 1);
    struct talk_shard owed = talk_shard(talk_grant(&t, 7, 0));
    HELLO(&t, .name = "b", .conn = 8, .credit = 1);
    RENDER(&t, .conn = 8, .worker = "b", .batch = 1, .shard = talk_shard(talk_grant(&t, 8, 0)), .ms = 200);
    STARTED(&t, .conn = 7, .shard = owed.id);
    DONE(&t, .conn = 7, .shard = owed.id, .render_ms = 1);
    OPEN(&t, .id = 2, .tasks = 1);
    talk_wait(&t, 400);
    RENDER(&t, .conn = 8, .worker = "b", .batch = 1,
           .shard = (struct talk_shard){.id = 3, .tasks = {2}, .count = 1}, .ms = 200);
    /* Nothing is left to hand out but what b renders now; then b is idle, and does what the other one owes. */
    if (talk_grant(&t, 8, 0))
        RENDER(&t, .conn = 8, .worker = "b", .batch = 2, .shard = talk_shard(talk_grant(&t, 8, 0)),
               .ms = 200);
    uint64_t since = t.now;
    while (talk_count(&t, FX_GRANT) == 0 && t.now - since < 5000) talk_wait(&t, 100);
    CHECK_INT(talk_must_grant(&t, 8, 0)->u.grant.tasks[0], owed.tasks[0]);
    CHECK_MSG(t.now - since < 1000, "%u ms", (unsigned)(t.now - since));
    talk_end(&t);
}

TEST(speed_is_counted_from_the_pictures_that_came) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1, .batch_max = 256);
    OPEN(&t, .id = 1, .tasks = 4000);
    /* An image takes a second, and it says that it took none: it is believed within a factor of four, so that four
       seconds of work are at most sixteen images. */
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    for (int i = 0; i < 8; i++) {
        STARTED(&t, .conn = 7, .shard = s.id);
        t.now += 1000 * s.count;
        for (uint32_t k = 0; k < s.count; k++)
            RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = s.tasks[k]);
        DONE(&t, .conn = 7, .shard = s.id, .render_ms = 0);
        s = talk_shard(talk_grant(&t, 7, 0));
        CHECK_MSG(s.count <= 16, "%u images", s.count);
    }
    talk_end(&t);
}

TEST(a_shard_that_owes_nothing_after_a_hello_is_over) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 2);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1, .batch_max = 1);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    DONE(&t, .conn = 7, .shard = s.id, .render_ms = 1);
    /* It comes back, and says that it holds the shard and no task of it: what was owed is not to come. */
    GONE(&t, .conn = 7);
    struct farm_held held = {.shard = s.id, .term = 1, .tasks = s.tasks, .task_count = 0};
    talk_id(1, held.batch, sizeof held.batch);
    HELLO(&t, .name = "a", .conn = 8, .credit = 1, .batch_max = 1, .held = &held, .held_count = 1);
    CHECK_INT(talk_view(&t, 1).running, 1); /* its credit is free again */
    talk_wait(&t, 6000);
    CHECK_INT(talk_view(&t, 1).queued + talk_view(&t, 1).running, 2);
    talk_end(&t);
}
