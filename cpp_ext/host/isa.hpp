// The same loops, compiled three times; the *launch.cpp choose.
#pragma once

#include "speechssm/linear_api.h"
#include "speechssm/rglru_api.h"
#include "speechssm/ring_api.h"

namespace speechssm {
enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2 };

void rglru_rows_scalar(const speechssm_rglru& call);
#if defined(SPEECHSSM_X86)
void rglru_rows_avx2(const speechssm_rglru& call);
void rglru_rows_avx512(const speechssm_rglru& call);
#endif

// Rows first .. end - 1 of a checked call.
void ring_rows_scalar(const speechssm_ring& call, int32_t first, int32_t end);
#if defined(SPEECHSSM_X86)
void ring_rows_avx2(const speechssm_ring& call, int32_t first, int32_t end);
void ring_rows_avx512(const speechssm_ring& call, int32_t first, int32_t end);
#endif
void ring_rows(const speechssm_ring& call, int32_t first, int32_t end);  // by the chosen one

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

Isa chosen_isa();
}  // namespace speechssm
