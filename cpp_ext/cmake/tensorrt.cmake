# speechssm_trt: the plugin on the CUDA kernels; speechssm_trt_host and its harness: the same plugin on
# host launchers, for tests. Only TensorRT's headers are needed: nothing of it is linked.
if(SPEECHSSM_TENSORRT OR SPEECHSSM_HARNESS)
  find_path(TENSORRT_INCLUDE NvInferRuntime.h
            HINTS ${SPEECHSSM_TENSORRT_HEADERS} ${TENSORRT_ROOT}/include $ENV{TENSORRT_ROOT}/include
            PATHS /usr/include/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu /usr/local/tensorrt/include)
  find_path(CUDA_RUNTIME_INCLUDE cuda_runtime_api.h
            HINTS ${CUDAToolkit_INCLUDE_DIRS} $ENV{CUDA_PATH}/include PATHS /usr/local/cuda/include)
  if(NOT TENSORRT_INCLUDE)
    message(FATAL_ERROR "NvInferRuntime.h was not found: set TENSORRT_ROOT, or run `speechssm ext headers`")
  endif()
  if(NOT CUDA_RUNTIME_INCLUDE)
    if(SPEECHSSM_TENSORRT)
      message(FATAL_ERROR "cuda_runtime_api.h was not found (TensorRT's headers include it): set CUDA_PATH")
    endif()
    set(CUDA_RUNTIME_INCLUDE ${CMAKE_CURRENT_SOURCE_DIR}/trt/no_cuda)
  endif()

  function(add_plugin name)
    add_library(${name} SHARED trt/rglru_plugin.cpp trt/ring_plugin.cpp trt/creators.cpp trt/log.cpp $<TARGET_OBJECTS:host_objects>)
    target_include_directories(${name} SYSTEM PRIVATE ${TENSORRT_INCLUDE} ${CUDA_RUNTIME_INCLUDE})
  endfunction()

  if(SPEECHSSM_TENSORRT)
    add_plugin(speechssm_trt)
    target_sources(speechssm_trt PRIVATE $<TARGET_OBJECTS:cuda_kernels>)
    set_target_properties(speechssm_trt PROPERTIES LINKER_LANGUAGE CXX)
    target_link_libraries(speechssm_trt PRIVATE CUDA::cudart_static)
  endif()
  if(SPEECHSSM_HARNESS)
    add_plugin(speechssm_trt_host)
    target_compile_definitions(speechssm_trt_host PRIVATE SPEECHSSM_HOST_LAUNCHERS)
    add_executable(speechssm_trt_harness trt/harness.cpp trt/harness_engine.cpp trt/harness_rglru.cpp
                   trt/harness_ring.cpp)
    target_include_directories(speechssm_trt_harness SYSTEM PRIVATE ${TENSORRT_INCLUDE} ${CUDA_RUNTIME_INCLUDE})
    target_link_libraries(speechssm_trt_harness PRIVATE ${CMAKE_DL_LIBS})
  endif()
endif()
