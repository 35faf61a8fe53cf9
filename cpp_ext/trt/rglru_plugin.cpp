// speechssm::RGLRUStep and RGLRUScan as TensorRT plugins.
//
// Inputs   0 x, 1 gate_x, 2 gate_a: (b,e) for a step, (t,b,e) for a scan; float32, float16 or bfloat16
//          3 decay (e) float32      4 state (slot,e) float32      5 position (b) int64
//          6 active (b) bool for a step, lengths (b) int64 for a scan
//          7 slots (b) int32, optional and only with aliased state: rows of the resident pool in 4
// Outputs  0 y like x               1 state_out like state
#include "launchers.hpp"
#include "plugin_base.hpp"

namespace speechssm_trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

enum Input { kX, kGateX, kGateA, kDecay, kState, kPosition, kRows, kSlots };
constexpr std::int32_t kOutputs = 2;

struct RglruNode {
    bool scan;

    struct Sizes {
        std::int64_t tokens, rows, width, slots;
    };

    const char* name() const { return scan ? "RGLRUScan" : "RGLRUStep"; }
    const char* counts() const { return "7 or 8 inputs and gives 2 outputs"; }
    bool fits(std::int32_t inputs, std::int32_t outputs) const {
        return (inputs == kSlots || inputs == kSlots + 1) && outputs == kOutputs;
    }
    std::int32_t outputs() const { return kOutputs; }
    std::int32_t shaped_like(std::int32_t output) const { return output == 0 ? kX : kState; }
    DataType output_type(std::int32_t output, const DataType* in) const { return in[shaped_like(output)]; }
    std::int32_t aliased_input(std::int32_t output) const { return output == 1 ? kState : -1; }

    const char* objection(std::int32_t inputs, const Options& options) const {
        return inputs > kSlots && !options.aliased
                   ? "slots need the option aliased=1, or slots no row names would lose their state"
                   : nullptr;
    }

    template <class TypeOf>
    bool takes(std::int32_t pos, std::int32_t inputs, TypeOf type_of) const {
        if (pos == kX) return is_stream_type(type_of(kX));
        return type_of(pos) == wanted(pos, inputs, type_of(kX));
    }

    template <class DimsOf>
    bool read_sizes(std::int32_t inputs, DimsOf dims, Sizes* out) const {
        const std::int32_t rank = scan ? 3 : 2;
        const Dims x = dims(kX), state = dims(kState);
        if (x.nbDims != rank) return refuse(name(), "x must have %d axes, it has %d", rank, x.nbDims);
        *out = {scan ? x.d[0] : 1, x.d[rank - 2], x.d[rank - 1], state.d[0]};
        for (const Input gate : {kGateX, kGateA}) {
            const Dims g = dims(gate);
            if (scan ? !has_shape(g, x.d[0], x.d[1], x.d[2]) : !has_shape(g, x.d[0], x.d[1]))
                return refuse(name(), "gate_x and gate_a must have the shape of x");
        }
        if (!has_shape(state, std::int64_t{-1}, out->width)) return refuse(name(), "state must be (slot,e) with the width of x");
        if (inputs <= kSlots && !same(out->slots, out->rows))
            return refuse(name(), "without slots, state must have one row for each row of x");
        if (!has_shape(dims(kDecay), out->width) || !has_shape(dims(kPosition), out->rows) ||
            !has_shape(dims(kRows), out->rows) || (inputs > kSlots && !has_shape(dims(kSlots), out->rows)))
            return refuse(name(), "decay must be (e); position, %s and slots must be (b)", scan ? "lengths" : "active");
        for (const std::int64_t size : {out->tokens, out->rows, out->width, out->slots})
            if (size > INT32_MAX) return refuse(name(), "a dimension is over 2^31 - 1");
        return true;
    }

    std::size_t workspace_bytes(const Sizes& most) const {
        return scan ? static_cast<std::size_t>(workspace_bound(most.tokens, most.rows, most.width)) : 0;
    }

    std::int32_t run(const Sizes& sizes, const Enqueued& given) const {
        if (sizes.rows == 0 || sizes.width == 0) return 0;
        speechssm_rglru call{};
        call.struct_bytes = sizeof call;
        call.dtype = dtype_of(given.in[kX].type);
        call.tokens = static_cast<std::int32_t>(sizes.tokens);
        call.rows = static_cast<std::int32_t>(sizes.rows);
        call.width = static_cast<std::int32_t>(sizes.width);
        call.slot_count = static_cast<std::int32_t>(sizes.slots);
        call.token_stride = sizes.rows * sizes.width;
        call.row_stride = sizes.width;
        call.x = given.input[kX];
        call.gate_x = given.input[kGateX];
        call.gate_a = given.input[kGateA];
        call.y = given.output[0];
        call.decay = given.read<float>(kDecay);
        call.state_in = given.read<float>(kState);
        call.state_out = given.written<float>(1);
        call.position = given.read<std::int64_t>(kPosition);
        call.slots = given.inputs > kSlots ? given.read<std::int32_t>(kSlots) : nullptr;
        if (given.aliased && call.state_out != call.state_in && call.slots != nullptr)
            return report("%s: the engine did not alias state_out to state; build it with ALIASED_PLUGIN_IO_10_03", name());
        std::int32_t status;
        if (scan) {
            call.lengths = given.read<std::int64_t>(kRows);
            call.chunk = speechssm::default_chunk(call.tokens);
            call.workspace = given.workspace;
            call.workspace_bytes =
                given.workspace ? speechssm::workspace_bytes(call.tokens, call.rows, call.width, call.chunk) : 0;
            status = launch_scan(call, given.stream);
        } else {
            call.active = given.read<std::uint8_t>(kRows);
            status = launch_step(call, given.stream);
        }
        return status == SPEECHSSM_OK ? 0 : report("%s: %s", name(), speechssm_status_text(status));
    }

private:
    // The type of position `pos` beside an x of type `x`.
    DataType wanted(std::int32_t pos, std::int32_t inputs, DataType x) const {
        if (pos >= inputs) return pos == inputs ? x : DataType::kFLOAT;
        switch (pos) {
            case kDecay:
            case kState: return DataType::kFLOAT;
            case kPosition: return DataType::kINT64;
            case kRows: return scan ? DataType::kINT64 : DataType::kBOOL;
            case kSlots: return DataType::kINT32;
            default: return x;
        }
    }
};

template <bool scan>
nvinfer1::IPluginV3* make(const Options& options) noexcept {
    return make_plugin(RglruNode{scan}, options);
}

}  // namespace

const Operator kRglru[2] = {{"RGLRUStep", true, make<false>}, {"RGLRUScan", true, make<true>}};

}  // namespace speechssm_trt
