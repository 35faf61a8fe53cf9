/*
Attention over the ring: each row of a step, or of a chunk token by token; then the append.

Fewest bytes: the filled slots of both rings, once. A step of w filled slots, g key/value heads of k and rings
of n bytes a number moves 2 w g k n bytes a row; queries and results are w times smaller.

A block owns one key/value head of one row: tiles of 32 keys, or 16 or 8 long ones, then their values, come into shared
memory once for all query heads of the group; a warp owns a query head. A lane scores one key (tiles are
padded by one float, so 32 keys lie in 32 banks) and then sums every 32nd number of the values. The softmax
runs online, as on the host.

version 1: one block walks all slots, and the tokens of a chunk. No workspace.
version 2: steps only. `pieces` blocks share the slots of a head, and a second kernel joins what they found
           and appends: few rows still fill the device.
The host reference is speechssm_ring_host.
*/
#include "launch.cuh"
#include "speechssm/ring.hpp"

namespace speechssm_cuda {

using speechssm::RingCall;
using speechssm::RingKind;
using speechssm::RingRow;

constexpr int kMostHeads = 16;                          // warps to a block
constexpr int kSums = SPEECHSSM_RING_HEAD_DIM / 32;     // numbers of a value to a lane
constexpr int kSharedFloats = 48 * 1024 / 4;            // what a block has without asking
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

// What a lane of a query head's warp holds.
struct Partial {
    float largest;
    float weight;  // of the keys this lane scored
    float sum[kSums];
};

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

// Shared memory of a block: queries of its heads, then a tile.
__device__ __forceinline__ int warp_index() { return threadIdx.x / 32; }
__device__ __forceinline__ int lane_index() { return threadIdx.x % 32; }

template <class R>
__device__ void load_tile(const RingCall& c, const R* ring, int slot, int g, int first, int count, float* tile) {
    const int warps = blockDim.x / 32, dim = c.head_dim;
    for (int s = warp_index(); s < count; s += warps) {
        const R* from = ring + speechssm::ring_at(c, slot, first + s, g) * dim;
        for (int i = lane_index(); i < dim; i += 32) tile[s * (dim + 1) + i] = speechssm::read(from[i]);
    }
}

// Slots first .. end - 1 of one head of one row. Every thread of the block calls it; `mine` says whether the
// warp has a query head. Returns whether a score was not finite.
template <class R>
__device__ bool walk(const RingCall& c, const Rings<R>& rings, int slot, int g, int first, int end, const float* query,
                     float* tile, int tile_slots, bool mine, Partial& p) {
    const int lane = lane_index(), dim = c.head_dim;
    bool wrong = false;
    for (int s = first; s < end; s += tile_slots) {
        const int count = end - s < tile_slots ? end - s : tile_slots;
        __syncthreads();
        load_tile(c, rings.key, slot, g, s, count, tile);
        __syncthreads();
        float weight = 0.0f;
        if (mine) {
            float score = -INFINITY;
            if (lane < count) {
                float even = 0.0f, uneven = 0.0f;  // two chains
                const float* key = tile + lane * (dim + 1);
                int i = 0;
                for (; i + 1 < dim; i += 2) {
                    even = fmaf(query[i], key[i], even);
                    uneven = fmaf(query[i + 1], key[i + 1], uneven);
                }
                if (i < dim) even = fmaf(query[i], key[i], even);
                score = even + uneven;
                if (RingKind<R>::scaled) score *= rings.key_scale[speechssm::ring_at(c, slot, s + lane, g)];
                wrong = wrong || odd(score);
            }
            const float largest = fmaxf(p.largest, warp_largest(score));
            const float factor = speechssm::exp_of_negative(p.largest - largest);
            if (lane < count) weight = speechssm::exp_of_negative(score - largest);
            p.largest = largest;
            p.weight = fmaf(p.weight, factor, weight);
#pragma unroll
            for (int j = 0; j < kSums; ++j) p.sum[j] *= factor;
            if (RingKind<R>::scaled && lane < count) weight *= rings.value_scale[speechssm::ring_at(c, slot, s + lane, g)];
        }
        __syncthreads();
        load_tile(c, rings.value, slot, g, s, count, tile);
        __syncthreads();
        if (!mine) continue;
        for (int t = 0; t < count; ++t) {
            const float w = __shfl_sync(kAll, weight, t);
            const float* value = tile + t * (dim + 1);
#pragma unroll
            for (int j = 0; j < kSums; ++j)
                if (lane + 32 * j < dim) p.sum[j] = fmaf(w, value[lane + 32 * j], p.sum[j]);
        }
    }
    return wrong;
}

// The token itself: its score and value, with weight 1 in lane 0.
template <class T>
__device__ bool start_with_self(const RingCall& c, const float* query, const T* k, const T* v, Partial& p) {
    const int lane = lane_index(), dim = c.head_dim;
    float score = 0.0f;
    bool wrong = false;
#pragma unroll
    for (int j = 0; j < kSums; ++j) {
        const int i = lane + 32 * j;
        p.sum[j] = 0.0f;
        if (i >= dim) continue;
        const float key = speechssm::read(k[i]);
        p.sum[j] = speechssm::read(v[i]);
        score = fmaf(query[i], key, score);
        wrong = wrong || odd(key) || odd(p.sum[j]);
    }
    p.largest = warp_sum(score);
    p.weight = lane == 0 ? 1.0f : 0.0f;
    return wrong || odd(p.largest);
}

template <class T>
__device__ bool finish(const RingCall& c, const Partial& p, T* y) {
    const float whole = warp_sum(p.weight);
    bool wrong = false;
#pragma unroll
    for (int j = 0; j < kSums; ++j) {
        const int i = lane_index() + 32 * j;
        if (i >= c.head_dim) continue;
        const float out = p.sum[j] / whole;
        speechssm::write(y + i, out);
        wrong = wrong || odd(out);
    }
    return wrong;
}

__device__ __forceinline__ void report(const RingCall& c, int b, bool wrong) {
    if (wrong && c.check) c.check[b] = NAN;  // several threads may; they write the same
}

template <class T>
__device__ void load_queries(const RingCall& c, const T* q, int heads, float* query) {
    for (int i = threadIdx.x; i < heads * c.head_dim; i += blockDim.x) query[i] = speechssm::read(q[i]);
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

__global__ void ring_start(const RingCall c) {
    const int b = blockIdx.x * blockDim.x + threadIdx.x;
    if (b < c.rows) c.check[b] = 0.0f;
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

template <class T, class R>
__global__ void __launch_bounds__(32 * kMostHeads, 1) ring_1(const RingCall c, const int tile_slots) {
    extern __shared__ float shared[];
    const int g = blockIdx.x, group = c.heads / c.kv_heads, dim = c.head_dim;
    const int warps = blockDim.x / 32, most = group < warps ? group : warps;
    float* tile = shared + most * dim;
    const bool appends = c.key_out != nullptr;
    for (int b = blockIdx.y; b < c.rows; b += gridDim.y) {
        const RingRow row = speechssm::ring_row_of(c, b);
        if (appends) hand_on<R>(c, row.slot, g);
        const Rings<R> rings = rings_of<R>(c, appends);
        __syncthreads();
        for (int t = 0; t < c.tokens; ++t) {
            const Vectors<T> at(c, t, b, g);
            if (t >= row.length) {
                clear(c, at.y);
                continue;
            }
            const std::int64_t position = row.position + t;
            for (int h = 0; h < group; h += warps) {
                const int heads = group - h < warps ? group - h : warps;
                const bool mine = warp_index() < heads;
                __syncthreads();  // the last pass is done with the queries
                load_queries(c, at.q + static_cast<std::int64_t>(h) * dim, heads, shared);
                __syncthreads();
                const float* query = shared + warp_index() * dim;
                Partial p;
                bool wrong = false;
                if (mine) wrong = start_with_self(c, query, at.k, at.v, p);
                const bool scores = walk(c, rings, row.slot, g, 0, speechssm::filled_at(c, position), query, tile, tile_slots, mine, p);
                if (mine) wrong = finish(c, p, at.y + static_cast<std::int64_t>(h + warp_index()) * dim) || wrong || scores;
                report(c, b, wrong);
            }
            if (!appends) continue;
            __syncthreads();  // every warp has read the oldest slot
            append<T, R>(c, at.k, at.v, row.slot, g, position);
            __syncthreads();
        }
    }
}

__device__ __forceinline__ float* piece_at(const RingCall& c, int b, int h, int piece) {
    return static_cast<float*>(c.workspace) + ((static_cast<std::int64_t>(b) * c.heads + h) * c.pieces + piece) * (c.head_dim + 2);
}

template <class T, class R>
__global__ void __launch_bounds__(32 * kMostHeads, 1) ring_2_piece(const RingCall c, const int tile_slots) {
    extern __shared__ float shared[];
    const int g = blockIdx.x, group = c.heads / c.kv_heads, dim = c.head_dim;
    const int warps = blockDim.x / 32, most = group < warps ? group : warps;
    float* tile = shared + most * dim;
    for (int b = blockIdx.y; b < c.rows; b += gridDim.y) {
        const RingRow row = speechssm::ring_row_of(c, b);
        if (row.length == 0) continue;
        const Vectors<T> at(c, 0, b, g);
        const int tiles = (speechssm::filled_at(c, row.position) + tile_slots - 1) / tile_slots;
        const int each = (tiles + c.pieces - 1) / c.pieces * tile_slots, filled = speechssm::filled_at(c, row.position);
        const int first = blockIdx.z * each, end = first + each < filled ? first + each : filled;
        for (int h = 0; h < group; h += warps) {
            const int heads = group - h < warps ? group - h : warps;
            const bool mine = warp_index() < heads;
            __syncthreads();
            load_queries(c, at.q + static_cast<std::int64_t>(h) * dim, heads, shared);
            __syncthreads();
            Partial p;
            p.largest = -3.0e38f;  // finite: an empty piece joins with weight nothing
            p.weight = 0.0f;
#pragma unroll
            for (int j = 0; j < kSums; ++j) p.sum[j] = 0.0f;
            const bool wrong = walk(c, rings_of<R>(c, false), row.slot, g, first, end, shared + warp_index() * dim, tile, tile_slots, mine, p);
            if (!mine) continue;
            float* out = piece_at(c, b, g * group + h + warp_index(), blockIdx.z);
            const float whole = warp_sum(p.weight);
#pragma unroll
            for (int j = 0; j < kSums; ++j)
                if (lane_index() + 32 * j < dim) out[lane_index() + 32 * j] = p.sum[j];
            if (lane_index() == 0) {
                out[dim] = whole;
                out[dim + 1] = p.largest;
            }
            report(c, b, wrong);
        }
    }
}

template <class T, class R>
__global__ void __launch_bounds__(32 * kMostHeads, 1) ring_2_join(const RingCall c) {
    extern __shared__ float shared[];
    const int g = blockIdx.x, group = c.heads / c.kv_heads, dim = c.head_dim, warps = blockDim.x / 32;
    for (int b = blockIdx.y; b < c.rows; b += gridDim.y) {
        const RingRow row = speechssm::ring_row_of(c, b);
        const Vectors<T> at(c, 0, b, g);
        if (c.key_out) hand_on<R>(c, row.slot, g);
        if (row.length == 0) {
            clear(c, at.y);
            continue;
        }
        for (int h = 0; h < group; h += warps) {
            const int heads = group - h < warps ? group - h : warps;
            __syncthreads();
            load_queries(c, at.q + static_cast<std::int64_t>(h) * dim, heads, shared);
            __syncthreads();
            if (warp_index() >= heads) continue;
            Partial p;
            bool wrong = start_with_self(c, shared + warp_index() * dim, at.k, at.v, p);
            for (int piece = 0; piece < c.pieces; ++piece) {
                const float* found = piece_at(c, b, g * group + h + warp_index(), piece);
                const float largest = fmaxf(p.largest, found[dim + 1]);
                const float mine = speechssm::exp_of_negative(p.largest - largest);
                const float theirs = speechssm::exp_of_negative(found[dim + 1] - largest);
                p.largest = largest;
                p.weight = fmaf(p.weight, mine, lane_index() == 0 ? found[dim] * theirs : 0.0f);
#pragma unroll
                for (int j = 0; j < kSums; ++j)
                    if (lane_index() + 32 * j < dim) p.sum[j] = fmaf(p.sum[j], mine, found[lane_index() + 32 * j] * theirs);
            }
            wrong = finish(c, p, at.y + static_cast<std::int64_t>(h + warp_index()) * dim) || wrong;
            report(c, b, wrong);
        }
        __syncthreads();
        if (c.key_out) append<T, R>(c, at.k, at.v, row.slot, g, row.position);
        __syncthreads();
    }
}

struct Launch {
    dim3 grid;
    unsigned threads;
    int tile_slots;
    std::size_t shared_bytes;
};

inline Launch launch_of(const RingCall& c) {
    const int group = c.heads / c.kv_heads;
    const int most = c.head_dim > 256 ? kMostHeads / 2 : kMostHeads;  // queries have to fit beside a tile
    const int warps = group < 4 ? 4 : group < most ? group : most, queries = group < warps ? group : warps;
    Launch made;
    made.grid = dim3(static_cast<unsigned>(c.kv_heads), static_cast<unsigned>(c.rows < 65535 ? c.rows : 65535));
    made.threads = static_cast<unsigned>(32 * warps);
    made.tile_slots = 32;
    while (queries * c.head_dim + made.tile_slots * (c.head_dim + 1) > kSharedFloats) made.tile_slots /= 2;  // 8 at least
    made.shared_bytes = sizeof(float) * (queries * c.head_dim + made.tile_slots * (c.head_dim + 1));
    return made;
}

template <class T, class R>
std::int32_t ring(const RingCall& c, std::int32_t version, cudaStream_t stream) {
    Launch made = launch_of(c);
    if (c.check) ring_start<<<(c.rows + 127) / 128, 128, 0, stream>>>(c);
    if (version == 1) {
        ring_1<T, R><<<made.grid, made.threads, made.shared_bytes, stream>>>(c, made.tile_slots);
        return launched();
    }
    const dim3 joined = made.grid;
    made.grid.z = static_cast<unsigned>(c.pieces);
    ring_2_piece<T, R><<<made.grid, made.threads, made.shared_bytes, stream>>>(c, made.tile_slots);
    ring_2_join<T, R><<<joined, made.threads, made.shared_bytes, stream>>>(c);
    return launched();
}

// Pairs a model can have: a float32 stream with any ring, a narrow one with its own type or int8.
template <class T, class Own>
std::int32_t narrow(const RingCall& c, std::int32_t own, std::int32_t version, cudaStream_t stream) {
    if (c.ring_dtype == own) return ring<T, Own>(c, version, stream);
    if (c.ring_dtype == SPEECHSSM_I8) return ring<T, speechssm::Int8>(c, version, stream);
    return SPEECHSSM_BAD_RING;
}

}  // namespace speechssm_cuda

extern "C" int32_t speechssm_ring_cuda(const speechssm_ring* call, int32_t version, void* stream) {
    using namespace speechssm_cuda;
    if (version < 0 || version > 2) return SPEECHSSM_NO_SUCH_VERSION;
    const std::int32_t status = speechssm::check(call);
    if (status != SPEECHSSM_OK) return status;
    const RingCall& c = *call;
    const bool pieces = c.pieces > 1 && c.tokens == 1 && c.workspace &&
                        c.workspace_bytes >= speechssm::ring_workspace_bytes(c.rows, c.heads, c.head_dim, c.pieces);
    if (version == 0) version = pieces ? 2 : 1;
    if (version == 2 && c.tokens != 1) return SPEECHSSM_NOT_A_STEP;
    if (version == 2 && !pieces) return SPEECHSSM_SMALL_WORKSPACE;
    if (c.rows == 0) return SPEECHSSM_OK;
    const cudaStream_t on = stream_of(stream);
    if (c.dtype == SPEECHSSM_F16) return narrow<speechssm::Half, speechssm::Half>(c, SPEECHSSM_F16, version, on);
    if (c.dtype == SPEECHSSM_BF16) return narrow<speechssm::BFloat16, speechssm::BFloat16>(c, SPEECHSSM_BF16, version, on);
    switch (c.ring_dtype) {
        case SPEECHSSM_F32: return ring<float, float>(c, version, on);
        case SPEECHSSM_F16: return ring<float, speechssm::Half>(c, version, on);
        case SPEECHSSM_BF16: return ring<float, speechssm::BFloat16>(c, version, on);
        default: return ring<float, speechssm::Int8>(c, version, on);
    }
}
