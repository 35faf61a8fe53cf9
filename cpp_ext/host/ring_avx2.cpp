// Built with -mavx2 -mfma -mf16c; called only where the processor has all three.
#define SPEECHSSM_ISA isa_avx2
#include "isa.hpp"
#include "sixteen_avx2.hpp"

#include "ring_rows.hpp"

void speechssm::ring_rows_avx2(const speechssm_ring& call, std::int32_t first, std::int32_t end) {
    run_ring(call, first, end);
}
