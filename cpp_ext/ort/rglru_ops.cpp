// speechssm::RGLRUStep and speechssm::RGLRUScan as ONNX Runtime custom ops.
//
// Inputs and outputs are those of the model-local functions of the same names
// (export/graphs/rglru_function.py), so one graph runs with or without this library:
//
//   RGLRUStep  x, gate_x, gate_a (b,e)    decay (e)  state (b,e)  position (b)  active  (b) bool
//   RGLRUScan  x, gate_x, gate_a (t,b,e)  decay (e)  state (b,e)  position (b)  lengths (b) int64
//              -> y like x, state_out (b,e)
//
// x, gates and y are float32, float16 or bfloat16; decay and state are float32.
#include <mutex>

#include "device_op.hpp"
#include "node_run.hpp"
#include "ops.hpp"
#include "speechssm/rglru_api.h"
#if defined(SPEECHSSM_WITH_CUDA)
#include "speechssm/cuda_api.h"
#endif

namespace {

enum class Kind { step, scan };
enum Input { kX, kGateX, kGateA, kDecay, kState, kPosition, kRows, kInputs };  // kRows: active or lengths

struct Op : ort::DeviceOp {
    Kind kind;
    ort::ElementType type;
};

// One run of one node. Every failure becomes a status whose text names the node and what is wrong.
class Run : ort::NodeRun {
public:
    Run(ort::Api api, const Op& op, const ort::NoSettings&, ort::KernelContext* context)
        : NodeRun(api, op.get_name(&op), context), op_(op) {}

    ort::Status* operator()() {
        std::array<void*, kInputs> input{};
        std::array<ort::Shape, kInputs> shape;
        for (std::size_t i = 0; i < kInputs; ++i)
            if (ort::Status* failed = read_input(i, &input[i], &shape[i])) return failed;
        const std::size_t rank = op_.kind == Kind::step ? 2 : 3;
        const ort::Shape& x = shape[kX];
        if (x.rank != rank) return refuse("x must be %s", op_.kind == Kind::step ? "(b,e)" : "(t,b,e)");
        const std::int64_t tokens = op_.kind == Kind::step ? 1 : x.size[0];
        const std::int64_t rows = x.size[rank - 2], width = x.size[rank - 1];
        if (!(shape[kGateX] == x) || !(shape[kGateA] == x)) return refuse("gate_x and gate_a must have the shape of x");
        if (!(shape[kDecay] == ort::Shape{{width}, 1})) return refuse("decay must be (e)");
        if (!(shape[kState] == ort::Shape{{rows, width}, 2})) return refuse("state must be (b,e)");
        if (!(shape[kPosition] == ort::Shape{{rows}, 1})) return refuse("position must be (b)");
        if (!(shape[kRows] == ort::Shape{{rows}, 1})) return refuse("%s must be (b)", rows_name());
        constexpr std::int64_t most = INT32_MAX;
        if (tokens > most || rows > most || width > most) return refuse("a dimension is over 2^31 - 1");

        void *y = nullptr, *state_out = nullptr;
        if (ort::Status* failed = make_output(0, x, &y)) return failed;
        if (ort::Status* failed = make_output(1, shape[kState], &state_out)) return failed;
        if (rows == 0 || width == 0) return nullptr;

        speechssm_rglru call{};
        call.struct_bytes = sizeof call;
        call.dtype = ort::launcher_type(op_.type);
        call.tokens = static_cast<std::int32_t>(tokens);
        call.rows = call.slot_count = static_cast<std::int32_t>(rows);
        call.width = static_cast<std::int32_t>(width);
        call.token_stride = rows * width;
        call.row_stride = width;
        call.x = input[kX];
        call.gate_x = input[kGateX];
        call.gate_a = input[kGateA];
        call.y = y;
        call.decay = static_cast<const float*>(input[kDecay]);
        call.state_in = static_cast<const float*>(input[kState]);
        call.state_out = static_cast<float*>(state_out);
        call.position = static_cast<const std::int64_t*>(input[kPosition]);
        if (op_.kind == Kind::step)
            call.active = static_cast<const std::uint8_t*>(input[kRows]);
        else
            call.lengths = static_cast<const std::int64_t*>(input[kRows]);
        return launch(call);
    }

private:
    ort::Status* launch(const speechssm_rglru& call) {
        std::int32_t status;
#if defined(SPEECHSSM_WITH_CUDA)
        if (op_.device == ort::Device::cuda) {
            void* stream = nullptr;
            if (ort::Status* failed = api_.gpu_stream(context_, &stream)) return failed;
            // Version 2 of the scan needs no workspace, which a custom op could not keep across a captured graph.
            status = op_.kind == Kind::step ? speechssm_rglru_step_cuda(&call, 0, stream)
                                            : speechssm_rglru_scan_cuda(&call, 2, stream);
        } else
#endif
        {
            status = op_.kind == Kind::step ? speechssm_rglru_step_host(&call) : speechssm_rglru_scan_host(&call, 1);
        }
        return status == SPEECHSSM_OK ? nullptr : refuse("%s", speechssm_status_text(status));
    }

    const char* rows_name() const { return op_.kind == Kind::step ? "active" : "lengths"; }

    const Op& op_;
};

const Op& self(const ort::CustomOp* op) { return *static_cast<const Op*>(op); }

ort::ElementType input_type(const ort::CustomOp* op, std::size_t index) {
    switch (index) {
        case kDecay:
        case kState: return ort::kFloat;
        case kPosition: return ort::kInt64;
        case kRows: return self(op).kind == Kind::step ? ort::kBool : ort::kInt64;
        default: return self(op).type;
    }
}

Op make_op(Kind kind, ort::Device device, ort::ElementType type) {
    Op op = ort::device_op<Op, Run>(device);
    op.kind = kind;
    op.type = type;
    op.get_name = [](const ort::CustomOp* o) { return self(o).kind == Kind::step ? "RGLRUStep" : "RGLRUScan"; };
    op.get_input_type = input_type;
    op.get_input_count = [](const ort::CustomOp*) { return std::size_t{kInputs}; };
    op.get_output_type = [](const ort::CustomOp* o, std::size_t i) { return i == 0 ? self(o).type : ort::kFloat; };
    op.get_output_count = [](const ort::CustomOp*) { return std::size_t{2}; };
    return op;
}

constexpr ort::ElementType kTypes[] = {ort::kFloat, ort::kFloat16, ort::kBFloat16};

// Sessions keep pointers to the ops and to the domain, so both live as long as the process.
ort::Status* domain(ort::Api api, ort::CustomOpDomain** out) {
    static Op ops[2 * 3 * 2];
    static ort::CustomOpDomain* made = nullptr;
    static std::mutex once;
    const std::lock_guard<std::mutex> hold(once);
    if (made == nullptr) {
        ort::CustomOpDomain* fresh = nullptr;
        if (ort::Status* failed = api.create_domain("speechssm", &fresh)) return failed;
        Op* next = ops;
        for (const ort::Device device : ort::kDevices)
            for (const Kind kind : {Kind::step, Kind::scan})
                for (const ort::ElementType type : kTypes) {
                    *next = make_op(kind, device, type);
                    if (ort::Status* failed = api.add_op(fresh, next++)) return failed;
                }
        for (const auto add : {speechssm::add_ring_ops, speechssm::add_linear_ops, speechssm::add_recurrent_ops,
                               speechssm::add_sample_ops, speechssm::add_write_ops})
            if (ort::Status* failed = add(api, fresh)) return failed;
        made = fresh;
    }
    *out = made;
    return nullptr;
}

}  // namespace

extern "C" SPEECHSSM_EXPORT ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
    const ort::Api api(base->get_api(ort::kTableVersion));
    if (!api) return nullptr;  // a runtime older than the ABI: it reports the unknown op itself
    ort::CustomOpDomain* ours = nullptr;
    if (ort::Status* failed = domain(api, &ours)) return failed;
    return api.add_domain(options, ours);
}
