// Sixty-four bytes as one register; see bytes64.hpp. Only for units built with -mavx512bw -mavx512vnni.
#pragma once

#include <immintrin.h>

#include "speechssm/platform.hpp"

SPEECHSSM_OPEN

struct Bytes {
    __m512i v;
};

struct Sums {
    __m512i v;
};

inline Bytes load_bytes(const void* from) { return {_mm512_loadu_si512(from)}; }
inline Bytes low_halves(Bytes a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline Bytes high_halves(Bytes a) {
    return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
inline Sums starting_at(std::int32_t value) { return {_mm512_maskz_set1_epi32(1, value)}; }
inline Sums with_products(Sums a, Bytes u, Bytes s) { return {_mm512_dpbusd_epi32(a.v, u.v, s.v)}; }
inline Sixteen as_floats(Sums a) { return {_mm512_cvtepi32_ps(a.v)}; }

inline void cut_sixteen(std::int8_t* to, Sixteen a) {
    const __mmask16 number = _mm512_cmp_ps_mask(a.v, a.v, _CMP_ORD_Q);
    const __m512i rounded = _mm512_maskz_cvt_roundps_epi32(number, a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(rounded));
}

inline void deal(std::int8_t* to, const std::int8_t* from) {
    for (int half = 0; half < 64; half += 32) {
        const __m512i pairs = _mm512_loadu_si512(from + 2 * half);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + half), _mm512_cvtepi16_epi8(pairs));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 64 + half), _mm512_cvtepi16_epi8(_mm512_srli_epi16(pairs, 8)));
    }
}

inline std::int32_t total(Bytes s) {
    return _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), s.v));
}

SPEECHSSM_CLOSE
