// Eight floats as a lane; see speechssm/lane.hpp. Only for translation units built with -mavx2 -mfma.
#pragma once

#include <immintrin.h>

#include "speechssm/lane.hpp"

SPEECHSSM_OPEN

struct Float8 {
    __m256 v;
};

template <>
struct Lane<Float8> {
    static constexpr int width = 8;
};

template <>
inline Float8 splat<Float8>(float value) {
    return {_mm256_set1_ps(value)};
}

inline Float8 operator+(Float8 a, Float8 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Float8 operator-(Float8 a, Float8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Float8 operator*(Float8 a, Float8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Float8 operator/(Float8 a, Float8 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Float8 operator-(Float8 a) { return {_mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f))}; }
inline Float8 fused(Float8 a, Float8 b, Float8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Float8 square_root(Float8 a) { return {_mm256_sqrt_ps(a.v)}; }

// max and min return their second operand when either is NaN.
inline Float8 at_least(Float8 bound, Float8 value) { return {_mm256_max_ps(bound.v, value.v)}; }
inline Float8 at_most(Float8 bound, Float8 value) { return {_mm256_min_ps(bound.v, value.v)}; }

inline Float8 power_of_two(Float8 shifted) {
    const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(0x3f800000)))};
}

inline Float8 load_lane(const float* from, Float8) { return {_mm256_loadu_ps(from)}; }
inline void store_lane(float* to, Float8 a) { _mm256_storeu_ps(to, a.v); }

SPEECHSSM_CLOSE
