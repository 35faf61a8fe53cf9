// speechssm::NormLinear, NormActivatedLinear, NormGatedLinear, AddLinear and their Blocks forms as ONNX Runtime custom ops.
//
// Inputs and outputs are those of the model-local functions of the same names
// (export/graphs/linear_function.py), so one graph runs with or without this library:
//
//   NormLinear       x (r,i)  norm (i)  weight (o,i)  bias (o)                                -> y (r,o)
//   NormActivatedLinear   the same
//   NormGatedLinear  x (r,i)  norm (i)  weight (o,i)  bias (o)  times (o,i)  times_bias (o)   -> y (r,o)
//   AddLinear        x (r,i)  weight (o,i)  bias (o)  residual (r,o)                          -> y (r,o)
//
// weight and times are float32, float16 or bfloat16. In the Blocks forms they are uint8 (o, blocks, 128 bits/8), and
// scale (o, blocks) follows each. Attributes: epsilon, and activation (speechssm/linear_api.h). Processors only: on
// a device a graph runs the functions, or an engine its own products.
#include <algorithm>

#include "../host/isa.hpp"
#include "device_op.hpp"
#include "node_run.hpp"
#include "ops.hpp"
#include "resident.hpp"
#include "room.hpp"
#include "speechssm/check.hpp"
#include "speechssm/linear_api.h"

namespace {

enum class Kind { norm, activated, gated, add };

struct Op : ort::DeviceOp {
    Kind kind;
    ort::ElementType stored;

    bool blocks() const { return stored == ort::kUInt8; }
    bool is_matrix(std::size_t index) const {
        const std::size_t first = kind == Kind::add ? 1 : 2, second = first + 2 + blocks();
        return index == first || (kind == Kind::gated && index == second);
    }
    std::size_t inputs() const { return 4 + blocks() + (kind == Kind::gated ? 2 + blocks() : 0); }
};

struct Settings {
    float epsilon = 0.0f;
    std::int64_t activation = 0;
    mutable ort::Resident weight, times;

    ort::Status* read(ort::Api api, const ort::KernelInfo* info) {
        if (ort::Status* failed = api.attribute(info, "epsilon", &epsilon)) return failed;
        return api.attribute(info, "activation", &activation);
    }
};

class Run : ort::NodeRun {
public:
    Run(ort::Api api, const Op& op, const Settings& settings, ort::KernelContext* context)
        : NodeRun(api, op.get_name(&op), context), op_(op), settings_(settings) {}

    ort::Status* operator()() {
        std::array<void*, 8> input{};
        std::array<ort::Shape, 8> shape;
        for (std::size_t i = 0; i < op_.inputs(); ++i)
            if (ort::Status* failed = read_input(i, &input[i], &shape[i])) return failed;
        if (shape[0].rank != 2) return refuse("x must be (r,i)");
        const std::int64_t rows = shape[0].size[0], fan_in = shape[0].size[1];
        speechssm_linear call{};
        call.struct_bytes = sizeof call;
        call.epsilon = settings_.epsilon;
        call.activation = static_cast<std::int32_t>(settings_.activation);
        call.x = static_cast<const float*>(input[0]);
        std::size_t next = 1;
        if (op_.kind != Kind::add) {
            if (!(shape[next] == ort::Shape{{fan_in}, 1})) return refuse("norm must be (i)");
            call.norm = static_cast<const float*>(input[next++]);
        }
        const ort::Shape matrix = shape[next];
        if (matrix.rank != (op_.blocks() ? 3u : 2u)) return refuse("weight must be %s", op_.blocks() ? "(o, blocks, bytes)" : "(o,i)");
        const std::int64_t fan_out = matrix.size[0];
        const ort::Shape vector{{fan_out}, 1}, out{{rows, fan_out}, 2};
        if (ort::Status* failed = read_storage(matrix, fan_in, &call.stored)) return failed;
        for (const std::int64_t size : {rows, fan_in, fan_out})
            if (size > INT32_MAX) return refuse("a dimension is over 2^31 - 1");
        // A matrix, its scale and its bias, in that order, once or twice.
        struct Layer {
            const void** weight;
            const float **scale, **bias;
        };
        const Layer layers[] = {{&call.weight, &call.scale, &call.bias}, {&call.times, &call.times_scale, &call.times_bias}};
        for (int i = 0; i < (op_.kind == Kind::gated ? 2 : 1); ++i) {
            if (!(shape[next] == matrix)) return refuse("times must have the shape of weight");
            *layers[i].weight = input[next++];
            if (op_.blocks()) {
                if (!(shape[next] == ort::Shape{{fan_out, matrix.size[1]}, 2})) return refuse("scale must be (o, blocks)");
                *layers[i].scale = static_cast<const float*>(input[next++]);
            }
            if (!(shape[next] == vector)) return refuse("bias must be (o)");
            *layers[i].bias = static_cast<const float*>(input[next++]);
        }
        if (op_.kind == Kind::add) {
            if (!(shape[next] == out)) return refuse("residual must be (r,o)");
            call.residual = static_cast<const float*>(input[next]);
        }
        void* y = nullptr;
        if (ort::Status* failed = make_output(0, out, &y)) return failed;
        call.y = static_cast<float*>(y);
        call.rows = static_cast<std::int32_t>(rows);
        call.fan_in = static_cast<std::int32_t>(fan_in);
        call.fan_out = static_cast<std::int32_t>(fan_out);
        if (rows == 0) return nullptr;
        call.workspace_bytes = speechssm_linear_workspace_bytes(call.rows, call.fan_in);
        call.workspace = ort::room(static_cast<std::size_t>(call.workspace_bytes));
        const std::int32_t status = speechssm::check(&call);
        if (status != SPEECHSSM_OK) return refuse("%s", speechssm_status_text(status));
        if (rows <= ort::kFewRows) {
            const std::size_t bytes = bytes_of(matrix);
            call.weight = settings_.weight.of(call.weight, bytes);
            if (call.times) call.times = settings_.times.of(call.times, bytes);
        }
        return launch(call);
    }

private:
    ort::Status* read_storage(const ort::Shape& matrix, std::int64_t fan_in, std::int32_t* stored) {
        if (!op_.blocks()) {
            *stored = ort::launcher_type(op_.stored);
            return matrix.size[1] == fan_in ? nullptr : refuse("weight must be (o,i)");
        }
        constexpr std::int64_t block = SPEECHSSM_LINEAR_BLOCK;
        *stored = matrix.size[2] == block ? SPEECHSSM_BLOCKS8 : SPEECHSSM_BLOCKS4;
        const bool fits = matrix.size[2] == block || matrix.size[2] == block / 2;
        if (!fits || matrix.size[1] != (fan_in + block - 1) / block) return refuse("weight must be (o, blocks, 128 or 64)");
        return nullptr;
    }

    std::size_t bytes_of(const ort::Shape& matrix) const {
        std::size_t bytes = ort::bytes_of(op_.stored);
        for (std::size_t i = 0; i < matrix.rank; ++i) bytes *= static_cast<std::size_t>(matrix.size[i]);
        return bytes;
    }

    // Rows know nothing of each other, nor do outputs, so threads change no bit.
    ort::Status* launch(const speechssm_linear& call) {
        if (call.rows == 1) {
            speechssm::linear_prepare(call, 0);
        } else {
            const auto prepare = [](void* data, std::size_t row) {
                speechssm::linear_prepare(*static_cast<const speechssm_linear*>(data), static_cast<std::int32_t>(row));
            };
            void* data = const_cast<speechssm_linear*>(&call);
            if (ort::Status* failed = api_.parallel_for(context_, prepare, static_cast<std::size_t>(call.rows), data))
                return failed;
        }
        Share share{&call, outputs_of_a_task(call)};
        const auto compute = [](void* data, std::size_t task) {
            const Share& s = *static_cast<const Share*>(data);
            const std::int32_t first = static_cast<std::int32_t>(task) * s.outputs;
            speechssm::linear_outputs(*s.call, first, std::min(s.call->fan_out, first + s.outputs));
        };
        const std::int32_t tasks = (call.fan_out + share.outputs - 1) / share.outputs;
        return api_.parallel_for(context_, compute, static_cast<std::size_t>(tasks), &share);
    }

    struct Share {
        const speechssm_linear* call;
        std::int32_t outputs;
    };

    // Enough work to be worth handing over, and little enough that a slow thread leaves some to the others.
    static std::int32_t outputs_of_a_task(const speechssm_linear& call) {
        constexpr std::int64_t panel = 64, work = 1 << 17;  // multiplications
        const std::int64_t one = static_cast<std::int64_t>(call.rows) * call.fan_in * (call.times ? 2 : 1);
        const std::int64_t panels = std::max<std::int64_t>(1, work / (one * panel));
        return static_cast<std::int32_t>(std::min<std::int64_t>(panels * panel, INT32_MAX));
    }

    const Op& op_;
    const Settings& settings_;
};

const Op& self(const ort::CustomOp* op) { return *static_cast<const Op*>(op); }

const char* name_of(const ort::CustomOp* op) {
    static constexpr const char* names[][2] = {
        {"NormLinear", "NormLinearBlocks"},
        {"NormActivatedLinear", "NormActivatedLinearBlocks"},
        {"NormGatedLinear", "NormGatedLinearBlocks"},
        {"AddLinear", "AddLinearBlocks"},
    };
    return names[static_cast<int>(self(op).kind)][self(op).blocks()];
}

Op make_op(Kind kind, ort::ElementType stored) {
    Op op = ort::device_op<Op, Run, Settings>(ort::Device::cpu);
    op.kind = kind;
    op.stored = stored;
    op.get_name = name_of;
    op.get_input_type = [](const ort::CustomOp* o, std::size_t i) { return self(o).is_matrix(i) ? self(o).stored : ort::kFloat; };
    op.get_input_count = [](const ort::CustomOp* o) { return self(o).inputs(); };
    op.get_output_type = [](const ort::CustomOp*, std::size_t) { return ort::kFloat; };
    op.get_output_count = [](const ort::CustomOp*) -> std::size_t { return 1; };
    return op;
}

}  // namespace

// Called once a process; sessions keep pointers to the ops.
ort::Status* speechssm::add_linear_ops(ort::Api api, ort::CustomOpDomain* domain) {
    static Op ops[4 * 4];
    Op* next = ops;
    for (const Kind kind : {Kind::norm, Kind::activated, Kind::gated, Kind::add})
        for (const ort::ElementType stored : {ort::kFloat, ort::kFloat16, ort::kBFloat16, ort::kUInt8}) {
            *next = make_op(kind, stored);
            if (ort::Status* failed = api.add_op(domain, next++)) return failed;
        }
    return nullptr;
}
