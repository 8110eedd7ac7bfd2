/* Runs the numbered versions of the 3×3 convolution (conv.h) on the shapes of SD1.5, SDXL and the VAE, and on
 * SDXL's largest matrix products: each is compared with the first, then timed by events on the device.
 *
 *   conv_bench            shapes as they are in the models: a table of ms and TFLOP/s
 *   conv_bench --prove    small shapes with tails, no times: exit status 1 where a version is not like the
 * first
 *
 * Multiply-adds count as two. Weights and activations are random, so that the power that switching costs is a
 * model's. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "tests/bench/cuda/conv.h"

static const struct version {
    const char *name;
    cudaError_t (*run)(cudaStream_t, const struct conv_problem *);
} versions[] = {
    {"1 naive", conv_1_naive},       {"2 tiled", conv_2_tiled},         {"3 tensor", conv_3_tensor},
    {"4 permuted", conv_4_permuted}, {"5 pipelined", conv_5_pipelined}, {"6 shipped", conv_6_shipped},
    {"7 sm90", conv_7_sm90}};
enum { VERSIONS = sizeof versions / sizeof versions[0] };

struct shape {
    const char *name;
    int n, h, w, in, out, kernel;
};
static const struct shape model_shapes[] = {
    {"SD1.5 64x64x320", 16, 64, 64, 320, 320, 3},
    {"SD1.5 32x32x640", 16, 32, 32, 640, 640, 3},
    {"SD1.5 16x16x1280", 16, 16, 16, 1280, 1280, 3},
    {"SD1.5 8x8x1280", 16, 8, 8, 1280, 1280, 3},
    {"SDXL 128x128x320", 8, 128, 128, 320, 320, 3},
    {"SDXL 64x64x640", 8, 64, 64, 640, 640, 3},
    {"SDXL 32x32x1280", 8, 32, 32, 1280, 1280, 3},
    {"VAE 512x512x128", 2, 512, 512, 128, 128, 3},
    {"SDXL linear 640-640", 1, 8 * 4096, 1, 640, 640, 1},
    {"SDXL linear 640-5120", 1, 8 * 4096, 1, 640, 5120, 1},
    {"SDXL linear 2560-640", 1, 8 * 4096, 1, 2560, 640, 1},
    {"SDXL linear 1280-1280", 1, 8 * 1024, 1, 1280, 1280, 1},
    {"SDXL linear 1280-10240", 1, 8 * 1024, 1, 1280, 10240, 1},
    {"SDXL linear 5120-1280", 1, 8 * 1024, 1, 5120, 1280, 1},
};
static const struct shape small_shapes[] = {
    {"9x7x40-72", 2, 9, 7, 40, 72, 3},
    {"5x5x8-8", 3, 5, 5, 8, 8, 3},
    {"linear 67x24-136", 1, 67, 1, 24, 136, 1},
    {"linear 130x72-64", 1, 130, 1, 72, 64, 1},
};

static void must(cudaError_t e, const char *what) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "conv_bench: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

static uint64_t state = 1;
static float random_value(void) { /* uniform in −1 … 1 */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(state >> 32) * (1.0f / 2147483648.0f);
}
static void *random_halves(size_t n, float scale) {
    void *device;
    __half *host = (__half *)malloc(n * sizeof *host);
    if (!host) exit(1);
    for (size_t i = 0; i < n; i++) host[i] = __float2half_rn(scale * random_value());
    must(cudaMalloc(&device, n * sizeof *host), "memory");
    must(cudaMemcpy(device, host, n * sizeof *host, cudaMemcpyHostToDevice), "copy");
    free(host);
    return device;
}

/* ‖a − b‖² / ‖b‖², NaN where a value is. */
static double difference(const __half *a, const __half *b, size_t n) {
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        const double x = (double)__half2float(a[i]), y = (double)__half2float(b[i]);
        d += (x - y) * (x - y);
        s += y * y;
    }
    return d / s;
}

/* Milliseconds a run: the median of nine, each of as many runs as take 20 ms or more. */
static double milliseconds(cudaStream_t stream, const struct version *v, const struct conv_problem *p) {
    cudaEvent_t from, to;
    double times[9];
    int runs = 1;
    must(cudaEventCreate(&from), "event");
    must(cudaEventCreate(&to), "event");
    for (int i = 0; i < 9;) {
        float ms;
        must(cudaEventRecord(from, stream), "event");
        for (int r = 0; r < runs; r++) must(v->run(stream, p), v->name);
        must(cudaEventRecord(to, stream), "event");
        must(cudaEventSynchronize(to), v->name);
        must(cudaEventElapsedTime(&ms, from, to), "event");
        if (ms < 20.0f && runs < 4096) {
            runs *= 2;
            continue;
        }
        times[i++] = (double)ms / runs;
    }
    must(cudaEventDestroy(from), "event");
    must(cudaEventDestroy(to), "event");
    for (int i = 1; i < 9; i++)
        for (int j = i; j > 0 && times[j] < times[j - 1]; j--) {
            const double t = times[j];
            times[j] = times[j - 1], times[j - 1] = t;
        }
    return times[4];
}

/* How many versions were not like the first. */
static int run_shape(cudaStream_t stream, const struct shape *s, bool timed) {
    const size_t pixels = (size_t)s->n * (size_t)s->h * (size_t)s->w,
                 depth = (size_t)s->kernel * (size_t)s->kernel * (size_t)s->in;
    const size_t values = pixels * (size_t)s->out;
    int bad = 0;
    struct conv_problem p = {s->n, s->h, s->w, s->in, s->out, s->kernel, NULL, NULL, NULL, NULL};
    float *bias = (float *)malloc((size_t)s->out * sizeof *bias);
    __half *first = (__half *)malloc(values * sizeof *first), *y = (__half *)malloc(values * sizeof *y);
    void *device_bias;
    if (!bias || !first || !y) exit(1);
    for (int i = 0; i < s->out; i++) bias[i] = random_value();
    must(cudaMalloc(&device_bias, (size_t)s->out * sizeof *bias), "memory");
    must(cudaMemcpy(device_bias, bias, (size_t)s->out * sizeof *bias, cudaMemcpyHostToDevice), "copy");
    p.x = random_halves(pixels * (size_t)s->in, 1.0f);
    p.weight = random_halves((size_t)s->out * depth, 1.0f / sqrtf((float)depth));
    p.bias = (const float *)device_bias;
    must(cudaMalloc(&p.y, values * sizeof *y), "memory");
    for (int v = 0; v < VERSIONS; v++) {
        must(cudaMemsetAsync(p.y, 0xff, values * sizeof *y, stream), "memset"); /* NaN */
        const cudaError_t e = versions[v].run(stream, &p);
        if (e == cudaErrorNotSupported) {
            printf("%-24s %-12s not on this device\n", s->name, versions[v].name);
            continue;
        }
        must(e, versions[v].name);
        must(cudaStreamSynchronize(stream), versions[v].name);
        must(cudaMemcpy(y, p.y, values * sizeof *y, cudaMemcpyDeviceToHost), "copy");
        if (v == 0) memcpy(first, y, values * sizeof *y);
        const double nmse = difference(y, first, values);
        const bool like = nmse <= 1e-6; /* false for NaN */
        if (!like) bad++;
        printf("%-24s %-12s", s->name, versions[v].name);
        if (timed) {
            const double ms = milliseconds(stream, &versions[v], &p);
            printf(" %10.3f ms %8.1f TFLOP/s", ms, 2.0 * (double)values * (double)depth / (ms * 1e9));
        }
        printf("  nmse %.1e%s\n", nmse, like ? "" : "  NOT LIKE THE FIRST");
        fflush(stdout);
    }
    must(cudaFree((void *)p.x), "free");
    must(cudaFree((void *)p.weight), "free");
    must(cudaFree(device_bias), "free");
    must(cudaFree(p.y), "free");
    free(bias);
    free(first);
    free(y);
    return bad;
}

int main(int argc, char **argv) {
    const bool prove = argc == 2 && strcmp(argv[1], "--prove") == 0;
    if (argc > 1 && !prove) {
        fprintf(stderr, "usage: conv_bench [--prove]\n");
        return 2;
    }
    const struct shape *shapes = prove ? small_shapes : model_shapes;
    const size_t count = prove ? sizeof small_shapes / sizeof *shapes : sizeof model_shapes / sizeof *shapes;
    cudaStream_t stream;
    struct cudaDeviceProp device;
    int bad = 0;
    must(cudaGetDeviceProperties(&device, 0), "device");
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    printf("%s\n", device.name);
    for (size_t i = 0; i < count; i++) bad += run_shape(stream, &shapes[i], !prove);
    must(cudaStreamDestroy(stream), "stream");
    return bad ? 1 : 0;
}
