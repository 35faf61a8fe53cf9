// What all of our ops have in common: the device they are for, and how a node of theirs is made, run and freed.
#pragma once

#include <memory>

#include "ort_abi.hpp"

namespace ort {

enum class Device { cpu, cuda };

#if defined(SPEECHSSM_WITH_CUDA)
constexpr Device kDevices[] = {Device::cpu, Device::cuda};
#else
constexpr Device kDevices[] = {Device::cpu};
#endif

struct DeviceOp : CustomOp {
    Device device;
};

// The attributes of a node of an op that has none.
struct NoSettings {
    Status* read(Api, const KernelInfo*) { return nullptr; }
};

// Op is a DeviceOp; Run(api, op, settings, context)() computes one node once. Settings are read when a session is made.
template <class Op, class Run, class Settings = NoSettings>
Op device_op(Device device) {
    struct Kernel {
        Api api;
        const Op* op = nullptr;
        Settings settings;
    };
    Op op{};
    op.device = device;
    op.version = kAbiVersion;
    op.get_execution_provider = [](const CustomOp* o) {
        return static_cast<const Op*>(o)->device == Device::cpu ? "CPUExecutionProvider" : "CUDAExecutionProvider";
    };
    op.get_input_characteristic = [](const CustomOp*, std::size_t) { return kRequired; };
    op.get_output_characteristic = [](const CustomOp*, std::size_t) { return kRequired; };
    op.get_input_memory = [](const CustomOp*, std::size_t) { return kMemoryDefault; };
    op.get_variadic_input_min = op.get_variadic_output_min = [](const CustomOp*) { return 1; };
    op.get_variadic_input_homogeneous = op.get_variadic_output_homogeneous = [](const CustomOp*) { return 1; };
    op.create_kernel_v2 = [](const CustomOp* o, Table table, const KernelInfo* info, void** kernel) {
        auto made = std::make_unique<Kernel>();
        made->api = Api(table);
        made->op = static_cast<const Op*>(o);
        if (Status* failed = made->settings.read(made->api, info)) return failed;
        *kernel = made.release();
        return static_cast<Status*>(nullptr);
    };
    op.compute_v2 = [](void* kernel, KernelContext* context) {
        const Kernel& k = *static_cast<Kernel*>(kernel);
        return Run(k.api, *k.op, k.settings, context)();
    };
    op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    return op;
}

}  // namespace ort
