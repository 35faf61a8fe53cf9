// speechssm::RingAttend and RingScan, and both with an int8 ring, as TensorRT plugins.
//
// Inputs   0 q (b,h*k) or (t,b,h*k); 1 k, 2 v (b,g,1,k) or (t,b,g,k): float32, float16 or bfloat16
//          3 key, 4 value (b,w,g,k)      5 position (b) int64
//          6 active (b) bool to attend, lengths (b) int64 to scan
//          7 key_scale, 8 value_scale (b,w,g) float32, of an int8 ring
// Outputs  0 y like q      1 check (b) float32      a scan: 2 key_out, 3 value_out, 4, 5 their scales
//
// They are those of the ONNX Runtime ops (ort/ring_ops.cpp). A float32 stream takes any ring, a two-byte one its
// own type or int8: the pairs that there are kernels of. With `aliased`, a scan appends where its rings lie;
// otherwise they are copied. RingAttend writes no ring, so it has nothing to alias.
#include "launchers.hpp"
#include "plugin_base.hpp"

namespace speechssm_trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

enum Input { kQ, kK, kV, kKey, kValue, kPosition, kRows, kKeyScale, kValueScale, kInputs };
enum Output { kY, kCheck, kKeyOut, kValueOut, kKeyScaleOut, kValueScaleOut, kOutputs };

struct RingNode {
    bool scan, scaled;

    struct Sizes {
        std::int64_t tokens, rows, wide, window, kv_heads, dim;
    };

    const char* name() const {
        if (scaled) return scan ? "RingScanInt8" : "RingAttendInt8";
        return scan ? "RingScan" : "RingAttend";
    }
    const char* counts() const {
        if (scaled) return scan ? "9 inputs and gives 6 outputs" : "9 inputs and gives 2 outputs";
        return scan ? "7 inputs and gives 4 outputs" : "7 inputs and gives 2 outputs";
    }
    std::int32_t outputs() const { return !scan ? kKeyOut : scaled ? kOutputs : kKeyScaleOut; }
    bool fits(std::int32_t inputs, std::int32_t given) const {
        return inputs == (scaled ? kInputs : kKeyScale) && given == outputs();
    }
    std::int32_t shaped_like(std::int32_t output) const {
        constexpr std::int32_t source[] = {kQ, kPosition, kKey, kValue, kKeyScale, kValueScale};
        return source[output];
    }
    DataType output_type(std::int32_t output, const DataType* in) const {
        return output == kCheck ? DataType::kFLOAT : in[shaped_like(output)];
    }
    std::int32_t aliased_input(std::int32_t output) const { return output < kKeyOut ? -1 : shaped_like(output); }
    const char* objection(std::int32_t, const Options&) const { return nullptr; }

    template <class TypeOf>
    bool takes(std::int32_t pos, std::int32_t inputs, TypeOf type_of) const {
        if (pos == inputs + kCheck) return type_of(pos) == DataType::kFLOAT;
        const std::int32_t as = pos < inputs ? pos : shaped_like(pos - inputs);
        switch (as) {
            case kQ: return is_stream_type(type_of(kQ)) && type_of(pos) == type_of(kQ);
            case kK:
            case kV: return type_of(pos) == type_of(kQ);
            case kKey:
            case kValue: return is_ring(type_of(pos), type_of(kQ)) && type_of(pos) == type_of(kKey);
            case kPosition: return type_of(pos) == DataType::kINT64;
            case kRows: return type_of(pos) == (scan ? DataType::kINT64 : DataType::kBOOL);
            default: return type_of(pos) == DataType::kFLOAT;
        }
    }

    template <class DimsOf>
    bool read_sizes(std::int32_t, DimsOf dims, Sizes* out) const {
        const Dims q = dims(kQ), ring = dims(kKey);
        if (q.nbDims != (scan ? 3 : 2)) return refuse(name(), "q must be %s", scan ? "(t,b,h*k)" : "(b,h*k)");
        if (ring.nbDims != 4) return refuse(name(), "key must be (b,w,g,k)");
        const std::int64_t tokens = scan ? q.d[0] : 1, rows = q.d[q.nbDims - 2];
        *out = {tokens, rows, q.d[q.nbDims - 1], ring.d[1], ring.d[2], ring.d[3]};
        const std::int64_t window = out->window, kv_heads = out->kv_heads, dim = out->dim;
        for (const Input own : {kK, kV})
            if (scan ? !has_shape(dims(own), tokens, rows, kv_heads, dim)
                     : !has_shape(dims(own), rows, kv_heads, std::int64_t{1}, dim))
                return refuse(name(), "k and v must be %s, with g and k of the ring", scan ? "(t,b,g,k)" : "(b,g,1,k)");
        for (const Input kept : {kKey, kValue})
            if (!has_shape(dims(kept), rows, window, kv_heads, dim)) return refuse(name(), "key and value must be (b,w,g,k)");
        // The kernels' own limits, said while an engine is built and not when it first runs.
        if (dim == 0 || dim > SPEECHSSM_RING_HEAD_DIM)
            return refuse(name(), "k is %lld, and must be 1 to %d", static_cast<long long>(dim), int{SPEECHSSM_RING_HEAD_DIM});
        if (window == 0 || kv_heads == 0) return refuse(name(), "w and g must be at least 1");
        if (out->wide >= 0 && dim > 0 && kv_heads > 0 && (out->wide == 0 || out->wide % (dim * kv_heads) != 0))
            return refuse(name(), "the last axis of q is no multiple of g*k");
        if (!has_shape(dims(kPosition), rows)) return refuse(name(), "position must be (b)");
        if (!has_shape(dims(kRows), rows)) return refuse(name(), "%s must be (b)", scan ? "lengths" : "active");
        if (scaled)
            for (const Input scale : {kKeyScale, kValueScale})
                if (!has_shape(dims(scale), rows, window, kv_heads))
                    return refuse(name(), "key_scale and value_scale must be (b,w,g)");
        for (const std::int64_t size : {tokens, rows, out->wide, window, kv_heads, dim})
            if (size > INT32_MAX) return refuse(name(), "a dimension is over 2^31 - 1");
        return true;
    }

    // A step of few rows is read in pieces by many blocks. A chunk keeps one block to a row's key/value head, in which it
    // and its tokens one by one give the same bits.
    std::size_t workspace_bytes(const Sizes& most) const {
        if (scan || most.dim < 1) return 0;
        const std::int64_t pieces = speechssm::ring_pieces(most.window);
        return static_cast<std::size_t>(speechssm::ring_workspace_bytes(most.rows, most.wide / most.dim, most.dim, pieces));
    }

    std::int32_t run(const Sizes& sizes, const Enqueued& given) const {
        if (sizes.rows == 0) return 0;
        speechssm_ring call{};
        call.struct_bytes = sizeof call;
        call.dtype = dtype_of(given.in[kQ].type);
        call.ring_dtype = scaled ? std::int32_t{SPEECHSSM_I8} : dtype_of(given.in[kKey].type);
        call.tokens = static_cast<std::int32_t>(sizes.tokens);
        call.rows = call.slot_count = static_cast<std::int32_t>(sizes.rows);
        call.heads = static_cast<std::int32_t>(sizes.wide / sizes.dim);
        call.kv_heads = static_cast<std::int32_t>(sizes.kv_heads);
        call.head_dim = static_cast<std::int32_t>(sizes.dim);
        call.window = static_cast<std::int32_t>(sizes.window);
        call.token_stride = sizes.rows;
        call.row_stride = 1;
        call.q = given.input[kQ];
        call.k = given.input[kK];
        call.v = given.input[kV];
        call.y = given.output[kY];
        call.check = given.written<float>(kCheck);
        call.key_in = given.input[kKey];
        call.value_in = given.input[kValue];
        call.position = given.read<std::int64_t>(kPosition);
        if (scaled) {
            call.key_scale_in = given.read<float>(kKeyScale);
            call.value_scale_in = given.read<float>(kValueScale);
        }
        if (scan) {
            call.lengths = given.read<std::int64_t>(kRows);
            call.key_out = given.output[kKeyOut];
            call.value_out = given.output[kValueOut];
            if (scaled) {
                call.key_scale_out = given.written<float>(kKeyScaleOut);
                call.value_scale_out = given.written<float>(kValueScaleOut);
            }
        } else {
            call.active = given.read<std::uint8_t>(kRows);
        }
        if (!scan && given.workspace) {
            call.pieces = speechssm_ring_pieces(call.window);
            call.workspace = given.workspace;
            call.workspace_bytes = speechssm::ring_workspace_bytes(call.rows, call.heads, call.head_dim, call.pieces);
        }
        const std::int32_t status = launch_ring(call, given.stream);
        return status == SPEECHSSM_OK ? 0 : report("%s: %s", name(), speechssm_status_text(status));
    }

private:
    // Whether a ring of type `ring` goes with a stream of type `stream`.
    bool is_ring(DataType ring, DataType stream) const {
        if (scaled) return ring == DataType::kINT8;
        return is_stream_type(ring) && (stream == DataType::kFLOAT || ring == stream);
    }
};

template <bool scan, bool scaled>
nvinfer1::IPluginV3* make(const Options& options) noexcept {
    return make_plugin(RingNode{scan, scaled}, options);
}

}  // namespace

const Operator kRing[4] = {{"RingAttend", false, make<false, false>},
                           {"RingScan", true, make<true, false>},
                           {"RingAttendInt8", false, make<false, true>},
                           {"RingScanInt8", true, make<true, true>}};

}  // namespace speechssm_trt
