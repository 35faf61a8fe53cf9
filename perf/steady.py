"""Does a step cost the same at token 100 and at token 24 000? And does memory stay flat for hours?

Two sessions stepped in turns, or one long stream with memory and step time by the minute::

    python -m speechssm.perf.steady BUNDLE
    python -m speechssm.perf.steady BUNDLE --hours 2
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import speechssm
from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_RATE_HZ
from speechssm.runtime.lm import LMRows
from speechssm.runtime.model import Model
from speechssm.runtime.settings import SamplerSettings

EARLY, LATE = 100, 24_000
"""Positions compared, in tokens: 4 s and 16 min."""


def step_at_two_positions(model: Model, alternations: int = 2_000) -> dict[str, Any]:
    """Microseconds per step of a session at token 100 and one at token 24 000, in turns.

    Both are stepped from there for ``alternations`` steps; the early one is put back to token 100 every
    time it has doubled, so that it stays young. Limit: medians within 2 %.
    """
    early, late = (LMRows(model.language_model, 1) for _ in range(2))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.language_model.vocab, LATE + 1).tolist()
    for rows, length in ((early, EARLY), (late, LATE)):
        rows.start(0, tokens[0], SamplerSettings(), seed=1)
        rows.prefill(0, tokens[1 : length + 1])
        rows.active[0] = True
    young = early.save(0)
    times: dict[int, list[float]] = {EARLY: [], LATE: []}
    for i in range(alternations):
        if i and i % EARLY == 0:
            early.load(0, young)
            early.active[0] = True
            early.step()
        pair = ((EARLY, early), (LATE, late))
        for position, rows in pair if i % 2 else pair[::-1]:
            started = time.perf_counter_ns()
            rows.step()
            times[position].append((time.perf_counter_ns() - started) / 1e3)
    medians = {position: statistics.median(values) for position, values in times.items()}
    return {
        "alternations": alternations,
        "median_us_at_100": medians[EARLY],
        "median_us_at_24000": medians[LATE],
        "ratio": medians[LATE] / medians[EARLY],
        "limit": 1.02,
    }


def long_stream(model: Model, hours: float, *, seed: int = 0) -> dict[str, Any]:
    """One stream of ``hours`` from a 10 s prompt: resident bytes and LM time per step by the minute."""
    rng = np.random.default_rng(seed)
    prompt = (0.1 * rng.standard_normal(10 * SAMPLE_RATE_HZ)).astype(np.float32)
    marks: list[dict[str, float]] = []
    samples, tokens, lm_s = 0, 0, 0.0
    started = time.perf_counter()
    with model.open(prompt, rate_hz=SAMPLE_RATE_HZ, seed=seed, ramp=True) as session:
        for piece in session.stream(hours * 3600):
            samples += len(piece)
            if samples >= (len(marks) + 1) * 60 * SAMPLE_RATE_HZ:
                stats = session.stats
                step_us = 1e6 * (stats.lm_s - lm_s) / max(1, stats.tokens - tokens)
                tokens, lm_s = stats.tokens, stats.lm_s
                marks.append({"minute": len(marks) + 1, "rss_bytes": rss_bytes(), "lm_step_us": step_us})
    wall = time.perf_counter() - started
    at_two = marks[min(1, len(marks) - 1)]["rss_bytes"]
    return {
        "seconds": samples / SAMPLE_RATE_HZ,
        "samples": samples,
        "tokens": round(samples / SAMPLE_RATE_HZ * TOKEN_RATE_HZ),
        "rtf": wall / (samples / SAMPLE_RATE_HZ),
        "rss_bytes_at_minute_2": at_two,
        "rss_bytes_at_end": marks[-1]["rss_bytes"],
        "grown_bytes": marks[-1]["rss_bytes"] - at_two,
        "minutes": marks,
    }


def rss_bytes() -> int:
    """Resident memory of this process now (Linux), or its peak elsewhere."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Command line of this module; the last line printed is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--hours", type=float, help="run one long stream instead")
    parser.add_argument("--alternations", type=int, default=2_000)
    given = parser.parse_args()
    model = speechssm.load(given.bundle, threads=1)
    if given.hours:
        report = long_stream(model, given.hours)
        for mark in report["minutes"][:: max(1, len(report["minutes"]) // 8)]:
            print(f"minute {mark['minute']:>4.0f}: {mark['rss_bytes'] / 2**20:.1f} MiB", file=sys.stderr)
    else:
        report = step_at_two_positions(model, given.alternations)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
