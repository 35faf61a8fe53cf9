// Sixteen floats as one register; see sixteen.hpp. Only for units built with -mavx512f.
#pragma once

#include <immintrin.h>

#include "speechssm/ring.hpp"

SPEECHSSM_OPEN

struct Sixteen {
    __m512 v;
};

template <>
struct Lane<Sixteen> {
    static constexpr int width = 16;
};

constexpr int kTogether = 16;  // of thirty-two registers

template <>
inline Sixteen splat<Sixteen>(float value) {
    return {_mm512_set1_ps(value)};
}

inline Sixteen operator+(Sixteen a, Sixteen b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Sixteen operator-(Sixteen a, Sixteen b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Sixteen operator*(Sixteen a, Sixteen b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Sixteen operator/(Sixteen a, Sixteen b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Sixteen operator-(Sixteen a) {
    return {_mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(INT32_MIN)))};
}
inline Sixteen at_most(Sixteen bound, Sixteen a) { return {_mm512_min_ps(bound.v, a.v)}; }
inline Sixteen fused(Sixteen a, Sixteen b, Sixteen c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// max returns its second operand when either is NaN.
inline Sixteen at_least(Sixteen bound, Sixteen a) { return {_mm512_max_ps(bound.v, a.v)}; }
inline Sixteen power_of_two(Sixteen shifted) {
    const __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3f800000)))};
}

inline Sixteen load_sixteen(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store_sixteen(float* to, Sixteen a) { _mm512_storeu_ps(to, a.v); }

// The largest of sixteen; none of them NaN.
inline float largest_of(Sixteen a) { return _mm512_reduce_max_ps(a.v); }

inline Sixteen first_lanes(Sixteen a, int count) {
    const __mmask16 mask = static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
    return {_mm512_maskz_mov_ps(mask, a.v)};
}

inline Sixteen widen_sixteen(const float* from) { return load_sixteen(from); }
inline Sixteen widen_sixteen(const Half* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
inline Sixteen widen_sixteen(const BFloat16* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
inline Sixteen widen_sixteen(const Int8* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}

inline __m512 fold_pair(__m512 x, __m512 y) {  // 8 apart, blocks [x x y y]
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
}
inline __m512 fold_four(__m512 x, __m512 y, __m512 z, __m512 u) {  // then 4 apart, blocks [x y z u]
    const __m512 a = fold_pair(x, y), b = fold_pair(z, u);
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
inline Sixteen fold_each(const Sixteen* a) {
    __m512 four[4];
    // The last shuffle deals results out four apart; taking accumulators in this order undoes that.
    for (int i = 0; i < 4; ++i) four[i] = fold_four(a[i].v, a[i + 4].v, a[i + 8].v, a[i + 12].v);
    const __m512 s = _mm512_add_ps(_mm512_shuffle_ps(four[0], four[1], 0x44), _mm512_shuffle_ps(four[0], four[1], 0xee));
    const __m512 t = _mm512_add_ps(_mm512_shuffle_ps(four[2], four[3], 0x44), _mm512_shuffle_ps(four[2], four[3], 0xee));
    return {_mm512_add_ps(_mm512_shuffle_ps(s, t, 0x88), _mm512_shuffle_ps(s, t, 0xdd))};
}

SPEECHSSM_CLOSE

#include "sixteen_fold.hpp"
