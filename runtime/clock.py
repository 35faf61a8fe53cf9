"""Where a session's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass


@dataclass
class SessionStats:
    """Counts and times of one session, in seconds of wall clock unless named otherwise.

    ``first_audio_s`` is from ``open()`` to the first sample, None before it.
    """

    tokens: int = 0
    windows: int = 0
    samples: int = 0
    prompt_s: float = 0.0
    lm_s: float = 0.0
    acoustic_s: float = 0.0
    codec_s: float = 0.0
    first_audio_s: float | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to ``<stage>_s``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            name = f"{stage}_s"
            setattr(self, name, getattr(self, name) + time.perf_counter() - started)

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain numbers by name."""
        return asdict(self)
