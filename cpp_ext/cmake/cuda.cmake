# speechssm_cuda: the device kernels. The CUDA runtime is linked statically, so the library also loads
# on a machine without one (and then says that the launch failed).
if(SPEECHSSM_CUDA)
  # Machine code for Ampere and Hopper, and PTX that newer parts compile when they load it.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  set(CMAKE_CUDA_STANDARD 17)
  add_library(cuda_kernels STATIC kernels/rglru_step.cu kernels/rglru_scan.cu kernels/conv4.cu kernels/ring.cu
              kernels/ring_step.cu)
  target_compile_definitions(cuda_kernels PRIVATE SPEECHSSM_ISA=isa_cuda)
  target_compile_options(cuda_kernels PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;-Xptxas=-v;-Xcompiler=-Wall>)
  set_target_properties(cuda_kernels PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
  target_link_libraries(cuda_kernels PRIVATE CUDA::cudart_static)
  # The whole interface in one library: status texts and host references come with the kernels.
  add_library(speechssm_cuda SHARED $<TARGET_OBJECTS:host_objects> $<TARGET_OBJECTS:cuda_kernels>)
  set_target_properties(speechssm_cuda PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(speechssm_cuda PRIVATE CUDA::cudart_static)
endif()
