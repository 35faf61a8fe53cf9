/*
Attention over the ring: each row of a step, or of a chunk token by token; then the append.

Fewest bytes: the filled slots of both rings, once. A step of w filled slots, g key/value heads of k and rings
of n bytes a number moves 2 w g k n bytes a row; queries and results are w times smaller.

version 1: this file. A block owns one key/value head of one row and walks all slots, and the tokens of a chunk: tiles
           of 32 keys, or 16 or 8 long ones, then their values, come into shared memory once for all query heads of
           the group; a warp owns a query head. A lane scores one key (tiles are padded by one float, so 32 keys lie
           in 32 banks) and then sums every 32nd number of the values. The softmax runs online, as on the host.
version 2: ring_step.cu, for steps.
The host reference is speechssm_ring_host.
*/
#include "ring_parts.cuh"

namespace speechssm_cuda {

constexpr int kMostHeads = 16;                       // warps to a block
constexpr int kSums = SPEECHSSM_RING_HEAD_DIM / 32;  // numbers of a value to a lane
constexpr int kSharedFloats = 48 * 1024 / 4;         // what a block has without asking

// What a lane of a query head's warp holds.
struct Partial {
    float largest;
    float weight;  // of the keys this lane scored
    float sum[kSums];
};

// Shared memory of a block: queries of its heads, then a tile.
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

template <class T>
__device__ void load_queries(const RingCall& c, const T* q, int heads, float* query) {
    for (int i = threadIdx.x; i < heads * c.head_dim; i += blockDim.x) query[i] = speechssm::read(q[i]);
}

__global__ void ring_start(const RingCall c) {
    const int b = blockIdx.x * blockDim.x + threadIdx.x;
    if (b < c.rows) c.check[b] = 0.0f;
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
    if (c.check) ring_start<<<(c.rows + 127) / 128, 128, 0, stream>>>(c);
    if (version == 2 && fits_step<R>(c)) return ring_step<T, R>(c, stream);
    const Launch made = launch_of(c);
    ring_1<T, R><<<made.grid, made.threads, made.shared_bytes, stream>>>(c, made.tile_slots);
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
    RingCall c = *call;
    const std::int64_t needed = speechssm::ring_workspace_bytes(c.rows, c.heads, c.head_dim, c.pieces);
    const bool small = needed > 0 && (!c.workspace || c.workspace_bytes < needed);
    if (version == 0) {
        version = c.tokens == 1 ? 2 : 1;
        if (small) c.pieces = 1;
    }
    if (version == 2 && c.tokens != 1) return SPEECHSSM_NOT_A_STEP;
    if (version == 2 && c.pieces > 1 && small) return SPEECHSSM_SMALL_WORKSPACE;
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
