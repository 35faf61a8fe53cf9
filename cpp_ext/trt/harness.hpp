// What the tests of all plugins share: dice, checks, and the way of a plugin through an engine.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

namespace harness {

void check(bool held, const std::string& what);

extern std::mt19937 dice;
float normal();
int upto(int most);

nvinfer1::Dims dims_of(std::initializer_list<std::int64_t> sizes);
nvinfer1::PluginTensorDesc desc(nvinfer1::Dims dims, nvinfer1::DataType type);

// Largest error over `reach`, the range the numbers travelled: one element may cancel to almost nothing.
double error_of(const std::vector<float>& got, const std::vector<double>& want, double reach);

template <class Capability>
Capability* capability(nvinfer1::IPluginV3* plugin, nvinfer1::PluginCapabilityType type) {
    return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

// One node as TensorRT meets it while it builds.
struct Job {
    std::string name;
    bool aliased;
    std::vector<nvinfer1::PluginTensorDesc> in, out;
    std::vector<int> alias_of;                               // of each output, when aliased
    std::vector<std::vector<nvinfer1::DataType>> taken, refused;  // other types, of inputs and then outputs

    int inputs() const { return static_cast<int>(in.size()); }
    int outputs() const { return static_cast<int>(out.size()); }
};

// Create from node attributes, negotiate formats, configure, serialise, create again from copied fields, attach.
// NULL when a plugin was refused, which is a failed check.
std::unique_ptr<nvinfer1::IPluginV3> through_an_engine(nvinfer1::IPluginCreatorV3One* maker, const Job& job,
                                                       std::size_t* workspace_bytes);

// One random problem each, run twice and compared with a float64 loop.
void run_rglru(nvinfer1::IPluginCreatorV3One* maker, bool scan, bool aliased, bool slots);
void run_ring(nvinfer1::IPluginCreatorV3One* maker, bool scan, bool scaled, bool aliased);

}  // namespace harness
