/* A store that goes back is noticed, and told everything again. */
#include "tests/unit/coordinator_trial.h"

/* One batch of each kind: with an image done, cancelled, paused, half submitted. */
static const kn_id half_done = {0x11, 1}, cancelled = {0x11, 2}, paused = {0x11, 3}, half_sent = {0x11, 4};

static void fill(struct fixture *f) {
    hello(f);
    submit(f, half_done, 3);
    CHECK_INT(picture(f, half_done, 1, "p1", false), 0);
    submit(f, cancelled, 2);
    CHECK_INT(picture(f, cancelled, 0, "c0", false), 0);
    CHECK_INT(command(f, cancelled, KN_VERB_CANCEL), 0);
    submit(f, paused, 1);
    CHECK_INT(command(f, paused, KN_VERB_PAUSE), 0);
    CHECK_INT(begin(f, half_sent, 1500, "m"), 0);
    CHECK_INT(chunk(f, half_sent, 1, 500, 64), 0);
}

/* All of it is there, also for a coordinator that knows nothing but the store. */
static void check_filled(struct fixture *f, uint32_t done) {
    stop(f);
    start(f);
    hello(f);
    CHECK_INT((int)results(f, half_done, 0, 0)->status.done, (int)done);
    CHECK_INT((int)results(f, half_done, 0, 0)->status.total, 3);
    const struct kn_results_reply *r = results(f, half_done, 0, 0);
    CHECK_INT((int)r->v[0].index, 1);
    CHECK_STR(r->v[0].worker, "w");
    CHECK_INT((int)results(f, cancelled, 0, 0)->status.state, KN_BATCH_CANCELLED);
    CHECK_INT((int)results(f, cancelled, 0, 0)->status.done, 1);
    CHECK_INT((int)results(f, paused, 0, 0)->status.state, KN_BATCH_PAUSED);
    CHECK_INT(chunk(f, half_sent, 0, 1000, 64), 0);
    CHECK_INT(seal(f, half_sent), 0);
}

TEST(promise_backward_a_flushed_store_is_told_everything_again) {
    struct fixture f;
    setup_with(&f, true);
    fill(&f);
    CHECK_STR(test_redis_ask(&f.redis, "flushall"), "OK");
    CHECK_INT(picture(&f, half_done, 2, "p2", false), 0); /* is committed behind all that */
    CHECK(store_note_says(&f, "had gone back"));
    CHECK_STR(test_redis_ask(&f.redis, "exists kiln:repairing"), "0");
    CHECK_STR(test_redis_ask(&f.redis, "get kiln:format"), "1");
    check_filled(&f, 2);
    CHECK_INT((int)f.s->alarms, 0);
    teardown(&f);
}

static void redis_files(struct fixture *f, const char *from, const char *to) {
    char command[256];
    snprintf(command, sizeof command, "rm -rf %s/%s && cp -r %s/%s %s/%s", f->redis.dir, to, f->redis.dir,
             from, f->redis.dir, to);
    CHECK_INT(system(command), 0);
}

/* A token that was taken back must not come back with the old copy, and one that was made since must not be lost. */
TEST(promise_backward_tokens_are_those_that_the_coordinator_knows) {
    struct fixture f;
    struct kn_msg m = {.type = KN_MSG_TOKEN_NEW}, gone = {.type = KN_MSG_TOKEN_REMOVE};
    static const uint8_t old[8] = {1}, newer[8] = {2};
    setup_with(&f, true);
    m.u.token_new =
        (struct kn_token_new){.id = old, .id_len = 8, .role = KN_ROLE_WORKER, .name = "", .uses = 1};
    CHECK_INT(ask_code(&f, &m), 0);
    CHECK_STR(test_redis_ask(&f.redis, "--raw hkeys kiln:tokens"), "0100000000000000");
    redis_files(&f, "appendonlydir", "copy");
    gone.u.token_remove.id = old;
    gone.u.token_remove.id_len = 8;
    CHECK_INT(ask_code(&f, &gone), 0);
    m.u.token_new.id = newer;
    CHECK_INT(ask_code(&f, &m), 0);
    test_redis_kill(&f.redis);
    redis_files(&f, "copy", "appendonlydir");
    test_redis_again(&f.redis);
    for (int i = 0; i < 2000 && !store_note_says(&f, "had gone back"); i++) run_ms(&f, 5);
    gone.u.token_remove.id = (const uint8_t *)"12345678"; /* behind all that */
    CHECK_INT(ask_code(&f, &gone), 0);
    CHECK_STR(test_redis_ask(&f.redis, "--raw hkeys kiln:tokens"), "0200000000000000");
    teardown(&f);
}

TEST(promise_backward_a_farm_that_writes_nothing_notices_too) {
    struct fixture f;
    setup_with(&f, true);
    fill(&f);
    CHECK_STR(test_redis_ask(&f.redis, "flushall"), "OK");
    for (int i = 0; i < 2000 && !store_note_says(&f, "had gone back"); i++) run_ms(&f, 5);
    CHECK(store_note_says(&f, "had gone back"));
    check_filled(&f, 1);
    teardown(&f);
}

TEST(promise_backward_an_older_copy_that_is_put_back_is_told_what_it_lacks) {
    struct fixture f;
    setup_with(&f, true);
    fill(&f);
    redis_files(&f, "appendonlydir", "copy");
    CHECK_INT(picture(&f, half_done, 0, "p0", false), 0);
    submit(&f, batch_b, 1);
    test_redis_kill(&f.redis);
    redis_files(&f, "copy", "appendonlydir");
    test_redis_again(&f.redis);
    CHECK_INT(picture(&f, half_done, 2, "p2", false), 0);
    CHECK(store_note_says(&f, "had gone back"));
    stop(&f);
    start(&f);
    hello(&f);
    CHECK_INT((int)results(&f, half_done, 0, 0)->status.done, 3);
    CHECK_INT((int)results(&f, batch_b, 0, 0)->status.total, 1);
    teardown(&f);
}

TEST(promise_backward_a_store_that_is_behind_the_farms_folder_is_not_begun_with) {
    struct fixture f;
    struct kn_err err = {0};
    struct store *store = NULL;
    setup_with(&f, true);
    fill(&f);
    stop(&f);
    redis_files(&f, "appendonlydir", "copy");
    CHECK_STR(test_redis_ask(&f.redis, "flushall"), "OK");
    struct store_redis_options o = {.address = f.redis.address, .lead_ms = 600, .mark = f.mark};
    for (int i = 0; i < 2; i++) {
        CHECK_INT(store_redis_open(&o, &store, &err), KN_ESTATE);
        CHECK_MSG(strstr(err.text, "has gone back") && strstr(err.text, f.mark), "%s", err.text);
    }
    CHECK_STR(test_redis_ask(&f.redis, "dbsize"), "0"); /* nothing was written into it */
    test_redis_kill(&f.redis);
    redis_files(&f, "copy", "appendonlydir"); /* the right data is put back */
    test_redis_again(&f.redis);
    start(&f);
    check_filled(&f, 1);
    stop(&f);
    CHECK_STR(test_redis_ask(&f.redis, "flushall"), "OK");
    CHECK_INT(unlink(f.mark), 0); /* or a person accepts what there is */
    start(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    teardown(&f);
}

TEST(promise_backward_settings_that_lose_writes_stop_them_until_they_are_mended) {
    struct fixture f;
    struct kn_msg q = {.type = KN_MSG_FARM_QUERY};
    setup_with(&f, true);
    fill(&f);
    const struct kn_farm_status *s;
    CHECK_STR(test_redis_ask(&f.redis, "config set appendonly no"), "OK");
    for (int i = 0; i < 2000; i++) {
        s = &ask(&f, &q, KN_MSG_FARM_STATUS)->u.farm_status;
        if (s->store_text[0]) break;
        run_ms(&f, 5);
    }
    CHECK_MSG(strstr(s->store_text, "appendonly yes (it is no)") != NULL, "%s", s->store_text);
    wish(&f, paused, KN_VERB_RESUME);
    wish(&f, half_done, KN_VERB_PAUSE);
    nothing_is_answered(&f);
    CHECK_STR(test_redis_ask(&f.redis, "config set appendonly yes"), "OK");
    all_are_answered(&f, 2);
    CHECK_INT(command(&f, paused, KN_VERB_PAUSE), 0);
    CHECK_INT(command(&f, half_done, KN_VERB_RESUME), 0);
    check_filled(&f, 1);
    teardown(&f);
}

TEST(promise_backward_at_the_limit_of_memory_a_removal_is_taken_before_what_waits) {
    struct fixture f;
    setup_with(&f, true);
    fill(&f);
    submit(&f, batch_a, 1);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    CHECK_STR(test_redis_ask(&f.redis, "config set maxmemory 1"), "OK");
    wish(&f, paused, KN_VERB_RESUME);
    nothing_is_answered(&f);
    wish(&f, batch_a, KN_VERB_REMOVE);
    CHECK_INT(await(&f, &f.client, KN_MSG_REPLY)->u.reply.code, 0);
    CHECK(status_line(&f, batch_a) == NULL);
    redis_of(&f, "exists", batch_a, "");
    CHECK_INT((int)status_line(&f, paused)->state, KN_BATCH_PAUSED);
    CHECK_STR(test_redis_ask(&f.redis, "config set maxmemory 0"), "OK");
    all_are_answered(&f, 1);
    CHECK_INT((int)status_line(&f, paused)->state, KN_BATCH_ACTIVE);
    teardown(&f);
}
