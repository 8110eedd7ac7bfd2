/* PyTorch's CPU noise. See the header. */
#include "kernels/samplers/noise.h"

#include <math.h>

void kx_noise_init(struct kx_noise *g, uint64_t seed) {
    g->state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < 624; i++)
        g->state[i] = 1812433253u * (g->state[i - 1] ^ (g->state[i - 1] >> 30)) + i;
    g->at = 624;
    g->have_next = false;
    g->next = 0;
}

static void refill(struct kx_noise *g) {
    uint32_t *s = g->state;
    for (int i = 0; i < 624; i++) {
        uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % 624] & 0x7fffffffu);
        s[i] = s[(i + 397) % 624] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    g->at = 0;
}

static uint32_t draw32(struct kx_noise *g) {
    if (g->at == 624) refill(g);
    uint32_t y = g->state[g->at++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

static double draw53(struct kx_noise *g) {
    uint64_t hi = draw32(g), lo = draw32(g);
    return (double)((hi << 32 | lo) & ((1ull << 53) - 1)) * 0x1p-53;
}

static float draw24(struct kx_noise *g) {
    return (float)(draw32(g) & 0xffffffu) * 0x1p-24f;
}

static double normal_pair(struct kx_noise *g) {
    if (g->have_next) {
        g->have_next = false;
        return g->next;
    }
    double u1 = draw53(g), u2 = draw53(g);
    double r = sqrt(-2.0 * log1p(-u2)), theta = 2.0 * M_PI * u1;
    g->next = r * sin(theta);
    g->have_next = true;
    return r * cos(theta);
}

/* Box and Muller over 16 uniforms: the first eight give the radius, the last eight the angle. */
static void normal_block(float *v) {
    for (int j = 0; j < 8; j++) {
        float u1 = 1.0f - v[j], u2 = v[j + 8];
        float r = sqrtf(-2.0f * logf(u1)), theta = 2.0f * (float)M_PI * u2;
        v[j] = r * cosf(theta);
        v[j + 8] = r * sinf(theta);
    }
}

void kx_noise_normal(struct kx_noise *g, float *out, size_t n) {
    if (n < 16) {
        for (size_t i = 0; i < n; i++) out[i] = (float)normal_pair(g);
        return;
    }
    for (size_t i = 0; i < n; i++) out[i] = draw24(g);
    for (size_t i = 0; i + 16 <= n; i += 16) normal_block(out + i);
    if (n % 16) {
        float *last = out + n - 16;
        for (int i = 0; i < 16; i++) last[i] = draw24(g);
        normal_block(last);
    }
}
