// The causal convolution of width 4 by loops. It is small beside the projections around it, so the
// compiler's own vectorisation of the inner loop is all it gets.
#include "speechssm/check.hpp"
#include "speechssm/conv4.hpp"

namespace {

template <class T>
void run(const speechssm_conv4& c) {
    for (std::int32_t b = 0; b < c.rows; ++b)
        for (std::int32_t e = 0; e < c.width; ++e) speechssm::conv4_body<T>(c, b, e);
}

}  // namespace

extern "C" int32_t speechssm_conv4_host(const speechssm_conv4* call) {
    const std::int32_t status = speechssm::check(call);
    if (status != SPEECHSSM_OK) return status;
    switch (call->dtype) {
        case SPEECHSSM_F32: run<float>(*call); break;
        case SPEECHSSM_F16: run<speechssm::Half>(*call); break;
        default: run<speechssm::BFloat16>(*call); break;
    }
    return SPEECHSSM_OK;
}
