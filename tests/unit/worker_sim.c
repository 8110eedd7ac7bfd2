/* The simulated engine: pictures and fates are functions of the task. */
#include "tests/unit/check.h"

#include "worker/engine.h"

static void key_from(uint32_t n, uint8_t key[KN_SHA256_BYTES]) {
    kn_sha256(&n, sizeof n, key);
}

TEST(the_words_of_a_simulated_engine_are_read_strictly) {
    struct engine_sim_options o;
    struct kn_err err = {0};
    CHECK_INT(engine_sim_parse("sim", &o, &err), 0);
    CHECK(o.ms == 50 && o.size == 64 && o.crash == 0 && o.batch == 64);
    CHECK_INT(engine_sim_parse("sim:ms=0", &o, &err), 0);
    CHECK_INT(o.batch, KN_SHARD_TASKS_MAX);
    CHECK_INT(
        engine_sim_parse("sim:ms=0.5,crash=0.01,hang=0.002,nan=0.001,flaky=0.1,seed=7,size=128,batch=3,oom=8",
                         &o, &err),
        0);
    CHECK(o.ms == 0.5 && o.crash == 0.01 && o.hang == 0.002 && o.nan == 0.001 && o.flaky == 0.1);
    CHECK(o.seed == 7 && o.size == 128 && o.batch == 3 && o.oom == 8);
    static const struct {
        const char *spec, *word;
    } bad[] = {
        {"sim:ms", "name=value"},
        {"sim:ms=", "ms"},
        {"sim:ms=-1", "ms"},
        {"sim:ms=1e9", "ms"},
        {"sim:ms=nan", "ms"},
        {"sim:crash=1.1", "crash"},
        {"sim:size=65", "multiple"},
        {"sim:size=8", "size"},
        {"sim:seed=1.5", "whole"},
        {"sim:batch=0", "batch"},
        {"sim:crush=1", "did you mean crash?"},
        {"sim:crash=0.6,nan=0.6", "together"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK_MSG(engine_sim_parse(bad[i].spec, &o, &err) == KN_EINVAL, "%s", bad[i].spec);
        CHECK_MSG(strstr(err.text, bad[i].word), "%s: [%s]", bad[i].spec, err.text);
    }
    CHECK(engine_is_sim("sim") && engine_is_sim("sim:ms=1") && !engine_is_sim("simple") &&
          !engine_is_sim("cpu"));
}

TEST(a_picture_depends_on_its_task_and_differs_between_tasks) {
    static uint8_t a[64 * 48 * 3], b[sizeof a];
    uint8_t key[KN_SHA256_BYTES], other[KN_SHA256_BYTES];
    key_from(1, key);
    key_from(2, other);
    engine_sim_draw(key, 64, 48, a);
    memset(b, 7, sizeof b);
    engine_sim_draw(key, 64, 48, b);
    CHECK_MEM(a, b, sizeof a);
    engine_sim_draw(other, 64, 48, b);
    CHECK(memcmp(a, b, sizeof a) != 0);
}

/* A change here changes every stored picture of the class sim-1: then it is sim-2. */
TEST(the_pixels_of_class_sim_1_are_these) {
    static uint8_t a[64 * 64 * 3];
    uint8_t key[KN_SHA256_BYTES] = {0}, digest[KN_SHA256_BYTES];
    char hex[KN_SHA256_HEX];
    for (uint8_t i = 0; i < KN_SHA256_BYTES; i++) key[i] = (uint8_t)(i * 7);
    engine_sim_draw(key, 64, 64, a);
    kn_sha256(a, sizeof a, digest);
    kn_hex(digest, sizeof digest, hex);
    CHECK_STR(hex, "cecbb54f51948430c0b34c7c7e11cba001e4ae21f64c50979fdf2341d89ca00f");
}

TEST(fates_come_in_the_shares_asked_for_and_are_the_same_each_time) {
    struct engine_sim_options o;
    int count[4] = {0};
    CHECK_INT(engine_sim_parse("sim:crash=0.1,hang=0.05,nan=0.02,seed=7", &o, NULL), 0);
    for (uint32_t i = 0; i < 10000; i++) {
        uint8_t key[KN_SHA256_BYTES];
        key_from(i, key);
        enum engine_sim_fate fate = engine_sim_fate(&o, key, 1);
        count[fate]++;
        CHECK_INT(engine_sim_fate(&o, key, 2), fate);
    }
    CHECK(count[SIM_CRASH] > 850 && count[SIM_CRASH] < 1150);
    CHECK(count[SIM_HANG] > 400 && count[SIM_HANG] < 600);
    CHECK(count[SIM_NAN] > 140 && count[SIM_NAN] < 260);
}

TEST(a_flaky_task_does_well_in_another_attempt) {
    struct engine_sim_options o;
    int crashed = 0, twice = 0;
    CHECK_INT(engine_sim_parse("sim:flaky=0.2", &o, NULL), 0);
    for (uint32_t i = 0; i < 5000; i++) {
        uint8_t key[KN_SHA256_BYTES];
        key_from(i, key);
        bool first = engine_sim_fate(&o, key, 1) == SIM_CRASH;
        crashed += first;
        twice += first && engine_sim_fate(&o, key, 2) == SIM_CRASH;
    }
    CHECK(crashed > 850 && crashed < 1150);
    CHECK(twice > 130 && twice < 270);
}

/* ---- rendering */

struct seen {
    int images, steps, status[8];
    uint8_t pixels[8][KN_SHA256_BYTES];
    int stop_at;
};
static int on_step(void *ctx, int step, int steps) {
    struct seen *s = ctx;
    CHECK(step >= 1 && step <= steps);
    return ++s->steps == s->stop_at;
}
static int on_image(void *ctx, const struct kiln_image *image) {
    struct seen *s = ctx;
    s->status[image->index] = image->status;
    if (image->rgb)
        kn_sha256(image->rgb, (size_t)image->task->width * image->task->height * 3, s->pixels[image->index]);
    s->images++;
    return 0;
}

static void make_tasks(struct kn_task *t, int n) {
    static char prompt[] = "p", none[] = "";
    for (int i = 0; i < n; i++)
        t[i] = (struct kn_task){.prompt = prompt,
                                .negative = none,
                                .seed = (uint64_t)i,
                                .cfg = 7,
                                .steps = 4,
                                .width = 32,
                                .height = 32,
                                .sampler = KN_SAMPLER_EULER,
                                .schedule = KN_SCHEDULE_NORMAL,
                                .set = KN_SET_ALL};
}

static int render(const char *spec, struct seen *s, int first, int count) {
    struct engine_options eo = {.spec = spec};
    struct engine_sim_options so;
    struct engine_model model = {.dir = NULL};
    struct engine *e = NULL;
    struct kn_task t[8];
    struct kn_err err = {0};
    struct kiln_callbacks cb = {s, on_step, on_image, NULL};
    CHECK_INT(engine_sim_parse(spec, &so, NULL), 0);
    engine_sim_model(&so, &model.info);
    CHECK_INT(engine_open(&eo, &model, 1, &e, &err), 0);
    make_tasks(t, 8);
    struct engine_work w = {.model = &model.info, .tasks = t + first, .count = count, .attempt = 1};
    CHECK(engine_model(e, model.info.sha256) == &model.info);
    int rc = e->ops->render(e, &w, &cb, &err);
    engine_close(e);
    return rc;
}

TEST(a_picture_is_the_same_in_every_batch_at_every_speed_and_seed) {
    struct seen all = {0}, some = {0};
    CHECK_INT(render("sim:ms=0", &all, 0, 8), 0);
    CHECK_INT(render("sim:ms=2,seed=9", &some, 3, 4), 0);
    CHECK_INT(all.images, 8);
    CHECK_INT(all.steps, 32);
    for (int i = 0; i < 4; i++) CHECK_MEM(some.pixels[i], all.pixels[i + 3], KN_SHA256_BYTES);
}

TEST(not_a_number_is_told_of_the_picture_alone) {
    struct seen s = {0};
    CHECK_INT(render("sim:ms=0,nan=0.5,seed=3", &s, 0, 8), 0);
    int bad = 0;
    for (int i = 0; i < 8; i++) {
        CHECK(s.status[i] == 0 || s.status[i] == KN_ENAN);
        bad += s.status[i] != 0;
    }
    CHECK_INT(s.images, 8);
    CHECK(bad > 0 && bad < 8);
}

TEST(a_render_stops_when_it_is_told_to) {
    struct seen s = {.stop_at = 6};
    CHECK_INT(render("sim:ms=0", &s, 0, 8), KN_ECANCELED);
    CHECK_INT(s.images, 1);
}

TEST(too_many_at_once_are_out_of_memory) {
    struct seen s = {0};
    CHECK_INT(render("sim:ms=0,oom=4", &s, 0, 5), KN_EOOM);
    CHECK_INT(s.images, 0);
    CHECK_INT(render("sim:ms=0,oom=4", &s, 0, 4), 0);
}

TEST(an_engine_that_is_none_is_told) {
    struct engine_options eo = {.spec = "gpu"};
    struct engine *e;
    struct kn_err err = {0};
    CHECK_INT(engine_open(&eo, NULL, 0, &e, &err), KN_EINVAL);
    CHECK(strstr(err.text, "gpu"));
}
