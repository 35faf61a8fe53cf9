// The same loops, compiled three times; launch.cpp and ring_launch.cpp choose.
#pragma once

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
Isa chosen_isa();
}  // namespace speechssm
