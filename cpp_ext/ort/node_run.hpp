// What one run of one node of ours needs of ONNX Runtime: inputs, outputs, and errors that name the node.
#pragma once

#include <array>
#include <cstdio>

#include "ort_abi.hpp"
#include "speechssm/ring_api.h"

namespace ort {

// A type of ONNX Runtime's as the launchers name it; float32 where they have no other name for it.
inline std::int32_t launcher_type(ElementType type) {
    switch (type) {
        case kFloat16: return SPEECHSSM_F16;
        case kBFloat16: return SPEECHSSM_BF16;
        case kInt8: return SPEECHSSM_I8;
        default: return SPEECHSSM_F32;
    }
}

inline std::size_t bytes_of(ElementType type) { return type == kFloat ? 4 : type == kFloat16 || type == kBFloat16 ? 2 : 1; }

struct Shape {
    std::array<std::int64_t, 4> size{};
    std::size_t rank = 0;

    bool operator==(const Shape& other) const { return rank == other.rank && size == other.size; }
};

class NodeRun {
protected:
    NodeRun(Api api, const char* name, KernelContext* context) : api_(api), name_(name), context_(context) {}

    Status* read_input(std::size_t index, void** data, Shape* shape) {
        const Value* value = nullptr;
        if (Status* failed = api_.input(context_, index, &value)) return failed;
        if (value == nullptr) return refuse("an input is missing");
        TypeAndShape* info = nullptr;
        if (Status* failed = api_.type_and_shape(value, &info)) return failed;
        Status* failed = api_.rank(info, &shape->rank);
        if (failed == nullptr && shape->rank <= shape->size.size())
            failed = api_.dimensions(info, shape->size.data(), shape->rank);
        api_.release(info);
        if (failed == nullptr && shape->rank > shape->size.size()) return refuse("an input has more than 4 axes");
        if (failed == nullptr) failed = api_.data(const_cast<Value*>(value), data);
        return failed;
    }

    Status* make_output(std::size_t index, const Shape& shape, void** data) {
        Value* value = nullptr;
        if (Status* failed = api_.output(context_, index, shape.size.data(), shape.rank, &value)) return failed;
        return api_.data(value, data);
    }

    template <class... Words>
    Status* refuse(const char* format, Words... words) {
        char text[200], sentence[280];
        std::snprintf(text, sizeof text, format, words...);
        std::snprintf(sentence, sizeof sentence, "speechssm::%s: %s", name_, text);
        return api_.create_status(kInvalidArgument, sentence);
    }
    Status* refuse(const char* text) { return refuse("%s", text); }

    Api api_;
    const char* name_;
    KernelContext* context_;
};

}  // namespace ort
