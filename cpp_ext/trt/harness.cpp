// Drives the plugins the way TensorRT does, on host launchers, and prints what held.
//
//   speechssm_trt_harness libspeechssm_trt_host.so [SEED]
//
// Load, create from node attributes, negotiate formats, serialise, create again from the copied fields,
// attach, change shape, enqueue with host pointers against a float64 loop; then thousands of damaged
// field collections, each of which must be refused. Ends with 'N passed, N failed'.
#include "harness.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

using namespace nvinfer1;

namespace harness {
namespace {
int passed = 0, failed = 0;
}

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

Dims dims_of(std::initializer_list<std::int64_t> sizes) {
    Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), dims.d);
    return dims;
}

PluginTensorDesc desc(Dims dims, DataType type) { return {dims, type, TensorFormat::kLINEAR, 1.0f}; }

double error_of(const std::vector<float>& got, const std::vector<double>& want, double reach) {
    double error = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
        if (!std::isfinite(got[i])) return INFINITY;
        error = std::max(error, std::fabs(got[i] - want[i]));
    }
    return error / reach;
}

namespace {

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

IPluginCreatorV3One* creator(IPluginCreatorInterface* const* all, int count, const char* name) {
    for (int i = 0; i < count; ++i) {
        auto* one = static_cast<IPluginCreatorV3One*>(all[i]);
        if (std::strcmp(one->getPluginName(), name) == 0) return one;
    }
    return nullptr;
}

// Two-int32 fields with one thing wrong; `kind` says which.
void fuzz(IPluginCreatorV3One* maker, bool aliases, const LastMessage& log, int rounds) {
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
                sound = sound && !aliased && (value == 0 || (value == 1 && aliases));
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

struct Plan {
    const char* name;
    bool ring, scan, scaled, aliases;
};

void run_all(IPluginCreatorV3One* maker, const Plan& plan) {
    for (int repeat = 0; repeat < 20; ++repeat) {
        if (plan.ring) {
            run_ring(maker, plan.scan, plan.scaled, false);
            if (plan.aliases) run_ring(maker, plan.scan, plan.scaled, true);
        } else {
            run_rglru(maker, plan.scan, false, false);
            run_rglru(maker, plan.scan, true, false);
            run_rglru(maker, plan.scan, true, true);
        }
    }
}

}  // namespace
}  // namespace harness

int main(int argc, char** argv) {
    using namespace harness;
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
    constexpr Plan plans[] = {{"RGLRUStep", false, false, false, true},      {"RGLRUScan", false, true, false, true},
                              {"RingAttend", true, false, false, false},     {"RingScan", true, true, false, true},
                              {"RingAttendInt8", true, false, true, false}, {"RingScanInt8", true, true, true, true}};
    check(count == static_cast<std::int32_t>(std::size(plans)), "as many creators as operators");
    for (const Plan& plan : plans) {
        auto* maker = creator(all, count, plan.name);
        check(maker != nullptr, std::string(plan.name) + ": the creator is found");
        if (!maker) continue;
        check(std::strcmp(maker->getPluginNamespace(), "speechssm") == 0 && std::strcmp(maker->getPluginVersion(), "1") == 0,
              "namespace speechssm, version 1");
        run_all(maker, plan);
        fuzz(maker, plan.aliases, finder.logger, 20000);
        std::unique_ptr<IPluginV3> plain(maker->createPlugin("node", maker->getFieldNames(), TensorRTPhase::kBUILD));
        check(plain == nullptr, "field names without data are refused");
    }
    set_finder(nullptr);
    dlclose(library);
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
