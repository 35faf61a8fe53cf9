// Built with -mavx2 -mfma; called only where the processor has both.
#define SPEECHSSM_ISA isa_avx2
#include "isa.hpp"
#include "lane_avx2.hpp"
#include "rows.hpp"

void speechssm::rglru_rows_avx2(const speechssm_rglru& call) { run_rows<Float8>(call); }
