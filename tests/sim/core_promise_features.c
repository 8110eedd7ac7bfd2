/* Farms of mixed versions: a worker is granted what it knows, and nothing else. */
#include "base/features.h"
#include "tests/sim/talk.h"

#define OLD KN_FEATURES_BEFORE
#define NEWER (UINT64_C(1) << 20) /* a sampler that came later */

TEST(a_worker_that_lacks_what_a_batch_needs_is_granted_nothing_of_it) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "old", .conn = 7, .features = OLD);
    HELLO(&t, .name = "new", .conn = 8, .features = OLD | NEWER);
    OPEN(&t, .id = 1, .tasks = 40, .needs = OLD | NEWER);
    CHECK(!talk_grant(&t, 7, 0));
    CHECK(talk_grant(&t, 8, 0));
    /* The old one goes on with what it knows, and is not kept from it by what stands before. */
    OPEN(&t, .id = 2, .tasks = 4, .needs = OLD);
    CHECK(talk_grant(&t, 7, 0));
    struct farm_task_view v;
    kn_id id;
    talk_id(1, id, sizeof id);
    CHECK_INT(farm_task_view(t.farm, id, 39, &v), 0);
    CHECK_INT(v.unfit, 1);
    CHECK_STR(v.unfit_worker, "old");
    CHECK_U64(v.unfit_lacks, NEWER);
    talk_end(&t);
}

/* The tail renders what a slow worker holds a second time: not on one that does not know how. */
TEST(the_tail_gives_no_copy_to_a_worker_that_lacks_what_it_needs) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "new", .conn = 8, .features = OLD | NEWER, .credit = 1);
    OPEN(&t, .id = 1, .tasks = 2, .needs = NEWER);
    struct talk_shard s = talk_shard(talk_must_grant(&t, 8, 0));
    RENDER(&t, .conn = 8, .worker = "new", .batch = 1, .shard = s, .ms = 100);
    s = talk_shard(talk_must_grant(&t, 8, 0));
    STARTED(&t, .conn = 8, .shard = s.id);
    HELLO(&t, .name = "old", .conn = 7, .features = OLD);
    for (int i = 0; i < 20; i++) {
        HEARTBEAT(&t, .conn = 7);
        HEARTBEAT(&t, .conn = 8, .shard = s.id, .age_ms = 1, .step = 1, .steps = 20);
        CHECK(!talk_grant(&t, 7, 0));
        talk_wait(&t, 500);
        CHECK(!talk_grant(&t, 7, 0));
    }
    talk_end(&t);
}

TEST(a_batch_that_nobody_knows_waits_with_the_words_and_begins_when_somebody_comes) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "old", .conn = 7, .features = OLD);
    OPEN(&t, .id = 1, .tasks = 4, .needs = OLD | NEWER);
    CHECK_INT(talk_view(&t, 1).wait, KN_WAIT_FEATURE);
    CHECK_STR(talk_view(&t, 1).wait_worker, "old");
    CHECK_U64(talk_view(&t, 1).wait_lacks, NEWER);
    CHECK_INT(talk_view(&t, 1).eta_ms, -1);
    /* The worker is upgraded: another process of its name. */
    HELLO(&t, .name = "old", .conn = 9, .instance = 2, .features = OLD | NEWER, .mute = true);
    GONE(&t, .conn = 7);
    HELLO(&t, .name = "old", .conn = 9, .instance = 2, .features = OLD | NEWER, .mute = true);
    CHECK(talk_grant(&t, 9, 0));
    CHECK_INT(talk_view(&t, 1).wait, KN_WAIT_NONE);
    talk_end(&t);
}

/* It was the same grant every five seconds for ever. */
TEST(what_a_worker_cannot_read_goes_elsewhere_and_never_back_to_it) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    OPEN(&t, .id = 1, .tasks = 3);
    struct talk_shard s = talk_shard(talk_must_grant(&t, 7, 0));
    RETURNED(&t, .conn = 7, .shard = s.id, .unsupported = true);
    CHECK(!talk_grant(&t, 7, 0));
    for (int i = 0; i < 60; i++) {
        HEARTBEAT(&t, .conn = 7);
        talk_wait(&t, 1000);
        CHECK(!talk_grant(&t, 7, 0));
    }
    CHECK_INT(talk_view(&t, 1).wait, KN_WAIT_FEATURE);
    CHECK_U64(talk_view(&t, 1).wait_lacks, 0);
    CHECK_INT(talk_view(&t, 1).failed, 0);
    /* Another kind of task it is given, and another worker is given these. */
    OPEN(&t, .id = 2, .tasks = 1, .size = 128);
    s = talk_shard(talk_must_grant(&t, 7, 0));
    RENDER(&t, .conn = 7, .worker = "a", .batch = 2, .shard = s);
    HELLO(&t, .name = "b", .conn = 8);
    CHECK(talk_grant(&t, 8, 0));
    /* Another process of its name, a later kiln perhaps, is asked anew. */
    OPEN(&t, .id = 3, .tasks = 100);
    GONE(&t, .conn = 7, .bye = true);
    HELLO(&t, .name = "a", .conn = 9, .instance = 2);
    CHECK(talk_grant(&t, 9, 0));
    talk_end(&t);
}

/* Programs of before features drop what they cannot read, and say nothing. */
TEST(a_worker_that_takes_grants_without_a_word_is_given_up_for_that_kind_of_task) {
    struct talk t;
    uint32_t grants = 0;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    OPEN(&t, .id = 1, .tasks = 1);
    for (int i = 0; i < 600; i++) {
        for (uint32_t n = 0; n < t.fx.count; n++) grants += t.fx.v[n].type == FX_GRANT;
        for (uint32_t n = 0; talk_fx(&t, FX_REVOKE, n); n++) {
            uint64_t shard = talk_fx(&t, FX_REVOKE, n)->u.revoke.shard;
            HEARTBEAT(&t, .conn = 7);
            (void)shard; /* it does not know it */
        }
        HEARTBEAT(&t, .conn = 7);
        for (uint32_t n = 0; n < t.fx.count; n++) grants += t.fx.v[n].type == FX_GRANT;
        talk_wait(&t, 1000);
    }
    CHECK_MSG(grants > 1 && grants <= 8, "%u grants", grants);
    CHECK_INT(talk_view(&t, 1).wait, KN_WAIT_FEATURE);
    CHECK_INT(talk_view(&t, 1).failed, 0);
    talk_end(&t);
}

/* A worker that lacks something takes nothing back from others for a batch that it cannot render. */
TEST(a_higher_priority_takes_nothing_from_a_worker_that_cannot_render_it) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "old", .conn = 7, .features = OLD, .credit = 2);
    OPEN(&t, .id = 1, .tasks = 100, .needs = OLD);
    CHECK(talk_grant(&t, 7, 0));
    OPEN(&t, .id = 2, .tasks = 1, .priority = 5, .needs = OLD | NEWER);
    CHECK_INT(talk_count(&t, FX_REVOKE), 0);
    talk_end(&t);
}

TEST(a_grant_holds_no_more_tasks_than_fit) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .batch_max = 64, .credit = 1);
    OPEN(&t, .id = 1, .tasks = 500, .shard_tasks_max = 3);
    struct talk_shard s = talk_shard(talk_must_grant(&t, 7, 0));
    for (int i = 0; i < 20; i++) {
        CHECK(s.count <= 3);
        RENDER(&t, .conn = 7, .worker = "a", .batch = 1, .shard = s, .ms = 1);
        s = talk_shard(talk_must_grant(&t, 7, 0));
    }
    CHECK_INT(s.count, 3);
    talk_end(&t);
}
