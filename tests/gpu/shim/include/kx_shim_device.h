/* kernels/cuda/device.cuh's own words for the shim: launches, dynamic shared memory, and the warp-wide
 * instructions of tensor cores, computed lane by lane after the layouts that the PTX ISA documents. */
#ifndef KILN_SHIM_DEVICE_H
#define KILN_SHIM_DEVICE_H

#include <tuple>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

/* ---- launching */

extern "C" {
/* A kernel with its arguments: what a launch runs now or a graph keeps. `destroy` frees it. */
struct kx_shim_call {
    const void *kernel;
    size_t argument_bytes;
    int pointers;
    const void *pointer[32]; /* those among the arguments, to be checked */
    void (*run)(const struct kx_shim_call *call);
    void (*destroy)(struct kx_shim_call *call);
};
/* Takes `call`. */
cudaError_t kx_shim_launch(struct kx_shim_call *call, dim3 grid, dim3 block, size_t shared,
                           cudaStream_t stream);
}

template <typename... P> struct kx_shim_bound {
    kx_shim_call call; /* first */
    void (*kernel)(P...);
    std::tuple<P...> values;
    static void run(const kx_shim_call *call) {
        const kx_shim_bound *me = (const kx_shim_bound *)call;
        std::apply(me->kernel, me->values);
    }
    static void destroy(kx_shim_call *call) {
        delete (kx_shim_bound *)call;
    }
};
template <typename T> static inline void kx_shim_note_pointer(kx_shim_call *call, const T &v) {
    if constexpr (std::is_pointer<T>::value) {
        if (call->pointers < 32) call->pointer[call->pointers++] = (const void *)v;
    } else {
        (void)call, (void)v;
    }
}
template <typename... P>
static inline cudaError_t kx_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                                    cudaStream_t stream, typename kx_shim_same<P>::type... args) {
    kx_shim_bound<P...> *b = new kx_shim_bound<P...>{{}, kernel, std::tuple<P...>(args...)};
    b->call.kernel = (const void *)kernel;
    b->call.argument_bytes = (sizeof(P) + ... + 0);
    b->call.run = kx_shim_bound<P...>::run;
    b->call.destroy = kx_shim_bound<P...>::destroy;
    (kx_shim_note_pointer(&b->call, args), ...);
    return kx_shim_launch(&b->call, grid, block, shared, stream);
}

#define KX_DYNAMIC_SHARED(type, name) type *const name = static_cast<type *>(kx_shim_dynamic_shared())

/* ---- instructions */

static inline float kx_ex2(float v) {
    return exp2f(v);
}

extern "C" {
void kx_shim_mma_f16(unsigned mask, const void *const in[32], void *const out[32]);
void kx_shim_mma_bf16(unsigned mask, const void *const in[32], void *const out[32]);
void kx_shim_mma_e4m3(unsigned mask, const void *const in[32], void *const out[32]);
void kx_shim_ldmatrix_x4(unsigned mask, const void *const in[32], void *const out[32]);
void kx_shim_ldmatrix_x4_trans(unsigned mask, const void *const in[32], void *const out[32]);
void kx_shim_ldmatrix_x2(unsigned mask, const void *const in[32], void *const out[32]);
void kx_shim_ldmatrix_x2_trans(unsigned mask, const void *const in[32], void *const out[32]);
uint8_t kx_shim_e4m3(float v);
float kx_shim_from_e4m3(uint8_t v);
}
struct kx_shim_mma_in {
    float d[4];
    uint32_t a[4], b[2];
};
static inline void kx_shim_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                               kx_shim_compute compute, const char *name) {
    kx_shim_mma_in in = {{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    kx_shim_collective(0xffffffffu, compute, name, &in, d);
}
template <typename T>
static inline void kx_mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    static_assert(std::is_same<T, __half>::value || std::is_same<T, __nv_bfloat16>::value, "a storage type");
    kx_shim_mma(d, a, b, std::is_same<T, __half>::value ? kx_shim_mma_f16 : kx_shim_mma_bf16, "kx_mma_16816");
}
static inline void kx_mma_16832_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    kx_shim_mma(d, a, b, kx_shim_mma_e4m3, "kx_mma_16832_e4m3");
}
static inline uint8_t kx_e4m3(float v) {
    return kx_shim_e4m3(v);
}

static inline void kx_ldmatrix_x4(uint32_t (&r)[4], const void *shared_row) {
    kx_shim_collective(0xffffffffu, kx_shim_ldmatrix_x4, "kx_ldmatrix_x4", &shared_row, r);
}
static inline void kx_ldmatrix_x4_trans(uint32_t (&r)[4], const void *shared_row) {
    kx_shim_collective(0xffffffffu, kx_shim_ldmatrix_x4_trans, "kx_ldmatrix_x4_trans", &shared_row, r);
}
static inline void kx_ldmatrix_x2(uint32_t (&r)[2], const void *shared_row) {
    kx_shim_collective(0xffffffffu, kx_shim_ldmatrix_x2, "kx_ldmatrix_x2", &shared_row, r);
}
static inline void kx_ldmatrix_x2_trans(uint32_t (&r)[2], const void *shared_row) {
    kx_shim_collective(0xffffffffu, kx_shim_ldmatrix_x2_trans, "kx_ldmatrix_x2_trans", &shared_row, r);
}
static inline void kx_cp_async16(void *shared, const void *global, bool valid) {
    kx_shim_cp_async(shared, global, 16, valid ? 16 : 0);
}
static inline void kx_cp_async_commit(void) {
    kx_shim_cp_commit();
}
template <int N> static inline void kx_cp_async_wait(void) {
    kx_shim_cp_wait(N);
}

#endif
