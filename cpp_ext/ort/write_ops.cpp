// speechssm::RingWrite as an ONNX Runtime custom op.
//
// Inputs and outputs are those of the model-local function of the same name (export/graphs/write_function.py), so one
// graph runs with or without this library:
//
//   RingWrite  key, value (b,w,g,k)  k, v (b,g,1,k)  position (b,1) int64  active (b,1) bool  ->  key_out, value_out
//
// Rings are float32 or float16. Where an output is bound to its input, which sessions do, one slot is written and
// nothing else is touched; else the ring is copied first. Processors only.
#include "device_op.hpp"
#include "node_run.hpp"
#include "ops.hpp"
#include "speechssm/ring.hpp"

namespace {

enum Input : std::size_t { kKey, kValue, kK, kV, kPosition, kActive, kInputs };

struct Op : ort::DeviceOp {
    ort::ElementType ring;
};

class Run : ort::NodeRun {
public:
    Run(ort::Api api, const Op& op, const ort::NoSettings&, ort::KernelContext* context)
        : NodeRun(api, op.get_name(&op), context), op_(op) {}

    ort::Status* operator()() {
        void* input[kInputs] = {};
        ort::Shape shape[kInputs];
        for (std::size_t i = 0; i < kInputs; ++i)
            if (ort::Status* failed = read_input(i, &input[i], &shape[i])) return failed;
        const ort::Shape& ring = shape[kKey];
        if (ring.rank != 4 || !(shape[kValue] == ring)) return refuse("key and value must be (b,w,g,k)");
        const std::int64_t rows = ring.size[0], window = ring.size[1], vector = ring.size[2] * ring.size[3];
        const ort::Shape fresh{{rows, ring.size[2], 1, ring.size[3]}, 4}, column{{rows, 1}, 2};
        if (!(shape[kK] == fresh) || !(shape[kV] == fresh)) return refuse("k and v must be (b,g,1,k), with g and k of the ring");
        if (!(shape[kPosition] == column) || !(shape[kActive] == column)) return refuse("position and active must be (b,1)");
        const auto* position = static_cast<const std::int64_t*>(input[kPosition]);
        const auto* active = static_cast<const std::uint8_t*>(input[kActive]);
        for (const std::size_t which : {kKey, kValue}) {
            void* out = nullptr;
            if (ort::Status* failed = make_output(which, ring, &out)) return failed;
            const std::size_t bytes = static_cast<std::size_t>(rows * window * vector) * ort::bytes_of(op_.ring);
            if (out != input[which] && bytes > 0) std::memcpy(out, input[which], bytes);
            const float* from = static_cast<const float*>(input[which + kK]);
            for (std::int64_t b = 0; b < rows; ++b) {
                if (!active[b] || position[b] < 0) continue;
                const std::int64_t at = (b * window + position[b] % window) * vector;
                const auto count = static_cast<std::int32_t>(vector);
                if (op_.ring == ort::kFloat)
                    speechssm::append_body(from + b * vector, static_cast<float*>(out) + at, nullptr, count);
                else
                    speechssm::append_body(from + b * vector, static_cast<speechssm::Half*>(out) + at, nullptr, count);
            }
        }
        return nullptr;
    }

private:
    const Op& op_;
};

}  // namespace

// Called once a process; sessions keep pointers to the ops.
ort::Status* speechssm::add_write_ops(ort::Api api, ort::CustomOpDomain* domain) {
    static Op ops[2];
    Op* next = ops;
    for (const ort::ElementType ring : {ort::kFloat, ort::kFloat16}) {
        *next = ort::device_op<Op, Run>(ort::Device::cpu);
        next->ring = ring;
        next->get_name = [](const ort::CustomOp*) { return "RingWrite"; };
        next->get_input_type = [](const ort::CustomOp* o, std::size_t i) {
            if (i == kPosition) return ort::kInt64;
            if (i == kActive) return ort::kBool;
            return i == kK || i == kV ? ort::kFloat : static_cast<const Op*>(o)->ring;
        };
        next->get_input_count = [](const ort::CustomOp*) -> std::size_t { return kInputs; };
        next->get_output_type = [](const ort::CustomOp* o, std::size_t) { return static_cast<const Op*>(o)->ring; };
        next->get_output_count = [](const ort::CustomOp*) -> std::size_t { return 2; };
        if (ort::Status* failed = api.add_op(domain, next++)) return failed;
    }
    return nullptr;
}
