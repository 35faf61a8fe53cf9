// The host launchers behind the C interface: check, choose an instruction set, run.
#include <atomic>

#include "isa.hpp"
#include "speechssm/check.hpp"
#include "speechssm/rglru_scan.hpp"

namespace {

using speechssm::Isa;

Isa best_isa() {
#if defined(SPEECHSSM_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma")) return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return Isa::avx2;
#endif
    return Isa::scalar;
}

std::atomic<int>& isa_in_use() {
    static std::atomic<int> isa{static_cast<int>(best_isa())};
    return isa;
}

void run_sequential(const speechssm_rglru& call) {
    switch (speechssm::chosen_isa()) {
#if defined(SPEECHSSM_X86)
        case Isa::avx512: speechssm::rglru_rows_avx512(call); return;
        case Isa::avx2: speechssm::rglru_rows_avx2(call); return;
#endif
        default: speechssm::rglru_rows_scalar(call); return;
    }
}

// The order a device runs the phases in; within one, any order will do.
template <class T>
void run_chunked(const speechssm_rglru& c) {
    const std::int32_t chunks = speechssm::chunks_of(c.tokens, c.chunk);
    for (std::int32_t b = 0; b < c.rows; ++b)
        for (std::int32_t k = 0; k < chunks; ++k)
            for (std::int32_t e = 0; e < c.width; ++e) speechssm::reduce_body<T>(c, b, k, e);
    for (std::int32_t b = 0; b < c.rows; ++b)
        for (std::int32_t e = 0; e < c.width; ++e) speechssm::carry_body(c, b, e);
    for (std::int32_t b = 0; b < c.rows; ++b)
        for (std::int32_t k = 0; k < chunks; ++k)
            for (std::int32_t e = 0; e < c.width; ++e) speechssm::apply_body<T>(c, b, k, e);
}

}  // namespace

Isa speechssm::chosen_isa() { return static_cast<Isa>(isa_in_use().load(std::memory_order_relaxed)); }

extern "C" const char* speechssm_status_text(int32_t status) {
    switch (status) {
        case SPEECHSSM_OK: return "ok";
        case SPEECHSSM_BAD_STRUCT: return "the caller was built against another speechssm_rglru, speechssm_conv4, speechssm_ring, speechssm_linear or speechssm_sample; rebuild both from one version";
        case SPEECHSSM_BAD_SHAPE: return "tokens, rows, slot_count or chunk is negative, or a width, vocab or k_max is below 1";
        case SPEECHSSM_BAD_DTYPE: return "dtype is none of float32 (0), float16 (1), bfloat16 (2)";
        case SPEECHSSM_NULL_POINTER: return "a required pointer is NULL";
        case SPEECHSSM_BAD_STRIDE: return "token_stride and row_stride let tokens or rows overlap";
        case SPEECHSSM_BAD_SLOTS: return "without slots, state needs at least one row per batch row";
        case SPEECHSSM_SMALL_WORKSPACE: return "the workspace is smaller than its *_workspace_bytes says";
        case SPEECHSSM_NOT_A_STEP: return "this call takes exactly one token: for more use the scan, or give the rings to append to";
        case SPEECHSSM_LAUNCH_FAILED: return "the device refused the launch; cudaGetLastError says why";
        case SPEECHSSM_NO_SUCH_VERSION: return "there is no kernel of that version number";
        case SPEECHSSM_BAD_HEADS: return "heads, kv_heads, head_dim or window is below 1, heads is no multiple of kv_heads, or head_dim is over 512";
        case SPEECHSSM_BAD_RING: return "ring_dtype is none of float32 (0), float16 (1), bfloat16 (2), int8 (3)";
        case SPEECHSSM_BAD_STORAGE: return "a matrix is stored as none of float32 (0), float16 (1), bfloat16 (2), blocks of 8 (4) or 4 bits (5), or activation is unknown";
        default: return "unknown status";
    }
}

extern "C" int64_t speechssm_rglru_workspace_bytes(int32_t tokens, int32_t rows, int32_t width, int32_t chunk) {
    return speechssm::workspace_bytes(tokens, rows, width, chunk);
}

extern "C" int32_t speechssm_rglru_step_host(const speechssm_rglru* call) {
    const std::int32_t status = speechssm::check(call, false);
    if (status != SPEECHSSM_OK) return status;
    if (call->tokens != 1) return SPEECHSSM_NOT_A_STEP;
    run_sequential(*call);
    return SPEECHSSM_OK;
}

extern "C" int32_t speechssm_rglru_scan_host(const speechssm_rglru* call, int32_t version) {
    if (version != 1 && version != 2) return SPEECHSSM_NO_SUCH_VERSION;
    const std::int32_t status = speechssm::check(call, version == 2);
    if (status != SPEECHSSM_OK) return status;
    if (version == 1 || call->tokens == 0) {
        run_sequential(*call);
        return SPEECHSSM_OK;
    }
    switch (call->dtype) {
        case SPEECHSSM_F32: run_chunked<float>(*call); break;
        case SPEECHSSM_F16: run_chunked<speechssm::Half>(*call); break;
        default: run_chunked<speechssm::BFloat16>(*call); break;
    }
    return SPEECHSSM_OK;
}

extern "C" int32_t speechssm_host_isa(void) { return isa_in_use().load(); }

extern "C" int32_t speechssm_host_set_isa(int32_t isa) {
    const int best = static_cast<int>(best_isa());
    const int wanted = isa < 0 ? 0 : isa;
    isa_in_use().store(wanted < best ? wanted : best);
    return isa_in_use().load();
}
