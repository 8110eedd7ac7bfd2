/* As CUDA's: the runtime API and, in C++, the words of the device language. */
#ifndef KILN_SHIM_CUDA_RUNTIME_H
#define KILN_SHIM_CUDA_RUNTIME_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
#include <kx_shim_language.h>
#endif

#endif
