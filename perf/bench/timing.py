"""Timing that a busy machine cannot bend towards one side: in turns, A B B A, with medians and spread.

On a machine that others use as well, processor time may be asked for instead of the clock on the wall:
neighbours then cost caches and memory traffic, but not the time in which they ran instead of us. It adds
up over threads, so it is the time of a run only on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Clock = Literal["wall", "cpu"]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


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
    clock: Clock = "wall",
) -> dict[str, Spread]:
    """Run the jobs in turns for ``seconds`` on the wall in all, at least ``at_least`` rounds,
    and every other round backwards.

    Each runs once before the clock starts: the first run allocates.
    """
    if warm_up:
        for job in jobs.values():
            job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    order, now = list(jobs.items()), CLOCKS[clock]
    started = time.perf_counter()
    rounds = 0
    while rounds < at_least or (rounds < at_most and time.perf_counter() - started < seconds):
        for name, job in order if rounds % 2 == 0 else order[::-1]:
            at = now()
            job()
            times[name].append(now() - at)
        rounds += 1
    return {name: Spread.of(kept) for name, kept in times.items()}
