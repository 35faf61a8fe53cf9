// What TensorRT asks of a plugin, once for all of our operators. An operator is described by a small Node:
//
//   const char* name() const
//   const char* counts() const                  in words, for the message
//   bool fits(inputs, outputs) const            numbers of tensors it takes and gives
//   std::int32_t outputs() const
//   const char* objection(inputs, options)      why these options do not go with that many inputs, or NULL
//   bool takes(pos, inputs, type_of) const      whether position pos (inputs, then outputs) may have its type;
//                                               asks type_of only for positions up to pos
//   DataType output_type(output, in) const      from the inputs' types
//   std::int32_t shaped_like(output) const      the input whose shape an output has
//   std::int32_t aliased_input(output) const    the input whose memory it may be, or -1
//   Sizes, bool read_sizes(inputs, dims, Sizes*) const    reports what does not fit; a negative size, not known
//                                               yet, fits anything
//   std::size_t workspace_bytes(most) const     for sizes up to these
//   std::int32_t run(sizes, call) const         0, or -1 when it has reported why not
#pragma once

#include <NvInferRuntime.h>

#include <initializer_list>
#include <new>

#include "plugin.hpp"
#include "speechssm/rglru_api.h"

namespace speechssm_trt {

inline bool same(std::int64_t a, std::int64_t b) { return a == b || a < 0 || b < 0; }

// Whether dims are exactly `sizes`, as far as either is known.
template <class... Sizes>
bool has_shape(const nvinfer1::Dims& dims, Sizes... sizes) {
    const std::int64_t wanted[] = {sizes...};
    bool equal = dims.nbDims == static_cast<std::int32_t>(sizeof...(sizes));
    for (std::int32_t i = 0; equal && i < dims.nbDims; ++i) equal = same(dims.d[i], wanted[i]);
    return equal;
}

inline bool is_stream_type(nvinfer1::DataType type) {
    return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF || type == nvinfer1::DataType::kBF16;
}

// The number by which the C interface knows a stream's type.
inline std::int32_t dtype_of(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kHALF: return SPEECHSSM_F16;
        case nvinfer1::DataType::kBF16: return SPEECHSSM_BF16;
        default: return SPEECHSSM_F32;
    }
}

// One enqueue.
struct Enqueued {
    const nvinfer1::PluginTensorDesc* in;
    std::int32_t inputs;
    const void* const* input;
    void* const* output;
    void* workspace;
    cudaStream_t stream;
    bool aliased;

    template <class T>
    const T* read(std::int32_t index) const { return static_cast<const T*>(input[index]); }
    template <class T>
    T* written(std::int32_t index) const { return static_cast<T*>(output[index]); }
};

template <class Node>
struct PlainBuild : nvinfer1::IPluginV3OneBuild {
    explicit PlainBuild(const Node& node) : node_(node) {}
    const Node node_;
};

template <class Node>
struct AliasedBuild : nvinfer1::IPluginV3OneBuildV2 {
    explicit AliasedBuild(const Node& node) : node_(node) {}
    std::int32_t getAliasedInput(std::int32_t output) noexcept override { return node_.aliased_input(output); }
    const Node node_;
};

template <class Node>
nvinfer1::IPluginV3* make_plugin(const Node& node, const Options& options) noexcept;

template <class Node, template <class> class BuildOf>
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public BuildOf<Node>,
                     public nvinfer1::IPluginV3OneRuntime {
    using Build = BuildOf<Node>;
    using Build::node_;
    using Capability = nvinfer1::PluginCapabilityType;
    using DataType = nvinfer1::DataType;
    using Desc = nvinfer1::PluginTensorDesc;
    using Range = nvinfer1::DynamicPluginTensorDesc;

public:
    Plugin(const Node& node, const Options& options) noexcept : Build(node), options_(options) {}
    Plugin(const Plugin&) = delete;
    Plugin& operator=(const Plugin&) = delete;

    nvinfer1::IPluginCapability* getCapabilityInterface(Capability type) noexcept override {
        switch (type) {
            case Capability::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case Capability::kBUILD: return static_cast<Build*>(this);
            case Capability::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3* clone() noexcept override { return make_plugin(node_, options_); }

    // core

    const char* getPluginName() const noexcept override { return node_.name(); }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

    // build

    std::int32_t getNbOutputs() const noexcept override { return node_.outputs(); }

    std::int32_t getOutputDataTypes(DataType* out, std::int32_t outputs, const DataType* in,
                                    std::int32_t inputs) const noexcept override {
        if (!node_.fits(inputs, outputs)) return refuse_counts(inputs, outputs);
        if (!types_fit(inputs, [&](std::int32_t i) { return in[i]; })) return -1;
        for (std::int32_t i = 0; i < outputs; ++i) out[i] = node_.output_type(i, in);
        return 0;
    }

    std::int32_t getOutputShapes(const nvinfer1::DimsExprs* in, std::int32_t inputs, const nvinfer1::DimsExprs*,
                                 std::int32_t, nvinfer1::DimsExprs* out, std::int32_t outputs,
                                 nvinfer1::IExprBuilder&) noexcept override {
        if (!node_.fits(inputs, outputs)) return refuse_counts(inputs, outputs);
        for (std::int32_t i = 0; i < outputs; ++i) out[i] = in[node_.shaped_like(i)];
        return 0;
    }

    bool supportsFormatCombination(std::int32_t pos, const Range* all, std::int32_t inputs,
                                   std::int32_t outputs) noexcept override {
        if (!node_.fits(inputs, outputs) || pos < 0 || pos >= inputs + outputs) return false;
        if (node_.objection(inputs, options_) != nullptr) return false;
        if (all[pos].desc.format != nvinfer1::PluginFormat::kLINEAR) return false;
        return node_.takes(pos, inputs, [&](std::int32_t i) { return all[i].desc.type; });
    }

    std::int32_t configurePlugin(const Range* in, std::int32_t inputs, const Range*, std::int32_t outputs) noexcept override {
        return adopt(inputs, outputs, [&](std::int32_t i) { return in[i].desc.dims; });
    }

    std::size_t getWorkspaceSize(const Range* in, std::int32_t inputs, const Range*, std::int32_t) const noexcept override {
        typename Node::Sizes most;
        if (!node_.read_sizes(inputs, [&](std::int32_t i) { return in[i].max; }, &most)) return 0;
        return node_.workspace_bytes(most);
    }

    // run

    std::int32_t onShapeChange(const Desc* in, std::int32_t inputs, const Desc*, std::int32_t outputs) noexcept override {
        return adopt(inputs, outputs, [&](std::int32_t i) { return in[i].dims; });
    }

    std::int32_t enqueue(const Desc* in, const Desc*, const void* const* input, void* const* output, void* workspace,
                         cudaStream_t stream) noexcept override {
        if (inputs_ == 0) return report("%s: enqueue before onShapeChange", node_.name());
        typename Node::Sizes sizes;
        if (!node_.read_sizes(inputs_, [&](std::int32_t i) { return in[i].dims; }, &sizes)) return -1;
        if (!types_fit(inputs_, [&](std::int32_t i) { return in[i].type; })) return -1;
        return node_.run(sizes, Enqueued{in, inputs_, input, output, workspace, stream, options_.aliased == 1});
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
        fields_[0] = {"schema", &options_.schema, nvinfer1::PluginFieldType::kINT32, 1};
        fields_[1] = {"aliased", &options_.aliased, nvinfer1::PluginFieldType::kINT32, 1};
        collection_ = {2, fields_};
        return &collection_;
    }

private:
    int refuse_counts(std::int32_t inputs, std::int32_t outputs) const {
        return report("%s takes %s, not %d and %d", node_.name(), node_.counts(), inputs, outputs);
    }

    template <class TypeOf>
    bool types_fit(std::int32_t inputs, TypeOf type_of) const {
        for (std::int32_t i = 0; i < inputs; ++i)
            if (!node_.takes(i, inputs, type_of)) {
                report("%s: input %d has a type this plugin does not take", node_.name(), i);
                return false;
            }
        return true;
    }

    template <class DimsOf>
    std::int32_t adopt(std::int32_t inputs, std::int32_t outputs, DimsOf dims) {
        if (!node_.fits(inputs, outputs)) return refuse_counts(inputs, outputs);
        if (const char* why = node_.objection(inputs, options_)) return report("%s: %s", node_.name(), why);
        inputs_ = inputs;
        typename Node::Sizes sizes;
        return node_.read_sizes(inputs, dims, &sizes) ? 0 : -1;
    }

    const Options options_;
    std::int32_t inputs_ = 0;
    nvinfer1::PluginField fields_[2];
    nvinfer1::PluginFieldCollection collection_{};
};

template <class Node>
nvinfer1::IPluginV3* make_plugin(const Node& node, const Options& options) noexcept {
    if (options.aliased) return new (std::nothrow) Plugin<Node, AliasedBuild>(node, options);
    return new (std::nothrow) Plugin<Node, PlainBuild>(node, options);
}

}  // namespace speechssm_trt
