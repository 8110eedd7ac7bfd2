/* The warp-wide instructions of tensor cores, lane by lane, after the PTX ISA ("Matrix Fragments for
 * mma.m16n8k16", "… mma.m16n8k32", "ldmatrix"). Written from the document's formulas, element by element, and
 * not from the summary in device.cuh, so that one checks the other.
 *
 * A product of two halves is exact in f32; the sum is taken in f64 and rounded once. A tensor core sums with
 * its own widths and order: results agree to f32's precision, not bit for bit. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <kx_shim_device.h>

static float half_at(const uint32_t *r, int i) {
    return __half2float(__ushort_as_half((unsigned short)(r[i / 2] >> (16 * (i % 2)))));
}
static float bfloat_at(const uint32_t *r, int i) {
    return __bfloat162float(__ushort_as_bfloat16((unsigned short)(r[i / 2] >> (16 * (i % 2)))));
}

/* d += a · b, a 16 × k, b k × 8 (transposed here), with the accumulator's layout, which all shapes share. */
static void multiply(const float *a, const float *b, int k, const void *const in[32], void *const out[32]) {
    for (int lane = 0; lane < 32; lane++) {
        const kx_shim_mma_in *m = (const kx_shim_mma_in *)in[lane];
        int group = lane >> 2, place = lane % 4;
        for (int i = 0; i < 4; i++) {
            int row = i < 2 ? group : group + 8, column = place * 2 + (i & 1);
            double sum = m->d[i];
            for (int j = 0; j < k; j++) sum += (double)a[row * k + j] * (double)b[column * k + j];
            ((float *)out[lane])[i] = (float)sum;
        }
    }
}

template <float (*value)(const uint32_t *, int)>
static void mma_16816(const void *const in[32], void *const out[32]) {
    float a[16 * 16], b[8 * 16];
    for (int lane = 0; lane < 32; lane++) {
        const kx_shim_mma_in *m = (const kx_shim_mma_in *)in[lane];
        int group = lane >> 2, place = lane % 4;
        for (int i = 0; i < 8; i++) {
            int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
            int column = place * 2 + (i & 1) + (i >= 4 ? 8 : 0);
            a[row * 16 + column] = value(m->a, i);
        }
        for (int i = 0; i < 4; i++) {
            int row = place * 2 + (i & 1) + (i >= 2 ? 8 : 0);
            b[group * 16 + row] = value(m->b, i);
        }
    }
    multiply(a, b, 16, in, out);
}

extern "C" void kx_shim_mma_f16(unsigned, const void *const in[32], void *const out[32]) {
    mma_16816<half_at>(in, out);
}
extern "C" void kx_shim_mma_bf16(unsigned, const void *const in[32], void *const out[32]) {
    mma_16816<bfloat_at>(in, out);
}

/* e4m3: bias 7, no infinities, 0x7f and 0xff are NaN, the largest is 448. */
extern "C" float kx_shim_from_e4m3(uint8_t v) {
    int e = v >> 3 & 15, m = v & 7;
    float f = e == 15 && m == 7 ? NAN : e == 0 ? ldexpf((float)m, -9) : ldexpf((float)(8 + m), e - 10);
    return v & 0x80 ? -f : f;
}
extern "C" uint8_t kx_shim_e4m3(float v) {
    uint8_t sign = signbit(v) ? 0x80 : 0;
    float a = fabsf(v);
    if (isnan(v)) return (uint8_t)0x7f;
    if (a >= 448.0f) return (uint8_t)(sign | 0x7e);
    if (!(a > 0.0f)) return sign; /* frexpf has no exponent for it */
    int e;
    frexpf(a, &e); /* a = [0.5, 1) · 2^e */
    int exponent = e - 1 < -6 ? -6 : e - 1;
    float steps = rintf(ldexpf(a, 3 - exponent)); /* ties to even */
    /* 8 steps a power of two; 16 steps carry into the next exponent by themselves. */
    int code = (int)steps + (exponent + 6) * 8;
    return (uint8_t)(sign | code);
}

extern "C" void kx_shim_mma_e4m3(unsigned, const void *const in[32], void *const out[32]) {
    float a[16 * 32], b[8 * 32];
    for (int lane = 0; lane < 32; lane++) {
        const kx_shim_mma_in *m = (const kx_shim_mma_in *)in[lane];
        int group = lane >> 2, place = lane % 4;
        for (int i = 0; i < 16; i++) {
            int row = (i < 4 || (i >= 8 && i < 12)) ? group : group + 8;
            int column = place * 4 + (i & 3) + (i >= 8 ? 16 : 0);
            a[row * 32 + column] = kx_shim_from_e4m3((uint8_t)(m->a[i / 4] >> (8 * (i % 4))));
        }
        for (int i = 0; i < 8; i++) {
            int row = place * 4 + (i & 3) + (i >= 4 ? 16 : 0);
            b[group * 32 + row] = kx_shim_from_e4m3((uint8_t)(m->b[i / 4] >> (8 * (i % 4))));
        }
    }
    multiply(a, b, 32, in, out);
}

static void ldmatrix(int matrices, bool transposed, const void *const in[32], void *const out[32]) {
    uint16_t m[4][8][8];
    for (int i = 0; i < matrices * 8; i++) {
        const void *row = *(const void *const *)in[i];
        if ((uintptr_t)row % 16) kx_shim_trap("ldmatrix of a row that is not aligned to 16 bytes");
        if (!kx_shim_is_shared(row, 16)) kx_shim_trap("ldmatrix of a row outside of shared memory");
        memcpy(m[i / 8][i % 8], row, 16);
    }
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < matrices; i++) {
            int row = lane / 4, column = lane % 4 * 2;
            uint16_t low = transposed ? m[i][column][row] : m[i][row][column];
            uint16_t high = transposed ? m[i][column + 1][row] : m[i][row][column + 1];
            ((uint32_t *)out[lane])[i] = (uint32_t)low | (uint32_t)high << 16;
        }
    }
}
extern "C" void kx_shim_ldmatrix_x4(unsigned, const void *const in[32], void *const out[32]) {
    ldmatrix(4, false, in, out);
}
extern "C" void kx_shim_ldmatrix_x4_trans(unsigned, const void *const in[32], void *const out[32]) {
    ldmatrix(4, true, in, out);
}
extern "C" void kx_shim_ldmatrix_x2(unsigned, const void *const in[32], void *const out[32]) {
    ldmatrix(2, false, in, out);
}
extern "C" void kx_shim_ldmatrix_x2_trans(unsigned, const void *const in[32], void *const out[32]) {
    ldmatrix(2, true, in, out);
}
