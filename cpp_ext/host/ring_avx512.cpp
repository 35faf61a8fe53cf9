// Built with -mavx512f -mfma; called only where the processor has them.
#define SPEECHSSM_ISA isa_avx512
#include "isa.hpp"
#include "sixteen_avx512.hpp"

#include "ring_rows.hpp"

void speechssm::ring_rows_avx512(const speechssm_ring& call, int32_t first, int32_t end) {
    run_rows(call, first, end);
}
void speechssm::ring_piece_avx512(const speechssm_ring& call, int32_t row, int32_t piece, float* records) {
    run_piece(call, row, piece, records);
}
void speechssm::ring_join_avx512(const speechssm_ring& call, int32_t row, int32_t pieces, const float* records) {
    run_join(call, row, pieces, records);
}
