// Attention over the ring on a processor: rows, tokens, then keys sixteen at a time.
//
// Up to sixteen query heads share one pass over keys and values, also where they belong to several key/value heads,
// whose vectors lie side by side. A block of sixteen keys (4 KB at k = 64) is read from memory once and stays in cache
// for all heads of its own; sixteen scores come out side by side, so the exponentials need no shuffling. Everything lies on the stack: padded to whole lanes of
// sixteen, with zeros, so no loop has a tail.
#pragma once

SPEECHSSM_OPEN

constexpr int kPass = 16;    // query heads to a pass
constexpr int kBlock = 16;   // keys to a block
constexpr int kWidest = SPEECHSSM_RING_HEAD_DIM;

inline int padded(int k) { return (k + 15) / 16 * 16; }

// `count` numbers as float32, zeros up to the next sixteen.
template <class T>
inline void widen_vector(const T* from, float* to, int count) {
    int i = 0;
    for (; i + 16 <= count; i += 16) store_sixteen(to + i, widen_sixteen(from + i));
    if (i < count) {
        for (int j = i; j < count; ++j) to[j] = read(from[j]);
        for (int j = count; j < padded(count); ++j) to[j] = 0.0f;
    }
}

struct Keys {  // sixteen or fewer vectors of one block, as float32 in whole lanes
    const float* first;
    std::size_t stride;
};

// Where a block can be used as it lies, it is; otherwise it is widened into `room`.
template <class R>
inline Keys block_of(const R* from, std::size_t stride, int count, int k, float* room) {
    for (int s = 0; s < count; ++s) widen_vector(from + s * stride, room + s * padded(k), k);
    return {room, static_cast<std::size_t>(padded(k))};
}
template <>
inline Keys block_of(const float* from, std::size_t stride, int count, int k, float* room) {
    if (k % 16 == 0) return {from, stride};
    for (int s = 0; s < count; ++s) widen_vector(from + s * stride, room + s * padded(k), k);
    return {room, static_cast<std::size_t>(padded(k))};
}

// Asks for a block before it is needed: long keys are read across, sixteen lines far apart at a time, which
// no processor takes for a stream. Short ones are better left alone in a ring that a cache holds (1.76 against 1.94 ms at
// k = 64); a longer ring is asked for two blocks ahead, since every block is a page of its own. Lines past the end of the
// ring are asked for too; asking is harmless.
template <class R>
inline void ask_for(const R* from, std::size_t stride, int count) {
    const std::size_t bytes = count * sizeof(R);
    for (int s = 0; s < kBlock; ++s) {
        const char* vector = reinterpret_cast<const char*>(from) + s * stride * sizeof(R);
        for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(vector + i, 0, 2);
    }
}

constexpr std::size_t kCached = 1u << 18;  // bytes of a ring that stay in a core's cache between steps, about

// What one query head has summed so far.
struct Head {
    float query[kWidest];
    float sum[kWidest];  // of exp(score - largest) value
    Sixteen weight;      // of exp(score - largest), by lane
    float largest;
};

// N accumulators in registers over all of k.
template <int N>
inline void dots(const float* query, Keys keys, int first, int lanes, Sixteen* out) {
    Sixteen acc[N];
    for (int s = 0; s < N; ++s) acc[s] = splat<Sixteen>(0.0f);
    for (int i = 0; i < lanes; i += 16) {
        const Sixteen q = load_sixteen(query + i);
        for (int s = 0; s < N; ++s) acc[s] = fused(q, load_sixteen(keys.first + (first + s) * keys.stride + i), acc[s]);
    }
    for (int s = 0; s < N; ++s) out[first + s] = acc[s];
}

inline Sixteen scores_of(const float* query, Keys keys, int count, int lanes) {
    Sixteen acc[kBlock];
    int s = 0;
    for (; s + kTogether <= count; s += kTogether) dots<kTogether>(query, keys, s, lanes, acc);
    for (; s < count; ++s) dots<1>(query, keys, s, lanes, acc);
    for (; s < kBlock; ++s) acc[s] = splat<Sixteen>(0.0f);
    return fold_each(acc);
}

// H heads add sixteen lanes of values: each value is loaded once for all of them.
template <int H, int L>
inline void add_values(Head* heads, const float (*weight)[kBlock], Keys values, int count, int i) {
    Sixteen acc[H][L];
    for (int h = 0; h < H; ++h)
        for (int l = 0; l < L; ++l) acc[h][l] = splat<Sixteen>(0.0f);
    for (int s = 0; s < count; ++s) {
        const float* value = values.first + s * values.stride + i;
        for (int h = 0; h < H; ++h) {
            const Sixteen w = splat<Sixteen>(weight[h][s]);
            for (int l = 0; l < L; ++l) acc[h][l] = fused(w, load_sixteen(value + 16 * l), acc[h][l]);
        }
    }
    for (int h = 0; h < H; ++h)
        for (int l = 0; l < L; ++l) {
            float* sum = heads[h].sum + i + 16 * l;
            store_sixteen(sum, load_sixteen(sum) + acc[h][l]);
        }
}

template <int H>
inline void add_all_values(Head* heads, const float (*weight)[kBlock], Keys values, int count, int lanes) {
    constexpr int L = kTogether / 4;
    int i = 0;
    for (; i + 16 * L <= lanes; i += 16 * L) add_values<H, L>(heads, weight, values, count, i);
    for (; i < lanes; i += 16) add_values<H, 1>(heads, weight, values, count, i);
}

inline void scale_down(Head& head, float factor, int lanes) {
    const Sixteen f = splat<Sixteen>(factor);
    head.weight = head.weight * f;
    for (int i = 0; i < lanes; i += 16) store_sixteen(head.sum + i, load_sixteen(head.sum + i) * f);
}

template <class T, class R>
struct RingPass {
    RingPass(const RingCall& call, std::int32_t at) : c(call), slot(at) {}  // the arrays are written before they are read

    const RingCall& c;
    std::int32_t slot;
    Head heads[kPass];
    float room[kBlock * kWidest];
    float weight[kPass][kBlock];

    // The scales of one block, 0 past its end.
    Sixteen scales(const float* from, std::int64_t s, std::int32_t g, int count) const {
        float lane[16] = {};
        for (int j = 0; j < count; ++j) lane[j] = from[ring_at(c, slot, s + j, g)];
        return load_sixteen(lane);
    }

    // Query heads `first` .. `first + count - 1` at position p; their y, and what is wrong.
    float run(const T* q, const T* k, const T* v, T* y, const R* key, const R* value, const float* key_scale,
              const float* value_scale, std::int32_t first, int count, std::int64_t p) {
        const int dim = c.head_dim, lanes = padded(dim), group = c.heads / c.kv_heads;
        const std::int32_t g_first = first / group, g_end = (first + count - 1) / group + 1;
        // The heads of this pass that belong to g.
        const auto begin = [&](std::int32_t g) { return g * group < first ? 0 : g * group - first; };
        const auto end = [&](std::int32_t g) { return (g + 1) * group - first < count ? (g + 1) * group - first : count; };
        Sixteen wrong = splat<Sixteen>(0.0f);
        const Sixteen zero = splat<Sixteen>(0.0f);
        for (int h = 0; h < count; ++h) widen_vector(q + static_cast<std::int64_t>(first + h) * dim, heads[h].query, dim);
        // The token itself comes first, with weight 1.
        for (std::int32_t g = g_first; g < g_end; ++g) {
            widen_vector(k + static_cast<std::int64_t>(g) * dim, room, dim);
            for (int h = begin(g); h < end(g); ++h) {
                Sixteen acc[1];
                dots<1>(heads[h].query, Keys{room, 0}, 0, lanes, acc);
                heads[h].largest = fold(acc[0]);
                heads[h].weight = first_lanes(splat<Sixteen>(1.0f), 1);
            }
            for (int i = 0; i < lanes; i += 16) wrong = fused(load_sixteen(room + i), zero, wrong);
            widen_vector(v + static_cast<std::int64_t>(g) * dim, room, dim);
            for (int i = 0; i < lanes; i += 16) wrong = fused(load_sixteen(room + i), zero, wrong);
            for (int h = begin(g); h < end(g); ++h) {
                std::memcpy(heads[h].sum, room, lanes * sizeof(float));
                wrong = fused(splat<Sixteen>(heads[h].largest), zero, wrong);
            }
        }
        const std::int32_t filled = filled_at(c, p);
        const std::size_t stride = static_cast<std::size_t>(c.kv_heads) * dim;
        const int across = (g_end - g_first) * dim, ahead = stride * sizeof(R) * c.window > kCached ? 2 * kBlock : kBlock;
        const bool asks = ahead > kBlock || dim * sizeof(R) > 256;
        for (std::int32_t s = 0; s < filled; s += kBlock) {
            const int n = filled - s < kBlock ? filled - s : kBlock;
            const std::int64_t block = ring_at(c, slot, s, g_first) * dim;
            if (asks && s + ahead < filled) {
                ask_for(key + block + ahead * stride, stride, across);
                ask_for(value + block + ahead * stride, stride, across);
            }
            for (std::int32_t g = g_first; g < g_end; ++g) {
                const std::int64_t at = block + static_cast<std::int64_t>(g - g_first) * dim;
                const Keys keys = block_of(key + at, stride, n, dim, room);
                const Sixteen key_by = RingKind<R>::scaled ? scales(key_scale, s, g, n) : zero;
                const Sixteen value_by = RingKind<R>::scaled ? scales(value_scale, s, g, n) : zero;
                int h = begin(g);
                const int last = end(g);
                for (int i = h; i < last; ++i) wrong = wrong + weigh(heads[i], weight[i], keys, n, lanes, key_by, value_by);
                const Keys values = block_of(value + at, stride, n, dim, room);
                for (; h + 4 <= last; h += 4) add_all_values<4>(heads + h, weight + h, values, n, lanes);
                if (h + 2 <= last) {
                    add_all_values<2>(heads + h, weight + h, values, n, lanes);
                    h += 2;
                }
                if (h < last) add_all_values<1>(heads + h, weight + h, values, n, lanes);
            }
        }
        for (int h = 0; h < count; ++h) {
            const float whole = fold(heads[h].weight);
            T* to = y + static_cast<std::int64_t>(first + h) * dim;
            for (int i = 0; i < dim; ++i) {
                const float out = heads[h].sum[i] / whole;
                heads[h].sum[i] = out;
                write(to + i, out);
            }
            for (int i = 0; i < lanes; i += 16) wrong = fused(load_sixteen(heads[h].sum + i), zero, wrong);
        }
        return fold(wrong);
    }

    // Weights of one block for one head, its sums scaled to the largest score so far; returns 0 or NaN by lane.
    static Sixteen weigh(Head& head, float* weight, Keys keys, int n, int lanes, Sixteen key_by, Sixteen value_by) {
        Sixteen score = scores_of(head.query, keys, n, lanes);
        if (RingKind<R>::scaled) score = score * key_by;
        score = first_lanes(score, n);
        float lane[16], largest = head.largest;
        store_sixteen(lane, score);
        for (int j = 0; j < n; ++j) largest = lane[j] > largest ? lane[j] : largest;
        if (largest != head.largest && head.largest == head.largest) {
            scale_down(head, exp_of_negative(head.largest - largest), lanes);
            head.largest = largest;
        }
        Sixteen e = first_lanes(exp_of_negative(score - splat<Sixteen>(head.largest)), n);
        head.weight = head.weight + e;
        if (RingKind<R>::scaled) e = e * value_by;
        store_sixteen(weight, e);
        return score * splat<Sixteen>(0.0f);
    }
};

inline void hand_on(const void* from, void* to, std::size_t offset, std::size_t bytes) {
    if (to != from) std::memcpy(static_cast<char*>(to) + offset, static_cast<const char*>(from) + offset, bytes);
}

// A slot's rings as they are, where input and output are two.
template <class R>
inline void hand_on(const RingCall& c, std::int32_t slot) {
    const std::size_t numbers = static_cast<std::size_t>(ring_elements(c)), bytes = numbers * sizeof(R);
    hand_on(c.key_in, c.key_out, slot * bytes, bytes);
    hand_on(c.value_in, c.value_out, slot * bytes, bytes);
    if (!RingKind<R>::scaled) return;
    const std::size_t scales = numbers / c.head_dim * sizeof(float);
    hand_on(c.key_scale_in, c.key_scale_out, slot * scales, scales);
    hand_on(c.value_scale_in, c.value_scale_out, slot * scales, scales);
}

template <class T, class R>
inline void run_ring_row(const RingCall& c, const RingPart& part, std::int32_t b) {
    const RingRow row = ring_row_of(c, b);
    const bool appends = c.key_out != nullptr;
    if (appends && row.slot >= 0) hand_on<R>(c, row.slot);
    const R* key = static_cast<const R*>(appends ? c.key_out : c.key_in);
    const R* value = static_cast<const R*>(appends ? c.value_out : c.value_in);
    const float* key_scale = appends ? c.key_scale_out : c.key_scale_in;
    const float* value_scale = appends ? c.value_scale_out : c.value_scale_in;
    const std::int64_t wide = static_cast<std::int64_t>(c.heads) * c.head_dim, narrow = static_cast<std::int64_t>(c.kv_heads) * c.head_dim;
    const std::int32_t group = c.heads / c.kv_heads, step = group < kPass ? kPass / group * group : kPass;
    RingPass<T, R> pass(c, row.slot);
    float wrong = 0.0f;
    for (std::int32_t t = 0; t < c.tokens; ++t) {
        const std::int64_t at = vector_at(c, t, b), p = row.position + t;
        T* y = static_cast<T*>(c.y) + at * wide;
        if (t >= row.length) {
            const std::int64_t dim = c.head_dim;
            std::memset(y + part.first_head * dim, 0, (part.end_head - part.first_head) * dim * sizeof(T));
            continue;
        }
        const T *q = static_cast<const T*>(c.q) + at * wide, *k = static_cast<const T*>(c.k) + at * narrow,
                *v = static_cast<const T*>(c.v) + at * narrow;
        for (std::int32_t h = part.first_head; h < part.end_head; h += step)
            wrong += pass.run(q, k, v, y, key, value, key_scale, value_scale, h,
                              part.end_head - h < step ? part.end_head - h : step, p);
        if (!appends) continue;
        for (std::int32_t g = 0; g < c.kv_heads; ++g) {
            const std::int64_t here = ring_at(c, row.slot, p % c.window, g);
            append_body(k + g * c.head_dim, static_cast<R*>(c.key_out) + here * c.head_dim,
                        RingKind<R>::scaled ? c.key_scale_out + here : nullptr, c.head_dim);
            append_body(v + g * c.head_dim, static_cast<R*>(c.value_out) + here * c.head_dim,
                        RingKind<R>::scaled ? c.value_scale_out + here : nullptr, c.head_dim);
        }
    }
    if (part.check) part.check[b] = wrong;
}

template <class T>
inline void run_ring_rows(const RingCall& c, const RingPart& part) {
    for (std::int32_t b = part.first_row; b < part.end_row; ++b) {
        switch (c.ring_dtype) {
            case SPEECHSSM_F32: run_ring_row<T, float>(c, part, b); break;
            case SPEECHSSM_F16: run_ring_row<T, Half>(c, part, b); break;
            case SPEECHSSM_BF16: run_ring_row<T, BFloat16>(c, part, b); break;
            default: run_ring_row<T, Int8>(c, part, b); break;
        }
    }
}

inline void run_ring(const RingCall& c, const RingPart& part) {
    switch (c.dtype) {
        case SPEECHSSM_F32: run_ring_rows<float>(c, part); break;
        case SPEECHSSM_F16: run_ring_rows<Half>(c, part); break;
        default: run_ring_rows<BFloat16>(c, part); break;
    }
}

SPEECHSSM_CLOSE
