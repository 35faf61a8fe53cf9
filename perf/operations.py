"""What a graph multiplies: operations of its products and convolutions at the shapes of one call.

Counted by running the call once with ONNX Runtime's profiler and every optimisation off, so that the nodes
are those of the file and their shapes those of the call; loops count as often as they ran. Weights are
those that a product or convolution reads, at the width they have in memory.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from speechssm.engines.protocol import Array

PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "MatMulNBits", "DynamicQuantizeMatMul", "Einsum")
CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger")
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Counted:
    """Of one call: operations (a multiplication and an addition are two) by operator, and weights read."""

    by_operator: dict[str, int]
    weight_bytes: int

    @property
    def flops(self) -> int:
        """All operations."""
        return sum(self.by_operator.values())


def count_operations(path: Path, inputs: Mapping[str, Array]) -> Counted:
    """Run the graph at ``path`` once on ``inputs`` and count."""
    model = onnx.load(str(path), load_external_data=False)
    found: dict[str, int] = {}
    for event in profile(path, inputs, optimised=False, runs=1):
        operator = event["args"]["op_name"]
        if operator in PRODUCTS + CONVOLUTIONS:
            count = _operations(operator, event["args"])
            found[operator] = found.get(operator, 0) + count
    return Counted(found, sum(_weights(model.graph)))


def profile(
    path: Path, inputs: Mapping[str, Array], *, optimised: bool = True, runs: int = 20, threads: int = 1
) -> list[dict[str, Any]]:
    """Kernel events of ``runs`` runs by ONNX Runtime's profiler: ``dur`` in us, ``args`` with operator and shapes."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text())
    return [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def _operations(operator: str, args: Mapping[str, Any]) -> int:
    """2 x outputs x what each output sums over."""
    ins, outs = _shapes(args["input_type_shape"]), _shapes(args["output_type_shape"])
    if not outs or not all(outs[0]):
        return 0
    outputs = math.prod(outs[0])
    if operator == "Gemm":
        # (m,k) or (k,m): whatever is left of the first operand beside the output's rows.
        return 2 * outputs * (math.prod(ins[0]) // outs[0][0])
    if operator == "Conv":
        return 2 * outputs * math.prod(ins[1][1:])
    if operator in ("ConvTranspose", "ConvInteger"):
        return 2 * math.prod(ins[0]) * math.prod(ins[1][1:])
    return 2 * outputs * ins[0][-1]


def _shapes(given: list[dict[str, list[int]]]) -> list[list[int]]:
    return [shape for one in given for shape in one.values()]


def _weights(graph: onnx.GraphProto) -> Iterator[int]:
    """Bytes of every weight that a product or convolution of ``graph`` or its bodies reads, each once."""
    known = {tensor.name: tensor for tensor in graph.initializer}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    seen: set[str] = set()
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _weights(attribute.g)
        if node.op_type not in PRODUCTS + CONVOLUTIONS:
            continue
        for name in node.input:
            source = casts.get(name, name)
            if source in known and source not in seen:
                seen.add(source)
                tensor = known[source]
                item = 4 if tensor.data_type in FLOATS else 1
                yield math.prod(tensor.dims) * item
