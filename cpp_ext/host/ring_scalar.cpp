// The portable one: a float at a time, on any processor.
#define SPEECHSSM_ISA isa_scalar
#include "isa.hpp"
#include "sixteen.hpp"

#include "ring_rows.hpp"

void speechssm::ring_part_scalar(const speechssm_ring& call, const RingPart& part) {
    run_ring(call, part);
}
