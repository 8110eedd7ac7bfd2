/* The common parts of the shim's libraries (fake_cublaslt.c, fake_cudnn.c): storage types on the host, and
 * work that takes its turn in a stream.
 *
 * They stand where cuBLASLt and cuDNN would (a folder that $KILN_CUDA_LIBS names) and do what these say that
 * they do, from the documents, so that layouts, strides, descriptors and the choice of algorithms are proven
 * without a GPU. They are as strict as the documents allow, and they offer first what must not be taken:
 * kernels that divide sums. The runtime's functions are the program's (it exports its symbols). */
#ifndef KILN_SHIM_FAKE_H
#define KILN_SHIM_FAKE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "kernels/cuda/library_abi.h"

enum fake_type { FAKE_F32, FAKE_F16, FAKE_BF16, FAKE_E4M3 };

static inline size_t fake_bytes(enum fake_type t) {
    return t == FAKE_F32 ? 4 : t == FAKE_E4M3 ? 1 : 2;
}

static inline float fake_of_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}

/* A small float of `exponent` and `mantissa` bits with subnormals; specials are the caller's. */
static inline float fake_small(uint32_t v, int exponent, int mantissa) {
    uint32_t sign = v >> (exponent + mantissa) & 1, m = v & ((1u << mantissa) - 1);
    int e = (int)(v >> mantissa & ((1u << exponent) - 1)), bias = (1 << (exponent - 1)) - 1;
    float f = (float)m / (float)(1u << mantissa);
    int power = e ? e - bias : 1 - bias;
    if (e) f += 1;
    for (; power > 0; power--) f *= 2;
    for (; power < 0; power++) f /= 2;
    return sign ? -f : f;
}

static inline float fake_load(enum fake_type t, const void *p, int64_t i) {
    uint16_t h;
    switch (t) {
    case FAKE_F32:
        return ((const float *)p)[i];
    case FAKE_BF16:
        return fake_of_bits((uint32_t)((const uint16_t *)p)[i] << 16);
    case FAKE_F16:
        h = ((const uint16_t *)p)[i];
        if ((h & 0x7c00) == 0x7c00)
            return fake_of_bits((uint32_t)(h & 0x8000) << 16 | 0x7f800000u | (h & 0x3ffu) << 13);
        return fake_small(h, 5, 10);
    default:
        h = ((const uint8_t *)p)[i];
        if ((h & 0x7f) == 0x7f) return fake_of_bits(0x7fc00000u);
        return fake_small(h, 4, 3);
    }
}

/* Rounded to nearest even. f32, f16, bf16. */
static inline void fake_store(enum fake_type t, void *p, int64_t i, float f) {
    uint32_t u, sign, a;
    memcpy(&u, &f, sizeof(u));
    if (t == FAKE_F32) {
        ((float *)p)[i] = f;
        return;
    }
    uint16_t *to = (uint16_t *)p + i;
    sign = u >> 16 & 0x8000;
    a = u & 0x7fffffffu;
    if (t == FAKE_BF16) {
        *to = (uint16_t)(a > 0x7f800000u ? sign | 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
    } else if (a > 0x7f800000u) {
        *to = (uint16_t)(sign | 0x7e00);
    } else if (a >= 0x477ff000u) { /* 65520 and more */
        *to = (uint16_t)(sign | 0x7c00);
    } else if (a >= 0x38800000u) { /* normal */
        a -= 112u << 23;
        *to = (uint16_t)(sign | (a + 0xfff + (a >> 13 & 1)) >> 13);
    } else { /* adding 0.5 leaves the value in units of 2^-24, rounded, in the low bits */
        float r = fake_of_bits(a) + 0.5f;
        uint32_t b;
        memcpy(&b, &r, sizeof(b));
        *to = (uint16_t)(sign | (b - 0x3f000000u));
    }
}

/* Work of a stream: run(job) when its turn comes, again at each replay of a graph. A job is the library's and
 * lives until the library is unloaded. */
struct fake_job {
    struct fake_job *next;
};
extern struct fake_job *fake_jobs;
static inline int fake_enqueue(cudaStream_t stream, cudaHostFn_t run, struct fake_job *job) {
    job->next = fake_jobs;
    fake_jobs = job;
    return cudaLaunchHostFunc(stream, run, job) == cudaSuccess ? 0 : 1;
}
static inline void fake_forget(void) {
    while (fake_jobs) {
        struct fake_job *job = fake_jobs;
        fake_jobs = job->next;
        free(job);
    }
}

/* Prints which rule was broken, for whoever reads the test's output, and returns the status. */
static inline int fake_wrong(int status, const char *what) {
    fprintf(stderr, "fake library: %s\n", what);
    return status;
}

#endif
