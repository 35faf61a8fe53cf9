// A plugin's options and how they are stored in an engine.
//
// An engine holds exactly two fields, each one int32: "schema" (the version of this list) and
// "aliased". Anything else, in number, name, type or length, is refused: an engine of another version
// must be an error message and never a misread.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <cstring>

#include "log.hpp"

namespace speechssm_trt {

constexpr std::int32_t kSchema = 1;

struct Options {
    std::int32_t schema = kSchema;
    std::int32_t aliased = 0;  // 1: outputs of state are their inputs' memory
};

inline bool read_int(const nvinfer1::PluginField& field, std::int32_t* out) {
    if (field.type != nvinfer1::PluginFieldType::kINT32 || field.length != 1 || field.data == nullptr) {
        report("plugin field %s must be one int32; it has type %d and length %d", field.name,
               static_cast<int>(field.type), field.length);
        return false;
    }
    std::memcpy(out, field.data, sizeof *out);
    return true;
}

// Reads the fields of an ONNX node (building: all optional) or of an engine (running: exactly both).
inline bool read_options(const nvinfer1::PluginFieldCollection* fields, bool building, Options* out) {
    *out = Options{};
    if (fields == nullptr || fields->nbFields < 0 || (fields->nbFields > 0 && fields->fields == nullptr)) {
        report("the plugin was given no field collection, or one without fields");
        return false;
    }
    if (!building && fields->nbFields != 2) {
        report("an engine must hold 2 plugin fields (schema %d), this one holds %d: rebuild the engine with this "
               "version of the plugin", kSchema, fields->nbFields);
        return false;
    }
    bool seen_schema = false, seen_aliased = false;
    for (std::int32_t i = 0; i < fields->nbFields; ++i) {
        const nvinfer1::PluginField& field = fields->fields[i];
        if (field.name == nullptr) {
            report("plugin field %d has no name", i);
            return false;
        }
        const bool is_schema = std::strcmp(field.name, "schema") == 0;
        const bool is_aliased = std::strcmp(field.name, "aliased") == 0;
        // ONNX parsers may pass on the attributes by which they found the plugin.
        const bool is_address = std::strncmp(field.name, "plugin_", 7) == 0;
        if (building && is_address) continue;
        if ((!is_schema && !is_aliased) || (is_schema && seen_schema) || (is_aliased && seen_aliased)) {
            report("plugin field '%.60s' is unknown or given twice: the fields are schema and aliased", field.name);
            return false;
        }
        if (!read_int(field, is_schema ? &out->schema : &out->aliased)) return false;
        (is_schema ? seen_schema : seen_aliased) = true;
    }
    if (out->schema != kSchema) {
        report("the engine's plugin fields are of schema %d, this plugin reads schema %d: rebuild the engine",
               out->schema, kSchema);
        return false;
    }
    if (out->aliased != 0 && out->aliased != 1) {
        report("plugin field aliased must be 0 or 1, not %d", out->aliased);
        return false;
    }
    return true;
}

}  // namespace speechssm_trt
