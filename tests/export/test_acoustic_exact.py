"""Rows of the acoustic graph are exact among batch mates (S3) on ONNX Runtime CPU float32: test and probe.

Equality here is of bits. Widths are odd on purpose: a vector kernel and its scalar end may round
differently, and where an element falls depends on how many rows come before it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from speechssm.bundle.shapes.acoustic import ACOUSTIC_PRESETS, AcousticShape
from speechssm.export.graphs.acoustic import acoustic_weights, build_acoustic, build_acoustic_prompt
from speechssm.export.graphs.builder import FLOAT, GraphBuilder
from tests.export.test_acoustic import ODD, TINY, Pair, seeded, session, windows

Rng = np.random.Generator
Make = Callable[[GraphBuilder, str, int, Rng], str]

SHAPES = {
    "tiny": TINY,
    "odd": ODD,
    "two rows": TINY.model_copy(update={"radius": 2, "prompt_tokens": 1}),
    "whole": ODD.model_copy(update={"radius": None}),
    "wide": ACOUSTIC_PRESETS["demo"].model_copy(update={"layers": 1, "codes": 100, "max_tokens": 60}),
}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", SHAPES)
def test_S3_batch_mates_change_no_bit(name: str, threads: int, rng: Rng) -> None:
    """Every row alone, in fives and in pairs; sampled and greedy; one mate with NaN in its noise."""
    shape: AcousticShape = SHAPES[name]
    weights = acoustic_weights(seeded(shape, int(rng.integers(1 << 31))))
    graph = Pair(shape, weights, threads=threads)
    for tokens in (1, 8, 27):
        given = windows(shape, 5, tokens, rng)
        given["temperature"] = np.array(rng.choice([0.0, 0.9]), np.float32)
        given["noise"][3] = np.nan
        among = [*graph.run(None, given), *graph.told(given).values()]
        for row in (0, 1, 4):
            for mates in ([row], [2, row], [row, 3]):
                fewer = {k: v[mates] if v.ndim else v for k, v in given.items()}
                got = [*graph.run(None, fewer), *graph.told(fewer).values()]
                at = mates.index(row)
                assert all(same_bits(a[at], b[row]) for a, b in zip(got, among, strict=True)), (row, mates)


def _silu(g: GraphBuilder, x: str, d: int, rng: Rng) -> str:
    return g.op("Mul", x, g.op("Sigmoid", x))


def _norm(g: GraphBuilder, x: str, d: int, rng: Rng) -> str:
    return g.op(
        "LayerNormalization", x, g.const(np.ones(d, np.float32)), g.const(np.ones(d, np.float32)), axis=-1
    )


def _matmul(g: GraphBuilder, x: str, d: int, rng: Rng) -> str:
    return g.op("MatMul", x, g.const(rng.standard_normal((d, 2 * d + 1)).astype(np.float32)))


def _conv(g: GraphBuilder, x: str, d: int, rng: Rng) -> str:
    taps, bias = (rng.standard_normal(s).astype(np.float32) for s in ((d, 1, 5), (d,)))
    across = g.op("Transpose", x, perm=[0, 2, 1])
    y = g.op("Conv", across, g.const(taps), g.const(bias), group=d, kernel_shape=[5], pads=[2, 2])
    return g.op("Transpose", y, perm=[0, 2, 1])


def _rotary(g: GraphBuilder, x: str, d: int, rng: Rng) -> str:
    """Angles by position, as the acoustic graph's."""
    cosine, sine = (g.const(rng.standard_normal((128, d)).astype(np.float32)) for _ in range(2))
    frames = g.op("Squeeze", g.op("Shape", x, start=1, end=2), g.const([0]))
    at = g.op("Range", g.const(np.int64(0)), frames, g.const(np.int64(1)))
    at = g.op("Expand", at, g.op("Shape", x, start=0, end=2))
    both = g.op("Unsqueeze", g.op("Concat", x, x, axis=-1), g.const([1]))
    return g.op("Squeeze", g.op("RotaryEmbedding", both, cosine, sine, at), g.const([1]))


def _attention(g: GraphBuilder, x: str, d: int, rng: Rng) -> str:
    """Products of two computed matrices, two or more rows on the left."""
    weight = g.op("Softmax", g.op("MatMul", x, g.op("Transpose", x, perm=[0, 2, 1])), axis=-1)
    return g.op("MatMul", weight, x)


def _chosen_head(g: GraphBuilder, x: str, d: int, rng: Rng) -> str:
    """A weight picked at run time, as the level's head is."""
    heads = g.const(rng.standard_normal((3, d, 11)).astype(np.float32))
    level = g.op(
        "Cast",
        g.op("ReduceMin", g.op("Mul", x, g.const(np.float32(0))), keepdims=0),
        to=onnx.TensorProto.INT64,
    )
    return g.op("MatMul", x, g.op("Gather", heads, level, axis=0))


def _logsoftmax(g: GraphBuilder, x: str, d: int, rng: Rng) -> str:
    return g.op("LogSoftmax", x, axis=-1)


def _mean(g: GraphBuilder, x: str, d: int, rng: Rng) -> str:
    return g.op("GlobalAveragePool", g.op("Transpose", x, perm=[0, 2, 1]))


USED: dict[str, Make] = {
    "MatMul": _matmul,
    "SiLU": _silu,
    "LayerNormalization": _norm,
    "Conv": _conv,
    "Softmax and MatMul of computed matrices": _attention,
    "MatMul with a gathered weight": _chosen_head,
    "LogSoftmax": _logsoftmax,
    "GlobalAveragePool": _mean,
    "RotaryEmbedding": _rotary,
}


@pytest.mark.parametrize("d", [1, 7, 33, 48, 192])
@pytest.mark.parametrize("kind", USED)
def test_probe_every_operator_is_exact_among_batch_mates(kind: str, d: int, rng: Rng) -> None:
    g = GraphBuilder("probe")
    x = g.input("x", FLOAT, ("b", "f", d))
    g.output("y", USED[kind](g, x, d, rng), FLOAT, ("b", "f", "k"))
    for threads in (1, 2):
        graph = session(g.model(), threads)
        for frames in (2, 3, 20, 101):
            values = (2 * rng.standard_normal((7, frames, d))).astype(np.float32)
            (whole,) = graph.run(None, {"x": values})
            assert np.isfinite(whole).all()
            for first, last in ((0, 1), (3, 5), (1, 6), (6, 7)):
                assert same_bits(graph.run(None, {"x": values[first:last]})[0], whole[first:last])


def test_the_graph_uses_no_operator_outside_the_probe() -> None:
    """Beside the probed operators, only elementwise ones, those that move values, and integer work."""
    probed = {"MatMul", "Sigmoid", "LayerNormalization", "Conv", "Softmax", "LogSoftmax", "GlobalAveragePool"}
    probed.add("RotaryEmbedding")
    moving = {
        "Concat",
        "Split",
        "Slice",
        "Gather",
        "GatherElements",
        "Transpose",
        "Reshape",
        "Expand",
    }
    moving |= {"Unsqueeze", "Squeeze", "Pad", "Shape", "Range", "Identity", "Cast"}
    elementwise = {"Add", "Sub", "Mul", "Div", "Min", "Max", "Where", "And", "Not"}
    elementwise |= {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
    sums = {"ReduceSum", "ArgMax", "ReduceMax"}  # over the codes, or the keys, of one frame
    builds = (build_acoustic, build_acoustic_prompt)
    kinds = {n.op_type for s in SHAPES.values() for build in builds for n in build(s).model().graph.node}
    assert kinds <= probed | moving | elementwise | sums
