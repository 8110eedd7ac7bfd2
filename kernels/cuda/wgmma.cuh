/* Hopper's own instructions, for attention and convolution: barriers in shared memory that count bytes
 * (mbarrier), copies of boxes by TMA, and the products of a warpgroup (wgmma). For sm_90a only; the shim has
 * its own (kx_shim_sm90.h), so that descriptors, permutation and the barriers' phases are proven as the PTX
 * ISA documents them, though no machine has run them.
 *
 * <cuda.h> is for the type of a TMA descriptor; cuTensorMapEncodeTiled, which makes one on the host, comes
 * from the driver through cudart, so that nothing of the driver is linked. */
#ifndef KILN_KERNELS_CUDA_WGMMA_CUH
#define KILN_KERNELS_CUDA_WGMMA_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

/* Who is who in a block of three warpgroups: one thread of the first copies, the other two compute. */
enum warpgroup_role { COPIER, FIRST_COMPUTER, SECOND_COMPUTER, WARPGROUPS };
enum { WARPGROUP_THREADS = 128, WARPGROUP_WARPS = 4, COMPUTING_WARPS = 2 * WARPGROUP_WARPS };

/* A block's named barriers (bar.sync). Number 0 is that of __syncthreads. */
enum named_barrier { BARRIER_BLOCK, BARRIER_FIRST_COMPUTER, BARRIER_SECOND_COMPUTER };

/* The phases of a stage of a ring. A stage has two mbarriers: `full` ends a phase when its bytes have
 * arrived, `empty` when all that read it have done with it. Phases are told apart by their parity. `round`
 * counts how often the stage was filled before.
 *
 * The phase of `full` that ends when this round's bytes are there. */
KX_DEVICE int phase_full(int round) {
    return round % 2;
}
/* The phase of `empty` that must be over before this round may fill the stage: that in which the round
 * before was read. In round 0 nobody has read it, and the phase before a barrier's first counts as over. */
KX_DEVICE int phase_empty(int round) {
    return (round + 1) % 2;
}

#ifdef KX_SHIM
#include <kx_shim_sm90.h>
#else

#include <cuda.h>

/* ---- barriers */

KX_DEVICE void barrier_init(uint64_t *b, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(kx_shared_address(b)), "r"(count)
                 : "memory");
}
KX_DEVICE void barrier_arrive(uint64_t *b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(kx_shared_address(b)) : "memory");
}
KX_DEVICE void barrier_expect(uint64_t *b, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(kx_shared_address(b)),
                 "r"(bytes)
                 : "memory");
}
/* Waits until the barrier's phase of this parity (phase_full, phase_empty) is over. */
KX_DEVICE void barrier_wait(uint64_t *b, int parity) {
    uint32_t over;
    do {
        asm volatile(
            "{\n\t.reg .pred p;\n\t"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
            "selp.u32 %0, 1, 0, p;\n\t}"
            : "=r"(over)
            : "r"(kx_shared_address(b)), "r"(parity)
            : "memory");
    } while (!over);
}
/* The barriers that this thread initialised are there for TMA too. */
KX_DEVICE void barrier_inits_seen(void) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/* Waits for all threads of one computing warpgroup. The numbers in the text are those of named_barrier and
 * WARPGROUP_THREADS. */
KX_DEVICE void warpgroup_barrier(enum named_barrier barrier) {
    if (barrier == BARRIER_FIRST_COMPUTER)
        asm volatile("bar.sync 1, 128;" ::: "memory");
    else
        asm volatile("bar.sync 2, 128;" ::: "memory");
}
/* All warps of a warpgroup: how many registers a thread has from now on. */
template <int N> KX_DEVICE void registers_give_up(void) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> KX_DEVICE void registers_take(void) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

/* ---- copies */

/* Four sides, the first dense; strides in bytes of the others, multiples of 16; boxes whose first side is 64
 * values, 128 bytes, permuted: the 16-byte chunk's number xor that of the row (128 bytes) among eight. Values
 * outside of the tensor come as zeros. */
static bool tensor_map(CUtensorMap *map, enum kx_store type, const void *v, const uint64_t (&sides)[4],
                       const uint64_t (&strides)[3], const uint32_t (&boxes)[4]) {
    typedef CUresult (*encode_tiled)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                     const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                     const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                     CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    void *encode = NULL; /* asked for each time: there is no state between launches */
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault,
                                         &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
        return false;
    const cuuint32_t ones[4] = {1, 1, 1, 1};
    const cuuint64_t sides_[4] = {sides[0], sides[1], sides[2], sides[3]};
    const cuuint64_t strides_[3] = {strides[0], strides[1], strides[2]};
    return ((encode_tiled)encode)(
               map, type == KX_STORE_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
               4, (void *)v, sides_, strides_, boxes, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
/* A box of the map's size, whose first value's place is that along the four sides. */
KX_DEVICE void copy_box(void *to, const CUtensorMap *map, uint64_t *b, int column, int head, int row,
                        int image) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
        "%5, %6}], [%2];" ::"r"(kx_shared_address(to)),
        "l"((uint64_t)map), "r"(kx_shared_address(b)), "r"(column), "r"(head), "r"(row), "r"(image)
        : "memory");
}

/* ---- products */

KX_DEVICE void wgmma_fence(void) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
KX_DEVICE void wgmma_commit(void) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> KX_DEVICE void wgmma_wait(void) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

#define SUMS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SUMS_16 SUMS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SUMS_20 SUMS_16 ", %16, %17, %18, %19"
#define SUMS_32 SUMS_20 ", %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUMS_64                                                                                              \
    SUMS_32                                                                                                  \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "      \
    "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS_80                                                                                              \
    SUMS_64                                                                                                  \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define SUMS_128                                                                                             \
    SUMS_80                                                                                                  \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                     \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "           \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define IN_OUT_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define IN_OUT_8(d) IN_OUT_4(d, 0), IN_OUT_4(d, 4)
#define IN_OUT_16(d) IN_OUT_8(d), IN_OUT_4(d, 8), IN_OUT_4(d, 12)
#define IN_OUT_20(d) IN_OUT_16(d), IN_OUT_4(d, 16)
#define IN_OUT_32(d) IN_OUT_20(d), IN_OUT_4(d, 20), IN_OUT_4(d, 24), IN_OUT_4(d, 28)
#define IN_OUT_64(d)                                                                                         \
    IN_OUT_32(d), IN_OUT_4(d, 32), IN_OUT_4(d, 36), IN_OUT_4(d, 40), IN_OUT_4(d, 44), IN_OUT_4(d, 48),       \
        IN_OUT_4(d, 52), IN_OUT_4(d, 56), IN_OUT_4(d, 60)
#define IN_OUT_80(d) IN_OUT_64(d), IN_OUT_4(d, 64), IN_OUT_4(d, 68), IN_OUT_4(d, 72), IN_OUT_4(d, 76)
#define IN_OUT_128(d)                                                                                        \
    IN_OUT_80(d), IN_OUT_4(d, 80), IN_OUT_4(d, 84), IN_OUT_4(d, 88), IN_OUT_4(d, 92), IN_OUT_4(d, 96),       \
        IN_OUT_4(d, 100), IN_OUT_4(d, 104), IN_OUT_4(d, 108), IN_OUT_4(d, 112), IN_OUT_4(d, 116),            \
        IN_OUT_4(d, 120), IN_OUT_4(d, 124)

/* N columns, S = N / 2 sums a thread; the rest are the numbers of the operands behind the sums. */
#define WGMMA_SHARED(TYPE, N, S, A, B, MORE)                                                                 \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #MORE                                              \
                 ", 0;\n\t"                                                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" SUMS_##S               \
                 "}, %" #A ", %" #B ", p, 1, 1, 0, 0;\n\t}"                                                  \
                 : IN_OUT_##S(d)                                                                             \
                 : "l"(a), "l"(b), "r"(more))
#define WGMMA_REGISTERS(TYPE, N, S, A0, A1, A2, A3, B)                                                       \
    asm volatile(                                                                                            \
        "{\n\t.reg .pred p;\n\tsetp.eq.b32 p, 0, 0;\n\t"                                                     \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" SUMS_##S                        \
        "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, 1;\n\t}"                             \
        : IN_OUT_##S(d)                                                                                      \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

template <typename T> struct is_f16 {
    enum { value = 0 };
};
template <> struct is_f16<__half> {
    enum { value = 1 };
};

/* d = a · bᵀ, or += where `more`: both in shared memory, k along the rows. Asynchronous; all of a warpgroup.
 */
template <typename T, int N>
KX_DEVICE void product_shared(float (&d)[N / 2], uint64_t a, uint64_t b, int more) {
    if constexpr (N == 256) {
        if constexpr (is_f16<T>::value)
            WGMMA_SHARED("f16", 256, 128, 128, 129, 130);
        else
            WGMMA_SHARED("bf16", 256, 128, 128, 129, 130);
    } else if constexpr (N == 160) {
        if constexpr (is_f16<T>::value)
            WGMMA_SHARED("f16", 160, 80, 80, 81, 82);
        else
            WGMMA_SHARED("bf16", 160, 80, 80, 81, 82);
    } else if constexpr (N == 128) {
        if constexpr (is_f16<T>::value)
            WGMMA_SHARED("f16", 128, 64, 64, 65, 66);
        else
            WGMMA_SHARED("bf16", 128, 64, 64, 65, 66);
    } else {
        static_assert(N == 64, "a width that is written out");
        if constexpr (is_f16<T>::value)
            WGMMA_SHARED("f16", 64, 32, 32, 33, 34);
        else
            WGMMA_SHARED("bf16", 64, 32, 32, 33, 34);
    }
}

/* d[0 … N / 2) += a · b: a in registers, b in shared memory, k across its rows. */
template <typename T, int N>
KX_DEVICE void product_registers(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    if constexpr (N == 16) {
        if constexpr (is_f16<T>::value)
            WGMMA_REGISTERS("f16", 16, 8, 8, 9, 10, 11, 12);
        else
            WGMMA_REGISTERS("bf16", 16, 8, 8, 9, 10, 11, 12);
    } else if constexpr (N == 32) {
        if constexpr (is_f16<T>::value)
            WGMMA_REGISTERS("f16", 32, 16, 16, 17, 18, 19, 20);
        else
            WGMMA_REGISTERS("bf16", 32, 16, 16, 17, 18, 19, 20);
    } else if constexpr (N == 40) {
        if constexpr (is_f16<T>::value)
            WGMMA_REGISTERS("f16", 40, 20, 20, 21, 22, 23, 24);
        else
            WGMMA_REGISTERS("bf16", 40, 20, 20, 21, 22, 23, 24);
    } else {
        static_assert(N == 64, "columns of a block");
        if constexpr (is_f16<T>::value)
            WGMMA_REGISTERS("f16", 64, 32, 32, 33, 34, 35, 36);
        else
            WGMMA_REGISTERS("bf16", 64, 32, 32, 33, 34, 35, 36);
    }
}

#endif

/* Rows of 128 bytes, permuted within groups of eight rows, 1,024 bytes a group (PTX ISA, "Matrix
 * Descriptor"). With k along the rows the next 16 of k are 32 bytes on; with k across them the next 16 are
 * two groups on, and the 64 columns are all that there are: the other offset is of no use in both. */
KX_DEVICE uint64_t descriptor(uint32_t shared_address) {
    return (uint64_t)((shared_address & 0x3ffffu) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}

#endif
