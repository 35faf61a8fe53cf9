// A lane is what the recurrence computes with: one float, or a vector of them.
//
// The maths in rglru_core.hpp is written once over a lane type V and needs only what this file gives
// for V = float: exactly rounded operations (+ - * / fma sqrt) and bit moves. host/lane_avx2.hpp and
// host/lane_avx512.hpp give the same for 8 and 16 floats. Because each operation is exactly rounded
// and every fused multiply-add is written out (the build forbids the compiler to fuse on its own),
// all lane types give the same bits. A CUDA device uses the same maths but for three approximate
// instructions, named below.
#pragma once

#include <cmath>

#include "speechssm/platform.hpp"

SPEECHSSM_OPEN

template <class V>
struct Lane;  // Lane<V>::width: floats per V

template <>
struct Lane<float> {
    static constexpr int width = 1;
};

template <class V>
SPEECHSSM_HD V splat(float value);

template <>
SPEECHSSM_HD float splat<float>(float value) {
    return value;
}

SPEECHSSM_HD float fused(float a, float b, float c) {  // a * b + c, rounded once
    return ::fmaf(a, b, c);
}

// Both bounds let a NaN value through, so that a damaged gate stays visible in the state.
SPEECHSSM_HD float at_least(float bound, float value) { return bound > value ? bound : value; }
SPEECHSSM_HD float at_most(float bound, float value) { return bound < value ? bound : value; }

SPEECHSSM_HD float square_root(float value) {
#if defined(__CUDA_ARCH__)
    float root;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(value));  // at most 1 ulp off, one instruction
    return root;
#else
    return ::sqrtf(value);
#endif
}

// 2^n, where `shifted` is n + 1.5 * 2^23 as a float: its low mantissa bits are n already, so no
// conversion is needed, and a NaN gives garbage that a NaN factor then hides.
SPEECHSSM_HD float power_of_two(float shifted) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
#else
    std::uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return power;
#endif
}

SPEECHSSM_CLOSE
