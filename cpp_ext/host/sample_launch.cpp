// The host launcher of the sampler: check, choose an instruction set, run.
#include "isa.hpp"
#include "speechssm/check.hpp"

void speechssm::sample_row(const speechssm_sample& call, int32_t row, void* workspace) {
    switch (chosen_isa()) {
#if defined(SPEECHSSM_X86)
        case Isa::avx512: sample_row_avx512(call, row, workspace); return;
        case Isa::avx2: sample_row_avx2(call, row, workspace); return;
#endif
        default: sample_row_scalar(call, row, workspace); return;
    }
}

extern "C" int64_t speechssm_sample_workspace_bytes(int32_t vocab) { return speechssm::sample_workspace_bytes(vocab); }

extern "C" int32_t speechssm_sample_host(const speechssm_sample* call) {
    const std::int32_t status = speechssm::check(call);
    if (status != SPEECHSSM_OK) return status;
    for (std::int32_t row = 0; row < call->rows; ++row) speechssm::sample_row(*call, row, call->workspace);
    return SPEECHSSM_OK;
}
