// What TensorRT asks a plugin library for: its creators, and a place for its logger.
#include "plugin.hpp"
#include "speechssm/rglru_api.h"

namespace {

using namespace nvinfer1;
using speechssm_trt::Kind;

class Creator final : public IPluginCreatorV3One {
public:
    explicit Creator(Kind kind) : kind_(kind) {}

    IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields, TensorRTPhase phase) noexcept override {
        speechssm_trt::Options options;
        if (!speechssm_trt::read_options(fields, phase == TensorRTPhase::kBUILD, &options)) return nullptr;
        return speechssm_trt::make_plugin(kind_, options);
    }

    const PluginFieldCollection* getFieldNames() noexcept override {
        static const PluginField fields[] = {{"schema", nullptr, PluginFieldType::kINT32, 1},
                                             {"aliased", nullptr, PluginFieldType::kINT32, 1}};
        static const PluginFieldCollection collection{2, fields};
        return &collection;
    }

    const char* getPluginName() const noexcept override { return speechssm_trt::name_of(kind_); }
    const char* getPluginVersion() const noexcept override { return speechssm_trt::kVersion; }
    const char* getPluginNamespace() const noexcept override { return speechssm_trt::kNamespace; }

private:
    const Kind kind_;
};

}  // namespace

extern "C" SPEECHSSM_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
    static Creator step{Kind::step}, scan{Kind::scan};
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&step, &scan};
    count = 2;
    return creators;
}

extern "C" SPEECHSSM_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    speechssm_trt::set_logger_finder(finder);
}
