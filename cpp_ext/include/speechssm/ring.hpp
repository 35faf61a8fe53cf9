// Local attention over a ring of the last w keys and values (Griffin; facts: paper section 2.4).
//
//   q (t,b,h,k)  k, v (t,b,g,k)  rings (slot,w,g,k)  position (b)   ->   y (t,b,h,k) and the rings
//
//   score_s = q . key_s           for the slots s < min(position, w), and q . k for the token itself
//   y       = sum exp(score) value / sum exp(score)
//   ring[position mod w] = k, v   afterwards
//
// Attend first, then write: slot position mod w holds the oldest of the w past tokens, which this token
// still sees, w + 1 keys in all. The token itself is attended as it comes, not as a narrow ring would keep
// it. A slot no token has reached is never read, so a ring needs no clearing between streams.
//
// Why an operator of its own. As standard operators the ring is read several times (a product packs its
// right operand; several key/value heads make it a transposition, a narrow ring a widened copy), and an
// engine that cannot write in place copies all w slots to change one. Here each key and each value is read
// once, and one slot is written.
//
// The softmax runs online: keys come sixteen at a time, and when a larger score turns up, what was summed is
// scaled down. Starting from the token's own score there is always a finite maximum, and no pass over w
// scores that would need memory for them.
//
// Narrow rings: float16 and bfloat16 by rounding to nearest even; int8 with one float32 scale a slot and
// key/value head, max(|x|, 1e-30) / 127, as the exporter's graphs have it. Scores are multiplied by the key's
// scale, weights by the value's, so no widened number is ever stored. All arithmetic is float32.
#pragma once

#include <cmath>

#include "speechssm/number.hpp"
#include "speechssm/ring_api.h"
#include "speechssm/rglru_core.hpp"

SPEECHSSM_OPEN

using RingCall = speechssm_ring;

constexpr float kRingTiny = 1e-30f;
constexpr float kRingShare = 1.0f / 127.0f;

// An int8 as storage; its scale is elsewhere.
struct Int8 {
    std::int8_t number;
};
SPEECHSSM_HD float read(Int8 value) { return static_cast<float>(value.number); }

template <class R>
struct RingKind {
    static constexpr bool scaled = false;
};
template <>
struct RingKind<Int8> {
    static constexpr bool scaled = true;
};

// Which tokens and which ring belong to row b.
struct RingRow {
    std::int32_t length;  // tokens that run, 0..t
    std::int32_t slot;    // -1: no ring
    std::int64_t position;
};

SPEECHSSM_HD RingRow ring_row_of(const RingCall& c, std::int32_t b) {
    RingRow row;
    row.slot = c.slots ? c.slots[b] : b;
    if (row.slot < 0 || row.slot >= c.slot_count) row.slot = -1;
    row.position = c.position[b];
    std::int64_t length = c.lengths ? c.lengths[b] : c.tokens;
    if (length > c.tokens) length = c.tokens;
    if (length < 0 || row.slot < 0 || row.position < 0 || (c.active && !c.active[b])) length = 0;
    row.length = static_cast<std::int32_t>(length);
    return row;
}

SPEECHSSM_HD std::int64_t vector_at(const RingCall& c, std::int32_t t, std::int32_t b) {
    return t * c.token_stride + b * c.row_stride;
}

// Slots that hold a token before position p.
SPEECHSSM_HD std::int32_t filled_at(const RingCall& c, std::int64_t p) {
    return p < c.window ? static_cast<std::int32_t>(p) : c.window;
}

SPEECHSSM_HD std::int64_t ring_at(const RingCall& c, std::int32_t slot, std::int64_t s, std::int32_t g) {
    return (static_cast<std::int64_t>(slot) * c.window + s) * c.kv_heads + g;
}

SPEECHSSM_HD std::int64_t ring_elements(const RingCall& c) {
    return static_cast<std::int64_t>(c.window) * c.kv_heads * c.head_dim;
}

// A head's sums of one piece of slots as a processor's threads hand them over: sums in whole lanes of sixteen, weights,
// largest score, what was wrong.
inline std::size_t record_floats(std::int32_t k) { return static_cast<std::size_t>((k + 15) / 16 * 16) + 32; }

// exp(v) for v <= 0, or NaN; 0 below about -64. Beside the largest weight, which is 1, that is nothing, and
// smaller weights would make denormal products, on which processors are fifteen times slower.
template <class V>
SPEECHSSM_HD V exp_of_negative(V v) {
    const Exponential<V> e = exponential(at_least(splat<V>(-64.0f), v));
    return at_least(splat<V>(0.0f), fused(e.power, e.p, e.power) - splat<V>(0x1p-92f));  // exp(-64) is 0x1.96p-93
}

// The number an int8 ring keeps for x: round(x / scale), ties to even; 0 for what is not a number.
SPEECHSSM_HD std::int8_t as_int8(float x, float scale) {
    const float rounded = ::rintf(x / scale);
    if (!(rounded >= -127.0f)) return rounded < 0.0f ? -127 : 0;
    return rounded > 127.0f ? 127 : static_cast<std::int8_t>(rounded);
}

// Magnitudes in order, a NaN above all: it stays visible in the scale.
SPEECHSSM_HD float larger_magnitude(float largest, float x) {
    const float size = ::fabsf(x);
    return size <= largest ? largest : (largest != largest ? largest : size);
}

SPEECHSSM_HD float int8_scale(float largest) {
    return (largest < kRingTiny ? kRingTiny : largest) * kRingShare;
}

// One head's vector into the ring; `scale` is where its scale goes, for int8.
template <class T, class R>
SPEECHSSM_HD void append_body(const T* from, R* to, float* scale, std::int32_t k) {
    (void)scale;
    for (std::int32_t i = 0; i < k; ++i) write(to + i, read(from[i]));
}
template <class T>
SPEECHSSM_HD void append_body(const T* from, Int8* to, float* scale, std::int32_t k) {
    float largest = 0.0f;
    for (std::int32_t i = 0; i < k; ++i) largest = larger_magnitude(largest, read(from[i]));
    *scale = int8_scale(largest);
    for (std::int32_t i = 0; i < k; ++i) to[i].number = as_int8(read(from[i]), *scale);
}

SPEECHSSM_CLOSE
