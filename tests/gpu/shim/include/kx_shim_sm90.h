/* kernels/cuda/wgmma.cuh's instructions on the host, after the PTX ISA: barriers that count arrivals and
 * bytes, TMA's boxes with their permutation and zeros outside, matrix descriptors with 128-byte permutation
 * for k along and across the rows, and the fragments of a warpgroup. Copies land late and out of order; what
 * is not shown is a product that is still under way (it is done when the call returns), and whether the
 * hardware is as documented. */
#ifndef KILN_SHIM_SM90_H
#define KILN_SHIM_SM90_H

#include <stdint.h>
#include <string.h>

extern "C" void kx_shim_yield(void); /* others run; for a thread that waits for what they write */

/* ---- shared memory's addresses: those of dynamic shared memory begin at 128, to show what wants more
 * alignment */

KX_DEVICE uint32_t kx_shared_address(const void *shared) {
    return (uint32_t)((const unsigned char *)shared - (const unsigned char *)kx_shim_dynamic_shared() + 128);
}
KX_DEVICE unsigned char *kx_shim_shared_at(uint32_t address) {
    return (unsigned char *)kx_shim_dynamic_shared() + address - 128;
}
/* 16-byte chunk xor 128-byte row among eight. */
KX_DEVICE uint32_t kx_shim_permuted(uint32_t address) {
    return address ^ (address >> 7 & 7) << 4;
}

/* ---- barriers */

struct kx_shim_mbarrier {
    int32_t bytes;
    uint8_t phase, left, count, made;
};
static_assert(sizeof(kx_shim_mbarrier) == sizeof(uint64_t), "it lies in the barrier's eight bytes");
KX_DEVICE kx_shim_mbarrier kx_shim_mbarrier_get(const uint64_t *b) {
    kx_shim_mbarrier m;
    memcpy(&m, b, sizeof m);
    if (m.made != 0x5a) kx_shim_trap("a barrier that was not initialised");
    return m;
}
KX_DEVICE void kx_shim_mbarrier_put(uint64_t *b, kx_shim_mbarrier m) {
    if (m.left == 0 && m.bytes == 0) {
        m.phase ^= 1;
        m.left = m.count;
    }
    memcpy(b, &m, sizeof m);
}
KX_DEVICE void barrier_init(uint64_t *b, int count) {
    kx_shim_mbarrier m = {0, 0, (uint8_t)count, (uint8_t)count, 0x5a};
    memcpy(b, &m, sizeof m);
}
KX_DEVICE void barrier_arrive(uint64_t *b) {
    kx_shim_mbarrier m = kx_shim_mbarrier_get(b);
    m.left--;
    kx_shim_mbarrier_put(b, m);
}
KX_DEVICE void barrier_expect(uint64_t *b, int bytes) {
    kx_shim_mbarrier m = kx_shim_mbarrier_get(b);
    m.bytes += bytes;
    m.left--;
    kx_shim_mbarrier_put(b, m);
}
KX_DEVICE void barrier_inits_seen(void) {
}
KX_DEVICE void warpgroup_barrier(enum named_barrier barrier) {
    kx_shim_named_barrier(barrier, WARPGROUP_THREADS, __FILE__, __LINE__);
}
template <int N> KX_DEVICE void registers_give_up(void) {
}
template <int N> KX_DEVICE void registers_take(void) {
}

/* ---- copies */

struct CUtensorMap {
    const unsigned char *v;
    uint64_t sides[4], strides[3];
    uint32_t boxes[4];
};
static inline bool tensor_map(CUtensorMap *map, enum kx_store, const void *v, const uint64_t (&sides)[4],
                              const uint64_t (&strides)[3], const uint32_t (&boxes)[4]) {
    map->v = (const unsigned char *)v;
    memcpy(map->sides, sides, sizeof sides);
    memcpy(map->strides, strides, sizeof strides);
    memcpy(map->boxes, boxes, sizeof boxes);
    for (int i = 0; i < 3; i++)
        if (strides[i] % 16 || strides[i] >> 40 || (i && strides[i] % strides[i - 1])) return false;
    for (int i = 0; i < 4; i++)
        if (boxes[i] < 1 || boxes[i] > 256) return false;
    return (uintptr_t)v % 16 == 0 && boxes[0] == 64;
}
/* Copies under way, of the block that runs. They land while threads wait, the latest first: nothing of a copy
 * may be taken for granted because of another. */
struct kx_shim_box {
    CUtensorMap map;
    void *to;
    uint64_t *b;
    int at[4];
};
struct kx_shim_boxes {
    int n;
    kx_shim_box box[32];
};
KX_DEVICE kx_shim_boxes *kx_shim_under_way(void) {
    static __thread kx_shim_boxes boxes; /* like all __shared__ memory it is NaN when a block begins */
    if (boxes.n < 0 || boxes.n > 32) boxes.n = 0;
    return &boxes;
}
KX_DEVICE void kx_shim_land(const kx_shim_box *c) {
    const CUtensorMap *map = &c->map;
    uint32_t out = kx_shared_address(c->to), bytes = 0;
    if (out % 1024) kx_shim_trap("a permuted box wants 1,024 bytes of alignment");
    for (uint32_t i3 = 0; i3 < map->boxes[3]; i3++)
        for (uint32_t i2 = 0; i2 < map->boxes[2]; i2++)
            for (uint32_t i1 = 0; i1 < map->boxes[1]; i1++)
                for (uint32_t i0 = 0; i0 < map->boxes[0]; i0++, bytes += 2) {
                    const uint32_t in[4] = {i0, i1, i2, i3};
                    bool inside = true;
                    uint64_t offset = 0;
                    for (int i = 0; i < 4; i++) {
                        int64_t x = c->at[i] + (int64_t)in[i];
                        inside = inside && x >= 0 && (uint64_t)x < map->sides[i];
                        offset += (uint64_t)x * (i ? map->strides[i - 1] : 2);
                    }
                    unsigned char *value = kx_shim_shared_at(kx_shim_permuted(out + bytes));
                    if (inside)
                        memcpy(value, map->v + offset, 2);
                    else
                        memset(value, 0, 2);
                }
    kx_shim_mbarrier m = kx_shim_mbarrier_get(c->b);
    m.bytes -= (int32_t)bytes;
    kx_shim_mbarrier_put(c->b, m);
}
KX_DEVICE void copy_box(void *to, const CUtensorMap *map, uint64_t *b, int column, int head, int row,
                        int image) {
    kx_shim_boxes *under_way = kx_shim_under_way();
    if (under_way->n == 32) kx_shim_trap("more boxes under way than the shim has room for");
    under_way->box[under_way->n++] = {*map, to, b, {column, head, row, image}};
}
KX_DEVICE void barrier_wait(uint64_t *b, int parity) {
    for (long i = 0; kx_shim_mbarrier_get(b).phase == parity; i++) {
        if (i == 1000000) kx_shim_trap("a barrier's phase that does not end");
        kx_shim_yield();
        kx_shim_boxes *under_way = kx_shim_under_way();
        if (kx_shim_mbarrier_get(b).phase == parity && under_way->n)
            kx_shim_land(&under_way->box[--under_way->n]);
    }
}

/* ---- products */

KX_DEVICE void wgmma_fence(void) {
}
KX_DEVICE void wgmma_commit(void) {
}
template <int N> KX_DEVICE void wgmma_wait(void) {
}

/* Value (row, k) of a matrix: k along the rows, or across them. */
template <typename T> KX_DEVICE float kx_shim_operand(uint64_t descriptor, int row, int k, bool across) {
    uint32_t at = (uint32_t)(descriptor & 0x3fff) << 4, group = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    uint32_t r = (uint32_t)(across ? k : row), c = (uint32_t)(across ? row : k);
    T v;
    if (descriptor >> 62 != 1) kx_shim_trap("a descriptor without 128-byte permutation");
    if (c >= 64) kx_shim_trap("more than 64 values of a row");
    memcpy(&v, kx_shim_shared_at(kx_shim_permuted(at + r / 8 * group + r % 8 * 128 + c * 2)), 2);
    return kx_float(v);
}

/* d[4j + 2h + i]: row lane / 4 + 8 h of the warp's 16, column 8 j + 2 (lane % 4) + i. */
template <typename T, int N>
KX_DEVICE void product_shared(float (&d)[N / 2], uint64_t a, uint64_t b, int more) {
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32 % 4;
    for (int j = 0; j < N / 8; j++)
        for (int h = 0; h < 2; h++)
            for (int i = 0; i < 2; i++) {
                float sum = more ? d[4 * j + 2 * h + i] : 0;
                for (int k = 0; k < 16; k++)
                    sum += kx_shim_operand<T>(a, 16 * warp + 8 * h + lane / 4, k, false) *
                           kx_shim_operand<T>(b, 8 * j + lane % 4 * 2 + i, k, false);
                d[4 * j + 2 * h + i] = sum;
            }
}

template <typename T, int N>
KX_DEVICE void product_registers(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    int lane = (int)threadIdx.x % 32;
    float x[2][16];
    for (int t = 0; t < 4; t++) /* of the quad */
        for (int r = 0; r < 4; r++) {
            float2 two = kx_unpack2<T>(__shfl_sync(0xffffffffu, a[r], (lane & ~3) + t));
            x[r % 2][r / 2 * 8 + 2 * t] = two.x;
            x[r % 2][r / 2 * 8 + 2 * t + 1] = two.y;
        }
    for (int j = 0; j < N / 8; j++)
        for (int h = 0; h < 2; h++)
            for (int i = 0; i < 2; i++)
                for (int k = 0; k < 16; k++)
                    d[4 * j + 2 * h + i] +=
                        x[h][k] * kx_shim_operand<T>(b, 8 * j + lane % 4 * 2 + i, k, true);
}

#endif
