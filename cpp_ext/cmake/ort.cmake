# speechssm_ort: the custom ops. No header or library of ONNX Runtime is needed.
add_library(speechssm_ort SHARED ort/rglru_ops.cpp ort/ring_ops.cpp ort/linear_ops.cpp
            ort/recurrent_ops.cpp ort/sample_ops.cpp ort/write_ops.cpp $<TARGET_OBJECTS:host_objects>)
if(SPEECHSSM_CUDA)
  target_compile_definitions(speechssm_ort PRIVATE SPEECHSSM_WITH_CUDA)
  target_sources(speechssm_ort PRIVATE $<TARGET_OBJECTS:cuda_kernels>)
  target_link_libraries(speechssm_ort PRIVATE CUDA::cudart_static)
endif()
