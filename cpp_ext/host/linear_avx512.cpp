// Built with -mavx512f -mfma; called only where the processor has them.
#define SPEECHSSM_ISA isa_avx512
#define SPEECHSSM_TILE_ROWS 4
#include "isa.hpp"
#include "sixteen_avx512.hpp"
#include "bytes64.hpp"

SPEECHSSM_OPEN
// Outputs of a tile, and of a tile of blocks: what fits in registers beside the rows.
constexpr int kOuts = 6, kBlockOuts = 2;
SPEECHSSM_CLOSE

#include "linear_rows.hpp"

void speechssm::linear_prepare_avx512(const speechssm_linear& call, std::int32_t row) {
    prepare_one(call, rows_of(call), row);
}

void speechssm::linear_outputs_avx512(const speechssm_linear& call, std::int32_t first, std::int32_t end) {
    run_outputs(call, first, end);
}
