/* The sampler's step on the CPU: kernels/samplers/step.c, image by image. */
#include <assert.h>
#include <string.h>

#include "kernels/cpu/context.h"

static void sample_input(const struct kx_sampling *s, int k) {
    if (k >= s->steps) k = s->steps - 1;
    for (int i = 0; i < s->n; i++) {
        float *in = (float *)s->in + (size_t)s->row_c[i] * s->values;
        kx_scale(s->x + (size_t)i * s->values, s->table[k * s->n + i].in_scale, in, s->values);
        if (s->row_u[i] >= 0)
            memcpy((float *)s->in + (size_t)s->row_u[i] * s->values, in, s->values * sizeof *in);
    }
    memcpy(s->time_row, s->time_rows + (size_t)k * (size_t)s->rows, (size_t)s->rows * sizeof *s->time_row);
}

void kx_cpu_sample_begin(struct kx_ctx *ctx, const struct kx_sampling *s) {
    if (ctx->planning) return;
    *s->at = 0;
    for (int i = 0; i < s->n; i++) s->bad[i] = -1;
    sample_input(s, 0);
}

void kx_cpu_sample(struct kx_ctx *ctx, const struct kx_sampling *s) {
    if (ctx->planning) return;
    int k = *s->at;
    assert(k >= 0 && k < s->steps);
    for (int i = 0; i < s->n; i++) {
        const struct kx_step *step = &s->table[k * s->n + i];
        if (step->cx == 1 && step->cs == 0 && step->cd == 0 && step->cm == 0 && step->cn == 0 &&
            step->store < 0)
            continue; /* it is over, and stays as it is whatever the prediction (no sampler's step has no
                         data) */
        size_t at = (size_t)i * s->values;
        float *c = (float *)s->pred + (size_t)s->row_c[i] * s->values, /* m takes its place */
            *u = s->row_u[i] < 0 ? NULL : (float *)s->pred + (size_t)s->row_u[i] * s->values;
        struct kx_step_state st = {.x = s->x + at, .saved = s->saved ? s->saved + at : NULL};
        for (int q = 0; q < KX_HISTORY_MAX; q++) st.history[q] = s->history[q] ? s->history[q] + at : NULL;
        if (!kx_guide(u, c, s->guidance[i], c, s->values) && s->bad[i] < 0) s->bad[i] = k;
        if (s->guided) memcpy(s->guided + at, c, s->values * sizeof *c);
        kx_step_apply(step, &st, c, s->noise ? s->noise + at : NULL, s->values);
    }
    sample_input(s, *s->at = k + 1);
}
