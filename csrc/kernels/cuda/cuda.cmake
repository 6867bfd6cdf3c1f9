# smezo_cuda (kernels.cu for every architecture) and the program cuda_device_test. Built when asked for by name: nvcc takes about a minute.
set(SMEZO_CUDA_ARCHS 75 80 86 87 88 89 90 100 103 110 120 CACHE STRING "Compute capabilities that the CUDA kernels are compiled for")
set(cuda_dir ${CMAKE_BINARY_DIR}/cuda)
file(MAKE_DIRECTORY ${cuda_dir})

# -fmad=false: contraction would give other bits than the CPU's. The ptxas warnings are errors: no spills, no stack in local memory.
set(nvcc_host_flags -O3 -DNDEBUG -std=c++20 -I${CMAKE_SOURCE_DIR}/csrc -Werror all-warnings
                    -Xcompiler=-fPIC,-ffp-contract=off,-Wall,-Wextra)
set(nvcc_flags ${nvcc_host_flags} -fmad=false --threads 2 -Xptxas=-warn-spills,-warn-lmem-usage,-Werror)
foreach(arch IN LISTS SMEZO_CUDA_ARCHS)
  list(APPEND nvcc_flags -gencode arch=compute_${arch},code=sm_${arch})
  set(newest ${arch})
endforeach()
list(APPEND nvcc_flags -gencode arch=compute_${newest},code=compute_${newest})  # for what comes after

add_custom_command(
  OUTPUT ${cuda_dir}/kernels.o
  COMMAND ${SMEZO_NVCC} ${nvcc_flags} -MMD -MF ${cuda_dir}/kernels.d -c ${CMAKE_SOURCE_DIR}/csrc/kernels/cuda/kernels.cu -o
          ${cuda_dir}/kernels.o
  DEPENDS ${CMAKE_SOURCE_DIR}/csrc/kernels/cuda/kernels.cu
  DEPFILE ${cuda_dir}/kernels.d
  COMMENT "nvcc csrc/kernels/cuda/kernels.cu"
  VERBATIM)
add_library(smezo_cuda STATIC EXCLUDE_FROM_ALL ${cuda_dir}/kernels.o)
set_target_properties(smezo_cuda PROPERTIES LINKER_LANGUAGE CXX)
target_link_libraries(smezo_cuda PUBLIC smezo_core)

# Compares a device with the host launcher. It has no kernels of its own; nvcc links libcudart to it.
set(device_test ${CMAKE_SOURCE_DIR}/tests/cpp/cuda_device_test.cu)
add_custom_command(
  OUTPUT ${cuda_dir}/cuda_device_test
  COMMAND ${SMEZO_NVCC} ${nvcc_host_flags} -I${CMAKE_SOURCE_DIR}/tests/cpp -arch=sm_${newest} -MMD -MF ${cuda_dir}/device_test.d
          ${device_test} $<TARGET_FILE:smezo_cuda> $<TARGET_FILE:smezo_core> -o ${cuda_dir}/cuda_device_test
  DEPENDS ${device_test} smezo_cuda smezo_core
  DEPFILE ${cuda_dir}/device_test.d
  COMMENT "nvcc tests/cpp/cuda_device_test.cu"
  VERBATIM)
add_custom_target(cuda_device_test DEPENDS ${cuda_dir}/cuda_device_test)
