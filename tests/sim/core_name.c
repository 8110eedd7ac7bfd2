/* Names of workers: two that want one, and those that nobody chose. */
#include "tests/sim/talk.h"

/* The question that was put to this connection by the last event; 0: none. */
static uint64_t asked(const struct talk *t, uint64_t conn) {
    for (size_t i = 0; i < t->fx.count; i++)
        if (t->fx.v[i].type == FX_ASK && t->fx.v[i].conn == conn) return t->fx.v[i].u.ask.question;
    return 0;
}

static bool told(const struct talk *t, enum farm_effect_type type, uint64_t conn) {
    for (size_t i = 0; i < t->fx.count; i++)
        if (t->fx.v[i].type == type && t->fx.v[i].conn == conn) return true;
    return false;
}

/* The name that the last event's welcome gives to this connection; "" without one. */
static const char *named(const struct talk *t, uint64_t conn) {
    for (size_t i = 0; i < t->fx.count; i++)
        if (t->fx.v[i].type == FX_WELCOME && t->fx.v[i].conn == conn) return t->fx.v[i].u.welcome.worker;
    return "";
}

TEST(who_is_there_keeps_its_name_and_nobody_is_charged) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    CHECK_INT(HELLO(&t, .name = "a", .conn = 7, .instance = 1), 0);
    CHECK_STR(named(&t, 7), "a");
    struct talk_shard s = talk_shard(talk_must_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    /* A second process of that name: the first is asked, and loses nothing meanwhile. */
    CHECK_INT(HELLO(&t, .name = "a", .conn = 8, .instance = 2), KN_EAGAIN);
    uint64_t question = asked(&t, 7);
    CHECK(question != 0);
    CHECK_INT(talk_count(&t, FX_CHARGE) + talk_count(&t, FX_GRANT) + talk_count(&t, FX_WELCOME), 0);
    /* It answers: the newcomer is refused. */
    HEARTBEAT(&t, .conn = 7, .shard = s.id, .answer = question);
    CHECK(told(&t, FX_REFUSE, 8));
    CHECK_STR(talk_must(&t, FX_REFUSE, 0)->u.refuse.worker, "a");
    RENDER(&t, .conn = 7, .worker = "a", .batch = 1, .shard = s);
    CHECK_INT(talk_view(&t, 1).done, 1);
    CHECK_INT(farm_worker_count(t.farm), 1);
    talk_end(&t);
}

TEST(what_was_said_before_the_question_is_no_answer) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .instance = 1);
    CHECK_INT(HELLO(&t, .name = "a", .conn = 8, .instance = 2), KN_EAGAIN);
    /* A heartbeat that a dead process had sent is still read after the newcomer's hello. */
    HEARTBEAT(&t, .conn = 7);
    CHECK_INT(talk_count(&t, FX_REFUSE), 0);
    talk_wait(&t, 2000);
    CHECK(told(&t, FX_HELLO_AGAIN, 8));
    CHECK_INT(HELLO(&t, .name = "a", .conn = 8, .instance = 2), 0);
    CHECK_STR(named(&t, 8), "a");
    talk_end(&t);
}

TEST(a_worker_of_an_older_kind_answers_with_any_heartbeat) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .instance = 1, .mute = true);
    CHECK_INT(HELLO(&t, .name = "a", .conn = 8, .instance = 2), KN_EAGAIN);
    HEARTBEAT(&t, .conn = 7);
    CHECK(told(&t, FX_REFUSE, 8));
    talk_end(&t);
}

TEST(a_restarted_worker_takes_over_when_the_old_connection_breaks_and_the_death_is_charged) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7, .instance = 1);
    struct talk_shard s = talk_shard(talk_must_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    CHECK_INT(HELLO(&t, .name = "a", .conn = 8, .instance = 2), KN_EAGAIN);
    GONE(&t, .conn = 7); /* the question could not be sent */
    CHECK(told(&t, FX_HELLO_AGAIN, 8));
    CHECK_INT(HELLO(&t, .name = "a", .conn = 8, .instance = 2), 0);
    CHECK_INT(talk_count(&t, FX_CHARGE), 1);
    CHECK(talk_grant(&t, 8, 0));
    talk_end(&t);
}

TEST(who_gives_no_answer_for_two_heartbeats_is_replaced_and_nobody_is_charged) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7, .instance = 1);
    struct talk_shard s = talk_shard(talk_must_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    CHECK_INT(HELLO(&t, .name = "a", .conn = 8, .instance = 2), KN_EAGAIN);
    talk_wait(&t, 1900);
    CHECK(!told(&t, FX_HELLO_AGAIN, 8));
    talk_wait(&t, 100);
    CHECK(told(&t, FX_HELLO_AGAIN, 8));
    CHECK_INT(HELLO(&t, .name = "a", .conn = 8, .instance = 2), 0);
    CHECK_INT(talk_count(&t, FX_CHARGE), 0);
    CHECK(talk_grant(&t, 8, 0));
    /* It was frozen and is back: now the other one is asked, and it is the one to be refused. */
    CHECK_INT(HELLO(&t, .name = "a", .conn = 9, .instance = 1), KN_EAGAIN);
    HEARTBEAT(&t, .conn = 8, .answer = asked(&t, 8));
    CHECK(told(&t, FX_REFUSE, 9));
    talk_end(&t);
}

TEST(the_same_process_over_a_new_connection_is_not_asked) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .instance = 1);
    CHECK_INT(HELLO(&t, .name = "a", .conn = 8, .instance = 1), 0);
    CHECK_INT(talk_count(&t, FX_ASK), 0);
    talk_end(&t);
}

TEST(names_that_nobody_chose_get_the_lowest_free_number) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "box-0", .base = "box", .machine = 1, .conn = 7, .instance = 1);
    CHECK_STR(named(&t, 7), "box");
    HELLO(&t, .name = "box-0", .base = "box", .machine = 2, .conn = 8, .instance = 2);
    CHECK_STR(named(&t, 8), "box-2");
    /* A person's choice takes a number, too. */
    HELLO(&t, .name = "box-3", .conn = 9, .instance = 3);
    HELLO(&t, .name = "box-0", .base = "box", .machine = 4, .conn = 10, .instance = 4);
    CHECK_STR(named(&t, 10), "box-4");
    talk_end(&t);
}

TEST(a_name_that_nobody_chose_comes_back_to_its_machine) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "box-0", .base = "box", .machine = 1, .conn = 7, .instance = 1);
    HELLO(&t, .name = "box-0", .base = "box", .machine = 2, .conn = 8, .instance = 2);
    GONE(&t, .conn = 7, .bye = true);
    GONE(&t, .conn = 8, .bye = true);
    HELLO(&t, .name = "box-0", .base = "box", .machine = 2, .conn = 9, .instance = 3);
    CHECK_STR(named(&t, 9), "box-2");
    HELLO(&t, .name = "box-0", .base = "box", .machine = 1, .conn = 10, .instance = 4);
    CHECK_STR(named(&t, 10), "box");
    CHECK_INT(farm_worker_count(t.farm), 2);
    talk_end(&t);
}

TEST(clones_of_a_machine_get_names_of_their_own) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "box-0", .base = "box", .machine = 1, .conn = 7, .instance = 1);
    /* The second could be the first one restarted: that one is asked, answers, and keeps its name. */
    CHECK_INT(HELLO(&t, .name = "box-0", .base = "box", .machine = 1, .conn = 8, .instance = 2), KN_EAGAIN);
    HEARTBEAT(&t, .conn = 7, .answer = asked(&t, 7));
    CHECK(told(&t, FX_HELLO_AGAIN, 8));
    CHECK_INT(HELLO(&t, .name = "box-0", .base = "box", .machine = 1, .conn = 8, .instance = 2), 0);
    CHECK_STR(named(&t, 8), "box-2");
    /* The third asks both at once. */
    CHECK_INT(HELLO(&t, .name = "box-0", .base = "box", .machine = 1, .conn = 9, .instance = 3), KN_EAGAIN);
    uint64_t first = asked(&t, 7), second = asked(&t, 8);
    HEARTBEAT(&t, .conn = 7, .answer = first);
    CHECK(!told(&t, FX_HELLO_AGAIN, 9));
    HEARTBEAT(&t, .conn = 8, .answer = second);
    CHECK_INT(HELLO(&t, .name = "box-0", .base = "box", .machine = 1, .conn = 9, .instance = 3), 0);
    CHECK_STR(named(&t, 9), "box-3");
    talk_end(&t);
}

TEST(a_new_coordinator_leaves_the_names_that_an_earlier_one_gave) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "box-2", .base = "box", .named = true, .machine = 2, .conn = 8, .instance = 2);
    CHECK_STR(named(&t, 8), "box-2");
    HELLO(&t, .name = "box", .base = "box", .named = true, .machine = 1, .conn = 7, .instance = 1);
    CHECK_STR(named(&t, 7), "box");
    talk_end(&t);
}

TEST(a_newcomer_that_went_is_forgotten) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .instance = 1);
    CHECK_INT(HELLO(&t, .name = "a", .conn = 8, .instance = 2), KN_EAGAIN);
    uint64_t question = asked(&t, 7);
    GONE(&t, .conn = 8);
    HEARTBEAT(&t, .conn = 7, .answer = question);
    CHECK_INT(talk_count(&t, FX_REFUSE), 0);
    talk_end(&t);
}
