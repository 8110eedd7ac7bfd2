/* Starting noise as PyTorch's CPU generator draws it, so that a picture can be compared with diffusers.
 *
 * One generator an image: mt19937 seeded with the low 32 bits of the seed, and PyTorch's two normal
 * transforms (aten/src/ATen/native/cpu/DistributionTemplates.h, ATen/core/DistributionsHelper.h). One thread
 * at a time. */
#ifndef KILN_KERNELS_NOISE_H
#define KILN_KERNELS_NOISE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kx_noise {
    uint32_t state[624];
    int at;
    bool have_next; /* the short path draws in pairs and keeps the second, over calls too */
    double next;
};

void kx_noise_init(struct kx_noise *g, uint64_t seed);
/* out = torch.randn(n): below 16 values 53-bit pairs, else 24-bit uniforms in blocks of 8 + 8, the last 16
 * drawn again when 16 does not divide n. The order is that of the contiguous tensor (NCHW for latents). */
void kx_noise_normal(struct kx_noise *g, float *out, size_t n);

#endif
