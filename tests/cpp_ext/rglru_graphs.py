"""Models of one RG-LRU node, and sessions that run them with and without the native library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto

from speechssm.export.graphs.builder import BOOL, FLOAT, FLOAT16, INT64, GraphBuilder
from speechssm.export.graphs.rglru_function import rglru_scan, rglru_step

BFLOAT16 = TensorProto.BFLOAT16
NUMPY = {np.dtype(np.float32): FLOAT, np.dtype(np.float16): FLOAT16}


def node_model(kind: str, dtype: int = FLOAT) -> ModelProto:
    """One step or scan node with its functions; bfloat16 streams enter and leave as float32."""
    g = GraphBuilder(kind)
    axes = ("t", "b", "e") if kind == "scan" else ("b", "e")
    outside = FLOAT if dtype == BFLOAT16 else dtype
    streams = [g.input(n, outside, axes) for n in ("x", "gate_x", "gate_a")]
    if dtype == BFLOAT16:
        streams = [g.op("Cast", s, to=BFLOAT16) for s in streams]
    decay, state = g.input("decay", FLOAT, ("e",)), g.input("state", FLOAT, ("b", "e"))
    position = g.input("position", INT64, ("b",))
    if kind == "scan":
        y, out = rglru_scan(g, *streams, decay, state, position, g.input("lengths", INT64, ("b",)))
    else:
        y, out = rglru_step(g, *streams, decay, state, position, g.input("active", BOOL, ("b",)))
    g.output("y", g.op("Cast", y, to=FLOAT) if dtype == BFLOAT16 else y, outside, axes)
    g.output("state_out", out, FLOAT, ("b", "e"))
    return g.model()


def session(
    model: ModelProto, library: Path | None = None, optimized: Path | None = None, threads: int = 1
) -> ort.InferenceSession:
    """On the CPU, one thread if not told otherwise; ``optimized`` receives the graph as the runtime will execute it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(case: dict, kind: str, rows) -> dict[str, np.ndarray]:
    """A case of lru_reference.random_case as inputs; ``rows`` is lengths or active."""
    streams = {n: case[n] if kind == "scan" else case[n][0] for n in ("x", "gate_x", "gate_a")}
    named = {"lengths": np.asarray(rows, np.int64)} if kind == "scan" else {"active": np.asarray(rows, bool)}
    position = np.asarray(case["position"], np.int64)
    return streams | {"decay": case["decay"], "state": case["state"], "position": position} | named
