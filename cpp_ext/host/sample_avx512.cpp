// Built with -mavx512f -mfma; called only where the processor has them.
#define SPEECHSSM_ISA isa_avx512
#include "isa.hpp"
#include "lane_avx512.hpp"
#include "sample_rows.hpp"

void speechssm::sample_row_avx512(const speechssm_sample& call, int32_t row, void* workspace) {
    sample_one<Float16x>(call, row, workspace);
}
