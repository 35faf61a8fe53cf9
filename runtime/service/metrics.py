"""Numbers of a service at one moment: a frozen, plain object that any exporter can read.

Counters only grow; names end in their unit (``_s``, ``_bytes``) or ``_total``. Times of the engine are
wall clock. Quantiles are of the newest few thousand observations.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

KEPT = 4096
"""Observations that quantiles are taken from."""


@dataclass(frozen=True)
class Quantiles:
    """p50, p95, p99 and the largest of ``count`` observations, in seconds; zeros when there are none."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    largest: float = 0.0
    count: int = 0


@dataclass(frozen=True)
class Metrics:
    """See the module. ``slack_s`` is the least of all real-time sessions, infinite without any."""

    queued: int
    reading: int
    live: int
    paused: int
    submitted_total: int
    refused_total: int
    finished_total: int
    cancelled_total: int
    failed_total: dict[str, int]
    """By code."""
    samples_total: int
    tokens_total: int
    steps_total: int
    rows_per_step: float
    """Mean over all steps."""
    windows_total: int
    windows_per_batch: float
    stage_s: dict[str, float]
    """Engine time by stage: read, lm, acoustic, codec, other."""
    first_audio_s: Quantiles
    step_gap_s: Quantiles
    """Between two tokens of one session while it decodes."""
    piece_gap_s: Quantiles
    """Between two pieces of audio given to a real-time session."""
    cancel_s: Quantiles
    """From asking until the engine had let go of the session; its reader has the end at once."""
    underruns_total: int
    stalled_s: float
    slack_s: float
    state_bytes: int
    buffered_s: float
    orphaned_s: float
    """Engine time spent for sessions that had ended: their share of a batch that went on for others."""
    checkpoints_total: int
    checkpoint_failures_total: int
    checkpoint_error: str
    """The last one."""
    retried_total: int
    """Units of work repeated one session at a time because the whole had failed."""

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON."""
        return dataclasses.asdict(self)

    def flat(self) -> dict[str, float]:
        """Numbers by name, such as ``stage_s_lm`` or ``first_audio_s_p95``: what exporters want."""
        numbers: dict[str, float] = {}
        for name, value in self.as_dict().items():
            if isinstance(value, dict):
                numbers.update({f"{name}_{key}": float(inner) for key, inner in value.items()})
            elif not isinstance(value, str):
                numbers[name] = float(value)
        return numbers


@dataclass
class Tally:
    """The growing half of :class:`Metrics`. Touched by the engine's thread only."""

    submitted: int = 0
    refused: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    tokens: int = 0
    steps: int = 0
    windows: int = 0
    batches: int = 0
    stage_s: dict[str, float] = field(
        default_factory=lambda: {"read": 0.0, "lm": 0.0, "acoustic": 0.0, "codec": 0.0, "other": 0.0}
    )
    underruns: int = 0
    stalled_s: float = 0.0
    orphaned_s: float = 0.0
    checkpoints: int = 0
    checkpoint_failures: int = 0
    checkpoint_error: str = ""
    retried: int = 0
    first_audio: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    step_gap: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    piece_gap: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    cancel: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))


def quantiles(values: deque[float]) -> Quantiles:
    """Nearest-rank quantiles."""
    ordered = sorted(values)
    if not ordered:
        return Quantiles()
    p50, p95, p99 = (ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.95, 0.99))
    return Quantiles(p50, p95, p99, ordered[-1], len(ordered))
