/* How near the kernels that only move memory come to the device's ceiling: norms, small ops and the sampler's
 * step (kernels/cuda/op_norm.cu, op_norm_sm90.cu, op_small.cu, op_sample.cu) on shapes of SD1.5, SDXL and the
 * VAE, by events on the device.
 *
 *   bench-cuda-memory            a table: ms, GB/s of the bytes that the op cannot do without, share of the
 * ceiling bench-cuda-memory --prove    small shapes, no times: exit status 1 where a launch fails
 *
 * The ceiling is a copy from device memory to device memory of 512 MB, read and write counted, in the same
 * run. Small tensors stay in L2 from run to run and can pass it; so each shape runs with 2 images and
 * with 32. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.h"

static void must(cudaError_t e, const char *what) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "memory_bench: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

/* All cases share these: buffers as large as the largest wants. */
struct room {
    cudaStream_t stream;
    size_t bytes;   /* of x and y each */
    void *x, *y;    /* x: random bf16 within ±2 */
    float *vectors; /* 65536 values of f32: gammas, betas, biases */
    int32_t *zeros; /* 65536 */
    void *work;
    size_t work_bytes;
};

enum op { GROUP, CLUSTER, LAYER, GEGLU, CONCAT, FINISH, UPSAMPLE, RGB, SAMPLE };
static const char *const names[] = {"group_norm + silu",
                                    "group_norm cluster",
                                    "layer_norm",
                                    "geglu",
                                    "concat",
                                    "finish + residual",
                                    "upsample",
                                    "to_rgb",
                                    "sample, guided Euler"};

struct shape {
    enum op op;
    int pixels, c;    /* an image's; c of the result */
    double bytes;     /* a value of the result, at least */
    double of_result; /* bytes of x over values of the result */
};
static const struct shape model_shapes[] = {
    {GROUP, 4096, 320, 4, 2},      {CLUSTER, 4096, 320, 4, 2},  {GROUP, 4096, 960, 4, 2},
    {CLUSTER, 4096, 960, 4, 2},    {GROUP, 1024, 640, 4, 2},    {GROUP, 1024, 1280, 4, 2},
    {GROUP, 1024, 1920, 4, 2},     {CLUSTER, 1024, 1920, 4, 2}, {GROUP, 256, 1280, 4, 2},
    {GROUP, 64, 2560, 4, 2},       {GROUP, 16384, 320, 4, 2},   {CLUSTER, 16384, 320, 4, 2},
    {GROUP, 262144, 128, 4, 2},    {GROUP, 65536, 512, 4, 2},   {LAYER, 4096, 320, 4, 2},
    {LAYER, 4096, 640, 4, 2},      {LAYER, 1024, 1280, 4, 2},   {LAYER, 77, 768, 4, 2},
    {GEGLU, 4096, 1280, 6, 4},     {GEGLU, 1024, 5120, 6, 4},   {CONCAT, 4096, 960, 4, 2},
    {CONCAT, 256, 2560, 4, 2},     {FINISH, 4096, 320, 6, 2},   {FINISH, 1024, 1280, 6, 2},
    {UPSAMPLE, 4096, 640, 2.5, 2}, {RGB, 262144, 3, 3, 2},      {SAMPLE, 4096, 4, 16, 4},
    {SAMPLE, 16384, 4, 16, 4},
};
static const struct shape small_shapes[] = {
    {GROUP, 64, 320, 4, 2},     {GROUP, 1100, 80, 4, 2}, {LAYER, 9, 640, 4, 2},
    {GEGLU, 7, 40, 6, 4},       {CONCAT, 9, 48, 4, 2},   {FINISH, 11, 24, 6, 2},
    {UPSAMPLE, 16, 16, 2.5, 2}, {RGB, 64, 3, 3, 2},      {SAMPLE, 64, 4, 16, 4},
};

/* One Euler step for n images of two rows each; *at goes on from call to call, and starts anew at the end. */
static cudaError_t run_sample(const struct room *r, int n, size_t values) {
    static struct kx_step table[1024 * 32];
    static int filled;
    struct kx_sampling s;
    memset(&s, 0, sizeof s);
    int32_t rows[64];
    char *at = (char *)r->work;
    if (filled != n) {
        memset(table, 0, sizeof table);
        for (int i = 0; i < 1024 * 32; i++) {
            table[i].cx = 1, table[i].cm = -0.001f, table[i].in_scale = 0.5f, table[i].store = -1;
        }
        for (int i = 0; i < n; i++) rows[i] = i, rows[32 + i] = n + i;
        must(cudaMemcpy(at, table, sizeof table, cudaMemcpyHostToDevice), "table");
        must(cudaMemcpy(at + sizeof table, rows, sizeof rows, cudaMemcpyHostToDevice), "rows");
        must(cudaMemset(at + sizeof table + sizeof rows, 0, 2 << 20), "zeros");
        filled = n;
    }
    s.n = n, s.rows = 2 * n, s.values = values, s.steps = 1024;
    s.table = (const struct kx_step *)at;
    s.row_u = (const int32_t *)(at + sizeof table);
    s.row_c = s.row_u + 32;
    at += sizeof table + sizeof rows;
    s.time_rows = (const int32_t *)at; /* steps × rows zeros */
    s.time_row = (int32_t *)(at + (1 << 20));
    s.at = s.time_row + 128;
    s.bad = s.at + 1;
    s.guidance = r->vectors;
    s.pred = r->x;
    s.in = r->y;
    s.x = (float *)(at + (2 << 20));
    static int calls;
    if (calls++ % 1024 == 0) must(kx_cuda_sample_begin(r->stream, KX_STORE_BF16, &s), "sample_begin");
    return kx_cuda_sample(r->stream, KX_STORE_BF16, &s);
}

static cudaError_t run(const struct room *r, const struct shape *s, int n) {
    const enum kx_store bf16 = KX_STORE_BF16;
    const int64_t rows = (int64_t)n * s->pixels;
    const float *gamma = r->vectors, *beta = r->vectors + 32768;
    int side = 1;
    switch (s->op) {
    case GROUP:
        return kx_cuda_group_norm(r->stream, bf16, r->x, gamma, beta, r->y, n, s->pixels, s->c,
                                  s->c < 64   ? 8
                                  : s->c % 32 ? 2
                                              : 32,
                                  1e-5f, true, r->work);
    case CLUSTER:
        return kx_cuda_group_norm_cluster(r->stream, bf16, r->x, gamma, beta, r->y, n, s->pixels, s->c, 32,
                                          1e-5f, true);
    case LAYER:
        return kx_cuda_layer_norm(r->stream, bf16, r->x, gamma, beta, r->y, rows, s->c, 1e-5f);
    case GEGLU:
        return kx_cuda_geglu(r->stream, bf16, r->x, rows, s->c, r->y);
    case CONCAT: /* two thirds and one third of the buffer */
        return kx_cuda_concat(r->stream, bf16, r->x, s->c / 3 / 8 * 8,
                              (char *)r->x + rows * (s->c / 3 / 8 * 8) * 2, s->c - s->c / 3 / 8 * 8, r->y,
                              rows);
    case FINISH: /* the residual lies in y */
        return kx_cuda_finish(r->stream, bf16, r->x, beta, KX_ACT_NONE, r->y, r->y, rows, s->c);
    case UPSAMPLE: /* pixels are the result's */
        while (side * side < s->pixels / 4) side++;
        return kx_cuda_upsample(r->stream, bf16, r->x, n, side, side, s->c, r->y);
    case RGB:
        return kx_cuda_to_rgb(r->stream, bf16, r->x, n, s->pixels, NULL, (uint8_t *)r->y, r->zeros);
    default:
        return run_sample(r, n, (size_t)s->pixels * (size_t)s->c);
    }
}

/* Milliseconds a run: the median of five, each of as many runs as take 10 ms or more. */
static double milliseconds(const struct room *r, const struct shape *s, int n) {
    enum { TIMES = 5 };
    double times[TIMES];
    int runs = 1;
    cudaEvent_t from, to;
    must(cudaEventCreate(&from), "event");
    must(cudaEventCreate(&to), "event");
    for (int i = 0; i < TIMES;) {
        float ms;
        must(cudaEventRecord(from, r->stream), "event");
        for (int k = 0; k < runs; k++) {
            if (s)
                must(run(r, s, n), names[s->op]);
            else
                must(cudaMemcpyAsync(r->y, r->x, r->bytes, cudaMemcpyDeviceToDevice, r->stream), "copy");
        }
        must(cudaEventRecord(to, r->stream), "event");
        must(cudaEventSynchronize(to), "event");
        must(cudaEventElapsedTime(&ms, from, to), "event");
        if (ms < 10.0f && runs < 8192) {
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

int main(int argc, char **argv) {
    const bool prove = argc > 1 && strcmp(argv[1], "--prove") == 0;
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("skipped: no device\n");
        return 77;
    }
    struct room r;
    memset(&r, 0, sizeof r);
    r.bytes = prove ? 1 << 20 : (size_t)512 << 20;
    r.work_bytes = (size_t)64 << 20;
    must(cudaStreamCreate(&r.stream), "stream");
    must(cudaMalloc(&r.x, r.bytes), "memory");
    must(cudaMalloc(&r.y, r.bytes), "memory");
    must(cudaMalloc(&r.work, r.work_bytes), "memory");
    must(cudaMalloc((void **)&r.vectors, 65536 * sizeof *r.vectors), "memory");
    must(cudaMalloc((void **)&r.zeros, 65536 * sizeof *r.zeros), "memory");
    must(cudaMemset(r.zeros, 0, 65536 * sizeof *r.zeros), "memory");
    must(cudaMemset(r.y, 0, r.bytes), "memory");
    uint16_t *values = (uint16_t *)malloc(r.bytes);
    float *ones = (float *)malloc(65536 * sizeof *ones);
    if (!values || !ones) return 1;
    uint64_t state = 1;
    for (size_t i = 0; i < r.bytes / 2; i++) { /* sign, exponent 2^-3 … 2^0, seven bits */
        state = state * 6364136223846793005u + 1442695040888963407u;
        values[i] = (uint16_t)((state >> 48 & 0x80ff) | (0x3e00 + (state >> 40 & 0x100)));
    }
    for (int i = 0; i < 65536; i++) ones[i] = i < 32768 ? 1.0f : 0.1f;
    must(cudaMemcpy(r.x, values, r.bytes, cudaMemcpyHostToDevice), "copy");
    must(cudaMemcpy(r.vectors, ones, 65536 * sizeof *ones, cudaMemcpyHostToDevice), "copy");
    free(values);
    free(ones);

    double ceiling = 0;
    if (!prove) {
        ceiling = 2.0 * (double)r.bytes / milliseconds(&r, NULL, 0) / 1e6;
        printf("device to device copy: %.0f GB/s, read and write\n", ceiling);
    }
    const struct shape *shapes = prove ? small_shapes : model_shapes;
    const size_t count =
        prove ? sizeof small_shapes / sizeof *small_shapes : sizeof model_shapes / sizeof *model_shapes;
    for (size_t i = 0; i < count; i++)
        for (int n = 2; n <= 32; n *= 16) {
            const struct shape *s = &shapes[i];
            const double results = (double)n * s->pixels * s->c;
            const double largest = s->of_result > 2 ? s->of_result : 2;
            if (results * largest > (double)r.bytes) continue;
            if (s->op == GROUP && kx_cuda_group_norm_workspace(n, s->pixels, s->c, 32) > r.work_bytes)
                continue;
            const cudaError_t e = run(&r, s, n);
            if (s->op == CLUSTER && e != cudaSuccess) { /* another architecture */
                (void)cudaGetLastError();
                continue;
            }
            must(e, names[s->op]);
            must(cudaStreamSynchronize(r.stream), names[s->op]);
            printf("%-22s %7d x %4d, n %2d", names[s->op], s->pixels, s->c, n);
            if (!prove) {
                const double ms = milliseconds(&r, s, n), gbs = results * s->bytes / ms / 1e6;
                printf(" %9.4f ms %7.0f GB/s %5.1f %%", ms, gbs, 100 * gbs / ceiling);
            }
            printf("\n");
            fflush(stdout);
        }
    must(cudaFree(r.x), "free");
    must(cudaFree(r.y), "free");
    must(cudaFree(r.work), "free");
    must(cudaFree(r.vectors), "free");
    must(cudaFree(r.zeros), "free");
    must(cudaStreamDestroy(r.stream), "stream");
    return 0;
}
