// Bodies of the recurrence over a batch: one token after another, and the three-phase chunked scan.
//
//   reduce (b, chunk, e)   the chunk's tokens composed into one Stretch       -> workspace
//   carry  (b, e)          chunks in order: the state entering each           -> workspace, state_out
//   apply  (b, chunk, e)   the chunk again, from its entering state           -> y
//
// Each body is a function of its indices alone and talks to no other within its phase, so a host runs
// a phase as a loop and a device as a grid, from this one text.
#pragma once

#include "speechssm/number.hpp"
#include "speechssm/rglru_api.h"
#include "speechssm/rglru_core.hpp"

SPEECHSSM_OPEN

using Call = speechssm_rglru;

// Which tokens and which state row belong to row b.
struct Row {
    std::int32_t length;    // tokens that run, 0..t
    std::int32_t slot;      // -1: no state row
    std::int32_t reset_at;  // token index of the reset row; -1: none
};

SPEECHSSM_HD Row row_of(const Call& c, std::int32_t b) {
    Row row;
    row.slot = c.slots ? c.slots[b] : b;
    if (row.slot < 0 || row.slot >= c.slot_count) row.slot = -1;
    std::int64_t length = c.lengths ? c.lengths[b] : c.tokens;
    if (length > c.tokens) length = c.tokens;
    if (length < 0 || row.slot < 0 || (c.active && !c.active[b])) length = 0;
    row.length = static_cast<std::int32_t>(length);
    const std::int64_t position = c.position[b];
    row.reset_at = position <= 0 && position > -static_cast<std::int64_t>(c.tokens)
                       ? static_cast<std::int32_t>(-position)
                       : -1;
    return row;
}

SPEECHSSM_HD std::int64_t at(const Call& c, std::int32_t t, std::int32_t b, std::int32_t e) {
    return t * c.token_stride + b * c.row_stride + e;
}

SPEECHSSM_HD std::int64_t state_at(const Call& c, const Row& row, std::int32_t e) {
    return static_cast<std::int64_t>(row.slot) * c.width + e;
}

SPEECHSSM_HD std::int32_t chunks_of(std::int32_t tokens, std::int32_t chunk) {
    return static_cast<std::int32_t>((static_cast<std::int64_t>(tokens) + chunk - 1) / chunk);
}

SPEECHSSM_HD std::int64_t workspace_at(const Call& c, std::int32_t b, std::int32_t k, std::int32_t e) {
    return (static_cast<std::int64_t>(b) * chunks_of(c.tokens, c.chunk) + k) * c.width + e;
}

template <class T>
SPEECHSSM_HD float reset_at(const Call& c, std::int64_t i) {
    return reset_state(read(static_cast<const T*>(c.x)[i]), read(static_cast<const T*>(c.gate_x)[i]));
}

template <class T>
SPEECHSSM_HD Update<float> update_at(const Call& c, std::int64_t i, float decay) {
    return token_update(read(static_cast<const T*>(c.x)[i]), read(static_cast<const T*>(c.gate_x)[i]),
                        read(static_cast<const T*>(c.gate_a)[i]), decay);
}

template <class T>
SPEECHSSM_HD void write_output(const Call& c, std::int64_t i, float h) {
    const T* branch = static_cast<const T*>(c.branch);
    write(static_cast<T*>(c.y) + i, branch ? h * read(branch[i]) : h);
}

// Tokens first..first+count-1 of one channel from state h; padded tokens get y = 0.
template <class T>
SPEECHSSM_HD float run_tokens(const Call& c, const Row& row, std::int32_t b, std::int32_t e,
                              std::int32_t first, std::int32_t count, float h) {
    const float decay = c.decay[e];
    for (std::int32_t t = first; t < first + count; ++t) {
        const std::int64_t i = at(c, t, b, e);
        if (t < row.length) {
            h = t == row.reset_at ? reset_at<T>(c, i) : advance(h, update_at<T>(c, i, decay));
            write_output<T>(c, i, h);
        } else {
            write(static_cast<T*>(c.y) + i, 0.0f);
        }
    }
    return h;
}

// The whole recurrence of one channel: a step, or a scan where rows alone fill the device.
template <class T>
SPEECHSSM_HD void sequential_body(const Call& c, std::int32_t b, std::int32_t e) {
    const Row row = row_of(c, b);
    if (row.length == 0) {
        run_tokens<T>(c, row, b, e, 0, c.tokens, 0.0f);
        if (row.slot >= 0) memcpy(c.state_out + state_at(c, row, e), c.state_in + state_at(c, row, e), sizeof(float));
        return;
    }
    const float h = run_tokens<T>(c, row, b, e, 0, c.tokens, c.state_in[state_at(c, row, e)]);
    c.state_out[state_at(c, row, e)] = h;
}

template <class T>
SPEECHSSM_HD void reduce_body(const Call& c, std::int32_t b, std::int32_t k, std::int32_t e) {
    const Row row = row_of(c, b);
    const std::int32_t first = k * c.chunk;
    if (first >= row.length) return;  // carry does not read it
    const std::int32_t end = row.length - first < c.chunk ? row.length : first + c.chunk;
    const float decay = c.decay[e];
    OpenStretch open{};
    for (std::int32_t t = first; t < end; ++t) {
        const std::int64_t i = at(c, t, b, e);
        if (t == row.reset_at) {
            open = open_stretch_at_reset(reset_at<T>(c, i));
        } else {
            const Update<float> u = update_at<T>(c, i, decay);
            open = t == first ? open_stretch(u) : extend(open, u);
        }
    }
    static_cast<Stretch*>(c.workspace)[workspace_at(c, b, k, e)] = open.s;
}

SPEECHSSM_HD void carry_body(const Call& c, std::int32_t b, std::int32_t e) {
    const Row row = row_of(c, b);
    if (row.slot < 0) return;
    const std::int64_t s = state_at(c, row, e);
    if (row.length == 0) {
        memcpy(c.state_out + s, c.state_in + s, sizeof(float));
        return;
    }
    float h = c.state_in[s];
    Stretch* stretches = static_cast<Stretch*>(c.workspace);
    const std::int32_t chunks = chunks_of(row.length, c.chunk);
    for (std::int32_t k = 0; k < chunks; ++k) {
        const std::int64_t w = workspace_at(c, b, k, e);
        const Stretch over = stretches[w];
        stretches[w].b = h;  // from here on: the state entering the chunk
        h = cross(h, over);
    }
    c.state_out[s] = h;
}

template <class T>
SPEECHSSM_HD void apply_body(const Call& c, std::int32_t b, std::int32_t k, std::int32_t e) {
    const Row row = row_of(c, b);
    const std::int32_t first = k * c.chunk;
    const std::int32_t count = c.tokens - first < c.chunk ? c.tokens - first : c.chunk;
    const float h = first < row.length ? static_cast<const Stretch*>(c.workspace)[workspace_at(c, b, k, e)].b : 0.0f;
    run_tokens<T>(c, row, b, e, first, count, h);
}

SPEECHSSM_CLOSE
