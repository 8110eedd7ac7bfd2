# kx_cuda: the CUDA backend, a static library that kiln_engine takes in when KILN_CUDA says so. Its sources are listed in
# sources.cmake: KX_CUDA_KERNELS (.cu, for nvcc) and KX_CUDA_HOST (.c).
#
# cudart is linked statically, and nothing else of CUDA is linked: the driver's library comes with the driver, cuBLASLt and
# cuDNN are loaded at run time. So one program starts on a machine with no GPU and none of CUDA's packages.
#
# Architectures: real code for each of KILN_CUDA_ARCHITECTURES, and the PTX of the newest for what comes later. A file
# *_sm90.cu holds what only Hopper has (wgmma, TMA) and is compiled for 90a alone; it is left out where 90a is not asked for,
# and KX_CUDA_SM90 tells the others. `native` means the GPUs of this machine.
#
# Measured, all six on two cores: 4 min 40 s of CPU, most of it in op_conv.cu and op_conv_fp8.cu; the library has 17 MB.
set(KX_CUDA FALSE)
if(NOT KILN_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "KILN_CUDA is ${KILN_CUDA}: it is AUTO, ON or OFF")
endif()
if(KILN_CUDA STREQUAL "OFF")
  return()
endif()

set(KX_CUDA_KERNELS "")
set(KX_CUDA_HOST "")
include(${CMAKE_CURRENT_LIST_DIR}/sources.cmake OPTIONAL)
if(NOT KX_CUDA_KERNELS AND NOT KX_CUDA_HOST)
  message(STATUS "CUDA backend: no sources")
  return()
endif()

find_program(KILN_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin
             DOC "nvcc, for the CUDA backend")
if(NOT KILN_NVCC)
  if(KILN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "KILN_CUDA is ON and there is no nvcc: install CUDA's toolkit (12.8 or newer for the default "
                        "architectures), or set CUDA_HOME")
  endif()
  message(STATUS "CUDA backend: no, nvcc was not found")
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER ${KILN_NVCC})
endif()
set(CMAKE_CUDA_ARCHITECTURES OFF) # by flags of our own, below
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_FLAGS_RELWITHDEBINFO "-O3 -lineinfo") # -lineinfo costs nothing at run time; profilers and sanitizers want it
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")

# The architectures that are asked for, as numbers such as 90a, in ascending order.
set(architectures ${KILN_CUDA_ARCHITECTURES})
set(with_ptx TRUE)
if(architectures STREQUAL "native")
  set(with_ptx FALSE)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE found
                  ERROR_QUIET RESULT_VARIABLE rc)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" found "${found}")
  string(REPLACE "." "" found "${found}")
  list(REMOVE_DUPLICATES found)
  if(NOT rc STREQUAL "0" OR NOT found)
    message(FATAL_ERROR "KILN_CUDA_ARCHITECTURES is native, and nvidia-smi finds no GPU here")
  endif()
  list(TRANSFORM found REPLACE "^90$" "90a")
  set(architectures ${found})
endif()
list(SORT architectures COMPARE NATURAL)
# nvcc says which it can; an older toolkit gets along with those.
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET)
set(KX_CUDA_ARCHITECTURES "")
foreach(architecture IN LISTS architectures)
  if(NOT architecture MATCHES "^[0-9]+[af]?$")
    message(FATAL_ERROR "KILN_CUDA_ARCHITECTURES: ${architecture} is not a number such as 80 or 90a")
  endif()
  string(REGEX REPLACE "[af]$" "" plain ${architecture})
  if(plain LESS 80)
    message(FATAL_ERROR "KILN_CUDA_ARCHITECTURES: ${architecture}: the CUDA backend needs compute capability 8.0 or newer")
  endif()
  if(known MATCHES "compute_${plain}[^0-9]")
    list(APPEND KX_CUDA_ARCHITECTURES ${architecture})
  else()
    message(STATUS "CUDA backend: this nvcc (${CMAKE_CUDA_COMPILER_VERSION}) has no compute_${plain}; left out")
  endif()
endforeach()
if(NOT KX_CUDA_ARCHITECTURES)
  message(FATAL_ERROR "KILN_CUDA_ARCHITECTURES: nothing of ${KILN_CUDA_ARCHITECTURES} is left that ${CMAKE_CUDA_COMPILER} knows")
endif()
set(generate "")
foreach(architecture IN LISTS KX_CUDA_ARCHITECTURES)
  list(APPEND generate "--generate-code=arch=compute_${architecture},code=sm_${architecture}")
endforeach()
if(with_ptx)
  # PTX of an architecture with a letter runs on that one alone.
  set(plain ${KX_CUDA_ARCHITECTURES})
  list(FILTER plain INCLUDE REGEX "^[0-9]+$")
  if(plain)
    list(GET plain -1 newest)
    list(APPEND generate "--generate-code=arch=compute_${newest},code=compute_${newest}")
  endif()
endif()

set(options --threads=2 "--compiler-options=-Wall,-Wextra,-Wshadow,-fno-exceptions,-fno-rtti" -Xfatbin=-compress-all)
if(KILN_WERROR)
  list(APPEND options --Werror=all-warnings "--compiler-options=-Werror")
endif()

set(kernels ${KX_CUDA_KERNELS})
if(NOT "90a" IN_LIST KX_CUDA_ARCHITECTURES)
  list(FILTER kernels EXCLUDE REGEX "_sm90\\.cu$")
endif()
list(TRANSFORM kernels PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
set(host ${KX_CUDA_HOST})
list(TRANSFORM host PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
foreach(file IN LISTS kernels)
  if(file MATCHES "_sm90\\.cu$")
    set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${options};--generate-code=arch=compute_90a,code=sm_90a")
  else()
    set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${options};${generate}")
  endif()
endforeach()

add_library(kx_cuda STATIC ${kernels} ${host})
target_include_directories(kx_cuda SYSTEM PUBLIC ${CUDAToolkit_INCLUDE_DIRS})
if(host)
  target_compile_definitions(kx_cuda PUBLIC KILN_HAVE_CUDA=1)
endif()
if("90a" IN_LIST KX_CUDA_ARCHITECTURES)
  target_compile_definitions(kx_cuda PUBLIC KX_CUDA_SM90=1) # the tests want to know it too
endif()
target_link_libraries(kx_cuda PUBLIC kn_base CUDA::cudart_static ${CMAKE_DL_LIBS} Threads::Threads)
set(KX_CUDA TRUE)
string(REPLACE ";" " " words "${KX_CUDA_ARCHITECTURES}")
set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/context.c
                            PROPERTIES COMPILE_DEFINITIONS "KX_CUDA_ARCHITECTURES=\"${words}\"") # built_for
message(STATUS "CUDA backend: yes, nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${words}")
