// Sixteen floats as a lane; see speechssm/lane.hpp. Only for translation units built with -mavx512f.
#pragma once

#include <immintrin.h>

#include "speechssm/lane.hpp"

SPEECHSSM_OPEN

struct Float16x {
    __m512 v;
};

template <>
struct Lane<Float16x> {
    static constexpr int width = 16;
};

template <>
inline Float16x splat<Float16x>(float value) {
    return {_mm512_set1_ps(value)};
}

inline Float16x operator+(Float16x a, Float16x b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Float16x operator-(Float16x a, Float16x b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Float16x operator*(Float16x a, Float16x b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Float16x operator/(Float16x a, Float16x b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Float16x operator-(Float16x a) {
    return {_mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(INT32_MIN)))};
}
inline Float16x fused(Float16x a, Float16x b, Float16x c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Float16x square_root(Float16x a) { return {_mm512_sqrt_ps(a.v)}; }

// max and min return their second operand when either is NaN.
inline Float16x at_least(Float16x bound, Float16x value) { return {_mm512_max_ps(bound.v, value.v)}; }
inline Float16x at_most(Float16x bound, Float16x value) { return {_mm512_min_ps(bound.v, value.v)}; }

inline Float16x power_of_two(Float16x shifted) {
    const __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3f800000)))};
}

inline Float16x load_lane(const float* from, Float16x) { return {_mm512_loadu_ps(from)}; }
inline void store_lane(float* to, Float16x a) { _mm512_storeu_ps(to, a.v); }

SPEECHSSM_CLOSE
