// The arithmetic of the RG-LRU (Griffin; RecurrentGemma torch/layers.py; facts: paper section 2.3).
//
//   i = sigmoid(gate_x)          input gate, from a pre-activation
//   r = sigmoid(gate_a)          recurrence gate, from a pre-activation
//   log a = r * decay            decay = -8 softplus(Lambda), folded to a constant by the exporter
//   h' = a h + sqrt(1 - a^2) i x
//   h' = i x                     on a reset row (position 0): a = 0, factor 1, the old state ignored
//
// Everything is float32 whatever the weights are. The decay a is never formed: with m = a - 1 =
// expm1(log a), which is exact to the last bit or two even when a is nearly 1,
//
//   1 - a^2 = -m (m + 2)         no cancellation (1 - a*a loses all digits near a = 1)
//   a h     = h + m h            the rounding of a, the same every step, no longer adds up over 1/(1-a) steps
//
// A reset is not a multiplication by zero, because 0 * NaN is NaN: a slot reused after a damaged
// stream must start clean.
#pragma once

#include "speechssm/lane.hpp"

SPEECHSSM_OPEN

// expm1 and exp share one range reduction, v = n ln 2 + z with |z| <= ln 2 / 2:
//   exp v   = 2^n (1 + p),  expm1 v = 2^n p + (2^n - 1),  p = expm1 z
template <class V>
struct Exponential {
    V power;  // 2^n
    V p;      // expm1 z, relative error below 2e-8 (minimax fit of z + z^2 q(z), q of degree 4)
};

// v must be within [-87, 87] or NaN: outside it 2^n leaves the normal floats.
template <class V>
SPEECHSSM_HD Exponential<V> exponential(V v) {
    const V magic = splat<V>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const V shifted = fused(v, splat<V>(1.44269504f), magic);
    const V n = shifted - magic;
    V z = fused(n, splat<V>(-0.693359375f), v);  // ln 2 in two parts, the first with 9 bits: exact
    z = fused(n, splat<V>(2.12194440e-4f), z);
    V q = splat<V>(0x1.6bebf2p-10f);
    q = fused(q, z, splat<V>(0x1.1227f6p-7f));
    q = fused(q, z, splat<V>(0x1.555674p-5f));
    q = fused(q, z, splat<V>(0x1.5554b0p-3f));
    q = fused(q, z, splat<V>(0x1.fffffep-2f));
    Exponential<V> e;
    e.power = power_of_two(shifted);
    e.p = fused(z * z, q, z);
    return e;
}

// exp(v) - 1 for v <= 0; NaN stays NaN. Below -87 it is -1 to the last bit anyway.
template <class V>
SPEECHSSM_HD V expm1_of_negative(V v) {
    const Exponential<V> e = exponential(at_most(splat<V>(87.0f), at_least(splat<V>(-87.0f), v)));
    return fused(e.power, e.p, e.power - splat<V>(1.0f));
}

// 1 / (1 + exp(-v)); beyond +-87 the bound keeps the result a normal float.
template <class V>
SPEECHSSM_HD V sigmoid(V v) {
    const V bounded = at_most(splat<V>(87.0f), at_least(splat<V>(-87.0f), v));
    const Exponential<V> e = exponential(-bounded);
    return splat<V>(1.0f) / (splat<V>(1.0f) + fused(e.power, e.p, e.power));
}

#if defined(__CUDA_ARCH__)
// Two approximate instructions (ex2, rcp: 2 and 1 ulp) in place of fifteen exact ones. The product
// v log2(e) is carried to twice the precision, so the error does not grow with |v|.
template <>
SPEECHSSM_HD float sigmoid<float>(float v) {
    const float high = -1.44269504f * v;
    const float low = ::fmaf(-1.92596303e-8f, v, ::fmaf(-1.44269504f, v, -high));
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(high));
    // Past the largest float the correction would be infinity times zero; 1/inf = 0 is the answer.
    const float corrected = power < 3.0e38f ? ::fmaf(power, low * 0.693147181f, power) : power;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + corrected));
    return inverse;
}
#endif

// What one token does to the state: h -> h + (m h + b).
template <class V>
struct Update {
    V log_a;
    V m;  // a - 1 = expm1(log_a), in [-1, 0]
    V b;  // sqrt(1 - a^2) i x
};

template <class V>
SPEECHSSM_HD Update<V> token_update(V x, V gate_x, V gate_a, V decay) {
    Update<V> u;
    u.log_a = sigmoid(gate_a) * decay;
    u.m = expm1_of_negative(u.log_a);
    const V factor = square_root(-(u.m * (u.m + splat<V>(2.0f))));
    u.b = factor * (sigmoid(gate_x) * x);
    return u;
}

// The state after a reset row; the state before it is not an argument.
template <class V>
SPEECHSSM_HD V reset_state(V x, V gate_x) {
    return sigmoid(gate_x) * x;
}

template <class V>
SPEECHSSM_HD V advance(V h, V m, V b) {
    return h + fused(m, h, b);
}

template <class V>
SPEECHSSM_HD V advance(V h, Update<V> u) {
    return advance(h, u.m, u.b);
}

// What several tokens in a row do to the state. Their decays are kept as the sum of log a and become a
// factor once, at the end. Composing factors rounds at every token: over a stretch of 1 000 tokens, of a
// state of 1, that was measured as up to 1.5e-6, and a plain float32 sum of log a as 7e-7.
struct Stretch {
    float log_a;
    float b;  // the state after the stretch if the state before it were 0
};

// A stretch with a reset in it forgets what came before, said by a log_a no decay has. A long stretch of
// ordinary tokens also comes to a = 0, and there a NaN state must still show.
constexpr float kForget = 1.0f;

SPEECHSSM_HD bool forgets(Stretch s) { return s.log_a > 0.5f; }

// A stretch being made, with what its sum of log a has lost to rounding so far (Kahan).
struct OpenStretch {
    Stretch s;
    float lost;
};

SPEECHSSM_HD OpenStretch open_stretch(Update<float> first) { return {{first.log_a, first.b}, 0.0f}; }

SPEECHSSM_HD OpenStretch open_stretch_at_reset(float state) { return {{kForget, state}, 0.0f}; }

// One more ordinary token.
SPEECHSSM_HD OpenStretch extend(OpenStretch open, Update<float> u) {
    const float term = u.log_a - open.lost;
    const float sum = open.s.log_a + term;
    OpenStretch longer;
    longer.lost = (sum - open.s.log_a) - term;
    longer.s.log_a = forgets(open.s) ? kForget : sum;
    longer.s.b = advance(open.s.b, u);
    return longer;
}

// The state after the stretch, from the state before it.
SPEECHSSM_HD float cross(float h, Stretch s) {
    return forgets(s) ? s.b : advance(h, expm1_of_negative(s.log_a), s.b);
}

SPEECHSSM_CLOSE
