"""A hundred thousand nodes, a million empty fields, a file beyond the limit: time and memory for nothing."""

import onnx
from onnx import helper

from speechssm.bundle import limits

from .attack import HostileBundle


def test_nodes(bundle: HostileBundle) -> None:
    with bundle.model() as model:
        node = helper.make_node("Identity", ["token"], ["x"])
        model.graph.node.extend([node] * limits.GRAPH_NODES)
    bundle.is_refused("opened safely")


def test_fields(bundle: HostileBundle) -> None:
    empty = b"\x0a\x00" * (limits.GRAPH_FIELDS + 1)  # nodes with nothing in them
    model = onnx.ModelProto(ir_version=11)
    model.graph.ParseFromString(empty)
    bundle.put("lm_step.onnx", model.SerializeToString())
    bundle.is_refused("more fields than any graph needs")


def test_bytes(bundle: HostileBundle) -> None:
    bundle.put("lm_step.onnx", bytes(limits.GRAPH_BYTES + 1))
    bundle.is_refused("more than the limit")
