// The attention ring as its equations read: for each head all scores, their largest, the weights, the sum.
//
// Scores are computed twice rather than kept, sums are taken in double: slow, short, and no tuning in it.
#include "ring_reference.hpp"

#include "speechssm/ring.hpp"

namespace speechssm {
namespace {

template <class T, class R>
struct Reference {
    const RingCall& c;
    RingRow row;
    const R *key, *value;
    const float *key_scale, *value_scale;
    double wrong = 0.0;

    double score(const T* q, std::int64_t at) const {
        double sum = 0.0;
        for (std::int32_t i = 0; i < c.head_dim; ++i) sum += static_cast<double>(read(q[i])) * read(key[at * c.head_dim + i]);
        return RingKind<R>::scaled ? sum * key_scale[at] : sum;
    }

    void attend(const T* q, const T* k, const T* v, T* y, std::int32_t g, std::int64_t position) {
        const std::int32_t filled = filled_at(c, position);
        double own = 0.0;
        for (std::int32_t i = 0; i < c.head_dim; ++i) own += static_cast<double>(read(q[i])) * read(k[i]);
        double largest = own;
        wrong += own * 0.0;
        for (std::int32_t s = 0; s < filled; ++s) {
            const double found = score(q, ring_at(c, row.slot, s, g));
            largest = found > largest ? found : largest;
            wrong += found * 0.0;
        }
        double whole = std::exp(own - largest);
        for (std::int32_t s = 0; s < filled; ++s) whole += std::exp(score(q, ring_at(c, row.slot, s, g)) - largest);
        for (std::int32_t i = 0; i < c.head_dim; ++i) {
            double sum = std::exp(own - largest) * read(v[i]);
            for (std::int32_t s = 0; s < filled; ++s) {
                const std::int64_t at = ring_at(c, row.slot, s, g);
                const double weight = std::exp(score(q, at) - largest);
                sum += (RingKind<R>::scaled ? weight * value_scale[at] : weight) * read(value[at * c.head_dim + i]);
            }
            wrong += 0.0 * read(k[i]) + 0.0 * read(v[i]) + 0.0 * (sum / whole);
            write(y + i, static_cast<float>(sum / whole));
        }
    }
};

template <class N>
void copy(const N* from, N* to, std::size_t first, std::size_t count) {
    if (to != from) std::memmove(to + first, from + first, count * sizeof(N));
}

template <class T, class R>
void run_row(const RingCall& c, std::int32_t b) {
    const RingRow row = ring_row_of(c, b);
    R *key_out = static_cast<R*>(c.key_out), *value_out = static_cast<R*>(c.value_out);
    const R *key_in = static_cast<const R*>(c.key_in), *value_in = static_cast<const R*>(c.value_in);
    if (key_out && row.slot >= 0) {
        const std::size_t count = static_cast<std::size_t>(ring_elements(c)), scales = count / c.head_dim;
        copy(key_in, key_out, row.slot * count, count);
        copy(value_in, value_out, row.slot * count, count);
        if (RingKind<R>::scaled) {
            copy(c.key_scale_in, c.key_scale_out, row.slot * scales, scales);
            copy(c.value_scale_in, c.value_scale_out, row.slot * scales, scales);
        }
    }
    Reference<T, R> reference{c, row, key_in, value_in, c.key_scale_in, c.value_scale_in};
    if (key_out) {
        reference.key = key_out;
        reference.value = value_out;
        reference.key_scale = c.key_scale_out;
        reference.value_scale = c.value_scale_out;
    }
    const std::int32_t group = c.heads / c.kv_heads, dim = c.head_dim;
    for (std::int32_t t = 0; t < c.tokens; ++t) {
        const std::int64_t at = vector_at(c, t, b), position = row.position + t;
        T* y = static_cast<T*>(c.y) + at * c.heads * dim;
        const T* q = static_cast<const T*>(c.q) + at * c.heads * dim;
        const T* k = static_cast<const T*>(c.k) + at * c.kv_heads * dim;
        const T* v = static_cast<const T*>(c.v) + at * c.kv_heads * dim;
        if (t >= row.length) {
            std::memset(y, 0, sizeof(T) * c.heads * dim);
            continue;
        }
        for (std::int32_t h = 0; h < c.heads; ++h)
            reference.attend(q + h * dim, k + h / group * dim, v + h / group * dim, y + h * dim, h / group, position);
        for (std::int32_t g = 0; key_out && g < c.kv_heads; ++g) {
            const std::int64_t here = ring_at(c, row.slot, position % c.window, g);
            append_body(k + g * dim, key_out + here * dim, RingKind<R>::scaled ? c.key_scale_out + here : nullptr, dim);
            append_body(v + g * dim, value_out + here * dim, RingKind<R>::scaled ? c.value_scale_out + here : nullptr, dim);
        }
    }
    if (c.check) c.check[b] = static_cast<float>(reference.wrong);
}

template <class T>
void run(const RingCall& c) {
    for (std::int32_t b = 0; b < c.rows; ++b) {
        switch (c.ring_dtype) {
            case SPEECHSSM_F32: run_row<T, float>(c, b); break;
            case SPEECHSSM_F16: run_row<T, Half>(c, b); break;
            case SPEECHSSM_BF16: run_row<T, BFloat16>(c, b); break;
            default: run_row<T, Int8>(c, b); break;
        }
    }
}

}  // namespace

void ring_reference(const speechssm_ring& call) {
    switch (call.dtype) {
        case SPEECHSSM_F32: run<float>(call); break;
        case SPEECHSSM_F16: run<Half>(call); break;
        default: run<BFloat16>(call); break;
    }
}

}  // namespace speechssm
