/* See the header. As short as it can be: nothing is released, and a failure is a negative time. */
#include "tests/bench/onednn_alone.h"

#include <dnnl.h>
#include <omp.h>
#include <stdlib.h>

#include "base/clock.h"

#if DNNL_VERSION_MAJOR < 3
typedef const dnnl_memory_desc_t *layout;
static layout make(dnnl_format_tag_t tag, int n, const dnnl_dims_t dims) {
    dnnl_memory_desc_t *l = malloc(sizeof *l);
    return l && !dnnl_memory_desc_init_by_tag(l, n, dims, dnnl_f32, tag) ? l : NULL;
}
static dnnl_primitive_desc_t describe(dnnl_engine_t e, layout x, layout w, layout b, layout y,
                                      const dnnl_dims_t pad) {
    dnnl_convolution_desc_t d;
    dnnl_primitive_desc_t out;
    const dnnl_dims_t one = {1, 1};
    if (dnnl_convolution_forward_desc_init(&d, dnnl_forward_inference, dnnl_convolution_direct, x, w, b, y,
                                           one, pad, pad))
        return NULL;
    return dnnl_primitive_desc_create(&out, &d, NULL, e, NULL) ? NULL : out;
}
#else
typedef const_dnnl_memory_desc_t layout;
static layout make(dnnl_format_tag_t tag, int n, const dnnl_dims_t dims) {
    dnnl_memory_desc_t l;
    return dnnl_memory_desc_create_with_tag(&l, n, dims, dnnl_f32, tag) ? NULL : l;
}
static dnnl_primitive_desc_t describe(dnnl_engine_t e, layout x, layout w, layout b, layout y,
                                      const dnnl_dims_t pad) {
    dnnl_primitive_desc_t out;
    const dnnl_dims_t one = {1, 1}, none = {0, 0};
    return dnnl_convolution_forward_primitive_desc_create(&out, e, dnnl_forward_inference,
                                                          dnnl_convolution_direct, x, w, b, y, one, none, pad,
                                                          pad, NULL)
               ? NULL
               : out;
}
#endif

static dnnl_memory_t fill(dnnl_engine_t e, layout l) {
    size_t bytes = dnnl_memory_desc_get_size(l);
    float *v = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    dnnl_memory_t m = NULL;
    if (!v) return NULL;
    for (size_t i = 0; i < bytes / sizeof *v; i++) v[i] = (float)(i % 251) / 251 - 0.5f;
    return dnnl_memory_create(&m, l, e, v) ? NULL : m;
}

double onednn_alone(int in, int out, int h, int w, int kernel, int threads) {
    omp_set_num_threads(threads);
    dnnl_engine_t e;
    dnnl_stream_t stream;
    if (dnnl_engine_create(&e, dnnl_cpu, 0) || dnnl_stream_create(&stream, e, dnnl_stream_default_flags))
        return -1;
    layout x = make(dnnl_nhwc, 4, (dnnl_dims_t){1, in, h, w}),
           weights = make(dnnl_format_tag_any, 4, (dnnl_dims_t){out, in, kernel, kernel}),
           bias = make(dnnl_a, 1, (dnnl_dims_t){out}), y = make(dnnl_nhwc, 4, (dnnl_dims_t){1, out, h, w});
    if (!x || !weights || !bias || !y) return -1;
    dnnl_primitive_desc_t d = describe(e, x, weights, bias, y, (dnnl_dims_t){kernel / 2, kernel / 2});
    dnnl_primitive_t p;
    if (!d || dnnl_primitive_create(&p, d)) return -1;
    dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, fill(e, x)},
        {DNNL_ARG_WEIGHTS, fill(e, dnnl_primitive_desc_query_md(d, dnnl_query_weights_md, 0))},
        {DNNL_ARG_BIAS, fill(e, bias)},
        {DNNL_ARG_DST, fill(e, y)}};
    double best = -1;
    uint64_t begun = kn_clock_us();
    for (int i = 0; i < 5 || kn_clock_us() - begun < 300000; i++) {
        uint64_t t = kn_clock_us();
        if (dnnl_primitive_execute(p, stream, 4, args) || dnnl_stream_wait(stream)) return -1;
        double s = (double)(kn_clock_us() - t) * 1e-6;
        if (best < 0 || s < best) best = s;
    }
    return best;
}
