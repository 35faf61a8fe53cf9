// speechssm::SampleToken as an ONNX Runtime custom op.
//
// Inputs and outputs are those of the model-local function of the same name (export/graphs/sample_function.py), so one
// graph runs with or without this library:
//
//   SampleToken  logits (b,v)  temperature (b)  top_k (b) int64  top_p (b)  uniform (b)
//                -> token (b) int64, logprob (b), finite (b)
//
// Attribute: k_max, the most candidates that are sorted. The maths: speechssm/sample_api.h. Processors only.
#include "../host/isa.hpp"
#include "device_op.hpp"
#include "node_run.hpp"
#include "ops.hpp"
#include "room.hpp"
#include "speechssm/check.hpp"

namespace {

constexpr std::size_t kInputs = 5, kTopK = 2;

struct Op : ort::DeviceOp {};

struct Settings {
    std::int64_t k_max = 0;
    ort::Status* read(ort::Api api, const ort::KernelInfo* info) { return api.attribute(info, "k_max", &k_max); }
};

class Run : ort::NodeRun {
public:
    Run(ort::Api api, const Op& op, const Settings& settings, ort::KernelContext* context)
        : NodeRun(api, op.get_name(&op), context), settings_(settings) {}

    ort::Status* operator()() {
        void* input[kInputs] = {};
        ort::Shape shape[kInputs];
        for (std::size_t i = 0; i < kInputs; ++i)
            if (ort::Status* failed = read_input(i, &input[i], &shape[i])) return failed;
        if (shape[0].rank != 2) return refuse("logits must be (b,v)");
        const std::int64_t rows = shape[0].size[0], vocab = shape[0].size[1];
        const ort::Shape each{{rows}, 1};
        for (std::size_t i = 1; i < kInputs; ++i)
            if (!(shape[i] == each)) return refuse("temperature, top_k, top_p and uniform must be (b)");
        for (const std::int64_t size : {rows, vocab, settings_.k_max})
            if (size > INT32_MAX) return refuse("a dimension is over 2^31 - 1");
        void* output[3] = {};
        for (std::size_t i = 0; i < 3; ++i)
            if (ort::Status* failed = make_output(i, each, &output[i])) return failed;
        speechssm_sample call{};
        call.struct_bytes = sizeof call;
        call.rows = static_cast<std::int32_t>(rows);
        call.vocab = static_cast<std::int32_t>(vocab);
        call.k_max = static_cast<std::int32_t>(settings_.k_max);
        call.logits = static_cast<const float*>(input[0]);
        call.temperature = static_cast<const float*>(input[1]);
        call.top_k = static_cast<const std::int64_t*>(input[kTopK]);
        call.top_p = static_cast<const float*>(input[3]);
        call.uniform = static_cast<const float*>(input[4]);
        call.token = static_cast<std::int64_t*>(output[0]);
        call.logprob = static_cast<float*>(output[1]);
        call.finite = static_cast<float*>(output[2]);
        call.workspace_bytes = speechssm::sample_workspace_bytes(vocab);
        call.workspace = ort::room(static_cast<std::size_t>(call.workspace_bytes));
        const std::int32_t status = speechssm::check(&call);
        if (status != SPEECHSSM_OK) return refuse("%s", speechssm_status_text(status));
        // Rows know nothing of each other; each thread has a workspace of its own.
        const auto one = [](void* data, std::size_t row) {
            const speechssm_sample& c = *static_cast<const speechssm_sample*>(data);
            void* workspace = ort::room(static_cast<std::size_t>(c.workspace_bytes));
            speechssm::sample_row(c, static_cast<std::int32_t>(row), workspace);
        };
        if (rows == 1) {
            one(&call, 0);
            return nullptr;
        }
        return api_.parallel_for(context_, one, static_cast<std::size_t>(rows), &call);
    }

private:
    const Settings& settings_;
};

}  // namespace

// Called once a process; sessions keep pointers to the op.
ort::Status* speechssm::add_sample_ops(ort::Api api, ort::CustomOpDomain* domain) {
    static Op op = ort::device_op<Op, Run, Settings>(ort::Device::cpu);
    op.get_name = [](const ort::CustomOp*) { return "SampleToken"; };
    op.get_input_type = [](const ort::CustomOp*, std::size_t i) { return i == kTopK ? ort::kInt64 : ort::kFloat; };
    op.get_input_count = [](const ort::CustomOp*) { return kInputs; };
    op.get_output_type = [](const ort::CustomOp*, std::size_t i) { return i == 0 ? ort::kInt64 : ort::kFloat; };
    op.get_output_count = [](const ort::CustomOp*) -> std::size_t { return 3; };
    return api.add_op(domain, &op);
}
