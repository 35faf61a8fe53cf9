"""Builds one engine with TensorRT-RTX; run by the tests in a process of its own, with RTX's own Python.

    python rtx_worker.py MODEL.onnx ROWS TOKENS [--plugin LIBRARY] [--aliased] -> one JSON line

Nothing of speechssm is imported: that Python has TensorRT-RTX and nothing else.
"""

import argparse
import ctypes
import json
import sys

import tensorrt_rtx as trt


class Messages(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors, self.notes = [], []

    def log(self, severity, text):
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(text)
        elif "lugin" in text:
            self.notes.append(text)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("rows", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("--plugin")
    parser.add_argument("--aliased", action="store_true")
    chosen = parser.parse_args()
    messages = Messages()
    builder = trt.Builder(messages)
    if chosen.plugin:
        builder.get_plugin_registry().load_library(chosen.plugin)
    network = builder.create_network(0)
    onnx_parser = trt.OnnxParser(network, messages)
    with open(chosen.model, "rb") as stream:
        parsed = onnx_parser.parse(stream.read())
    result = {"parsed": parsed, "layers": [], "bytes": 0}
    if parsed:
        result["layers"] = [network.get_layer(i).type.name for i in range(network.num_layers)]
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            if -1 not in tensor.shape:
                continue
            largest = {"t": chosen.tokens, "b": chosen.rows}
            dims = [(size, tensor.get_dimension_name(axis)) for axis, size in enumerate(tensor.shape)]
            low = tuple(1 if size < 0 else size for size, _ in dims)
            high = tuple(largest[letter] if size < 0 else size for size, letter in dims)
            profile.set_shape(tensor.name, low, high, high)
        config.add_optimization_profile(profile)
        if chosen.aliased:
            config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        engine = builder.build_serialized_network(network, config)
        result["bytes"] = engine.nbytes if engine is not None else 0
    result |= {"errors": messages.errors, "notes": messages.notes, "plugin_error": ""}
    if chosen.plugin:
        library = ctypes.CDLL(chosen.plugin)
        library.speechssm_trt_last_error.restype = ctypes.c_char_p
        result["plugin_error"] = library.speechssm_trt_last_error().decode()
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
