// Errors as sentences: to TensorRT's logger where it gave us one, and kept for whoever asks.
#pragma once

#include <NvInferRuntime.h>

namespace speechssm_trt {

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// Formats, logs and remembers one error; always returns -1, which is what a failing callback returns.
int report(const char* format, ...) noexcept __attribute__((format(printf, 1, 2)));

// The same of one operator, before whose sentence its name is put; always returns false.
bool refuse(const char* name, const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));

}  // namespace speechssm_trt
