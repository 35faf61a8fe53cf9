"""Operators of a domain that is not ONNX's or ours: whatever library the process has would run."""

import pytest
from onnx import helper

from .attack import HostileBundle

DOMAINS = [
    "com.evil",
    "com.microsoft",
    "ai.onnx.ml",
    "ai.onnx.training",
    "trt.plugins",
    "speechssm2",
    "Speechssm",
    " ",
    "ai.onnx ",
]


@pytest.mark.parametrize("domain", DOMAINS)
def test_node(bundle: HostileBundle, domain: str) -> None:
    with bundle.model() as model:
        model.graph.node[5].domain = domain
    bundle.is_refused("only ONNX's own and speechssm's are run")


def test_engine_in_a_file(bundle: HostileBundle) -> None:
    """EPContext makes an execution provider load a compiled engine, which is code, from a path."""
    with bundle.model() as model:
        node = helper.make_node(
            "EPContext", [], ["x"], domain="com.microsoft", ep_cache_context="/tmp/engine"
        )
        model.graph.node.append(node)
    bundle.is_refused("EPContext")


def test_in_a_body(bundle: HostileBundle) -> None:
    with bundle.model("lm_chunk") as model:
        scan = next(n for n in model.graph.node if n.op_type == "Scan")
        next(a.g for a in scan.attribute if a.name == "body").node[0].domain = "com.evil"
    bundle.is_refused("com.evil")


def test_imported(bundle: HostileBundle) -> None:
    with bundle.model() as model:
        model.opset_import.append(helper.make_opsetid("com.evil", 1))
    bundle.is_refused("com.evil")


def test_in_a_function(bundle: HostileBundle) -> None:
    with bundle.model() as model:
        node = helper.make_node("Evil", ["x"], ["y"], domain="com.evil")
        opsets = [helper.make_opsetid("com.evil", 1)]
        model.functions.append(helper.make_function("speechssm", "F", ["x"], ["y"], [node], opsets))
    bundle.is_refused("com.evil")
