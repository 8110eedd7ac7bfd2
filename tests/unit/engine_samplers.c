/* Noise and samplers against figures that diffusers and PyTorch publish (diffusers tests/schedulers/,
 * torch.randn): no weights, no golden file. tests/golden/schedules_test.c compares the whole grid. */
#include <math.h>
#include <string.h>

#include "kernels/samplers/noise.h"
#include "kernels/samplers/schedule.h"
#include "tests/unit/check.h"

enum { VALUES = 4 * 3 * 8 * 8 };

/* diffusers' dummy_sample_deter: (4, 3, 8, 8), the batch running fastest. */
static void dummy_sample(float *x) {
    for (int b = 0; b < 4; b++)
        for (int i = 0; i < 192; i++) x[b * 192 + i] = (float)(i * 4 + b) / VALUES;
}

/* Its loop over 10 steps with model(x, t) = x·t/(t + 1): sum of |x| at the end. scaled: the tests of the
 * Euler family hand the scaled sample to the step. */
static double full_loop(const struct kx_scheduler_config *cfg, enum kn_sampler sampler,
                        enum kn_schedule schedule, bool scaled) {
    struct kx_schedule s;
    struct kn_err err = {0};
    CHECK_MSG(!kx_schedule_create(cfg, sampler, schedule, 10, &s, &err), "%s", err.text);
    static float x[VALUES], saved[VALUES], history[KX_HISTORY_MAX][VALUES], m[VALUES], noise[VALUES];
    struct kx_step_state st = {.x = x, .saved = saved};
    for (int k = 0; k < KX_HISTORY_MAX; k++) st.history[k] = history[k];
    struct kx_noise g;
    kx_noise_init(&g, 0);
    dummy_sample(x);
    kx_scale(x, s.init_scale, x, VALUES);
    for (int k = 0; k < s.count; k++) {
        const struct kx_step *p = &s.v[k];
        if (scaled) kx_scale(x, p->in_scale, x, VALUES);
        float in = scaled ? 1 : p->in_scale;
        for (int i = 0; i < VALUES; i++) m[i] = x[i] * in * p->timestep / (p->timestep + 1);
        if (s.noisy) kx_noise_normal(&g, noise, VALUES);
        kx_step_apply(p, &st, m, noise, VALUES);
    }
    kx_schedule_fini(&s);
    double sum = 0;
    for (int i = 0; i < VALUES; i++) sum += fabs((double)x[i]);
    return sum;
}

#define CHECK_NEAR(got, want, within)                                                                        \
    do {                                                                                                     \
        double got_ = (got);                                                                                 \
        CHECK_MSG(fabs(got_ - (want)) < (within), "%.4f is not %.4f", got_, (double)(want));                 \
    } while (0)

#define T1100 .num_train_timesteps = 1100, .num_train_timesteps_stated = true
#define V_PREDICTION .prediction_type = KX_PREDICT_V, .prediction_type_stated = true

TEST(euler_gives_the_published_sum) {
    struct kx_scheduler_config c = {T1100};
    CHECK_NEAR(full_loop(&c, KN_SAMPLER_EULER, KN_SCHEDULE_NORMAL, true), 10.0807, 0.01);
}

TEST(euler_karras_gives_the_published_sum) {
    struct kx_scheduler_config c = {T1100};
    CHECK_NEAR(full_loop(&c, KN_SAMPLER_EULER, KN_SCHEDULE_KARRAS, true), 124.52299499511719, 0.01);
}

TEST(euler_ancestral_gives_the_published_sum) {
    struct kx_scheduler_config c = {T1100};
    CHECK_NEAR(full_loop(&c, KN_SAMPLER_EULER_A, KN_SCHEDULE_NORMAL, true), 152.3192, 0.01);
}

TEST(euler_ancestral_v_prediction_gives_the_published_sum) {
    struct kx_scheduler_config c = {T1100, V_PREDICTION};
    CHECK_NEAR(full_loop(&c, KN_SAMPLER_EULER_A, KN_SCHEDULE_NORMAL, true), 108.4439, 0.01);
}

TEST(ddim_gives_the_published_sum) {
    struct kx_scheduler_config c = {0};
    CHECK_NEAR(full_loop(&c, KN_SAMPLER_DDIM, KN_SCHEDULE_NORMAL, false), 172.0067, 0.01);
}

TEST(ddim_v_prediction_gives_the_published_sum) {
    struct kx_scheduler_config c = {V_PREDICTION};
    CHECK_NEAR(full_loop(&c, KN_SAMPLER_DDIM, KN_SCHEDULE_NORMAL, false), 52.5302, 0.01);
}

TEST(dpmpp_2m_gives_the_published_mean) {
    struct kx_scheduler_config c = {
        .lower_order_final_stated = true, .final_sigma_min = true, .final_sigma_min_stated = true};
    CHECK_NEAR(full_loop(&c, KN_SAMPLER_DPMPP_2M, KN_SCHEDULE_NORMAL, false) / VALUES, 0.3301, 0.001);
}

TEST(pndm_gives_the_published_sum) {
    struct kx_scheduler_config c = {0};
    CHECK_NEAR(full_loop(&c, KN_SAMPLER_PNDM, KN_SCHEDULE_NORMAL, false), 198.1318, 0.01);
}

TEST(noise_is_torch_randn_to_the_digits_printed) {
    struct kx_noise g;
    float v[16];
    static const double block[] = {-1.1258, -1.1524, -0.2506, -0.4339}, pairs[] = {1.5410, -0.2934, -2.1788};
    kx_noise_init(&g, 0);
    kx_noise_normal(&g, v, 16);
    for (int i = 0; i < 4; i++) CHECK_NEAR((double)v[i], block[i], 0.00005001);
    kx_noise_init(&g, 0);
    kx_noise_normal(&g, v, 3);
    for (int i = 0; i < 3; i++) CHECK_NEAR((double)v[i], pairs[i], 0.00005001);
}

TEST(schedule_refuses_what_it_cannot_do_by_name) {
    struct kx_schedule s;
    struct kn_err err = {0};
    struct kx_scheduler_config c = {0};
    CHECK_INT(kx_schedule_create(&c, KN_SAMPLER_DDIM, KN_SCHEDULE_KARRAS, 10, &s, &err), KN_EINVAL);
    CHECK(strstr(err.text, "karras"));
    CHECK_INT(kx_schedule_create(&c, KN_SAMPLER_DDIM, KN_SCHEDULE_NORMAL, 1001, &s, &err), KN_EINVAL);
    CHECK(strstr(err.text, "steps: 1001"));
    CHECK_INT(kx_schedule_create(&c, KN_SAMPLER_PNDM, KN_SCHEDULE_NORMAL, 3, &s, &err), KN_EINVAL);
    c.unsupported = 1u << KN_SAMPLER_EULER;
    strcpy(c.unsupported_field[KN_SAMPLER_EULER], "use_beta_sigmas: true");
    CHECK_INT(kx_schedule_create(&c, KN_SAMPLER_EULER, KN_SCHEDULE_NORMAL, 10, &s, &err), KN_EUNSUPPORTED);
    CHECK(strstr(err.text, "use_beta_sigmas"));
    c = (struct kx_scheduler_config){.solver_order = 3, .solver_order_stated = true};
    CHECK_INT(kx_schedule_create(&c, KN_SAMPLER_DPMPP_2M, KN_SCHEDULE_NORMAL, 10, &s, &err), KN_EUNSUPPORTED);
}

TEST(every_sampler_runs_with_every_number_of_steps) {
    for (int i = 0; i < KN_SAMPLER_COUNT; i++)
        for (int steps = 1; steps <= 999; steps++) {
            enum kn_sampler sampler = kn_samplers[i];
            struct kx_scheduler_config c = {.skip_prk_steps = true, .skip_prk_steps_stated = true};
            struct kx_schedule s;
            struct kn_err err = {0};
            int rc = kx_schedule_create(&c, sampler, KN_SCHEDULE_NORMAL, steps, &s, &err);
            CHECK_MSG(!rc, "%s, %d steps: %s", kn_sampler_name(sampler), steps, err.text);
            /* one evaluation a step, or two for methods of second order */
            CHECK(s.count >= steps && s.count <= 2 * steps);
            for (int k = 1; k < s.count; k++) CHECK(s.v[k].timestep <= s.v[k - 1].timestep);
            kx_schedule_fini(&s);
        }
}

TEST(a_pipelines_folder_runs_with_offset_1_and_without_clipping) {
    struct kx_scheduler_config c = {.own = KN_SAMPLER_DDIM, .pipeline = true};
    struct kx_schedule s;
    struct kn_err err = {0};
    CHECK_INT(kx_schedule_create(&c, KN_SAMPLER_DDIM, KN_SCHEDULE_NORMAL, 10, &s, &err), 0);
    CHECK(s.v[9].timestep == 1 && s.v[0].clip == 0);
    kx_schedule_fini(&s);
    /* another sampler takes neither from a file that states neither */
    c.own = KN_SAMPLER_PNDM;
    CHECK_INT(kx_schedule_create(&c, KN_SAMPLER_DDIM, KN_SCHEDULE_NORMAL, 10, &s, &err), 0);
    CHECK(s.v[9].timestep == 0 && s.v[0].clip == 1);
    kx_schedule_fini(&s);
}
