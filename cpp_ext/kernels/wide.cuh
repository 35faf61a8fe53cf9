// N neighbouring numbers moved as one load or store of up to 16 bytes.
#pragma once

#include "speechssm/number.hpp"

namespace speechssm_cuda {

template <class T, int N>
struct alignas(sizeof(T) * N) Wide {
    T value[N];
};

template <class T, int N>
__device__ __forceinline__ Wide<T, N> load_wide(const void* base, std::int64_t i) {
    return *reinterpret_cast<const Wide<T, N>*>(static_cast<const T*>(base) + i);
}

template <class T, int N>
__device__ __forceinline__ void store_wide(void* base, std::int64_t i, const Wide<T, N>& numbers) {
    *reinterpret_cast<Wide<T, N>*>(static_cast<T*>(base) + i) = numbers;
}

}  // namespace speechssm_cuda
