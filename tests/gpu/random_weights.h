/* Weights of any configuration, drawn: the tensors that the networks ask for, named as diffusers and
 * transformers name them, as the bytes of a safetensors file in memory. bf16 values, which f16 and f32 hold
 * exactly, so that every backend computes with the same. */
#ifndef KILN_TESTS_GPU_RANDOM_WEIGHTS_H
#define KILN_TESTS_GPU_RANDOM_WEIGHTS_H

#include "kernels/io/safetensors.h"
#include "kernels/models/models.h"

struct random_weights {
    struct kx_weights *w; /* owns */
    void *bytes;          /* owns; w borrows it */
};

/* They exit where there is no memory. */
void random_text(const struct kx_text_config *cfg, uint64_t seed, struct random_weights *out);
void random_unet(const struct kx_unet_config *cfg, uint64_t seed, struct random_weights *out);
void random_vae(const struct kx_vae_config *cfg, uint64_t seed, struct random_weights *out);
void random_weights_fini(struct random_weights *r);

#endif
