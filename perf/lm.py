"""Step time of Griffin and of its Transformer baseline over position and rows, beside their floors.

The paper's Figures 7 and 8: one sample's time per token against length, and the ratio of throughputs when
a memory budget is filled with rows. Models are seeded: the arithmetic does not depend on the weights.
Measurements alternate between the models (A B A B), so that a noisy machine is noisy for both, and each
figure is a median with its spread. State is not generated token by token: a cache is set to the position
asked for, because a step's cost depends on how much is cached and not on what.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechssm.bundle import open_bundle
from speechssm.bundle.shapes import LMShape
from speechssm.engines.loading import BundleGraphs
from speechssm.engines.ort import OrtOptions
from speechssm.runtime.lm import LanguageModel, LMRows
from speechssm.runtime.settings import SamplerSettings

from .capacity import Machine, step_seconds

ITEM_BYTES = 4
"""Weights and rings are float32 on ONNX Runtime CPU, whatever a bundle stores."""


@dataclass
class Contestant:
    """A loaded model: rows of one size at a time, since state is the large thing here."""

    name: str
    shape: LMShape
    lm: LanguageModel

    def rows_at(self, rows: int, position: int) -> LMRows:
        """``rows`` sessions as if ``position`` tokens had passed."""
        pool = LMRows(self.lm, rows)
        for row in range(rows):
            pool.start(row, row % self.shape.vocab, SamplerSettings(), seed=row)
            for tensors in pool.state.sets:
                tensors["position"][row] = position
        pool.active[:] = True
        return pool


def load(folder: Path, name: str, threads: int) -> Contestant:
    """The language model of a bundle."""
    bundle = open_bundle(folder)
    part = bundle.manifest.lm
    graphs = BundleGraphs(bundle, OrtOptions(threads=threads))
    schema = bundle.manifest.graphs["lm_step"].state
    lm = LanguageModel(
        graphs("lm_step"), lambda: graphs("lm_chunk"), schema, part.shape.vocab, part.k_max, float("inf")
    )
    return Contestant(name, part.shape, lm)


def measure(
    contestants: Sequence[Contestant], position: int, rows: Sequence[int], *, seconds: float = 2.0
) -> Iterator[dict[str, Any]]:
    """Seconds per step of each contestant with its own number of ``rows``, in turns for ``seconds`` in all."""
    pools = [c.rows_at(n, position) for c, n in zip(contestants, rows, strict=True)]
    times: list[list[float]] = [[] for _ in contestants]
    for pool in pools:
        pool.step()  # the first step allocates
    started = time.perf_counter()
    while len(times[0]) < 3 or time.perf_counter() - started < seconds:
        for kept, pool in zip(times, pools, strict=True):
            at = time.perf_counter()
            pool.step()
            kept.append(time.perf_counter() - at)
    for contestant, n, kept in zip(contestants, rows, times, strict=True):
        low, middle, high = np.percentile(kept, [10, 50, 90])
        yield {
            "model": contestant.name,
            "position": position,
            "rows": n,
            "steps": len(kept),
            "step_s": float(middle),
            "step_s_p10": float(low),
            "step_s_p90": float(high),
            "tokens_per_s": n / float(middle),
            "kv_heads": contestant.shape.kv_heads,
            "cache": contestant.shape.cache,
        }


def with_floor(row: dict[str, Any], shape: LMShape, machine: Machine) -> dict[str, Any]:
    """``row`` with the analytic floor of its step and the share of it that was reached."""
    floor = step_seconds(
        shape, machine, row["rows"], row["position"], weight_item_bytes=ITEM_BYTES, ring_item_bytes=ITEM_BYTES
    )
    return row | {"floor_s": floor.total_s, "share_of_floor": floor.total_s / row["step_s"]}


def rows_in_budget(shape: LMShape, tokens: int, budget_bytes: int) -> int:
    """Sessions of ``tokens`` whose state fills ``budget_bytes``, at least one.

    The ping-pong copy of the state is counted: an engine that reads one set and writes the other needs both.
    """
    return max(1, budget_bytes // (2 * shape.session_bytes(tokens, ITEM_BYTES)))
