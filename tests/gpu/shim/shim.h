/* The shim's own side: what tests ask of it beside CUDA's API, and what its files share.
 *
 * The emulated device runs each launch to its end before the call returns, one block after another in the
 * order of blockIdx, each on a thread of the shim whose fibers are the block's threads. A fault of a
 * launch is printed with the kernel's name, block and thread and becomes a sticky error, as on a real device:
 * every later call returns it until kx_shim_reset. */
#ifndef KILN_SHIM_H
#define KILN_SHIM_H

#include <stdbool.h>
#include <stddef.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- for tests */

/* Forgets a sticky error, captures under way and the knobs below; frees nothing. */
void kx_shim_reset(void);
/* All of the device's memory, bytes (default 2 GB). */
void kx_shim_memory(size_t bytes);
/* The compute capability that the device reports (default 9.0). */
void kx_shim_capability(int major, int minor);
/* The n-th call from now (1: the next) of a runtime function whose name is `name` (NULL: of any) fails with
 * `e`; a launch is "kx_launch". `sticky`: so does every later one. */
void kx_shim_fail(const char *name, int n, cudaError_t e, bool sticky);
/* The text of the last fault, "" for none; quiet: faults are not printed (default: they are). */
const char *kx_shim_fault(void);
void kx_shim_quiet(bool quiet);
/* Launches that ran, allocations that are alive, and their bytes. */
long kx_shim_launches(void);
size_t kx_shim_alive(size_t *bytes);
/* True if every byte of device memory around the allocations is as it was; else the fault's text says where.
 */
bool kx_shim_guards_intact(void);

/* ---- between the shim's files */

struct kx_shim_call;
/* Runs a launch: cudaSuccess, or a fault's error with its text in `fault`. */
cudaError_t kx_shim_run(const struct kx_shim_call *call, dim3 grid, dim3 block, size_t shared, char *fault,
                        size_t fault_size);
/* The symbol of the function at that address, demangled ("" where there is none); lives until the end. */
const char *kx_shim_name(const void *function, bool mangled);

#ifdef __cplusplus
}
#endif

#endif
