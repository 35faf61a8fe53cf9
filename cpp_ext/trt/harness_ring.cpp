// RingAttend and RingScan with host pointers, against attention over the ring in float64, token by token.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "harness.hpp"
#include "speechssm/check.hpp"
#include "speechssm/number.hpp"

using namespace nvinfer1;

namespace harness {
namespace {

// Numbers as a tensor of some type holds them, in exactly the bytes that takes; `kept` are they, read back.
struct Tensor {
    DataType type;
    std::vector<float> kept;
    std::unique_ptr<char[]> bytes;

    Tensor(DataType of, std::vector<float> numbers) : type(of), kept(std::move(numbers)), bytes(new char[size()]) {
        for (std::size_t i = 0; i < kept.size(); ++i) put(i, kept[i]);
        kept = read_back();
    }
    std::size_t width() const { return type == DataType::kFLOAT ? 4 : type == DataType::kINT8 ? 1 : 2; }
    std::size_t size() const { return kept.size() * width(); }

    void put(std::size_t i, float number) {
        char* at = bytes.get() + i * width();
        const std::int8_t small = type == DataType::kINT8 ? static_cast<std::int8_t>(number) : std::int8_t{0};
        switch (type) {
            case DataType::kHALF: speechssm::write(reinterpret_cast<speechssm::Half*>(at), number); break;
            case DataType::kBF16: speechssm::write(reinterpret_cast<speechssm::BFloat16*>(at), number); break;
            case DataType::kINT8: std::memcpy(at, &small, 1); break;
            default: std::memcpy(at, &number, 4);
        }
    }
    std::vector<float> read_back() const {
        std::vector<float> numbers(kept.size());
        for (std::size_t i = 0; i < numbers.size(); ++i) {
            const char* at = bytes.get() + i * width();
            switch (type) {
                case DataType::kHALF: numbers[i] = speechssm::read(*reinterpret_cast<const speechssm::Half*>(at)); break;
                case DataType::kBF16: numbers[i] = speechssm::read(*reinterpret_cast<const speechssm::BFloat16*>(at)); break;
                case DataType::kINT8: numbers[i] = static_cast<signed char>(*at); break;
                default: std::memcpy(&numbers[i], at, 4);
            }
        }
        return numbers;
    }
    Tensor copy() const {
        Tensor other(type, std::vector<float>(kept.size()));
        std::memcpy(other.bytes.get(), bytes.get(), size());
        other.kept = kept;
        return other;
    }
};

bool same_bytes(const Tensor& a, const Tensor& b) { return std::memcmp(a.bytes.get(), b.bytes.get(), a.size()) == 0; }

std::vector<float> normals(std::int64_t count, float spread = 1.0f) {
    std::vector<float> numbers(static_cast<std::size_t>(count));
    for (float& f : numbers) f = spread * normal();
    return numbers;
}

// The scale of one vector and its numbers in an int8 ring, in the float32 steps that the exported graphs take.
float quantize(const float* x, std::int64_t dim, float* numbers) {
    float largest = 1e-30f;
    for (std::int64_t i = 0; i < dim; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float scale = largest * (1.0f / 127.0f);
    for (std::int64_t i = 0; i < dim; ++i) numbers[i] = std::nearbyintf(x[i] / scale);
    return scale;
}

// The rings of one problem: key, value and, of int8, their scales; each output beside its input.
using Rings = std::vector<Tensor>;

struct Problem {
    bool scan, scaled;
    std::int64_t tokens, rows, heads, kv, dim, window;
    DataType stream, ring;
    std::vector<Tensor> qkv;
    Rings rings;
    std::vector<std::int64_t> position, lengths;
    std::unique_ptr<bool[]> active;
    std::vector<PluginTensorDesc> in, out;

    Problem(bool is_scan, bool is_scaled) : scan(is_scan), scaled(is_scaled) {
        constexpr DataType streams[] = {DataType::kFLOAT, DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
        constexpr DataType kinds[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
        stream = streams[upto(3)];
        ring = scaled ? DataType::kINT8 : stream == DataType::kFLOAT ? kinds[upto(2)] : stream;
        tokens = scan ? 1 + upto(29) : 1;
        rows = 1 + upto(3);
        kv = 1 + upto(1);
        heads = kv * (1 + upto(2));
        dim = 1 + upto(23);
        window = upto(3) == 0 ? 300 : 1 + upto(19);  // 300 slots are two pieces
        qkv.emplace_back(stream, normals(tokens * rows * heads * dim, 1.0f / std::sqrt(static_cast<float>(dim))));
        for (int i = 0; i < 2; ++i) qkv.emplace_back(stream, normals(tokens * rows * kv * dim));
        for (int b = 0; b < rows; ++b) {
            position.push_back(upto(3 * static_cast<int>(window)) * upto(1));
            lengths.push_back(upto(static_cast<int>(tokens) + 1) - 1);
        }
        active.reset(new bool[static_cast<std::size_t>(rows)]);
        for (int b = 0; b < rows; ++b) active[static_cast<std::size_t>(b)] = upto(3) != 0;
        make_rings();
        const Dims wide = scan ? dims_of({tokens, rows, heads * dim}) : dims_of({rows, heads * dim});
        const Dims own = scan ? dims_of({tokens, rows, kv, dim}) : dims_of({rows, kv, 1, dim});
        const Dims kept = dims_of({rows, window, kv, dim}), row = dims_of({rows}), scale = dims_of({rows, window, kv});
        in = {desc(wide, stream), desc(own, stream), desc(own, stream), desc(kept, ring), desc(kept, ring),
              desc(row, DataType::kINT64), desc(row, scan ? DataType::kINT64 : DataType::kBOOL)};
        out = {in[0], desc(row, DataType::kFLOAT)};
        if (scan) out.insert(out.end(), {in[3], in[4]});
        if (scaled) in.insert(in.end(), 2, desc(scale, DataType::kFLOAT));
        if (scan && scaled) out.insert(out.end(), 2, desc(scale, DataType::kFLOAT));
    }

    // Slots that no token has reached hold NaN where the type has one: whoever reads them is seen.
    void make_rings() {
        std::vector<std::vector<float>> numbers(2), scales(2);
        for (int which = 0; which < 2; ++which)
            for (std::int64_t at = 0; at < rows * window * kv; ++at) {
                const bool reached = at / kv % window < position[static_cast<std::size_t>(at / kv / window)];
                std::vector<float> x = normals(dim), small(x.size());
                scales[static_cast<std::size_t>(which)].push_back(reached ? quantize(x.data(), dim, small.data()) : NAN);
                if (!reached && !scaled) std::fill(x.begin(), x.end(), NAN);
                auto& all = numbers[static_cast<std::size_t>(which)];
                all.insert(all.end(), scaled ? small.begin() : x.begin(), scaled ? small.end() : x.end());
            }
        for (auto& all : numbers) rings.emplace_back(ring, std::move(all));
        for (auto& all : scales)
            if (scaled) rings.emplace_back(DataType::kFLOAT, std::move(all));
    }

    std::int64_t run_of(std::int64_t b) const {
        const std::size_t row = static_cast<std::size_t>(b);
        return scan ? std::max<std::int64_t>(lengths[row], 0) : active[row] ? 1 : 0;
    }

    double ring_number(const Rings& from, std::size_t which, std::int64_t at, std::int64_t i) const {
        const double number = from[which].kept[static_cast<std::size_t>(at * dim + i)];
        return scaled ? number * from[which + 2].kept[static_cast<std::size_t>(at)] : number;
    }

    void append(Rings& to, std::size_t which, std::int64_t at, const float* x) const {
        std::vector<float> numbers(x, x + dim);
        if (scaled) {
            const float scale = quantize(x, dim, numbers.data());
            to[which + 2].put(static_cast<std::size_t>(at), scale);
            to[which + 2].kept[static_cast<std::size_t>(at)] = scale;
        }
        for (std::int64_t i = 0; i < dim; ++i) to[which].put(static_cast<std::size_t>(at * dim + i), numbers[static_cast<std::size_t>(i)]);
        to[which].kept = to[which].read_back();
    }

    // Attend over the filled slots and the token itself, then append; a step appends nothing.
    void reference(std::vector<double>* y, Rings* after) const {
        y->assign(qkv[0].kept.size(), 0.0);
        for (const Tensor& t : rings) after->push_back(t.copy());
        for (std::int64_t b = 0; b < rows; ++b)
            for (std::int64_t t = 0; t < run_of(b); ++t) {
                const std::int64_t p = position[static_cast<std::size_t>(b)] + t, filled = std::min(p, window);
                const float* own[] = {&qkv[1].kept[static_cast<std::size_t>((t * rows + b) * kv * dim)],
                                      &qkv[2].kept[static_cast<std::size_t>((t * rows + b) * kv * dim)]};
                for (std::int64_t h = 0; h < heads; ++h) {
                    const std::int64_t g = h / (heads / kv), first = ((t * rows + b) * heads + h) * dim;
                    // Slot `filled` stands for the token itself.
                    const auto number = [&](std::size_t which, std::int64_t s, std::int64_t i) {
                        return s == filled ? double{own[which][g * dim + i]}
                                           : ring_number(*after, which, (b * window + s) * kv + g, i);
                    };
                    std::vector<double> weight(static_cast<std::size_t>(filled + 1));
                    for (std::int64_t s = 0; s <= filled; ++s)
                        for (std::int64_t i = 0; i < dim; ++i)
                            weight[static_cast<std::size_t>(s)] += qkv[0].kept[static_cast<std::size_t>(first + i)] * number(0, s, i);
                    const double largest = *std::max_element(weight.begin(), weight.end());
                    double whole = 0;
                    for (double& w : weight) whole += w = std::exp(w - largest);
                    for (std::int64_t s = 0; s <= filled; ++s)
                        for (std::int64_t i = 0; i < dim; ++i)
                            (*y)[static_cast<std::size_t>(first + i)] += weight[static_cast<std::size_t>(s)] / whole * number(1, s, i);
                }
                for (std::size_t which = 0; scan && which < 2; ++which)
                    for (std::int64_t g = 0; g < kv; ++g)
                        append(*after, which, (b * window + p % window) * kv + g, own[which] + g * dim);
            }
    }
};

// Types of all positions with a stream and a ring of these types.
std::vector<DataType> types_of(const Problem& p, DataType stream, DataType ring) {
    std::vector<DataType> types;
    for (const auto& d : p.in) types.push_back(d.type);
    for (const auto& d : p.out) types.push_back(d.type);
    const std::size_t outputs = p.in.size();
    for (const std::size_t pos : {std::size_t{0}, std::size_t{1}, std::size_t{2}, outputs}) types[pos] = stream;
    types[3] = types[4] = ring;
    if (p.scan) types[outputs + 2] = types[outputs + 3] = ring;
    return types;
}

Job job_of(const Problem& p, const std::string& name, bool aliased) {
    Job job{name, aliased, p.in, p.out, {-1, -1, 3, 4, 7, 8}, {}, {}};
    job.alias_of.resize(p.out.size());
    constexpr DataType kinds[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT8};
    for (const DataType stream : kinds)
        for (const DataType ring : kinds) {
            const bool pair = p.scaled ? ring == DataType::kINT8
                                       : ring != DataType::kINT8 && (stream == DataType::kFLOAT || ring == stream);
            (pair && stream != DataType::kINT8 ? job.taken : job.refused).push_back(types_of(p, stream, ring));
        }
    for (const std::size_t pos : {1, 2, 4}) {  // k, v or the values' ring of another type than the rest
        job.refused.push_back(types_of(p, DataType::kFLOAT, p.scaled ? DataType::kINT8 : DataType::kFLOAT));
        job.refused.back()[pos] = DataType::kHALF;
    }
    return job;
}

// One wrong size at a time, at every axis of every input.
void refuse_shapes(IPluginV3OneRuntime* run, const Problem& p, const std::string& name) {
    for (std::size_t i = 0; i < p.in.size(); ++i)
        for (int axis = 0; axis < p.in[i].dims.nbDims; ++axis) {
            const bool heads_axis = i == 0 && axis + 1 == p.in[i].dims.nbDims;
            if (heads_axis && p.kv * p.dim == 1) continue;  // one more head of one number
            auto wrong = p.in;
            wrong[i].dims.d[axis] += 1;
            check(run->onShapeChange(wrong.data(), static_cast<int>(p.in.size()), p.out.data(),
                                     static_cast<int>(p.out.size())) != 0,
                  name + ": refuses input " + std::to_string(i) + " one longer along axis " + std::to_string(axis));
        }
    auto wrong = p.in;
    wrong[3].dims.nbDims = 3;
    check(run->onShapeChange(wrong.data(), static_cast<int>(p.in.size()), p.out.data(), static_cast<int>(p.out.size())) != 0,
          name + ": refuses a ring of three axes");
}

}  // namespace

void run_ring(IPluginCreatorV3One* maker, bool scan, bool scaled, bool aliased) {
    const std::string name = std::string(maker->getPluginName()) + (aliased ? " aliased" : "");
    const Problem p(scan, scaled);
    std::size_t workspace_bytes = 1;
    const std::unique_ptr<IPluginV3> attached = through_an_engine(maker, job_of(p, name, aliased), &workspace_bytes);
    if (!attached) return;
    const std::int64_t pieces = scan ? 1 : speechssm::ring_pieces(p.window);
    const std::int64_t needed = speechssm::ring_workspace_bytes(p.rows, p.heads, p.dim, pieces);
    check(workspace_bytes >= static_cast<std::size_t>(needed), name + ": room for a step in pieces");
    check(!scan || workspace_bytes == 0, name + ": a chunk needs no workspace");
    auto* run = capability<IPluginV3OneRuntime>(attached.get(), PluginCapabilityType::kRUNTIME);
    const int inputs = static_cast<int>(p.in.size()), outputs = static_cast<int>(p.out.size());

    std::vector<double> want;
    Rings after;
    p.reference(&want, &after);
    double reach = 0.25;  // a mean of values of order one rounds relative to them
    for (const double v : want) reach = std::max(reach, std::fabs(v));
    const double step = p.stream == DataType::kFLOAT ? 0.0 : p.stream == DataType::kHALF ? 0x1p-11 : 0x1p-8;

    for (int round = 0; round < 2; ++round) {
        Tensor y(p.stream, std::vector<float>(want.size(), NAN));
        std::vector<float> checked(static_cast<std::size_t>(p.rows), NAN);
        Rings before, written;
        for (const Tensor& t : p.rings) before.push_back(t.copy());
        for (const Tensor& t : p.rings) written.emplace_back(t.type, std::vector<float>(t.kept.size(), 99.0f));
        Rings& kept = aliased ? before : written;
        std::vector<const void*> input;
        for (const Tensor& t : p.qkv) input.push_back(t.bytes.get());
        input.insert(input.end(), {before[0].bytes.get(), before[1].bytes.get(), p.position.data()});
        input.push_back(scan ? static_cast<const void*>(p.lengths.data()) : static_cast<const void*>(p.active.get()));
        if (scaled) input.insert(input.end(), {before[2].bytes.get(), before[3].bytes.get()});
        std::vector<void*> output{y.bytes.get(), checked.data()};
        for (std::size_t i = 0; scan && i < kept.size(); ++i) output.push_back(kept[i].bytes.get());
        const auto enqueue = [&](const std::vector<PluginTensorDesc>& in) {
            return run->enqueue(in.data(), p.out.data(), input.data(), output.data(), nullptr, nullptr);
        };
        if (round == 0) check(enqueue(p.in) != 0, name + ": refuses to run before onShapeChange");
        check(run->onShapeChange(p.in.data(), inputs, p.out.data(), outputs) == 0, name + ": shapes accepted");
        auto other = p.in;
        other[3].type = DataType::kFP8;
        check(enqueue(other) != 0, name + ": refuses to run on another type");
        check(enqueue(p.in) == 0, name + ": ran");
        check(error_of(y.read_back(), want, reach) <= 1e-6 + step, name + ": y agrees with float64");
        check(std::all_of(checked.begin(), checked.end(), [](float c) { return c == 0; }), name + ": nothing was amiss");
        bool equal = true;
        for (std::size_t i = 0; i < p.rings.size(); ++i)
            equal = equal && same_bytes(scan ? kept[i] : before[i], after[i]);
        check(equal, name + ": the rings hold what was appended, the rest bit for bit");
        refuse_shapes(run, p, name);
    }
}

}  // namespace harness
