// Which launchers the plugin calls: the device's, or the host's in the build that tests use.
#pragma once

#include "speechssm/check.hpp"
#include "speechssm/rglru_api.h"
#include "speechssm/ring_api.h"
#if !defined(SPEECHSSM_HOST_LAUNCHERS)
#include "speechssm/cuda_api.h"
#endif

namespace speechssm_trt {

#if defined(SPEECHSSM_HOST_LAUNCHERS)
inline std::int32_t launch_step(const speechssm_rglru& call, void*) { return speechssm_rglru_step_host(&call); }
inline std::int32_t launch_scan(const speechssm_rglru& call, void*) { return speechssm_rglru_scan_host(&call, 2); }
inline std::int32_t launch_ring(const speechssm_ring& call, void*) { return speechssm_ring_host(&call, 1); }
#else
inline std::int32_t launch_step(const speechssm_rglru& call, void* stream) {
    return speechssm_rglru_step_cuda(&call, 0, stream);
}
inline std::int32_t launch_scan(const speechssm_rglru& call, void* stream) {
    return speechssm_rglru_scan_cuda(&call, 0, stream);
}
inline std::int32_t launch_ring(const speechssm_ring& call, void* stream) {
    return speechssm_ring_cuda(&call, 0, stream);
}
#endif

// Enough for any chunk of up to `tokens`: the chunk length depends on the tokens, so the most pieces
// need not come with the most tokens.
inline std::int64_t workspace_bound(std::int64_t tokens, std::int64_t rows, std::int64_t width) {
    if (tokens < 1) return 0;
    const std::int64_t whole = speechssm::workspace_bytes(tokens, rows, width, speechssm::default_chunk(tokens));
    const std::int64_t short_tokens = tokens < 255 ? tokens : 255;
    const std::int64_t brief = speechssm::workspace_bytes(short_tokens, rows, width, speechssm::default_chunk(short_tokens));
    return whole > brief ? whole : brief;
}

}  // namespace speechssm_trt
