// Drives the plugin the way TensorRT does, on host launchers, and prints what held.
//
//   speechssm_trt_harness libspeechssm_trt_host.so [SEED]
//
// Load, create from node attributes, negotiate formats, serialise, create again from the copied fields,
// attach, change shape, enqueue with host pointers against a float64 loop; then thousands of damaged
// field collections, each of which must be refused. Ends with 'N passed, N failed'.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

int passed = 0, failed = 0;

void check(bool held, const std::string& what) {
    held ? ++passed : ++failed;
    if (!held) std::printf("FAILED %s\n", what.c_str());
}

std::mt19937 dice;

float normal() {
    static std::normal_distribution<float> bell;
    return bell(dice);
}

int upto(int most) { return std::uniform_int_distribution<int>(0, most)(dice); }

class LastMessage final : public ILogger {
public:
    void log(Severity, const char* text) noexcept override { message = text; }
    std::string message;
};

class Finder final : public ILoggerFinder {
public:
    ILogger* findLogger() override { return &logger; }
    LastMessage logger;
};

struct NoExpressions final : IExprBuilder {};

IPluginCreatorV3One* creator(IPluginCreatorInterface* const* all, int count, const char* name) {
    for (int i = 0; i < count; ++i) {
        auto* one = static_cast<IPluginCreatorV3One*>(all[i]);
        if (std::strcmp(one->getPluginName(), name) == 0) return one;
    }
    return nullptr;
}

template <class Capability>
Capability* capability(IPluginV3* plugin, PluginCapabilityType type) {
    return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

Dims dims_of(std::initializer_list<std::int64_t> sizes) {
    Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), dims.d);
    return dims;
}

// One random problem: buffers of exactly the bytes they need, so that an address sanitizer sees any excess.
struct Problem {
    bool scan, slots;
    std::int64_t tokens, rows, width, pool;
    std::vector<float> x, gate_x, gate_a, decay, state;
    std::vector<std::int64_t> position, lengths;
    std::unique_ptr<bool[]> active;
    std::vector<std::int32_t> slot;
    std::vector<PluginTensorDesc> in, out;

    Problem(bool is_scan, bool with_slots) : scan(is_scan), slots(with_slots) {
        tokens = scan ? 1 + upto(299) : 1;
        rows = 1 + upto(4);
        width = 1 + upto(40);
        pool = slots ? rows + upto(3) : rows;
        const std::size_t count = static_cast<std::size_t>(tokens * rows * width);
        for (auto* v : {&x, &gate_x, &gate_a}) {
            v->resize(count);
            for (float& f : *v) f = normal();
        }
        for (int e = 0; e < width; ++e) decay.push_back(-0.01f - std::fabs(normal()));
        state.resize(static_cast<std::size_t>(pool * width));
        for (float& f : state) f = normal();
        active.reset(new bool[static_cast<std::size_t>(rows)]);
        std::vector<std::int32_t> order;
        for (int s = 0; s < pool; ++s) order.push_back(s);
        std::shuffle(order.begin(), order.end(), dice);
        for (int b = 0; b < rows; ++b) {
            position.push_back(upto(2));
            lengths.push_back(upto(static_cast<int>(tokens)));
            active[static_cast<std::size_t>(b)] = upto(3) != 0;
            slot.push_back(slots ? order[static_cast<std::size_t>(b)] : b);
        }
        const Dims stream = scan ? dims_of({tokens, rows, width}) : dims_of({rows, width});
        const auto desc = [](Dims d, DataType t) { return PluginTensorDesc{d, t, TensorFormat::kLINEAR, 1.0f}; };
        in = {desc(stream, DataType::kFLOAT), desc(stream, DataType::kFLOAT), desc(stream, DataType::kFLOAT),
              desc(dims_of({width}), DataType::kFLOAT), desc(dims_of({pool, width}), DataType::kFLOAT),
              desc(dims_of({rows}), DataType::kINT64),
              desc(dims_of({rows}), scan ? DataType::kINT64 : DataType::kBOOL)};
        if (slots) in.push_back(desc(dims_of({rows}), DataType::kINT32));
        out = {in[0], in[4]};
    }

    // The equations of the paper in float64, one token after another.
    void reference(std::vector<double>* y, std::vector<double>* last) const {
        y->assign(x.size(), 0.0);
        last->assign(state.begin(), state.end());
        for (std::int64_t b = 0; b < rows; ++b) {
            const std::int64_t run = scan ? lengths[static_cast<std::size_t>(b)] : active[static_cast<std::size_t>(b)] ? 1 : 0;
            for (std::int64_t t = 0; t < run; ++t)
                for (std::int64_t e = 0; e < width; ++e) {
                    const std::size_t i = static_cast<std::size_t>((t * rows + b) * width + e);
                    double& h = (*last)[static_cast<std::size_t>(slot[static_cast<std::size_t>(b)] * width + e)];
                    const double drive = x[i] / (1 + std::exp(-double{gate_x[i]}));
                    const double log_a = decay[static_cast<std::size_t>(e)] / (1 + std::exp(-double{gate_a[i]}));
                    h = position[static_cast<std::size_t>(b)] + t == 0
                            ? drive
                            : std::exp(log_a) * h + std::sqrt(-std::expm1(2 * log_a)) * drive;
                    (*y)[i] = h;
                }
        }
    }
};

// Largest error over the range the state travelled: one element may cancel to almost nothing.
double error_of(const std::vector<float>& got, const std::vector<double>& want, double reach) {
    double error = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
        if (!std::isfinite(got[i])) return INFINITY;
        error = std::max(error, std::fabs(got[i] - want[i]));
    }
    return error / reach;
}

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

void run_once(IPluginCreatorV3One* maker, bool scan, bool aliased, bool slots) {
    const std::string name = std::string(maker->getPluginName()) + (aliased ? " aliased" : "") + (slots ? " slots" : "");
    const std::int32_t option = aliased ? 1 : 0;
    const PluginField attribute{"aliased", &option, PluginFieldType::kINT32, 1};
    const PluginFieldCollection attributes{1, &attribute};
    std::unique_ptr<IPluginV3> built(maker->createPlugin("node", &attributes, TensorRTPhase::kBUILD));
    check(built != nullptr, name + ": created from node attributes");
    if (!built) return;

    Problem p(scan, slots);
    const int inputs = static_cast<int>(p.in.size());
    auto* build = capability<IPluginV3OneBuild>(built.get(), PluginCapabilityType::kBUILD);
    std::vector<DataType> types, given(2);
    for (const auto& d : p.in) types.push_back(d.type);
    check(build->getNbOutputs() == 2, name + ": two outputs");
    check(build->getOutputDataTypes(given.data(), 2, types.data(), inputs) == 0 && given[0] == DataType::kFLOAT &&
              given[1] == DataType::kFLOAT, name + ": output types");
    std::vector<DimsExprs> shapes(static_cast<std::size_t>(inputs)), made(2);
    for (int i = 0; i < inputs; ++i) shapes[static_cast<std::size_t>(i)].nbDims = p.in[static_cast<std::size_t>(i)].dims.nbDims;
    NoExpressions expressions;
    check(build->getOutputShapes(shapes.data(), inputs, nullptr, 0, made.data(), 2, expressions) == 0 &&
              made[0].nbDims == p.in[0].dims.nbDims && made[1].nbDims == 2, name + ": output shapes");

    std::vector<DynamicPluginTensorDesc> all;
    for (const auto& d : p.in) all.push_back({d, d.dims, d.dims, d.dims});
    for (const auto& d : p.out) all.push_back({d, d.dims, d.dims, d.dims});
    for (int pos = 0; pos < inputs + 2; ++pos) {
        check(build->supportsFormatCombination(pos, all.data(), inputs, 2), name + ": takes its own formats");
        auto wrong = all;
        wrong[static_cast<std::size_t>(pos)].desc.format = TensorFormat::kCHW32;
        check(!build->supportsFormatCombination(pos, wrong.data(), inputs, 2), name + ": refuses another layout");
        wrong = all;
        wrong[static_cast<std::size_t>(pos)].desc.type = DataType::kINT8;
        check(!build->supportsFormatCombination(pos, wrong.data(), inputs, 2), name + ": refuses int8");
        if (pos == 1 || pos == 2 || pos == inputs) {
            wrong[static_cast<std::size_t>(pos)].desc.type = DataType::kHALF;
            check(!build->supportsFormatCombination(pos, wrong.data(), inputs, 2), name + ": refuses mixed streams");
        }
    }
    auto half = all;
    for (const int pos : {0, 1, 2, inputs}) half[static_cast<std::size_t>(pos)].desc.type = DataType::kBF16;
    bool takes = true;
    for (int pos = 0; pos < inputs + 2; ++pos) takes = takes && build->supportsFormatCombination(pos, half.data(), inputs, 2);
    check(takes, name + ": takes bfloat16 streams");
    check(!build->supportsFormatCombination(0, all.data(), inputs - (slots ? 2 : 1), 2), name + ": refuses a missing input");
    check(build->configurePlugin(all.data(), inputs, all.data() + inputs, 2) == 0, name + ": configured");
    const std::size_t workspace_bytes = build->getWorkspaceSize(all.data(), inputs, all.data() + inputs, 2);
    if (aliased) {
        auto* second = static_cast<IPluginV3OneBuildV2*>(build);
        check(std::strcmp(build->getInterfaceInfo().kind, "PLUGIN_V3ONE_BUILD") == 0 &&
                  build->getInterfaceInfo().major == 2, name + ": offers aliasing");
        check(second->getAliasedInput(0) == -1 && second->getAliasedInput(1) == 4, name + ": aliases the state alone");
    } else {
        check(build->getInterfaceInfo().major == 1, name + ": offers no aliasing");
    }

    auto* writer = capability<IPluginV3OneRuntime>(built.get(), PluginCapabilityType::kRUNTIME);
    const StoredFields stored(*writer->getFieldsToSerialize());
    built.reset();
    std::unique_ptr<IPluginV3> loaded(maker->createPlugin("node", &stored.collection, TensorRTPhase::kRUNTIME));
    check(loaded != nullptr, name + ": created again from an engine's fields");
    if (!loaded) return;
    auto* runtime = capability<IPluginV3OneRuntime>(loaded.get(), PluginCapabilityType::kRUNTIME);
    const StoredFields again(*runtime->getFieldsToSerialize());
    check(again.bytes == stored.bytes && again.names == stored.names, name + ": the same fields the second time");
    std::unique_ptr<IPluginV3> attached(runtime->attachToContext(nullptr));
    loaded.reset();
    auto* run = capability<IPluginV3OneRuntime>(attached.get(), PluginCapabilityType::kRUNTIME);

    for (int round = 0; round < 2; ++round) {
        std::vector<float> y(p.x.size(), NAN), state = p.state, state_out(aliased ? 0 : state.size(), NAN);
        std::vector<char> workspace(workspace_bytes, '\xff');
        std::vector<const void*> input{p.x.data(), p.gate_x.data(), p.gate_a.data(), p.decay.data(), state.data(), p.position.data()};
        input.push_back(scan ? static_cast<const void*>(p.lengths.data()) : static_cast<const void*>(p.active.get()));
        if (slots) input.push_back(p.slot.data());
        void* outputs[2] = {y.data(), aliased ? state.data() : state_out.data()};
        if (round == 0)
            check(run->enqueue(p.in.data(), p.out.data(), input.data(), outputs, workspace.data(), nullptr) != 0,
                  name + ": refuses to run before onShapeChange");
        check(run->onShapeChange(p.in.data(), inputs, p.out.data(), 2) == 0, name + ": shapes accepted");
        check(run->enqueue(p.in.data(), p.out.data(), input.data(), outputs, workspace.data(), nullptr) == 0, name + ": ran");
        std::vector<double> want_y, want_state;
        p.reference(&want_y, &want_state);
        double reach = 1e-30;
        for (const double v : want_y) reach = std::max(reach, std::fabs(v));
        for (const double v : p.state) reach = std::max(reach, std::fabs(v));
        check(error_of(y, want_y, reach) <= 1e-6, name + ": y agrees with float64");
        check(error_of(aliased ? state : state_out, want_state, reach) <= 1e-6, name + ": state agrees with float64");
        auto wrong = p.in;
        wrong[3].dims.d[0] += 1;
        check(run->onShapeChange(wrong.data(), inputs, p.out.data(), 2) != 0, name + ": refuses a decay of another width");
    }
}

// Two-int32 fields with one thing wrong; `kind` says which.
void fuzz(IPluginCreatorV3One* maker, const LastMessage& log, int rounds) {
    const char* names[] = {"schema", "aliased", "", "Schema", "aliased ", "decay", "schema\xff"};
    int refused = 0, accepted = 0, wrongly = 0;
    for (int round = 0; round < rounds; ++round) {
        const int count = upto(4);
        std::vector<std::unique_ptr<char[]>> data;
        std::vector<PluginField> fields;
        bool schema = false, aliased = false, sound = count == 2;
        for (int i = 0; i < count; ++i) {
            const int which = upto(2) ? upto(1) : upto(7);
            const char* name = which == 7 ? nullptr : names[which];
            const int length = upto(5) ? 1 : upto(3) - 1;
            const int bytes = upto(5) ? 4 * std::max(length, 0) : 0;  // 0: no data at all
            const auto type = static_cast<PluginFieldType>(upto(5) ? 5 : upto(15));
            std::int32_t value = upto(3) ? upto(1) : static_cast<std::int32_t>(dice());
            data.emplace_back(bytes ? new char[static_cast<std::size_t>(bytes)] : nullptr);
            for (int j = 0; j + 4 <= bytes; j += 4) std::memcpy(data.back().get() + j, &value, 4);
            fields.push_back({name, data.back().get(), type, upto(20) ? length : static_cast<std::int32_t>(dice())});
            const PluginField& f = fields.back();
            const bool whole = f.type == PluginFieldType::kINT32 && f.length == 1 && bytes == 4;
            if (f.length != length && f.length == 1 && bytes < 4) fields.back().length = 2;  // we could not hold it
            sound = sound && name != nullptr && whole;
            if (name != nullptr && std::strcmp(name, "schema") == 0) {
                sound = sound && !schema && value == 1;
                schema = true;
            } else if (name != nullptr && std::strcmp(name, "aliased") == 0) {
                sound = sound && !aliased && (value == 0 || value == 1);
                aliased = true;
            } else {
                sound = false;
            }
        }
        PluginFieldCollection collection{count, fields.data()};
        if (!upto(30)) collection = {upto(1) ? count : -1 - upto(1000), upto(1) ? nullptr : fields.data()};
        const bool damaged = collection.nbFields != count || (count > 0 && collection.fields == nullptr);
        std::unique_ptr<IPluginV3> made(
            maker->createPlugin("node", upto(50) ? &collection : nullptr, TensorRTPhase::kRUNTIME));
        (made ? accepted : refused) += 1;
        if (made && (!sound || damaged)) ++wrongly;
        if (!made && log.message.empty()) ++wrongly;  // a refusal says why
    }
    const std::string name = maker->getPluginName();
    check(wrongly == 0, name + ": damaged fields are refused with a sentence");
    check(refused > rounds / 4 && accepted > rounds / 1000, name + ": the fuzzer met both kinds");
    std::printf("%s: %d damaged or foreign field sets refused, %d sound ones accepted\n", name.c_str(), refused, accepted);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: %s LIBRARY [SEED]\n", argv[0]);
        return 2;
    }
    const unsigned seed = argc > 2 ? static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10)) : std::random_device{}();
    dice.seed(seed);
    std::printf("seed %u\n", seed);
    void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        std::fprintf(stderr, "cannot load the plugin: %s\n", dlerror());
        return 2;
    }
    auto* get_creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(std::int32_t&)>(dlsym(library, "getCreators"));
    auto* set_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
    check(get_creators && set_finder, "both entry points are exported");
    if (!get_creators || !set_finder) return 1;
    Finder finder;
    set_finder(&finder);
    std::int32_t count = 0;
    IPluginCreatorInterface* const* all = get_creators(count);
    for (const bool scan : {false, true}) {
        auto* maker = creator(all, count, scan ? "RGLRUScan" : "RGLRUStep");
        check(maker != nullptr, "the creator is found");
        if (!maker) continue;
        check(std::strcmp(maker->getPluginNamespace(), "speechssm") == 0 && std::strcmp(maker->getPluginVersion(), "1") == 0,
              "namespace speechssm, version 1");
        for (int repeat = 0; repeat < 20; ++repeat) {
            run_once(maker, scan, false, false);
            run_once(maker, scan, true, false);
            run_once(maker, scan, true, true);
        }
        fuzz(maker, finder.logger, 20000);
        std::unique_ptr<IPluginV3> plain(maker->createPlugin("node", maker->getFieldNames(), TensorRTPhase::kBUILD));
        check(plain == nullptr, "field names without data are refused");
    }
    set_finder(nullptr);
    dlclose(library);
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
