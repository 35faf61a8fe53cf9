// The host launchers of linear layers: check, choose an instruction set, run; and the reference beside them.
#include <algorithm>
#include <cmath>
#include <vector>

#include "isa.hpp"
#include "linear_workspace.hpp"
#include "speechssm/check.hpp"
#include "speechssm/number.hpp"

namespace {

using speechssm::Isa;

bool has_vnni() {
#if defined(SPEECHSSM_X86)
    static const bool known = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
    return known;
#else
    return false;
#endif
}

// ---- plain loops ----------------------------------------------------------------------------------------------

double number_of(const speechssm_linear& c, const void* w, const float* scale, std::int64_t out, std::int64_t in) {
    const std::size_t at = static_cast<std::size_t>(out) * c.fan_in + in;
    switch (c.stored) {
        case SPEECHSSM_F32: return static_cast<const float*>(w)[at];
        case SPEECHSSM_F16: return speechssm::read(static_cast<const speechssm::Half*>(w)[at]);
        case SPEECHSSM_BF16: return speechssm::read(static_cast<const speechssm::BFloat16*>(w)[at]);
        default: break;
    }
    const std::size_t block = out * speechssm::blocks_of(c.fan_in) + in / SPEECHSSM_LINEAR_BLOCK;
    const std::size_t inside = in % SPEECHSSM_LINEAR_BLOCK;
    const std::uint8_t* bytes = static_cast<const std::uint8_t*>(w);
    if (c.stored == SPEECHSSM_BLOCKS8)
        return (bytes[block * SPEECHSSM_LINEAR_BLOCK + inside] - 128.0) * scale[block];
    const std::uint8_t both = bytes[(block * SPEECHSSM_LINEAR_BLOCK + inside) / 2];
    return ((inside % 2 ? both >> 4 : both & 15) - 8.0) * scale[block];
}

double activated(double p, std::int32_t kind) {
    switch (kind) {
        case SPEECHSSM_GELU_TANH: return 0.5 * p * (1 + std::tanh(std::sqrt(2 / M_PI) * (p + 0.044715 * p * p * p)));
        case SPEECHSSM_GELU: return 0.5 * p * (1 + std::erf(p * M_SQRT1_2));
        case SPEECHSSM_SILU: return p / (1 + std::exp(-p));
        default: return p;
    }
}

// Blocks are multiplied with rows cut to 8 bits, as the fast version does; all else is float64.
void reference(const speechssm_linear& c) {
    std::vector<double> n(c.fan_in);
    for (std::int32_t row = 0; row < c.rows; ++row) {
        const float* x = c.x + speechssm::x_at(c, row);
        double squares = 0;
        for (std::int64_t i = 0; i < c.fan_in; ++i) squares += static_cast<double>(x[i]) * x[i];
        const double rms = c.norm ? std::sqrt(squares / c.fan_in + c.epsilon) : 1;
        for (std::int64_t i = 0; i < c.fan_in; ++i) n[i] = x[i] / rms * (c.norm ? c.norm[i] : 1);
        if (speechssm::in_blocks(c))
            for (std::int64_t first = 0; first < c.fan_in; first += SPEECHSSM_LINEAR_BLOCK) {
                const std::int64_t end = std::min<std::int64_t>(c.fan_in, first + SPEECHSSM_LINEAR_BLOCK);
                double most = 0;
                for (std::int64_t i = first; i < end; ++i) most = std::max(most, std::fabs(n[i]));
                for (std::int64_t i = first; i < end; ++i)
                    n[i] = most > 0 || n[i] != n[i] ? std::nearbyint(n[i] * (127 / most)) * (most / 127) : 0;
            }
        for (std::int64_t out = 0; out < c.fan_out; ++out) {
            double p = c.bias ? c.bias[out] : 0, u = c.times_bias ? c.times_bias[out] : 0;
            for (std::int64_t i = 0; i < c.fan_in; ++i) {
                p += n[i] * number_of(c, c.weight, c.scale, out, i);
                if (c.times) u += n[i] * number_of(c, c.times, c.times_scale, out, i);
            }
            double y = activated(p, c.activation);
            if (c.times) y *= u;
            const std::size_t at = speechssm::y_at(c, row) + out;
            c.y[at] = static_cast<float>(c.residual ? c.residual[at] + y : y);
        }
    }
}

}  // namespace

void speechssm::linear_prepare(const speechssm_linear& call, std::int32_t row) {
    switch (chosen_isa()) {
#if defined(SPEECHSSM_X86)
        case Isa::avx512: return has_vnni() ? linear_prepare_vnni(call, row) : linear_prepare_avx512(call, row);
        case Isa::avx2: return linear_prepare_avx2(call, row);
#endif
        default: return linear_prepare_scalar(call, row);
    }
}

void speechssm::linear_outputs(const speechssm_linear& call, std::int32_t first, std::int32_t end) {
    switch (chosen_isa()) {
#if defined(SPEECHSSM_X86)
        case Isa::avx512:
            return has_vnni() ? linear_outputs_vnni(call, first, end) : linear_outputs_avx512(call, first, end);
        case Isa::avx2: return linear_outputs_avx2(call, first, end);
#endif
        default: return linear_outputs_scalar(call, first, end);
    }
}

extern "C" int64_t speechssm_linear_workspace_bytes(int32_t rows, int32_t fan_in) {
    return speechssm::linear_workspace_bytes(rows, fan_in);
}

extern "C" int32_t speechssm_linear_host(const speechssm_linear* call, int32_t version) {
    if (version != 1 && version != 2) return SPEECHSSM_NO_SUCH_VERSION;
    const std::int32_t status = speechssm::check(call);
    if (status != SPEECHSSM_OK) return status;
    if (version == 2) {
        reference(*call);
        return SPEECHSSM_OK;
    }
    for (std::int32_t row = 0; row < call->rows; ++row) speechssm::linear_prepare(*call, row);
    speechssm::linear_outputs(*call, 0, call->fan_out);
    return SPEECHSSM_OK;
}
