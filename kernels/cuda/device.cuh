/* The device dialect: the one header that a kernel file includes (beside launch.h). It is CUDA where nvcc
 * compiles it, and an emulation on the host (tests/gpu/shim) where KX_SHIM is defined and g++ compiles it, so
 * that index arithmetic, reductions and fragment layouts are proven on machines that have no GPU.
 *
 * Real names work in both: __global__, __device__, __shared__, __syncthreads, __shfl_*_sync, atomics on
 * integers, __ldg, threadIdx and so on. Everything that differs between
 * the two goes through the kx_ names below. Write
 * `alignas(16) __shared__ T name[N];` with alignas first (or __align__ anywhere). __shared__ memory is for
 * types without constructors.
 *
 * Fragment layouts (PTX ISA, "Matrix Fragments for mma.m16n8k16"): with g = lane / 4 and t = lane % 4,
 *   a[0] = A[g][2t, 2t+1]      a[1] = A[g+8][2t, 2t+1]     a[2] = A[g][2t+8, +9]    a[3] = A[g+8][2t+8, +9]
 *   b[0] = B[2t, 2t+1][g]      b[1] = B[2t+8, 2t+9][g]     (B is k × n; the lower index is in the low half)
 *   d[0, 1] = D[g][2t, 2t+1]   d[2, 3] = D[g+8][2t, 2t+1]
 * and for m16n8k32 with bytes: a[0] = A[g][4t … 4t+3], a[1] = A[g+8][4t …], a[2] = A[g][4t+16 …],
 *   a[3] = A[g+8][4t+16 …]; b[0] = B[4t … 4t+3][g], b[1] = B[4t+16 …][g]; d as above.
 * ldmatrix: lane i gives the address of a row of 8 values (16 bytes, aligned): lanes 0-7 those of matrix 0,
 * 8-15 of matrix 1, and so on; r[m] then holds matrix m's row g, values 2t and 2t+1 (trans: its column g,
 * rows 2t and 2t+1). */
#ifndef KILN_KERNELS_CUDA_DEVICE_CUH
#define KILN_KERNELS_CUDA_DEVICE_CUH

#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef KX_SHIM
#include <kx_shim_device.h>
#else
#include <cuda_fp8.h>
#endif

#define KX_DEVICE static __device__ __forceinline__

/* ---- launching */

template <typename T> struct kx_same { typedef T type; };

#ifndef KX_SHIM
/* kernel<<<grid, block, shared, stream>>>(args...), with its error. Arguments convert to the kernel's own
 * types; `shared` may be all that the device has.
 *
 * The limit above 48 KiB is a property of the kernel that all threads share: it is raised once, to all that
 * there is, and never lowered, since another thread may be about to launch the same kernel with more. */
template <typename... P>
static inline cudaError_t kx_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                                    cudaStream_t stream, typename kx_same<P>::type... args) {
    if (shared > (16 << 10)) { /* less fits beside any static shared memory of ours */
        struct cudaFuncAttributes has;
        int device = 0, most = 0;
        cudaError_t e = cudaFuncGetAttributes(&has, (const void *)kernel);
        if (e == cudaSuccess) e = cudaGetDevice(&device);
        if (e == cudaSuccess)
            e = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        if (e == cudaSuccess && has.maxDynamicSharedSizeBytes != most - (int)has.sharedSizeBytes)
            e = cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     most - (int)has.sharedSizeBytes);
        if (e != cudaSuccess) return e;
    }
    void *values[] = {(void *)&args..., nullptr};
    return cudaLaunchKernel((const void *)kernel, grid, block, values, shared, stream);
}

/* The block's dynamic shared memory, aligned to 128 bytes. */
#define KX_DYNAMIC_SHARED(type, name)                                                                        \
    extern __shared__ __align__(128) unsigned char kx_dynamic_shared[];                                      \
    type *const name = reinterpret_cast<type *>(kx_dynamic_shared)
#endif

/* ---- storage types: T is __half or __nv_bfloat16 */

template <typename T> static __host__ __device__ __forceinline__ T kx_value(float v);
template <> __host__ __device__ __forceinline__ __half kx_value<__half>(float v) {
    return __float2half_rn(v);
}
template <> __host__ __device__ __forceinline__ __nv_bfloat16 kx_value<__nv_bfloat16>(float v) {
    return __float2bfloat16_rn(v);
}
template <> __host__ __device__ __forceinline__ float kx_value<float>(float v) {
    return v;
}
static __host__ __device__ __forceinline__ float kx_float(__half v) {
    return __half2float(v);
}
static __host__ __device__ __forceinline__ float kx_float(__nv_bfloat16 v) {
    return __bfloat162float(v);
}
static __host__ __device__ __forceinline__ float kx_float(float v) {
    return v;
}

/* Two values in a register, the first in the low half, as the fragments above have them. */
template <typename T> KX_DEVICE uint32_t kx_pack2(float low, float high);
template <> __device__ __forceinline__ uint32_t kx_pack2<__half>(float low, float high) {
    __half2 v = __floats2half2_rn(low, high);
    return (uint32_t)__half_as_ushort(v.x) | (uint32_t)__half_as_ushort(v.y) << 16;
}
template <> __device__ __forceinline__ uint32_t kx_pack2<__nv_bfloat16>(float low, float high) {
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return (uint32_t)__bfloat16_as_ushort(v.x) | (uint32_t)__bfloat16_as_ushort(v.y) << 16;
}
template <typename T> KX_DEVICE float2 kx_unpack2(uint32_t v);
template <> __device__ __forceinline__ float2 kx_unpack2<__half>(uint32_t v) {
    return make_float2(__half2float(__ushort_as_half((unsigned short)(v & 0xffffu))),
                       __half2float(__ushort_as_half((unsigned short)(v >> 16))));
}
template <> __device__ __forceinline__ float2 kx_unpack2<__nv_bfloat16>(uint32_t v) {
    return make_float2(__bfloat162float(__ushort_as_bfloat16((unsigned short)(v & 0xffffu))),
                       __bfloat162float(__ushort_as_bfloat16((unsigned short)(v >> 16))));
}

/* 8 values, loaded and stored as one access of 16 bytes. */
template <typename T> struct alignas(16) kx_vec8 { T v[8]; };
template <typename T> KX_DEVICE kx_vec8<T> kx_load8(const T *p) {
    union {
        uint4 bits;
        kx_vec8<T> values;
    } u;
    u.bits = *reinterpret_cast<const uint4 *>(p);
    return u.values;
}
template <typename T> KX_DEVICE void kx_store8(T *p, const kx_vec8<T> &v) {
    *reinterpret_cast<uint4 *>(p) = *reinterpret_cast<const uint4 *>(&v);
}

/* In a launcher: the statement with T as the storage type, as in
 *   KX_DISPATCH(type, T, return kx_launch(kernel<T>, grid, block, 0, stream, (const T *)x, (T *)y)); */
#define KX_DISPATCH(store, T, ...)                                                                           \
    do {                                                                                                     \
        if ((store) == KX_STORE_BF16) {                                                                      \
            typedef __nv_bfloat16 T;                                                                         \
            __VA_ARGS__;                                                                                     \
        } else {                                                                                             \
            typedef __half T;                                                                                \
            __VA_ARGS__;                                                                                     \
        }                                                                                                    \
    } while (0)

/* ---- tensor cores and asynchronous copies (the shim has its own) */

#ifndef KX_SHIM

KX_DEVICE float kx_ex2(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

/* d += a · b on 16 × 8 × 16; all 32 lanes. */
template <typename T>
KX_DEVICE void kx_mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void kx_mma_16816<__half>(float (&d)[4], const uint32_t (&a)[4],
                                                     const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void kx_mma_16816<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                            const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* d += a · b on 16 × 8 × 32 of e4m3; all 32 lanes. sm_89 and later: elsewhere it traps, and launchers must
 * not come here. */
KX_DEVICE void kx_mma_16832_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    (void)d, (void)a, (void)b;
    __trap();
#endif
}

/* e4m3, round to nearest even, clamped to ±448. */
KX_DEVICE uint8_t kx_e4m3(float v) {
    return (uint8_t)__nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
}

KX_DEVICE uint32_t kx_shared_address(const void *shared) {
    return (uint32_t)__cvta_generic_to_shared(shared);
}
KX_DEVICE void kx_ldmatrix_x4(uint32_t (&r)[4], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(kx_shared_address(shared_row))
                 : "memory");
}
KX_DEVICE void kx_ldmatrix_x4_trans(uint32_t (&r)[4], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(kx_shared_address(shared_row))
                 : "memory");
}
KX_DEVICE void kx_ldmatrix_x2(uint32_t (&r)[2], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(kx_shared_address(shared_row))
                 : "memory");
}
KX_DEVICE void kx_ldmatrix_x2_trans(uint32_t (&r)[2], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(kx_shared_address(shared_row))
                 : "memory");
}

/* 16 bytes from global to shared memory, both aligned to 16, past the registers and L1; zeros where not
 * valid (the global address must be a legal one all the same, and nothing is read from it). */
KX_DEVICE void kx_cp_async16(void *shared, const void *global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(kx_shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}
KX_DEVICE void kx_cp_async_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Waits until at most N of the calling thread's latest groups are pending. Others' copies are visible only
 * after a barrier that follows their waits. */
template <int N> KX_DEVICE void kx_cp_async_wait(void) {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#endif

#endif
