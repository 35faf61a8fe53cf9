"""What ``speechssm bench`` was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .timing import Clock


@dataclass(frozen=True)
class BenchSettings:
    """Shared by all benchmarks.

    ``bundle`` None takes the voice that ships or, without one, the ``demo`` preset with random weights.
    ``shape`` names what ``bench lm`` compares, ``budget_bytes`` the memory its rows may fill. ``models``
    gives judges' paths by role (:mod:`speechssm.perf.quality.judges`), ``judge`` a command. ``native`` gives language
    models the native library's operators. ``delay_s``
    sleeps that long in every call of the graph it names: the self-test of the stage clock.
    """

    quick: bool = False
    bundle: Path | None = None
    provider: Literal["cpu", "cuda"] = "cpu"
    threads: int = 0
    native: bool = False
    clock: Clock = "wall"
    shape: str = "40m"
    dtype: str = "float32"
    budget_bytes: int = 2 << 30
    sessions: int = 8
    minutes: float | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    judge: str | None = None
    speech: Path | None = None
    librispeech_long: Path | None = None
    delay_s: Mapping[str, float] = field(default_factory=dict)
