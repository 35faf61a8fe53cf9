// Where a linear layer's rows lie once they are prepared: padded to whole blocks, and cut to 8 bits for blocks.
#pragma once

#include <cstdint>
#include <cstring>

#include "speechssm/linear_api.h"
#include "speechssm/platform.hpp"

SPEECHSSM_OPEN

using LinearCall = speechssm_linear;

struct LinearRows {
    std::size_t padded;  // inputs of a row, a multiple of the block
    std::size_t blocks;
    float* x;            // (r, padded)
    std::int8_t* q;      // (r, padded)
    float* scale;        // (r, blocks)
    std::int32_t* sum;   // (r, blocks): of q, times minus the zero point
};

inline bool in_blocks(const LinearCall& c) { return c.stored >= SPEECHSSM_BLOCKS8; }

inline std::size_t blocks_of(std::int32_t fan_in) {
    return (static_cast<std::size_t>(fan_in) + SPEECHSSM_LINEAR_BLOCK - 1) / SPEECHSSM_LINEAR_BLOCK;
}

inline std::size_t x_at(const LinearCall& c, std::int32_t row) {
    return static_cast<std::size_t>(row) * (c.x_stride ? c.x_stride : c.fan_in);
}
inline std::size_t y_at(const LinearCall& c, std::int32_t row) {
    return static_cast<std::size_t>(row) * (c.y_stride ? c.y_stride : c.fan_out);
}

inline LinearRows rows_of(const LinearCall& c) {
    LinearRows out;
    out.blocks = blocks_of(c.fan_in);
    out.padded = out.blocks * SPEECHSSM_LINEAR_BLOCK;
    const std::size_t numbers = static_cast<std::size_t>(c.rows) * out.padded;
    out.x = static_cast<float*>(c.workspace);
    out.q = reinterpret_cast<std::int8_t*>(out.x + numbers);
    out.scale = reinterpret_cast<float*>(out.q + numbers);
    out.sum = reinterpret_cast<std::int32_t*>(out.scale + c.rows * out.blocks);
    return out;
}

SPEECHSSM_CLOSE
