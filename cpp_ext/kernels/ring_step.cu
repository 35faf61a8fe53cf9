/*
Version 2 of the attention ring: steps. Numbers go from the ring to registers, and each is read once for up to
five query heads.

A warp owns G query heads of one key/value head and some of the slots. A lane holds four neighbouring numbers of a
key or a value, 128 apart, so that a warp reads whole lines. U keys at a time: every lane has G*U partial products, and
five exchanges leave lane i with the i-th whole one. Then come the softmax, online, and the values of the same U
slots, whose loads began with the keys'.

The warps of a block share its slots, and join what they found in shared memory. `pieces` blocks share the slots of a
head where a workspace is given: few rows still fill the device. A second kernel joins pieces and appends.

What bounds it: w g k numbers of each ring once, against 2 w h k multiply-adds. With ten heads to a float16 ring both take
about as long.
*/
#include "ring_parts.cuh"
#include "wide.cuh"

namespace speechssm_cuda {

namespace {

constexpr int kWarps = 8;
constexpr float kNothing = -3.0e38f;  // largest score of no keys: finite, so that it joins with weight nothing

__device__ __forceinline__ float read_any(const void* from, std::int32_t dtype, std::int64_t i) {
    switch (dtype) {
        case SPEECHSSM_F32: return static_cast<const float*>(from)[i];
        case SPEECHSSM_F16: return speechssm::read(static_cast<const speechssm::Half*>(from)[i]);
        default: return speechssm::read(static_cast<const speechssm::BFloat16*>(from)[i]);
    }
}

__device__ __forceinline__ void write_any(void* to, std::int32_t dtype, std::int64_t i, float value) {
    switch (dtype) {
        case SPEECHSSM_F32: static_cast<float*>(to)[i] = value; break;
        case SPEECHSSM_F16: speechssm::write(static_cast<speechssm::Half*>(to) + i, value); break;
        default: speechssm::write(static_cast<speechssm::BFloat16*>(to) + i, value);
    }
}

// Numbers i .. i + 3 of a vector, as they are kept; of a lane past its end, some that are there.
template <class R>
__device__ __forceinline__ Wide<R, 4> load_four(const R* vector, int i, int dim) {
    return load_wide<R, 4>(vector, i < dim ? i : 0);
}

// Sums `part` over the warp; lane i gets the i-th sum. P is at most 32.
template <int P>
__device__ __forceinline__ float sum_to_lanes(const float (&part)[P]) {
    float held[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const float low = i < P ? part[i < P ? i : 0] : 0.0f;
        const float high = i + 16 < P ? part[i + 16 < P ? i + 16 : 0] : 0.0f;
        const bool upper = lane_index() & 16;
        held[i] = (upper ? high : low) + __shfl_xor_sync(kAll, upper ? low : high, 16);
    }
#pragma unroll
    for (int half = 8; half > 0; half /= 2) {
        const bool upper = lane_index() & half;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (i >= half) continue;
            const float low = held[i], high = held[i + half];
            held[i] = (upper ? high : low) + __shfl_xor_sync(kAll, upper ? low : high, half);
        }
    }
    return held[0];
}

__device__ __forceinline__ float* piece_at(const RingCall& c, int b, int h, int piece) {
    return static_cast<float*>(c.workspace) +
           ((static_cast<std::int64_t>(b) * c.heads + h) * c.pieces + piece) * (c.head_dim + 2);
}

// What a warp knows of G heads: sums of weighted values over the lane's numbers, weights, largest scores.
template <int G, int V>
struct Found {
    float sum[G][V][4];
    float weight[G];
    float largest[G];
};

// The numbers of a head that a lane holds, one by one: f(index in the head, j, n).
template <int V, class F>
__device__ __forceinline__ void each_number(int dim, F f) {
#pragma unroll
    for (int j = 0; j < V; ++j)
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const int i = 128 * j + 4 * lane_index() + n;
            if (i < dim) f(i, j, n);
        }
}

// Slots first + U*own, in steps of U*others, below end. Returns whether a score was not finite.
template <class R, int G, int V, int U>
__device__ bool walk(const RingCall& c, int slot, int g, int first, int end, int own, int others,
                     const float (&query)[G][V][4], float* weights, Found<G, V>& found) {
    constexpr int P = G * U;
    const int lane = lane_index(), dim = c.head_dim, u_mine = lane % U;
    const R* const keys = static_cast<const R*>(c.key_in);
    const R* const values = static_cast<const R*>(c.value_in);
    float largest = kNothing, whole = 0.0f;
    bool wrong = false;
    for (int s = first + own * U; s < end; s += others * U) {
        const int count = end - s < U ? end - s : U;
        // Loads first and together, read later: a conversion between them would wait for each.
        Wide<R, 4> key[U][V], value[U][V];
#pragma unroll
        for (int u = 0; u < U; ++u) {
            const std::int64_t at = speechssm::ring_at(c, slot, s + (u < count ? u : 0), g) * dim;
#pragma unroll
            for (int j = 0; j < V; ++j) key[u][j] = load_four(keys + at, 128 * j + 4 * lane, dim);
        }
#pragma unroll
        for (int u = 0; u < U; ++u) {
            const std::int64_t at = speechssm::ring_at(c, slot, s + (u < count ? u : 0), g) * dim;
#pragma unroll
            for (int j = 0; j < V; ++j) value[u][j] = load_four(values + at, 128 * j + 4 * lane, dim);
        }
        float part[P];
#pragma unroll
        for (int u = 0; u < U; ++u) {
            float number[V][4];
#pragma unroll
            for (int j = 0; j < V; ++j)
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const float read = speechssm::read(key[u][j].value[n]);
                    number[j][n] = 128 * j + 4 * lane < dim ? read : 0.0f;  // a lane past the end scores nothing
                }
#pragma unroll
            for (int h = 0; h < G; ++h) {
                float sum = 0.0f;
#pragma unroll
                for (int j = 0; j < V; ++j)
#pragma unroll
                    for (int n = 0; n < 4; ++n) sum = fmaf(query[h][j][n], number[j][n], sum);
                part[h * U + u] = sum;
            }
        }
        float score = sum_to_lanes(part);
        const bool mine = lane < P && u_mine < count;
        const std::int64_t here = speechssm::ring_at(c, slot, s + (u_mine < count ? u_mine : 0), g);
        if (RingKind<R>::scaled && mine) score *= c.key_scale_in[here];
        wrong = wrong || (mine && odd(score));
        float most = mine ? fmaxf(largest, score) : largest;
#pragma unroll
        for (int apart = 1; apart < U; apart *= 2) most = fmaxf(most, __shfl_xor_sync(kAll, most, apart));
        const float factor = speechssm::exp_of_negative(largest - most);
        float weight = mine ? speechssm::exp_of_negative(score - most) : 0.0f;
        largest = most;
        whole = fmaf(whole, factor, weight);
        if (RingKind<R>::scaled && mine) weight *= c.value_scale_in[here];
        weights[lane] = weight;
        if (__any_sync(kAll, factor != 1.0f)) {
#pragma unroll
            for (int h = 0; h < G; ++h) {
                const float by = __shfl_sync(kAll, factor, h * U);
#pragma unroll
                for (int j = 0; j < V; ++j)
#pragma unroll
                    for (int n = 0; n < 4; ++n) found.sum[h][j][n] *= by;
            }
        }
        __syncwarp();
#pragma unroll
        for (int u = 0; u < U; ++u) {
            if (u >= count) continue;  // its loads were of another slot
            float number[V][4];
#pragma unroll
            for (int j = 0; j < V; ++j)
#pragma unroll
                for (int n = 0; n < 4; ++n) number[j][n] = speechssm::read(value[u][j].value[n]);
#pragma unroll
            for (int h = 0; h < G; ++h) {
                const float w = weights[h * U + u];
#pragma unroll
                for (int j = 0; j < V; ++j)
#pragma unroll
                    for (int n = 0; n < 4; ++n) found.sum[h][j][n] = fmaf(w, number[j][n], found.sum[h][j][n]);
            }
        }
        __syncwarp();
    }
#pragma unroll
    for (int apart = 1; apart < U; apart *= 2) whole += __shfl_xor_sync(kAll, whole, apart);
#pragma unroll
    for (int h = 0; h < G; ++h) {
        found.weight[h] = __shfl_sync(kAll, whole, h * U);
        found.largest[h] = __shfl_sync(kAll, largest, h * U);
    }
    return wrong;
}

// Head h of `found` joined with sums (dim), a weight and a largest score.
template <int G, int V>
__device__ __forceinline__ void join(Found<G, V>& found, int h, const float* other, int dim) {
    const float most = fmaxf(found.largest[h], other[dim + 1]);
    const float mine = speechssm::exp_of_negative(found.largest[h] - most);
    const float theirs = speechssm::exp_of_negative(other[dim + 1] - most);
    found.largest[h] = most;
    found.weight[h] = fmaf(found.weight[h], mine, other[dim] * theirs);
    each_number<V>(dim, [&](int i, int j, int n) {
        found.sum[h][j][n] = fmaf(found.sum[h][j][n], mine, other[i] * theirs);
    });
}

template <int G, int V>
__device__ __forceinline__ void put(const Found<G, V>& found, int h, float* to, int dim) {
    each_number<V>(dim, [&](int i, int j, int n) { to[i] = found.sum[h][j][n]; });
    if (lane_index() == 0) {
        to[dim] = found.weight[h];
        to[dim + 1] = found.largest[h];
    }
}

// The token itself, and y of one head. Returns whether anything was not finite.
template <int G, int V>
__device__ bool finish(const RingCall& c, int b, int g, int head, int h, const float (&query)[V][4], const Found<G, V>& found) {
    const int dim = c.head_dim;
    const std::int64_t at = speechssm::vector_at(c, 0, b);
    const std::int64_t own = (at * c.kv_heads + g) * dim, out = (at * c.heads + head) * dim;
    float score = 0.0f;
    bool wrong = false;
    each_number<V>(dim, [&](int i, int j, int n) {
        const float key = read_any(c.k, c.dtype, own + i);
        score = fmaf(query[j][n], key, score);
        wrong = wrong || odd(key);
    });
    score = warp_sum(score);
    const float most = fmaxf(found.largest[h], score);
    const float past = speechssm::exp_of_negative(found.largest[h] - most), now = speechssm::exp_of_negative(score - most);
    const float whole = fmaf(found.weight[h], past, now);
    each_number<V>(dim, [&](int i, int j, int n) {
        const float value = read_any(c.v, c.dtype, own + i);
        const float y = fmaf(found.sum[h][j][n], past, now * value) / whole;
        write_any(c.y, c.dtype, out + i, y);
        wrong = wrong || odd(value) || odd(y);
    });
    return wrong || odd(score);
}

template <int V>
__device__ __forceinline__ void load_query(const RingCall& c, int b, int head, float (&query)[V][4]) {
    const std::int64_t from = (speechssm::vector_at(c, 0, b) * c.heads + head) * c.head_dim;
#pragma unroll
    for (int j = 0; j < V; ++j)
#pragma unroll
        for (int n = 0; n < 4; ++n) query[j][n] = 0.0f;
    each_number<V>(c.head_dim, [&](int i, int j, int n) { query[j][n] = read_any(c.q, c.dtype, from + i); });
}

// Blocks: (key/value head, set of `sets` runs of G heads; row; piece). A block has kWarps / sets warps to a run of heads.
template <class R, int G, int V, int U>
__global__ void __launch_bounds__(32 * kWarps, 1) ring_2(const RingCall c, const int sets) {
    extern __shared__ float shared[];  // 32 weights to a warp, then what warps join
    const int group = c.heads / c.kv_heads, dim = c.head_dim, blocks = group / G / sets;
    const int g = blockIdx.x / blocks, set = warp_index() % sets, own = warp_index() / sets, others = kWarps / sets;
    const int head = g * group + (blockIdx.x % blocks * sets + set) * G;
    float* const weights = shared + 32 * warp_index();
    float* const joined = shared + 32 * kWarps + set * G * (dim + 2);
    for (int b = blockIdx.y; b < c.rows; b += gridDim.y) {
        const RingRow row = speechssm::ring_row_of(c, b);
        if (row.length == 0) continue;  // the whole block
        const int filled = speechssm::filled_at(c, row.position), units = (filled + U - 1) / U;
        const int each = (units + gridDim.z - 1) / gridDim.z * U, first = blockIdx.z * each;
        const int end = first + each < filled ? first + each : filled;
        float query[G][V][4];
        Found<G, V> found;
#pragma unroll
        for (int h = 0; h < G; ++h) {
            load_query<V>(c, b, head + h, query[h]);
#pragma unroll
            for (int j = 0; j < V; ++j)
#pragma unroll
                for (int n = 0; n < 4; ++n) found.sum[h][j][n] = 0.0f;
        }
        bool wrong = walk<R, G, V, U>(c, row.slot, g, first, end, own, others, query, weights, found);
        for (int other = others - 1; other > 0; --other) {
            if (own == other)
#pragma unroll
                for (int h = 0; h < G; ++h) put(found, h, joined + h * (dim + 2), dim);
            __syncthreads();
            if (own == 0)
#pragma unroll
                for (int h = 0; h < G; ++h) join(found, h, joined + h * (dim + 2), dim);
            __syncthreads();
        }
        if (own == 0) {
#pragma unroll
            for (int h = 0; h < G; ++h) {
                if (gridDim.z > 1)
                    put(found, h, piece_at(c, b, head + h, blockIdx.z), dim);
                else
                    wrong = finish(c, b, g, head + h, h, query[h], found) || wrong;
            }
        }
        report(c, b, wrong);
    }
}

constexpr int kLastVectors = SPEECHSSM_RING_HEAD_DIM / 128;

// A block to a row's key/value head: rings handed on, pieces joined a warp to a query head, then the append.
template <class T, class R>
__global__ void __launch_bounds__(32 * kWarps, 1) ring_2_last(const RingCall c) {
    const int g = blockIdx.x, group = c.heads / c.kv_heads, dim = c.head_dim;
    for (int b = blockIdx.y; b < c.rows; b += gridDim.y) {
        const RingRow row = speechssm::ring_row_of(c, b);
        const Vectors<T> at(c, 0, b, g);
        if (c.key_out) hand_on<R>(c, row.slot, g);
        if (row.length == 0) {
            clear(c, at.y);
            continue;
        }
        for (int h = warp_index(); c.pieces > 1 && h < group; h += kWarps) {
            const int head = g * group + h;
            float query[kLastVectors][4];
            load_query<kLastVectors>(c, b, head, query);
            Found<1, kLastVectors> found{};
            const float* const first = piece_at(c, b, head, 0);
            float most = kNothing;
            for (int piece = lane_index(); piece < c.pieces; piece += 32) most = fmaxf(most, first[piece * (dim + 2) + dim + 1]);
            found.largest[0] = most = warp_largest(most);
#pragma unroll 2
            for (int piece = 0; piece < c.pieces; ++piece) {
                const float* const other = first + piece * (dim + 2);
                const float theirs = speechssm::exp_of_negative(other[dim + 1] - most);
                found.weight[0] = fmaf(other[dim], theirs, found.weight[0]);
                each_number<kLastVectors>(dim, [&](int i, int j, int n) {
                    found.sum[0][j][n] = fmaf(other[i], theirs, found.sum[0][j][n]);
                });
            }
            report(c, b, finish(c, b, g, head, 0, query, found));
        }
        __syncthreads();
        if (c.key_out) append<T, R>(c, at.k, at.v, row.slot, g, row.position);
        __syncthreads();
    }
}

template <class R, int G, int V, int U>
std::int32_t pieces(const RingCall& c, cudaStream_t stream) {
    const int runs = c.heads / c.kv_heads / G;
    // Runs of heads in one block read a slot at about one time, and find it in the cache. A lone block spreads its slots.
    int sets = runs % 8 == 0 ? 8 : runs % 4 == 0 ? 4 : runs % 2 == 0 ? 2 : 1;
    if (c.rows * c.kv_heads < 64 && c.pieces < 2) sets = 1;
    while (sets * G * (c.head_dim + 2) * sizeof(float) > 44 * 1024) sets /= 2;
    const dim3 grid(static_cast<unsigned>(c.kv_heads * (runs / sets)), static_cast<unsigned>(c.rows < 65535 ? c.rows : 65535),
                    static_cast<unsigned>(c.pieces > 1 ? c.pieces : 1));
    const std::size_t bytes = (32 * kWarps + static_cast<std::size_t>(sets) * G * (c.head_dim + 2)) * sizeof(float);
    ring_2<R, G, V, U><<<grid, 32 * kWarps, bytes, stream>>>(c, sets);
    return launched();
}

template <class R>
std::int32_t pieces_of(const RingCall& c, cudaStream_t stream) {
    const int group = c.heads / c.kv_heads;
    if (c.head_dim > 256) return pieces<R, 1, 4, 4>(c, stream);
    if (group % 5 == 0) return pieces<R, 5, 2, 4>(c, stream);
    if (group % 4 == 0) return pieces<R, 4, 2, 4>(c, stream);
    return pieces<R, 1, 2, 8>(c, stream);
}

}  // namespace

template <class T, class R>
std::int32_t ring_step(const RingCall& c, cudaStream_t stream) {
    const std::int32_t status = pieces_of<R>(c, stream);
    if (status != SPEECHSSM_OK) return status;
    const dim3 grid(static_cast<unsigned>(c.kv_heads), static_cast<unsigned>(c.rows < 65535 ? c.rows : 65535));
    ring_2_last<T, R><<<grid, 32 * kWarps, 0, stream>>>(c);
    return launched();
}

template std::int32_t ring_step<float, float>(const RingCall&, cudaStream_t);
template std::int32_t ring_step<float, speechssm::Half>(const RingCall&, cudaStream_t);
template std::int32_t ring_step<float, speechssm::BFloat16>(const RingCall&, cudaStream_t);
template std::int32_t ring_step<float, speechssm::Int8>(const RingCall&, cudaStream_t);
template std::int32_t ring_step<speechssm::Half, speechssm::Half>(const RingCall&, cudaStream_t);
template std::int32_t ring_step<speechssm::Half, speechssm::Int8>(const RingCall&, cudaStream_t);
template std::int32_t ring_step<speechssm::BFloat16, speechssm::BFloat16>(const RingCall&, cudaStream_t);
template std::int32_t ring_step<speechssm::BFloat16, speechssm::Int8>(const RingCall&, cudaStream_t);

}  // namespace speechssm_cuda
