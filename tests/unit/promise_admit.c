/* What is refused is refused before it is durable, and one batch does not keep the farm. */
#include "tests/unit/coordinator_trial.h"

TEST(promise_admit_any_number_of_pins_is_taken_and_the_farm_starts_again) {
    struct fixture f;
    enum { PINS = 300 }; /* more than there are numbers for classes of workers */
    setup(&f);
    hello(&f);
    for (int i = 0; i < PINS; i++) {
        kn_id id = {0xc, (uint8_t)i, (uint8_t)(i >> 8)};
        char pin[32];
        snprintf(pin, sizeof pin, "some-class-%d", i);
        CHECK_INT(begin_pinned(&f, id, 1, "m", pin), 0);
        CHECK_INT(chunk(&f, id, 0, 1, 64), 0);
        for (int k = 0; k < 2; k++) CHECK_INT(seal(&f, id), 0);
    }
    stop(&f);
    start(&f);
    struct kn_msg q = {.type = KN_MSG_BATCH_QUERY};
    CHECK_INT((int)ask(&f, &q, KN_MSG_BATCH_LIST)->u.batch_list.count, PINS);
    hello(&f);
    submit(&f, batch_a, 1); /* and goes on */
    await(&f, &f.worker, KN_MSG_SHARD_GRANT);
    teardown(&f);
}

/* The text of the answer to a seal, copied; its code in *code. */
static void seal_said(struct fixture *f, const kn_id id, int *code, char text[256]) {
    struct kn_msg m = {.type = KN_MSG_SUBMIT_SEAL};
    memcpy(m.u.submit_seal.batch, id, sizeof(kn_id));
    const struct kn_reply *r = &ask(f, &m, KN_MSG_REPLY)->u.reply;
    *code = r->code;
    snprintf(text, 256, "%s", r->text);
}

TEST(promise_admit_a_batch_that_cannot_be_read_back_is_set_aside_and_the_rest_starts) {
    struct fixture f;
    static const kn_id other[] = {{0xd, 1}, {0xd, 2}, {0xd, 3}, {0xd, 4}, {0xd, 5}, {0xd, 6}};
    static const struct {
        const char *verb, *rest, *reason;
    } damage[] = {
        {"del", ":c", "1 of 1 chunks are missing"},
        {"del", "", "is not there, or lacks a part"},
        {"hset", ":c 0 garbage", "chunk 0"},
        {"hset", " begin garbage", ""},
        {"set", ":f text", "WRONGTYPE"},
        {"setrange", ":r 0 x", "not what kiln writes there"},
    };
    enum { DAMAGES = sizeof damage / sizeof damage[0] };
    setup_with(&f, true);
    hello(&f);
    for (int i = 0; i < DAMAGES; i++) submit(&f, other[i], 1);
    submit(&f, batch_a, 2);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    for (int i = 0; i < DAMAGES; i++) redis_of(&f, damage[i].verb, other[i], damage[i].rest);
    CHECK_STR(test_redis_ask(&f.redis, "zadd kiln:batches 99 nonsense"), "1");
    stop(&f);
    start(&f);
    hello(&f);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.done, 1);
    for (int i = 0; i < DAMAGES; i++) {
        const struct kn_batch_status *s = status_line(&f, other[i]);
        CHECK(s != NULL);
        CHECK_INT((int)s->state, KN_BATCH_ASIDE);
        CHECK_MSG(s->wait_text[0] && strstr(s->wait_text, damage[i].reason), "%d: %s", i, s->wait_text);
        CHECK_INT(seal(&f, other[i]), 0); /* it was accepted, and that is said again */
        CHECK_INT(command(&f, other[i], KN_VERB_CANCEL), KN_ECORRUPT);
    }
    /* Nothing of them was changed, and a person may remove them. */
    stop(&f);
    start(&f);
    for (int i = 0; i < DAMAGES; i++) {
        CHECK(status_line(&f, other[i]) != NULL);
        CHECK_INT(command(&f, other[i], KN_VERB_REMOVE), 0);
        CHECK(status_line(&f, other[i]) == NULL);
    }
    CHECK_STR(test_redis_ask(&f.redis, "zcard kiln:batches"), "2"); /* the good one, and what is no id */
    teardown(&f);
}

TEST(promise_admit_a_batch_whose_end_was_not_written_before_a_kill_is_read_back) {
    struct fixture f;
    setup_with(&f, true);
    hello(&f);
    submit(&f, batch_a, 1);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    stop(&f);
    redis_of(&f, "hset", batch_a, " state 1");
    start(&f); /* reading back finds something to write */
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    for (int i = 0; i < 1000 && stored_state(&f, batch_a) != KN_BATCH_DONE; i++) run_ms(&f, 10);
    CHECK_INT(stored_state(&f, batch_a), KN_BATCH_DONE);
    teardown(&f);
}

TEST(promise_admit_no_object_leaves_while_a_batch_is_set_aside) {
    struct fixture f;
    setup_with(&f, true);
    hello(&f);
    submit(&f, batch_a, 1);
    submit(&f, batch_b, 1);
    CHECK_INT(picture(&f, batch_a, 0, "shared", false), 0);
    CHECK_INT(picture(&f, batch_b, 0, "shared", false), 0);
    redis_of(&f, "del", batch_a, ":c");
    stop(&f);
    start(&f);
    CHECK_INT((int)status_line(&f, batch_a)->state, KN_BATCH_ASIDE);
    CHECK_INT(command(&f, batch_b, KN_VERB_REMOVE), 0);
    struct kn_msg m = {.type = KN_MSG_REPAIR_COMMAND};
    CHECK_U64(ask(&f, &m, KN_MSG_REPAIR_REPLY)->u.repair_reply.moved, 0);
    CHECK(object_there(&f, "shared")); /* the batch that is set aside names it, and nobody can read that */
    CHECK_INT(command(&f, batch_a, KN_VERB_REMOVE), 0);
    ask(&f, &m, KN_MSG_REPAIR_REPLY);
    for (int i = 0; i < 1000 && object_there(&f, "shared"); i++) run_ms(&f, 10);
    CHECK(!object_there(&f, "shared"));
    teardown(&f);
}

TEST(promise_admit_what_was_only_begun_is_cleared_away_and_may_begin_again) {
    struct fixture f;
    setup_with(&f, true);
    hello(&f);
    CHECK_INT(begin(&f, batch_a, 2000, "m"), 0);
    CHECK_INT(chunk(&f, batch_a, 0, 1000, 64), 0);
    redis_of(&f, "hset", batch_a, ":c 0 garbage");
    stop(&f);
    start(&f);
    hello(&f);
    CHECK(status_line(&f, batch_a) == NULL); /* nobody was told that it is accepted */
    CHECK_INT(seal(&f, batch_a), KN_ENOENT);
    submit(&f, batch_a, 1500);
    stop(&f);
    start(&f);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.total, 1500);
    teardown(&f);
}

TEST(promise_admit_a_refused_seal_is_refused_again_in_the_same_words) {
    struct fixture f;
    int code[2];
    char text[2][256];
    setup_with(&f, true);
    hello(&f);
    CHECK_INT(begin(&f, batch_a, 1, "m"), 0);
    CHECK_INT(chunk(&f, batch_a, 0, 1, 64), 0);
    redis_of(&f, "del", batch_a, ":c"); /* the store lost the chunk, and refuses */
    for (int i = 0; i < 2; i++) seal_said(&f, batch_a, &code[i], text[i]);
    CHECK_INT(code[0], KN_ESTATE);
    CHECK_INT(code[1], code[0]);
    CHECK_STR(text[1], text[0]);
    CHECK_INT(chunk(&f, batch_a, 0, 1, 64), 0); /* sent again, it is as good as ever */
    CHECK_INT(seal(&f, batch_a), 0);
    /* Gone altogether: the client is told to begin again, each time. */
    CHECK_INT(begin(&f, batch_b, 1, "m"), 0);
    CHECK_INT(chunk(&f, batch_b, 0, 1, 64), 0);
    redis_of(&f, "del", batch_b, "");
    for (int i = 0; i < 2; i++) seal_said(&f, batch_b, &code[i], text[i]);
    CHECK_INT(code[0], KN_ENOENT);
    CHECK_INT(code[1], code[0]);
    CHECK_STR(text[1], text[0]);
    submit(&f, batch_b, 1);
    teardown(&f);
}

TEST(promise_admit_what_is_staged_and_not_sealed_has_a_bound_and_the_farm_starts_again) {
    struct fixture f;
    int code = 0;
    uint32_t begun = 0;
    setup(&f);
    hello(&f);
    /* So many submissions of one client, none of them sealed. */
    for (; begun < 1000 && code == 0; begun++) {
        kn_id id = {0xe, (uint8_t)begun, (uint8_t)(begun >> 8)};
        code = begin(&f, id, 1500, "m");
    }
    CHECK_INT(code, KN_ELIMIT);
    CHECK_INT((int)begun, 65);
    /* So many bytes of one client: the chunk that would go beyond is refused, and so is every other of its
     * batches, until something is sealed. As if most of a very large one were here already: */
    struct kept_batch *b = batches_find(&f.s->batches, (kn_id){0xe, 3});
    const size_t most = ((size_t)512 << 20) - 100;
    b->chunk_bytes += most;
    f.s->batches.staged_bytes += most;
    CHECK_INT(chunk(&f, b->id, 0, 1000, 64), KN_ELIMIT);
    CHECK_INT(chunk(&f, (kn_id){0xe, 4}, 0, 1000, 64), KN_ELIMIT);
    b->stager++; /* …of another */
    CHECK_INT(chunk(&f, (kn_id){0xe, 4}, 0, 1000, 64), 0);
    f.s->batches.staged_bytes += most; /* and so many of all */
    CHECK_INT(chunk(&f, (kn_id){0xe, 4}, 1, 500, 64), KN_ELIMIT);
    CHECK_INT(chunk(&f, (kn_id){0xe, 4}, 0, 1000, 64), 0); /* what is there already takes no room */
    f.s->batches.staged_bytes -= 2 * most;
    b->chunk_bytes -= most;
    stop(&f);
    start(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    teardown(&f);
}
