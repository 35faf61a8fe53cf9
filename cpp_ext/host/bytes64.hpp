// Sixty-four bytes and sixteen sums of products of them: what integer matrices are multiplied with.
//
// Sum j holds the products of bytes 4j .. 4j+3, which is what one VNNI instruction gives; integers are exact, so
// every processor agrees. This file is the portable one; bytes64_vnni.hpp gives the same by single instructions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "speechssm/platform.hpp"

SPEECHSSM_OPEN

struct Bytes {
    std::uint8_t b[64];
};

struct Sums {
    std::int32_t v[16];
};

inline Bytes load_bytes(const void* from) {
    Bytes out;
    std::memcpy(out.b, from, sizeof out.b);
    return out;
}

inline Bytes low_halves(Bytes a) {
    for (std::uint8_t& b : a.b) b &= 15;
    return a;
}
inline Bytes high_halves(Bytes a) {
    for (std::uint8_t& b : a.b) b >>= 4;
    return a;
}

// `value` in the first sum, 0 in the others.
inline Sums starting_at(std::int32_t value) {
    Sums out{};
    out.v[0] = value;
    return out;
}

// a + unsigned u times signed s.
inline Sums with_products(Sums a, Bytes u, Bytes s) {
    for (int j = 0; j < 16; ++j)
        for (int i = 4 * j; i < 4 * j + 4; ++i)
            a.v[j] += static_cast<std::int32_t>(u.b[i]) * static_cast<std::int8_t>(s.b[i]);
    return a;
}

inline Sixteen as_floats(Sums a) {
    float out[16];
    for (int j = 0; j < 16; ++j) out[j] = static_cast<float>(a.v[j]);
    return load_sixteen(out);
}

// Numbers to the nearest integer, ties to even; what is not a number to 0. They must be within +-127.5.
inline void cut_sixteen(std::int8_t* to, Sixteen a) {
    float v[16];
    store_sixteen(v, a);
    for (int j = 0; j < 16; ++j) to[j] = v[j] == v[j] ? static_cast<std::int8_t>(std::nearbyintf(v[j])) : 0;
}

// 128 numbers: those at even places, then those at odd ones.
inline void deal(std::int8_t* to, const std::int8_t* from) {
    for (int j = 0; j < 64; ++j) {
        to[j] = from[2 * j];
        to[64 + j] = from[2 * j + 1];
    }
}

inline std::int32_t total(Bytes s) {
    std::int32_t sum = 0;
    for (const std::uint8_t b : s.b) sum += static_cast<std::int8_t>(b);
    return sum;
}

SPEECHSSM_CLOSE
