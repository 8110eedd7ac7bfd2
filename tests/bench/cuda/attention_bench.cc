/* Runs the numbered versions of attention (attention.h) on the shapes of SD1.5, SDXL and the VAE: each is
 * compared with the first, then timed by events on the device.
 *
 *   bench-cuda-attention            shapes as they are in the models: a table of ms and TFLOP/s
 *   bench-cuda-attention --prove    small shapes with tails, no times: exit status 1 where a version is not
 * like the first
 *
 * Work: 4 · rows · length · dim a head, multiply-adds count as two, exponentials as nothing. Values are
 * random, so that the power that switching costs is a model's. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "tests/bench/cuda/attention.h"

static const struct version {
    const char *name;
    cudaError_t (*run)(cudaStream_t, const struct kx_attention *, float *scratch);
} versions[] = {{"1 naive", attention_1_naive},       {"2 online", attention_2_online},
                {"3 tiles", attention_3_tiles},       {"4 mma", attention_4_mma},
                {"5 pipeline", attention_5_pipeline}, {"6 shipped", attention_6_shipped},
                {"7 sm90", attention_7_sm90}};
enum { SHIPPED = 5, VERSIONS = sizeof versions / sizeof versions[0] };

struct shape {
    const char *name;
    int n, rows, length, heads, dim;
};
static const struct shape model_shapes[] = {
    {"SD1.5 4096x4096 8x40", 4, 4096, 4096, 8, 40},     {"SD1.5 4096x77 8x40", 16, 4096, 77, 8, 40},
    {"SD1.5 1024x1024 8x80", 16, 1024, 1024, 8, 80},    {"SD1.5 256x256 8x160", 16, 256, 256, 8, 160},
    {"SDXL 4096x4096 10x64", 4, 4096, 4096, 10, 64},    {"SDXL 1024x1024 20x64", 16, 1024, 1024, 20, 64},
    {"SDXL 4096x77 10x64", 16, 4096, 77, 10, 64},       {"VAE 4096x4096 1x512", 4, 4096, 4096, 1, 512},
    {"VAE 16384x16384 1x512", 1, 16384, 16384, 1, 512},
};
static const struct shape small_shapes[] = {
    {"70x77 2x40", 2, 70, 77, 2, 40},   {"130x150 1x64", 1, 130, 150, 1, 64}, {"3x9 3x64", 3, 3, 9, 3, 64},
    {"20x100 1x80", 1, 20, 100, 1, 80}, {"9x130 1x512", 2, 9, 130, 1, 512},
};

static void must(cudaError_t e, const char *what) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "attention_bench: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

static uint64_t state = 1;
static float random_value(void) { /* about normal: the sum of four uniform ones in −1 … 1, times √(3 / 4) */
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(int32_t)(state >> 32) * (1.0f / 2147483648.0f);
    }
    return 0.8660254f * sum;
}
static void *random_halves(size_t n) {
    void *device;
    __half *host = (__half *)malloc(n * sizeof *host);
    if (!host) exit(1);
    for (size_t i = 0; i < n; i++) host[i] = __float2half_rn(random_value());
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

/* Milliseconds a run: the median of five, each of as many runs as take 20 ms or more. */
static double milliseconds(cudaStream_t stream, const struct version *v, const struct kx_attention *a,
                           float *scratch) {
    enum { TIMES = 5 };
    cudaEvent_t from, to;
    double times[TIMES];
    int runs = 1;
    must(cudaEventCreate(&from), "event");
    must(cudaEventCreate(&to), "event");
    for (int i = 0; i < TIMES;) {
        float ms;
        must(cudaEventRecord(from, stream), "event");
        for (int r = 0; r < runs; r++) must(v->run(stream, a, scratch), v->name);
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
    for (int i = 1; i < TIMES; i++)
        for (int j = i; j > 0 && times[j] < times[j - 1]; j--) {
            const double t = times[j];
            times[j] = times[j - 1], times[j - 1] = t;
        }
    return times[TIMES / 2];
}

/* How many versions were not like the first. */
static int run_shape(cudaStream_t stream, const struct shape *s, bool timed) {
    const size_t width = (size_t)(s->heads * s->dim), values = (size_t)(s->n * s->rows) * width;
    const size_t cells = (size_t)s->heads * (size_t)s->rows * (size_t)s->length;
    int bad = 0;
    struct kx_attention a;
    memset(&a, 0, sizeof a);
    a.n = s->n, a.rows = s->rows, a.length = s->length, a.heads = s->heads, a.dim = s->dim;
    a.q_stride = a.k_stride = a.v_stride = a.out_stride = width;
    a.kv_image = (size_t)s->length * width;
    a.scale = 1.0f / sqrtf((float)s->dim);
    void *q = random_halves(values), *k = random_halves((size_t)s->n * a.kv_image);
    void *v = random_halves((size_t)s->n * a.kv_image), *scratch;
    must(cudaMalloc(&a.out, values * sizeof(__half)), "memory");
    must(cudaMalloc(&scratch, cells * sizeof(float)), "memory");
    a.q = q, a.k = k, a.v = v;
    __half *first = (__half *)malloc(values * sizeof *first), *out = (__half *)malloc(values * sizeof *out);
    if (!first || !out) exit(1);
    for (int i = 0; i < VERSIONS; i++) {
        must(cudaMemsetAsync(a.out, 0xff, values * sizeof *out, stream), "memset"); /* NaN */
        const cudaError_t e = versions[i].run(stream, &a, (float *)scratch);
        if (e == KX_CUDA_NO && i > 0 && i != SHIPPED) continue;
        must(e, versions[i].name);
        must(cudaStreamSynchronize(stream), versions[i].name);
        must(cudaMemcpy(out, a.out, values * sizeof *out, cudaMemcpyDeviceToHost), "copy");
        if (i == 0) memcpy(first, out, values * sizeof *out);
        const double nmse = difference(out, first, values);
        const bool like = nmse <= 1e-6; /* false for NaN */
        if (!like) bad++;
        printf("%-24s %-12s", s->name, versions[i].name);
        if (timed) {
            const double ms = milliseconds(stream, &versions[i], &a, (float *)scratch);
            printf(" %10.3f ms %8.1f TFLOP/s", ms,
                   4.0 * (double)s->n * (double)cells * (double)s->dim / (ms * 1e9));
        }
        printf("  nmse %.1e%s\n", nmse, like ? "" : "  NOT LIKE THE FIRST");
        fflush(stdout);
    }
    must(cudaFree(scratch), "free");
    must(cudaFree(a.out), "free");
    must(cudaFree(v), "free");
    must(cudaFree(k), "free");
    must(cudaFree(q), "free");
    free(out);
    free(first);
    return bad;
}

int main(int argc, char **argv) {
    const bool prove = argc == 2 && strcmp(argv[1], "--prove") == 0;
    if (argc > 1 && !prove) {
        fprintf(stderr, "usage: bench-cuda-attention [--prove]\n");
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
