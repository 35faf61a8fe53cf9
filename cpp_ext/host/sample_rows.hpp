// The sampler of one row, V logits at a time.
//
// Weights are summed in blocks, and the blocks one after the other: the inverse CDF finds its block among their sums and
// its token inside, so nothing is cumulated over the whole vocabulary. Candidates are sorted only for a row that cuts.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "rows.hpp"
#include "speechssm/ring.hpp"
#include "speechssm/sample_api.h"

SPEECHSSM_OPEN

constexpr std::int32_t kSumBlock = SPEECHSSM_SAMPLE_BLOCK;

struct SampleRoom {
    float* weight;         // (v)
    float* block;          // sums of kSumBlock weights
    std::uint64_t* order;  // (v)

    SampleRoom(void* at, std::int64_t vocab)
        : weight(static_cast<float*>(at)),
          block(weight + (vocab + 15) / 16 * 16),
          order(reinterpret_cast<std::uint64_t*>(block + (vocab / kSumBlock + 16) / 16 * 16)) {}
};

template <class V>
inline float sum_of_lanes(V sum) {
    float part[Lane<V>::width];
    store_lane(part, sum);
    for (int half = Lane<V>::width / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) part[i] += part[i + half];
    return part[0];
}

template <class V>
inline float largest_logit(const float* logits, std::int32_t vocab) {
    constexpr int lane = Lane<V>::width;
    constexpr float nothing = -std::numeric_limits<float>::infinity();
    V most = splat<V>(nothing);
    std::int32_t i = 0;
    for (; i + lane <= vocab; i += lane) most = at_least(load_lane(logits + i, V{}), most);  // a NaN is passed over
    float part[lane];
    store_lane(part, most);
    float largest = nothing;
    for (const float one : part) largest = one > largest ? one : largest;
    for (; i < vocab; ++i) largest = logits[i] > largest ? logits[i] : largest;
    return largest;
}

// Weights first .. end - 1; returns their sum.
template <class V>
inline float weigh(const float* logits, float temperature, float largest, std::int32_t first, std::int32_t end, float* weight) {
    constexpr int lane = Lane<V>::width;
    V sum = splat<V>(0.0f);
    std::int32_t i = first;
    for (; i + lane <= end; i += lane) {
        V scaled = load_lane(logits + i, V{});
        if (temperature != 1.0f) scaled = scaled / splat<V>(temperature);
        const V w = exp_of_negative(scaled - splat<V>(largest));
        store_lane(weight + i, w);
        sum = sum + w;
    }
    float whole = sum_of_lanes(sum);
    for (; i < end; ++i) whole += weight[i] = exp_of_negative(logits[i] / temperature - largest);
    return whole;
}

// The first token whose cumulative weight passes `target`; where rounding leaves none, the last that has a weight.
inline std::int32_t inverse_cdf(const SampleRoom& room, std::int32_t vocab, float target) {
    float base = 0.0f;
    std::int32_t last = 0;
    for (std::int32_t first = 0, b = 0; first < vocab; first += kSumBlock, ++b) {
        const float next = base + room.block[b];
        const std::int32_t end = std::min(vocab, first + kSumBlock);
        if (next > target || end == vocab) {
            float sum = base;
            for (std::int32_t i = first; i < end; ++i) {
                sum += room.weight[i];
                if (room.weight[i] > 0.0f) {
                    last = i;
                    if (sum > target) return i;
                }
            }
            if (next > target) return last;
        } else if (room.block[b] > 0.0f) {
            last = end - 1;  // of an earlier block, should the last one have no weight
            while (!(room.weight[last] > 0.0f)) --last;
        }
        base = next;
    }
    return last;
}

// A weight that at least `asked` tokens reach, and not many more; 0 where that cannot be said cheaply. Of the largest of
// each group, no two groups sharing a token, the asked-th is one.
template <class V>
inline float within_reach(const SampleRoom& room, std::int32_t vocab, std::int32_t asked) {
    constexpr int lane = Lane<V>::width;
    float* const most = reinterpret_cast<float*>(room.order);  // not in use yet
    std::int32_t groups = 0;
    for (std::int32_t first = 0; first + kSumBlock <= vocab; first += kSumBlock, groups += lane) {
        V largest = splat<V>(0.0f);
        for (std::int32_t i = first; i < first + kSumBlock; i += lane) largest = at_least(largest, load_lane(room.weight + i, V{}));
        store_lane(most + groups, largest);
    }
    if (groups < asked) return 0.0f;
    std::nth_element(most, most + asked - 1, most + groups, std::greater<>());
    return most[asked - 1];
}

// Among the likeliest `asked`, the shortest prefix that holds top_p of their weight.
template <class V>
inline std::int32_t cut_sample(const SampleRoom& room, std::int32_t vocab, std::int32_t asked, float top_p, float uniform) {
    const float least = within_reach<V>(room, vocab, asked);
    // Weights are not negative, so their bits are in their order; of equal ones the lower token comes first.
    std::int32_t candidates = 0;
    for (std::int32_t i = 0; i < vocab; ++i) {
        if (room.weight[i] < least) continue;
        std::uint32_t bits;
        std::memcpy(&bits, room.weight + i, sizeof bits);
        room.order[candidates++] = static_cast<std::uint64_t>(bits) << 32 | (0xffffffffu - static_cast<std::uint32_t>(i));
    }
    if (asked < candidates) std::nth_element(room.order, room.order + asked - 1, room.order + candidates, std::greater<>());
    std::sort(room.order, room.order + asked, std::greater<>());
    const auto token = [&](std::int32_t rank) {
        return static_cast<std::int32_t>(0xffffffffu - static_cast<std::uint32_t>(room.order[rank]));
    };
    double mass = 0.0, kept = 0.0;
    for (std::int32_t i = 0; i < asked; ++i) mass += room.weight[token(i)];
    mass *= top_p;
    std::int32_t count = 0;
    while (count < asked && room.weight[token(count)] > 0.0f && (count == 0 || kept < mass)) kept += room.weight[token(count++)];
    double sum = 0.0;
    for (std::int32_t i = 0; i < count; ++i) {
        sum += room.weight[token(i)];
        if (sum > uniform * kept) return token(i);
    }
    return token(count > 0 ? count - 1 : 0);
}

template <class V>
inline void sample_one(const speechssm_sample& c, std::int32_t row, void* workspace) {
    const SampleRoom room(workspace, c.vocab);
    const float* const logits = c.logits + static_cast<std::size_t>(row) * c.vocab;
    const bool greedy = !(c.temperature[row] > 0.0f);
    const float temperature = greedy ? 1.0f : c.temperature[row];
    const float top = largest_logit<V>(logits, c.vocab), largest = top / temperature;
    float total = 0.0f;
    for (std::int32_t first = 0, b = 0; first < c.vocab; first += kSumBlock, ++b) {
        const std::int32_t end = std::min(c.vocab, first + kSumBlock);
        total += room.block[b] = weigh<V>(logits, temperature, largest, first, end, room.weight);
    }
    std::int32_t token = 0;
    if (!(total * 0.0f == 0.0f)) {
        token = 0;  // the row has failed
    } else if (greedy) {
        while (token < c.vocab - 1 && logits[token] != top) ++token;
    } else if (c.top_k[row] == 0 && c.top_p[row] >= 1.0f) {
        token = inverse_cdf(room, c.vocab, c.uniform[row] * total);
    } else {
        const std::int64_t most = std::min(c.k_max, c.vocab), asked = c.top_k[row] > 0 ? std::min(c.top_k[row], most) : most;
        token = cut_sample<V>(room, c.vocab, static_cast<std::int32_t>(asked), c.top_p[row], c.uniform[row]);
    }
    c.token[row] = token;
    c.logprob[row] = logits[token] / temperature - largest - static_cast<float>(std::log(static_cast<double>(total)));
    c.finite[row] = total * 0.0f;
}

SPEECHSSM_CLOSE
