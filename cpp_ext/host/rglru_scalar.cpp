// The reference: one float at a time, on any processor.
#define SPEECHSSM_ISA isa_scalar
#include "isa.hpp"
#include "rows.hpp"

void speechssm::rglru_rows_scalar(const speechssm_rglru& call) { run_rows<float>(call); }
