"""How much memory a session leaves behind: ``python -m tests.runtime.faults_growth BUNDLE ROUNDS``.

Prints two figures, KiB of resident memory gained per session over ROUNDS of them: of sessions that are let
go, then of sessions that somebody forgot to let go, which is a planted leak.
"""

from __future__ import annotations

import gc
import itertools
import sys
from pathlib import Path

import numpy as np

import speechssm
from speechssm.runtime.acoustic import AcousticSchedule
from speechssm.runtime.session import Session

PAGE_BYTES = 4096
WARM = 15
"""Sessions until allocators have what they keep."""


def resident_bytes() -> int:
    """Memory of this process that is really there, after what can be collected is gone."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def main() -> None:
    bundle, rounds = Path(sys.argv[1]), int(sys.argv[2])
    model = speechssm.load(bundle, threads=1)
    voice = (0.1 * np.random.default_rng(1).standard_normal(16_000)).astype(np.float32)
    seeds = itertools.count()
    forgotten: list[Session] = []

    def gained_kib(count: int, leak: bool) -> float:
        before = resident_bytes()
        for _ in range(count):
            session = model.open(
                voice, rate_hz=16_000, seed=next(seeds), ramp=True, schedule=AcousticSchedule((1,))
            )
            next(session.stream(3))
            session.close()
            if leak:
                forgotten.append(session)
            del session
        return (resident_bytes() - before) / count / 1024

    gained_kib(WARM, leak=False)
    print(gained_kib(rounds, leak=False), gained_kib(rounds, leak=True))


if __name__ == "__main__":
    main()
