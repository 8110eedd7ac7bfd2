/* The sampler step on the CPU. See the header.
 * Geometry: one pass over the image, a few reads and one write a value; the compiler vectorises it. A latent
 * image is some ten thousand values, so that threads would cost more than they bring. */
#include "kernels/samplers/step.h"

#include <assert.h>
#include <math.h>
#include <string.h>

bool kx_guide(const float *u, const float *c, float g, float *m, size_t n) {
    float bad = 0; /* 0·v is 0 for what is finite, NaN for what is not */
    if (u) {
        for (size_t i = 0; i < n; i++) {
            m[i] = u[i] + g * (c[i] - u[i]);
            bad += 0.0f * m[i];
        }
    } else {
        for (size_t i = 0; i < n; i++) {
            m[i] = c[i];
            bad += 0.0f * m[i];
        }
    }
    return bad == 0.0f;
}

void kx_scale(const float *x, float in_scale, float *scaled, size_t n) {
    for (size_t i = 0; i < n; i++) scaled[i] = x[i] * in_scale;
}

void kx_step_apply(const struct kx_step *s, struct kx_step_state *st, const float *m, const float *noise,
                   size_t n) {
    enum { BLOCK = 1024 };
    float d[BLOCK], sum[BLOCK];
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t len = n - at < BLOCK ? n - at : BLOCK;
        float *x = st->x + at;
        const float *mm = m + at;
        for (size_t i = 0; i < len; i++) d[i] = s->dx * x[i] + s->dm * mm[i];
        if (s->clip > 0)
            for (size_t i = 0; i < len; i++) d[i] = fminf(fmaxf(d[i], -s->clip), s->clip);
        for (size_t i = 0; i < len; i++) sum[i] = s->cx * x[i] + s->cd * d[i] + s->cm * mm[i];
        if (s->cs != 0)
            for (size_t i = 0; i < len; i++) sum[i] += s->cs * st->saved[at + i];
        for (int k = 0; k < KX_HISTORY_MAX; k++)
            if (s->ch[k] != 0)
                for (size_t i = 0; i < len; i++) sum[i] += s->ch[k] * st->history[k][at + i];
        if (s->cn != 0) {
            assert(noise);
            for (size_t i = 0; i < len; i++) sum[i] += s->cn * noise[at + i];
        }
        if (s->save_x) memcpy(st->saved + at, x, len * sizeof *x);
        if (s->store >= 0) memcpy(st->history[s->store] + at, d, len * sizeof *d);
        memcpy(x, sum, len * sizeof *x);
    }
}
