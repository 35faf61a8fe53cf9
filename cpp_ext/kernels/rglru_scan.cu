/*
Prefill scan of the RG-LRU: t tokens for each row.

Fewest bytes per element, float32: three streams in, one out: 16 (two-byte numbers: 8).

version 1: three phases over chunks (reduce, carry, apply). Parallel over tokens, so a single row
           fills the device, but the streams are read twice: 28 bytes. A prompt of a few rows fits in
           the second-level cache, where the second reading is cheap.
version 2: one pass; each thread walks the tokens of its channel (two channels of two-byte numbers)
           and has the loads of the next kAhead tokens in flight while it computes. 16 bytes, but
           parallel only over rows and channels.
The host references are speechssm_rglru_scan_host versions 2 and 1.
*/
#include "launch.cuh"
#include "wide.cuh"

namespace speechssm_cuda {

using speechssm::Call;
using speechssm::Row;

// version 1

template <class T>
__global__ void __launch_bounds__(kThreads) rglru_scan_1_reduce(const Call c, const int chunks) {
    const int e = blockIdx.x * kThreads + threadIdx.x;
    if (e >= c.width) return;
    const std::int64_t pieces = static_cast<std::int64_t>(c.rows) * chunks;
    for (std::int64_t p = blockIdx.y; p < pieces; p += gridDim.y)
        speechssm::reduce_body<T>(c, static_cast<int>(p / chunks), static_cast<int>(p % chunks), e);
}

__global__ void __launch_bounds__(kThreads) rglru_scan_1_carry(const Call c) {
    const int e = blockIdx.x * kThreads + threadIdx.x;
    if (e >= c.width) return;
    for (int b = blockIdx.y; b < c.rows; b += gridDim.y) speechssm::carry_body(c, b, e);
}

template <class T>
__global__ void __launch_bounds__(kThreads) rglru_scan_1_apply(const Call c, const int chunks) {
    const int e = blockIdx.x * kThreads + threadIdx.x;
    if (e >= c.width) return;
    const std::int64_t pieces = static_cast<std::int64_t>(c.rows) * chunks;
    for (std::int64_t p = blockIdx.y; p < pieces; p += gridDim.y)
        speechssm::apply_body<T>(c, static_cast<int>(p / chunks), static_cast<int>(p % chunks), e);
}

template <class T>
std::int32_t scan_1(const Call& c, cudaStream_t stream) {
    const int chunks = speechssm::chunks_of(c.tokens, c.chunk);
    const dim3 grid = grid_of(c.width, static_cast<std::int64_t>(c.rows) * chunks);
    rglru_scan_1_reduce<T><<<grid, kThreads, 0, stream>>>(c, chunks);
    rglru_scan_1_carry<<<grid_of(c.width, c.rows), kThreads, 0, stream>>>(c);
    rglru_scan_1_apply<T><<<grid, kThreads, 0, stream>>>(c, chunks);
    return launched();
}

// version 2

constexpr int kAhead = 4;

template <class T, int N>
struct Token {
    Wide<T, N> x, gate_x, gate_a;
};

template <class T, int N>
__device__ __forceinline__ Token<T, N> load_token(const Call& c, std::int64_t i) {
    return {load_wide<T, N>(c.x, i), load_wide<T, N>(c.gate_x, i), load_wide<T, N>(c.gate_a, i)};
}

template <class T, int N>
__device__ __forceinline__ void run_token(const Call& c, const Token<T, N>& token, const Wide<float, N>& decay,
                                          bool reset, std::int64_t i, Wide<float, N>& h) {
    Wide<T, N> y, branch;
    if (c.branch) branch = load_wide<T, N>(c.branch, i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const float x = speechssm::read(token.x.value[j]), gate_x = speechssm::read(token.gate_x.value[j]);
        h.value[j] = reset ? speechssm::reset_state(x, gate_x)
                           : speechssm::advance(h.value[j], speechssm::token_update(
                                                                x, gate_x, speechssm::read(token.gate_a.value[j]),
                                                                decay.value[j]));
        speechssm::write(&y.value[j], c.branch ? h.value[j] * speechssm::read(branch.value[j]) : h.value[j]);
    }
    store_wide<T, N>(c.y, i, y);
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads) rglru_scan_2(const Call c) {
    const int e = (blockIdx.x * kThreads + threadIdx.x) * N;
    if (e >= c.width) return;
    const Wide<float, N> decay = load_wide<float, N>(c.decay, e);
    for (int b = blockIdx.y; b < c.rows; b += gridDim.y) {
        const Row row = speechssm::row_of(c, b);
        if (row.length > 0) {
            const std::int64_t s = speechssm::state_at(c, row, e);
            Wide<float, N> h = load_wide<float, N>(c.state_in, s);
            int t = 0;
            for (; t + kAhead <= row.length; t += kAhead) {
                Token<T, N> tokens[kAhead];
#pragma unroll
                for (int k = 0; k < kAhead; ++k) tokens[k] = load_token<T, N>(c, speechssm::at(c, t + k, b, e));
#pragma unroll
                for (int k = 0; k < kAhead; ++k)
                    run_token<T, N>(c, tokens[k], decay, t + k == row.reset_at, speechssm::at(c, t + k, b, e), h);
            }
            for (; t < row.length; ++t) {
                const std::int64_t i = speechssm::at(c, t, b, e);
                run_token<T, N>(c, load_token<T, N>(c, i), decay, t == row.reset_at, i, h);
            }
            store_wide<float, N>(c.state_out, s, h);
        } else if (row.slot >= 0) {
            const std::int64_t s = speechssm::state_at(c, row, e);
            store_wide<std::uint32_t, N>(c.state_out, s, load_wide<std::uint32_t, N>(c.state_in, s));
        }
        Wide<T, N> nothing;
#pragma unroll
        for (int j = 0; j < N; ++j) speechssm::write(&nothing.value[j], 0.0f);
        for (int t = row.length; t < c.tokens; ++t) store_wide<T, N>(c.y, speechssm::at(c, t, b, e), nothing);
    }
}

template <class T, int N>
bool fits_wide(const Call& c) {
    constexpr std::size_t stream = sizeof(T) * N, state = sizeof(float) * N;
    return c.width % N == 0 && c.row_stride % N == 0 && c.token_stride % N == 0 && aligned(c.x, stream) &&
           aligned(c.gate_x, stream) && aligned(c.gate_a, stream) && aligned(c.branch, stream) &&
           aligned(c.y, stream) && aligned(c.decay, state) && aligned(c.state_in, state) && aligned(c.state_out, state);
}

template <class T>
std::int32_t scan_2(const Call& c, cudaStream_t stream) {
    constexpr int N = 4 / sizeof(T);  // four bytes of each stream per thread and token
    if (fits_wide<T, N>(c))
        rglru_scan_2<T, N><<<grid_of(c.width / N, c.rows), kThreads, 0, stream>>>(c);
    else
        rglru_scan_2<T, 1><<<grid_of(c.width, c.rows), kThreads, 0, stream>>>(c);
    return launched();
}

// Below this many channels in flight the one-pass walk waits on memory: about 132 multiprocessors times
// 256 threads. From arithmetic, not yet from measurement.
constexpr std::int64_t kFills = 32768;

template <class T>
std::int32_t scan(const Call& c, std::int32_t version, cudaStream_t stream) {
    if (version == 0) {
        const bool fills = static_cast<std::int64_t>(c.rows) * c.width >= kFills || c.tokens <= kAhead;
        version = fills || speechssm::check(&c, true) != SPEECHSSM_OK ? 2 : 1;
    }
    return version == 1 ? scan_1<T>(c, stream) : scan_2<T>(c, stream);
}

}  // namespace speechssm_cuda

extern "C" int32_t speechssm_rglru_scan_cuda(const speechssm_rglru* call, int32_t version, void* stream) {
    using namespace speechssm_cuda;
    if (version < 0 || version > 2) return SPEECHSSM_NO_SUCH_VERSION;
    const std::int32_t status = speechssm::check(call, version == 1);
    if (status != SPEECHSSM_OK) return status;
    if (call->rows == 0) return SPEECHSSM_OK;
    if (call->tokens == 0) version = 2;  // nothing to divide into chunks; states are still copied
    switch (call->dtype) {
        case SPEECHSSM_F32: return scan<float>(*call, version, stream_of(stream));
        case SPEECHSSM_F16: return scan<speechssm::Half>(*call, version, stream_of(stream));
        default: return scan<speechssm::BFloat16>(*call, version, stream_of(stream));
    }
}
