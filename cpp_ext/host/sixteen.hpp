// Sixteen floats as one number type, the same bits on every processor.
//
// Dot products are summed in sixteen lanes and then folded in one fixed order (lane j with j + 8, then 4, 2,
// 1 apart), so that one register of AVX-512, two of AVX2 and a plain array agree to the last bit.
// This file is the plain array; sixteen_avx2.hpp and sixteen_avx512.hpp give the same operations.
#pragma once

#include "speechssm/ring.hpp"

SPEECHSSM_OPEN

struct Sixteen {
    float v[16];
};

template <>
struct Lane<Sixteen> {
    static constexpr int width = 16;
};

constexpr int kTogether = 4;  // accumulators a processor keeps in registers

template <class Each>
inline Sixteen each_of_sixteen(Each each) {
    Sixteen out;
    for (int j = 0; j < 16; ++j) out.v[j] = each(j);
    return out;
}

template <>
inline Sixteen splat<Sixteen>(float value) {
    return each_of_sixteen([=](int) { return value; });
}

inline Sixteen operator+(Sixteen a, Sixteen b) { return each_of_sixteen([&](int j) { return a.v[j] + b.v[j]; }); }
inline Sixteen operator-(Sixteen a, Sixteen b) { return each_of_sixteen([&](int j) { return a.v[j] - b.v[j]; }); }
inline Sixteen operator*(Sixteen a, Sixteen b) { return each_of_sixteen([&](int j) { return a.v[j] * b.v[j]; }); }
inline Sixteen operator/(Sixteen a, Sixteen b) { return each_of_sixteen([&](int j) { return a.v[j] / b.v[j]; }); }
inline Sixteen operator-(Sixteen a) { return each_of_sixteen([&](int j) { return -a.v[j]; }); }
inline Sixteen at_most(Sixteen bound, Sixteen a) {
    return each_of_sixteen([&](int j) { return at_most(bound.v[j], a.v[j]); });
}
inline Sixteen fused(Sixteen a, Sixteen b, Sixteen c) {
    return each_of_sixteen([&](int j) { return fused(a.v[j], b.v[j], c.v[j]); });
}
inline Sixteen at_least(Sixteen bound, Sixteen a) {
    return each_of_sixteen([&](int j) { return at_least(bound.v[j], a.v[j]); });
}
inline Sixteen power_of_two(Sixteen a) {
    return each_of_sixteen([&](int j) { return power_of_two(a.v[j]); });
}

inline Sixteen load_sixteen(const float* from) {
    return each_of_sixteen([=](int j) { return from[j]; });
}
inline void store_sixteen(float* to, Sixteen a) { std::memcpy(to, a.v, sizeof a.v); }

// The largest of sixteen; none of them NaN.
inline float largest_of(Sixteen a) {
    float largest = a.v[0];
    for (int j = 1; j < 16; ++j) largest = a.v[j] > largest ? a.v[j] : largest;
    return largest;
}

// `value` in the first `count` lanes, 0 in the others, whatever they held.
inline Sixteen first_lanes(Sixteen a, int count) {
    return each_of_sixteen([&](int j) { return j < count ? a.v[j] : 0.0f; });
}

template <class R>
inline Sixteen widen_sixteen(const R* from) {
    return each_of_sixteen([=](int j) { return read(from[j]); });
}

SPEECHSSM_CLOSE

#include "sixteen_fold.hpp"

SPEECHSSM_OPEN

// The folded sums of sixteen accumulators, in their order.
inline Sixteen fold_each(const Sixteen* a) {
    return each_of_sixteen([=](int j) { return fold(a[j]); });
}

SPEECHSSM_CLOSE
