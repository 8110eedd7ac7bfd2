/* Common helpers of the tests of CUDA against the CPU: drawn inputs that are the same on both, a bench that
 * runs an op on a context as a network does (planned, then for real) on memory with guards, and the
 * comparison.
 *
 * Inputs are rounded to the storage type before either side sees them, so that what differs is the
 * computation. The CPU takes the images one at a time, the device all at once. */
#ifndef KILN_TESTS_GPU_PARITY_H
#define KILN_TESTS_GPU_PARITY_H

#include <math.h>

#include "kernels/cuda/cuda.h"
#include "kernels/ops.h"
#include "tests/unit/check.h"

#define PARITY_UNUSED __attribute__((unused))

enum { PARITY_IMAGES = 8, PARITY_ARRAYS = 16, PARITY_RESULTS = 12, PARITY_GUARD = 512 };

/* ---- numbers */

struct draw {
    uint64_t s;
    enum kx_store type;
    int round; /* counts from 0: what must not be left to chance goes by it */
};

PARITY_UNUSED static uint32_t draw_bits(struct draw *d) {
    d->s += 0x9e3779b97f4a7c15u; /* splitmix64: any seed will do */
    uint64_t z = d->s;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ z >> 31) >> 32);
}
PARITY_UNUSED static int draw_int(struct draw *d, int least, int most) {
    return least + (int)(draw_bits(d) % (uint32_t)(most - least + 1));
}
PARITY_UNUSED static int draw_of(struct draw *d, const int *list, int n) {
    return list[draw_int(d, 0, n - 1)];
}
#define DRAW_OF(d, ...)                                                                                      \
    draw_of(d, (const int[]){__VA_ARGS__}, (int)(sizeof((const int[]){__VA_ARGS__}) / sizeof(int)))

/* v as the storage type has it: f16 has 11 bits down to 2^-14 and steps of 2^-24 below, bf16 8 bits. */
PARITY_UNUSED static float stored(enum kx_store type, float v) {
    int exponent, bits = type == KX_STORE_F16 ? 11 : 8;
    if (!isfinite(v) || v == 0) return v;
    (void)frexpf(v, &exponent);
    if (type == KX_STORE_F16 && exponent < -13) exponent = -13;
    double unit = ldexp(1, exponent - bits);
    return (float)(nearbyint((double)v / unit) * unit);
}

PARITY_UNUSED static void *must(void *p) {
    if (p) return p;
    fprintf(stderr, "out of memory\n");
    exit(1);
}
/* Between −scale and scale. */
PARITY_UNUSED static float *draw_numbers(struct draw *d, size_t n, float scale) {
    float *v = must(malloc((n ? n : 1) * sizeof *v));
    for (size_t i = 0; i < n; i++) v[i] = ((float)(draw_bits(d) >> 8) / 8388608.0f - 1) * scale;
    return v;
}
PARITY_UNUSED static float *draw_values(struct draw *d, size_t n, float scale) {
    float *v = draw_numbers(d, n, scale);
    for (size_t i = 0; i < n; i++) v[i] = stored(d->type, v[i]);
    return v;
}
PARITY_UNUSED static int32_t *draw_indices(struct draw *d, size_t n, int least, int most) {
    int32_t *v = must(malloc((n ? n : 1) * sizeof *v));
    for (size_t i = 0; i < n; i++) v[i] = draw_int(d, least, most);
    return v;
}

/* ---- the bench */

enum kind { VALUES, F32, I32, U8 };

struct result {
    enum kind kind;
    char *v;          /* the context's; behind PARITY_GUARD bytes, before as many */
    size_t per_image; /* values */
    unsigned char *raw;
    float *f; /* what `raw` says */
};

struct bench {
    struct kx_ctx *ctx;
    const int *order; /* the images, by their number among those drawn */
    int n;
    void *mine[64]; /* the context's; owns */
    int count;
    struct result results[PARITY_RESULTS];
    int results_count;
};

#define MUST(call)                                                                                           \
    do {                                                                                                     \
        struct kn_err must_ = {0};                                                                           \
        int must_rc_ = (call);                                                                               \
        CHECK_MSG(!must_rc_, "%d: %s", must_rc_, must_.text);                                                \
    } while (0)
#define MUST_ERR (&must_)

PARITY_UNUSED static size_t kind_bytes(const struct bench *b, enum kind kind) {
    return kind == VALUES ? kx_value_bytes(b->ctx) : kind == U8 ? 1 : 4;
}
PARITY_UNUSED static void *bench_alloc(struct bench *b, size_t bytes) {
    void *p = kx_alloc(b->ctx, bytes);
    CHECK(p && b->count < 64);
    return b->mine[b->count++] = p;
}
/* Of an array of all images, those of the bench. */
PARITY_UNUSED static void *gather(const struct bench *b, const void *all, size_t bytes) {
    char *v = must(malloc(bytes * (size_t)b->n + 1));
    for (int i = 0; i < b->n; i++)
        memcpy(v + (size_t)i * bytes, (const char *)all + (size_t)b->order[i] * bytes, bytes);
    return v;
}
/* The same for all images. */
PARITY_UNUSED static void *give(struct bench *b, enum kind kind, const void *v, size_t n) {
    if (!v) return NULL;
    void *p = bench_alloc(b, n * kind_bytes(b, kind));
    if (kind == VALUES)
        kx_upload_values(b->ctx, p, v, n);
    else
        kx_upload(b->ctx, p, v, n * kind_bytes(b, kind));
    return p;
}
/* `per_image` values of each image. */
PARITY_UNUSED static void *give_images(struct bench *b, enum kind kind, const void *all, size_t per_image) {
    if (!all) return NULL;
    void *v = gather(b, all, per_image * (kind == U8 ? 1 : 4));
    void *p = give(b, kind, v, per_image * (size_t)b->n);
    free(v);
    return p;
}
PARITY_UNUSED static struct kx_tensor give_tensor(struct bench *b, const float *all, int h, int w, int c) {
    size_t per_image = (size_t)h * (size_t)w * (size_t)c;
    return (struct kx_tensor){give_images(b, VALUES, all, per_image), b->n, h, w, c};
}

/* Room for a result: poisoned, or with what `all` says; guards on both sides. */
PARITY_UNUSED static void *want(struct bench *b, enum kind kind, const void *all, size_t per_image) {
    size_t bytes = per_image * (size_t)b->n * kind_bytes(b, kind), room = bytes + 2 * PARITY_GUARD;
    CHECK(b->results_count < PARITY_RESULTS);
    struct result *r = &b->results[b->results_count++];
    *r = (struct result){.kind = kind, .v = bench_alloc(b, room), .per_image = per_image};
    unsigned char *fill = must(malloc(room));
    memset(fill, 0xff, room); /* NaN in every type, −1, 255 */
    kx_upload(b->ctx, r->v, fill, room);
    r->v += PARITY_GUARD;
    if (all) {
        void *v = gather(b, all, per_image * (kind == U8 ? 1 : 4));
        if (kind == VALUES)
            kx_upload_values(b->ctx, r->v, v, per_image * (size_t)b->n);
        else
            kx_upload(b->ctx, r->v, v, bytes);
        free(v);
    }
    free(fill);
    return r->v;
}
PARITY_UNUSED static struct kx_tensor want_tensor(struct bench *b, const float *all, int h, int w, int c) {
    size_t per_image = (size_t)h * (size_t)w * (size_t)c;
    return (struct kx_tensor){want(b, VALUES, all, per_image), b->n, h, w, c};
}

/* The op, planned and then run. It is evaluated twice. */
#define BENCH_RUN(b, call)                                                                                   \
    do {                                                                                                     \
        struct kx_arena arena_;                                                                              \
        kx_plan_begin((b)->ctx, &arena_);                                                                    \
        call;                                                                                                \
        MUST(kx_plan_end((b)->ctx, MUST_ERR));                                                               \
        MUST(kx_arena_init((b)->ctx, &arena_, arena_.peak));                                                 \
        kx_use((b)->ctx, &arena_);                                                                           \
        call;                                                                                                \
        MUST(kx_sync((b)->ctx, MUST_ERR));                                                                   \
        kx_arena_fini((b)->ctx, &arena_);                                                                    \
    } while (0)

/* Fetches the results, looks at the guards, and frees the context's memory. */
PARITY_UNUSED static void bench_finish(struct bench *b) {
    for (int i = 0; i < b->results_count; i++) {
        struct result *r = &b->results[i];
        size_t n = r->per_image * (size_t)b->n, bytes = n * kind_bytes(b, r->kind);
        unsigned char guard[PARITY_GUARD];
        for (int side = 0; side < 2; side++) {
            kx_download(b->ctx, guard, side ? r->v + bytes : r->v - PARITY_GUARD, PARITY_GUARD);
            for (int k = 0; k < PARITY_GUARD; k++)
                CHECK_MSG(guard[k] == 0xff, "%s of result %d, byte %d was written",
                          side ? "behind the end" : "before the beginning", i, k);
        }
        r->raw = must(malloc(bytes + 1));
        r->f = must(malloc((n + 1) * sizeof *r->f));
        kx_download(b->ctx, r->raw, r->v, bytes);
        if (r->kind == VALUES)
            kx_download_values(b->ctx, r->f, r->v, n);
        else
            for (size_t k = 0; k < n; k++) {
                int32_t whole;
                memcpy(&whole, r->raw + k * (r->kind == U8 ? 0 : 4), r->kind == U8 ? 1 : 4);
                if (r->kind == F32)
                    memcpy(&r->f[k], &whole, 4);
                else
                    r->f[k] = r->kind == U8 ? (float)r->raw[k] : (float)whole;
            }
    }
    for (int i = 0; i < b->count; i++) kx_free(b->ctx, b->mine[i]);
    b->count = 0;
}
PARITY_UNUSED static void bench_free(struct bench *b) {
    for (int i = 0; i < b->results_count; i++) {
        free(b->results[i].raw);
        free(b->results[i].f);
    }
    b->results_count = 0;
}

/* Σ(a − b)² / Σb²; infinite where one is NaN and the other is not. */
PARITY_UNUSED static double nmse(const float *a, const float *b, size_t n) {
    double error = 0, power = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(a[i]) != isnan(b[i])) return INFINITY;
        if (isnan(a[i]) || a[i] == b[i]) {
            if (!isnan(a[i]) && isfinite(b[i])) power += (double)b[i] * (double)b[i];
            continue;
        }
        error += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        power += (double)b[i] * (double)b[i];
    }
    return error == 0 ? 0 : power > 0 ? error / power : INFINITY;
}

#endif
