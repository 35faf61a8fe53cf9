// The reference: one logit at a time, on any processor.
#define SPEECHSSM_ISA isa_scalar
#include "isa.hpp"
#include "sample_rows.hpp"

void speechssm::sample_row_scalar(const speechssm_sample& call, int32_t row, void* workspace) {
    sample_one<float>(call, row, workspace);
}
