// One header set, three kinds of compiler: g++/clang for hosts, nvcc for devices, and the same g++
// with -mavx2 or -mavx512f. Everything that depends on which one is reading is here.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SPEECHSSM_HD __host__ __device__ __forceinline__
#else
#define SPEECHSSM_HD inline
#endif

// For loops that lose a third of their speed when the compiler thinks a part of them too large to copy in. Where speed is
// not asked for, in the scalar units and under a sanitizer, that would only take a minute of compiling.
#if defined(__AVX2__) && !defined(__SANITIZE_ADDRESS__) && defined(__GNUC__)
#define SPEECHSSM_INLINE inline __attribute__((always_inline))
#else
#define SPEECHSSM_INLINE inline
#endif

// Every translation unit compiled with its own instruction-set flags names itself. Without it the
// linker would keep one copy of each inline function, perhaps the AVX-512 one, for all callers, and
// the program would die of an illegal instruction on an older processor.
#if !defined(SPEECHSSM_ISA)
#if defined(__CUDACC__)
#define SPEECHSSM_ISA isa_cuda
#else
#define SPEECHSSM_ISA isa_scalar
#endif
#endif

#define SPEECHSSM_OPEN   \
    namespace speechssm { \
    inline namespace SPEECHSSM_ISA {
#define SPEECHSSM_CLOSE \
    }                   \
    }
