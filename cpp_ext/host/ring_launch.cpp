// The host launchers of the attention ring: check, choose an instruction set, run.
#include "isa.hpp"
#include "ring_reference.hpp"
#include "speechssm/check.hpp"

void speechssm::ring_part(const speechssm_ring& call, const RingPart& part) {
    switch (chosen_isa()) {
#if defined(SPEECHSSM_X86)
        case Isa::avx512: ring_part_avx512(call, part); return;
        case Isa::avx2: ring_part_avx2(call, part); return;
#endif
        default: ring_part_scalar(call, part); return;
    }
}

extern "C" int32_t speechssm_ring_host(const speechssm_ring* call, int32_t version) {
    if (version != 1 && version != 2) return SPEECHSSM_NO_SUCH_VERSION;
    const std::int32_t status = speechssm::check(call);
    if (status != SPEECHSSM_OK) return status;
    if (version == 1)
        speechssm::ring_part(*call, {0, call->rows, 0, call->heads, call->check});
    else
        speechssm::ring_reference(*call);
    return SPEECHSSM_OK;
}

extern "C" int32_t speechssm_ring_pieces(int32_t window) {
    return static_cast<int32_t>(speechssm::ring_pieces(window));
}

extern "C" int64_t speechssm_ring_workspace_bytes(int32_t rows, int32_t heads, int32_t head_dim, int32_t pieces) {
    return speechssm::ring_workspace_bytes(rows, heads, head_dim, pieces);
}
