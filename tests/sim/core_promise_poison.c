/* Poison costs little: workers whose engines end with an image name it and go on; suspects keep out of the way of the rest,
 * and a frozen worker does not hold the last images. */
#include "tests/sim/talk.h"

struct queue {
    struct talk_shard v[256];
    uint32_t head, tail;
};

static void take(struct queue *q, struct talk *t, uint64_t conn) {
    for (uint32_t n = 0; talk_grant(t, conn, n); n++)
        q->v[q->tail++ % 256] = talk_shard(talk_grant(t, conn, n));
}

/* Renders a batch of its own, so that the worker's speed is known: ms an image. */
static void warm_up_at(struct talk *t, uint64_t conn, const char *name, int batch, uint32_t ms) {
    struct queue q = {0};
    OPEN(t, .id = batch, .tasks = 60);
    for (take(&q, t, conn); q.head != q.tail; take(&q, t, conn))
        RENDER(t, .conn = conn, .worker = name, .batch = batch, .shard = q.v[q.head++ % 256], .ms = ms);
    CHECK_INT(talk_view(t, batch).done, 60);
    farm_effects_clear(&t->fx);
}

static void warm_up(struct talk *t, uint64_t conn, const char *name, int batch) {
    warm_up_at(t, conn, name, batch, 10);
}

static uint32_t suspects_granted(const struct talk *t, const uint32_t *suspects, uint32_t count) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < talk_count(t, FX_GRANT); i++) {
        struct talk_shard s = talk_shard(talk_fx(t, FX_GRANT, i));
        for (uint32_t k = 0; k < count; k++)
            if (s.tasks[0] == suspects[k]) {
                CHECK_INT(s.count, 1); /* alone */
                n++;
            }
    }
    return n;
}

/* Worker a renders a shard of eight in which the first two end its engine with this code; b, whose queue is full, has one
 * more place afterwards. What b is given then, with 200 images of the batch queued, is in the last effects. */
static void two_suspects(struct talk *t, int code) {
    talk_begin(t);
    HELLO(t, .name = "a", .conn = 7, .credit = 1);
    warm_up(t, 7, "a", 9);
    HELLO(t, .name = "b", .conn = 8, .credit = 1);
    OPEN(t, .id = 1, .tasks = 200);
    struct talk_shard a = talk_shard(talk_must_grant(t, 7, 0)), b = talk_shard(talk_must_grant(t, 8, 0));
    CHECK(a.count == 8 && b.count > 0);
    STARTED(t, .conn = 7, .shard = a.id);
    STARTED(t, .conn = 8, .shard = b.id);
    for (int i = 0; i < 2; i++) {
        FAILED(t, .conn = 7, .batch = 1, .task = a.tasks[i], .shard = a.id, .code = code);
        CHECK_INT(talk_must(t, FX_CHARGE, 0)->u.charge.charges, 1);
        CHECK_INT(talk_task(t, 1, a.tasks[i]), TASK_QUEUED);
        CHECK_INT(talk_count(t, FX_REVOKE), 0); /* the others of the shard stay where they are */
    }
    for (uint32_t i = 0; i < b.count; i++)
        RESULT(t, .conn = 8, .worker = "b", .batch = 1, .task = b.tasks[i]);
    t->now += 80;
    DONE(t, .conn = 8, .shard = b.id, .render_ms = 80);
}

TEST(suspects_of_a_death_are_tried_by_one_worker_at_a_time) {
    struct talk t;
    const uint32_t suspects[] = {0, 1};
    two_suspects(&t, KN_EGONE);
    CHECK_INT(suspects_granted(&t, suspects, 2), 1);
    /* A third worker comes: the other suspect waits, there is enough else. */
    HELLO(&t, .name = "c", .conn = 9, .credit = 4);
    CHECK(talk_grant(&t, 9, 0) != NULL);
    CHECK_INT(suspects_granted(&t, suspects, 2), 0);
    talk_end(&t);
}

TEST(suspects_of_a_hang_wait_for_the_rest) {
    struct talk t;
    const uint32_t suspects[] = {0, 1};
    struct queue q = {0};
    two_suspects(&t, KN_ETIMEOUT);
    uint32_t rendered = talk_view(&t, 1).done;
    for (take(&q, &t, 8); q.head != q.tail; take(&q, &t, 8)) {
        struct talk_shard s = q.v[q.head++ % 256];
        if (s.tasks[0] == suspects[0] || s.tasks[0] == suspects[1]) break;
        RENDER(&t, .conn = 8, .worker = "b", .batch = 1, .shard = s);
        rendered += s.count;
    }
    CHECK_INT(rendered, 192); /* all that a does not hold */
    talk_end(&t);
}

/* …and then all at once: nothing else waits for the workers. */
TEST(suspects_are_shared_when_nothing_else_is_left) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    warm_up(&t, 7, "a", 9);
    OPEN(&t, .id = 1, .tasks = 8);
    struct talk_shard a = talk_shard(talk_must_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = a.id);
    FAILED(&t, .conn = 7, .batch = 1, .task = a.tasks[0], .shard = a.id, .code = KN_ETIMEOUT);
    FAILED(&t, .conn = 7, .batch = 1, .task = a.tasks[1], .shard = a.id, .code = KN_ETIMEOUT);
    HELLO(&t, .name = "b", .conn = 8, .credit = 1);
    CHECK(talk_grant(&t, 8, 0) != NULL);
    HELLO(&t, .name = "c", .conn = 9, .credit = 1);
    CHECK(talk_grant(&t, 9, 0) != NULL);
    talk_end(&t);
}

/* A worker that goes on behind what ended its engine is well: five such in a row do not have it held, and each counts. */
TEST(a_picture_behind_the_one_that_ended_the_engine_acquits_its_worker) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1, .batch_max = 64);
    warm_up(&t, 7, "a", 9);
    HELLO(&t, .name = "b", .conn = 8, .credit = 1);
    OPEN(&t, .id = 1, .tasks = 200);
    struct talk_shard a = talk_shard(talk_must_grant(&t, 7, 0)), b = talk_shard(talk_must_grant(&t, 8, 0));
    CHECK(a.count >= 12);
    STARTED(&t, .conn = 7, .shard = a.id);
    STARTED(&t, .conn = 8, .shard = b.id);
    for (uint32_t i = 0; i < b.count; i++)
        RESULT(&t, .conn = 8, .worker = "b", .batch = 1, .task = b.tasks[i]);
    for (uint32_t i = 0; i + 1 < 12; i += 2) {
        FAILED(&t, .conn = 7, .batch = 1, .task = a.tasks[i], .shard = a.id, .code = KN_EGONE);
        CHECK_INT(talk_count(&t, FX_PROBE), 0);
        RESULT(&t, .conn = 7, .worker = "a", .batch = 1, .task = a.tasks[i + 1]);
    }
    CHECK_STR(talk_worker(&t, "a").hold_reason, "");
    talk_end(&t);
}

/* The last shard is with a worker that is frozen: those that are idle share it, once it has missed a heartbeat. */
TEST(a_frozen_worker_holds_the_last_images_for_no_longer_than_a_heartbeat) {
    static const char *const names[] = {"frozen", "b", "c", "d"};
    struct talk t;
    struct talk_shard held[4];
    talk_begin(&t);
    HELLO(&t, .name = "frozen", .conn = 17, .credit = 1);
    warm_up(&t, 17, "frozen", 9);
    OPEN(&t, .id = 1, .tasks = 16);
    struct talk_shard s = talk_shard(talk_must_grant(&t, 17, 0));
    uint32_t asked = 0, most = 0;
    STARTED(&t, .conn = 17, .shard = s.id);
    CHECK(s.count >= 6);
    /* The others come, and render what is left; then they are idle. */
    for (uint64_t i = 1; i < 4; i++) {
        struct queue q = {0};
        HELLO(&t, .name = names[i], .conn = 17 + i, .credit = 1);
        for (take(&q, &t, 17 + i); i == 3 && q.head != q.tail; take(&q, &t, 17 + i))
            RENDER(&t, .conn = 17 + i, .worker = names[i], .batch = 1, .shard = q.v[q.head++ % 256]);
        held[i] = q.v[0];
    }
    for (uint64_t i = 1; i < 3; i++)
        RENDER(&t, .conn = 17 + i, .worker = names[i], .batch = 1, .shard = held[i]);
    uint64_t since = t.now;
    while (t.now - since < 1600) { /* the others say that they are there, the first one nothing */
        talk_wait(&t, 100);
        for (int i = 1; i < 4; i++) {
            for (uint32_t n = 0; talk_grant(&t, 17 + (uint64_t)i, n); n++) {
                struct talk_shard copy = talk_shard(talk_grant(&t, 17 + (uint64_t)i, n));
                asked += copy.count;
                if (copy.count > most) most = copy.count;
            }
        }
        for (int i = 1; i < 4; i++) HEARTBEAT(&t, .conn = 17 + (uint64_t)i);
    }
    CHECK_INT(asked, s.count);
    CHECK_MSG(most <= (s.count + 2) / 3, "%u of %u at once", most, s.count);
    talk_end(&t);
}

/* Images take two seconds, so nothing but its silence tells that a worker is frozen: its time is not over. */
TEST(a_worker_that_misses_a_heartbeat_is_not_waited_for_though_its_time_is_not_over) {
    struct talk t;
    uint32_t copied = 0;
    talk_begin(&t);
    HELLO(&t, .name = "frozen", .conn = 17, .credit = 1);
    warm_up_at(&t, 17, "frozen", 9, 2000);
    OPEN(&t, .id = 1, .tasks = 1);
    struct talk_shard s = talk_shard(talk_must_grant(&t, 17, 0));
    STARTED(&t, .conn = 17, .shard = s.id);
    HELLO(&t, .name = "b", .conn = 18, .credit = 1); /* which is idle */
    uint64_t froze = t.now + 200;
    while (t.now < froze + 1600) {
        if (t.now < froze) HEARTBEAT(&t, .conn = 17);
        HEARTBEAT(&t, .conn = 18);
        copied += talk_count(&t, FX_GRANT);
        if (t.now <= froze + 1000) CHECK_INT(copied, 0);
        talk_wait(&t, 100);
        copied += talk_count(&t, FX_GRANT);
    }
    CHECK_INT(copied, 1);
    talk_end(&t);
}
