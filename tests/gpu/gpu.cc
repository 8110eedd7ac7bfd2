/* gpu.h's other half. */
#include "tests/gpu/gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef KX_SHIM
#include "tests/gpu/shim/shim.h"
#endif

static const size_t guard_bytes = 1024; /* keeps what follows aligned to 256 */
static const int guard_byte = 0xa5;

/* An allocation that was not freed yet. */
struct block {
    unsigned char *p; /* the caller's */
    size_t bytes;
    struct block *next;
};
static struct block *blocks;

extern "C" {

int check_before(void) {
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n > 0) return 0;
    if (e != cudaSuccess && e != cudaErrorNoDevice && e != cudaErrorInsufficientDriver) {
        fprintf(stderr, "cudaGetDeviceCount: %s\n", cudaGetErrorString(e));
        return 1;
    }
    fprintf(stderr, "skipped: no GPU here (%s)\n", cudaGetErrorString(e));
    return 77;
}

/* On the shim memory that nobody frees is looked at too, whoever allocated it. */
int check_after(void) {
#ifdef KX_SHIM
    if (!kx_shim_guards_intact()) {
        fprintf(stderr, "FAILED: %s\n", kx_shim_fault());
        return 1;
    }
#endif
    cudaError_t e = cudaDeviceSynchronize();
    if (e != cudaSuccess) fprintf(stderr, "FAILED: at the end: %s\n", cudaGetErrorString(e));
    return e != cudaSuccess;
}

bool gpu_real(void) {
#ifdef KX_SHIM
    return false;
#else
    return true;
#endif
}

int gpu_capability(void) {
    int major = 0, minor = 0;
    GPU_OK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    GPU_OK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
    return major * 10 + minor;
}

void gpu_ok(cudaError_t e, const char *file, int line, const char *words) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "%s:%d: %s: %s (%s)\n", file, line, words, cudaGetErrorName(e), cudaGetErrorString(e));
#ifdef KX_SHIM
    if (kx_shim_fault()[0]) fprintf(stderr, "  %s\n", kx_shim_fault());
#endif
    check_stop(1);
}

void gpu_sync(void) {
    GPU_OK(cudaDeviceSynchronize());
}

void *gpu_poisoned(size_t bytes) {
    unsigned char *p = NULL;
    struct block *b = (struct block *)malloc(sizeof *b);
    if (!b) abort();
    GPU_OK(cudaMalloc((void **)&p, bytes + 2 * guard_bytes));
    GPU_OK(cudaMemset(p, guard_byte, bytes + 2 * guard_bytes));
    if (bytes) GPU_OK(cudaMemset(p + guard_bytes, 0xff, bytes));
    *b = {p + guard_bytes, bytes, blocks};
    blocks = b;
    return b->p;
}

void *gpu_upload(const void *from, size_t bytes) {
    void *p = gpu_poisoned(bytes);
    gpu_write(p, from, bytes);
    return p;
}

void gpu_write(void *device, const void *from, size_t bytes) {
    gpu_sync();
    if (bytes) GPU_OK(cudaMemcpy(device, from, bytes, cudaMemcpyHostToDevice));
    gpu_sync();
}

void gpu_download(void *to, const void *device, size_t bytes) {
    gpu_sync();
    if (bytes) GPU_OK(cudaMemcpy(to, device, bytes, cudaMemcpyDeviceToHost));
}

void gpu_free(void *p) {
    if (!p) return;
    struct block **at = &blocks;
    while (*at && (*at)->p != p) at = &(*at)->next;
    struct block *b = *at;
    if (!b) {
        fprintf(stderr, "gpu_free of what is not gpu_poisoned's\n");
        check_stop(1);
    }
    unsigned char guards[2 * guard_bytes];
    gpu_download(guards, b->p - guard_bytes, guard_bytes);
    gpu_download(guards + guard_bytes, b->p + b->bytes, guard_bytes);
    size_t bytes = b->bytes, bad = 0;
    while (bad < sizeof guards && guards[bad] == guard_byte) bad++;
    *at = b->next;
    GPU_OK(cudaFree(b->p - guard_bytes));
    free(b);
    if (bad < guard_bytes) {
        fprintf(stderr, "%zu bytes of device memory: written %zu before its start\n", bytes,
                guard_bytes - bad);
        check_stop(1);
    }
    if (bad < sizeof guards) {
        fprintf(stderr, "%zu bytes of device memory: written %zu after its end\n", bytes, bad - guard_bytes);
        check_stop(1);
    }
}

/* ---- values */

uint16_t gpu_bits(enum kx_store type, float v) {
    uint32_t u;
    memcpy(&u, &v, 4);
    if (isnan(v)) return 0x7fff;
    if (type == KX_STORE_BF16) return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    float a = fabsf(v);
    if (a >= 65520.0f) return (uint16_t)(sign | 0x7c00);
    /* In steps of the value's own exponent, or of the subnormals'; rint goes to even. */
    int e;
    frexpf(a, &e);
    int exponent = a == 0 || e - 1 < -14 ? -14 : e - 1;
    int steps = (int)rintf(ldexpf(a, 10 - exponent)); /* 1024 … 2048, subnormals below */
    return (uint16_t)(sign | (steps + (exponent + 14) * 1024));
}

float gpu_unbits(enum kx_store type, uint16_t bits) {
    if (type == KX_STORE_BF16) {
        uint32_t u = (uint32_t)bits << 16;
        float v;
        memcpy(&v, &u, 4);
        return v;
    }
    int exponent = bits >> 10 & 31, m = bits & 1023;
    float v = exponent == 31 ? (m ? NAN : INFINITY)
              : exponent     ? ldexpf((float)(1024 + m), exponent - 25)
                             : ldexpf((float)m, -24);
    return bits & 0x8000 ? -v : v;
}

float gpu_round(enum kx_store type, float v) {
    return gpu_unbits(type, gpu_bits(type, v));
}

void *gpu_upload_values(enum kx_store type, const float *from, size_t n) {
    uint16_t *bits = (uint16_t *)malloc(n * sizeof *bits + 1);
    if (!bits) abort();
    for (size_t i = 0; i < n; i++) bits[i] = gpu_bits(type, from[i]);
    void *p = gpu_upload(bits, n * sizeof *bits);
    free(bits);
    return p;
}

void gpu_download_values(enum kx_store type, float *to, const void *device, size_t n) {
    uint16_t *bits = (uint16_t *)malloc(n * sizeof *bits + 1);
    if (!bits) abort();
    gpu_download(bits, device, n * sizeof *bits);
    for (size_t i = 0; i < n; i++) to[i] = gpu_unbits(type, bits[i]);
    free(bits);
}

/* ---- random: splitmix64 */

struct gpu_random gpu_random_of(uint64_t seed) {
    struct gpu_random r = {seed * 0x9e3779b97f4a7c15u + 1};
    return r;
}

static uint64_t next(struct gpu_random *r) {
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint32_t gpu_integer(struct gpu_random *r, uint32_t below) {
    return (uint32_t)((next(r) >> 32) * below >> 32);
}

float gpu_uniform(struct gpu_random *r) {
    return (float)(next(r) >> 40) * 0x1p-23f - 1.0f;
}

float gpu_normal(struct gpu_random *r) {
    double u = ((double)(next(r) >> 11) + 1) * 0x1p-53, v = (double)(next(r) >> 11) * 0x1p-53;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

void gpu_fill(struct gpu_random *r, enum kx_store type, float scale, float *v, size_t n) {
    for (size_t i = 0; i < n; i++) v[i] = gpu_round(type, scale * gpu_normal(r));
}

double gpu_nmse(const double *want, const float *got, size_t n) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(got[i])) return NAN;
        double d = (double)got[i] - want[i];
        error += d * d;
        norm += want[i] * want[i];
    }
    return error == 0 ? 0 : error / norm;
}
}
