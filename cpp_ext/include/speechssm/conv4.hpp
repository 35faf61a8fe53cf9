// The causal depthwise convolution of width 4 before the RG-LRU (facts: paper section 2.2).
//
//   out_t = w3 u_t + w2 u_{t-1} + w1 u_{t-2} + w0 u_{t-3} + bias
//
// State is the three inputs before the chunk, oldest first, as (3, e) per slot. Taps that reach across
// a reset row (position 0) read zero, whatever the state holds. The sum is taken in the
// exported graphs' order, the bias first and then the oldest tap, all in float32.
#pragma once

#include "speechssm/conv4_api.h"
#include "speechssm/number.hpp"

SPEECHSSM_OPEN

// One channel of one row: all its tokens, then its state. In and out state may be the same memory.
template <class T>
SPEECHSSM_HD void conv4_body(const speechssm_conv4& c, std::int32_t b, std::int32_t e) {
    const std::int32_t slot = c.slots ? c.slots[b] : b;
    const bool has_state = slot >= 0 && slot < c.slot_count;
    std::int64_t length = c.lengths ? c.lengths[b] : c.tokens;
    if (length > c.tokens) length = c.tokens;
    if (length < 0 || !has_state || (c.active && !c.active[b])) length = 0;
    const std::int64_t width = c.width;
    const std::int64_t s = has_state ? static_cast<std::int64_t>(slot) * 3 * width + e : 0;
    const T* u = static_cast<const T*>(c.u);
    T* y = static_cast<T*>(c.y);
    const T* state_in = static_cast<const T*>(c.state_in);
    T* state_out = static_cast<T*>(c.state_out);
    if (length == 0) {
        for (std::int32_t t = 0; t < c.tokens; ++t) write(y + t * c.token_stride + b * c.row_stride + e, 0.0f);
        if (!has_state || state_out == state_in) return;
        for (std::int32_t j = 0; j < 3; ++j) memcpy(state_out + s + j * width, state_in + s + j * width, sizeof(T));
        return;
    }
    const float w0 = c.weight[e], w1 = c.weight[width + e], w2 = c.weight[2 * width + e], w3 = c.weight[3 * width + e];
    const float bias = c.bias ? c.bias[e] : 0.0f;
    float u3 = read(state_in[s]), u2 = read(state_in[s + width]), u1 = read(state_in[s + 2 * width]);
    for (std::int32_t t = 0; t < c.tokens; ++t) {
        const std::int64_t i = t * c.token_stride + b * c.row_stride + e;
        if (t >= length) {
            write(y + i, 0.0f);
            continue;
        }
        if (c.position[b] + t == 0) u3 = u2 = u1 = 0.0f;
        const float u0 = read(u[i]);
        write(y + i, (((bias + w0 * u3) + w1 * u2) + w2 * u1) + w3 * u0);
        u3 = u2;
        u2 = u1;
        u1 = u0;
    }
    write(state_out + s, u3);
    write(state_out + s + width, u2);
    write(state_out + s + 2 * width, u1);
}

SPEECHSSM_CLOSE
