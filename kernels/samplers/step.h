/* One denoising step as data: every sampler is compiled (schedule.h) into a table of these coefficients,
 * and one kernel applies them, whatever the sampler. So a minibatch needs no branch by sampler, a device
 * needs one kernel, and a term that one sampler uses costs another nothing (nothing is read for a
 * coefficient of 0).
 *
 * With x the latents, u and c the predictions without and with the prompt, all of one image:
 *     m  = u + g·(c − u)                                  guidance; m = c without the unconditional half
 *     d  = clamp(dx·x + dm·m, ±clip)                      what the sampler calls its data: x0, or m itself
 *     x' = cx·x + cs·saved + cd·d + cm·m + Σ ch[k]·history[k] + cn·noise
 *     saved = x before the step if save_x; history[store] = d if store ≥ 0
 * Every term is elementwise. Accumulator f32, fused or not: one compiler decides for the whole library, so
 * that an image does not depend on its minibatch. The CPU's implementation is step.c; a device gets arrays of
 * steps and guidance, one an image. */
#ifndef KILN_KERNELS_STEP_H
#define KILN_KERNELS_STEP_H

#include <stdbool.h>
#include <stddef.h>

#define KX_HISTORY_MAX 6

struct kx_step {
    float timestep; /* as the UNet gets it; may be fractional */
    float in_scale; /* the UNet sees x·in_scale */
    float dx, dm;
    float clip; /* 0: no clamp */
    float cx, cs, cd, cm, cn;
    float ch[KX_HISTORY_MAX];
    bool save_x;
    int store; /* history slot that takes d, or −1 */
};

/* One image's buffers of n values each; borrowed. Slots that the table never stores may be NULL. */
struct kx_step_state {
    float *x;
    float *saved;
    float *history[KX_HISTORY_MAX];
};

/* m = u + g·(c − u), or c when u is NULL. m may be c. Returns false when a value of m is not finite. */
bool kx_guide(const float *u, const float *c, float g, float *m, size_t n);
/* scaled = x · in_scale */
void kx_scale(const float *x, float in_scale, float *scaled, size_t n);
/* The update above, in place in st->x. noise is read only when cn is not 0. */
void kx_step_apply(const struct kx_step *s, struct kx_step_state *st, const float *m, const float *noise,
                   size_t n);

#endif
