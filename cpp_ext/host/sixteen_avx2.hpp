// Sixteen floats as two registers of eight; see sixteen.hpp. Only for units built with -mavx2 -mfma -mf16c.
#pragma once

#include <immintrin.h>

#include "speechssm/ring.hpp"

SPEECHSSM_OPEN

struct Sixteen {
    __m256 lo, hi;
};

template <>
struct Lane<Sixteen> {
    static constexpr int width = 16;
};

constexpr int kTogether = 4;  // eight of sixteen registers

template <>
inline Sixteen splat<Sixteen>(float value) {
    return {_mm256_set1_ps(value), _mm256_set1_ps(value)};
}

inline Sixteen operator+(Sixteen a, Sixteen b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Sixteen operator-(Sixteen a, Sixteen b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Sixteen operator*(Sixteen a, Sixteen b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Sixteen operator/(Sixteen a, Sixteen b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Sixteen operator-(Sixteen a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(a.lo, sign), _mm256_xor_ps(a.hi, sign)};
}
inline Sixteen at_most(Sixteen bound, Sixteen a) {
    return {_mm256_min_ps(bound.lo, a.lo), _mm256_min_ps(bound.hi, a.hi)};
}
inline Sixteen fused(Sixteen a, Sixteen b, Sixteen c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
// max returns its second operand when either is NaN.
inline Sixteen at_least(Sixteen bound, Sixteen a) {
    return {_mm256_max_ps(bound.lo, a.lo), _mm256_max_ps(bound.hi, a.hi)};
}
inline __m256 power_of_two(__m256 shifted) {
    const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(0x3f800000)));
}
inline Sixteen power_of_two(Sixteen a) { return {power_of_two(a.lo), power_of_two(a.hi)}; }

inline Sixteen load_sixteen(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store_sixteen(float* to, Sixteen a) {
    _mm256_storeu_ps(to, a.lo);
    _mm256_storeu_ps(to + 8, a.hi);
}

// The largest of sixteen; none of them NaN.
inline float largest_of(Sixteen a) {
    const __m256 eight = _mm256_max_ps(a.lo, a.hi);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}

inline Sixteen first_lanes(Sixteen a, int count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), most = _mm256_set1_epi32(count);
    const __m256i lo = _mm256_cmpgt_epi32(most, lane);
    const __m256i hi = _mm256_cmpgt_epi32(most, _mm256_add_epi32(lane, _mm256_set1_epi32(8)));
    return {_mm256_and_ps(a.lo, _mm256_castsi256_ps(lo)), _mm256_and_ps(a.hi, _mm256_castsi256_ps(hi))};
}

inline Sixteen widen_sixteen(const float* from) { return load_sixteen(from); }
inline Sixteen widen_sixteen(const Half* from) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
inline Sixteen widen_sixteen(const BFloat16* from) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(from);
    const __m256i lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves));
    const __m256i hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves + 1));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
}
inline Sixteen widen_sixteen(const Int8* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

inline __m256 fold_eight(const Sixteen* a) {
    __m256 four[4];  // two accumulators each, four partial sums of either
    for (int i = 0; i < 4; ++i) {
        // The last shuffle deals results out four apart; taking accumulators in this order undoes that.
        const Sixteen x = a[i], y = a[i + 4];
        const __m256 p = _mm256_add_ps(x.lo, x.hi), q = _mm256_add_ps(y.lo, y.hi);
        four[i] = _mm256_add_ps(_mm256_permute2f128_ps(p, q, 0x20), _mm256_permute2f128_ps(p, q, 0x31));
    }
    const __m256 s = _mm256_add_ps(_mm256_shuffle_ps(four[0], four[1], 0x44), _mm256_shuffle_ps(four[0], four[1], 0xee));
    const __m256 t = _mm256_add_ps(_mm256_shuffle_ps(four[2], four[3], 0x44), _mm256_shuffle_ps(four[2], four[3], 0xee));
    return _mm256_add_ps(_mm256_shuffle_ps(s, t, 0x88), _mm256_shuffle_ps(s, t, 0xdd));
}
inline Sixteen fold_each(const Sixteen* a) { return {fold_eight(a), fold_eight(a + 8)}; }

SPEECHSSM_CLOSE

#include "sixteen_fold.hpp"
