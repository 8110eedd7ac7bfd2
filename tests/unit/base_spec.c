/* The render spec: names, ranges, resolution, the key, the parameters text. */
#include <math.h>

#include "base/spec.h"
#include "tests/unit/check.h"

static char prompt[] = "a cat", none[] = "", blurry[] = "blurry";

static struct kn_model_info model(void) {
    struct kn_model_info m = {.name = "tiny",
                              .defaults = {KN_SAMPLER_DPMPP_2M, KN_SCHEDULE_KARRAS, 20, 7.0f, 128, 128},
                              .size_multiple = 16,
                              .size_max = 512};
    for (size_t i = 0; i < sizeof m.sha256; i++) m.sha256[i] = (uint8_t)i;
    return m;
}

static struct kn_task resolved(void) {
    struct kn_task t = {.prompt = prompt, .negative = none, .seed = 42, .set = KN_SET_SEED};
    struct kn_model_info m = model();
    CHECK_INT(kn_task_resolve(&t, &m, NULL), 0);
    return t;
}

TEST(sampler_names_of_all_three_worlds_mean_the_same) {
    static const struct {
        const char *text;
        enum kn_sampler want;
    } cases[] = {
        {"DDIM", KN_SAMPLER_DDIM},           {"ddim", KN_SAMPLER_DDIM},
        {"DDIMScheduler", KN_SAMPLER_DDIM},  {"PNDM", KN_SAMPLER_PNDM},
        {"PLMS", KN_SAMPLER_PNDM},           {"Euler", KN_SAMPLER_EULER},
        {"k_euler", KN_SAMPLER_EULER},       {"Euler a", KN_SAMPLER_EULER_A},
        {"EULER A", KN_SAMPLER_EULER_A},     {"euler_a", KN_SAMPLER_EULER_A},
        {"k_euler_a", KN_SAMPLER_EULER_A},   {"euler_ancestral", KN_SAMPLER_EULER_A},
        {"DPM++ 2M", KN_SAMPLER_DPMPP_2M},   {"dpm++ 2m", KN_SAMPLER_DPMPP_2M},
        {"dpmpp_2m", KN_SAMPLER_DPMPP_2M},   {"DPMSolverMultistepScheduler", KN_SAMPLER_DPMPP_2M},
        {"k_dpmpp_2m", KN_SAMPLER_DPMPP_2M}, {"EulerAncestralDiscreteScheduler", KN_SAMPLER_EULER_A},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum kn_sampler s = KN_SAMPLER_UNSET;
        CHECK_MSG(kn_sampler_parse(cases[i].text, &s, NULL) == 0, "%s", cases[i].text);
        CHECK_MSG(s == cases[i].want, "%s", cases[i].text);
    }
}

TEST(sampler_that_is_none_is_answered_with_the_list_and_the_nearest) {
    struct kn_err err = {0};
    enum kn_sampler s;
    CHECK_INT(kn_sampler_parse("Eulr a", &s, &err), KN_EINVAL);
    CHECK_STR(err.text, "\"Eulr a\" is not one of " KN_SAMPLER_LIST "; did you mean Euler a?");
    CHECK_INT(kn_sampler_parse("Restart", &s, &err), KN_EINVAL);
    CHECK_STR(err.text, "\"Restart\" is not one of " KN_SAMPLER_LIST);
    CHECK_INT(kn_sampler_parse("", &s, &err), KN_EINVAL);
    CHECK_INT(kn_sampler_parse("DPM++ 2M Karras", &s, &err), KN_EINVAL);
    CHECK_STR(err.text,
              "\"DPM++ 2M Karras\" is the sampler \"DPM++ 2M\" with the schedule \"karras\": name both");
}

TEST(sampler_and_schedule_names_go_there_and_back) {
    for (int i = 0; i < KN_SAMPLER_COUNT; i++) {
        enum kn_sampler s = KN_SAMPLER_UNSET;
        CHECK_INT(kn_sampler_parse(kn_sampler_name(kn_samplers[i]), &s, NULL), 0);
        CHECK_INT(s, kn_samplers[i]);
    }
    for (int v = KN_SCHEDULE_NORMAL; v <= KN_SCHEDULE_KARRAS; v++) {
        enum kn_schedule s = KN_SCHEDULE_UNSET;
        CHECK_INT(kn_schedule_parse(kn_schedule_name((enum kn_schedule)v), &s, NULL), 0);
        CHECK_INT(s, v);
    }
    enum kn_schedule s;
    struct kn_err err = {0};
    CHECK_INT(kn_schedule_parse("Karas", &s, &err), KN_EINVAL);
    CHECK_STR(err.text, "\"Karas\" is not one of normal, karras; did you mean karras?");
    CHECK_STR(kn_sampler_name((enum kn_sampler)99), "?");
    CHECK_STR(kn_schedule_name(KN_SCHEDULE_UNSET), "?");
}

TEST(karras_fits_the_samplers_that_walk_sigmas) {
    CHECK(!kn_schedule_fits(KN_SAMPLER_DDIM, KN_SCHEDULE_KARRAS));
    CHECK(!kn_schedule_fits(KN_SAMPLER_PNDM, KN_SCHEDULE_KARRAS));
    CHECK(kn_schedule_fits(KN_SAMPLER_EULER, KN_SCHEDULE_KARRAS));
    CHECK(kn_schedule_fits(KN_SAMPLER_EULER_A, KN_SCHEDULE_KARRAS));
    CHECK(kn_schedule_fits(KN_SAMPLER_DPMPP_2M, KN_SCHEDULE_KARRAS));
    CHECK(kn_schedule_fits(KN_SAMPLER_DDIM, KN_SCHEDULE_NORMAL));
}

TEST(a_near_miss_is_suggested_and_a_far_one_is_not) {
    static const char *const names[] = {"steps", "seed", "size", "negative", "negative_prompt", "cfg", NULL};
    static const struct {
        const char *word, *want;
    } cases[] = {
        {"stesp", "steps"},
        {"step", "steps"},
        {"Steps", "steps"},
        {"sead", "seed"},
        {"seeed", "seed"},
        {"negativ", "negative"},
        {"cgf", "cfg"},
        {"negatve_promt", "negative_prompt"},
        {"tags", NULL},
        {"id", NULL},
        {"note", NULL},
        {"category", NULL},
        {"x", NULL},
        {"", NULL},
        {"sz", NULL},
        {"style", NULL},
        {"a word far longer than any name that there is", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_STR(kn_suggest(cases[i].word, names), cases[i].want);
}

TEST(size_is_two_whole_numbers_and_an_x) {
    uint32_t w = 0, h = 0;
    CHECK_INT(kn_size_parse("512x768", &w, &h, NULL), 0);
    CHECK_INT(w, 512);
    CHECK_INT(h, 768);
    CHECK_INT(kn_size_parse("64X32", &w, &h, NULL), 0);
    static const char *const wrong[] = {"",         "512",  "512x", "x512",  "512x768x", "512x768 ",
                                        " 512x768", "-1x5", "5 x5", "1e2x5", "512*768",  "99999999999x8"};
    struct kn_err err = {0};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK_MSG(kn_size_parse(wrong[i], &w, &h, &err) == KN_EINVAL, "%s", wrong[i]);
    CHECK_STR(err.text, "\"99999999999x8\" is not WIDTHxHEIGHT, as in 512x768");
}

TEST(resolve_fills_what_is_unset_from_the_model_and_keeps_what_is_set) {
    struct kn_model_info m = model();
    struct kn_task t = {
        .prompt = prompt, .negative = none, .seed = 7, .steps = 5, .set = KN_SET_SEED | KN_SET_STEPS};
    CHECK_INT(kn_task_resolve(&t, &m, NULL), 0);
    CHECK_INT(t.set & KN_SET_ALL, KN_SET_ALL);
    CHECK_INT(t.steps, 5);
    CHECK_INT(t.sampler, KN_SAMPLER_DPMPP_2M);
    CHECK_INT(t.schedule, KN_SCHEDULE_KARRAS);
    CHECK(t.cfg == 7.0f && t.width == 128 && t.height == 128 && t.seed == 7);
}

TEST(resolve_drops_the_models_schedule_when_the_chosen_sampler_has_no_use_for_it) {
    struct kn_model_info m = model();
    struct kn_task t = {
        .prompt = prompt, .negative = none, .sampler = KN_SAMPLER_DDIM, .set = KN_SET_SEED | KN_SET_SAMPLER};
    CHECK_INT(kn_task_resolve(&t, &m, NULL), 0);
    CHECK_INT(t.schedule, KN_SCHEDULE_NORMAL);
}

TEST(a_folders_karras_goes_to_samplers_whose_class_has_the_option) {
    static const struct {
        enum kn_sampler folders, asked;
        enum kn_schedule want;
    } rows[] = {
        {KN_SAMPLER_EULER, KN_SAMPLER_UNSET, KN_SCHEDULE_KARRAS},
        {KN_SAMPLER_EULER, KN_SAMPLER_DPMPP_2M, KN_SCHEDULE_KARRAS},
        {KN_SAMPLER_EULER, KN_SAMPLER_EULER_A, KN_SCHEDULE_NORMAL},
        {KN_SAMPLER_EULER_A, KN_SAMPLER_UNSET, KN_SCHEDULE_NORMAL},
        {KN_SAMPLER_EULER_A, KN_SAMPLER_EULER, KN_SCHEDULE_KARRAS},
        {KN_SAMPLER_DDIM, KN_SAMPLER_UNSET, KN_SCHEDULE_NORMAL},
        {KN_SAMPLER_DDIM, KN_SAMPLER_EULER, KN_SCHEDULE_KARRAS},
        {KN_SAMPLER_UNSET, KN_SAMPLER_DPMPP_2M, KN_SCHEDULE_KARRAS},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct kn_model_info m = model();
        struct kn_task t = {.prompt = prompt, .negative = none, .seed = 1, .set = KN_SET_SEED};
        m.defaults.sampler = rows[i].folders;
        m.defaults.karras = true;
        m.defaults.schedule =
            kn_sampler_reads_karras(rows[i].folders) ? KN_SCHEDULE_KARRAS : KN_SCHEDULE_NORMAL;
        t.sampler = rows[i].asked;
        if (t.sampler) t.set |= KN_SET_SAMPLER;
        CHECK_INT(kn_task_resolve(&t, &m, NULL), 0);
        CHECK_MSG(t.schedule == rows[i].want, "row %zu", i);
    }
}

TEST(a_folder_without_a_sampler_of_ours_asks_for_one_by_name) {
    struct kn_model_info m = model();
    struct kn_task t = {.prompt = prompt, .negative = none, .seed = 1, .set = KN_SET_SEED};
    struct kn_err err = {0};
    m.defaults.sampler = KN_SAMPLER_UNSET;
    snprintf(m.scheduler, sizeof m.scheduler, "UniPCMultistepScheduler");
    CHECK_INT(kn_task_resolve(&t, &m, &err), KN_EUNSUPPORTED);
    CHECK_MSG(strstr(err.text,
                     "sampler: the model tiny names the scheduler UniPCMultistepScheduler, which kiln does "
                     "not have; say --sampler with one of " KN_SAMPLER_LIST),
              "%s", err.text);
    t.sampler = KN_SAMPLER_DDIM;
    t.set |= KN_SET_SAMPLER;
    CHECK_INT(kn_task_resolve(&t, &m, &err), 0);
}

TEST(a_setting_out_of_range_is_refused_and_named) {
    struct kn_model_info m = model();
    static const struct {
        struct kn_task t;
        const char *want;
    } cases[] = {
        {{.steps = 0, .set = KN_SET_STEPS}, "steps: 0 is not between 1 and 1000"},
        {{.steps = 1001, .set = KN_SET_STEPS}, "steps: 1001 is not between 1 and 1000"},
        {{.cfg = -0.5f, .set = KN_SET_CFG}, "cfg: -0.5 is not between 0 and 100"},
        {{.cfg = 100.5f, .set = KN_SET_CFG}, "cfg: 100.5 is not between 0 and 100"},
        {{.cfg = NAN, .set = KN_SET_CFG}, "cfg: nan is not between 0 and 100"},
        {{.sampler = (enum kn_sampler)77, .set = KN_SET_SAMPLER}, "sampler: 77 is not a sampler"},
        {{.schedule = (enum kn_schedule)9, .set = KN_SET_SCHEDULE}, "schedule: 9 is not a schedule"},
        {{.sampler = KN_SAMPLER_PNDM,
          .schedule = KN_SCHEDULE_KARRAS,
          .set = KN_SET_SAMPLER | KN_SET_SCHEDULE},
         "schedule: karras means nothing with the sampler PNDM"},
        {{.width = 8, .height = 64, .set = KN_SET_SIZE}, "width: 8 is not between 16 and 4096"},
        {{.width = 64, .height = 5000, .set = KN_SET_SIZE}, "height: 5000 is not between 16 and 4096"},
        {{.width = 64, .height = 65, .set = KN_SET_SIZE}, "height: 65 is not a multiple of 8"},
        {{.width = 72, .height = 64, .set = KN_SET_SIZE}, "width: 72 is not a multiple of 16 (model tiny)"},
        {{.width = 64, .height = 528, .set = KN_SET_SIZE},
         "height: 528 is not between 16 and 512 (model tiny)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct kn_task t = cases[i].t;
        struct kn_err err = {0};
        t.prompt = prompt;
        t.negative = none;
        t.set |= KN_SET_SEED;
        CHECK_INT(kn_task_resolve(&t, &m, &err), KN_EINVAL);
        CHECK_STR(err.text, cases[i].want);
    }
}

TEST(a_task_without_a_seed_is_not_resolved) {
    struct kn_model_info m = model();
    struct kn_task t = {.prompt = prompt, .negative = none};
    struct kn_err err = {0};
    CHECK_INT(kn_task_resolve(&t, &m, &err), KN_EINVAL);
    CHECK_STR(err.text, "seed: not set");
}

TEST(a_prompt_too_long_or_not_utf8_is_refused) {
    static char text[KN_PROMPT_BYTES_MAX + 2];
    memset(text, 'p', KN_PROMPT_BYTES_MAX);
    struct kn_task t = {.prompt = text, .negative = none};
    struct kn_err err = {0};
    CHECK_INT(kn_task_check(&t, &err), 0);
    text[KN_PROMPT_BYTES_MAX] = 'p';
    CHECK_INT(kn_task_check(&t, &err), KN_ELIMIT);
    CHECK_STR(err.text, "prompt: 8193 bytes are more than 8192");
    char bad[] = "ab\xff";
    t = (struct kn_task){.prompt = prompt, .negative = bad, .set = KN_SET_NEGATIVE};
    CHECK_INT(kn_task_check(&t, &err), KN_EINVAL);
    CHECK_STR(err.text, "negative: not UTF-8 at byte 3");
}

static void key_hex(const struct kn_task *t, char out[KN_SHA256_HEX]) {
    struct kn_model_info m = model();
    uint8_t key[KN_SHA256_BYTES];
    kn_task_key(t, m.sha256, key);
    kn_hex(key, sizeof key, out);
}

TEST(the_key_is_the_digest_of_the_text_that_spec_h_states) {
    /* The text is written out here by hand; a change of it makes every picture that exists look new. */
    static const char text[] =
        "kiln-key=1\n"
        "model=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n"
        "prompt=5:a cat\n"
        "negative=6:blurry\n"
        "seed=18446744073709551615\n"
        "sampler=5\n"
        "schedule=2\n"
        "steps=20\n"
        "cfg=40f00000\n"
        "size=128x128\n";
    struct kn_task t = resolved();
    t.seed = UINT64_MAX;
    t.negative = blurry;
    t.cfg = 7.5f;
    uint8_t want[KN_SHA256_BYTES];
    char want_hex[KN_SHA256_HEX], got[KN_SHA256_HEX];
    kn_sha256(text, sizeof text - 1, want);
    kn_hex(want, sizeof want, want_hex);
    key_hex(&t, got);
    CHECK_STR(got, want_hex);
    CHECK_STR(got, "bf1b103c49dc8c655cc9aa735fdf310140f6c1bf5c490d32f4b6901358b1a38d");
}

TEST(tasks_without_new_features_keep_their_first_keys) {
    /* Recorded with key 1. A folder's pictures are found by these for ever: a new feature takes a kiln-key of
     * its own, for tasks that use it alone. */
    static const char *const want[] = {
        "f616844e095e6975a3b7587e81be037f305e6acbc8502cc31d09b7861db23e9c",
        "05b1b1763a00b9d04e8ba234a34bddbbc8a15d788eebc6bd13235ba016b03c9b",
        "4f271c74f55eef23e681cbf15c95b49e18115493a140585e8e8cc5e6bc9a325e",
        "0b520f304e68ec0a29a01cd1a61d18da8733e5152ac6c336d3eb0977f69684ec",
        "f871200d8ce8b9b730d216838c4b6ed225d29e6af65a881838e98b134c810765",
        "f18c80b7f297ae2ba158924f861f42884b7d8dd0a1f27c159f57d15cb702c09e",
        "9e726e3b54c59baf0d35c0243c3e64419ecbe51e4fe2545d20277165be839af6",
        "020a65c3b5231e16bc780b30aa6a8a2bbd52cd1b6e735adf9e22f1f880b5a41c",
        "159b6d7e18c9dbed870e13bfb19f5b0459b1aa4d17e0f54dbe23340488d3f1b4",
        "3304d941b853e5622e295cf700013ac9356bc779c023ee059611d32fb254f611",
    };
    struct kn_task t = resolved();
    char got[KN_SHA256_HEX];
    size_t n = 0;
    for (int i = 0; i < 5; i++) /* the samplers that were there then */
        for (int schedule = KN_SCHEDULE_NORMAL; schedule <= KN_SCHEDULE_KARRAS; schedule++) {
            t.sampler = kn_samplers[i];
            t.schedule = (enum kn_schedule)schedule;
            t.seed = (uint64_t)n << 60 | n;
            t.steps = 1 + 99 * (uint32_t)n;
            t.cfg = 1.5f * (float)n;
            t.height = 64 + 8 * (uint32_t)n;
            t.negative = n % 2 ? blurry : none;
            key_hex(&t, got);
            CHECK_STR(got, want[n++]);
        }
}

TEST(every_setting_that_moves_pixels_moves_the_key) {
    struct kn_task base = resolved(), t[9];
    char want[KN_SHA256_HEX], got[10][KN_SHA256_HEX];
    static char other[] = "a dog";
    for (size_t i = 0; i < 9; i++) t[i] = base;
    t[0].prompt = other;
    t[1].negative = blurry;
    t[2].seed++;
    t[3].sampler = KN_SAMPLER_EULER;
    t[4].schedule = KN_SCHEDULE_NORMAL;
    t[5].steps++;
    t[6].cfg = nextafterf(t[6].cfg, 100.0f);
    t[7].width += 8;
    t[8].height += 8;
    key_hex(&base, got[9]);
    for (size_t i = 0; i < 9; i++) key_hex(&t[i], got[i]);
    for (size_t i = 0; i < 10; i++) {
        for (size_t k = 0; k < i; k++) CHECK_MSG(strcmp(got[i], got[k]) != 0, "%zu and %zu", i, k);
    }
    /* … and what does not move pixels does not. */
    static char extra[] = "{\"tag\":1}", name[] = "tiny";
    t[0] = base;
    t[0].extra = extra;
    t[0].model = name;
    t[0].model_index = 3;
    key_hex(&t[0], want);
    CHECK_STR(want, got[9]);
    t[0] = t[1] = base;
    t[0].cfg = 0.0f;
    t[1].cfg = -0.0f;
    key_hex(&t[0], want);
    key_hex(&t[1], got[0]);
    CHECK_STR(got[0], want);
}

TEST(a_prompt_cannot_pass_for_other_fields_in_the_key) {
    struct kn_task a = resolved(), b = resolved();
    char ka[KN_SHA256_HEX], kb[KN_SHA256_HEX];
    static char joined[] = "a cat\nnegative=6:blurry";
    a.negative = blurry;
    b.prompt = joined;
    key_hex(&a, ka);
    key_hex(&b, kb);
    CHECK(strcmp(ka, kb) != 0);
}

TEST(parameters_are_what_a1111_writes) {
    struct kn_model_info m = model();
    struct kn_task t = resolved();
    struct kn_buf b;
    kn_buf_init(&b, 20000);
    CHECK_INT(kn_task_parameters(&t, &m, "kiln 0.1.0", &b), 0);
    CHECK_STR(b.data,
              "a cat\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, "
              "Size: 128x128, Model hash: 0001020304, Model: tiny, Version: kiln 0.1.0");
    kn_buf_clear(&b);
    t.negative = blurry;
    t.cfg = 0.1f;
    t.seed = UINT64_MAX;
    t.sampler = KN_SAMPLER_EULER_A;
    t.schedule = KN_SCHEDULE_NORMAL;
    snprintf(m.name, sizeof m.name, "v1, \"best\": a/b\nc");
    CHECK_INT(kn_task_parameters(&t, &m, "kiln 0.1.0", &b), 0);
    CHECK_STR(b.data,
              "a cat\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Schedule type: Normal, "
              "CFG scale: 0.1, Seed: 18446744073709551615, Size: 128x128, Model hash: 0001020304, "
              "Model: \"v1, \\\"best\\\": a/b\\nc\", Version: kiln 0.1.0");
    kn_buf_fini(&b);
}

TEST(parameters_that_do_not_fit_leave_the_buffer_as_it_was) {
    struct kn_model_info m = model();
    struct kn_task t = resolved();
    struct kn_buf b;
    kn_buf_init(&b, 60);
    CHECK_INT(kn_buf_appends(&b, "before"), 0);
    CHECK_INT(kn_task_parameters(&t, &m, "kiln 0.1.0", &b), KN_ELIMIT);
    CHECK_STR(b.data, "before");
    kn_buf_fini(&b);
}
