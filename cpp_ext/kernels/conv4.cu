/*
Causal depthwise convolution of width 4, decode steps and chunks alike: one channel per thread walks
its tokens with the last three inputs in registers. It cannot be fused into the RG-LRU step: the
block-diagonal gate products stand between them. The host reference is speechssm_conv4_host.
*/
#include "launch.cuh"
#include "speechssm/conv4.hpp"

namespace speechssm_cuda {

template <class T>
__global__ void __launch_bounds__(kThreads) conv4(const speechssm_conv4 c) {
    const int e = blockIdx.x * kThreads + threadIdx.x;
    if (e >= c.width) return;
    for (int b = blockIdx.y; b < c.rows; b += gridDim.y) speechssm::conv4_body<T>(c, b, e);
}

}  // namespace speechssm_cuda

extern "C" int32_t speechssm_conv4_cuda(const speechssm_conv4* call, void* stream) {
    using namespace speechssm_cuda;
    const std::int32_t status = speechssm::check(call);
    if (status != SPEECHSSM_OK) return status;
    if (call->rows == 0) return SPEECHSSM_OK;
    const dim3 grid = grid_of(call->width, call->rows);
    switch (call->dtype) {
        case SPEECHSSM_F32: conv4<float><<<grid, kThreads, 0, stream_of(stream)>>>(*call); break;
        case SPEECHSSM_F16: conv4<speechssm::Half><<<grid, kThreads, 0, stream_of(stream)>>>(*call); break;
        default: conv4<speechssm::BFloat16><<<grid, kThreads, 0, stream_of(stream)>>>(*call); break;
    }
    return launched();
}
