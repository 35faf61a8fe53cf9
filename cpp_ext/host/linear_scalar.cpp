// The portable one: a float at a time, on any processor.
#define SPEECHSSM_ISA isa_scalar
#define SPEECHSSM_TILE_ROWS 2
#include "isa.hpp"
#include "sixteen.hpp"
#include "bytes64.hpp"

SPEECHSSM_OPEN
// Outputs of a tile, and of a tile of blocks: what fits in registers beside the rows.
constexpr int kOuts = 2, kBlockOuts = 2;
SPEECHSSM_CLOSE

#include "linear_rows.hpp"

void speechssm::linear_prepare_scalar(const speechssm_linear& call, std::int32_t row) {
    prepare_one(call, rows_of(call), row);
}

void speechssm::linear_outputs_scalar(const speechssm_linear& call, std::int32_t first, std::int32_t end) {
    run_outputs(call, first, end);
}
