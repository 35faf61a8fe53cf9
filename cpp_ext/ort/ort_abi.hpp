// The part of ONNX Runtime's C ABI that a custom op needs, declared here so that no header of it is.
//
// The ABI is a table of function pointers that is only ever appended to, and a struct of callbacks
// whose first member says how many fields it has. These ops speak version 16 of the
// struct and 17 of the table; every later runtime accepts both. Slot numbers are positions in that table,
// published and fixed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr std::uint32_t kAbiVersion = 16;    // of the struct of callbacks
constexpr std::uint32_t kTableVersion = 17;  // of the table: the last slot used is ParallelFor's

// Opaque to us.
struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TypeAndShape;

using Table = void (*const*)();  // OrtApi

struct ApiBase {
    Table (*get_api)(std::uint32_t version);
    const char* (*get_version_string)();
};

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1, kUInt8 = 2, kInt8 = 3, kInt64 = 7, kBool = 9, kFloat16 = 10, kBFloat16 = 16 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum MemoryType : int { kMemoryDefault = 0, kMemoryCpuInput = -2 };

struct CustomOp {
    std::uint32_t version;
    void* (*create_kernel)(const CustomOp*, Table, const KernelInfo*);
    const char* (*get_name)(const CustomOp*);
    const char* (*get_execution_provider)(const CustomOp*);
    ElementType (*get_input_type)(const CustomOp*, std::size_t);
    std::size_t (*get_input_count)(const CustomOp*);
    ElementType (*get_output_type)(const CustomOp*, std::size_t);
    std::size_t (*get_output_count)(const CustomOp*);
    void (*compute)(void* kernel, KernelContext*);
    void (*destroy)(void* kernel);
    Characteristic (*get_input_characteristic)(const CustomOp*, std::size_t);
    Characteristic (*get_output_characteristic)(const CustomOp*, std::size_t);
    MemoryType (*get_input_memory)(const CustomOp*, std::size_t);
    int (*get_variadic_input_min)(const CustomOp*);
    int (*get_variadic_input_homogeneous)(const CustomOp*);
    int (*get_variadic_output_min)(const CustomOp*);
    int (*get_variadic_output_homogeneous)(const CustomOp*);
    Status* (*create_kernel_v2)(const CustomOp*, Table, const KernelInfo*, void** kernel);
    Status* (*compute_v2)(void* kernel, KernelContext*);
};

// One typed call through the table for each slot used.
class Api {
public:
    Api() = default;
    explicit Api(Table table) : table_(table) {}
    explicit operator bool() const { return table_ != nullptr; }

    Status* create_status(ErrorCode code, const char* text) const {
        return slot<Status*(ErrorCode, const char*)>(0)(code, text);
    }
    Status* create_domain(const char* name, CustomOpDomain** out) const {
        return slot<Status*(const char*, CustomOpDomain**)>(26)(name, out);
    }
    Status* add_op(CustomOpDomain* domain, const CustomOp* op) const {
        return slot<Status*(CustomOpDomain*, const CustomOp*)>(27)(domain, op);
    }
    Status* add_domain(SessionOptions* options, CustomOpDomain* domain) const {
        return slot<Status*(SessionOptions*, CustomOpDomain*)>(28)(options, domain);
    }
    Status* data(Value* value, void** out) const { return slot<Status*(Value*, void**)>(51)(value, out); }
    Status* rank(const TypeAndShape* info, std::size_t* out) const {
        return slot<Status*(const TypeAndShape*, std::size_t*)>(61)(info, out);
    }
    Status* dimensions(const TypeAndShape* info, std::int64_t* out, std::size_t count) const {
        return slot<Status*(const TypeAndShape*, std::int64_t*, std::size_t)>(62)(info, out, count);
    }
    Status* type_and_shape(const Value* value, TypeAndShape** out) const {
        return slot<Status*(const Value*, TypeAndShape**)>(65)(value, out);
    }
    Status* attribute(const KernelInfo* info, const char* name, float* out) const {
        return slot<Status*(const KernelInfo*, const char*, float*)>(85)(info, name, out);
    }
    Status* attribute(const KernelInfo* info, const char* name, std::int64_t* out) const {
        return slot<Status*(const KernelInfo*, const char*, std::int64_t*)>(86)(info, name, out);
    }
    Status* input(const KernelContext* context, std::size_t index, const Value** out) const {
        return slot<Status*(const KernelContext*, std::size_t, const Value**)>(90)(context, index, out);
    }
    Status* output(KernelContext* context, std::size_t index, const std::int64_t* dimensions, std::size_t rank,
                   Value** out) const {
        return slot<Status*(KernelContext*, std::size_t, const std::int64_t*, std::size_t, Value**)>(91)(
            context, index, dimensions, rank, out);
    }
    void release(TypeAndShape* info) const { slot<void(TypeAndShape*)>(99)(info); }
    Status* gpu_stream(const KernelContext* context, void** out) const {
        return slot<Status*(const KernelContext*, void**)>(193)(context, out);
    }
    // Calls each(data, i) for i below count on the session's threads, and waits for all of them.
    Status* parallel_for(const KernelContext* context, void (*each)(void*, std::size_t), std::size_t count, void* data) const {
        return slot<Status*(const KernelContext*, void (*)(void*, std::size_t), std::size_t, std::size_t, void*)>(274)(
            context, each, count, 0, data);
    }

private:
    template <class Signature>
    Signature* slot(std::size_t index) const {
        return reinterpret_cast<Signature*>(table_[index]);
    }
    Table table_ = nullptr;
};

}  // namespace ort
