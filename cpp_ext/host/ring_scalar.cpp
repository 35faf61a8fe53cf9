// The portable one: a float at a time, on any processor.
#define SPEECHSSM_ISA isa_scalar
#include "isa.hpp"
#include "sixteen.hpp"

#include "ring_rows.hpp"

void speechssm::ring_rows_scalar(const speechssm_ring& call, int32_t first, int32_t end) {
    run_rows(call, first, end);
}
void speechssm::ring_piece_scalar(const speechssm_ring& call, int32_t row, int32_t piece, float* records) {
    run_piece(call, row, piece, records);
}
void speechssm::ring_join_scalar(const speechssm_ring& call, int32_t row, int32_t pieces, const float* records) {
    run_join(call, row, pieces, records);
}
