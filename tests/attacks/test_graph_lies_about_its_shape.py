"""A graph that declares the right output and computes another: found when it runs, not by a crash behind it."""

import pytest
from onnx import helper

from .attack import HostileBundle


@pytest.mark.parametrize(
    ("graph", "output"),
    [("acoustic", "confidence"), ("acoustic", "codes_out"), ("acoustic_prompt", "keys"),
     ("codec_decode", "audio"), ("codec_encode", "codes"), ("tokenizer", "tokens"), ("lm_chunk", "health"),
     ("lm_chunk", "out_L00_lru"), ("lm_step", "out_L00_lru"), ("lm_step", "token_out")],
)  # fmt: skip
def test_refused(bundle: HostileBundle, graph: str, output: str) -> None:
    with bundle.model(graph) as model:
        last = next(n for n in model.graph.node if output in n.output)
        last.output[0] = "before"
        # Twice as long along the last axis: the type inference of engines does not see through it.
        model.graph.node.append(helper.make_node("Concat", ["before", "before"], ["both"], axis=-1))
        shape = helper.make_node("Shape", ["both"], ["shape"])
        model.graph.node.extend([shape, helper.make_node("Reshape", ["both", "shape"], [output])])
    bundle.fails_when_run("")


@pytest.mark.parametrize(
    ("graph", "output"), [("acoustic", "codes_out"), ("tokenizer", "tokens"), ("lm_step", "token_out")]
)
@pytest.mark.parametrize("shift", [1 << 40, -(1 << 40)])
def test_values_out_of_range(bundle: HostileBundle, graph: str, output: str, shift: int) -> None:
    """Tokens and codes that no vocabulary holds: the next graph would read outside its tables."""
    with bundle.model(graph) as model:
        last = next(n for n in model.graph.node if output in n.output)
        last.output[0] = "before"
        model.graph.initializer.append(helper.make_tensor("shift", 7, [], [shift]))
        model.graph.node.append(helper.make_node("Add", ["before", "shift"], [output]))
    bundle.fails_when_run("")
