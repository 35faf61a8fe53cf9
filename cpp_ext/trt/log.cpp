#include "log.hpp"

#include <atomic>
#include <cstdarg>
#include <cstdio>

#include "speechssm/rglru_api.h"

namespace speechssm_trt {
namespace {
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};
thread_local char last_error[400] = "";

int deliver() noexcept {
    nvinfer1::ILoggerFinder* finder = logger_finder.load();
    nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
    if (logger)
        logger->log(nvinfer1::ILogger::Severity::kERROR, last_error);
    else  // TensorRT-RTX 1.7 hands out a finder that finds none; the sentence must not be lost
        std::fprintf(stderr, "speechssm plugin: %s\n", last_error);
    return -1;
}
}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder.store(finder); }

int report(const char* format, ...) noexcept {
    va_list words;
    va_start(words, format);
    std::vsnprintf(last_error, sizeof last_error, format, words);
    va_end(words);
    return deliver();
}

bool refuse(const char* name, const char* format, ...) noexcept {
    const int named = std::snprintf(last_error, sizeof last_error, "%s: ", name);
    va_list words;
    va_start(words, format);
    std::vsnprintf(last_error + named, sizeof last_error - static_cast<std::size_t>(named), format, words);
    va_end(words);
    return deliver() == 0;
}

}  // namespace speechssm_trt

// The last error of this thread, for callers without a TensorRT logger.
extern "C" SPEECHSSM_EXPORT const char* speechssm_trt_last_error() { return speechssm_trt::last_error; }
