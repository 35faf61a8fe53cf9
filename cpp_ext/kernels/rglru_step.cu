/*
Decode step of the RG-LRU: one token for each row.

Bytes moved per element, float32: x, gate_x, gate_a, state in; y, state out: 24 (decay stays in cache).
Up to a few hundred rows of 2560 channels the launch costs more than the bytes.

version 1: one channel per thread, the body of the host's scalar loop.
version 2: four channels per thread, so that float32 moves in 16-byte pieces and two-byte numbers in
           8-byte ones, with the gelu branch of the block multiplied in when it is given.
The host reference is speechssm_rglru_step_host.
*/
#include "launch.cuh"
#include "wide.cuh"

namespace speechssm_cuda {

using speechssm::Call;
using speechssm::Row;

template <class T>
__global__ void __launch_bounds__(kThreads) rglru_step_1(const Call c) {
    const int e = blockIdx.x * kThreads + threadIdx.x;
    if (e >= c.width) return;
    for (int b = blockIdx.y; b < c.rows; b += gridDim.y) speechssm::sequential_body<T>(c, b, e);
}

constexpr int kStepLanes = 4;

template <class T>
__global__ void __launch_bounds__(kThreads) rglru_step_2(const Call c) {
    constexpr int N = kStepLanes;
    const int e = (blockIdx.x * kThreads + threadIdx.x) * N;
    if (e >= c.width) return;
    const Wide<float, N> decay = load_wide<float, N>(c.decay, e);
    for (int b = blockIdx.y; b < c.rows; b += gridDim.y) {
        const Row row = speechssm::row_of(c, b);
        const std::int64_t i = speechssm::at(c, 0, b, e);
        Wide<T, N> y;
        if (row.length == 0) {
#pragma unroll
            for (int j = 0; j < N; ++j) speechssm::write(&y.value[j], 0.0f);
            store_wide<T, N>(c.y, i, y);
            if (row.slot < 0) continue;
            const std::int64_t s = speechssm::state_at(c, row, e);
            // As integers: an idle row keeps its bits, a signalling NaN included.
            store_wide<std::uint32_t, N>(c.state_out, s, load_wide<std::uint32_t, N>(c.state_in, s));
            continue;
        }
        const std::int64_t s = speechssm::state_at(c, row, e);
        Wide<float, N> h = load_wide<float, N>(c.state_in, s);
        const Wide<T, N> x = load_wide<T, N>(c.x, i), gate_x = load_wide<T, N>(c.gate_x, i);
        if (row.reset_at == 0) {
#pragma unroll
            for (int j = 0; j < N; ++j)
                h.value[j] = speechssm::reset_state(speechssm::read(x.value[j]), speechssm::read(gate_x.value[j]));
        } else {
            const Wide<T, N> gate_a = load_wide<T, N>(c.gate_a, i);
#pragma unroll
            for (int j = 0; j < N; ++j)
                h.value[j] = speechssm::advance(
                    h.value[j], speechssm::token_update(speechssm::read(x.value[j]), speechssm::read(gate_x.value[j]),
                                                        speechssm::read(gate_a.value[j]), decay.value[j]));
        }
        store_wide<float, N>(c.state_out, s, h);
        if (c.branch) {
            const Wide<T, N> branch = load_wide<T, N>(c.branch, i);
#pragma unroll
            for (int j = 0; j < N; ++j) h.value[j] *= speechssm::read(branch.value[j]);
        }
#pragma unroll
        for (int j = 0; j < N; ++j) speechssm::write(&y.value[j], h.value[j]);
        store_wide<T, N>(c.y, i, y);
    }
}

template <class T>
bool fits_wide(const Call& c) {
    constexpr std::size_t stream = sizeof(T) * kStepLanes, state = sizeof(float) * kStepLanes;
    return c.width % kStepLanes == 0 && c.row_stride % kStepLanes == 0 && aligned(c.x, stream) &&
           aligned(c.gate_x, stream) && aligned(c.gate_a, stream) && aligned(c.branch, stream) &&
           aligned(c.y, stream) && aligned(c.decay, state) && aligned(c.state_in, state) && aligned(c.state_out, state);
}

template <class T>
std::int32_t step(const Call& c, std::int32_t version, cudaStream_t stream) {
    if (version != 1 && fits_wide<T>(c))
        rglru_step_2<T><<<grid_of(c.width / kStepLanes, c.rows), kThreads, 0, stream>>>(c);
    else
        rglru_step_1<T><<<grid_of(c.width, c.rows), kThreads, 0, stream>>>(c);
    return launched();
}

}  // namespace speechssm_cuda

extern "C" int32_t speechssm_rglru_step_cuda(const speechssm_rglru* call, int32_t version, void* stream) {
    using namespace speechssm_cuda;
    if (version < 0 || version > 2) return SPEECHSSM_NO_SUCH_VERSION;
    const std::int32_t status = speechssm::check(call, false);
    if (status != SPEECHSSM_OK) return status;
    if (call->tokens != 1) return SPEECHSSM_NOT_A_STEP;
    if (call->rows == 0) return SPEECHSSM_OK;
    switch (call->dtype) {
        case SPEECHSSM_F32: return step<float>(*call, version, stream_of(stream));
        case SPEECHSSM_F16: return step<speechssm::Half>(*call, version, stream_of(stream));
        default: return step<speechssm::BFloat16>(*call, version, stream_of(stream));
    }
}
