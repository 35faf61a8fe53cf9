"""Host time of one LM step: everything between two runs of the engine.

The runtime is thin only if this stays small beside the engine. Measured with the engine left out: the
step graph is replaced by one that does nothing, so what is left is ours. Limits: 60 us at one row,
150 us at 64.

    python -m speechssm.perf.host
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speechssm.bundle import StateTensor
from speechssm.engines.protocol import Array, Bindings, Graph
from speechssm.export.models.griffin import lm_state
from speechssm.export.presets import PRESETS
from speechssm.runtime.lm import LanguageModel, LMRows
from speechssm.runtime.settings import SamplerSettings

LIMITS_US = {1: 60.0, 64: 150.0}
"""Largest host time per step, in microseconds, by rows."""


@dataclass
class _Bound:
    outputs: Mapping[str, Array]


class NoEngine:
    """A Graph that is bound like any other and does nothing when it runs."""

    name = "lm_step"
    provider = "none"
    aliased: frozenset[str] = frozenset()

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        """Plain memory."""
        return np.zeros(shape, dtype)

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bindings:
        """Keep the outputs; their zeros stand for token 0 and a healthy row."""
        return _Bound(outputs)

    def run(self, bindings: Bindings) -> None:
        """Do nothing."""

    def call(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Never called by a step."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to release."""


def host_step_us(
    schema: Sequence[StateTensor], vocab: int, rows: int, steps: int = 5_000
) -> dict[str, float]:
    """Microseconds of host time per step: median, 95th percentile and mean (prefetch blocks included)."""
    engine: Graph = NoEngine()
    lm = LanguageModel(engine, lambda: engine, tuple(schema), vocab, vocab, 1.0)
    pool = LMRows(lm, rows)
    for row in range(rows):
        pool.start(row, 0, SamplerSettings(), seed=row)
    pool.active[:] = True
    times = np.empty(steps)
    for i in range(steps):
        started = time.perf_counter_ns()
        result = pool.step()
        _ = int(result.tokens[0])
        times[i] = time.perf_counter_ns() - started
    times /= 1e3
    return {
        "rows": rows,
        "median_us": float(statistics.median(times)),
        "p95_us": float(np.percentile(times, 95)),
        "mean_us": float(times.mean()),
    }


def main() -> None:
    """Command line of this module; the last line printed is JSON."""
    rows = []
    for preset in ("tiny", "demo"):
        shape = PRESETS[preset].lm
        for count, limit in LIMITS_US.items():
            figures = host_step_us(lm_state(shape), shape.vocab, count)
            rows.append({"preset": preset, **figures, "limit_us": limit})
            print(
                f"{preset:<6}{count:>3} rows: {figures['median_us']:6.1f} us a step (median), limit {limit:.0f}"
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
