"""What each storage costs and gains, side by side: size, speed and quality of one language model.

Quality is measured against the model as it came, in float32: loss on held-out tokens, and how far
the state has drifted after reading them. Speed is measured in turns, storage after storage and again,
so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from speechssm.bundle import state_bytes
from speechssm.bundle.manifest import GraphEntry
from speechssm.bundle.shapes import LMShape
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.errors import ExportError

from .calibrate import activation_ranges
from .graphs.griffin_nodes import LOGITS
from .graphs.lm import build_lm_step
from .graphs.lm_weights import griffin_weights
from .models.griffin import lm_state
from .models.transformer import at_capacity
from .package import part_file, write_graph, write_parts
from .parity.compare import least_cosine, spread
from .parity.rollout import State, with_logits
from .storage import STORAGES, STORED, Storage, is_calibrated, stored_weights

Parameters = Mapping[str, np.ndarray]
TOGETHER_BYTES = 2 << 30
"""Models up to this size in float32 are timed in turns, with every storage in memory at once."""
Ring = Literal["float32", "float16", "int8"]
RINGS: tuple[Ring, ...] = ("float32", "float16", "int8")
"""Rings that are compared beside the storages, with float32 weights."""
TOKENS, ROWS = 256, 4
"""Sampled tokens that stand in for held-out ones, and their rows."""
HELD_OUT_TOKENS = 1 << 24
"""Most held-out tokens that are read: a week of speech."""


@dataclass
class Cost:
    """One storage. Loss in nats a token; drift of the state after the last token."""

    storage: Storage
    ring: str
    megabytes: float
    session_bytes: int
    """State of one session; of one block where the cache grows."""
    loss: float = math.nan
    scaled: float = math.nan
    cosine: float = math.nan
    seconds: list[float] = field(default_factory=list)
    """Of single steps of one row."""

    @property
    def tokens_per_second(self) -> float:
        """At one row; the median step."""
        return 1 / float(np.median(self.seconds))


def read_tokens(path: Path, vocab: int) -> np.ndarray:
    """Held-out tokens (b,t) from an ``.npy`` file of integers. Raises ExportError when they are none."""
    wanted = "expected an .npy file of integers (b,t)"
    if not path.is_file():
        raise ExportError(f"there is no file {path} with held-out tokens: {wanted}")
    try:
        # Mapped, so that a size the header claims and the file does not have is refused, not allocated.
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise ExportError(f"cannot read held-out tokens from {path}: {wanted}") from error
    if not isinstance(tokens, np.ndarray):
        raise ExportError(f"{path} is an archive: {wanted}")
    if tokens.size > HELD_OUT_TOKENS:
        raise ExportError(f"{path} holds {tokens.size} tokens: give at most {HELD_OUT_TOKENS}")
    tokens = np.atleast_2d(tokens)
    if tokens.dtype.kind not in "iu" or tokens.ndim != 2 or tokens.shape[1] < 2 or not tokens.size:
        raise ExportError(
            f"{path} holds {tokens.dtype} of shape {tokens.shape}: expected integer tokens (b,t)"
        )
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise ExportError(
            f"{path} holds tokens up to {tokens.max()}, the model has {vocab}: it is of another model"
        )
    return tokens.astype(np.int64)


def compare_storages(
    shape: LMShape,
    parameters: Parameters,
    work: Path,
    *,
    tokens: np.ndarray | None = None,
    storages: Sequence[str] = STORAGES,
    rings: Sequence[Ring] = RINGS,
    steps: int = 40,
    threads: int = 1,
) -> list[Cost]:
    """Measure every storage, and float32 weights with every ring, in temporary folders under ``work``.

    Float32 comes first, and the others are held to it.

    ``tokens`` (b,t) are held out; without them the float32 model samples its own. ``steps`` single-row
    steps are timed for each storage, on one thread unless ``threads`` says otherwise: two threads of a
    busy machine wait for each other, and then the ratios say nothing.
    """
    names: list[tuple[str, Ring]] = [
        ("float32", shape.ring),
        *((s, shape.ring) for s in storages if s != "float32"),
    ]
    names += [("float32", ring) for ring in rings if ring != shape.ring]
    ranges = (
        activation_ranges(shape, parameters, work, threads=threads)
        if any(map(is_calibrated, storages))
        else {}
    )
    together = sum(v.nbytes for v in (parameters[n] for n in parameters)) <= TOGETHER_BYTES
    costs: list[Cost] = []
    wanted: State = {}
    timers: list[tuple[Cost, Callable[[], float], OrtGraph]] = []
    with tempfile.TemporaryDirectory(dir=work, prefix=".tradeoff.") as folder:
        for name, ring in names:
            storage: Storage = name  # type: ignore[assignment]
            place = Path(folder) / f"{name}-{ring}"
            shape = shape.model_copy(update={"ring": ring})
            entry = _write(place, shape, parameters, storage, ranges)
            size = (place / part_file("lm")).stat().st_size / 1e6
            cost = Cost(storage, ring, size, state_bytes(lm_state(shape)))
            with with_logits(place, entry, shape.vocab) as (path, wider):
                graph = OrtGraph("lm_step", path, wider, OrtOptions(threads=threads))
                tokens = _samples(graph, shape) if tokens is None else tokens
                cost.loss, state = _read(graph, shape, tokens)
                graph.close()
            wanted = wanted or state
            pairs = [(state[k], wanted[k]) for k in wanted if k != "position"]
            cost.scaled = max(spread(a, b)[0] for a, b in pairs)
            cost.cosine = min(least_cosine(a, b) for a, b in pairs)
            graph = OrtGraph("lm_step", place / entry.file, entry, OrtOptions(threads=threads))
            timers.append((cost, _timer(graph, shape), graph))
            costs.append(cost)
            if not together:
                _time(timers, steps)
                timers.clear()
                (place / part_file("lm")).unlink()
        _time(timers, steps)
    return costs


def table(costs: Sequence[Cost], tokens: str) -> str:
    """The costs as text."""
    base = costs[0]
    lines = [
        f"{'storage':<14}{'ring':<9}{'MB':>9}{'KiB/row':>9}{'tokens/s':>10}{'speed':>7}{'loss':>9}{'change':>9}"
        f"{'drift':>9}{'cosine':>10}"
    ]
    lines += [
        f"{c.storage:<14}{c.ring:<9}{c.megabytes:>9.1f}{c.session_bytes / 1024:>9.1f}{c.tokens_per_second:>10.1f}"
        f"{c.tokens_per_second / base.tokens_per_second:>6.2f}x{c.loss:>9.4f}{c.loss - base.loss:>+9.4f}"
        f"{c.scaled:>9.1e}{c.cosine:>10.6f}"
        for c in costs
    ]
    return "\n".join(
        [
            *lines,
            f"loss in nats a token on {tokens}; one row, one thread; drift and cosine of the state against float32",
        ]
    )


def _write(
    place: Path, shape: LMShape, parameters: Parameters, storage: Storage, ranges: Mapping[str, float]
) -> GraphEntry:
    place.mkdir()
    builder = build_lm_step(shape, STORED[storage])
    weights = stored_weights(
        shape, griffin_weights(shape, parameters), storage, ranges if is_calibrated(storage) else None
    )
    write_parts(place, {"lm_step": builder}, {"lm": weights})
    return write_graph(place, "lm_step", builder, lm_state(shape))


def _inputs(shape: LMShape, rows: int, tokens: int) -> tuple[State, State]:
    settings: State = {
        "active": np.ones(rows, np.bool_),
        "temperature": np.ones(rows, np.float32),
        "top_k": np.zeros(rows, np.int64),
        "top_p": np.ones(rows, np.float32),
        "uniform": np.full(rows, 0.5, np.float32),
    }
    state = {s.name: np.zeros((rows, *s.shape), s.dtype) for s in lm_state(at_capacity(shape, tokens))}
    return settings, state


def _samples(graph: OrtGraph, shape: LMShape) -> np.ndarray:
    settings, state = _inputs(shape, ROWS, TOKENS)
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, shape.vocab, ROWS)]
    for _ in range(TOKENS - 1):
        settings["uniform"] = rng.random(ROWS, np.float32)
        inputs = {"token": tokens[-1], **settings, **{f"in_{k}": v for k, v in state.items()}}
        token, *new = graph.call(inputs, ["token_out", *(f"out_{k}" for k in state)])
        state = dict(zip(state, new, strict=True))
        tokens.append(token)
    return np.stack(tokens, 1)


def _read(graph: OrtGraph, shape: LMShape, tokens: np.ndarray) -> tuple[float, State]:
    """Mean loss of tokens (b,t) after the first, and the state after all of them."""
    rows, count = tokens.shape
    settings, state = _inputs(shape, rows, count)
    total = 0.0
    for t in range(count):
        inputs = {
            "token": np.ascontiguousarray(tokens[:, t]),
            **settings,
            **{f"in_{k}": v for k, v in state.items()},
        }
        logits, *new = graph.call(inputs, [LOGITS, *(f"out_{k}" for k in state)])
        state = dict(zip(state, new, strict=True))
        if t + 1 < count:
            wide = logits.astype(np.float64)
            largest = wide.max(1)
            norm = np.log(np.exp(wide - largest[:, None]).sum(1)) + largest
            total += float((norm - wide[np.arange(rows), tokens[:, t + 1]]).sum())
    scales = {k.removesuffix("_scale"): v for k, v in state.items() if k.endswith("_scale")}
    wide_state = {
        k: v.astype(np.float32) * scales[k][..., None] if k in scales else v
        for k, v in state.items()
        if not k.endswith("_scale")
    }
    return total / (rows * (count - 1)), wide_state


def _timer(graph: OrtGraph, shape: LMShape) -> Callable[[], float]:
    """A function that runs one step of one row, in the middle of a stream, and says how long it took."""
    settings, state = _inputs(shape, 1, 1)
    outputs: State = {
        "token_out": np.zeros(1, np.int64),
        "logprob": np.zeros(1, np.float32),
        "health": np.zeros(1, np.float32),
    }
    bound = graph.bind(
        {"token": np.zeros(1, np.int64), **settings, **{f"in_{k}": v for k, v in state.items()}},
        {**outputs, **{f"out_{k}": np.empty_like(v) for k, v in state.items()}},
    )

    def once() -> float:
        start = time.perf_counter()
        graph.run(bound)
        return time.perf_counter() - start

    once()
    return once


def _time(timers: Sequence[tuple[Cost, Callable[[], float], OrtGraph]], steps: int) -> None:
    for _ in range(steps):
        for cost, once, _graph in timers:
            cost.seconds.append(once())
    for _, _, graph in timers:
        graph.close()
