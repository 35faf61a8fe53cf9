// What the ring's kernels share: who reads which ring, the append, the copy of a ring that is not written in place.
#pragma once

#include "launch.cuh"
#include "speechssm/ring.hpp"

namespace speechssm_cuda {

using speechssm::RingCall;
using speechssm::RingKind;
using speechssm::RingRow;

constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(kAll, value, apart);
    return value;
}

__device__ __forceinline__ float warp_largest(float value) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) value = fmaxf(value, __shfl_xor_sync(kAll, value, apart));
    return value;
}

__device__ __forceinline__ bool odd(float value) { return !(value * 0.0f == 0.0f); }

// The rings a token reads: those that were written, where there are any.
template <class R>
struct Rings {
    const R *key, *value;
    const float *key_scale, *value_scale;
};

template <class R>
__device__ __forceinline__ Rings<R> rings_of(const RingCall& c, bool written) {
    if (written)
        return {static_cast<const R*>(c.key_out), static_cast<const R*>(c.value_out), c.key_scale_out, c.value_scale_out};
    return {static_cast<const R*>(c.key_in), static_cast<const R*>(c.value_in), c.key_scale_in, c.value_scale_in};
}

__device__ __forceinline__ int warp_index() { return threadIdx.x / 32; }
__device__ __forceinline__ int lane_index() { return threadIdx.x % 32; }

__device__ __forceinline__ void report(const RingCall& c, int b, bool wrong) {
    if (wrong && c.check) c.check[b] = NAN;  // several threads may; they write the same
}

template <class N>
__device__ void copy_head(const RingCall& c, const N* from, N* to, int slot, int g, int size) {
    if (from == to || slot < 0) return;
    for (int s = warp_index(); s < c.window; s += blockDim.x / 32) {
        const std::int64_t at = speechssm::ring_at(c, slot, s, g) * size;
        for (int i = lane_index(); i < size; i += 32) memcpy(to + at + i, from + at + i, sizeof(N));  // bit for bit
    }
}

template <class R>
__device__ void hand_on(const RingCall& c, int slot, int g) {
    copy_head(c, static_cast<const R*>(c.key_in), static_cast<R*>(c.key_out), slot, g, c.head_dim);
    copy_head(c, static_cast<const R*>(c.value_in), static_cast<R*>(c.value_out), slot, g, c.head_dim);
    if (!RingKind<R>::scaled) return;
    copy_head(c, c.key_scale_in, c.key_scale_out, slot, g, 1);
    copy_head(c, c.value_scale_in, c.value_scale_out, slot, g, 1);
}

// One head's vector into its ring by one warp; see append_body for the arithmetic.
template <class T, class R>
__device__ void append_warp(const T* from, R* to, float* scale, int dim) {
    const int lane = lane_index();
    float by = 1.0f;
    if constexpr (RingKind<R>::scaled) {
        float largest = 0.0f;
        for (int i = lane; i < dim; i += 32) largest = speechssm::larger_magnitude(largest, speechssm::read(from[i]));
#pragma unroll
        for (int apart = 16; apart > 0; apart /= 2)
            largest = speechssm::larger_magnitude(largest, __shfl_xor_sync(kAll, largest, apart));
        by = speechssm::int8_scale(largest);
        if (lane == 0) *scale = by;
    }
    for (int i = lane; i < dim; i += 32) {
        if constexpr (RingKind<R>::scaled)
            to[i].number = speechssm::as_int8(speechssm::read(from[i]), by);
        else
            speechssm::write(to + i, speechssm::read(from[i]));
    }
}

template <class T, class R>
__device__ void append(const RingCall& c, const T* k, const T* v, int slot, int g, std::int64_t position) {
    const std::int64_t here = speechssm::ring_at(c, slot, position % c.window, g);
    float* scales[] = {RingKind<R>::scaled ? c.key_scale_out + here : nullptr,
                       RingKind<R>::scaled ? c.value_scale_out + here : nullptr};
    if (warp_index() == 0) append_warp(k, static_cast<R*>(c.key_out) + here * c.head_dim, scales[0], c.head_dim);
    if (warp_index() == 1) append_warp(v, static_cast<R*>(c.value_out) + here * c.head_dim, scales[1], c.head_dim);
}

// Where row b's vectors of token t are.
template <class T>
struct Vectors {
    const T *q, *k, *v;
    T* y;
    __device__ Vectors(const RingCall& c, int t, int b, int g) {
        const std::int64_t at = speechssm::vector_at(c, t, b);
        const std::int64_t head = static_cast<std::int64_t>(g) * (c.heads / c.kv_heads);
        q = static_cast<const T*>(c.q) + (at * c.heads + head) * c.head_dim;
        y = static_cast<T*>(c.y) + (at * c.heads + head) * c.head_dim;
        k = static_cast<const T*>(c.k) + (at * c.kv_heads + g) * c.head_dim;
        v = static_cast<const T*>(c.v) + (at * c.kv_heads + g) * c.head_dim;
    }
};

template <class T>
__device__ void clear(const RingCall& c, T* y) {
    const int count = c.heads / c.kv_heads * c.head_dim;
    for (int i = threadIdx.x; i < count; i += blockDim.x) speechssm::write(y + i, 0.0f);
}

// Version 2 (ring_step.cu) reads rings four numbers at a time.
template <class R>
bool fits_step(const RingCall& c) {
    constexpr std::size_t four = 4 * sizeof(R);
    return c.head_dim % 4 == 0 && aligned(c.key_in, four) && aligned(c.value_in, four);
}

template <class T, class R>
std::int32_t ring_step(const RingCall& c, cudaStream_t stream);

}  // namespace speechssm_cuda
