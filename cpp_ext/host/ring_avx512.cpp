// Built with -mavx512f -mfma; called only where the processor has them.
#define SPEECHSSM_ISA isa_avx512
#include "isa.hpp"
#include "sixteen_avx512.hpp"

#include "ring_rows.hpp"

void speechssm::ring_rows_avx512(const speechssm_ring& call, std::int32_t first, std::int32_t end) {
    run_ring(call, first, end);
}
