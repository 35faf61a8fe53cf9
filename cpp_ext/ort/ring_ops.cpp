// speechssm::RingAttend, RingScan and their Int8 forms as ONNX Runtime custom ops.
//
// Inputs and outputs are those of the model-local functions of the same names
// (export/graphs/ring_function.py), so one graph runs with or without this library:
//
//   RingAttend  q (b,h*k)    k, v (b,g,1,k)  key, value (b,w,g,k)  position (b)  active  (b) bool
//               -> y (b,h*k), check (b)
//   RingScan    q (t,b,h*k)  k, v (t,b,g,k)  key, value (b,w,g,k)  position (b)  lengths (b) int64
//               -> y (t,b,h*k), check (b), key_out, value_out
//
// The Int8 forms have key_scale, value_scale (b,w,g) float32 as last inputs, and RingScanInt8 as last outputs.
// q, k, v, y and check are float32; rings are float32, float16, bfloat16, or int8. A ring whose output is
// bound to its input's memory is written where it lies, otherwise copied first. RingAttend writes no ring:
// a step appends when it has its result, so that one that fails has changed nothing.
#include "../host/isa.hpp"
#include "device_op.hpp"
#include "node_run.hpp"
#include "ops.hpp"
#include "room.hpp"
#include "speechssm/check.hpp"
#include "speechssm/ring_api.h"
#if defined(SPEECHSSM_WITH_CUDA)
#include "speechssm/cuda_api.h"
#endif

namespace {

enum Input { kQ, kK, kV, kKey, kValue, kPosition, kRows, kKeyScale, kValueScale, kInputs };  // kRows: active or lengths
enum Output { kY, kCheck, kKeyOut, kValueOut, kKeyScaleOut, kValueScaleOut };

struct Op : ort::DeviceOp {
    bool scan;
    ort::ElementType ring;

    bool scaled() const { return ring == ort::kInt8; }
    std::size_t inputs() const { return scaled() ? kInputs : kKeyScale; }
    std::size_t outputs() const { return !scan ? kKeyOut : scaled() ? kValueScaleOut + 1 : kKeyScaleOut; }
};

class Run : ort::NodeRun {
public:
    Run(ort::Api api, const Op& op, const ort::NoSettings&, ort::KernelContext* context)
        : NodeRun(api, op.get_name(&op), context), op_(op) {}

    ort::Status* operator()() {
        std::array<void*, kInputs> input{};
        std::array<ort::Shape, kInputs> shape;
        for (std::size_t i = 0; i < op_.inputs(); ++i)
            if (ort::Status* failed = read_input(i, &input[i], &shape[i])) return failed;
        const ort::Shape &q = shape[kQ], &k = shape[kK], &ring = shape[kKey];
        if (q.rank != (op_.scan ? 3u : 2u)) return refuse("q must be %s", op_.scan ? "(t,b,h*k)" : "(b,h*k)");
        if (ring.rank != 4) return refuse("key must be (b,w,g,k)");
        const std::int64_t tokens = op_.scan ? q.size[0] : 1, rows = q.size[q.rank - 2], wide = q.size[q.rank - 1];
        const std::int64_t window = ring.size[1], kv_heads = ring.size[2], dim = ring.size[3];
        const ort::Shape step{{rows, kv_heads, 1, dim}, 4}, chunk{{tokens, rows, kv_heads, dim}, 4};
        if (!(k == (op_.scan ? chunk : step)) || !(shape[kV] == k))
            return refuse("k and v must be %s, with g and k of the ring", op_.scan ? "(t,b,g,k)" : "(b,g,1,k)");
        if (ring.size[0] != rows || !(shape[kValue] == ring)) return refuse("key and value must be (b,w,g,k)");
        if (dim < 1 || wide % dim != 0) return refuse("the last axis of q is no multiple of k");
        if (!(shape[kPosition] == ort::Shape{{rows}, 1})) return refuse("position must be (b)");
        if (!(shape[kRows] == ort::Shape{{rows}, 1})) return refuse("%s must be (b)", op_.scan ? "lengths" : "active");
        const ort::Shape scales{{rows, window, kv_heads}, 3};
        if (op_.scaled() && (!(shape[kKeyScale] == scales) || !(shape[kValueScale] == scales)))
            return refuse("key_scale and value_scale must be (b,w,g)");
        for (const std::int64_t size : {tokens, rows, wide, window, kv_heads, dim})
            if (size > INT32_MAX) return refuse("a dimension is over 2^31 - 1");

        std::array<void*, kValueScaleOut + 1> output{};
        const ort::Shape made[] = {q, ort::Shape{{rows}, 1}, ring, ring, scales, scales};
        for (std::size_t i = 0; i < op_.outputs(); ++i)
            if (ort::Status* failed = make_output(i, made[i], &output[i])) return failed;
        if (rows == 0) return nullptr;

        speechssm_ring call{};
        call.struct_bytes = sizeof call;
        call.dtype = SPEECHSSM_F32;
        call.ring_dtype = ort::launcher_type(op_.ring);
        call.tokens = static_cast<std::int32_t>(tokens);
        call.rows = call.slot_count = static_cast<std::int32_t>(rows);
        call.heads = static_cast<std::int32_t>(wide / dim);
        call.kv_heads = static_cast<std::int32_t>(kv_heads);
        call.head_dim = static_cast<std::int32_t>(dim);
        call.window = static_cast<std::int32_t>(window);
        call.token_stride = rows;
        call.row_stride = 1;
        call.q = input[kQ];
        call.k = input[kK];
        call.v = input[kV];
        call.y = output[kY];
        call.check = static_cast<float*>(output[kCheck]);
        call.key_in = input[kKey];
        call.value_in = input[kValue];
        call.key_out = output[kKeyOut];
        call.value_out = output[kValueOut];
        call.key_scale_in = static_cast<const float*>(input[kKeyScale]);
        call.value_scale_in = static_cast<const float*>(input[kValueScale]);
        call.key_scale_out = static_cast<float*>(output[kKeyScaleOut]);
        call.value_scale_out = static_cast<float*>(output[kValueScaleOut]);
        call.position = static_cast<const std::int64_t*>(input[kPosition]);
        if (op_.scan)
            call.lengths = static_cast<const std::int64_t*>(input[kRows]);
        else
            call.active = static_cast<const std::uint8_t*>(input[kRows]);
        return launch(call);
    }

private:
    ort::Status* launch(const speechssm_ring& call) {
#if defined(SPEECHSSM_WITH_CUDA)
        if (op_.device == ort::Device::cuda) {
            void* stream = nullptr;
            if (ort::Status* failed = api_.gpu_stream(context_, &stream)) return failed;
            // In one piece: a workspace could not be kept across a captured graph.
            const std::int32_t launched = speechssm_ring_cuda(&call, 0, stream);
            return launched == SPEECHSSM_OK ? nullptr : refuse("%s", speechssm_status_text(launched));
        }
#endif
        const std::int32_t status = speechssm::check(&call);
        if (status != SPEECHSSM_OK) return refuse("%s", speechssm_status_text(status));
        if (call.rows == 1 && call.key_out == nullptr && speechssm::ring_pieces_of(call, 0) > 1) return in_pieces(call);
        // Rows know nothing of each other, so threads change no bit.
        const auto each = [](void* data, std::size_t row) {
            const std::int32_t b = static_cast<std::int32_t>(row);
            speechssm::ring_rows(*static_cast<const speechssm_ring*>(data), b, b + 1);
        };
        return api_.parallel_for(context_, each, static_cast<std::size_t>(call.rows), const_cast<speechssm_ring*>(&call));
    }

    // A lone row's step: threads share its slots.
    ort::Status* in_pieces(const speechssm_ring& call) {
        const std::int32_t count = speechssm::ring_pieces_of(call, 0);
        const std::size_t bytes = static_cast<std::size_t>(count) * static_cast<std::size_t>(speechssm::ring_record_bytes(call));
        struct Work {
            const speechssm_ring& call;
            float* records;
        } work{call, static_cast<float*>(ort::room(bytes))};
        const auto each = [](void* data, std::size_t piece) {
            const Work& w = *static_cast<const Work*>(data);
            speechssm::ring_piece(w.call, 0, static_cast<std::int32_t>(piece), w.records);
        };
        if (ort::Status* failed = api_.parallel_for(context_, each, static_cast<std::size_t>(count), &work)) return failed;
        speechssm::ring_join(call, 0, count, work.records);
        return nullptr;
    }

    const Op& op_;
};

const Op& self(const ort::CustomOp* op) { return *static_cast<const Op*>(op); }

ort::ElementType input_type(const ort::CustomOp* op, std::size_t index) {
    switch (index) {
        case kKey:
        case kValue: return self(op).ring;
        case kPosition: return ort::kInt64;
        case kRows: return self(op).scan ? ort::kInt64 : ort::kBool;
        default: return ort::kFloat;
    }
}

ort::ElementType output_type(const ort::CustomOp* op, std::size_t index) {
    return index == kKeyOut || index == kValueOut ? self(op).ring : ort::kFloat;
}

const char* name_of(const ort::CustomOp* op) {
    const Op& o = self(op);
    if (o.scaled()) return o.scan ? "RingScanInt8" : "RingAttendInt8";
    return o.scan ? "RingScan" : "RingAttend";
}

Op make_op(ort::Device device, bool scan, ort::ElementType ring) {
    Op op = ort::device_op<Op, Run>(device);
    op.scan = scan;
    op.ring = ring;
    op.get_name = name_of;
    op.get_input_type = input_type;
    op.get_input_count = [](const ort::CustomOp* o) { return self(o).inputs(); };
    op.get_output_type = output_type;
    op.get_output_count = [](const ort::CustomOp* o) { return self(o).outputs(); };
    return op;
}

constexpr ort::ElementType kRings[] = {ort::kFloat, ort::kFloat16, ort::kBFloat16, ort::kInt8};

}  // namespace

// Called once a process; sessions keep pointers to the ops.
ort::Status* speechssm::add_ring_ops(ort::Api api, ort::CustomOpDomain* domain) {
    static Op ops[2 * 2 * 4];
    Op* next = ops;
    for (const ort::Device device : ort::kDevices)
        for (const bool scan : {false, true})
            for (const ort::ElementType ring : kRings) {
                *next = make_op(device, scan, ring);
                if (ort::Status* failed = api.add_op(domain, next++)) return failed;
            }
    return nullptr;
}
