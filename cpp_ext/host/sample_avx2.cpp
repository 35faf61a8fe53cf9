// Built with -mavx2 -mfma; called only where the processor has both.
#define SPEECHSSM_ISA isa_avx2
#include "isa.hpp"
#include "lane_avx2.hpp"
#include "sample_rows.hpp"

void speechssm::sample_row_avx2(const speechssm_sample& call, int32_t row, void* workspace) {
    sample_one<Float8>(call, row, workspace);
}
