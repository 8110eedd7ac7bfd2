/* Failures: who is charged, who is not, and when it is enough. */
#include "tests/sim/talk.h"

/* Makes the worker known to be fast, so that it gets large shards: renders a batch of its own. */
static void warm_up(struct talk *t, uint64_t conn, const char *name, int batch) {
    OPEN(t, .id = batch, .tasks = 60);
    struct talk_shard queue[64];
    uint32_t head = 0, tail = 0;
    do {
        for (uint32_t n = 0; talk_grant(t, conn, n); n++) queue[tail++] = talk_shard(talk_grant(t, conn, n));
        struct talk_shard s = queue[head++];
        RENDER(t, .conn = conn, .worker = name, .batch = batch, .shard = s);
        for (uint32_t n = 0; talk_grant(t, conn, n); n++) queue[tail++] = talk_shard(talk_grant(t, conn, n));
        farm_effects_clear(&t->fx);
    } while (head < tail);
    CHECK_INT(talk_view(t, batch).done, 60);
}

TEST(a_task_that_fails_three_times_is_failed_with_its_reason) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7, .credit = 4);
    for (uint32_t n = 1; n <= 3; n++) {
        struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
        STARTED(&t, .conn = 7, .shard = s.id);
        FAILED(&t, .conn = 7, .batch = 1, .task = 0, .shard = s.id, .code = KN_EDEVICE);
        CHECK_INT(talk_must(&t, FX_CHARGE, 0)->u.charge.charges, n);
    }
    /* The third charge was the last. */
    CHECK_INT(talk_must(&t, FX_FAIL, 0)->u.fail.code, KN_EDEVICE);
    CHECK_STR(talk_must(&t, FX_FAIL, 0)->u.fail.reason, "it went wrong");
    CHECK_STR(talk_must(&t, FX_FAIL, 0)->u.fail.worker, "a");
    CHECK_INT(talk_task(&t, 1, 0), TASK_FAILED);
    CHECK_INT(talk_view(&t, 1).state, KN_BATCH_DONE);
    talk_end(&t);
}

TEST(the_next_try_is_on_another_worker_if_there_is_one) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7);
    OPEN(&t, .id = 1, .tasks = 1);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    /* Another worker comes, and the first one fails the task. */
    HELLO(&t, .name = "b", .conn = 8, .credit = 1);
    STARTED(&t, .conn = 7, .shard = s.id);
    FAILED(&t, .conn = 7, .batch = 1, .task = 0, .shard = s.id, .code = KN_EDEVICE);
    DONE(&t, .conn = 7, .shard = s.id);
    /* The task is with the second one now, the only other. */
    CHECK_INT(talk_task(&t, 1, 0), TASK_GRANTED);
    struct farm_worker_view v;
    CHECK_INT(farm_worker_at(t.farm, 1, t.now, &v), 0);
    CHECK_STR(v.worker, "b");
    CHECK_INT(v.shards, 1);
    talk_end(&t);
}

TEST(a_killer_is_found_by_halving_and_nobody_else_is_charged) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    warm_up(&t, 7, "a", 9);
    /* Task 5 kills every process that renders it; the worker starts again each time. */
    OPEN(&t, .id = 1, .tasks = 64);
    uint64_t conn = 7;
    uint32_t deaths = 0;
    const uint32_t killer = 5;
    struct talk_shard s = talk_shard(talk_grant(&t, conn, 0));
    CHECK_INT(s.count, 8);
    while (talk_view(&t, 1).state != KN_BATCH_DONE) {
        STARTED(&t, .conn = conn, .shard = s.id);
        bool kills = false;
        for (uint32_t i = 0; i < s.count; i++) kills |= s.tasks[i] == killer;
        if (kills) {
            deaths++;
            GONE(&t, .conn = conn);
            conn++;
            HELLO(&t, .name = "a", .conn = conn, .credit = 1, .instance = (int)deaths + 10);
            const struct farm_effect *charge = talk_fx(&t, FX_CHARGE, 0);
            CHECK(charge != NULL);
            CHECK(!charge->u.charge.charged || (charge->task == killer && s.count == 1));
        } else {
            for (uint32_t i = 0; i < s.count; i++)
                RESULT(&t, .conn = conn, .worker = "a", .batch = 1, .task = s.tasks[i]);
            t.now += 80;
            DONE(&t, .conn = conn, .shard = s.id, .render_ms = 80);
        }
        if (talk_grant(&t, conn, 0)) s = talk_shard(talk_grant(&t, conn, 0));
        CHECK(deaths < 20);
    }
    CHECK_INT(deaths, 6); /* 8, 4, 2 together, then three times alone */
    CHECK_INT(talk_view(&t, 1).failed, 1);
    CHECK_INT(talk_task(&t, 1, killer), TASK_FAILED);
    talk_end(&t);
}

TEST(what_waited_at_a_worker_that_died_is_not_charged) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 2);
    HELLO(&t, .name = "a", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0)), waits = talk_shard(talk_grant(&t, 7, 1));
    STARTED(&t, .conn = 7, .shard = s.id);
    /* It executes the first of its two shards when it dies; a new process says hello. */
    GONE(&t, .conn = 7);
    HELLO(&t, .name = "a", .conn = 8, .instance = 2);
    CHECK_INT(talk_count(&t, FX_CHARGE), 1);
    CHECK_INT(talk_must(&t, FX_CHARGE, 0)->task, s.tasks[0]);
    CHECK(waits.tasks[0] != s.tasks[0]);
    talk_end(&t);
}

TEST(silence_charges_what_was_executing) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    HEARTBEAT(&t, .conn = 7, .shard = s.id); /* says so as well as "started" would */
    talk_wait(&t, 10100);
    CHECK_INT(talk_must(&t, FX_CHARGE, 0)->u.charge.charges, 1);
    talk_end(&t);
}

TEST(a_hang_is_taken_back_and_charged) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    /* It is alive, but what it executes makes no progress: patience lasts 330 s. */
    for (uint32_t age = 1000; age < 329000; age += 1000) {
        t.now += 1000;
        HEARTBEAT(&t, .conn = 7, .shard = s.id, .age_ms = age);
        CHECK_INT(talk_count(&t, FX_REVOKE), 0);
    }
    /* Then the shard is taken back, by force, and its task charged. */
    t.now += 2000;
    HEARTBEAT(&t, .conn = 7, .shard = s.id, .age_ms = 331000);
    talk_wait(&t, 100);
    CHECK(talk_must(&t, FX_REVOKE, 0)->u.revoke.abort);
    CHECK_INT(talk_must(&t, FX_CHARGE, 0)->u.charge.charges, 1);
    talk_end(&t);
}

TEST(slow_but_alive_is_no_hang) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    STARTED(&t, .conn = 7, .shard = s.id);
    /* A thousand seconds, with a step every second or so. */
    for (int i = 0; i < 1000; i++) {
        talk_wait(&t, 1000);
        CHECK_INT(talk_count(&t, FX_REVOKE), 0);
        HEARTBEAT(&t, .conn = 7, .shard = s.id, .age_ms = 900);
    }
    talk_end(&t);
}

TEST(nan_is_final_at_once_where_there_is_one_worker_that_is_well) {
    struct talk t;
    talk_begin(&t);
    t.probes_silent = true;
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7);
    STARTED(&t, .conn = 7, .shard = 1);
    FAILED(&t, .conn = 7, .batch = 1, .task = 0, .shard = 1, .code = KN_ENAN);
    /* Nobody else is there to try it; but is it the task, or the worker? */
    CHECK_INT(talk_count(&t, FX_FAIL), 0);
    PROBED(&t, .conn = 7, .probe = talk_must(&t, FX_PROBE, 0)->u.probe.probe);
    CHECK_INT(talk_must(&t, FX_FAIL, 0)->u.fail.code, KN_ENAN);
    talk_end(&t);
}

TEST(nan_is_tried_once_on_another_worker_of_the_class) {
    struct talk t;
    talk_begin(&t);
    t.probes_silent = true;
    OPEN(&t, .id = 1, .tasks = 2);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    HELLO(&t, .name = "b", .conn = 8, .credit = 1);
    struct talk_shard other = talk_shard(talk_grant(&t, 8, 0));
    STARTED(&t, .conn = 7, .shard = 1);
    FAILED(&t, .conn = 7, .batch = 1, .task = 0, .shard = 1, .code = KN_ENAN);
    DONE(&t, .conn = 7, .shard = 1);
    RENDER(&t, .conn = 8, .worker = "b", .batch = 1, .shard = other);
    struct talk_shard again = talk_shard(talk_grant(&t, 8, 0));
    CHECK_INT(again.tasks[0], 0);
    /* The first one is well: a picture of another batch shows it, that was begun behind the failure. */
    OPEN(&t, .id = 2, .tasks = 1);
    RENDER(&t, .conn = 7, .worker = "a", .batch = 2, .shard = talk_shard(talk_grant(&t, 7, 0)));
    HELLO(&t, .name = "c", .conn = 9, .credit = 1);
    STARTED(&t, .conn = 8, .shard = again.id);
    FAILED(&t, .conn = 8, .batch = 1, .task = 0, .shard = again.id, .code = KN_ENAN);
    /* The other one got NaN too, and a third is spared. Is the other one well? */
    CHECK_INT(talk_count(&t, FX_GRANT) + talk_count(&t, FX_FAIL), 0);
    PROBED(&t, .conn = 8, .probe = talk_must(&t, FX_PROBE, 0)->u.probe.probe);
    CHECK_INT(talk_task(&t, 1, 0), TASK_FAILED);
    talk_end(&t);
}

TEST(nan_is_tried_on_another_class) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7, .backend = "cpu-a");
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    HELLO(&t, .name = "b", .conn = 9, .backend = "cuda-b");
    STARTED(&t, .conn = 7, .shard = s.id);
    FAILED(&t, .conn = 7, .batch = 1, .task = 0, .shard = s.id, .code = KN_ENAN);
    CHECK_INT(talk_count(&t, FX_FAIL), 0);
    s = talk_shard(talk_grant(&t, 9, 0));
    STARTED(&t, .conn = 9, .shard = s.id);
    /* NaN there too: no class is left, and both workers are well. */
    FAILED(&t, .conn = 9, .batch = 1, .task = 0, .shard = s.id, .code = KN_ENAN);
    talk_wait(&t, 200);
    CHECK_INT(talk_task(&t, 1, 0), TASK_FAILED);
    talk_end(&t);
}

TEST(nan_that_waits_for_a_class_that_left_is_failed) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7, .backend = "cpu-a");
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    OPEN(&t, .id = 2, .tasks = 8);
    HELLO(&t, .name = "b", .conn = 9, .backend = "cuda-b", .credit = 1); /* busy with the other batch */
    STARTED(&t, .conn = 7, .shard = s.id);
    /* The task waits for the other class, which is busy … */
    FAILED(&t, .conn = 7, .batch = 1, .task = 0, .shard = s.id, .code = KN_ENAN);
    CHECK_INT(talk_task(&t, 1, 0), TASK_QUEUED);
    /* … and leaves: nobody is left who could do better. */
    GONE(&t, .conn = 9, .bye = true);
    talk_wait(&t, 200);
    CHECK_INT(talk_task(&t, 1, 0), TASK_FAILED);
    talk_end(&t);
}

TEST(out_of_memory_halves_the_shard_and_charges_nobody) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    warm_up(&t, 7, "a", 9);
    OPEN(&t, .id = 1, .tasks = 64);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    CHECK_INT(s.count, 8);
    STARTED(&t, .conn = 7, .shard = s.id);
    /* Eight at a time were too many; four are tried. */
    RETURNED(&t, .conn = 7, .shard = s.id, .out_of_memory = true);
    CHECK_INT(talk_count(&t, FX_CHARGE), 0);
    CHECK_INT(talk_must_grant(&t, 7, 0)->u.grant.task_count, 4);
    CHECK_INT(talk_must_grant(&t, 7, 0)->u.grant.tasks[0], s.tasks[0]); /* the same ones, in their order */
    talk_end(&t);
}

TEST(out_of_memory_for_a_single_image_is_a_failure) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    /* There is nothing to halve: each time is a failure. */
    for (int i = 0; i < 3; i++) {
        struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
        STARTED(&t, .conn = 7, .shard = s.id);
        RETURNED(&t, .conn = 7, .shard = s.id, .out_of_memory = true);
        CHECK_INT(talk_count(&t, FX_CHARGE), 1);
    }
    CHECK_INT(talk_must(&t, FX_FAIL, 0)->u.fail.code, KN_EOOM);
    talk_end(&t);
}

TEST(a_worker_that_the_kernel_killed_for_want_of_memory_charges_nobody_and_gets_fewer) {
    struct talk t;
    talk_begin(&t);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    warm_up(&t, 7, "a", 9);
    OPEN(&t, .id = 1, .tasks = 64);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    CHECK_INT(s.count, 8);
    STARTED(&t, .conn = 7, .shard = s.id);
    /* The kernel ends it in the middle of eight; the next process says so in its hello. */
    GONE(&t, .conn = 7);
    HELLO(&t, .name = "a", .conn = 8, .instance = 2, .credit = 1, .died_of_memory = true);
    CHECK_INT(talk_count(&t, FX_CHARGE), 0);
    struct talk_shard again = talk_shard(talk_grant(&t, 8, 0));
    CHECK_INT(again.count, 4);
    CHECK_INT(again.tasks[0], s.tasks[0]);
    STARTED(&t, .conn = 8, .shard = again.id);
    /* Four fit. The other four are not looked at one by one, as a killer's companions would be. */
    for (uint32_t i = 0; i < 4; i++) RESULT(&t, .conn = 8, .worker = "a", .batch = 1, .task = again.tasks[i]);
    DONE(&t, .conn = 8, .shard = again.id, .render_ms = 400);
    CHECK_INT(talk_must_grant(&t, 8, 0)->u.grant.task_count, 4);
    talk_end(&t);
}

/* The kernel kills a's process while it renders one image alone, and the next one says so. The charges of it. */
static uint32_t killed_for_memory(struct talk *t, uint64_t conn) {
    struct talk_shard s = talk_shard(talk_grant(t, conn, 0));
    CHECK_INT(s.count, 1);
    STARTED(t, .conn = conn, .shard = s.id);
    GONE(t, .conn = conn);
    HELLO(t, .name = "a", .conn = conn + 1, .instance = (int)conn, .credit = 1, .died_of_memory = true);
    const struct farm_effect *e = talk_fx(t, FX_CHARGE, 0);
    return e && e->u.charge.charged ? 1 : 0;
}

TEST(an_image_pays_for_a_kill_for_memory_only_when_it_comes_again_and_again) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    /* Another program may have taken the memory. */
    uint64_t conn = 7;
    uint32_t kills = 0;
    while (killed_for_memory(&t, conn++) == 0) CHECK(++kills < 10);
    CHECK_INT(kills, 3);
    /* By now it is the image. */
    CHECK_INT(killed_for_memory(&t, conn++), 1);
    CHECK_INT(killed_for_memory(&t, conn), 1);
    CHECK_INT(talk_must(&t, FX_FAIL, 0)->u.fail.code, KN_EOOM);
    CHECK(strstr(talk_must(&t, FX_FAIL, 0)->u.fail.reason, "out of memory: the kernel killed worker a"));
    talk_end(&t);
}

TEST(a_worker_without_memory_for_a_shape_leaves_it_to_others) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 20);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    struct talk_shard s = talk_shard(talk_grant(&t, 7, 0));
    HELLO(&t, .name = "b", .conn = 8, .credit = 1);
    STARTED(&t, .conn = 7, .shard = s.id);
    /* Not even one image fits on a, so it gets none of this shape, while b is there. */
    RETURNED(&t, .conn = 7, .shard = s.id, .out_of_memory = true);
    CHECK(!talk_grant(&t, 7, 0));
    talk_wait(&t, 500);
    CHECK(!talk_grant(&t, 7, 0));
    talk_end(&t);
}

TEST(a_sick_worker_is_held_and_its_charges_are_taken_back) {
    struct talk t;
    talk_begin(&t);
    t.probes_silent = true;
    OPEN(&t, .id = 1, .tasks = 3);
    HELLO(&t, .name = "bad", .conn = 7, .credit = 3);
    for (uint64_t shard = 1; shard <= 2; shard++) {
        STARTED(&t, .conn = 7, .shard = shard);
        CHECK_INT(talk_count(&t, FX_PROBE), 0);
        FAILED(&t, .conn = 7, .batch = 1, .task = (uint32_t)shard - 1, .shard = shard, .code = KN_EDEVICE);
    }
    /* Two failures in a row: high time to know. Nothing is granted to it meanwhile. */
    CHECK_INT(talk_count(&t, FX_GRANT), 0);
    PROBED(&t, .conn = 7, .probe = talk_must(&t, FX_PROBE, 0)->u.probe.probe, .code = KN_ENAN);
    CHECK_STR(talk_worker(&t, "bad").hold_reason, "its probe picture failed: it went wrong");
    CHECK_INT(talk_must(&t, FX_CHARGE, 0)->u.charge.charges, 0);
    CHECK_INT(talk_must(&t, FX_CHARGE, 1)->u.charge.charges, 0);
    CHECK_INT(talk_view(&t, 1).queued, 3);
    CHECK_INT(talk_view(&t, 1).wait, KN_WAIT_HELD);
    talk_end(&t);
}

TEST(a_worker_that_passes_its_probe_and_fails_what_others_do_is_held) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 40);
    HELLO(&t, .name = "bad", .conn = 7, .credit = 1);
    struct talk_shard bad = talk_shard(talk_grant(&t, 7, 0));
    HELLO(&t, .name = "good", .conn = 8, .credit = 1);
    struct talk_shard good = talk_shard(talk_grant(&t, 8, 0));
    /* The bad one fails each task that it gets; the good one then renders it, among others. */
    for (int i = 0; i < 12 && !talk_worker(&t, "bad").hold_reason[0]; i++) {
        STARTED(&t, .conn = 7, .shard = bad.id);
        FAILED(&t, .conn = 7, .batch = 1, .task = bad.tasks[0], .shard = bad.id, .code = KN_EDEVICE);
        DONE(&t, .conn = 7, .shard = bad.id);
        if (talk_grant(&t, 7, 0)) bad = talk_shard(talk_grant(&t, 7, 0));
        STARTED(&t, .conn = 8, .shard = good.id);
        for (uint32_t n = 0; n < good.count; n++)
            RESULT(&t, .conn = 8, .worker = "good", .batch = 1, .task = good.tasks[n]);
        t.now += 20000;
        HEARTBEAT(&t, .conn = 7);
        /* So slow that its shards stay at one image. */
        DONE(&t, .conn = 8, .shard = good.id, .render_ms = 20000);
        if (talk_grant(&t, 8, 0)) good = talk_shard(talk_grant(&t, 8, 0));
    }
    CHECK(talk_worker(&t, "bad").hold_reason[0]);
    CHECK_INT(talk_view(&t, 1).failed, 0);
    talk_end(&t);
}

TEST(a_held_worker_comes_back_with_a_probe_that_comes_out_well) {
    struct talk t;
    talk_begin(&t);
    t.probes_silent = true;
    OPEN(&t, .id = 1, .tasks = 3);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    STARTED(&t, .conn = 7, .shard = 1);
    /* It cannot load the model: no task is charged for that. */
    FAILED(&t, .conn = 7, .batch = 1, .task = 0, .shard = 1, .code = KN_EMODEL);
    CHECK_INT(talk_count(&t, FX_CHARGE), 0);
    CHECK_STR(talk_worker(&t, "a").hold_reason, "it went wrong");
    RETURNED(&t, .conn = 7, .shard = 1);
    /* Its files are away still … */
    talk_wait(&t, 2000);
    CHECK(!talk_view(&t, 1).held);
    PROBED(&t, .conn = 7, .probe = talk_must(&t, FX_PROBE, 0)->u.probe.probe, .code = KN_EMODEL);
    CHECK(talk_view(&t, 1).held);
    /* … and after twice the pause they are there again. */
    talk_wait(&t, 3900);
    CHECK_INT(talk_count(&t, FX_PROBE), 0);
    talk_wait(&t, 100);
    PROBED(&t, .conn = 7, .probe = talk_must(&t, FX_PROBE, 0)->u.probe.probe);
    CHECK_INT(talk_count(&t, FX_GRANT), 1);
    CHECK_STR(talk_worker(&t, "a").hold_reason, "");
    talk_end(&t);
}

TEST(a_worker_that_dies_at_its_probe_is_held) {
    struct talk t;
    talk_begin(&t);
    t.probes_silent = true;
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7, .credit = 1);
    for (uint64_t conn = 7; conn < 9; conn++) {
        STARTED(&t, .conn = conn, .shard = conn - 6);
        GONE(&t, .conn = conn);
        HELLO(&t, .name = "a", .conn = conn + 1, .instance = (int)conn, .credit = 1);
    }
    CHECK_INT(talk_count(&t, FX_PROBE), 1);
    GONE(&t, .conn = 9);
    HELLO(&t, .name = "a", .conn = 10, .instance = 9, .credit = 1);
    CHECK_STR(talk_worker(&t, "a").hold_reason, "it ended at its probe picture");
    CHECK_INT(talk_task(&t, 1, 0), TASK_QUEUED);
    /* Another process is looked at without a pause. */
    talk_wait(&t, 100);
    CHECK_INT(talk_count(&t, FX_PROBE), 1);
    talk_end(&t);
}

TEST(a_worker_of_an_older_kind_is_believed) {
    struct talk t;
    talk_begin(&t);
    OPEN(&t, .id = 1, .tasks = 1);
    HELLO(&t, .name = "a", .conn = 7, .no_probes = true);
    STARTED(&t, .conn = 7, .shard = 1);
    FAILED(&t, .conn = 7, .batch = 1, .task = 0, .shard = 1, .code = KN_ENAN);
    CHECK_INT(talk_count(&t, FX_PROBE), 0);
    talk_wait(&t, 200);
    CHECK_INT(talk_task(&t, 1, 0), TASK_FAILED);
    talk_end(&t);
}

TEST(charges_from_before_a_restart_count) {
    struct talk t;
    talk_begin(&t);
    const struct farm_charge charges[] = {{3, 2}};
    OPEN(&t, .id = 1, .tasks = 4, .charges = charges, .charge_count = 1);
    HELLO(&t, .name = "a", .conn = 7, .credit = 4);
    /* Task 3, charged twice before the restart, travels alone; one more charge is enough. */
    for (uint32_t n = 0; talk_grant(&t, 7, n); n++) {
        const struct farm_effect *e = talk_grant(&t, 7, n);
        if (e->u.grant.tasks[0] != 3) continue;
        CHECK_INT(e->u.grant.task_count, 1);
        CHECK_INT(e->u.grant.attempt, 3);
        struct talk_shard s = talk_shard(e);
        STARTED(&t, .conn = 7, .shard = s.id);
        FAILED(&t, .conn = 7, .batch = 1, .task = 3, .shard = s.id, .code = KN_EDEVICE);
        CHECK_INT(talk_count(&t, FX_FAIL), 1);
        talk_end(&t);
        return;
    }
    CHECK_MSG(false, "task 3 was not granted");
}
