"""The streaming codec is exact on ONNX Runtime CPU float32 (S1, S3, A1), and why: the operator probe.

Equality here is of bits. Widths are odd on purpose: a vector kernel and its scalar end may round
differently, and where an element falls depends on the chunk. The probe shows which operators do so
on this machine's ONNX Runtime; the graph uses none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from speechssm.bundle.shapes.codec import CODEC_PRESETS, CodecShape
from speechssm.export.graphs.builder import FLOAT, GraphBuilder
from speechssm.export.graphs.codec import PART, build_codec_decode, codec_state, codec_weights
from speechssm.export.models.codec import Codec
from tests.doubles.inline import inline_weights

SHAPES = {
    "tiny": CODEC_PRESETS["tiny"],
    "odd": CodecShape(
        levels=3,
        codes=19,
        latent=5,
        encoder_width=8,
        encoder_layers=1,
        decoder_width=37,
        decoder_layers=3,
        kernel=3,
        fft=960,
        bands=5,
    ),
    "wide": CODEC_PRESETS["demo"].model_copy(update={"decoder_layers": 1, "codes": 64}),
}


def session(model: Any, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a.view(np.int32) == b.view(np.int32)).all())


class Stream:
    """``codec_decode`` fed chunk by chunk; ``state`` is carried by name."""

    def __init__(self, graph: ort.InferenceSession, state: dict[str, np.ndarray]) -> None:
        self.graph, self.state = graph, state
        self.names = [o.name for o in graph.get_outputs()]

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        audio, *after = self.graph.run(self.names, {"codes": codes, **self.state})
        self.state = {f"in_{n.removeprefix('out_')}": v for n, v in zip(self.names[1:], after, strict=True)}
        return audio


def decoder(name: str, threads: int = 1) -> tuple[CodecShape, ort.InferenceSession]:
    shape = SHAPES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        weights = codec_weights(Codec(shape))
    return shape, session(inline_weights(build_codec_decode(shape), {PART: weights}), threads)


def silent(shape: CodecShape, rows: int) -> dict[str, np.ndarray]:
    return {f"in_{s.name}": np.zeros((rows, *s.shape), np.float32) for s in codec_state(shape)}


def cuts(rng: np.random.Generator, frames: int, size: int | str) -> list[int]:
    if size == "random":
        return sorted({0, frames, *rng.integers(1, frames, 9).tolist()})
    return [*range(0, frames, int(size)), frames]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", SHAPES)
def test_S1_A1_any_chunking_decodes_to_the_same_bits(name: str, threads: int) -> None:
    shape, graph = decoder(name, threads)
    rng = np.random.default_rng()
    codes = rng.integers(0, shape.codes, (2, shape.levels, 203))
    stream = Stream(graph, silent(shape, 2))
    whole = stream(codes)
    last = stream.state
    for size in (1, 2, 3, 7, 50, "random"):
        stream = Stream(graph, silent(shape, 2))
        edges = cuts(rng, 203, size)
        parts = [stream(codes[..., a:b]) for a, b in pairwise(edges)]
        assert same_bits(np.concatenate(parts, 1), whole), f"chunks of {size} at {name}"
        assert all(same_bits(stream.state[k], v) for k, v in last.items()), f"state after chunks of {size}"


def test_S1_long_calls_equal_single_frames() -> None:
    """1500 frames (30 s) in one call on two threads, and one by one on one thread."""
    shape, graph = decoder("tiny", threads=2)
    codes = np.random.default_rng().integers(0, shape.codes, (1, shape.levels, 1500))
    whole = Stream(graph, silent(shape, 1))(codes)
    single = Stream(decoder("tiny")[1], silent(shape, 1))
    assert same_bits(np.concatenate([single(codes[..., i : i + 1]) for i in range(1500)], 1), whole)


@pytest.mark.parametrize("name", SHAPES)
def test_S3_batch_mates_change_no_bit(name: str) -> None:
    """A row alone, and among mates of which one is poisoned with NaN state."""
    shape, graph = decoder(name)
    rng = np.random.default_rng()
    for rows in (1, 2, 5, 17):
        codes = rng.integers(0, shape.codes, (rows, shape.levels, 11))
        state = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in silent(shape, rows).items()}
        row = int(rng.integers(rows))
        alone = Stream(graph, {k: v[row : row + 1].copy() for k, v in state.items()})
        poisoned = (row + 1) % rows
        for values in state.values():
            values[[poisoned] if poisoned != row else []] = np.nan
        among = Stream(graph, state)
        want, got = alone(codes[row : row + 1]), among(codes)
        assert np.isfinite(want).all()
        assert same_bits(got[row : row + 1], want)
        assert all(same_bits(among.state[k][row : row + 1], v) for k, v in alone.state.items())


# The probe: one operator over (rows, d), all rows at once against a few at a time.


def _matmul(g: GraphBuilder, x: str, d: int, rng: np.random.Generator) -> str:
    return g.op("MatMul", x, g.const(rng.standard_normal((d, 3 * d + 1)).astype(np.float32)))


def _norm(g: GraphBuilder, x: str, d: int, rng: np.random.Generator) -> str:
    return g.op("LayerNormalization", x, g.const(np.ones(d, np.float32)), axis=-1, epsilon=1e-6)


def _taps(g: GraphBuilder, x: str, d: int, rng: np.random.Generator) -> str:
    first, second = (g.const(rng.standard_normal(d).astype(np.float32)) for _ in range(2))
    return g.op("Add", g.op("Mul", x, first), g.op("Mul", g.op("Mul", x, x), second))


def _unit(g: GraphBuilder, x: str, d: int, rng: np.random.Generator) -> str:
    return g.op("Div", x, g.op("Sqrt", g.op("Add", g.op("Mul", x, x), g.const(0.01))))


def _plain(kind: str) -> Callable[[GraphBuilder, str, int, np.random.Generator], str]:
    return lambda g, x, d, rng: g.op(kind, x)


USED = {
    "MatMul": _matmul,
    "LayerNormalization": _norm,
    "multiply-add": _taps,
    "HardSwish": _plain("HardSwish"),
    "Relu": _plain("Relu"),
    "quotient by root": _unit,
}


def spread(make: Callable[..., str], d: int, threads: int, rng: np.random.Generator) -> float:
    """Largest difference between 300 rows at once and the same rows in chunks of 1, 2, 3, 7 and 50."""
    g = GraphBuilder("probe")
    x = g.input("x", FLOAT, ("r", d))
    g.output("y", make(g, x, d, rng), FLOAT, ("r", "k"))
    graph = session(g.model(), threads)
    values = (3 * rng.standard_normal((300, d))).astype(np.float32)
    (whole,) = graph.run(None, {"x": values})
    worst = 0.0
    for size in (1, 2, 3, 7, 50):
        parts = [graph.run(None, {"x": values[i : i + size]})[0] for i in range(0, 300, size)]
        worst = max(worst, float(np.abs(np.concatenate(parts) - whole).max()))
    return worst


@pytest.mark.parametrize("d", [1, 7, 16, 33, 192, 641])
@pytest.mark.parametrize("kind", USED)
def test_probe_every_operator_of_the_decoder_is_exact_at_any_width(kind: str, d: int) -> None:
    for threads in (1, 2):
        assert spread(USED[kind], d, threads, np.random.default_rng()) == 0.0


def test_the_decoder_uses_no_operator_outside_the_probe() -> None:
    """Beside the probed operators, only those that move values or do integer work."""
    moving = {"Concat", "Slice", "Gather", "Reshape", "Identity", "Pad"}
    constant = {"Mod", "Cast"}  # Mod makes the inverse-STFT indices; Cast widens stored weights: both fold
    kinds = {n.op_type for n in build_codec_decode(SHAPES["odd"]).model().graph.node}
    probed = {"MatMul", "LayerNormalization", "HardSwish", "Relu", "Mul", "Add", "Div", "Sqrt"}
    assert kinds <= probed | moving | constant


def test_probe_reports_vectorised_sines() -> None:
    """Why the head avoids them: printed, not required, since another build may round alike."""
    worst = max(spread(_plain("Cos"), d, 1, np.random.default_rng()) for d in (7, 33))
    print(f"Cos in chunks differs by up to {worst:.1e}")
    assert worst < 1e-6
