# speechssm_host: the launchers by loops, the vectorised ones chosen at run time.
add_library(host_objects OBJECT host/launch.cpp host/rglru_scalar.cpp host/conv4.cpp
            host/ring_launch.cpp host/ring_reference.cpp host/ring_scalar.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  target_sources(host_objects PRIVATE host/rglru_avx2.cpp host/rglru_avx512.cpp
                 host/ring_avx2.cpp host/ring_avx512.cpp)
  target_compile_definitions(host_objects PUBLIC SPEECHSSM_X86)
  set_source_files_properties(host/rglru_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma")
  set_source_files_properties(host/ring_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
  set_source_files_properties(host/rglru_avx512.cpp host/ring_avx512.cpp PROPERTIES COMPILE_OPTIONS
                              "-mavx512f;-mavx2;-mfma;$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>")  # gcc warns of its own header
endif()
add_library(speechssm_host SHARED $<TARGET_OBJECTS:host_objects>)
