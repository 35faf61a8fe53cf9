// Attention over the ring on a processor: rows, tokens, then keys sixteen at a time.
//
// Up to sixteen query heads share one pass over keys and values, also where they belong to several key/value heads,
// whose vectors lie side by side. A block of sixteen keys (4 KB at k = 64) is read from memory once and stays in cache
// for all heads of its own; sixteen scores come out side by side, so the exponentials need no shuffling. Everything
// lies on the stack: padded to whole lanes of sixteen, with zeros, so no loop has a tail.
//
// Slots are summed up in pieces of kPiece, each from nothing, and joined in their order. So threads may share the slots
// of a lone row, each reading its own, and the bits are those of one thread, of a row among others and of a chunk.
#pragma once

SPEECHSSM_OPEN

constexpr int kPass = 16;    // query heads to a pass
constexpr int kBlock = 16;   // keys to a block
constexpr int kWidest = SPEECHSSM_RING_HEAD_DIM;

inline int padded(int k) { return (k + 15) / 16 * 16; }

// `count` numbers as float32, zeros up to the next sixteen.
template <class T>
SPEECHSSM_INLINE void widen_vector(const T* from, float* to, int count) {
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
SPEECHSSM_INLINE Keys block_of(const R* from, std::size_t stride, int count, int k, float* room) {
    for (int s = 0; s < count; ++s) widen_vector(from + s * stride, room + s * padded(k), k);
    return {room, static_cast<std::size_t>(padded(k))};
}
template <>
SPEECHSSM_INLINE Keys block_of(const float* from, std::size_t stride, int count, int k, float* room) {
    if (k % 16 == 0) return {from, stride};
    for (int s = 0; s < count; ++s) widen_vector(from + s * stride, room + s * padded(k), k);
    return {room, static_cast<std::size_t>(padded(k))};
}

// Asks for a block before it is needed: long keys are read across, sixteen lines far apart at a time, which
// no processor takes for a stream. Short ones are better left alone in a ring that a cache holds (1.76 against 1.94 ms at
// k = 64); a longer ring is asked for two blocks ahead, since every block is a page of its own. Lines past the end of the
// ring are asked for too; asking is harmless.
template <class R>
SPEECHSSM_INLINE void ask_for(const R* from, std::size_t stride, int count) {
    const std::size_t bytes = count * sizeof(R);
    for (int s = 0; s < kBlock; ++s) {
        const char* vector = reinterpret_cast<const char*>(from) + s * stride * sizeof(R);
        for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(vector + i, 0, 2);
    }
}

constexpr std::size_t kCached = 1u << 18;  // bytes of a ring that stay in a core's cache between steps, about

// What one query head has summed so far.
struct Sums {
    float sum[kWidest];  // of exp(score - largest) value
    Sixteen weight;      // of exp(score - largest), by lane
    float largest;
};

struct Head : Sums {
    float query[kWidest];
};

constexpr float kNothing = -3.0e38f;  // largest score of no keys: finite, so that it joins with weight nothing


// N accumulators in registers over all of k.
template <int N>
SPEECHSSM_INLINE void dots(const float* query, Keys keys, int first, int lanes, Sixteen* out) {
    Sixteen acc[N];
    for (int s = 0; s < N; ++s) acc[s] = splat<Sixteen>(0.0f);
    for (int i = 0; i < lanes; i += 16) {
        const Sixteen q = load_sixteen(query + i);
        for (int s = 0; s < N; ++s) acc[s] = fused(q, load_sixteen(keys.first + (first + s) * keys.stride + i), acc[s]);
    }
    for (int s = 0; s < N; ++s) out[first + s] = acc[s];
}

SPEECHSSM_INLINE Sixteen scores_of(const float* query, Keys keys, int count, int lanes) {
    Sixteen acc[kBlock];
    int s = 0;
    for (; s + kTogether <= count; s += kTogether) dots<kTogether>(query, keys, s, lanes, acc);
    for (; s < count; ++s) dots<1>(query, keys, s, lanes, acc);
    for (; s < kBlock; ++s) acc[s] = splat<Sixteen>(0.0f);
    return fold_each(acc);
}

// H heads add sixteen lanes of values: each value is loaded once for all of them.
template <int H, int L>
SPEECHSSM_INLINE void add_values(Head* heads, const float (*weight)[kBlock], Keys values, int count, int i) {
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
SPEECHSSM_INLINE void add_all_values(Head* heads, const float (*weight)[kBlock], Keys values, int count, int lanes) {
    constexpr int L = kTogether / 4;
    int i = 0;
    for (; i + 16 * L <= lanes; i += 16 * L) add_values<H, L>(heads, weight, values, count, i);
    for (; i < lanes; i += 16) add_values<H, 1>(heads, weight, values, count, i);
}

SPEECHSSM_INLINE void scale_down(Sums& head, float factor, int lanes) {
    const Sixteen f = splat<Sixteen>(factor);
    head.weight = head.weight * f;
    for (int i = 0; i < lanes; i += 16) store_sixteen(head.sum + i, load_sixteen(head.sum + i) * f);
}

template <class T, class R>
struct RingPass {
    RingPass(const RingCall& call, std::int32_t at) : c(call), slot(at), wrong(splat<Sixteen>(0.0f)) {}  // arrays are written before they are read

    const RingCall& c;
    std::int32_t slot;
    Head heads[kPass];  // of a piece
    Sums whole[kPass];
    Sixteen wrong;      // 0 or NaN
    float room[kBlock * kWidest];
    float weight[kPass][kBlock];

    // The scales of one block, 0 past its end.
    Sixteen scales(const float* from, std::int64_t s, std::int32_t g, int count) const {
        float lane[16] = {};
        for (int j = 0; j < count; ++j) lane[j] = from[ring_at(c, slot, s + j, g)];
        return load_sixteen(lane);
    }

    // Query heads first .. first + count - 1, and the key/value heads they belong to.
    std::int32_t first = 0, g_first = 0, g_end = 0;
    int count = 0;

    int group() const { return c.heads / c.kv_heads; }
    int begin(std::int32_t g) const { return g * group() < first ? 0 : g * group() - first; }
    int end(std::int32_t g) const { return (g + 1) * group() - first < count ? (g + 1) * group() - first : count; }

    SPEECHSSM_INLINE void take(const T* q, std::int32_t first_head, int heads_of_pass) {
        first = first_head;
        count = heads_of_pass;
        g_first = first / group();
        g_end = (first + count - 1) / group() + 1;
        wrong = splat<Sixteen>(0.0f);
        for (int h = 0; h < count; ++h)
            widen_vector(q + static_cast<std::int64_t>(first + h) * c.head_dim, heads[h].query, c.head_dim);
    }

    // The token itself comes first, with weight 1.
    SPEECHSSM_INLINE void own(const T* k, const T* v) {
        const int dim = c.head_dim, lanes = padded(dim);
        const Sixteen zero = splat<Sixteen>(0.0f);
        for (std::int32_t g = g_first; g < g_end; ++g) {
            widen_vector(k + static_cast<std::int64_t>(g) * dim, room, dim);
            for (int h = begin(g); h < end(g); ++h) {
                Sixteen acc[1];
                dots<1>(heads[h].query, Keys{room, 0}, 0, lanes, acc);
                whole[h].largest = fold(acc[0]);
                whole[h].weight = first_lanes(splat<Sixteen>(1.0f), 1);
            }
            for (int i = 0; i < lanes; i += 16) wrong = fused(load_sixteen(room + i), zero, wrong);
            widen_vector(v + static_cast<std::int64_t>(g) * dim, room, dim);
            for (int i = 0; i < lanes; i += 16) wrong = fused(load_sixteen(room + i), zero, wrong);
            for (int h = begin(g); h < end(g); ++h) {
                std::memcpy(whole[h].sum, room, lanes * sizeof(float));
                wrong = fused(splat<Sixteen>(whole[h].largest), zero, wrong);
            }
        }
    }

    // Slots from .. to - 1 into `heads`; `filled` is where the slots end that may be asked for ahead.
    SPEECHSSM_INLINE void piece(const R* key, const R* value, const float* key_scale, const float* value_scale, std::int32_t from,
               std::int32_t to, std::int32_t filled) {
        const int dim = c.head_dim, lanes = padded(dim);
        const Sixteen zero = splat<Sixteen>(0.0f);
        for (int h = 0; h < count; ++h) {
            std::memset(heads[h].sum, 0, lanes * sizeof(float));
            heads[h].weight = zero;
            heads[h].largest = kNothing;
        }
        const std::size_t stride = static_cast<std::size_t>(c.kv_heads) * dim;
        const int across = (g_end - g_first) * dim, ahead = stride * sizeof(R) * c.window > kCached ? 2 * kBlock : kBlock;
        const bool asks = ahead > kBlock || dim * sizeof(R) > 256;
        Sixteen bad = zero;
        for (std::int32_t s = from; s < to; s += kBlock) {
            const int n = to - s < kBlock ? to - s : kBlock;
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
                for (int i = h; i < last; ++i) bad = bad + weigh(heads[i], weight[i], keys, n, lanes, key_by, value_by);
                const Keys values = block_of(value + at, stride, n, dim, room);
                for (; h + 4 <= last; h += 4) add_all_values<4>(heads + h, weight + h, values, n, lanes);
                if (h + 2 <= last) {
                    add_all_values<2>(heads + h, weight + h, values, n, lanes);
                    h += 2;
                }
                if (h < last) add_all_values<1>(heads + h, weight + h, values, n, lanes);
            }
        }
        wrong = wrong + bad;
    }

    // What `heads` summed up, into the whole.
    SPEECHSSM_INLINE void join() {
        const int lanes = padded(c.head_dim);
        for (int h = 0; h < count; ++h) {
            const float largest = heads[h].largest > whole[h].largest ? heads[h].largest : whole[h].largest;
            scale_down(whole[h], exp_of_negative(whole[h].largest - largest), lanes);
            const Sixteen by = splat<Sixteen>(exp_of_negative(heads[h].largest - largest));
            whole[h].weight = fused(heads[h].weight, by, whole[h].weight);
            for (int i = 0; i < lanes; i += 16)
                store_sixteen(whole[h].sum + i, fused(load_sixteen(heads[h].sum + i), by, load_sixteen(whole[h].sum + i)));
            whole[h].largest = largest;
        }
    }

    // y of the pass; what was wrong in all of it.
    SPEECHSSM_INLINE float finish(T* y) {
        const int dim = c.head_dim, lanes = padded(dim);
        const Sixteen zero = splat<Sixteen>(0.0f);
        for (int h = 0; h < count; ++h) {
            const float all = fold(whole[h].weight);
            T* to = y + static_cast<std::int64_t>(first + h) * dim;
            for (int i = 0; i < dim; ++i) {
                const float out = whole[h].sum[i] / all;
                whole[h].sum[i] = out;
                write(to + i, out);
            }
            for (int i = 0; i < lanes; i += 16) wrong = fused(load_sixteen(whole[h].sum + i), zero, wrong);
        }
        return fold(wrong);
    }

    void hand_over(float* record) const {
        const int lanes = padded(c.head_dim);
        for (int h = 0; h < count; ++h, record += record_floats(c.head_dim)) {
            std::memcpy(record, heads[h].sum, lanes * sizeof(float));
            store_sixteen(record + lanes, heads[h].weight);
            record[lanes + 16] = heads[h].largest;
            record[lanes + 17] = h == 0 ? fold(wrong) : 0.0f;
        }
    }

    void take_over(const float* record) {
        const int lanes = padded(c.head_dim);
        for (int h = 0; h < count; ++h, record += record_floats(c.head_dim)) {
            std::memcpy(heads[h].sum, record, lanes * sizeof(float));
            heads[h].weight = load_sixteen(record + lanes);
            heads[h].largest = record[lanes + 16];
            wrong = wrong + splat<Sixteen>(record[lanes + 17]);
        }
    }

    // Weights of one block for one head, its sums scaled to the largest score so far; returns 0 or NaN by lane.
    static SPEECHSSM_INLINE Sixteen weigh(Head& head, float* weight, Keys keys, int n, int lanes, Sixteen key_by, Sixteen value_by) {
        Sixteen score = scores_of(head.query, keys, n, lanes);
        if (RingKind<R>::scaled) score = score * key_by;
        score = first_lanes(score, n);
        float largest = head.largest;
        if (n == kBlock) {
            largest = largest_of(at_least(score, splat<Sixteen>(largest)));  // a NaN gives way to the largest so far
        } else {
            float lane[16];
            store_sixteen(lane, score);
            for (int j = 0; j < n; ++j) largest = lane[j] > largest ? lane[j] : largest;
        }
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

// Query heads to a pass: whole groups where they fit.
inline std::int32_t heads_of_pass(const RingCall& c, std::int32_t first) {
    const std::int32_t group = c.heads / c.kv_heads, most = group < kPass ? kPass / group * group : kPass;
    return c.heads - first < most ? c.heads - first : most;
}

template <class T>
struct TokenOf {  // one token's vectors
    const T *q, *k, *v;
    T* y;
    TokenOf(const RingCall& c, std::int32_t t, std::int32_t b) {
        const std::int64_t at = vector_at(c, t, b), wide = static_cast<std::int64_t>(c.heads) * c.head_dim;
        const std::int64_t narrow = static_cast<std::int64_t>(c.kv_heads) * c.head_dim;
        q = static_cast<const T*>(c.q) + at * wide;
        k = static_cast<const T*>(c.k) + at * narrow;
        v = static_cast<const T*>(c.v) + at * narrow;
        y = static_cast<T*>(c.y) + at * wide;
    }
};

template <class T, class R>
inline void run_ring_row(const RingCall& c, std::int32_t b) {
    const RingRow row = ring_row_of(c, b);
    const bool appends = c.key_out != nullptr;
    if (appends && row.slot >= 0) hand_on<R>(c, row.slot);
    const R* key = static_cast<const R*>(appends ? c.key_out : c.key_in);
    const R* value = static_cast<const R*>(appends ? c.value_out : c.value_in);
    const float* key_scale = appends ? c.key_scale_out : c.key_scale_in;
    const float* value_scale = appends ? c.value_scale_out : c.value_scale_in;
    RingPass<T, R> pass(c, row.slot);
    float wrong = 0.0f;
    for (std::int32_t t = 0; t < c.tokens; ++t) {
        const TokenOf<T> token(c, t, b);
        const std::int64_t p = row.position + t;
        if (t >= row.length) {
            std::memset(token.y, 0, static_cast<std::size_t>(c.heads) * c.head_dim * sizeof(T));
            continue;
        }
        const std::int32_t filled = filled_at(c, p);
        for (std::int32_t h = 0; h < c.heads; h += pass.count) {
            pass.take(token.q, h, heads_of_pass(c, h));
            pass.own(token.k, token.v);
            for (std::int32_t s = 0; s < filled; s += kPiece) {
                pass.piece(key, value, key_scale, value_scale, s, filled - s < kPiece ? filled : s + kPiece, filled);
                pass.join();
            }
            wrong += pass.finish(token.y);
        }
        if (!appends) continue;
        for (std::int32_t g = 0; g < c.kv_heads; ++g) {
            const std::int64_t here = ring_at(c, row.slot, p % c.window, g);
            append_body(token.k + g * c.head_dim, static_cast<R*>(c.key_out) + here * c.head_dim,
                        RingKind<R>::scaled ? c.key_scale_out + here : nullptr, c.head_dim);
            append_body(token.v + g * c.head_dim, static_cast<R*>(c.value_out) + here * c.head_dim,
                        RingKind<R>::scaled ? c.value_scale_out + here : nullptr, c.head_dim);
        }
    }
    if (c.check) c.check[b] = wrong;
}

// One piece of row b's step, into its records.
template <class T, class R>
inline void run_ring_piece(const RingCall& c, std::int32_t b, std::int32_t piece, float* records) {
    const RingRow row = ring_row_of(c, b);
    const std::int32_t filled = filled_at(c, row.position), from = piece * kPiece;
    RingPass<T, R> pass(c, row.slot);
    for (std::int32_t h = 0; h < c.heads; h += pass.count) {
        pass.take(TokenOf<T>(c, 0, b).q, h, heads_of_pass(c, h));
        pass.piece(static_cast<const R*>(c.key_in), static_cast<const R*>(c.value_in), c.key_scale_in, c.value_scale_in, from,
                   filled - from < kPiece ? filled : from + kPiece, filled);
        pass.hand_over(records + (static_cast<std::size_t>(piece) * c.heads + h) * record_floats(c.head_dim));
    }
}

// The row's y from the records of all its pieces.
template <class T, class R>
inline void run_ring_join(const RingCall& c, std::int32_t b, std::int32_t pieces, const float* records) {
    const TokenOf<T> token(c, 0, b);
    RingPass<T, R> pass(c, ring_row_of(c, b).slot);
    float wrong = 0.0f;
    for (std::int32_t h = 0; h < c.heads; h += pass.count) {
        pass.take(token.q, h, heads_of_pass(c, h));
        pass.own(token.k, token.v);
        for (std::int32_t piece = 0; piece < pieces; ++piece) {
            pass.take_over(records + (static_cast<std::size_t>(piece) * c.heads + h) * record_floats(c.head_dim));
            pass.join();
        }
        wrong += pass.finish(token.y);
    }
    if (c.check) c.check[b] = wrong;
}

// f(T{}, R{}) of a call's types.
template <class T, class F>
inline void with_ring(const RingCall& c, F f) {
    switch (c.ring_dtype) {
        case SPEECHSSM_F32: f(T{}, float{}); break;
        case SPEECHSSM_F16: f(T{}, Half{}); break;
        case SPEECHSSM_BF16: f(T{}, BFloat16{}); break;
        default: f(T{}, Int8{});
    }
}
template <class F>
inline void with_types(const RingCall& c, F f) {
    switch (c.dtype) {
        case SPEECHSSM_F32: with_ring<float>(c, f); break;
        case SPEECHSSM_F16: with_ring<Half>(c, f); break;
        default: with_ring<BFloat16>(c, f);
    }
}

inline void run_rows(const RingCall& c, std::int32_t first, std::int32_t end) {
    with_types(c, [&](auto t, auto r) {
        for (std::int32_t b = first; b < end; ++b) run_ring_row<decltype(t), decltype(r)>(c, b);
    });
}
// Of a float32 stream, which is what graphs have: each pair of types is a copy of all loops.
inline void run_piece(const RingCall& c, std::int32_t b, std::int32_t piece, float* records) {
    with_ring<float>(c, [&](auto, auto r) { run_ring_piece<float, decltype(r)>(c, b, piece, records); });
}
inline void run_join(const RingCall& c, std::int32_t b, std::int32_t pieces, const float* records) {
    with_ring<float>(c, [&](auto, auto r) { run_ring_join<float, decltype(r)>(c, b, pieces, records); });
}

SPEECHSSM_CLOSE
