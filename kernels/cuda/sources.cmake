# Sources of the CUDA backend, for build.cmake: kernels are compiled by nvcc (and by g++ on the tests' shim), host code by the C compiler.
set(KX_CUDA_KERNELS
    op_attention.cu
    op_attention_wide.cu
    op_conv.cu
    op_conv_fp8.cu
    op_norm.cu
    op_norm_sm90.cu
    op_sample.cu
    op_small.cu)
set(KX_CUDA_HOST)
