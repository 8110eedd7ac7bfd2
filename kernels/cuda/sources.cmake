# Sources of the CUDA backend, for build.cmake: kernels are compiled by nvcc (and by g++ on the tests' shim), host code by the C compiler.
set(KX_CUDA_KERNELS)
set(KX_CUDA_HOST)
