/* Who gets what: one rule a test. How well it does as a whole: sched_test.c. */
#include "tests/sim/talk.h"

/* A worker "a" that renders the shards it is granted, in their order. Grants are read from the effects of the
 * last event and queued; the size of each shard that was rendered is kept. */
struct runner {
    struct talk_shard queue[256];
    uint32_t head, tail, sizes[256], count;
};

static void take(struct runner *r, const struct talk *t, uint64_t conn) {
    for (uint32_t n = 0; talk_grant(t, conn, n); n++)
        r->queue[r->tail++ % 256] = talk_shard(talk_grant(t, conn, n));
}

/* Until this many images are done, at so many milliseconds an image. */
struct run {
    uint64_t conn;
    int batch;
    uint32_t ms, images;
};
#define RUN(r, t, ...) run(r, t, (struct run){__VA_ARGS__})
static void run(struct runner *r, struct talk *t, struct run x) {
    uint32_t done = 0;
    take(r, t, x.conn);
    while (r->head != r->tail && done < x.images) {
        struct talk_shard s = r->queue[r->head++ % 256];
        r->sizes[r->count++] = s.count;
        RENDER(t, .conn = x.conn, .worker = "a", .batch = x.batch, .shard = s, .ms = x.ms);
        take(r, t, x.conn);
        done += s.count;
    }
}

TEST(the_first_shard_is_small_and_the_next_take_the_target_time) {
    struct talk t;
    static struct runner r;
    r = (struct runner){0};
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .batch_max = 64, .credit = 1);
    OPEN(&t, .id = 1, .tasks = 2000);
    /* Each shard is up to four times the size of the one before, until it takes the target time. */
    RUN(&r, &t, .conn = 7, .batch = 1, .ms = 100, .images = 500);
    CHECK_INT(r.sizes[0], 1);
    CHECK_INT(r.sizes[1], 4);
    CHECK_INT(r.sizes[2], 16);
    CHECK_INT(r.sizes[3], 40); /* 4 s of 100 ms */
    talk_end(&t);
}

TEST(a_shard_is_never_larger_than_the_worker_allows) {
    struct talk t;
    static struct runner r;
    r = (struct runner){0};
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .batch_max = 10);
    OPEN(&t, .id = 1, .tasks = 2000);
    RUN(&r, &t, .conn = 7, .batch = 1, .ms = 1, .images = 500);
    for (uint32_t i = 0; i < r.count; i++) CHECK(r.sizes[i] <= 10);
    CHECK_INT(r.sizes[r.count - 1], 10);
    talk_end(&t);
}

TEST(shards_shrink_towards_the_end) {
    struct talk t;
    static struct runner r;
    r = (struct runner){0};
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .batch_max = 64);
    HELLO(&t, .name = "b", .conn = 8, .batch_max = 64);
    OPEN(&t, .id = 1, .tasks = 300);
    RUN(&r, &t, .conn = 7, .batch = 1, .ms = 100, .images = 298);
    CHECK(r.sizes[r.count - 1] <= 2);
    uint32_t largest = 0;
    for (uint32_t i = 0; i < r.count; i++) largest = r.sizes[i] > largest ? r.sizes[i] : largest;
    CHECK_INT(largest, 40);
    talk_end(&t);
}

TEST(no_shard_mixes_groups) {
    struct talk t;
    static struct runner r;
    r = (struct runner){0};
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .batch_max = 64);
    OPEN(&t, .id = 1, .tasks = 200, .group_count = 7);
    take(&r, &t, 7);
    while (r.head != r.tail) {
        struct talk_shard s = r.queue[r.head];
        for (uint32_t i = 0; i < s.count; i++) CHECK_INT(s.tasks[i] % 7, s.tasks[0] % 7);
        RUN(&r, &t, .conn = 7, .batch = 1, .ms = 10, .images = 1);
    }
    CHECK_INT(talk_view(&t, 1).done, 200);
    talk_end(&t);
}

TEST(images_are_handed_out_in_their_order) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 4);
    OPEN(&t, .id = 1, .tasks = 10);
    for (uint32_t n = 0; n < 4; n++) CHECK_INT(talk_must_grant(&t, 7, n)->u.grant.tasks[0], n);
    talk_end(&t);
}

TEST(who_has_not_the_model_gets_nothing) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .models = {2});
    OPEN(&t, .id = 1, .tasks = 5, .model = 1);
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    OPEN(&t, .id = 2, .tasks = 1, .model = 2);
    CHECK_INT(talk_count(&t, FX_GRANT), 1);
    talk_end(&t);
}

TEST(a_pinned_batch_stays_with_its_class) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 5, .pin = "cuda-b");
    HELLO(&t, .name = "a", .conn = 7, .backend = "cpu-a");
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    HELLO(&t, .name = "b", .conn = 8, .backend = "cuda-b");
    CHECK_INT(talk_count(&t, FX_GRANT), 2);
    /* A picture of another class is of no use to this batch. */
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = 4); /* from nobody that was asked */
    CHECK_INT(talk_must(&t, FX_ACK, 0)->u.ack.code, KN_EINVAL);
    CHECK_INT(talk_task(&t, 1, 4), TASK_QUEUED);
    talk_end(&t);
}

TEST(priority_is_strict) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 5, .priority = 1);
    OPEN(&t, .id = 2, .tasks = 2, .priority = 2);
    HELLO(&t, .name = "a", .conn = 7, .credit = 3);
    CHECK_INT(talk_number(talk_must_grant(&t, 7, 0)->batch), 2);
    CHECK_INT(talk_number(talk_must_grant(&t, 7, 2)->batch), 1);
    talk_end(&t);
}

TEST(a_higher_priority_retracts_what_waits_and_nothing_that_runs) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 5);
    HELLO(&t, .name = "a", .conn = 7);
    struct talk_shard runs = talk_shard(talk_grant(&t, 7, 0)), waits = talk_shard(talk_grant(&t, 7, 1));
    STARTED(&t, .conn = 7, .shard = runs.id);
    /* One shard runs and one waits when the more important batch comes. */
    OPEN(&t, .id = 2, .tasks = 5, .priority = 1);
    CHECK_INT(talk_count(&t, FX_REVOKE), 1);
    CHECK_INT(talk_must(&t, FX_REVOKE, 0)->u.revoke.shard, waits.id);
    /* The worker has let go of it: its place goes to the more important batch. */
    RETURNED(&t, .conn = 7, .shard = waits.id);
    CHECK_INT(talk_number(talk_must_grant(&t, 7, 0)->batch), 2);
    talk_end(&t);
}

TEST(no_more_is_retracted_than_the_higher_priority_can_use) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 50);
    for (uint64_t conn = 7; conn < 11; conn++) {
        char name[2] = {(char)('a' + conn - 7), 0};
        HELLO(&t, .name = name, .conn = conn);
        STARTED(&t, .conn = conn, .shard = talk_must_grant(&t, conn, 0)->u.grant.shard);
    }
    /* Four shards wait at four workers, but one place is enough for one task. */
    OPEN(&t, .id = 2, .tasks = 1, .priority = 1);
    CHECK_INT(talk_count(&t, FX_REVOKE), 1);
    talk_end(&t);
}

TEST(raising_the_priority_of_a_batch_moves_it_ahead) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 5);
    OPEN(&t, .id = 2, .tasks = 5);
    BATCH(&t, EV_BATCH_PRIORITY, .id = 2, .priority = 3);
    CHECK_INT(talk_must(&t, FX_BATCH_STATE, 0)->u.batch_state.priority, 3);
    HELLO(&t, .name = "a", .conn = 7);
    CHECK_INT(talk_number(talk_must_grant(&t, 7, 0)->batch), 2);
    talk_end(&t);
}

TEST(a_loaded_model_is_preferred_within_bounds) {
    struct talk t;
    static struct runner r;
    r = (struct runner){0};
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .models = {1, 2}, .credit = 1);
    OPEN(&t, .id = 1, .tasks = 1000, .model = 1);
    RUN(&r, &t, .conn = 7, .batch = 1, .ms = 100, .images = 100);
    /* The worker has model 1 loaded when a batch of model 2 comes. */
    OPEN(&t, .id = 2, .tasks = 1000, .model = 2);
    uint64_t from = t.now;
    int batch = 1;
    /* It goes on with model 1 until its turn is over. */
    while (batch == 1) {
        RENDER(&t, .conn = 7, .worker = "a", .batch = 1, .shard = r.queue[r.head++ % 256], .ms = 100);
        take(&r, &t, 7);
        batch = talk_number(talk_must_grant(&t, 7, 0)->batch);
    }
    CHECK_MSG(t.now - from >= 4000, "%llu ms", (unsigned long long)(t.now - from));  /* not at once */
    CHECK_MSG(t.now - from <= 15000, "%llu ms", (unsigned long long)(t.now - from)); /* but soon */
    talk_end(&t);
}

/* A fast worker that has done all it could, and a slow one that sits on the last images. */
static struct talk_shard slow_tail(struct talk *t) {
    talk_begin(t);
    HELLO(t, .name = "slow", .conn = 8, .credit = 1, .batch_max = 1);
    OPEN(t, .id = 1, .tasks = 3);
    /* The slow one takes a minute for the first image, and begins the second. */
    struct talk_shard s = talk_shard(talk_grant(t, 8, 0));
    STARTED(t, .conn = 8, .shard = s.id);
    t->now += 60000;
    HEARTBEAT(t, .conn = 8, .shard = s.id);
    RESULT(t, .conn = 8, .worker = "slow", .batch = 1, .task = s.tasks[0]);
    DONE(t, .conn = 8, .shard = s.id, .render_ms = 60000);
    s = talk_shard(talk_grant(t, 8, 0));
    STARTED(t, .conn = 8, .shard = s.id);
    /* The fast one comes and renders the third in 100 ms; nothing is queued then. */
    HELLO(t, .name = "a", .conn = 7, .credit = 1);
    struct talk_shard fast = talk_shard(talk_grant(t, 7, 0));
    STARTED(t, .conn = 7, .shard = fast.id);
    t->now += 100;
    RESULT(t, .conn = 7, .worker = "a", .batch = 1, .task = fast.tasks[0]);
    DONE(t, .conn = 7, .shard = fast.id, .render_ms = 100);
    return s;
}

static struct talk_shard second_copy(struct talk *t) {
    for (int i = 0; i < 10 && !talk_grant(t, 7, 0); i++) talk_wait(t, 100);
    return talk_shard(talk_grant(t, 7, 0));
}

TEST(the_tail_is_rendered_twice_and_the_first_bytes_win) {
    struct talk t;
    struct talk_shard slow = slow_tail(&t), copy = second_copy(&t);
    CHECK_INT(copy.tasks[0], slow.tasks[0]);
    /* The fast one renders the copy while the slow one is still at it. */
    STARTED(&t, .conn = 7, .shard = copy.id);
    t.now += 100;
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = copy.tasks[0]);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_DONE);
    CHECK_INT(talk_must(&t, FX_REVOKE, 0)->conn, 8); /* the loser may stop */
    CHECK(talk_must(&t, FX_REVOKE, 0)->u.revoke.abort);
    talk_end(&t);
}

TEST(the_slow_one_may_win_too) {
    struct talk t;
    struct talk_shard slow = slow_tail(&t), copy = second_copy(&t);
    /* The slow one is through first: the copy is taken back. */
    RESULT(&t, .conn = 8, .worker = "slow", .batch = 1, .task = slow.tasks[0]);
    CHECK_INT(talk_must(&t, FX_REVOKE, 0)->conn, 7);
    CHECK_INT(talk_must(&t, FX_REVOKE, 0)->u.revoke.shard, copy.id);
    talk_end(&t);
}

TEST(there_are_never_three_copies) {
    struct talk t;
    (void)slow_tail(&t);
    (void)second_copy(&t);
    /* A third worker has nothing to do, but two are at the last image already. */
    HELLO(&t, .name = "c", .conn = 9);
    for (int i = 0; i < 20; i++) {
        talk_wait(&t, 100);
        CHECK_INT(talk_count(&t, FX_GRANT), 0);
    }
    talk_end(&t);
}

TEST(a_slower_worker_renders_nothing_twice) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1, .batch_max = 1);
    HELLO(&t, .name = "b", .conn = 8, .credit = 1, .batch_max = 1);
    OPEN(&t, .id = 1, .tasks = 3);
    struct talk_shard a = talk_shard(talk_grant(&t, 7, 0)), b = talk_shard(talk_grant(&t, 8, 0));
    STARTED(&t, .conn = 7, .shard = a.id);
    STARTED(&t, .conn = 8, .shard = b.id);
    /* a takes 1000 ms an image, b 1100; a begins the last image 100 ms before b is through. */
    t.now += 1000;
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = a.tasks[0]);
    DONE(&t, .conn = 7, .shard = a.id, .render_ms = 1000);
    a = talk_shard(talk_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = a.id);
    t.now += 100;
    RESULT(&t, .conn = 8, .worker = "b", .batch = 1, .task = b.tasks[0]);
    DONE(&t, .conn = 8, .shard = b.id, .render_ms = 1100);
    for (int i = 0; i < 8; i++) {
        talk_wait(&t, 100);
        CHECK_INT(talk_count(&t, FX_GRANT), 0); /* 900 ms are left there, it would take 1100 */
    }
    talk_end(&t);
}

TEST(what_waits_at_a_busy_worker_goes_to_an_idle_one) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 2, .batch_max = 1);
    OPEN(&t, .id = 1, .tasks = 3);
    struct talk_shard first = talk_shard(talk_grant(&t, 7, 0)), waits = talk_shard(talk_grant(&t, 7, 1));
    STARTED(&t, .conn = 7, .shard = first.id);
    /* It takes 5 s an image: it executes its second, and the third waits there. */
    t.now += 5000;
    RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = first.tasks[0]);
    DONE(&t, .conn = 7, .shard = first.id, .render_ms = 5000);
    STARTED(&t, .conn = 7, .shard = waits.id);
    CHECK_INT(talk_view(&t, 1).running, 2);
    /* An idle worker comes and is given the one that waits. */
    HELLO(&t, .name = "b", .conn = 8, .credit = 1);
    for (int i = 0; i < 10 && !talk_grant(&t, 8, 0); i++) talk_wait(&t, 100);
    CHECK_INT(talk_must_grant(&t, 8, 0)->u.grant.tasks[0], 2);
    talk_end(&t);
}
