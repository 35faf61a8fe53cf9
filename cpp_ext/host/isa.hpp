// The same loops, compiled three times; the *launch.cpp choose.
#pragma once

#include "speechssm/linear_api.h"
#include "speechssm/rglru_api.h"
#include "speechssm/ring_api.h"
#include "speechssm/sample_api.h"

namespace speechssm {
enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2 };

void rglru_rows_scalar(const speechssm_rglru& call);
#if defined(SPEECHSSM_X86)
void rglru_rows_avx2(const speechssm_rglru& call);
void rglru_rows_avx512(const speechssm_rglru& call);
#endif

// Rows first .. end - 1 of a checked call; or, of a step that appends nothing, one piece of a row's slots into records that
// a join makes y of, for float32 streams. Either way the same bits.
constexpr int32_t kPiece = 512;  // slots
void ring_rows_scalar(const speechssm_ring& call, int32_t first, int32_t end);
void ring_piece_scalar(const speechssm_ring& call, int32_t row, int32_t piece, float* records);
void ring_join_scalar(const speechssm_ring& call, int32_t row, int32_t pieces, const float* records);
#if defined(SPEECHSSM_X86)
void ring_rows_avx2(const speechssm_ring& call, int32_t first, int32_t end);
void ring_piece_avx2(const speechssm_ring& call, int32_t row, int32_t piece, float* records);
void ring_join_avx2(const speechssm_ring& call, int32_t row, int32_t pieces, const float* records);
void ring_rows_avx512(const speechssm_ring& call, int32_t first, int32_t end);
void ring_piece_avx512(const speechssm_ring& call, int32_t row, int32_t piece, float* records);
void ring_join_avx512(const speechssm_ring& call, int32_t row, int32_t pieces, const float* records);
#endif
void ring_rows(const speechssm_ring& call, int32_t first, int32_t end);  // by the chosen one
void ring_piece(const speechssm_ring& call, int32_t row, int32_t piece, float* records);
void ring_join(const speechssm_ring& call, int32_t row, int32_t pieces, const float* records);
int64_t ring_record_bytes(const speechssm_ring& call);   // of one piece
int32_t ring_pieces_of(const speechssm_ring& call, int32_t row);  // 0 for a row that does not run

// One row made ready, and outputs first .. end - 1 of all rows, of a checked call.
void linear_prepare_scalar(const speechssm_linear& call, int32_t row);
void linear_outputs_scalar(const speechssm_linear& call, int32_t first, int32_t end);
#if defined(SPEECHSSM_X86)
void linear_prepare_avx2(const speechssm_linear& call, int32_t row);
void linear_outputs_avx2(const speechssm_linear& call, int32_t first, int32_t end);
void linear_prepare_avx512(const speechssm_linear& call, int32_t row);
void linear_outputs_avx512(const speechssm_linear& call, int32_t first, int32_t end);
void linear_prepare_vnni(const speechssm_linear& call, int32_t row);
void linear_outputs_vnni(const speechssm_linear& call, int32_t first, int32_t end);
#endif
void linear_prepare(const speechssm_linear& call, int32_t row);  // by the chosen one
void linear_outputs(const speechssm_linear& call, int32_t first, int32_t end);

// One row of a checked call, in a workspace of its own.
void sample_row_scalar(const speechssm_sample& call, int32_t row, void* workspace);
#if defined(SPEECHSSM_X86)
void sample_row_avx2(const speechssm_sample& call, int32_t row, void* workspace);
void sample_row_avx512(const speechssm_sample& call, int32_t row, void* workspace);
#endif
void sample_row(const speechssm_sample& call, int32_t row, void* workspace);  // by the chosen one

Isa chosen_isa();
}  // namespace speechssm
