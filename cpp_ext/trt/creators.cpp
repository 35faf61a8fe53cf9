// What TensorRT asks a plugin library for: its creators, and a place for its logger.
#include "plugin.hpp"
#include "speechssm/rglru_api.h"

namespace {

using namespace nvinfer1;
using speechssm_trt::Operator;

class Creator final : public IPluginCreatorV3One {
public:
    explicit Creator(const Operator& op) : op_(op) {}

    IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields, TensorRTPhase phase) noexcept override {
        speechssm_trt::Options options;
        if (!speechssm_trt::read_options(fields, phase == TensorRTPhase::kBUILD, &options)) return nullptr;
        if (options.aliased && !op_.aliases) {
            speechssm_trt::refuse(op_.name, "it writes no state, so there is nothing to alias: aliased must be 0");
            return nullptr;
        }
        return op_.make(options);
    }

    const PluginFieldCollection* getFieldNames() noexcept override {
        static const PluginField fields[] = {{"schema", nullptr, PluginFieldType::kINT32, 1},
                                             {"aliased", nullptr, PluginFieldType::kINT32, 1}};
        static const PluginFieldCollection collection{2, fields};
        return &collection;
    }

    const char* getPluginName() const noexcept override { return op_.name; }
    const char* getPluginVersion() const noexcept override { return speechssm_trt::kVersion; }
    const char* getPluginNamespace() const noexcept override { return speechssm_trt::kNamespace; }

private:
    const Operator& op_;
};

}  // namespace

extern "C" SPEECHSSM_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
    using speechssm_trt::kRglru, speechssm_trt::kRing;
    static Creator rglru[] = {Creator(kRglru[0]), Creator(kRglru[1])};
    static Creator ring[] = {Creator(kRing[0]), Creator(kRing[1]), Creator(kRing[2]), Creator(kRing[3])};
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&rglru[0], &rglru[1], &ring[0],
                                                                  &ring[1],  &ring[2],  &ring[3]};
    count = 6;
    return creators;
}

extern "C" SPEECHSSM_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    speechssm_trt::set_logger_finder(finder);
}
