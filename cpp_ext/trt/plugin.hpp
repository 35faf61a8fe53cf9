// The RG-LRU as one TensorRT plugin class (IPluginV3; TensorRT 10, 11 and TensorRT-RTX).
//
// Inputs   0 x, 1 gate_x, 2 gate_a: (b,e) for a step, (t,b,e) for a scan; float32, float16 or bfloat16
//          3 decay (e) float32      4 state (slot,e) float32      5 position (b) int64
//          6 active (b) bool for a step, lengths (b) int64 for a scan
//          7 slots (b) int32, optional and only with aliased state: rows of the resident pool in 4
// Outputs  0 y like x               1 state_out like state
#pragma once

#include <NvInferRuntime.h>

#include "launchers.hpp"
#include "options.hpp"

namespace speechssm_trt {

enum class Kind { step, scan };

inline const char* name_of(Kind kind) { return kind == Kind::step ? "RGLRUStep" : "RGLRUScan"; }

constexpr const char* kNamespace = "speechssm";
constexpr const char* kVersion = "1";

enum Input { kX, kGateX, kGateA, kDecay, kState, kPosition, kRows, kSlots };
constexpr std::int32_t kOutputs = 2;

nvinfer1::IPluginV3* make_plugin(Kind kind, const Options& options) noexcept;

}  // namespace speechssm_trt
