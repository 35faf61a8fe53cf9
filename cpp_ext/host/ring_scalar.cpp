// The portable one: a float at a time, on any processor.
#define SPEECHSSM_ISA isa_scalar
#include "isa.hpp"
#include "sixteen.hpp"

#include "ring_rows.hpp"

void speechssm::ring_rows_scalar(const speechssm_ring& call, std::int32_t first, std::int32_t end) {
    run_ring(call, first, end);
}
