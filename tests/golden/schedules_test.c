/* Random folders, then every sampler on a grid of scheduler configs against diffusers: each evaluation's timestep, the way of four
 * values through the steps, sixteen at the end. The configs go through kiln's own reader. Files: make.py
 * schedules, make.py noise. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/io/config.h"
#include "kernels/io/safetensors.h"
#include "kernels/samplers/noise.h"
#include "tests/golden/near.h"
#include "tests/unit/check.h"

enum { N = 16, SHOWN = 4, COUNT_MAX = 64 };

static struct kx_weights *open_in(const char *dir, const char *name) {
    struct kx_weights *w;
    struct kn_err err = {0};
    CHECK_MSG(!kx_weights_open(dir, name, &w, &err), "%s", err.text);
    return w;
}

static struct kx_weights *open_file(const char *name) {
    return open_in(KILN_GOLDEN_DIR, name);
}

static void toy_model(const float *x, float scale, float t, float *m) {
    for (int i = 0; i < N; i++) m[i] = x[i] * scale * 0.3f * t / (t + 1) + (float)i * 0.05f - 0.4f;
}

/* One row of the golden file: timesteps, the way, the end. Returns what differs, or NULL. */
static const char *compare(const struct kx_scheduler_config *cfg, enum kn_sampler sampler,
                           enum kn_schedule schedule, int steps, const float *want, size_t len, double bound,
                           double *worst, struct kn_err *err) {
    struct kx_schedule s;
    if (kx_schedule_create(cfg, sampler, schedule, steps, &s, err)) return err->text;
    const char *bad = NULL;
    static float x[N], saved[N], history[KX_HISTORY_MAX][N], m[N], noise[N], way[COUNT_MAX * SHOWN];
    size_t count = (size_t)s.count;
    if (len != count * (1 + SHOWN) + N || count > COUNT_MAX) bad = "the number of evaluations differs";
    struct kx_step_state st = {.x = x, .saved = saved};
    for (int k = 0; k < KX_HISTORY_MAX; k++) st.history[k] = history[k];
    struct kx_noise g;
    kx_noise_init(&g, (uint64_t)steps);
    kx_noise_normal(&g, x, N);
    kx_scale(x, s.init_scale, x, N);
    for (size_t k = 0; k < count && !bad; k++) {
        const struct kx_step *p = &s.v[k];
        if (fabsf(p->timestep - want[k]) > 1e-3f) bad = "a timestep differs";
        toy_model(x, p->in_scale, p->timestep, m);
        if (s.noisy) kx_noise_normal(&g, noise, N);
        kx_step_apply(p, &st, m, noise, N);
        memcpy(way + k * SHOWN, x, SHOWN * sizeof *x);
    }
    bound += 3e-7 * (double)s.init_scale; /* what f32 loses on both sides on the way down from there */
    if (!bad) {
        double a = relative(way, want + count, count * SHOWN), b = relative(x, want + count * (1 + SHOWN), N);
        if (a > *worst) *worst = a;
        if (b > *worst) *worst = b;
        if (!(a < bound)) bad = "the way through the steps differs";
        if (!(b < bound)) bad = "the end differs";
    }
    kx_schedule_fini(&s);
    return bad;
}

TEST(every_sampler_walks_as_diffusers_does_on_every_config) {
    struct kx_weights *w = open_file("schedules");
    struct kx_json j;
    struct kn_err err = {0};
    CHECK_MSG(!kx_json_load(KILN_GOLDEN_DIR "/schedules.json", &j, &err), "%s", err.text);
    struct kx_json configs = {.file = "schedules.json", .o = kx_json_get(&j, "configs")};
    int wrong = 0;
    uint32_t walked = 0; /* bits of KN_SAMPLER_MASK */
    double worst = 0;
    for (size_t i = 0; i < kx_weights_count(w); i++) {
        const struct kx_weight *t = kx_weights_at(w, i);
        char name[64], sampler_name[32], schedule_name[16];
        int steps;
        CHECK(sscanf(t->name, "%63[^|]|%31[^|]|%15[^|]|%d", name, sampler_name, schedule_name, &steps) == 4);
        struct kx_json one = {.file = name, .o = kx_json_get(&configs, name)};
        struct kx_scheduler_config cfg;
        enum kn_sampler sampler;
        enum kn_schedule schedule;
        CHECK_MSG(!kx_config_scheduler(&one, &cfg, &err), "%s", err.text);
        CHECK(!kn_sampler_parse(sampler_name, &sampler, &err) &&
              !kn_schedule_parse(schedule_name, &schedule, &err));
        walked |= 1u << sampler;
        static float want[COUNT_MAX * (1 + SHOWN) + N];
        CHECK(t->bytes <= sizeof want && !kx_weight_f32(t, want));
        /* PNDM's coefficients on this one are differences of numbers of some thousands, which diffusers takes
         * in f32 */
        bool rough = !strcmp(name, "cosine-v-trailing") && sampler == KN_SAMPLER_PNDM;
        const char *bad =
            compare(&cfg, sampler, schedule, steps, want, t->bytes / 4, rough ? 1e-3 : 1e-4, &worst, &err);
        if (bad && wrong++ < 20) fprintf(stderr, "%s: %s\n", t->name, bad);
    }
    printf("%zu runs, the worst differs by %.2g\n", kx_weights_count(w), worst);
    CHECK(kx_weights_count(w) > 900);
    CHECK_INT(wrong, 0);
    CHECK_INT(walked, KN_SAMPLER_MASK); /* none is missing in the file: make.py schedules */
    json_object_put(j.o);
    kx_weights_close(w);
}

static const char *word(const struct kx_json *j, const char *key) {
    const char *s = NULL;
    struct kn_err err = {0};
    CHECK(!kx_json_string(j, key, &s, &err));
    return s;
}

/* One random folder: kiln's own way from its two files and what is asked to a schedule, which must be diffusers'
 * or a refusal. Returns what differs, or NULL; *refused: it was refused, for a reason that err has. */
static const char *run_folder(const struct kx_json *one, const struct kx_weight *t, bool *refused,
                              double *worst, struct kn_err *err) {
    struct kx_json config = {.file = "scheduler_config.json", .o = kx_json_get(one, "config")};
    struct kx_scheduler_config cfg;
    struct kn_model_info model = {.size_multiple = 8};
    static char prompt[] = "a", none[] = "";
    int steps = 0;
    struct kn_task task = {.prompt = prompt, .negative = none, .set = KN_SET_SEED};
    *refused = true;
    CHECK(!kx_json_int(one, "steps", 1, 1000, &steps, err));
    if (kx_config_scheduler(&config, &cfg, err)) return NULL;
    struct kx_index index = {.sampler = KN_SAMPLER_UNSET};
    snprintf(index.scheduler, sizeof index.scheduler, "%s", word(one, "class"));
    enum kn_sampler named;
    if (!kn_sampler_parse(word(one, "class"), &named, NULL)) index.sampler = named;
    kx_config_scheduler_class(&cfg, &index);
    cfg.pipeline = !strcmp(word(one, "pipeline"), "StableDiffusionPipeline");
    kx_config_scheduler_defaults(&cfg, &model.defaults);
    model.defaults.steps = (uint32_t)steps;
    model.defaults.width = model.defaults.height = 64;
    if (word(one, "sampler")) {
        CHECK(!kn_sampler_parse(word(one, "sampler"), &task.sampler, err));
        task.set |= KN_SET_SAMPLER;
    }
    if (word(one, "schedule")) {
        CHECK(!kn_schedule_parse(word(one, "schedule"), &task.schedule, err));
        task.set |= KN_SET_SCHEDULE;
    }
    if (kn_task_resolve(&task, &model, err)) return NULL;
    struct kx_schedule s;
    if (kx_schedule_create(&cfg, task.sampler, task.schedule, steps, &s, err)) return NULL;
    kx_schedule_fini(&s);
    *refused = false;
    static float want[COUNT_MAX * (1 + SHOWN) + N];
    CHECK(t->bytes <= sizeof want && !kx_weight_f32(t, want));
    return compare(&cfg, task.sampler, task.schedule, steps, want, t->bytes / 4, 1e-3, worst, err);
}

/* KILN_RANDOM_SCHEDULES: a folder with another set, as make.py random COUNT FOLDER writes it. */
TEST(a_random_folder_is_refused_or_walks_as_diffusers_does) {
    const char *dir = getenv("KILN_RANDOM_SCHEDULES");
    char path[4096];
    if (!dir) dir = KILN_GOLDEN_DIR;
    struct kx_weights *w = open_in(dir, "random");
    struct kx_json j;
    struct kn_err err = {0};
    snprintf(path, sizeof path, "%s/random.json", dir);
    CHECK_MSG(!kx_json_load(path, &j, &err), "%s", err.text);
    struct kx_json cases = {.file = path, .o = kx_json_get(&j, "cases")};
    size_t refusals = 0, count = kx_weights_count(w);
    double worst = 0;
    int wrong = 0;
    for (size_t i = 0; i < count; i++) {
        const struct kx_weight *t = kx_weights_at(w, i);
        struct kx_json one = {.file = t->name, .o = kx_json_get(&cases, t->name)};
        bool refused;
        err = (struct kn_err){0};
        const char *bad = run_folder(&one, t, &refused, &worst, &err);
        refusals += refused;
        if (refused && getenv("KILN_SHOW_REFUSALS")) printf("%s: %s\n", t->name, err.text);
        if (bad && wrong++ < 20)
            fprintf(stderr, "%s: %s: %s\n", t->name, bad, json_object_to_json_string(one.o));
    }
    printf("%zu folders, %zu of them refused, the worst differs by %.2g\n", count, refusals, worst);
    CHECK_INT(wrong, 0);
    CHECK(count >= 100 && refusals * 2 < count); /* refusing everything would not do */
    json_object_put(j.o);
    kx_weights_close(w);
}

TEST(noise_is_that_of_torch_for_every_size_and_seed) {
    struct kx_weights *w = open_file("noise");
    double worst = 0;
    for (size_t i = 0; i < kx_weights_count(w); i++) {
        const struct kx_weight *t = kx_weights_at(w, i);
        unsigned long long seed;
        size_t n;
        CHECK(sscanf(t->name, "%llu|%zu", &seed, &n) == 2 && t->bytes == 2 * n * sizeof(float));
        float want[512], got[512];
        CHECK(!kx_weight_f32(t, want));
        struct kx_noise g;
        kx_noise_init(&g, seed);
        kx_noise_normal(&g, got, n);
        kx_noise_normal(&g, got + n, n);
        for (size_t k = 0; k < 2 * n; k++) {
            double d = fabs((double)got[k] - (double)want[k]);
            if (d > worst) worst = d;
            CHECK_MSG(d < 2e-6 * fmax(1, fabs((double)want[k])), "%s: %zu: %.9g is not %.9g", t->name, k,
                      (double)got[k], (double)want[k]);
        }
    }
    printf("%zu draws, the worst value differs by %.2g\n", kx_weights_count(w), worst);
    CHECK(kx_weights_count(w) >= 48);
    kx_weights_close(w);
}
