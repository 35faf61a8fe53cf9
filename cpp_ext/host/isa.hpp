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

// Some rows, and of a step that appends nothing some query heads, of a checked call.
struct RingPart {
    int32_t first_row, end_row, first_head, end_head;
    float* check;  // (b) or null, in place of the call's
};
void ring_part_scalar(const speechssm_ring& call, const RingPart& part);
#if defined(SPEECHSSM_X86)
void ring_part_avx2(const speechssm_ring& call, const RingPart& part);
void ring_part_avx512(const speechssm_ring& call, const RingPart& part);
#endif
void ring_part(const speechssm_ring& call, const RingPart& part);  // by the chosen one

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
