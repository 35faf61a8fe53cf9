// What the launchers share: grids, dtype dispatch, the error after a launch.
#pragma once

#include <cuda_runtime_api.h>

#include "speechssm/check.hpp"
#include "speechssm/cuda_api.h"
#include "speechssm/rglru_scan.hpp"

namespace speechssm_cuda {

constexpr int kThreads = 128;

// Channels along x, everything else (rows, or rows times chunks) along y in strides of at most 65 535.
inline dim3 grid_of(std::int64_t channels, std::int64_t others) {
    const std::int64_t most = 65535;
    return dim3(static_cast<unsigned>((channels + kThreads - 1) / kThreads),
                static_cast<unsigned>(others < most ? others : most));
}

// cudaPeekAtLastError reports a bad launch and, unlike a synchronising call, is allowed under capture.
inline std::int32_t launched() {
    return cudaPeekAtLastError() == cudaSuccess ? SPEECHSSM_OK : SPEECHSSM_LAUNCH_FAILED;
}

inline cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

inline bool aligned(const void* pointer, std::size_t bytes) {
    return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

}  // namespace speechssm_cuda
