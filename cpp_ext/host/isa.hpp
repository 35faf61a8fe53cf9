// The same loop, compiled three times; launch.cpp chooses.
#pragma once

#include "speechssm/rglru_api.h"

namespace speechssm {
enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2 };

void rglru_rows_scalar(const speechssm_rglru& call);
#if defined(SPEECHSSM_X86)
void rglru_rows_avx2(const speechssm_rglru& call);
void rglru_rows_avx512(const speechssm_rglru& call);
#endif
}  // namespace speechssm
