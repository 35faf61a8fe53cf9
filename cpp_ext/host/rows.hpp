// The recurrence on a processor: rows, then tokens, then channels V at a time.
//
// Tokens are outside and channels inside: memory is read in the order it lies, and the row's state
// (a few kilobytes) stays in the first-level cache. Step and scan run this same loop, so a chunk and
// its tokens one by one give the same bits.
#pragma once

#include "speechssm/rglru_scan.hpp"

SPEECHSSM_OPEN

inline float load_lane(const float* from, float) { return *from; }
inline void store_lane(float* to, float a) { *to = a; }

template <class V, class T>
inline V widen(const T* from) {  // two-byte numbers pass through a small array
    float values[Lane<V>::width];
    for (int j = 0; j < Lane<V>::width; ++j) values[j] = read(from[j]);
    return load_lane(values, V{});
}
template <class V>
inline V widen(const float* from) {
    return load_lane(from, V{});
}

template <class V, class T>
inline void narrow(T* to, V a) {
    float values[Lane<V>::width];
    store_lane(values, a);
    for (int j = 0; j < Lane<V>::width; ++j) write(to + j, values[j]);
}
template <class V>
inline void narrow(float* to, V a) {
    store_lane(to, a);
}

template <class T>
struct TokenPointers {
    const T *x, *gate_x, *gate_a, *branch;
    T* y;
};

// Channels e.. of one token, as many whole lanes as fit in [e, width); returns the first one left.
template <class V, class T>
inline std::int32_t token_channels(const TokenPointers<T>& p, const float* decay, const float* from, float* to,
                                   bool reset, std::int32_t e, std::int32_t width) {
    constexpr int lane = Lane<V>::width;
    for (; e + lane <= width; e += lane) {
        const V x = widen<V>(p.x + e), gate_x = widen<V>(p.gate_x + e);
        const V h = reset ? reset_state(x, gate_x)
                          : advance(widen<V>(from + e), token_update(x, gate_x, widen<V>(p.gate_a + e), widen<V>(decay + e)));
        store_lane(to + e, h);
        narrow(p.y + e, p.branch ? h * widen<V>(p.branch + e) : h);
    }
    return e;
}

template <class V, class T>
inline void run_row(const Call& c, std::int32_t b) {
    const Row row = row_of(c, b);
    const std::size_t width = static_cast<std::size_t>(c.width);
    const float* from = row.slot < 0 ? nullptr : c.state_in + state_at(c, row, 0);
    float* to = row.slot < 0 ? nullptr : c.state_out + state_at(c, row, 0);
    if (row.slot >= 0 && row.length == 0 && to != from) std::memmove(to, from, width * sizeof(float));
    for (std::int32_t t = 0; t < c.tokens; ++t) {
        const std::int64_t i = at(c, t, b, 0);
        T* y = static_cast<T*>(c.y) + i;
        if (t >= row.length) {
            std::memset(y, 0, width * sizeof(T));
            continue;
        }
        const T* branch = static_cast<const T*>(c.branch);
        const TokenPointers<T> p{static_cast<const T*>(c.x) + i, static_cast<const T*>(c.gate_x) + i,
                                 static_cast<const T*>(c.gate_a) + i, branch ? branch + i : nullptr, y};
        const bool reset = t == row.reset_at;
        const std::int32_t e = token_channels<V>(p, c.decay, t == 0 ? from : to, to, reset, 0, c.width);
        token_channels<float>(p, c.decay, t == 0 ? from : to, to, reset, e, c.width);
    }
}

template <class V>
inline void run_rows(const Call& c) {
    for (std::int32_t b = 0; b < c.rows; ++b) {
        switch (c.dtype) {
            case SPEECHSSM_F32: run_row<V, float>(c, b); break;
            case SPEECHSSM_F16: run_row<V, Half>(c, b); break;
            default: run_row<V, BFloat16>(c, b); break;
        }
    }
}

SPEECHSSM_CLOSE
