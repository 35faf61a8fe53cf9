"""An ONNX file from elsewhere as a graph of a bundle: weights moved out, names kept apart, check passed.

A bundle's graphs hold no weights, so initializers of the types a weight file has are moved into the
part's safetensors file and the graph points at them. What is left must pass the check that every
reader of a bundle makes (:mod:`speechssm.bundle.onnx_check`): ONNX's own operators, no other files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import onnx.inliner
from onnx import TensorProto, numpy_helper

from speechssm.errors import ExportError

from ..graphs.builder import GraphBuilder, WeightUse

OPSETS = range(13, 24)
"""Opsets of ai.onnx that are taken as they are; 13 is the first whose Squeeze, Split and ReduceSum read axes
as inputs."""
MOVED_BYTES = 256
"""Smaller initializers stay in the graph: shapes, axes, scalars."""
_STORED = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT8: np.int8,
    TensorProto.UINT8: np.uint8,
}


@dataclass
class ModelGraph:
    """A model whose large initializers are external and unplaced; ``arrays`` by weight name."""

    proto: onnx.ModelProto
    weights: dict[str, WeightUse]
    arrays: dict[str, np.ndarray]

    def model(self) -> onnx.ModelProto:
        """The finished model, a copy."""
        made = onnx.ModelProto()
        made.CopyFrom(self.proto)
        return made


def read_model(path: Path) -> onnx.ModelProto:
    """The model at ``path`` with its weights, those in files beside it too.

    Raises ExportError when it is not one whole ONNX file, or is of a version that is not read here.
    """
    if not path.is_file():
        raise ExportError(f"there is no ONNX file at {path}: check the path")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(str(path))
    except Exception as error:  # protobuf and the checker raise families of their own
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"{path} is not a whole ONNX file ({said[0]}): fetch or export it again") from error
    if opset_of(model) not in OPSETS:
        raise ExportError(
            f"{path} is of opset {opset_of(model)}, expected {OPSETS.start} to {OPSETS.stop - 1}: "
            "convert it with onnx.version_converter"
        )
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ai.onnx that a model uses."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that somebody has to give; older files list their weights among the inputs as well."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def axes_of(value: onnx.ValueInfoProto) -> list[int | None]:
    """Sizes of a value's axes; None where a size is free."""
    dims = value.type.tensor_type.shape.dim
    return [int(dim.dim_value) if dim.HasField("dim_value") else None for dim in dims]


def splice(
    g: GraphBuilder, model: onnx.ModelProto, inputs: Mapping[str, str], prefix: str = "ready/"
) -> dict[str, str]:
    """Put ``model``'s nodes into ``g``, its ``inputs`` fed by values of ``g``; its outputs by name.

    All of its own names get ``prefix``, so that they meet none of ``g``'s.
    """
    apart = onnx.compose.add_prefix(model, prefix, rename_functions=False)
    fed = [
        onnx.helper.make_node("Identity", [value], [f"{prefix}{name}"], name=f"feed/{prefix}{name}")
        for name, value in inputs.items()
    ]
    domains = {o.domain: o.version for o in model.opset_import if o.domain not in ("", "ai.onnx")}
    g.splice([*fed, *apart.graph.node], apart.graph.initializer, domains)
    return {value.name: f"{prefix}{value.name}" for value in model.graph.output}


def as_graph(model: onnx.ModelProto, part: str, file: str) -> ModelGraph:
    """``model`` with its weights moved into ``part``. Raises ExportError, naming the weight, for one not finite.

    ``file`` is for messages. Constant nodes of the top level become initializers; a ``Constant`` inside a
    loop's body stays where it is.
    """
    graph = model.graph
    _lift_constants(graph)
    given = {value.name for value in graph.input}
    weights: dict[str, WeightUse] = {}
    arrays: dict[str, np.ndarray] = {}
    for tensor in graph.initializer:
        if tensor.name in given:
            raise ExportError(
                f"{file} gives input {tensor.name} a default value: export it with constants as initializers only"
            )
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportError(f"weight {tensor.name} of {file} is not finite: the file is damaged")
        if tensor.data_type not in _STORED or array.nbytes < MOVED_BYTES:
            kept = numpy_helper.from_array(array, tensor.name)
            kept.data_type = tensor.data_type
            tensor.CopyFrom(kept)
            continue
        name = tensor.name
        weights[name] = WeightUse(part, name, tuple(array.shape), tensor.data_type)
        arrays[name] = array
        kind, shape = tensor.data_type, tuple(array.shape)
        tensor.Clear()
        tensor.name, tensor.data_type = name, kind
        tensor.dims.extend(shape)
        tensor.data_location = TensorProto.EXTERNAL
    _clean(graph)
    return ModelGraph(model, weights, arrays)


def _lift_constants(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
            kept.append(node)
            continue
        attribute = node.attribute[0]
        if attribute.name != "value":
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(attribute.t)
        tensor.name = node.output[0]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def _clean(graph: onnx.GraphProto) -> None:
    """Drop what only describes: a reader of bundles compares it with nothing."""
    graph.doc_string = ""
    del graph.value_info[:]
    del graph.metadata_props[:]
    del graph.quantization_annotation[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
