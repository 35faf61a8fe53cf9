#include "plugin.hpp"

#include <initializer_list>
#include <new>

namespace speechssm_trt {
namespace {

using namespace nvinfer1;

bool counts_fit(std::int32_t inputs, std::int32_t outputs) { return (inputs == 7 || inputs == 8) && outputs == kOutputs; }

bool is_stream_type(DataType type) {
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

// The type that position `pos` (inputs, then outputs) must have when x has type `x`.
DataType wanted_type(Kind kind, std::int32_t pos, std::int32_t inputs, DataType x) {
    if (pos >= inputs) return pos == inputs ? x : DataType::kFLOAT;
    switch (pos) {
        case kDecay:
        case kState: return DataType::kFLOAT;
        case kPosition: return DataType::kINT64;
        case kRows: return kind == Kind::step ? DataType::kBOOL : DataType::kINT64;
        case kSlots: return DataType::kINT32;
        default: return x;
    }
}

// Sizes of one run or profile point. A negative size is not known yet and fits anything.
struct Sizes {
    std::int64_t tokens, rows, width, slots;
};

bool same(std::int64_t a, std::int64_t b) { return a == b || a < 0 || b < 0; }

bool is_vector(const Dims& dims, std::int64_t size) { return dims.nbDims == 1 && same(dims.d[0], size); }

template <class Of>
bool read_sizes(Kind kind, std::int32_t inputs, Of dims, Sizes* out) {
    const std::int32_t rank = kind == Kind::step ? 2 : 3;
    const Dims x = dims(kX), state = dims(kState);
    const char* name = name_of(kind);
    if (x.nbDims != rank) {
        report("%s: x must have %d axes, it has %d", name, rank, x.nbDims);
        return false;
    }
    out->tokens = kind == Kind::step ? 1 : x.d[0];
    out->rows = x.d[rank - 2];
    out->width = x.d[rank - 1];
    for (const Input gate : {kGateX, kGateA}) {
        const Dims g = dims(gate);
        bool equal = g.nbDims == rank;
        for (std::int32_t i = 0; equal && i < rank; ++i) equal = same(g.d[i], x.d[i]);
        if (!equal) {
            report("%s: gate_x and gate_a must have the shape of x", name);
            return false;
        }
    }
    if (state.nbDims != 2 || !same(state.d[1], out->width)) {
        report("%s: state must be (slot,e) with the width of x", name);
        return false;
    }
    out->slots = state.d[0];
    if (inputs <= kSlots && !same(out->slots, out->rows)) {
        report("%s: without slots, state must have one row for each row of x", name);
        return false;
    }
    if (!is_vector(dims(kDecay), out->width) || !is_vector(dims(kPosition), out->rows) ||
        !is_vector(dims(kRows), out->rows) || (inputs > kSlots && !is_vector(dims(kSlots), out->rows))) {
        report("%s: decay must be (e); position, %s and slots must be (b)", name,
               kind == Kind::step ? "active" : "lengths");
        return false;
    }
    constexpr std::int64_t most = INT32_MAX;
    if (out->tokens > most || out->rows > most || out->width > most || out->slots > most) {
        report("%s: a dimension is over 2^31 - 1", name);
        return false;
    }
    return true;
}

struct PlainBuild : IPluginV3OneBuild {};
struct AliasedBuild : IPluginV3OneBuildV2 {
    std::int32_t getAliasedInput(std::int32_t output) noexcept override { return output == 1 ? kState : -1; }
};

template <class Build>
class Plugin final : public IPluginV3, public IPluginV3OneCore, public Build, public IPluginV3OneRuntime {
public:
    Plugin(Kind kind, const Options& options) noexcept : kind_(kind), options_(options) {}
    Plugin(const Plugin&) = delete;
    Plugin& operator=(const Plugin&) = delete;

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<Build*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    IPluginV3* clone() noexcept override { return make_plugin(kind_, options_); }

    // core

    const char* getPluginName() const noexcept override { return name_of(kind_); }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

    // build

    std::int32_t getNbOutputs() const noexcept override { return kOutputs; }

    std::int32_t getOutputDataTypes(DataType* out, std::int32_t outputs, const DataType* in,
                                    std::int32_t inputs) const noexcept override {
        if (!counts_fit(inputs, outputs)) return refuse_counts(inputs, outputs);
        for (std::int32_t i = 0; i < inputs; ++i)
            if (i == kX ? !is_stream_type(in[i]) : in[i] != wanted_type(kind_, i, inputs, in[kX]))
                return report("%s: input %d has a type this plugin does not take", name_of(kind_), i);
        out[0] = in[kX];
        out[1] = DataType::kFLOAT;
        return 0;
    }

    std::int32_t getOutputShapes(const DimsExprs* in, std::int32_t inputs, const DimsExprs*, std::int32_t,
                                 DimsExprs* out, std::int32_t outputs, IExprBuilder&) noexcept override {
        if (!counts_fit(inputs, outputs)) return refuse_counts(inputs, outputs);
        out[0] = in[kX];
        out[1] = in[kState];
        return 0;
    }

    bool supportsFormatCombination(std::int32_t pos, const DynamicPluginTensorDesc* all, std::int32_t inputs,
                                   std::int32_t outputs) noexcept override {
        if (!counts_fit(inputs, outputs) || pos < 0 || pos >= inputs + outputs) return false;
        if (inputs > kSlots && !options_.aliased) return false;
        const PluginTensorDesc& here = all[pos].desc;
        if (here.format != PluginFormat::kLINEAR) return false;
        if (pos == kX) return is_stream_type(here.type);
        return here.type == wanted_type(kind_, pos, inputs, all[kX].desc.type);
    }

    std::int32_t configurePlugin(const DynamicPluginTensorDesc* in, std::int32_t inputs, const DynamicPluginTensorDesc*,
                                 std::int32_t outputs) noexcept override {
        if (!counts_fit(inputs, outputs)) return refuse_counts(inputs, outputs);
        if (inputs > kSlots && !options_.aliased)
            return report("%s: slots need the option aliased=1, or slots no row names would lose their state",
                          name_of(kind_));
        inputs_ = inputs;
        Sizes sizes;
        return read_sizes(kind_, inputs, [&](int i) { return in[i].desc.dims; }, &sizes) ? 0 : -1;
    }

    std::size_t getWorkspaceSize(const DynamicPluginTensorDesc* in, std::int32_t inputs, const DynamicPluginTensorDesc*,
                                 std::int32_t) const noexcept override {
        Sizes most;
        if (kind_ == Kind::step || !read_sizes(kind_, inputs, [&](int i) { return in[i].max; }, &most)) return 0;
        return static_cast<std::size_t>(workspace_bound(most.tokens, most.rows, most.width));
    }

    // run

    std::int32_t onShapeChange(const PluginTensorDesc* in, std::int32_t inputs, const PluginTensorDesc*,
                               std::int32_t outputs) noexcept override {
        if (!counts_fit(inputs, outputs)) return refuse_counts(inputs, outputs);
        if (inputs > kSlots && !options_.aliased) return report("%s: slots need the option aliased=1", name_of(kind_));
        inputs_ = inputs;
        Sizes sizes;
        return read_sizes(kind_, inputs, [&](int i) { return in[i].dims; }, &sizes) ? 0 : -1;
    }

    std::int32_t enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* input,
                         void* const* output, void* workspace, cudaStream_t stream) noexcept override {
        Sizes sizes;
        if (inputs_ == 0) return report("%s: enqueue before onShapeChange", name_of(kind_));
        if (!read_sizes(kind_, inputs_, [&](int i) { return in[i].dims; }, &sizes)) return -1;
        if (!is_stream_type(in[kX].type)) return report("%s: x has a type this plugin does not take", name_of(kind_));
        if (sizes.rows == 0 || sizes.width == 0) return 0;
        speechssm_rglru call{};
        call.struct_bytes = sizeof call;
        call.dtype = in[kX].type == DataType::kFLOAT  ? SPEECHSSM_F32
                     : in[kX].type == DataType::kHALF ? SPEECHSSM_F16
                                                      : SPEECHSSM_BF16;
        call.tokens = static_cast<std::int32_t>(sizes.tokens);
        call.rows = static_cast<std::int32_t>(sizes.rows);
        call.width = static_cast<std::int32_t>(sizes.width);
        call.slot_count = static_cast<std::int32_t>(sizes.slots);
        call.token_stride = sizes.rows * sizes.width;
        call.row_stride = sizes.width;
        call.x = input[kX];
        call.gate_x = input[kGateX];
        call.gate_a = input[kGateA];
        call.y = output[0];
        call.decay = static_cast<const float*>(input[kDecay]);
        call.state_in = static_cast<const float*>(input[kState]);
        call.state_out = static_cast<float*>(output[1]);
        call.position = static_cast<const std::int64_t*>(input[kPosition]);
        call.slots = inputs_ > kSlots ? static_cast<const std::int32_t*>(input[kSlots]) : nullptr;
        if (options_.aliased && call.state_out != call.state_in && call.slots != nullptr)
            return report("%s: the engine did not alias state_out to state; build it with ALIASED_PLUGIN_IO_10_03",
                          name_of(kind_));
        std::int32_t status;
        if (kind_ == Kind::step) {
            call.active = static_cast<const std::uint8_t*>(input[kRows]);
            status = launch_step(call, stream);
        } else {
            call.lengths = static_cast<const std::int64_t*>(input[kRows]);
            call.chunk = speechssm::default_chunk(call.tokens);
            call.workspace = workspace;
            call.workspace_bytes =
                workspace ? speechssm::workspace_bytes(call.tokens, call.rows, call.width, call.chunk) : 0;
            status = launch_scan(call, stream);
        }
        return status == SPEECHSSM_OK ? 0 : report("%s: %s", name_of(kind_), speechssm_status_text(status));
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    const PluginFieldCollection* getFieldsToSerialize() noexcept override {
        fields_[0] = {"schema", &options_.schema, PluginFieldType::kINT32, 1};
        fields_[1] = {"aliased", &options_.aliased, PluginFieldType::kINT32, 1};
        collection_ = {2, fields_};
        return &collection_;
    }

private:
    int refuse_counts(std::int32_t inputs, std::int32_t outputs) const {
        return report("%s takes 7 or 8 inputs and gives 2 outputs, not %d and %d", name_of(kind_), inputs, outputs);
    }

    const Kind kind_;
    const Options options_;
    std::int32_t inputs_ = 0;
    PluginField fields_[2];
    PluginFieldCollection collection_{};
};

}  // namespace

nvinfer1::IPluginV3* make_plugin(Kind kind, const Options& options) noexcept {
    if (options.aliased) return new (std::nothrow) Plugin<AliasedBuild>(kind, options);
    return new (std::nothrow) Plugin<PlainBuild>(kind, options);
}

}  // namespace speechssm_trt
