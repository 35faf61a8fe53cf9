// What every launcher checks before it touches memory. Pointers are only compared with NULL: on a
// device build they are device pointers.
#pragma once

#include <cstdint>

#include "speechssm/conv4_api.h"
#include "speechssm/linear_api.h"
#include "speechssm/rglru_api.h"
#include "speechssm/ring_api.h"
#include "speechssm/sample_api.h"

namespace speechssm {

inline std::int32_t default_chunk(std::int32_t tokens) { return tokens < 256 ? 32 : 128; }

inline std::int64_t workspace_bytes(std::int64_t tokens, std::int64_t rows, std::int64_t width, std::int64_t chunk) {
    if (tokens < 1 || rows < 1 || width < 1 || chunk < 1) return 0;
    return (tokens + chunk - 1) / chunk * rows * width * 8;  // one Stretch each
}

// Either layout, rows or tokens outermost: elements of different (t, b) must not overlap.
template <class Call>
bool separate(const Call& c) {
    if (c.tokens == 1) return c.rows == 1 || c.row_stride >= c.width;
    if (c.rows == 1) return c.token_stride >= c.width;
    const bool time_major = c.row_stride >= c.width && c.token_stride >= c.row_stride * (c.rows - 1) + c.width;
    const bool row_major = c.token_stride >= c.width && c.row_stride >= c.token_stride * (c.tokens - 1) + c.width;
    return time_major || row_major;
}

inline std::int32_t check(const speechssm_rglru* call, bool needs_workspace) {
    if (call == nullptr) return SPEECHSSM_NULL_POINTER;
    if (call->struct_bytes != sizeof(speechssm_rglru)) return SPEECHSSM_BAD_STRUCT;
    const speechssm_rglru& c = *call;
    if (c.tokens < 0 || c.rows < 0 || c.width < 1 || c.slot_count < 0 || c.chunk < 0) return SPEECHSSM_BAD_SHAPE;
    if (c.dtype < SPEECHSSM_F32 || c.dtype > SPEECHSSM_BF16) return SPEECHSSM_BAD_DTYPE;
    if (c.rows == 0) return SPEECHSSM_OK;
    if (!c.decay || !c.state_in || !c.state_out || !c.position) return SPEECHSSM_NULL_POINTER;
    if (c.slots == nullptr && c.slot_count < c.rows) return SPEECHSSM_BAD_SLOTS;
    if (c.tokens == 0) return SPEECHSSM_OK;
    if (!c.x || !c.gate_x || !c.gate_a || !c.y) return SPEECHSSM_NULL_POINTER;
    if (!separate(c)) return SPEECHSSM_BAD_STRIDE;
    if (needs_workspace) {
        if (c.chunk < 1) return SPEECHSSM_BAD_SHAPE;
        if (!c.workspace) return SPEECHSSM_NULL_POINTER;
        if (c.workspace_bytes < workspace_bytes(c.tokens, c.rows, c.width, c.chunk)) return SPEECHSSM_SMALL_WORKSPACE;
    }
    return SPEECHSSM_OK;
}

inline std::int32_t check(const speechssm_conv4* call) {
    if (call == nullptr) return SPEECHSSM_NULL_POINTER;
    if (call->struct_bytes != sizeof(speechssm_conv4) || call->reserved != 0) return SPEECHSSM_BAD_STRUCT;
    const speechssm_conv4& c = *call;
    if (c.tokens < 0 || c.rows < 0 || c.width < 1 || c.slot_count < 0) return SPEECHSSM_BAD_SHAPE;
    if (c.dtype < SPEECHSSM_F32 || c.dtype > SPEECHSSM_BF16) return SPEECHSSM_BAD_DTYPE;
    if (c.rows == 0) return SPEECHSSM_OK;
    if (!c.weight || !c.state_in || !c.state_out || !c.position) return SPEECHSSM_NULL_POINTER;
    if (c.slots == nullptr && c.slot_count < c.rows) return SPEECHSSM_BAD_SLOTS;
    if (c.tokens == 0) return SPEECHSSM_OK;
    if (!c.u || !c.y) return SPEECHSSM_NULL_POINTER;
    return separate(c) ? SPEECHSSM_OK : SPEECHSSM_BAD_STRIDE;
}

inline std::int64_t ring_workspace_bytes(std::int64_t rows, std::int64_t heads, std::int64_t head_dim, std::int64_t pieces) {
    if (rows < 1 || heads < 1 || head_dim < 1 || pieces < 2) return 0;
    return rows * heads * pieces * (head_dim + 2) * 4;  // numerator, denominator and maximum of each piece
}

// Of the window alone, so that a row's bits do not depend on how many others there are.
inline std::int64_t ring_pieces(std::int64_t window) {
    const std::int64_t slots = 128, most = 64, pieces = window / slots;
    return pieces < 1 ? 1 : pieces < most ? pieces : most;
}

inline std::int32_t check(const speechssm_ring* call) {
    if (call == nullptr) return SPEECHSSM_NULL_POINTER;
    if (call->struct_bytes != sizeof(speechssm_ring)) return SPEECHSSM_BAD_STRUCT;
    const speechssm_ring& c = *call;
    if (c.tokens < 0 || c.rows < 0 || c.slot_count < 0 || c.pieces < 0) return SPEECHSSM_BAD_SHAPE;
    if (c.heads < 1 || c.kv_heads < 1 || c.head_dim < 1 || c.window < 1 || c.heads % c.kv_heads != 0 ||
        c.head_dim > SPEECHSSM_RING_HEAD_DIM)
        return SPEECHSSM_BAD_HEADS;
    if (c.dtype < SPEECHSSM_F32 || c.dtype > SPEECHSSM_BF16) return SPEECHSSM_BAD_DTYPE;
    if (c.ring_dtype < SPEECHSSM_F32 || c.ring_dtype > SPEECHSSM_I8) return SPEECHSSM_BAD_RING;
    if (c.rows == 0) return SPEECHSSM_OK;
    if (!c.key_in || !c.value_in || !c.position) return SPEECHSSM_NULL_POINTER;
    const bool scaled = c.ring_dtype == SPEECHSSM_I8;
    if (scaled && (!c.key_scale_in || !c.value_scale_in)) return SPEECHSSM_NULL_POINTER;
    const bool appends = c.key_out && c.value_out && (!scaled || (c.key_scale_out && c.value_scale_out));
    const bool only_reads = !c.key_out && !c.value_out && !c.key_scale_out && !c.value_scale_out;
    if (!appends && !only_reads) return SPEECHSSM_NULL_POINTER;
    if (only_reads && c.tokens > 1) return SPEECHSSM_NOT_A_STEP;
    if (c.slots == nullptr && c.slot_count < c.rows) return SPEECHSSM_BAD_SLOTS;
    if (c.tokens == 0) return SPEECHSSM_OK;
    if (!c.q || !c.k || !c.v || !c.y) return SPEECHSSM_NULL_POINTER;
    struct {
        std::int32_t tokens, rows;
        std::int64_t width, token_stride, row_stride;
    } vectors = {c.tokens, c.rows, 1, c.token_stride, c.row_stride};
    return separate(vectors) ? SPEECHSSM_OK : SPEECHSSM_BAD_STRIDE;
}

inline std::int64_t linear_workspace_bytes(std::int64_t rows, std::int64_t fan_in) {
    constexpr std::int64_t block = SPEECHSSM_LINEAR_BLOCK;
    if (rows < 1 || fan_in < 1) return 0;
    return rows * ((fan_in + block - 1) / block) * (block * 5 + 8);  // float32, int8; a scale and a sum a block
}

inline std::int32_t check(const speechssm_linear* call) {
    if (call == nullptr) return SPEECHSSM_NULL_POINTER;
    if (call->struct_bytes != sizeof(speechssm_linear)) return SPEECHSSM_BAD_STRUCT;
    const speechssm_linear& c = *call;
    if (c.rows < 0 || c.fan_in < 1 || c.fan_out < 1) return SPEECHSSM_BAD_SHAPE;
    if ((c.x_stride && c.x_stride < c.fan_in) || (c.y_stride && c.y_stride < c.fan_out)) return SPEECHSSM_BAD_STRIDE;
    const bool blocks = c.stored == SPEECHSSM_BLOCKS8 || c.stored == SPEECHSSM_BLOCKS4;
    if (!blocks && (c.stored < SPEECHSSM_F32 || c.stored > SPEECHSSM_BF16)) return SPEECHSSM_BAD_STORAGE;
    if (c.activation < SPEECHSSM_NO_ACTIVATION || c.activation > SPEECHSSM_SILU) return SPEECHSSM_BAD_STORAGE;
    if (c.rows == 0) return SPEECHSSM_OK;
    if (!c.x || !c.weight || !c.y || !c.workspace) return SPEECHSSM_NULL_POINTER;
    if (blocks && (!c.scale || (c.times && !c.times_scale))) return SPEECHSSM_NULL_POINTER;
    return c.workspace_bytes < linear_workspace_bytes(c.rows, c.fan_in) ? SPEECHSSM_SMALL_WORKSPACE : SPEECHSSM_OK;
}

// Weights, the sums of their blocks and candidates, each from a multiple of 64 bytes on.
inline std::int64_t sample_workspace_bytes(std::int64_t vocab) {
    if (vocab < 1) return 0;
    return (vocab + 15) / 16 * 64 + (vocab / SPEECHSSM_SAMPLE_BLOCK + 16) / 16 * 64 + vocab * 8;
}

inline std::int32_t check(const speechssm_sample* call) {
    if (call == nullptr) return SPEECHSSM_NULL_POINTER;
    if (call->struct_bytes != sizeof(speechssm_sample) || call->reserved != 0) return SPEECHSSM_BAD_STRUCT;
    const speechssm_sample& c = *call;
    if (c.rows < 0 || c.vocab < 1 || c.k_max < 1) return SPEECHSSM_BAD_SHAPE;
    if (c.rows == 0) return SPEECHSSM_OK;
    if (!c.logits || !c.temperature || !c.top_k || !c.top_p || !c.uniform || !c.token || !c.logprob || !c.finite || !c.workspace)
        return SPEECHSSM_NULL_POINTER;
    return c.workspace_bytes < sample_workspace_bytes(c.vocab) ? SPEECHSSM_SMALL_WORKSPACE : SPEECHSSM_OK;
}

}  // namespace speechssm
