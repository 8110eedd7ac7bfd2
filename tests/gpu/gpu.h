/* Common helpers of the tests of CUDA code, on the shim and on a real device alike: named tests (check.h),
 * device memory with guard zones, the two storage types on the host, random inputs, distances.
 *
 * A program exits 77 (skipped) where there is no device. Errors of CUDA and damaged guard zones fail the test
 * that runs. For C and C++; gpu.cc is compiled into each test. */
#ifndef KILN_TESTS_GPU_H
#define KILN_TESTS_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.h"
#include "tests/unit/check.h"

#ifdef __cplusplus
extern "C" {
#endif

/* True if the device is a real one: large cases are for it alone. */
bool gpu_real(void);
/* 80 for compute capability 8.0. */
int gpu_capability(void);

/* ---- device memory, aligned to 256 bytes, 1 KB of guard on both sides */

/* All bytes 0xff: NaN in every type of float, -1 in those of int. */
void *gpu_poisoned(size_t bytes);
void *gpu_upload(const void *from, size_t bytes);
/* These wait for the whole device first. */
void gpu_write(void *device, const void *from, size_t bytes);
void gpu_download(void *to, const void *device, size_t bytes);
void gpu_free(void *p); /* looks at the guards; NULL is fine */
/* Waits; fails the test on an error of CUDA. */
void gpu_sync(void);
/* Fails the test unless the call gave cudaSuccess. */
#define GPU_OK(call) gpu_ok((call), __FILE__, __LINE__, #call)
void gpu_ok(cudaError_t e, const char *file, int line, const char *words);

/* ---- values of a storage type on the host */

uint16_t gpu_bits(enum kx_store type, float v); /* rounded to nearest even */
float gpu_unbits(enum kx_store type, uint16_t bits);
float gpu_round(enum kx_store type, float v); /* there and back */
/* f32 on the host, values of `type` on the device. */
void *gpu_upload_values(enum kx_store type, const float *from, size_t n);
void gpu_download_values(enum kx_store type, float *to, const void *device, size_t n);

/* ---- random inputs: the same for a seed everywhere */

struct gpu_random {
    uint64_t state;
};
struct gpu_random gpu_random_of(uint64_t seed);
uint32_t gpu_integer(struct gpu_random *r, uint32_t below);
float gpu_uniform(struct gpu_random *r); /* [-1, 1) */
float gpu_normal(struct gpu_random *r);  /* mean 0, deviation 1 */
/* n normal values times scale, rounded to the type. */
void gpu_fill(struct gpu_random *r, enum kx_store type, float scale, float *v, size_t n);

/* ---- distances */

/* Σ (got − want)² / Σ want²; NaN when a value of `got` is NaN or is infinite, which fails every "< bound".
 * Where all of `want` is 0: 0 or infinity. */
double gpu_nmse(const double *want, const float *got, size_t n);

#ifdef __cplusplus
}
#endif

#endif
