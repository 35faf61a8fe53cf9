"""Models of one attention-ring node, and what they are fed."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from speechssm.bundle.shapes import LMShape
from speechssm.export.graphs.builder import BOOL, FLOAT, FLOAT16, INT64, GraphBuilder
from speechssm.export.graphs.griffin_nodes import Nodes
from speechssm.export.graphs.ring_function import ring_attend, ring_scan

TYPES = {"float32": FLOAT, "float16": FLOAT16, "int8": int(TensorProto.INT8)}


def shape_of(heads: int, kv_heads: int, dim: int, window: int, ring: str) -> LMShape:
    """A shape whose attention is the one asked for."""
    return LMShape(
        vocab=8, width=8, lru_width=heads, heads=heads, kv_heads=kv_heads, head_dim=dim, window=window,
        mlp_width=8, blocks=("attention",), rope="none", ring=ring,
    )  # fmt: skip


def node_model(kind: str, shape: LMShape) -> ModelProto:
    """One ``attend`` or ``scan`` node with its function, inputs and outputs named as the operator's."""
    g, scan = GraphBuilder(kind), kind == "scan"
    n = Nodes(g, shape, ring_op=True)
    ring = ("b", shape.window, shape.kv_heads, shape.head_dim)
    new = ("t", "b", *ring[2:]) if scan else ("b", shape.kv_heads, 1, shape.head_dim)
    wide = ("t", "b", shape.heads * shape.head_dim) if scan else ("b", shape.heads * shape.head_dim)
    q, k, v = (g.input(name, FLOAT, axes) for name, axes in (("q", wide), ("k", new), ("v", new)))
    rings = []
    for what in ("key", "value"):
        made = [g.input(what, TYPES[shape.ring], ring)]
        if shape.ring == "int8":
            made.append(g.input(f"{what}_scale", FLOAT, ring[:3]))
        rings.append(tuple(made))
    position = g.input("position", INT64, ("b",))
    if scan:
        y, check, key, value = ring_scan(n, q, k, v, *rings, position, g.input("lengths", INT64, ("b",)))
    else:
        y, check = ring_attend(n, q, k, v, *rings, position, g.input("active", BOOL, ("b",)))
    g.output("y", y, FLOAT, wide)
    g.output("check_out", check, FLOAT, ("b",))
    if scan:
        for what, out in (("key", key), ("value", value)):
            g.output(f"{what}_out", out[0], TYPES[shape.ring], ring)
            if shape.ring == "int8":
                g.output(f"{what}_scale_out", out[1], FLOAT, ring[:3])
    return g.model()


def feeds(case: dict[str, Any], kind: str, rows: Any) -> dict[str, np.ndarray]:
    """A case of ring_reference.random_case as inputs; ``rows`` is lengths or active."""
    tokens, batch, heads, dim = case["q"].shape
    kv_heads = case["k"].shape[2]
    named = {"position": np.asarray(case["position"], np.int64)}
    if kind == "scan":
        named |= {"q": case["q"].reshape(tokens, batch, heads * dim), "k": case["k"], "v": case["v"]}
        named["lengths"] = np.asarray(rows, np.int64)
    else:
        named |= {n: case[n][0].reshape(batch, kv_heads, 1, dim) for n in ("k", "v")}
        named |= {"q": case["q"][0].reshape(batch, heads * dim), "active": np.asarray(rows, bool)}
    return named | {n: case[n] for n in ("key", "value", "key_scale", "value_scale") if n in case}
