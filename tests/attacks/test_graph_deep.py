"""Graphs in graphs in graphs: parsers and engines recurse until the stack ends."""

import pytest
from onnx import helper

from .attack import HostileBundle


@pytest.mark.parametrize("depth", [10, 30])
def test_refused(bundle: HostileBundle, depth: int) -> None:
    body = helper.make_graph([], "leaf", [], [])
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["o"], then_branch=body)
        body = helper.make_graph([node], "b", [], [])
    with bundle.model() as model:
        model.graph.node.extend(body.node)
    bundle.is_refused("nested more than 8 deep")


def test_far_deeper_than_parsers_go(bundle: HostileBundle) -> None:
    """Written by hand: protobuf itself stops at a hundred levels."""
    inner = b""
    for _ in range(20_000):
        graph = wrap(1, wrap(5, wrap(6, inner) + b"\xa0\x01\x05"))
        inner = graph
    bundle.put("lm_step.onnx", wrap(7, inner))
    bundle.is_refused("nested more than 8 deep")


def wrap(field: int, content: bytes) -> bytes:
    """One protobuf field of bytes."""
    return bytes([field << 3 | 2]) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
