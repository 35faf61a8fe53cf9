"""Functions that call functions: for ever, or ten times each, which writes out to a billion nodes."""

import onnx
import pytest
from onnx import helper

from speechssm.bundle import open_bundle

from .attack import HostileBundle


def function(name: str, calls: list[str]) -> onnx.FunctionProto:
    nodes = [helper.make_node(callee, ["x"], [f"y{i}"], domain="speechssm") for i, callee in enumerate(calls)]
    nodes.append(helper.make_node("Identity", ["x"], ["y"]))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("speechssm", 1)]
    return helper.make_function("speechssm", name, ["x"], ["y"], nodes, opsets)


@pytest.mark.parametrize(
    "calls", [{"A": ["A"]}, {"A": ["B"], "B": ["A"]}, {"A": ["B"], "B": ["C"], "C": ["D", "B"], "D": []}]
)
def test_recursion(bundle: HostileBundle, calls: dict[str, list[str]]) -> None:
    with bundle.model() as model:
        model.functions.extend(function(name, callees) for name, callees in calls.items())
    bundle.is_refused("too long or never ends")


@pytest.mark.parametrize("order", [1, -1])
def test_long_chain(bundle: HostileBundle, order: int) -> None:
    with bundle.model() as model:
        chain = [function(f"F{i}", [f"F{i + 1}"]) for i in range(20)]
        model.functions.extend(chain[::order])
    bundle.is_refused("too long or never ends")


def test_billion_laughs(bundle: HostileBundle) -> None:
    with bundle.model() as model:
        model.functions.extend(function(f"F{i}", [f"F{i + 1}"] * 50) for i in range(4))
        model.functions.append(function("F4", []))
        model.graph.node.append(helper.make_node("F0", ["token"], ["ha"], domain="speechssm"))
    bundle.is_refused("nodes with its functions written out")


def test_many(bundle: HostileBundle) -> None:
    with bundle.model() as model:
        model.functions.extend(function(f"F{i}", []) for i in range(100))
    bundle.is_refused("more than 64 functions")


def test_twice(bundle: HostileBundle) -> None:
    with bundle.model() as model:
        model.functions.extend([function("F", []), function("F", [])])
    bundle.is_refused("defines function F twice")


@pytest.mark.parametrize("domain", ["", "ai.onnx", "com.evil"])
def test_in_the_place_of_an_operator(bundle: HostileBundle, domain: str) -> None:
    """A function named as ONNX's own operator would quietly change what every MatMul means."""
    with bundle.model() as model:
        bend = function("MatMul", [])
        bend.domain = domain
        model.functions.append(bend)
    bundle.is_refused("defines function MatMul in domain")


def test_control(bundle: HostileBundle) -> None:
    """A plain chain of two functions of ours is taken."""
    with bundle.model() as model:
        model.functions.extend([function("A", ["B"]), function("B", [])])
    open_bundle(bundle.folder)
