// Built with -mavx2 -mfma -mf16c; called only where the processor has all three.
#define SPEECHSSM_ISA isa_avx2
#include "isa.hpp"
#include "sixteen_avx2.hpp"

#include "ring_rows.hpp"

void speechssm::ring_rows_avx2(const speechssm_ring& call, int32_t first, int32_t end) {
    run_rows(call, first, end);
}
void speechssm::ring_piece_avx2(const speechssm_ring& call, int32_t row, int32_t piece, float* records) {
    run_piece(call, row, piece, records);
}
void speechssm::ring_join_avx2(const speechssm_ring& call, int32_t row, int32_t pieces, const float* records) {
    run_join(call, row, pieces, records);
}
