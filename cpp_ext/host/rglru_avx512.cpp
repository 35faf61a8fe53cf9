// Built with -mavx512f -mfma; called only where the processor has them.
#define SPEECHSSM_ISA isa_avx512
#include "isa.hpp"
#include "lane_avx512.hpp"
#include "rows.hpp"

void speechssm::rglru_rows_avx512(const speechssm_rglru& call) { run_rows<Float16x>(call); }
