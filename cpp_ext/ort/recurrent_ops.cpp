// speechssm::RecurrentStep and BlockGates as ONNX Runtime custom ops.
//
// Inputs and outputs are those of the model-local functions of the same names
// (export/graphs/recurrent_function.py), so one graph runs with or without this library:
//
//   RecurrentStep  u, branch (b,e)  conv (b,3,e)  lru (b,e)  taps (4,e)  conv_bias (e)  gates (h,2g,g)
//                  gates_bias (h*2g)  decay (e)  position (b)  active (b) bool
//                  -> y (b,e), largest (b), conv_out (b,3,e), lru_out (b,e)
//   BlockGates     x (r,e)  gates (h,2g,g)  gates_bias (h*2g)  ->  gate_x, gate_a (r,e)
//
// e is h*g. gates are float32, float16 or bfloat16, all else float32. One node is the convolution, the gates, the
// recurrence and the product with the other branch, each by the launcher that has it on its own; the gates are a
// linear layer a head (linear_api.h), so BlockGates and RecurrentStep agree bit for bit. Processors only.
#include <algorithm>
#include <cmath>

#include "../host/isa.hpp"
#include "device_op.hpp"
#include "node_run.hpp"
#include "ops.hpp"
#include "resident.hpp"
#include "room.hpp"
#include "speechssm/check.hpp"
#include "speechssm/conv4_api.h"
#include "speechssm/linear_api.h"

namespace {

struct Op : ort::DeviceOp {
    bool step;
    ort::ElementType stored;

    std::size_t gates() const { return step ? 6 : 1; }  // index of the input
    std::size_t inputs() const { return step ? 11 : 3; }
};

struct Settings {
    mutable ort::Resident gates;
    ort::Status* read(ort::Api, const ort::KernelInfo*) { return nullptr; }
};

// The block-diagonal maps of one node: a linear layer for each head and gate.
struct Gates {
    std::int32_t rows, heads, size;
    std::int32_t stored;
    std::size_t number;  // bytes of one of the matrix
    const float* x;
    const void* matrix;
    const float* bias;
    float *gate_x, *gate_a;
    char* workspace;

    std::int64_t head_bytes() const { return (speechssm_linear_workspace_bytes(rows, size) + 63) / 64 * 64; }

    void run(std::int32_t head) const {
        const std::int64_t width = static_cast<std::int64_t>(heads) * size;
        speechssm_linear call{};
        call.struct_bytes = sizeof call;
        call.rows = rows;
        call.fan_in = call.fan_out = size;
        call.stored = stored;
        call.x_stride = call.y_stride = width;
        call.x = x + static_cast<std::size_t>(head) * size;
        call.workspace = workspace + head * head_bytes();
        call.workspace_bytes = head_bytes();
        for (std::int32_t row = 0; row < rows; ++row) speechssm::linear_prepare(call, row);
        float* out[] = {gate_x, gate_a};
        for (std::size_t gate = 0; gate < 2; ++gate) {
            const std::size_t at = (static_cast<std::size_t>(head) * 2 + gate) * size;
            call.weight = static_cast<const char*>(matrix) + at * size * number;
            call.bias = bias + at;
            call.y = out[gate] + static_cast<std::size_t>(head) * size;
            speechssm::linear_outputs(call, 0, size);
        }
    }
};

class Run : ort::NodeRun {
public:
    Run(ort::Api api, const Op& op, const Settings& settings, ort::KernelContext* context)
        : NodeRun(api, op.get_name(&op), context), op_(op), settings_(settings) {}

    ort::Status* operator()() {
        for (std::size_t i = 0; i < op_.inputs(); ++i)
            if (ort::Status* failed = read_input(i, &input_[i], &shape_[i])) return failed;
        const ort::Shape &x = shape_[0], &gates = shape_[op_.gates()];
        if (x.rank != 2) return refuse("%s must have two axes", op_.step ? "u" : "x");
        if (gates.rank != 3 || gates.size[1] != 2 * gates.size[2]) return refuse("gates must be (h,2g,g)");
        rows_ = x.size[0], width_ = x.size[1];
        if (gates.size[0] < 1 || gates.size[2] < 1 || width_ != gates.size[0] * gates.size[2])
            return refuse("the last axis of the first input must be h*g");
        if (rows_ > INT32_MAX || width_ > INT32_MAX) return refuse("a dimension is over 2^31 - 1");
        if (!is(op_.gates() + 1, {2 * width_})) return refuse("gates_bias must be (h*2g)");
        return op_.step ? step(gates) : gates_alone(gates);
    }

private:
    bool is(std::size_t index, std::initializer_list<std::int64_t> sizes) const {
        ort::Shape wanted;
        for (const std::int64_t size : sizes) wanted.size[wanted.rank++] = size;
        return shape_[index] == wanted;
    }
    const float* floats(std::size_t index) const { return static_cast<const float*>(input_[index]); }

    Gates gates_of(const ort::Shape& shape) const {
        Gates out{};
        out.rows = static_cast<std::int32_t>(rows_);
        out.heads = static_cast<std::int32_t>(shape.size[0]);
        out.size = static_cast<std::int32_t>(shape.size[2]);
        out.stored = ort::launcher_type(op_.stored);
        out.matrix = input_[op_.gates()];
        out.number = ort::bytes_of(op_.stored);
        if (rows_ <= ort::kFewRows)
            out.matrix = settings_.gates.of(out.matrix, static_cast<std::size_t>(2 * width_ * shape.size[2]) * out.number);
        out.bias = floats(op_.gates() + 1);
        return out;
    }

    ort::Status* run_gates(const Gates& gates) {
        const auto each = [](void* data, std::size_t head) {
            static_cast<const Gates*>(data)->run(static_cast<std::int32_t>(head));
        };
        return api_.parallel_for(context_, each, static_cast<std::size_t>(gates.heads), const_cast<Gates*>(&gates));
    }

    ort::Status* gates_alone(const ort::Shape& shape) {
        Gates gates = gates_of(shape);
        gates.x = floats(0);
        float** outputs[] = {&gates.gate_x, &gates.gate_a};
        for (std::size_t i = 0; i < 2; ++i) {
            void* made = nullptr;
            if (ort::Status* failed = make_output(i, shape_[0], &made)) return failed;
            *outputs[i] = static_cast<float*>(made);
        }
        if (rows_ == 0) return nullptr;
        gates.workspace = static_cast<char*>(ort::room(static_cast<std::size_t>(gates.heads * gates.head_bytes())));
        return run_gates(gates);
    }

    // What the rows of a step share, so that threads can take them.
    struct Rows {
        const Run* run;
        Gates gates;
        float *mixed, *y, *largest, *conv_out, *lru_out;
    };

    ort::Status* step(const ort::Shape& shape) {
        const char* wrong = !is(1, {rows_, width_})      ? "branch must be (b,e)"
                            : !is(2, {rows_, 3, width_}) ? "conv must be (b,3,e)"
                            : !is(3, {rows_, width_})    ? "lru must be (b,e)"
                            : !is(4, {4, width_})        ? "taps must be (4,e)"
                            : !is(5, {width_})           ? "conv_bias must be (e)"
                            : !is(8, {width_})           ? "decay must be (e)"
                            : !is(9, {rows_})            ? "position must be (b)"
                            : !is(10, {rows_})           ? "active must be (b)"
                                                         : nullptr;
        if (wrong) return refuse(wrong);
        const ort::Shape made[] = {shape_[0], ort::Shape{{rows_}, 1}, shape_[2], shape_[3]};
        void* out[4];
        for (std::size_t i = 0; i < 4; ++i)
            if (ort::Status* failed = make_output(i, made[i], &out[i])) return failed;
        if (rows_ == 0) return nullptr;
        Rows rows{this, gates_of(shape), nullptr, static_cast<float*>(out[0]), static_cast<float*>(out[1]),
                  static_cast<float*>(out[2]), static_cast<float*>(out[3])};
        const std::size_t numbers = static_cast<std::size_t>(rows_ * width_);
        char* room = static_cast<char*>(ort::room(3 * numbers * sizeof(float) + 192 +
                                                  static_cast<std::size_t>(rows.gates.heads * rows.gates.head_bytes())));
        rows.gates.workspace = room;
        room += rows.gates.heads * rows.gates.head_bytes();
        rows.mixed = reinterpret_cast<float*>(room);
        rows.gates.gate_x = rows.mixed + numbers;
        rows.gates.gate_a = rows.gates.gate_x + numbers;
        rows.gates.x = rows.mixed;
        if (ort::Status* failed = over_rows(rows, [](void* d, std::size_t row) {
                const Rows& r = *static_cast<const Rows*>(d);
                r.run->convolve(r, static_cast<std::int64_t>(row));
            }))
            return failed;
        if (ort::Status* failed = run_gates(rows.gates)) return failed;
        return over_rows(rows, [](void* d, std::size_t row) {
            const Rows& r = *static_cast<const Rows*>(d);
            r.run->recur(r, static_cast<std::int64_t>(row));
        });
    }

    ort::Status* over_rows(const Rows& rows, void (*each)(void*, std::size_t)) {
        void* data = const_cast<Rows*>(&rows);
        if (rows_ > 1) return api_.parallel_for(context_, each, static_cast<std::size_t>(rows_), data);
        each(data, 0);
        return nullptr;
    }

    // The launchers below take checked calls of one row.
    void convolve(const Rows& r, std::int64_t row) const {
        speechssm_conv4 call{};
        call.struct_bytes = sizeof call;
        call.tokens = call.rows = call.slot_count = 1;
        call.width = static_cast<std::int32_t>(width_);
        call.token_stride = call.row_stride = width_;
        call.u = floats(0) + row * width_;
        call.y = r.mixed + row * width_;
        call.weight = floats(4);
        call.bias = floats(5);
        call.state_in = floats(2) + row * 3 * width_;
        call.state_out = r.conv_out + row * 3 * width_;
        call.position = static_cast<const std::int64_t*>(input_[9]) + row;
        call.active = static_cast<const std::uint8_t*>(input_[10]) + row;
        speechssm_conv4_host(&call);
    }

    void recur(const Rows& r, std::int64_t row) const {
        const std::int64_t at = row * width_;
        speechssm_rglru call{};
        call.struct_bytes = sizeof call;
        call.tokens = call.rows = call.slot_count = 1;
        call.width = static_cast<std::int32_t>(width_);
        call.token_stride = call.row_stride = width_;
        call.x = r.mixed + at;
        call.gate_x = r.gates.gate_x + at;
        call.gate_a = r.gates.gate_a + at;
        call.branch = floats(1) + at;
        call.y = r.y + at;
        call.decay = floats(8);
        call.state_in = floats(3) + at;
        call.state_out = r.lru_out + at;
        call.position = static_cast<const std::int64_t*>(input_[9]) + row;
        call.active = static_cast<const std::uint8_t*>(input_[10]) + row;
        speechssm_rglru_step_host(&call);
        r.largest[row] = largest(r, row, *call.active != 0);
    }

    // Of |lru_out|, NaN where it or u is not finite; 0 for an inactive row.
    float largest(const Rows& r, std::int64_t row, bool active) const {
        if (!active) return 0.0f;
        const float *state = r.lru_out + row * width_, *u = floats(0) + row * width_;
        float most = 0.0f, damage = 0.0f;
        for (std::int64_t e = 0; e < width_; ++e) {
            most = std::max(most, std::fabs(state[e]));
            damage += state[e] * 0.0f + u[e] * 0.0f;
        }
        return most + damage;
    }

    const Op& op_;
    const Settings& settings_;
    std::array<void*, 11> input_{};
    std::array<ort::Shape, 11> shape_;
    std::int64_t rows_ = 0, width_ = 0;
};

const Op& self(const ort::CustomOp* op) { return *static_cast<const Op*>(op); }

ort::ElementType input_type(const ort::CustomOp* op, std::size_t index) {
    if (index == self(op).gates()) return self(op).stored;
    if (index == 9) return ort::kInt64;
    return index == 10 ? ort::kBool : ort::kFloat;
}

Op make_op(bool step, ort::ElementType stored) {
    Op op = ort::device_op<Op, Run, Settings>(ort::Device::cpu);
    op.step = step;
    op.stored = stored;
    op.get_name = [](const ort::CustomOp* o) { return self(o).step ? "RecurrentStep" : "BlockGates"; };
    op.get_input_type = input_type;
    op.get_input_count = [](const ort::CustomOp* o) { return self(o).inputs(); };
    op.get_output_type = [](const ort::CustomOp*, std::size_t) { return ort::kFloat; };
    op.get_output_count = [](const ort::CustomOp* o) -> std::size_t { return self(o).step ? 4 : 2; };
    return op;
}

}  // namespace

// Called once a process; sessions keep pointers to the ops.
ort::Status* speechssm::add_recurrent_ops(ort::Api api, ort::CustomOpDomain* domain) {
    static Op ops[2 * 3];
    Op* next = ops;
    for (const bool step : {false, true})
        for (const ort::ElementType stored : {ort::kFloat, ort::kFloat16, ort::kBFloat16}) {
            *next = make_op(step, stored);
            if (ort::Status* failed = api.add_op(domain, next++)) return failed;
        }
    return nullptr;
}
