// Built with -mavx2 -mfma -mf16c; called only where the processor has all three.
#define SPEECHSSM_ISA isa_avx2
#include "isa.hpp"
#include "sixteen_avx2.hpp"

#include "ring_rows.hpp"

void speechssm::ring_part_avx2(const speechssm_ring& call, const RingPart& part) {
    run_ring(call, part);
}
