"""Timing that a busy machine cannot bend towards one side: in turns, A B B A, with medians and spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Seconds of one job: median, 10th and 90th percentile of ``count`` runs."""

    count: int
    median: float
    low: float
    high: float

    @staticmethod
    def of(seconds: list[float]) -> Spread:
        """From every run's time."""
        low, median, high = (float(v) for v in np.percentile(seconds, [10, 50, 90]))
        return Spread(len(seconds), median, low, high)


def in_turns(
    jobs: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    at_least: int = 3,
    at_most: int = 1_000_000,
    warm_up: bool = True,
) -> dict[str, Spread]:
    """Run the jobs in turns for ``seconds`` in all, at least ``at_least`` rounds, and every other round backwards.

    Each runs once before the clock starts: the first run allocates.
    """
    if warm_up:
        for job in jobs.values():
            job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    order = list(jobs.items())
    started = time.perf_counter()
    rounds = 0
    while rounds < at_least or (rounds < at_most and time.perf_counter() - started < seconds):
        for name, job in order if rounds % 2 == 0 else order[::-1]:
            at = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - at)
        rounds += 1
    return {name: Spread.of(kept) for name, kept in times.items()}
