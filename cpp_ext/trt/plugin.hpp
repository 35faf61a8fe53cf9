// Our operators as TensorRT plugins (IPluginV3; TensorRT 10, 11 and TensorRT-RTX): the list of them.
#pragma once

#include <NvInferRuntime.h>

#include "options.hpp"

namespace speechssm_trt {

constexpr const char* kNamespace = "speechssm";
constexpr const char* kVersion = "1";

struct Operator {
    const char* name;
    bool aliases;  // whether it has an output that may be an input's memory
    nvinfer1::IPluginV3* (*make)(const Options& options) noexcept;
};

extern const Operator kRglru[2];  // rglru_plugin.cpp: RGLRUStep, RGLRUScan
extern const Operator kRing[4];   // ring_plugin.cpp: RingAttend, RingScan, and both with an int8 ring

}  // namespace speechssm_trt
