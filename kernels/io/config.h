/* A model folder's configuration in diffusers layout, read into the networks' plain structs and checked, so
 * that nothing behind this file meets a number that it cannot work with. An option of diffusers that kiln
 * does not have is KN_EUNSUPPORTED, with file, field and value: a picture that would silently come out
 * different is worse than none. Pure but for reading files; any thread. */
#ifndef KILN_KERNELS_CONFIG_H
#define KILN_KERNELS_CONFIG_H

#include "base/spec.h"
#include "kernels/io/json.h"
#include "kernels/models/models.h"
#include "kernels/samplers/schedule.h"

/* model_index.json: what kind of pipeline the folder holds. */
struct kx_index {
    bool xl; /* StableDiffusionXLPipeline, else StableDiffusionPipeline */
    /* The scheduler's class. It counts before the one that scheduler_config.json names, as in diffusers, which
     * makes this class out of that file without a look at the other name: whoever published the folder saw
     * pictures of this one. */
    char scheduler[KN_NAME_MAX + 1];
    enum kn_sampler
        sampler; /* of that class; KN_SAMPLER_UNSET: it is none of ours, but ours can be made from it */
    bool
        zeros_for_none; /* xl: an empty negative prompt is zeros (force_zeros_for_empty_prompt), not an encoded "" */
};

struct kx_config {
    struct kx_index index;
    struct kx_text_config text, text2; /* text2: with index.xl; the states side by side, its pooled state */
    struct kx_unet_config unet;
    struct kx_vae_config vae;
    struct kx_scheduler_config scheduler;
    struct kn_defaults
        defaults; /* kiln.json; else the folder's scheduler (unset where kiln has it not), native size, 20 steps, guidance 7 */
    int size_multiple; /* VAE factor × UNet's deepest downsampling */
};

/* Reads DIR: model_index.json, text_encoder (text_encoder_2), unet, vae, scheduler, and kiln.json if it is
 * there. KN_ENOENT, KN_EPARSE, KN_EUNSUPPORTED. */
KN_MUST_USE int kx_config_read(const char *dir, struct kx_config *out, struct kn_err *err);

/* The parts, from parsed JSON. */
KN_MUST_USE int kx_config_index(const struct kx_json *j, struct kx_index *out, struct kn_err *err);
/* `projected` and `penultimate` are the pipeline's to say: false here. */
KN_MUST_USE int kx_config_text(const struct kx_json *j, struct kx_text_config *out, struct kn_err *err);
KN_MUST_USE int kx_config_unet(const struct kx_json *j, struct kx_unet_config *out, struct kn_err *err);
KN_MUST_USE int kx_config_vae(const struct kx_json *j, struct kx_vae_config *out, struct kn_err *err);
KN_MUST_USE int kx_config_scheduler(const struct kx_json *j, struct kx_scheduler_config *out,
                                    struct kn_err *err);
/* Makes the file's settings those of the folder's class, which model_index.json names. */
void kx_config_scheduler_class(struct kx_scheduler_config *c, const struct kx_index *index);
/* The sampler and the schedule that a task gets which names neither. */
void kx_config_scheduler_defaults(const struct kx_scheduler_config *c, struct kn_defaults *out);
KN_MUST_USE int kx_config_defaults(const struct kx_json *j, struct kn_defaults *out, struct kn_err *err);

#endif
