# speechssm_host: the launchers by loops, the vectorised ones chosen at run time.
add_library(host_objects OBJECT host/launch.cpp host/rglru_scalar.cpp host/conv4.cpp
            host/ring_launch.cpp host/ring_reference.cpp host/ring_scalar.cpp
            host/linear_launch.cpp host/linear_scalar.cpp
            host/sample_launch.cpp host/sample_scalar.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  target_sources(host_objects PRIVATE host/rglru_avx2.cpp host/rglru_avx512.cpp
                 host/ring_avx2.cpp host/ring_avx512.cpp
                 host/linear_avx2.cpp host/linear_avx512.cpp host/linear_vnni.cpp
                 host/sample_avx2.cpp host/sample_avx512.cpp)
  target_compile_definitions(host_objects PUBLIC SPEECHSSM_X86)
  set_source_files_properties(host/rglru_avx2.cpp host/sample_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma")
  set_source_files_properties(host/ring_avx2.cpp host/linear_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
  set(quiet "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>")  # gcc warns of its own header
  set_source_files_properties(host/rglru_avx512.cpp host/ring_avx512.cpp host/linear_avx512.cpp
                              host/sample_avx512.cpp PROPERTIES
                              COMPILE_OPTIONS "-mavx512f;-mavx2;-mfma;${quiet}")
  set_source_files_properties(host/linear_vnni.cpp PROPERTIES
                              COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512vnni;-mavx2;-mfma;${quiet}")
endif()
add_library(speechssm_host SHARED $<TARGET_OBJECTS:host_objects>)
