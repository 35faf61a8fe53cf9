// The host launchers of the attention ring: check, choose an instruction set, run.
#include "isa.hpp"
#include "ring_reference.hpp"
#include "speechssm/check.hpp"
#include "speechssm/ring.hpp"

void speechssm::ring_rows(const speechssm_ring& call, int32_t first, int32_t end) {
    switch (chosen_isa()) {
#if defined(SPEECHSSM_X86)
        case Isa::avx512: ring_rows_avx512(call, first, end); return;
        case Isa::avx2: ring_rows_avx2(call, first, end); return;
#endif
        default: ring_rows_scalar(call, first, end); return;
    }
}

void speechssm::ring_piece(const speechssm_ring& call, int32_t row, int32_t piece, float* records) {
    switch (chosen_isa()) {
#if defined(SPEECHSSM_X86)
        case Isa::avx512: ring_piece_avx512(call, row, piece, records); return;
        case Isa::avx2: ring_piece_avx2(call, row, piece, records); return;
#endif
        default: ring_piece_scalar(call, row, piece, records); return;
    }
}

void speechssm::ring_join(const speechssm_ring& call, int32_t row, int32_t pieces, const float* records) {
    switch (chosen_isa()) {
#if defined(SPEECHSSM_X86)
        case Isa::avx512: ring_join_avx512(call, row, pieces, records); return;
        case Isa::avx2: ring_join_avx2(call, row, pieces, records); return;
#endif
        default: ring_join_scalar(call, row, pieces, records); return;
    }
}

int64_t speechssm::ring_record_bytes(const speechssm_ring& call) {
    return static_cast<int64_t>(call.heads * record_floats(call.head_dim) * sizeof(float));
}

int32_t speechssm::ring_pieces_of(const speechssm_ring& call, int32_t row) {
    const RingRow at = ring_row_of(call, row);
    return at.length == 0 ? 0 : (filled_at(call, at.position) + kPiece - 1) / kPiece;
}

extern "C" int32_t speechssm_ring_host(const speechssm_ring* call, int32_t version) {
    if (version != 1 && version != 2) return SPEECHSSM_NO_SUCH_VERSION;
    const std::int32_t status = speechssm::check(call);
    if (status != SPEECHSSM_OK) return status;
    if (version == 1)
        speechssm::ring_rows(*call, 0, call->rows);
    else
        speechssm::ring_reference(*call);
    return SPEECHSSM_OK;
}

extern "C" int32_t speechssm_ring_pieces(int32_t window) {
    return static_cast<int32_t>(speechssm::ring_pieces(window));
}

extern "C" int64_t speechssm_ring_workspace_bytes(int32_t rows, int32_t heads, int32_t head_dim, int32_t pieces) {
    return speechssm::ring_workspace_bytes(rows, heads, head_dim, pieces);
}
