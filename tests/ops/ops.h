/* Common helpers of the tests of the ops: a context, random tensors, distances, and running an op as a
 * network does (planned, then for real). */
#ifndef KILN_TESTS_OPS_OPS_H
#define KILN_TESTS_OPS_OPS_H

#include <math.h>

#include "kernels/cpu/context.h" /* the instruction set is chosen here by hand */
#include "tests/unit/check.h"

#define OPS_UNUSED __attribute__((unused))

OPS_UNUSED static struct kx_ctx *ops_ctx(int threads) {
    struct kx_ctx *ctx;
    struct kn_err err;
    if (kx_cpu_ctx_create(threads, &ctx, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    return ctx;
}

/* The instruction sets that this processor has, the plainest first. Returns NULL past the last. */
OPS_UNUSED static const struct kx_vector *ops_isa(int i) {
#if defined(__x86_64__)
    static const struct kx_vector *const all[] = {&kx_vector_sse2, &kx_vector_avx2, &kx_vector_avx512};
#else
    static const struct kx_vector *const all[] = {&kx_vector_sse2};
#endif
    if (i > 0 && all[i - 1] == kx_vector_choose()) return NULL;
    return all[i];
}

OPS_UNUSED static const char *ops_isa_name(struct kx_ctx *ctx) {
    return kx_cpu_of(ctx)->vector->name;
}

OPS_UNUSED static void ops_use_isa(struct kx_ctx *ctx, const struct kx_vector *v) {
    struct kx_cpu *cpu = kx_cpu_of(ctx);
    cpu->vector = v;
    for (int i = 0; i < cpu->threads; i++) cpu->lanes[i].vector = v;
}

/* Numbers between -1 and 1, the same every time. */
OPS_UNUSED static float *ops_random(size_t n, uint64_t seed) {
    float *v = kx_aligned(n * sizeof *v);
    uint64_t s = seed * 0x9e3779b97f4a7c15u + 1;
    if (!v) exit(1);
    for (size_t i = 0; i < n; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        v[i] = (float)(s >> 40) / 8388608.0f - 1;
    }
    return v;
}

/* ‖a − b‖ / ‖b‖ */
OPS_UNUSED static double ops_distance(const float *a, const double *b, size_t n) {
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return norm > 0 ? sqrt(d / norm) : d;
}

#define OPS_NEAR(a, b, n, bound, ...)                                                                        \
    do {                                                                                                     \
        double distance_ = ops_distance(a, b, n);                                                            \
        if (!(distance_ <= (bound))) {                                                                       \
            fprintf(stderr, "%s:%d: distance %g, at most %g: ", __FILE__, __LINE__, distance_,               \
                    (double)(bound));                                                                        \
            fprintf(stderr, __VA_ARGS__);                                                                    \
            fputc('\n', stderr);                                                                             \
            check_stop(1);                                                                                   \
        }                                                                                                    \
    } while (0)

/* Plans what fn asks for, then runs it. 0, or the first error of either. */
OPS_UNUSED static int ops_run(struct kx_ctx *ctx, void (*fn)(struct kx_ctx *ctx, void *arg), void *arg,
                              struct kn_err *err) {
    struct kx_arena arena;
    kx_plan_begin(ctx, &arena);
    fn(ctx, arg);
    int rc = kx_plan_end(ctx, err);
    if (rc) return rc;
    size_t bytes = arena.peak;
    if (kx_arena_init(ctx, &arena, bytes)) return KN_EOOM;
    kx_use(ctx, &arena);
    fn(ctx, arg);
    kx_arena_fini(ctx, &arena);
    return kx_ctx_error(ctx, err);
}

#define OPS_RUN(ctx, fn, arg)                                                                                \
    do {                                                                                                     \
        struct kn_err err_;                                                                                  \
        if (ops_run(ctx, fn, arg, &err_)) {                                                                  \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, err_.text);                                   \
            check_stop(1);                                                                                   \
        }                                                                                                    \
    } while (0)

#endif
