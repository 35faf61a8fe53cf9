"""The engine's half of a parity report: a long free-running rollout of the graphs that were written.

The very files of the bundle are run, with one more output (the logits) declared on ``lm_step``. The
rollout starts at position 0 from a state full of garbage, which the reset has to ignore, and feeds
every sampled token back. The reference is later forced with the same tokens, so one rollout serves
both questions: how far the states drift, and where free running would first have gone another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from speechssm.bundle.manifest import GraphEntry, Value
from speechssm.bundle.shapes import LMShape
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.errors import ExportError

from ..graphs.griffin_nodes import LOGITS

State = dict[str, np.ndarray]

KEPT_BYTES = 256 << 20
"""Memory for the states and for the logits that a rollout keeps to be compared; it decides how many."""
GARBAGE = 1e3
"""Size of the numbers a row holds before its reset, in the rings; the recurrence starts from NaN."""


@dataclass
class Rollout:
    """What one rollout of the step graph gave. Rows b, steps t."""

    tokens: np.ndarray
    """(b,t+1) int64: the token fed at each step, and the last one sampled."""
    uniforms: np.ndarray
    """(b,t) float32."""
    logprobs: np.ndarray
    """(b,t) float32, of the sampled tokens."""
    health: np.ndarray
    """(b,t) float32."""
    logit_steps: np.ndarray
    """Steps whose logits were kept, ascending."""
    logits: np.ndarray
    """(b, kept, v)."""
    states: dict[int, State] = field(default_factory=dict)
    """State after that many steps."""

    @property
    def steps(self) -> int:
        """Steps of the rollout."""
        return int(self.uniforms.shape[1])


def checkpoints(steps: int, row_bytes: int, rows: int) -> list[int]:
    """Step counts at which states are kept: dense at first, then spread, the last one included.

    The first ones catch a wrong reset or mask before the state has forgotten it.
    """
    most = int(np.clip(KEPT_BYTES // max(1, row_bytes * rows), 4, 128))
    first = [1, 2, 3, 5, 8, 13, 21, 34, 55][: most // 2]
    spread = np.linspace(0, steps, most - len(first) + 1)[1:].round().astype(int)
    return sorted({int(n) for n in [*first, *spread] if 1 <= n <= steps})


def garbage_state(entry: GraphEntry, rows: int, slots: int, rng: np.random.Generator) -> State:
    """Position 0 and anything else: what a slot may hold when a stream is admitted into it.

    A cache that grows gets ``slots`` slots.
    """
    state: State = {}
    for s in entry.state:
        size = (rows, slots, *s.shape[1:]) if s.grows else (rows, *s.shape)
        if s.kind == "position":
            state[s.name] = np.zeros(size, s.dtype)
        elif s.kind in ("lru", "conv"):
            state[s.name] = np.full(size, np.nan, s.dtype)
        elif s.dtype == "int8":
            state[s.name] = rng.integers(-128, 128, size).astype(np.int8)
        else:
            state[s.name] = (GARBAGE * rng.standard_normal(size)).astype(s.dtype)
    return state


@contextmanager
def with_logits(folder: Path, entry: GraphEntry, vocab: int) -> Iterator[tuple[Path, GraphEntry]]:
    """A copy of the step graph that also gives its logits (b,v), for as long as the block lasts.

    Only the output is added: every node is the shipped file's. Raises ExportError when the file has no
    such value.
    """
    model = onnx.load(folder / entry.file, load_external_data=False)
    if not any(LOGITS in node.output for node in model.graph.node):
        raise ExportError(f"{entry.file} has no value named {LOGITS}: its logits cannot be checked")
    model.graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["b", vocab]))
    path = folder / f"parity_{entry.file}"
    path.write_bytes(model.SerializeToString())
    outputs = (*entry.outputs, Value(name=LOGITS, dtype="float32", axes=("b", vocab)))
    try:
        yield path, entry.model_copy(update={"file": path.name, "outputs": outputs})
    finally:
        path.unlink(missing_ok=True)


def roll_out(
    graph: OrtGraph, shape: LMShape, start: State, first: np.ndarray, uniforms: np.ndarray, keep: list[int]
) -> Rollout:
    """Sample ``uniforms.shape[1]`` tokens from ``start`` at temperature 1 over the whole vocabulary.

    ``first`` (b) is fed at step 0; states are kept after the step counts in ``keep``; logits of as many
    steps as fit :data:`KEPT_BYTES`, the first ones and then evenly spread.
    """
    rows, steps = uniforms.shape
    # `most` can be small for a large vocabulary; the last step is always among them.
    most = int(np.clip(KEPT_BYTES // (rows * shape.vocab * 4), 2, steps)) if steps > 1 else 1
    logit_steps = np.unique(np.linspace(0, steps - 1, most).round().astype(int))
    sets = ({k: v.copy() for k, v in start.items()}, {k: np.empty_like(v) for k, v in start.items()})
    inputs: State = {
        "token": first.astype(np.int64),
        "active": np.ones(rows, np.bool_),
        "temperature": np.ones(rows, np.float32),
        "top_k": np.zeros(rows, np.int64),
        "top_p": np.ones(rows, np.float32),
        "uniform": np.zeros(rows, np.float32),
    }
    outputs: State = {
        "token_out": np.zeros(rows, np.int64),
        "logprob": np.zeros(rows, np.float32),
        "health": np.zeros(rows, np.float32),
        LOGITS: np.zeros((rows, shape.vocab), np.float32),
    }
    bound = [
        graph.bind(
            {**inputs, **{f"in_{k}": v for k, v in sets[i].items()}},
            {**outputs, **{f"out_{k}": v for k, v in sets[1 - i].items()}},
        )
        for i in (0, 1)
    ]
    result = Rollout(
        tokens=np.zeros((rows, steps + 1), np.int64),
        uniforms=uniforms,
        logprobs=np.zeros((rows, steps), np.float32),
        health=np.zeros((rows, steps), np.float32),
        logit_steps=logit_steps,
        logits=np.zeros((rows, len(logit_steps), shape.vocab), np.float32),
    )
    result.tokens[:, 0] = first
    wanted, kept = set(keep), 0
    for t in range(steps):
        inputs["token"][:] = result.tokens[:, t]
        inputs["uniform"][:] = uniforms[:, t]
        graph.run(bound[t % 2])
        result.tokens[:, t + 1] = outputs["token_out"]
        result.logprobs[:, t] = outputs["logprob"]
        result.health[:, t] = outputs["health"]
        if kept < len(logit_steps) and logit_steps[kept] == t:
            result.logits[:, kept] = outputs[LOGITS]
            kept += 1
        if t + 1 in wanted:
            result.states[t + 1] = {k: v.copy() for k, v in sets[1 - t % 2].items()}
    return result


def chunked(graph: OrtGraph, start: State, tokens: np.ndarray, sizes: list[int]) -> State:
    """State after the prefill graph has read tokens (b,t) in chunks of ``sizes``."""
    state, at = start, 0
    for size in sizes:
        inputs = {
            "tokens": np.ascontiguousarray(tokens[:, at : at + size]),
            "lengths": np.full(len(tokens), size, np.int64),
            **{f"in_{k}": v for k, v in state.items()},
        }
        _, *new = graph.call(inputs, ["health", *(f"out_{k}" for k in state)])
        state, at = dict(zip(state, new, strict=True)), at + size
    return state


def open_graph(path: Path, entry: GraphEntry, threads: int, *, widen_once: bool = True) -> OrtGraph:
    """A graph in ONNX Runtime CPU, its signature checked against ``entry``."""
    return OrtGraph(entry.file, path, entry, OrtOptions(threads=threads, widen_once=widen_once))


def rows_of(state: Mapping[str, np.ndarray], rows: slice) -> State:
    """Some rows of a state, as new arrays."""
    return {k: np.ascontiguousarray(v[rows]) for k, v in state.items()}
