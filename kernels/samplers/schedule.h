/* From a folder's scheduler_config.json and what the task asks to the table of steps (step.h).
 *
 * Semantics, order of operations and precision of the schedules follow huggingface/diffusers
 * (schedulers/scheduling_*.py at the version that tests/golden pins): f32 betas, cumulative products in f64
 * rounded to f32, sigmas interpolated in f64. The coefficients are computed in f64 from those f32 values. A
 * sampler other than the folder's own behaves as X.from_config(folder's config): what the file states is
 * carried over, what it does not state is X's default. Pure functions; any thread. */
#ifndef KILN_KERNELS_SCHEDULE_H
#define KILN_KERNELS_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/spec.h"
#include "kernels/samplers/step.h"

enum kx_beta { KX_BETA_LINEAR, KX_BETA_SCALED_LINEAR, KX_BETA_COSINE };
enum kx_prediction { KX_PREDICT_EPSILON, KX_PREDICT_V, KX_PREDICT_SAMPLE };
enum kx_spacing { KX_SPACING_LINSPACE, KX_SPACING_LEADING, KX_SPACING_TRAILING };

/* A field, and a flag that is true if the file states it. */
#define KX_STATED(type, name)                                                                                \
    type name;                                                                                               \
    bool name##_stated

#define KX_TRAIN_STEPS_MAX 10000

/* scheduler_config.json, as far as the samplers read it. Zero is "nothing stated". */
struct kx_scheduler_config {
    enum kn_sampler own; /* the folder's own class; KN_SAMPLER_UNSET when it is none of ours */
    KX_STATED(int, num_train_timesteps);
    KX_STATED(double, beta_start);
    KX_STATED(double, beta_end);
    KX_STATED(enum kx_beta, beta_schedule);
    KX_STATED(enum kx_prediction, prediction_type);
    KX_STATED(enum kx_spacing, timestep_spacing);
    KX_STATED(int, steps_offset);
    KX_STATED(bool, rescale_betas_zero_snr);
    KX_STATED(bool, set_alpha_to_one);
    KX_STATED(bool, clip_sample);
    KX_STATED(double, clip_sample_range);
    KX_STATED(bool, skip_prk_steps);
    KX_STATED(bool, use_karras_sigmas); /* the folder's default schedule */
    KX_STATED(double, sigma_min);
    KX_STATED(double, sigma_max);
    KX_STATED(bool, final_sigma_min); /* final_sigmas_type == "sigma_min" */
    KX_STATED(int, solver_order);
    KX_STATED(bool, solver_heun); /* solver_type == "heun" */
    KX_STATED(bool, lower_order_final);
    KX_STATED(bool, euler_at_final);
    KX_STATED(double, lambda_min_clipped);
    /* The folder is StableDiffusionPipeline's, which corrects its scheduler's settings as it is put together:
     * steps_offset is 1 and clip_sample off, whatever the file states. (Not for a sampler other than the
     * folder's where the file states neither.) */
    bool pipeline;
    /* One bit a sampler (as in KN_SAMPLER_MASK) that cannot honour what the file states, and for each of them
     * the first such field with its value, "use_beta_sigmas: true". */
    uint32_t unsupported;
    char unsupported_field[32][128];
};

struct kx_schedule {
    struct kx_step *v; /* owns; one a UNet evaluation, in order */
    int count;         /* may be more than the steps asked for (PNDM) */
    float init_scale;  /* x = noise · init_scale */
    bool noisy;        /* a draw of noise follows every evaluation */
    bool saves;        /* `saved` is used */
    int slots;         /* history slots in use: 0 … slots − 1 */
};

/* KN_EINVAL (more steps than the model was trained with), KN_EUNSUPPORTED with the field, KN_ENOMEM. */
KN_MUST_USE int kx_schedule_create(const struct kx_scheduler_config *cfg, enum kn_sampler sampler,
                                   enum kn_schedule schedule, int steps, struct kx_schedule *out,
                                   struct kn_err *err);
void kx_schedule_fini(struct kx_schedule *s);

#endif
