# The CPU backend, a file an op. vector.c, op_norm.c and op_attention.c are built once for each instruction set; which one runs is
# chosen by the processor (isa.c).
set(KX_CPU_SOURCES cpu/context.c cpu/isa.c cpu/onednn.c cpu/op_conv.c cpu/op_sample.c cpu/op_small.c cpu/pool.c)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|amd64|AMD64")
  set(kx_isas sse2 avx2 avx512)
else()
  set(kx_isas sse2) # by that name, four floats of whatever the processor has
endif()
foreach(isa IN LISTS kx_isas)
  add_library(kx_vector_${isa} OBJECT ${CMAKE_CURRENT_SOURCE_DIR}/cpu/vector.c ${CMAKE_CURRENT_SOURCE_DIR}/cpu/op_norm.c
              ${CMAKE_CURRENT_SOURCE_DIR}/cpu/op_attention.c)
  target_include_directories(kx_vector_${isa} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(kx_vector_${isa} PRIVATE KX_ISA=${isa})
  target_compile_options(kx_vector_${isa} PRIVATE -O3 -fno-math-errno -fno-trapping-math -ffp-contract=off -Wno-psabi)
  list(APPEND KX_CPU_SOURCES $<TARGET_OBJECTS:kx_vector_${isa}>)
endforeach()
if("avx2" IN_LIST kx_isas)
  target_compile_options(kx_vector_avx2 PRIVATE -mavx2 -mfma)
  target_compile_options(kx_vector_avx512 PRIVATE -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512)
endif()
