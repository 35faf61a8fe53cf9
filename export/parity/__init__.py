"""Is what was written what was meant? The parity report of an export.

A teacher-forced rollout of the very graphs of the bundle against the PyTorch reference with the
weights as the bundle stores them: the drift of every state tensor, logits, free running, chunks
against steps, one row against seven. Gates decide; an export that misses one is refused.
The report holds no times or paths, so that the same export gives the same bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from speechssm.bundle import state_bytes
from speechssm.bundle.manifest import GraphEntry
from speechssm.bundle.shapes import LMShape
from speechssm.errors import ExportError

from ..models.griffin import lm_state
from ..models.transformer import at_capacity
from .compare import FLOAT_GATE, GATES, Comparison, Gate, gate_of
from .reference import follow, torch_threads
from .rollout import (
    Rollout,
    State,
    checkpoints,
    chunked,
    garbage_state,
    open_graph,
    roll_out,
    rows_of,
    with_logits,
)

LONG_STEPS, LONG_PARAMETERS = 24_000, 50_000_000
"""16 minutes of speech, for models up to this size."""
GROWING_STEPS = 1_000
"""Steps of a Transformer whose cache grows: each costs time in proportion to its position."""
SHORT_STEPS = 64
"""Steps for larger models, where every step costs seconds of reading weights."""
WIDE_PARAMETERS = 4_000_000_000
"""Above this, weights stored in two bytes are not held as float32 for the report: 34 GB of them for ``9b``."""
ROWS, MATES = 2, 7
CHUNK_STEPS = 64
"""Tokens of the comparison of chunks with steps, at most."""
FORMAT = "speechssm-parity"

Parameters = Mapping[str, np.ndarray]
Report = dict[str, Any]


@dataclass(frozen=True)
class Parity:
    """A finished report, what failed in it, and what the exporter needs to know."""

    report: Report
    failures: tuple[str, ...]
    largest_lru: float

    def summary(self) -> Report:
        """What the manifest keeps: the figures of the report without its curves."""
        r, run = self.report, self.report["rollout"]
        return {
            "file": "parity.json",
            "storage": r["storage"],
            "steps": run["steps"],
            "rows": run["rows"],
            "largest_state_difference": run["largest_state_difference"],
            "logits": run["logits"]["largest"],
            "first_divergence": run["free_running"]["first_divergence"],
            "chunked_bit_exact": all(c["bit_exact"] for c in r["chunked"]),
            "rows_bit_exact": r["rows"]["bit_exact"],
            "passed": r["passed"],
        }


def rollout_steps(parameters: int, asked: int | None, *, grows: bool = False) -> tuple[int, str]:
    """Length of the rollout for a model of that many parameters, and why."""
    if asked is not None:
        if asked < 1:
            raise ExportError(f"a rollout of {asked} steps checks nothing: ask for at least 1")
        return asked, "asked for"
    if grows and parameters <= LONG_PARAMETERS:
        return GROWING_STEPS, "for a cache that grows"
    if parameters <= LONG_PARAMETERS:
        return LONG_STEPS, f"16 minutes, for models up to {LONG_PARAMETERS // 1_000_000} M parameters"
    return SHORT_STEPS, f"short, for models above {LONG_PARAMETERS // 1_000_000} M parameters"


def check_lm(
    folder: Path,
    graphs: Mapping[str, GraphEntry],
    shape: LMShape,
    parameters: Parameters,
    *,
    storage: str,
    count: int,
    rollout: int | None = None,
    gate: Gate = FLOAT_GATE,
    seed: int = 0,
    threads: int = 0,
) -> Parity:
    """Compare the LM graphs in ``folder`` with the reference whose weights are ``parameters``.

    ``parameters`` must already be as the bundle stores them (:mod:`speechssm.export.storage`); ``count``
    is how many there are, which decides the length unless ``rollout`` does. The engine runs first and is
    closed before the reference begins, so that memory holds one of them. Two-byte weights of models above
    :data:`WIDE_PARAMETERS` are widened product by product; ONNX Runtime then has no product that rounds the same
    for one row as for several, so rows and chunks are held to the gate's bound for states in place of equal bits.

    Raises ExportError when a graph gives a number that is not finite.
    """
    steps, why = rollout_steps(count, rollout, grows=shape.cache == "grow")
    shape = at_capacity(shape, steps + 1)
    widen_once = count <= WIDE_PARAMETERS or storage not in ("float16", "bfloat16")
    if not widen_once:
        gate = replace(gate, exact=False)
    if threads == 0 and count <= LONG_PARAMETERS:
        # A step of a small model is shorter than the wait of two threads for each other.
        threads = 1
    rng = np.random.default_rng(seed)
    step, chunk = graphs["lm_step"], graphs["lm_chunk"]
    uniforms = (rng.integers(0, 1 << 24, (ROWS, steps)) / (1 << 24)).astype(np.float32)
    start = garbage_state(step, ROWS, shape.window, rng)
    first = rng.integers(0, shape.vocab, ROWS)
    keep = checkpoints(steps, state_bytes(lm_state(shape)), ROWS)
    with with_logits(folder, step, shape.vocab) as (path, entry):
        graph = open_graph(path, entry, threads, widen_once=widen_once)
        run = roll_out(graph, shape, start, first, uniforms, keep)
        rows = _mates(graph, step, shape, min(steps, CHUNK_STEPS), rng)
        graph.close()
    if not np.isfinite(run.health).all():
        at = int(np.argwhere(~np.isfinite(run.health).all(0))[0, 0])
        raise ExportError(
            f"the model's state or probabilities are not finite after {at + 1} tokens: "
            "the weights are damaged, or the graph does not clear a row that starts"
        )
    graph = open_graph(folder / chunk.file, chunk, threads, widen_once=widen_once)
    chunks = _chunks(graph, run, start, keep)
    graph.close()
    comparison = Comparison(shape, run)
    with torch_threads(threads):
        follow(shape, parameters, run.tokens[:, :-1], keep, comparison.on_state, comparison.on_logits)

    failures = comparison.failures(gate) + _position_failures(run)
    failures += [
        f"chunks of {c['sizes']} tokens differ from single steps by {c['largest']:.2e} in {c['worst']}"
        for c in chunks
        if not (c["bit_exact"] if gate.exact else c["largest"] <= gate.state)
    ]
    if not (rows["bit_exact"] if gate.exact else rows["largest"] <= gate.state):
        failures.append(
            f"a row among {MATES} differs from the row alone by {rows['largest']:.2e} in {rows['worst']}"
        )
    report: Report = {
        "format": FORMAT,
        "version": 1,
        "storage": storage,
        "ring": shape.ring,
        "engine": "ONNX Runtime CPU" + ("" if widen_once else ", weights widened at each use"),
        "reference": "PyTorch float32, weights as stored",
        "gate": asdict(gate),
        "passed": not failures,
        "failures": failures,
        "signatures": {
            name: {
                "inputs": [[v.name, v.dtype, list(v.axes)] for v in entry.inputs],
                "outputs": [[v.name, v.dtype, list(v.axes)] for v in entry.outputs],
            }
            for name, entry in graphs.items()
        },
        "rollout": {
            "steps": steps,
            "rows": ROWS,
            "length_is": why,
            "parameters": count,
            "states_compared_at": len(keep),
            "logits_compared_at": len(run.logit_steps),
            "largest_lru": float(run.health.max()),
            **comparison.report(),
        },
        "chunked": chunks,
        "rows": rows,
    }
    return Parity(report, tuple(failures), max(float(run.health.max()), 1e-3))


def _mates(graph: Any, entry: GraphEntry, shape: LMShape, steps: int, rng: np.random.Generator) -> Report:
    """Seven rows at once, then one of them alone."""
    start = garbage_state(entry, MATES, shape.window, rng)
    first = rng.integers(0, shape.vocab, MATES)
    uniforms = rng.random((MATES, steps), np.float32)
    together = roll_out(graph, shape, start, first, uniforms, [steps])
    row = int(rng.integers(MATES))
    chosen = slice(row, row + 1)
    alone = roll_out(graph, shape, rows_of(start, chosen), first[chosen], uniforms[chosen], [steps])
    found = _difference(rows_of(together.states[steps], chosen), alone.states[steps])
    logits = float(np.max(np.abs(together.logits[chosen] - alone.logits)))
    if logits > found["largest"]:
        found.update(largest=logits, worst="logits")
    found["bit_exact"] = found["bit_exact"] and together.logits[chosen].tobytes() == alone.logits.tobytes()
    return {"rows": [1, MATES], "steps": steps, **found}


def _chunks(graph: Any, run: Rollout, start: State, keep: list[int]) -> list[Report]:
    """Prefill in one chunk and in uneven ones, from the reset and from the middle of the rollout."""
    count = max(n for n in keep if n <= CHUNK_STEPS)
    uneven = [n for n, total in ((1, 1), (5, 6), (7, 13)) if total < count]
    plans = [(0, count, [count]), (0, count, [*uneven, count - sum(uneven)])]
    if len(keep) > 1 and (length := keep[-1] - keep[-2]) <= 1024:
        plans.append((keep[-2], keep[-1], [length]))
    reports = []
    for begin, end, sizes in plans:
        before = start if begin == 0 else run.states[begin]
        found = _difference(chunked(graph, before, run.tokens[:, begin:end], sizes), run.states[end])
        reports.append({"from": begin, "to": end, "sizes": sizes, **found})
    return reports


def _difference(mine: State, wanted: State) -> Report:
    largest, worst = 0.0, ""
    for name, value in wanted.items():
        with np.errstate(invalid="ignore"):
            by = float(np.max(np.abs(mine[name].astype(np.float64) - value))) if value.size else 0.0
        by = by if np.isfinite(by) else float("inf")
        if by > largest:
            largest, worst = by, name
    exact = all(mine[name].tobytes() == value.tobytes() for name, value in wanted.items())
    return {"bit_exact": exact, "largest": largest, "worst": worst}


def _position_failures(run: Rollout) -> list[str]:
    return [
        f"position is {state['position'].tolist()} after {steps} steps"
        for steps, state in sorted(run.states.items())
        if (state["position"] != steps).any()
    ][:1]


__all__ = ["FLOAT_GATE", "GATES", "Gate", "Parity", "check_lm", "gate_of", "rollout_steps"]
