/* Convolution and linear layers (kernels/cuda/op_conv.cu, op_conv_fp8.cu) against sums of doubles over the
 * same rounded inputs: every kernel, stride, upsampling, epilogue and way of fetching, sizes with tails, and
 * the same bits in any batch, at any place, in any tile. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "kernels/cuda/conv.h"
#include "kernels/cuda/launch.h"
#include "tests/gpu/gpu.h"

enum shift_kind { NO_SHIFT, SHIFT, INDEXED };
enum residual_kind { NO_RESIDUAL, RESIDUAL, IN_PLACE };

/* kernel 0: a linear layer, n rows of 1 × 1. */
struct conv_case {
    int n, h, w, in, out, kernel, stride;
    bool upsample, bias;
    enum kx_act act;
    enum shift_kind shift;
    enum residual_kind residual;
    bool device_only; /* too much for the shim */
};

#define LINEAR(n, in, out) n, 1, 1, in, out, 0, 1, false
static const struct conv_case cases[] = {
    /* linear layers: rows and channels about the tiles' sides, each activation */
    {LINEAR(1, 8, 8), true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, false},
    {LINEAR(2, 320, 72), true, KX_ACT_SILU, NO_SHIFT, NO_RESIDUAL, false},
    {LINEAR(65, 64, 64), false, KX_ACT_NONE, NO_SHIFT, RESIDUAL, false},
    {LINEAR(130, 40, 136), true, KX_ACT_GELU, NO_SHIFT, NO_RESIDUAL, false},
    {LINEAR(129, 72, 264), true, KX_ACT_QUICK_GELU, NO_SHIFT, IN_PLACE, false},
    {LINEAR(67, 160, 328), true, KX_ACT_NONE, NO_SHIFT, IN_PLACE, false},
    {LINEAR(77, 24, 16), true, KX_ACT_GELU, NO_SHIFT, RESIDUAL, false},
    {LINEAR(70, 48, 176), true, KX_ACT_GEGLU, NO_SHIFT, NO_RESIDUAL, false},
    {LINEAR(33, 64, 272), false, KX_ACT_GEGLU, NO_SHIFT, RESIDUAL, false},
    {LINEAR(35, 32, 12), true, KX_ACT_GEGLU, NO_SHIFT, IN_PLACE, false}, /* y is no multiple of 8 channels */
    {LINEAR(5, 16, 2), true, KX_ACT_GEGLU, NO_SHIFT, NO_RESIDUAL, false},
    /* and whose channels are not whole chunks */
    {LINEAR(3, 4, 4), true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, false},
    {LINEAR(66, 33, 65), true, KX_ACT_SILU, NO_SHIFT, RESIDUAL, false},
    {LINEAR(9, 1, 1), true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, false},
    {LINEAR(20, 30, 14), true, KX_ACT_GEGLU, NO_SHIFT, NO_RESIDUAL, false},
    /* 1×1 on pictures */
    {3, 5, 7, 24, 40, 1, 1, false, true, KX_ACT_NONE, INDEXED, RESIDUAL, false},
    {2, 4, 4, 8, 8, 1, 2, false, true, KX_ACT_NONE, SHIFT, NO_RESIDUAL, false},
    {2, 3, 5, 16, 24, 1, 1, true, false, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, false},
    /* 3×3: pictures smaller than the kernel, tiles over several images, taps that end within a slice */
    {2, 1, 1, 8, 8, 3, 1, false, true, KX_ACT_NONE, SHIFT, IN_PLACE, false},
    {3, 5, 7, 8, 72, 3, 1, false, true, KX_ACT_NONE, INDEXED, RESIDUAL, false},
    {2, 9, 5, 24, 160, 3, 1, false, true, KX_ACT_NONE, SHIFT, IN_PLACE, false},
    {1, 11, 13, 64, 136, 3, 1, false, true, KX_ACT_SILU, NO_SHIFT, NO_RESIDUAL, false},
    {2, 8, 8, 40, 264, 3, 1, false, false, KX_ACT_NONE, SHIFT, NO_RESIDUAL, false},
    {1, 6, 6, 320, 48, 3, 1, false, true, KX_ACT_NONE, INDEXED, IN_PLACE, false},
    {3, 4, 5, 16, 16, 3, 1, false, true, KX_ACT_NONE, NO_SHIFT, RESIDUAL, false},
    {3, 7, 6, 16, 24, 3, 2, false, true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, false},
    {2, 8, 9, 40, 72, 3, 2, false, true, KX_ACT_NONE, SHIFT, RESIDUAL, false},
    {3, 3, 5, 16, 24, 3, 1, true, true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, false},
    {1, 7, 4, 72, 40, 3, 1, true, true, KX_ACT_NONE, SHIFT, IN_PLACE, false},
    /* the first and the last convolutions of the models, and odd ones */
    {3, 6, 5, 4, 24, 3, 1, false, true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, false},
    {2, 5, 6, 9, 13, 3, 1, false, true, KX_ACT_NONE, INDEXED, RESIDUAL, false},
    {2, 7, 7, 40, 4, 3, 1, false, true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, false},
    {2, 9, 5, 16, 3, 3, 1, false, true, KX_ACT_NONE, SHIFT, IN_PLACE, false},
    {2, 5, 7, 3, 8, 3, 2, false, true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, false},
    {2, 3, 3, 12, 12, 3, 1, true, true, KX_ACT_NONE, NO_SHIFT, RESIDUAL, false},
    {2, 6, 7, 8, 8, 5, 1, false, true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, false},
    /* the shapes of the models */
    {3, 64, 64, 320, 320, 3, 1, false, true, KX_ACT_NONE, INDEXED, NO_RESIDUAL, true},
    {3, 16, 16, 1280, 1280, 3, 1, false, true, KX_ACT_NONE, NO_SHIFT, RESIDUAL, true},
    {5, 8, 8, 2560, 1280, 3, 1, false, true, KX_ACT_NONE, SHIFT, NO_RESIDUAL, true},
    {2, 32, 32, 640, 640, 3, 2, false, true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, true},
    {2, 32, 32, 640, 640, 3, 1, true, true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, true},
    {1, 256, 256, 128, 128, 3, 1, false, true, KX_ACT_NONE, NO_SHIFT, IN_PLACE, true},
    {1, 256, 256, 128, 3, 3, 1, false, true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, true},
    {LINEAR(2000, 1280, 10240), true, KX_ACT_GEGLU, NO_SHIFT, NO_RESIDUAL, true},
    {LINEAR(2000, 5120, 1280), true, KX_ACT_NONE, NO_SHIFT, IN_PLACE, true},
};

/* A layer, its inputs and what should come out. Values are rounded to the type (or to e4m3). */
struct layer {
    struct conv_case c;
    enum kx_store type;
    bool fp8;
    int oh, ow, width;                                     /* of y; width: its channels */
    std::vector<float> x, w, shift, residual, bias, scale; /* w, bias, scale: rows as in the original */
    std::vector<float> laid_w, laid_bias, laid_scale;      /* as they are handed over */
    float x_scale;
    std::vector<double> y;
};

static size_t product(int a, int b, int c, int d) {
    return (size_t)a * (size_t)b * (size_t)c * (size_t)d;
}

static double act_of(enum kx_act act, double v) {
    switch (act) {
    case KX_ACT_SILU:
        return v / (1 + exp(-v));
    case KX_ACT_GELU:
        return 0.5 * v * (1 + erf(v / sqrt(2.0)));
    case KX_ACT_QUICK_GELU:
        return v / (1 + exp(-1.702 * v));
    default:
        return v;
    }
}

/* Σ x · w at a pixel of y. */
static double sum_at(const struct layer *l, int image, int py, int px, int n) {
    const struct conv_case *c = &l->c;
    const int k = c->kernel ? c->kernel : 1, up = c->upsample ? 2 : 1;
    double sum = 0;
    for (int ky = 0; ky < k; ky++)
        for (int kx = 0; kx < k; kx++) {
            const int y = py * c->stride + ky - k / 2, x = px * c->stride + kx - k / 2;
            if (y < 0 || y >= c->h * up || x < 0 || x >= c->w * up) continue;
            const float *a =
                &l->x[(product(image, c->h, c->w, 1) + product(y / up, c->w, 1, 1) + (size_t)(x / up)) *
                      (size_t)c->in];
            const float *b =
                &l->w[product(n, k, k, c->in) + product(ky, k, c->in, 1) + product(kx, c->in, 1, 1)];
            for (int i = 0; i < c->in; i++) sum += (double)a[i] * (double)b[i];
        }
    return sum;
}

static double before_act(const struct layer *l, int image, int py, int px, int n) {
    double v = sum_at(l, image, py, px, n);
    if (l->fp8) v *= (double)l->scale[(size_t)n] * (double)l->x_scale;
    if (l->c.bias) v += (double)l->bias[(size_t)n];
    if (l->c.shift != NO_SHIFT) v += (double)l->shift[product(image, l->c.out, 1, 1) + (size_t)n];
    return v;
}

/* e4m3's value of a code (not NaN). */
static float e4m3_value(int code) {
    const int e = code >> 3 & 15, m = code & 7;
    const float v = e ? ldexpf((float)(8 + m), e - 10) : ldexpf((float)m, -9);
    return code & 128 ? -v : v;
}
/* The nearest code, ties to the even one; ±448 beyond. */
static int e4m3_code(float v) {
    const float a = fabsf(v);
    int below = 0, above = 127; /* codes: value(below) <= a, and value(above) is not, or above is NaN's */
    if (isnan(v)) return 0x7f;
    while (above - below > 1) {
        const int middle = (below + above) / 2;
        if (e4m3_value(middle) <= a)
            below = middle;
        else
            above = middle;
    }
    int code = below;
    if (above < 127) {
        const float down = a - e4m3_value(below), up = e4m3_value(above) - a;
        if (up < down || (up <= down && above % 2 == 0)) code = above;
    }
    return code | (signbit(v) ? 128 : 0);
}

static float rounded(const struct layer *l, bool operand, float v) {
    return operand && l->fp8 ? e4m3_value(e4m3_code(v)) : gpu_round(l->type, v);
}

static void layer_make(struct layer *l, const struct conv_case *c, enum kx_store type, bool fp8,
                       uint64_t seed) {
    struct gpu_random r = gpu_random_of(seed);
    const int k = c->kernel ? c->kernel : 1, up = c->upsample ? 2 : 1;
    l->c = *c;
    l->type = type;
    l->fp8 = fp8;
    l->oh = (c->h * up + 2 * (k / 2) - k) / c->stride + 1;
    l->ow = (c->w * up + 2 * (k / 2) - k) / c->stride + 1;
    l->width = c->act == KX_ACT_GEGLU ? c->out / 2 : c->out;
    const size_t depth = product(k, k, c->in, 1), values = product(c->n, l->oh, l->ow, l->width);
    l->x.resize(product(c->n, c->h, c->w, c->in));
    l->w.resize((size_t)c->out * depth);
    l->bias.resize((size_t)c->out);
    l->scale.resize((size_t)c->out);
    l->shift.resize(product(c->n, c->out, 1, 1));
    l->residual.resize(values);
    l->x_scale = 0.0625f;
    for (float &v : l->x) v = rounded(l, true, gpu_normal(&r) * (fp8 ? 16.0f : 1.0f));
    for (float &v : l->w) v = rounded(l, true, gpu_normal(&r) * (fp8 ? 32.0f : 1.0f / sqrtf((float)depth)));
    for (float &v : l->bias) v = 0.5f * gpu_normal(&r);
    for (float &v : l->scale) v = (1.0f + 0.5f * gpu_uniform(&r)) / (32.0f * sqrtf((float)depth));
    for (float &v : l->shift) v = rounded(l, false, gpu_normal(&r));
    for (float &v : l->residual) v = rounded(l, false, gpu_normal(&r));

    l->laid_w = l->w;
    l->laid_bias = l->bias;
    l->laid_scale = l->scale;
    if (c->act == KX_ACT_GEGLU)
        for (int i = 0; i < c->out; i++) {
            const size_t from = (size_t)kx_cuda_geglu_row(i, c->out);
            memcpy(&l->laid_w[(size_t)i * depth], &l->w[from * depth], depth * sizeof(float));
            l->laid_bias[(size_t)i] = l->bias[from];
            l->laid_scale[(size_t)i] = l->scale[from];
        }

    l->y.resize(values);
    size_t at = 0;
    for (int i = 0; i < c->n; i++)
        for (int py = 0; py < l->oh; py++)
            for (int px = 0; px < l->ow; px++)
                for (int n = 0; n < l->width; n++, at++) {
                    double v = before_act(l, i, py, px, n);
                    if (c->act == KX_ACT_GEGLU)
                        v *= act_of(KX_ACT_GELU, before_act(l, i, py, px, n + c->out / 2));
                    else
                        v = act_of(c->act, v);
                    l->y[at] = v + (c->residual != NO_RESIDUAL ? (double)l->residual[at] : 0.0);
                }
}

/* ---- running */

enum { SM90 = -2 };
struct knobs {
    int tile;                /* −1: kx_cuda_conv's own choice; SM90: Hopper's kernel */
    int off_x, off_w, off_y; /* values past an aligned address */
};
static const struct knobs plain = {-1, 0, 0, 0};

/* Values as they are stored: e4m3 or the type. */
static void store(const struct layer *l, bool operand, const float *v, size_t n, uint8_t *to) {
    for (size_t i = 0; i < n; i++) {
        if (operand && l->fp8) {
            to[i] = (uint8_t)e4m3_code(v[i]);
        } else {
            const uint16_t bits = gpu_bits(l->type, v[i]);
            memcpy(to + 2 * i, &bits, 2);
        }
    }
}

/* y's bits for these images of l, in this order: one call. Empty where the launcher says that it cannot. */
static std::vector<uint16_t> layer_run(const struct layer *l, const std::vector<int> &images,
                                       const struct knobs &k) {
    const struct conv_case *c = &l->c;
    const size_t x_each = product(c->h, c->w, c->in, 1), y_each = product(l->oh, l->ow, l->width, 1);
    const size_t n = images.size(), out = (size_t)c->out, bytes = l->fp8 ? 1 : 2;
    const size_t stride = c->shift == INDEXED ? out + 8 : out, rows = (size_t)c->n;
    std::vector<uint8_t> x((n * x_each + (size_t)k.off_x) * bytes),
        w((l->w.size() + (size_t)k.off_w) * bytes);
    std::vector<uint8_t> shift((c->shift == INDEXED ? rows : n) * stride * 2), residual(n * y_each * 2);
    std::vector<int32_t> index(n);
    for (size_t i = 0; i < n; i++) {
        const size_t image = (size_t)images[i];
        store(l, true, &l->x[image * x_each], x_each, &x[((size_t)k.off_x + i * x_each) * bytes]);
        store(l, false, &l->residual[image * y_each], y_each, &residual[i * y_each * 2]);
        index[i] = (int32_t)(rows - 1 - image); /* the rows stand the other way round */
        if (c->shift == SHIFT) store(l, false, &l->shift[image * out], out, &shift[i * stride * 2]);
    }
    if (c->shift == INDEXED)
        for (size_t i = 0; i < rows; i++)
            store(l, false, &l->shift[i * out], out, &shift[(rows - 1 - i) * stride * 2]);
    store(l, true, l->laid_w.data(), l->laid_w.size(), &w[(size_t)k.off_w * bytes]);

    void *device_x = gpu_upload(x.data(), x.size()), *device_w = gpu_upload(w.data(), w.size());
    void *device_bias = gpu_upload(l->laid_bias.data(), out * 4),
         *device_scale = gpu_upload(l->laid_scale.data(), out * 4);
    void *device_shift = gpu_upload(shift.data(), shift.size()),
         *device_index = gpu_upload(index.data(), n * 4);
    void *device_residual = gpu_upload(residual.data(), residual.size());
    void *device_y = gpu_poisoned((n * y_each + (size_t)k.off_y) * 2);
    uint8_t *y = (uint8_t *)device_y + 2 * k.off_y;
    if (c->residual == IN_PLACE) gpu_write(y, residual.data(), residual.size());

    struct kx_cuda_gemm g;
    memset(&g, 0, sizeof g);
    g.type = l->type;
    g.n = c->kernel ? (int)n : 1;
    g.h = c->kernel ? c->h : (int)n;
    g.w = c->w;
    g.in = c->in, g.out = c->out;
    g.kernel = c->kernel ? c->kernel : 1;
    g.stride = c->stride;
    g.upsample = c->upsample;
    g.x = (const uint8_t *)device_x + (size_t)k.off_x * bytes;
    g.weight = (const uint8_t *)device_w + (size_t)k.off_w * bytes;
    g.bias = c->bias ? (const float *)device_bias : NULL;
    g.act = c->act;
    if (c->shift != NO_SHIFT) {
        g.time_proj.v = device_shift;
        g.time_proj.stride = stride;
        g.time_proj.index = c->shift == INDEXED ? (const int32_t *)device_index : NULL;
    }
    g.residual = c->residual == IN_PLACE ? y : c->residual == RESIDUAL ? device_residual : NULL;
    g.y = y;
    cudaError_t e;
    if (l->fp8) {
        struct kx_cuda_gemm_fp8 f = {g, (const float *)device_scale, l->x_scale};
        e = k.tile < 0 ? kx_cuda_conv_fp8(0, &f) : kx_cuda_conv_fp8_with(0, &f, (enum kx_conv_tile)k.tile);
    } else {
        e = k.tile == SM90 ? kx_cuda_conv_sm90(0, &g)
            : k.tile < 0   ? kx_cuda_conv(0, &g)
                           : kx_cuda_conv_with(0, &g, (enum kx_conv_tile)k.tile);
    }
    std::vector<uint16_t> bits(n * y_each);
    if (e == KX_CUDA_NO) {
        bits.clear();
    } else {
        GPU_OK(e);
        gpu_download(bits.data(), y, bits.size() * 2);
    }
    gpu_free(device_x), gpu_free(device_w), gpu_free(device_bias), gpu_free(device_scale);
    gpu_free(device_shift), gpu_free(device_index), gpu_free(device_residual), gpu_free(device_y);
    return bits;
}

/* ---- claims */

static double worst[2][2]; /* NMSE by [fp8][type] */

static const char *case_name(const struct layer *l) {
    static char s[160];
    const struct conv_case *c = &l->c;
    snprintf(s, sizeof s, "%s%s n %d %dx%d in %d out %d kernel %d stride %d%s act %d shift %d residual %d",
             l->type == KX_STORE_F16 ? "f16" : "bf16", l->fp8 ? " of e4m3" : "", c->n, c->h, c->w, c->in,
             c->out, c->kernel, c->stride, c->upsample ? " up" : "", (int)c->act, (int)c->shift,
             (int)c->residual);
    return s;
}

/* Close to the doubles: all together by NMSE, and each value within its rounding and what f32 sums lose. */
static void claim_close(const struct layer *l, const std::vector<uint16_t> &bits) {
    double d = 0, s = 0;
    const double half_ulp = l->type == KX_STORE_F16 ? 1.0 / 2048 : 1.0 / 256;
    for (double v : l->y) s += v * v;
    const double rms = sqrt(s / (double)l->y.size()) + 1e-30;
    CHECK_MSG(bits.size() == l->y.size(), "%s: no result", case_name(l));
    for (size_t i = 0; i < bits.size(); i++) {
        const double v = (double)gpu_unbits(l->type, bits[i]), e = v - l->y[i];
        d += e * e;
        CHECK_MSG(fabs(e) <= 1.01 * half_ulp * fabs(l->y[i]) + 1e-5 * rms, "%s: value %zu is %g, not %g",
                  case_name(l), i, v, l->y[i]);
    }
    const double nmse = s > 0 ? d / s : d;
    double *w = &worst[l->fp8][l->type == KX_STORE_BF16];
    if (nmse > *w) *w = nmse;
    CHECK_MSG(nmse <= (l->type == KX_STORE_F16 ? 1e-6 : 1e-5), "%s: NMSE %g", case_name(l), nmse);
}

/* y of `images` is, image for image, what it is in `all`. */
static void claim_same(const struct layer *l, const std::vector<uint16_t> &all,
                       const std::vector<int> &images, const struct knobs &k, const char *what) {
    const size_t each = all.size() / (size_t)l->c.n;
    const std::vector<uint16_t> some = layer_run(l, images, k);
    CHECK_MSG(some.size() == each * images.size(), "%s: no result (%s)", case_name(l), what);
    for (size_t i = 0; i < images.size(); i++)
        CHECK_MSG(memcmp(&some[i * each], &all[(size_t)images[i] * each], each * 2) == 0,
                  "%s: other bits (%s, image %d at %zu of %zu, tile %d)", case_name(l), what, images[i], i,
                  images.size(), k.tile);
}

static std::vector<int> count_up(int n) {
    std::vector<int> v((size_t)n);
    for (int i = 0; i < n; i++) v[(size_t)i] = i;
    return v;
}

static void run_case(const struct conv_case *c, enum kx_store type, bool fp8, uint64_t seed) {
    struct layer l;
    layer_make(&l, c, type, fp8, seed);
    const std::vector<int> in_order = count_up(c->n);
    const std::vector<uint16_t> all = layer_run(&l, in_order, plain);
    claim_close(&l, all);

    /* alone; the other way round; at batch 2 and 8, others beside it */
    for (int i = 0; i < c->n && i < 3; i++) claim_same(&l, all, {i}, plain, "alone");
    std::vector<int> turned(in_order.rbegin(), in_order.rend());
    claim_same(&l, all, turned, plain, "turned");
    claim_same(&l, all, {c->n - 1, 0}, plain, "two");
    if (!c->device_only) {
        std::vector<int> eight;
        for (int i = 0; i < 8; i++) eight.push_back((i * 5 + 1) % c->n);
        claim_same(&l, all, eight, plain, "eight");
    }
    /* in every tile */
    for (int tile = 0; tile < KX_CONV_TILES; tile++) {
        const struct knobs k = {tile, 0, 0, 0};
        if (c->in % 8 == 0 || tile == KX_CONV_64X64)
            claim_same(&l, all, in_order, k, "tile");
        else
            CHECK_MSG(layer_run(&l, in_order, k).empty(), "%s: tile %d cannot have done this", case_name(&l),
                      tile);
    }
    if (fp8) return;
    /* from and to addresses that allow no 16 bytes at a time */
    const struct knobs off[] = {{-1, 1, 0, 0}, {-1, 0, 3, 0}, {-1, 0, 0, 1}};
    for (const struct knobs &k : off) claim_same(&l, all, in_order, k, "not aligned");
}

TEST(what_cannot_be_is_refused) {
    struct kx_cuda_gemm g;
    memset(&g, 0, sizeof g);
    g.n = g.h = g.w = g.kernel = g.stride = 1;
    g.in = 8, g.out = 7, g.act = KX_ACT_GEGLU;
    CHECK(kx_cuda_conv(0, &g) == cudaErrorInvalidValue);
    g.act = KX_ACT_NONE;
    g.n = 65536, g.h = g.w = 256; /* 2³² pixels */
    CHECK(kx_cuda_conv(0, &g) == cudaErrorInvalidValue);
    g.n = 0;
    CHECK(kx_cuda_conv(0, &g) == cudaSuccess);
    struct kx_cuda_gemm_fp8 f = {g, NULL, 1.0f};
    f.gemm.n = 1, f.gemm.in = 24;
    CHECK(kx_cuda_conv_fp8(0, &f) == KX_CUDA_NO);
    GPU_OK(cudaGetLastError());
}

/* The same shape has the same tile whatever the batch, and the models' shapes have the tiles that the head of
 * op_conv.cu says. */
TEST(a_tile_is_chosen_by_the_shape_alone) {
    static const struct {
        int h, w, in, out, kernel;
        enum kx_conv_tile tile;
    } t[] = {{64, 64, 320, 320, 3, KX_CONV_128X160},  {512, 512, 128, 128, 3, KX_CONV_128X128},
             {64, 64, 512, 512, 3, KX_CONV_128X256},  {8, 8, 1280, 1280, 3, KX_CONV_64X64},
             {512, 512, 128, 3, 3, KX_CONV_128X16},   {64, 64, 4, 320, 3, KX_CONV_64X64},
             {4096, 1, 640, 640, 1, KX_CONV_128X128}, {1024, 1, 1280, 10240, 1, KX_CONV_128X256}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++)
        for (int n = 1; n <= 64; n += 7) {
            struct kx_cuda_gemm g;
            memset(&g, 0, sizeof g);
            g.n = t[i].kernel == 1 ? 1 : n;
            g.h = t[i].kernel == 1 ? t[i].h * n : t[i].h;
            g.w = t[i].w, g.in = t[i].in, g.out = t[i].out, g.kernel = t[i].kernel, g.stride = 1;
            CHECK_INT(kx_cuda_conv_tile(&g), t[i].tile);
        }
}

/* Every code's value, the middles between two, what is beyond and NaN, aligned or not. */
static void test_quantize(enum kx_store type) {
    std::vector<float> v;
    for (int i = 0; i < 256; i++) {
        if ((i & 127) == 127) continue;
        v.push_back(e4m3_value(i));
        if ((i & 127) < 126) v.push_back(0.5f * (e4m3_value(i) + e4m3_value(i + 1)));
    }
    const float others[] = {449.0f, -1000.0f, 60000.0f, NAN, 0.1f, -0.0009f, 3.14f};
    for (float o : others) v.push_back(o);
    while (v.size() % 16 != 0) v.push_back(1.0f);
    v.insert(v.end(), 16 * 300, -2.5f); /* more than a block */
    for (int off = 0; off < 2; off++) {
        const size_t n = v.size() - (size_t)off;
        std::vector<uint16_t> x(n);
        std::vector<uint8_t> y(n);
        const float scale = 0.25f;
        for (size_t i = 0; i < n; i++) x[i] = gpu_bits(type, v[i] * scale);
        void *device_x = gpu_upload(x.data(), n * 2), *device_y = gpu_poisoned(n);
        GPU_OK(kx_cuda_quantize_e4m3(0, type, device_x, scale, device_y, n));
        gpu_download(y.data(), device_y, n);
        for (size_t i = 0; i < n; i++) {
            const int want = e4m3_code(gpu_unbits(type, x[i]) * (1.0f / scale));
            CHECK_MSG((want & 127) == 127 ? (y[i] & 127) == 127 : y[i] == want,
                      "e4m3 of %g is %02x, not %02x", (double)v[i], y[i], want);
        }
        gpu_free(device_x), gpu_free(device_y);
    }
    CHECK(kx_cuda_quantize_e4m3(0, type, NULL, 0.0f, NULL, 1) == cudaErrorInvalidValue);
}

static void run_all(enum kx_store type, bool fp8) {
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].device_only && !gpu_real()) continue;
        if (fp8 && cases[i].in % 16 != 0) continue;
        run_case(&cases[i], type, fp8, 1 + i);
    }
    printf("%s%s: NMSE up to %.2g\n", type == KX_STORE_F16 ? "f16" : "bf16", fp8 ? " of e4m3" : "",
           worst[fp8][type == KX_STORE_BF16]);
}

TEST(layers_of_f16_are_what_doubles_say_in_any_batch_and_tile) {
    run_all(KX_STORE_F16, false);
}
TEST(layers_of_bf16_are_what_doubles_say_in_any_batch_and_tile) {
    run_all(KX_STORE_BF16, false);
}
TEST(layers_of_e4m3_are_what_doubles_say_in_any_batch) {
    if (gpu_capability() < 89) SKIP("e4m3 needs compute capability 8.9");
    run_all(KX_STORE_F16, true);
    run_all(KX_STORE_BF16, true);
}
TEST(quantizing_to_e4m3_takes_the_nearest) {
    test_quantize(KX_STORE_F16);
    test_quantize(KX_STORE_BF16);
}

/* True if the device runs Hopper's kernel. */
static bool has_sm90(void) {
    struct layer l;
    layer_make(&l, &cases[0], KX_STORE_F16, false, 1);
    const bool has = !layer_run(&l, {0}, {SM90, 0, 0, 0}).empty();
#ifdef KX_CUDA_SM90
    CHECK_MSG(has || gpu_capability() != 90, "a Hopper that says no: has TMA refused its descriptors?");
#endif
    return has;
}

/* For the shim, where its instructions are slow: each width, taps that go round the ring, images that share a
 * patch and patches that share an image, more tiles than multiprocessors. A device takes `cases` too. */
static const struct conv_case sm90_cases[] = {
    {LINEAR(1, 8, 8), true, KX_ACT_NONE, NO_SHIFT, NO_RESIDUAL, false},
    {LINEAR(260, 24, 264), true, KX_ACT_GELU, NO_SHIFT, IN_PLACE, false},
    {LINEAR(70, 72, 176), true, KX_ACT_GEGLU, NO_SHIFT, NO_RESIDUAL, false},
    {3, 5, 7, 8, 72, 3, 1, false, true, KX_ACT_NONE, INDEXED, RESIDUAL, false},
    {1, 17, 9, 16, 12, 3, 1, false, false, KX_ACT_NONE, SHIFT, IN_PLACE, false},
};

static void run_sm90(const struct conv_case *c, enum kx_store type, uint64_t seed) {
    const struct knobs k = {SM90, 0, 0, 0};
    struct layer l;
    layer_make(&l, c, type, false, seed);
    const std::vector<int> in_order = count_up(c->n);
    const std::vector<uint16_t> all = layer_run(&l, in_order, k);
    if (c->stride != 1 || c->upsample || c->in % 8 != 0) {
        CHECK_MSG(all.empty(), "%s: sm90 cannot have done this", case_name(&l));
        return;
    }
    claim_close(&l, all);
    if (c->n == 1) return;
    std::vector<int> turned(in_order.rbegin(), in_order.rend());
    claim_same(&l, all, turned, k, "turned");
    claim_same(&l, all, {c->n - 1}, k, "alone");
}

TEST(layers_on_sm90_are_what_doubles_say_in_any_batch) {
    if (!has_sm90()) SKIP("no device of capability 9.0, or not built for it");
    for (size_t i = 0; i < sizeof sm90_cases / sizeof *sm90_cases; i++) {
        run_sm90(&sm90_cases[i], KX_STORE_F16, 1 + i);
        if (i == 0 || gpu_real()) run_sm90(&sm90_cases[i], KX_STORE_BF16, 1 + i);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const bool refused = cases[i].stride != 1 || cases[i].upsample || cases[i].in % 8 != 0;
        if (!gpu_real() && (!refused || cases[i].device_only)) continue;
        run_sm90(&cases[i], KX_STORE_F16, 1 + i);
        if (gpu_real()) run_sm90(&cases[i], KX_STORE_BF16, 1 + i);
    }
}
