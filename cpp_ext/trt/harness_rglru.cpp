// RGLRUStep and RGLRUScan with host pointers, against the recurrence in float64.
#include <algorithm>
#include <cmath>
#include <memory>

#include "harness.hpp"

using namespace nvinfer1;

namespace harness {
namespace {

// One random problem: buffers of exactly the bytes they need, so that an address sanitizer sees any excess.
struct Problem {
    bool scan, slots;
    std::int64_t tokens, rows, width, pool;
    std::vector<float> x, gate_x, gate_a, decay, state;
    std::vector<std::int64_t> position, lengths;
    std::unique_ptr<bool[]> active;
    std::vector<std::int32_t> slot;
    std::vector<PluginTensorDesc> in, out;

    Problem(bool is_scan, bool with_slots) : scan(is_scan), slots(with_slots) {
        tokens = scan ? 1 + upto(299) : 1;
        rows = 1 + upto(4);
        width = 1 + upto(40);
        pool = slots ? rows + upto(3) : rows;
        const std::size_t count = static_cast<std::size_t>(tokens * rows * width);
        for (auto* v : {&x, &gate_x, &gate_a}) {
            v->resize(count);
            for (float& f : *v) f = normal();
        }
        for (int e = 0; e < width; ++e) decay.push_back(-0.01f - std::fabs(normal()));
        state.resize(static_cast<std::size_t>(pool * width));
        for (float& f : state) f = normal();
        active.reset(new bool[static_cast<std::size_t>(rows)]);
        std::vector<std::int32_t> order;
        for (int s = 0; s < pool; ++s) order.push_back(s);
        std::shuffle(order.begin(), order.end(), dice);
        for (int b = 0; b < rows; ++b) {
            position.push_back(upto(2));
            lengths.push_back(upto(static_cast<int>(tokens)));
            active[static_cast<std::size_t>(b)] = upto(3) != 0;
            slot.push_back(slots ? order[static_cast<std::size_t>(b)] : b);
        }
        const Dims stream = scan ? dims_of({tokens, rows, width}) : dims_of({rows, width});
        in = {desc(stream, DataType::kFLOAT), desc(stream, DataType::kFLOAT), desc(stream, DataType::kFLOAT),
              desc(dims_of({width}), DataType::kFLOAT), desc(dims_of({pool, width}), DataType::kFLOAT),
              desc(dims_of({rows}), DataType::kINT64),
              desc(dims_of({rows}), scan ? DataType::kINT64 : DataType::kBOOL)};
        if (slots) in.push_back(desc(dims_of({rows}), DataType::kINT32));
        out = {in[0], in[4]};
    }

    // The equations of the paper in float64, one token after another.
    void reference(std::vector<double>* y, std::vector<double>* last) const {
        y->assign(x.size(), 0.0);
        last->assign(state.begin(), state.end());
        for (std::int64_t b = 0; b < rows; ++b) {
            const std::int64_t run = scan ? lengths[static_cast<std::size_t>(b)] : active[static_cast<std::size_t>(b)] ? 1 : 0;
            for (std::int64_t t = 0; t < run; ++t)
                for (std::int64_t e = 0; e < width; ++e) {
                    const std::size_t i = static_cast<std::size_t>((t * rows + b) * width + e);
                    double& h = (*last)[static_cast<std::size_t>(slot[static_cast<std::size_t>(b)] * width + e)];
                    const double drive = x[i] / (1 + std::exp(-double{gate_x[i]}));
                    const double log_a = decay[static_cast<std::size_t>(e)] / (1 + std::exp(-double{gate_a[i]}));
                    h = position[static_cast<std::size_t>(b)] + t == 0
                            ? drive
                            : std::exp(log_a) * h + std::sqrt(-std::expm1(2 * log_a)) * drive;
                    (*y)[i] = h;
                }
        }
    }
};

// Types of all positions with streams of type x, of which position `mixed` has another.
std::vector<DataType> types_of(const Problem& p, DataType x, int mixed = -1) {
    std::vector<DataType> types;
    for (const auto& d : p.in) types.push_back(d.type);
    for (const auto& d : p.out) types.push_back(d.type);
    for (const int pos : {0, 1, 2, static_cast<int>(p.in.size())})
        types[static_cast<std::size_t>(pos)] = pos == mixed ? DataType::kHALF : x;
    return types;
}

}  // namespace

void run_rglru(IPluginCreatorV3One* maker, bool scan, bool aliased, bool slots) {
    const std::string name = std::string(maker->getPluginName()) + (aliased ? " aliased" : "") + (slots ? " slots" : "");
    Problem p(scan, slots);
    const int inputs = static_cast<int>(p.in.size());
    const Job job{name, aliased, p.in, p.out, {-1, 4},
                  {types_of(p, DataType::kBF16), types_of(p, DataType::kHALF)},
                  {types_of(p, DataType::kFLOAT, 1), types_of(p, DataType::kBF16, 2), types_of(p, DataType::kBF16, inputs)}};
    std::size_t workspace_bytes = 0;
    const std::unique_ptr<IPluginV3> attached = through_an_engine(maker, job, &workspace_bytes);
    if (!attached) return;
    auto* run = capability<IPluginV3OneRuntime>(attached.get(), PluginCapabilityType::kRUNTIME);

    for (int round = 0; round < 2; ++round) {
        std::vector<float> y(p.x.size(), NAN), state = p.state, state_out(aliased ? 0 : state.size(), NAN);
        std::vector<char> workspace(workspace_bytes, '\xff');
        std::vector<const void*> input{p.x.data(), p.gate_x.data(), p.gate_a.data(), p.decay.data(), state.data(), p.position.data()};
        input.push_back(scan ? static_cast<const void*>(p.lengths.data()) : static_cast<const void*>(p.active.get()));
        if (slots) input.push_back(p.slot.data());
        void* outputs[2] = {y.data(), aliased ? state.data() : state_out.data()};
        if (round == 0)
            check(run->enqueue(p.in.data(), p.out.data(), input.data(), outputs, workspace.data(), nullptr) != 0,
                  name + ": refuses to run before onShapeChange");
        check(run->onShapeChange(p.in.data(), inputs, p.out.data(), 2) == 0, name + ": shapes accepted");
        check(run->enqueue(p.in.data(), p.out.data(), input.data(), outputs, workspace.data(), nullptr) == 0, name + ": ran");
        std::vector<double> want_y, want_state;
        p.reference(&want_y, &want_state);
        double reach = 1e-30;
        for (const double v : want_y) reach = std::max(reach, std::fabs(v));
        for (const double v : p.state) reach = std::max(reach, std::fabs(v));
        check(error_of(y, want_y, reach) <= 1e-6, name + ": y agrees with float64");
        check(error_of(aliased ? state : state_out, want_state, reach) <= 1e-6, name + ": state agrees with float64");
        auto wrong = p.in;
        wrong[3].dims.d[0] += 1;
        check(run->onShapeChange(wrong.data(), inputs, p.out.data(), 2) != 0, name + ": refuses a decay of another width");
    }
}

}  // namespace harness
