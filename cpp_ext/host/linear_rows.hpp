// Linear layers on a processor: a step with one row streams the matrix once, more rows share what is in cache.
//
// Every sum runs over the inputs in sixteen lanes and is folded in one fixed order (sixteen.hpp), however many rows
// or outputs are computed side by side: tiles change speed and no bit. Matrices lie output after output, which
// is what a single row wants to read and what a tile of a few rows and outputs needs no packing for.
//
// Two stages. `prepare_one` norms a row, pads it with zeros and, for blocks, cuts it to 8 bits. `run_outputs`
// computes some outputs of every row; outputs know nothing of each other, so threads take them as they come.
#pragma once

#include <cmath>
#include <type_traits>

#include "linear_workspace.hpp"

SPEECHSSM_OPEN

// How far ahead of a row that streams a matrix its lines are asked for: a line takes as long to come as some kilobytes
// to compute, and a processor's own guess stops at the end of a page. Past the end of the matrix asking is harmless.
constexpr std::size_t kAhead = 8192;

constexpr int kPanel = 64;  // outputs computed before what follows the product: their sums stay in cache

inline Sixteen load_first(const float* from, int count) {
    if (count >= 16) return load_sixteen(from);
    float some[16] = {};
    std::memcpy(some, from, sizeof(float) * count);
    return load_sixteen(some);
}
inline void store_first(float* to, Sixteen a, int count) {
    if (count >= 16) {
        store_sixteen(to, a);
        return;
    }
    float all[16];
    store_sixteen(all, a);
    std::memcpy(to, all, sizeof(float) * count);
}

// ---- the rows -----------------------------------------------------------------------------------------------

inline void cut_block(const LinearCall& c, const float* from, std::int8_t* to, float* scale, std::int32_t* sum) {
    constexpr int block = SPEECHSSM_LINEAR_BLOCK;
    Sixteen largest = splat<Sixteen>(0.0f), damage = splat<Sixteen>(0.0f);
    for (int i = 0; i < block; i += 16) {
        const Sixteen v = load_sixteen(from + i);
        largest = at_least(largest, at_least(v, -v));
        damage = damage + v * splat<Sixteen>(0.0f);  // NaN where v is not finite: its integer would hide that
    }
    float lanes[16], most = 0.0f;
    store_sixteen(lanes, largest);
    for (const float lane : lanes) most = at_least(most, lane);
    const Sixteen inverse = splat<Sixteen>(most > 0.0f ? 127.0f / most : 0.0f);
    *scale = most * (1.0f / 127.0f) + fold(damage);
    std::int8_t numbers[block];
    for (int i = 0; i < block; i += 16) cut_sixteen(numbers + i, load_sixteen(from + i) * inverse);
    *sum = -(c.stored == SPEECHSSM_BLOCKS4 ? 8 : 128) * (total(load_bytes(numbers)) + total(load_bytes(numbers + 64)));
    // A byte of two 4-bit numbers is taken apart into its low and its high one.
    if (c.stored == SPEECHSSM_BLOCKS4)
        deal(to, numbers);
    else
        std::memcpy(to, numbers, sizeof numbers);
}

inline void prepare_one(const LinearCall& c, const LinearRows& to, int row) {
    const int k = c.fan_in;
    const float* from = c.x + x_at(c, row);
    float* x = to.x + row * to.padded;
    if (c.norm != nullptr) {
        Sixteen squares = splat<Sixteen>(0.0f);
        for (int i = 0; i < k; i += 16) {
            const Sixteen v = load_first(from + i, k - i);
            squares = fused(v, v, squares);
        }
        const Sixteen rms = splat<Sixteen>(std::sqrt(fold(squares) * (1.0f / static_cast<float>(k)) + c.epsilon));
        for (int i = 0; i < k; i += 16)
            store_sixteen(x + i, load_first(from + i, k - i) / rms * load_first(c.norm + i, k - i));
    } else {
        for (int i = 0; i < k; i += 16) store_sixteen(x + i, load_first(from + i, k - i));
    }
    for (std::size_t i = (k + 15) / 16 * 16; i < to.padded; ++i) x[i] = 0.0f;
    if (!in_blocks(c)) return;
    for (std::size_t b = 0; b < to.blocks; ++b)
        cut_block(c, x + b * SPEECHSSM_LINEAR_BLOCK, to.q + row * to.padded + b * SPEECHSSM_LINEAR_BLOCK,
                  to.scale + row * to.blocks + b, to.sum + row * to.blocks + b);
}

// ---- the sums -----------------------------------------------------------------------------------------------

// R rows by N outputs; sums go to out[r * kPanel + n].
template <int R, int N>
inline void fold_tile(const Sixteen (&acc)[R][N], float* out) {
    constexpr int whole = (R * N + 15) / 16 * 16;
    Sixteen flat[whole];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) flat[r * N + n] = acc[r][n];
    for (int i = R * N; i < whole; ++i) flat[i] = acc[0][0];
    float sums[whole];
    for (int i = 0; i < whole; i += 16) store_sixteen(sums + i, fold_each(flat + i));
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) out[r * kPanel + n] = sums[r * N + n];
}

// Sixteen outputs or fewer of one row, one after the other, as the matrix lies in memory; `sum_of(n)` gives their lanes.
template <class SumOf>
inline void stream_outputs(int count, float* out, SumOf sum_of) {
    Sixteen acc[16];
    for (int n = 0; n < count; ++n) acc[n] = sum_of(n);
    for (int n = count; n < 16; ++n) acc[n] = splat<Sixteen>(0.0f);
    store_first(out, fold_each(acc), count);
}

inline void ask_ahead(const void* at) { __builtin_prefetch(static_cast<const char*>(at) + kAhead, 0, 2); }

template <int R, int N, class W>
inline void float_lanes(const float* x, std::size_t padded, const W* w, int k, Sixteen (&acc)[R][N]) {
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) acc[r][n] = splat<Sixteen>(0.0f);
    const int whole = k / 16 * 16;
    for (int i = 0; i < whole; i += 16) {
        Sixteen v[R];
        for (int r = 0; r < R; ++r) v[r] = load_sixteen(x + r * padded + i);
        for (int n = 0; n < N; ++n) {
            const W* at = w + static_cast<std::size_t>(n) * k + i;
            if (R == 1) ask_ahead(at);
            const Sixteen m = widen_sixteen(at);
            for (int r = 0; r < R; ++r) acc[r][n] = fused(v[r], m, acc[r][n]);
        }
    }
    if (whole < k)
        for (int n = 0; n < N; ++n) {
            W rest[16] = {};
            std::memcpy(rest, w + static_cast<std::size_t>(n) * k + whole, sizeof(W) * (k - whole));
            const Sixteen m = widen_sixteen(rest);
            for (int r = 0; r < R; ++r) acc[r][n] = fused(load_sixteen(x + r * padded + whole), m, acc[r][n]);
        }
}

template <int R, int N, int Bits>
inline void block_lanes(const LinearRows& rows, int row, const std::uint8_t* w, const float* scale, Sixteen (&acc)[R][N]) {
    constexpr std::size_t bytes = SPEECHSSM_LINEAR_BLOCK * Bits / 8;
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) acc[r][n] = splat<Sixteen>(0.0f);
    for (std::size_t b = 0; b < rows.blocks; ++b) {
        Bytes low[R], high[R];
        for (int r = 0; r < R; ++r) {
            const std::int8_t* q = rows.q + (row + r) * rows.padded + b * SPEECHSSM_LINEAR_BLOCK;
            low[r] = load_bytes(q);
            high[r] = load_bytes(q + 64);
        }
        for (int n = 0; n < N; ++n) {
            const std::uint8_t* at = w + (n * rows.blocks + b) * bytes;
            if (R == 1) {
                ask_ahead(at);
                if (Bits == 8) ask_ahead(at + 64);
            }
            const Bytes first = load_bytes(at);
            const Bytes one = Bits == 4 ? low_halves(first) : first;
            const Bytes two = Bits == 4 ? high_halves(first) : load_bytes(at + 64);
            const float step = scale[n * rows.blocks + b];
            for (int r = 0; r < R; ++r) {
                const std::size_t which = (row + r) * rows.blocks + b;
                Sums sums = with_products(starting_at(rows.sum[which]), one, low[r]);
                sums = with_products(sums, two, high[r]);
                acc[r][n] = fused(as_floats(sums), splat<Sixteen>(step * rows.scale[which]), acc[r][n]);
            }
        }
    }
}

// `count` outputs for R rows; `lanes(n, acc)` sums the lanes of a tile from output n on.
template <int R, int N, class Lanes>
inline void tiles(int count, float* out, Lanes lanes) {
    if constexpr (R == 1) {
        for (int n = 0; n < count; n += 16)
            stream_outputs(count - n < 16 ? count - n : 16, out + n, [&](int i) {
                Sixteen one[1][1];
                lanes(n + i, one);
                return one[0][0];
            });
    } else {
        int n = 0;
        for (; n + N <= count; n += N) {
            Sixteen acc[R][N];
            lanes(n, acc);
            fold_tile(acc, out + n);
        }
        for (; n < count; ++n) {
            Sixteen acc[R][1];
            lanes(n, acc);
            fold_tile(acc, out + n);
        }
    }
}

template <int R, class W>
inline void float_sums(const LinearCall& c, const LinearRows& rows, int row, const W* w, int first, int count, float* out) {
    const float* x = rows.x + row * rows.padded;
    const std::size_t k = c.fan_in;
    tiles<R, kOuts>(count, out, [&](int n, auto& acc) { float_lanes(x, rows.padded, w + (first + n) * k, c.fan_in, acc); });
}

template <int R, int Bits>
inline void block_sums(const LinearRows& rows, int row, const std::uint8_t* w, const float* scale, int first, int count, float* out) {
    constexpr std::size_t bytes = SPEECHSSM_LINEAR_BLOCK * Bits / 8;
    const std::size_t nb = rows.blocks;
    tiles<R, kBlockOuts>(count, out, [&](int n, auto& acc) {
        constexpr int N = std::extent<std::remove_reference_t<decltype(acc)>, 1>::value;
        block_lanes<R, N, Bits>(rows, row, w + (first + n) * nb * bytes, scale + (first + n) * nb, acc);
    });
}

template <int R>
inline void sums_of(const LinearCall& c, const LinearRows& rows, int row, const void* w, const float* scale, int first, int count, float* out) {
    switch (c.stored) {
        case SPEECHSSM_F32: float_sums<R>(c, rows, row, static_cast<const float*>(w), first, count, out); return;
        case SPEECHSSM_F16: float_sums<R>(c, rows, row, static_cast<const Half*>(w), first, count, out); return;
        case SPEECHSSM_BF16: float_sums<R>(c, rows, row, static_cast<const BFloat16*>(w), first, count, out); return;
        case SPEECHSSM_BLOCKS8: block_sums<R, 8>(rows, row, static_cast<const std::uint8_t*>(w), scale, first, count, out); return;
        default: block_sums<R, 4>(rows, row, static_cast<const std::uint8_t*>(w), scale, first, count, out); return;
    }
}

inline void sums_of_rows(int count_rows, const LinearCall& c, const LinearRows& rows, int row, const void* w, const float* scale, int first, int count, float* out) {
    switch (count_rows) {
        case 1: sums_of<1>(c, rows, row, w, scale, first, count, out); return;
#if SPEECHSSM_TILE_ROWS > 1
        case 2: sums_of<2>(c, rows, row, w, scale, first, count, out); return;
#endif
#if SPEECHSSM_TILE_ROWS > 2
        case 3: sums_of<3>(c, rows, row, w, scale, first, count, out); return;
        default: sums_of<4>(c, rows, row, w, scale, first, count, out); return;
#endif
    }
}

// ---- what follows -------------------------------------------------------------------------------------------

inline Sixteen activated(Sixteen p, int kind) {
    switch (kind) {
        case SPEECHSSM_GELU_TANH: {  // 0.5 p (1 + tanh(z)) = p sigmoid(2 z)
            const Sixteen cube = p * p * p;
            const Sixteen z = splat<Sixteen>(1.5957691216f) * fused(splat<Sixteen>(0.044715f), cube, p);
            return p * sigmoid(z);
        }
        case SPEECHSSM_SILU: return p * sigmoid(p);
        case SPEECHSSM_GELU: {
            float v[16];
            store_sixteen(v, p);
            for (float& one : v) one = 0.5f * one * (1.0f + std::erf(one * 0.70710678118f));
            return load_sixteen(v);
        }
        default: return p;
    }
}

inline void finish(const LinearCall& c, int row, int first, int count, const float* sums, const float* times) {
    const std::size_t at = y_at(c, row) + first;
    for (int n = 0; n < count; n += 16) {
        const int left = count - n;
        Sixteen p = load_sixteen(sums + n);
        if (c.bias != nullptr) p = p + load_first(c.bias + first + n, left);
        p = activated(p, c.activation);
        if (c.times != nullptr) {
            Sixteen u = load_sixteen(times + n);
            if (c.times_bias != nullptr) u = u + load_first(c.times_bias + first + n, left);
            p = p * u;
        }
        if (c.residual != nullptr) p = load_first(c.residual + at + n, left) + p;
        store_first(c.y + at + n, p, left);
    }
}

inline void run_outputs(const LinearCall& c, int first, int end) {
    constexpr int R = SPEECHSSM_TILE_ROWS;
    const LinearRows rows = rows_of(c);
    float sums[R * kPanel] = {}, times[R * kPanel] = {};
    for (int from = first; from < end; from += kPanel) {
        const int count = end - from < kPanel ? end - from : kPanel;
        for (int row = 0; row < c.rows; row += R) {
            const int some = c.rows - row < R ? c.rows - row : R;
            sums_of_rows(some, c, rows, row, c.weight, c.scale, from, count, sums);
            if (c.times != nullptr) sums_of_rows(some, c, rows, row, c.times, c.times_scale, from, count, times);
            for (int r = 0; r < some; ++r) finish(c, row + r, from, count, sums + r * kPanel, times + r * kPanel);
        }
    }
}

SPEECHSSM_CLOSE
