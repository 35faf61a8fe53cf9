// Built with -mavx512f -mfma; called only where the processor has them.
#define SPEECHSSM_ISA isa_avx512
#include "isa.hpp"
#include "sixteen_avx512.hpp"

#include "ring_rows.hpp"

void speechssm::ring_part_avx512(const speechssm_ring& call, const RingPart& part) {
    run_ring(call, part);
}
