// The way of a plugin through an engine: built from a node, stored as fields, made again from their bytes.
#include <cstring>

#include "harness.hpp"

using namespace nvinfer1;

namespace harness {
namespace {

struct NoExpressions final : IExprBuilder {};

// The fields of an engine, copied as an engine would hold them: TensorRT keeps bytes, not pointers.
struct StoredFields {
    std::vector<std::string> names;
    std::vector<std::vector<char>> bytes;
    std::vector<PluginField> fields;
    PluginFieldCollection collection{};

    explicit StoredFields(const PluginFieldCollection& from) {
        for (int i = 0; i < from.nbFields; ++i) {
            const PluginField& f = from.fields[i];
            names.push_back(f.name);
            const char* data = static_cast<const char*>(f.data);
            bytes.emplace_back(data, data + 4 * f.length);
            fields.push_back({nullptr, nullptr, f.type, f.length});
        }
        for (std::size_t i = 0; i < fields.size(); ++i) {
            fields[i].name = names[i].c_str();
            fields[i].data = bytes[i].data();
        }
        collection = {static_cast<std::int32_t>(fields.size()), fields.data()};
    }
};

std::vector<DynamicPluginTensorDesc> ranges_of(const Job& job) {
    std::vector<DynamicPluginTensorDesc> all;
    for (const auto& d : job.in) all.push_back({d, d.dims, d.dims, d.dims});
    for (const auto& d : job.out) all.push_back({d, d.dims, d.dims, d.dims});
    return all;
}

bool takes_all(IPluginV3OneBuild* build, const std::vector<DynamicPluginTensorDesc>& all, const Job& job) {
    bool takes = true;
    for (int pos = 0; pos < job.inputs() + job.outputs(); ++pos)
        takes = takes && build->supportsFormatCombination(pos, all.data(), job.inputs(), job.outputs());
    return takes;
}

void negotiate(IPluginV3OneBuild* build, const Job& job) {
    const int inputs = job.inputs(), outputs = job.outputs();
    const auto all = ranges_of(job);
    for (int pos = 0; pos < inputs + outputs; ++pos) {
        check(build->supportsFormatCombination(pos, all.data(), inputs, outputs), job.name + ": takes its own formats");
        auto wrong = all;
        wrong[static_cast<std::size_t>(pos)].desc.format = TensorFormat::kCHW32;
        check(!build->supportsFormatCombination(pos, wrong.data(), inputs, outputs), job.name + ": refuses another layout");
        for (const DataType type : {DataType::kINT8, DataType::kFP8, DataType::kUINT8}) {
            if (type == all[static_cast<std::size_t>(pos)].desc.type) continue;
            wrong = all;
            wrong[static_cast<std::size_t>(pos)].desc.type = type;
            check(!build->supportsFormatCombination(pos, wrong.data(), inputs, outputs), job.name + ": refuses 8-bit types");
        }
    }
    for (const auto* kinds : {&job.taken, &job.refused})
        for (const auto& types : *kinds) {
            auto other = all;
            for (std::size_t i = 0; i < types.size(); ++i) other[i].desc.type = types[i];
            check(takes_all(build, other, job) == (kinds == &job.taken),
                  job.name + (kinds == &job.taken ? ": takes other types" : ": refuses types that do not go together"));
        }
    check(!build->supportsFormatCombination(0, all.data(), inputs - 2, outputs), job.name + ": refuses missing inputs");
    check(!build->supportsFormatCombination(0, all.data(), inputs + 2, outputs), job.name + ": refuses further inputs");
    check(!build->supportsFormatCombination(0, all.data(), inputs, outputs - 1), job.name + ": refuses missing outputs");
    check(!build->supportsFormatCombination(-1, all.data(), inputs, outputs) &&
              !build->supportsFormatCombination(inputs + outputs, all.data(), inputs, outputs),
          job.name + ": has no such position");
}

void ask_outputs(IPluginV3OneBuild* build, const Job& job) {
    const std::size_t inputs = job.in.size(), outputs = job.out.size();
    std::vector<DataType> types, given(outputs);
    for (const auto& d : job.in) types.push_back(d.type);
    check(build->getNbOutputs() == job.outputs(), job.name + ": number of outputs");
    bool equal = build->getOutputDataTypes(given.data(), job.outputs(), types.data(), job.inputs()) == 0;
    for (std::size_t i = 0; i < outputs; ++i) equal = equal && given[i] == job.out[i].type;
    check(equal, job.name + ": output types");
    types[0] = DataType::kINT32;
    check(build->getOutputDataTypes(given.data(), job.outputs(), types.data(), job.inputs()) != 0,
          job.name + ": refuses an integer stream");
    // An expression is told from another by its address alone.
    std::vector<DimsExprs> shapes(inputs), made(outputs);
    for (std::size_t i = 0; i < inputs; ++i) shapes[i].nbDims = job.in[i].dims.nbDims;
    NoExpressions expressions;
    equal = build->getOutputShapes(shapes.data(), job.inputs(), nullptr, 0, made.data(), job.outputs(), expressions) == 0;
    for (std::size_t i = 0; i < outputs; ++i) equal = equal && made[i].nbDims == job.out[i].dims.nbDims;
    check(equal, job.name + ": output shapes");
}

}  // namespace

std::unique_ptr<IPluginV3> through_an_engine(IPluginCreatorV3One* maker, const Job& job, std::size_t* workspace_bytes) {
    const std::int32_t option = job.aliased ? 1 : 0;
    const PluginField attribute{"aliased", &option, PluginFieldType::kINT32, 1};
    const PluginFieldCollection attributes{1, &attribute};
    std::unique_ptr<IPluginV3> built(maker->createPlugin("node", &attributes, TensorRTPhase::kBUILD));
    check(built != nullptr, job.name + ": created from node attributes");
    if (!built) return nullptr;
    auto* build = capability<IPluginV3OneBuild>(built.get(), PluginCapabilityType::kBUILD);
    ask_outputs(build, job);
    negotiate(build, job);
    auto all = ranges_of(job);
    const DynamicPluginTensorDesc *in = all.data(), *out = in + job.inputs();
    check(build->configurePlugin(in, job.inputs(), out, job.outputs()) == 0, job.name + ": configured");
    *workspace_bytes = build->getWorkspaceSize(in, job.inputs(), out, job.outputs());
    if (job.aliased) {
        auto* second = static_cast<IPluginV3OneBuildV2*>(build);
        check(std::strcmp(build->getInterfaceInfo().kind, "PLUGIN_V3ONE_BUILD") == 0 &&
                  build->getInterfaceInfo().major == 2, job.name + ": offers aliasing");
        bool right = true;
        for (int i = 0; i < job.outputs(); ++i)
            right = right && second->getAliasedInput(i) == job.alias_of[static_cast<std::size_t>(i)];
        check(right, job.name + ": aliases the state alone");
    } else {
        check(build->getInterfaceInfo().major == 1, job.name + ": offers no aliasing");
    }
    // While a network is built, sizes of a profile are still open.
    for (auto& range : all)
        for (int i = 0; i < range.desc.dims.nbDims; ++i) range.desc.dims.d[i] = -1;
    check(build->configurePlugin(in, job.inputs(), out, job.outputs()) == 0, job.name + ": configured with open sizes");

    auto* writer = capability<IPluginV3OneRuntime>(built.get(), PluginCapabilityType::kRUNTIME);
    const StoredFields stored(*writer->getFieldsToSerialize());
    built.reset();
    std::unique_ptr<IPluginV3> loaded(maker->createPlugin("node", &stored.collection, TensorRTPhase::kRUNTIME));
    check(loaded != nullptr, job.name + ": created again from an engine's fields");
    if (!loaded) return nullptr;
    auto* runtime = capability<IPluginV3OneRuntime>(loaded.get(), PluginCapabilityType::kRUNTIME);
    const StoredFields again(*runtime->getFieldsToSerialize());
    check(again.bytes == stored.bytes && again.names == stored.names, job.name + ": the same fields the second time");
    return std::unique_ptr<IPluginV3>(runtime->attachToContext(nullptr));
}

}  // namespace harness
