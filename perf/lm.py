"""Step time of Griffin and of its Transformer baseline over position and rows, beside their floors.

Models are seeded: the arithmetic does not depend on the weights. Measurements alternate between the models,
so that a noisy machine is noisy for both, and each figure is a median with its spread. State is not
generated token by token: a cache is set to the position asked for and filled, because a step's cost
depends on how much is cached and not on what. (It has to be filled: pages that were never written to are
all the same page of zeros, and reading those costs no memory traffic.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from speechssm.bundle.shapes import LMShape
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.engines.protocol import Graph
from speechssm.export.checkpoints.seeded import seeded_griffin
from speechssm.export.graphs.lm import build_lm_step
from speechssm.export.graphs.lm_weights import griffin_weights
from speechssm.export.graphs.sampler import K_MAX
from speechssm.export.models.griffin import lm_state
from speechssm.export.models.transformer import at_capacity
from speechssm.export.package import write_graph, write_parts
from speechssm.export.storage import STORED, Storage, stored_weights
from speechssm.runtime.lm import LanguageModel, LMRows
from speechssm.runtime.settings import SamplerSettings

from .bench.timing import Clock, Spread, in_turns
from .capacity import Machine, StepFloor, step_seconds

WEIGHT_BYTES: dict[str, float] = {
    "float32": 4.0, "float16": 4.0, "bfloat16": 4.0, "int8": 1.03125, "int4": 0.53125, "dynamic_int8": 1.0,
}  # fmt: skip
"""Bytes of a weight as a step reads it on ONNX Runtime CPU: 16-bit floats are widened when a graph is loaded."""
RING_BYTES = 4
"""Rings and caches are float32 on ONNX Runtime CPU, whatever a bundle stores."""


class Steps(Protocol):
    """Rows that are stepped at one position again and again."""

    def step(self) -> None:
        """One step of every row."""


class Timed(Protocol):
    """A model whose step is compared with others'."""

    @property
    def name(self) -> str:
        """What it is called in a report."""

    @property
    def shape(self) -> LMShape:
        """Its shape."""

    @property
    def dtype(self) -> str:
        """How its weights are stored."""

    @property
    def ring_item_bytes(self) -> int:
        """Bytes of a number in its rings and caches."""

    @property
    def cache(self) -> str:
        """What is kept of the past, in words."""

    def rows_at(self, rows: int, position: int) -> Steps:
        """``rows`` sessions as if ``position`` tokens had passed."""

    def floor(self, machine: Machine, rows: int, position: int) -> StepFloor:
        """The shortest time a step can take on ``machine``."""


@dataclass(frozen=True)
class Contestant:
    """A language model whose step can be timed: its graph alone, with random weights."""

    name: str
    shape: LMShape
    lm: LanguageModel
    dtype: str
    ring_item_bytes: int = RING_BYTES

    def rows_at(self, rows: int, position: int) -> Held:
        """``rows`` sessions as if ``position`` tokens had passed; a growing cache has room for one more."""
        schema = lm_state(at_capacity(self.shape, position + 1))
        pool = LMRows(replace(self.lm, schema=schema), rows)
        for row in range(rows):
            pool.start(row, row % self.shape.vocab, SamplerSettings(), seed=row)
        for tensors in pool.state.sets:
            for name, array in tensors.items():
                array.fill(position if name == "position" else 0.01)
        pool.active[:] = True
        return Held(pool, position)

    def floor(self, machine: Machine, rows: int, position: int) -> StepFloor:
        """The shortest time a step can take on ``machine``."""
        return step_seconds(
            self.shape, machine, rows, position,
            weight_item_bytes=WEIGHT_BYTES[self.dtype], ring_item_bytes=self.ring_item_bytes,
        )  # fmt: skip

    @property
    def cache(self) -> str:
        """What is kept of the past, in words."""
        return cache_words(self.shape)


@dataclass(frozen=True)
class Held:
    """Rows that are stepped at one position again and again."""

    pool: LMRows
    position: int

    def step(self) -> None:
        """One step of every row; the position is put back first."""
        self.pool.state.current["position"].fill(self.position)
        self.pool.step()


def contestant(
    name: str, shape: LMShape, folder: Path, *, dtype: Storage = "float32", options: OrtOptions | None = None
) -> Contestant:
    """Write the step graph of ``shape`` with seeded weights into ``folder`` and open it.

    Where ``options`` name the native library, layers and attention are its operators.
    """
    folder.mkdir(parents=True, exist_ok=True)
    native = options is not None and options.custom_ops is not None
    builder = build_lm_step(shape, STORED[dtype], ring_op=native, linear_op=native)
    weights = stored_weights(shape, griffin_weights(shape, seeded_griffin(shape, 0)), dtype, linear_op=native)
    write_parts(folder, {"lm_step": builder}, {"lm": weights})
    entry = write_graph(folder, "lm_step", builder, lm_state(shape))
    step: Graph = OrtGraph("lm_step", folder / entry.file, entry, options)
    lm = LanguageModel(step, lambda: step, entry.state, shape.vocab, min(K_MAX, shape.vocab), float("inf"))
    return Contestant(name, shape, lm, dtype)


def measure(
    contestants: Sequence[Timed],
    position: int,
    rows: Sequence[int],
    *,
    seconds: float = 2.0,
    at_least: int = 3,
    clock: Clock = "wall",
) -> dict[str, Spread]:
    """Seconds per step of each contestant with its own number of ``rows``, in turns for ``seconds`` in all."""
    pools = {c.name: c.rows_at(n, position) for c, n in zip(contestants, rows, strict=True)}
    return in_turns(
        {name: pool.step for name, pool in pools.items()}, seconds, at_least=at_least, clock=clock
    )


def row_of(
    one: Timed, spread: Spread, machine: Machine, rows: int, position: int, **more: Any
) -> dict[str, Any]:
    """One measurement with everything that must be known to believe it."""
    floor = one.floor(machine, rows, position)
    return {
        "model": one.name,
        "kv_heads": one.shape.kv_heads,
        "cache": one.cache,
        "precision": one.dtype,
        "position": position,
        "rows": rows,
        "steps": spread.count,
        "step_s": spread.median,
        "step_s_p10": spread.low,
        "step_s_p90": spread.high,
        "tokens_per_s": rows / spread.median,
        "floor_s": floor.total_s,
        "bound_by": "bandwidth" if floor.bytes_s >= floor.flops_s else "products",
        "share_of_floor": floor.total_s / spread.median,
        **more,
    }


def rows_in_budget(shape: LMShape, tokens: int, budget_bytes: int, ring_item_bytes: int = RING_BYTES) -> int:
    """Sessions of ``tokens`` whose state fills ``budget_bytes``, at least one."""
    return max(1, budget_bytes // held_bytes(shape, tokens, ring_item_bytes))


def held_bytes(shape: LMShape, tokens: int, ring_item_bytes: int = RING_BYTES) -> int:
    """Bytes the runtime keeps for one session: its recurrent state twice, as a step reads one set and writes
    the other, and its rings once, as they are changed in place."""
    return shape.session_bytes(tokens, ring_item_bytes) + shape.recurrent_bytes


def cache_words(shape: LMShape) -> str:
    """What a model of ``shape`` keeps of the past, in words."""
    return f"ring of {shape.window}" if shape.cache == "ring" else f"grows by {shape.window}"
