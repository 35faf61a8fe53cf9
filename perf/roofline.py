"""What this machine can do: read and copy bandwidth and matrix-product rate, measured with numpy.

    python -m speechssm.perf.roofline

The best of several passes, piece by piece, with all cores: the ceiling other figures are held against.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BUFFER_BYTES = 256 << 20
"""Bytes each thread goes through in one pass: larger than any cache it has for itself."""
PIECE_BYTES = 8 << 20
"""Bytes between two looks at the clock: a piece takes less than a time slice of a busy machine."""


@dataclass(frozen=True)
class Roofline:
    """Measured ceilings."""

    threads: int
    read_bytes_per_s: float
    copy_bytes_per_s: float
    gemm_flops_per_s: float


def measure(*, threads: int | None = None, passes: int = 5, size: int = 512) -> Roofline:
    """Reading a buffer, copying it (read and written bytes), and a float32 product, each in ``threads`` threads.

    Of every piece of a buffer the best of ``passes`` counts: what a busy machine takes away in between is not
    the memory's. A product of ``size`` squared is one piece. ``threads`` None uses every core.
    """
    threads = threads or os.cpu_count() or 1
    count = BUFFER_BYTES // 4
    rng = np.random.default_rng(0)
    sources = [np.full(count, 1, np.float32) for _ in range(threads)]
    targets = [np.full(count, 2, np.float32) for _ in range(threads)]
    factor = rng.standard_normal((size, size), np.float32)
    piece = PIECE_BYTES // 4
    cuts = [slice(at, at + piece) for at in range(0, count, piece)]

    def read(i: int) -> list[float]:
        return _each(cuts, lambda cut: sources[i][cut].max())

    def copy(i: int) -> list[float]:
        return _each(cuts, lambda cut: np.copyto(targets[i][cut], sources[i][cut]))

    with ThreadPoolExecutor(threads) as pool:

        def best(job: Callable[[int], list[float]]) -> float:
            """Seconds of the pieces of one thread, each at its best, averaged over the threads."""
            times = np.array([list(pool.map(job, range(threads))) for _ in range(passes)])
            return float(times.min(axis=0).sum(axis=1).mean())

        copying = 2 * threads * BUFFER_BYTES / best(copy)
        # Memory that is copied at a rate can be read at it, so a slower reading was disturbed.
        reading = max(threads * BUFFER_BYTES / best(read), copying)
    with _blas_threads(threads):
        product = min(_each(cuts * passes, lambda _: factor @ factor))
    return Roofline(threads, reading, copying, 2 * size**3 / product)


class Reader:
    """Reads a buffer of ``buffer_bytes`` in each of ``threads`` threads once a call, in turns with what is compared."""

    def __init__(self, threads: int, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.bytes = threads * buffer_bytes
        self._buffers = [np.full(buffer_bytes // 4, 1, np.float32) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self) -> None:
        """One pass."""
        list(self._pool.map(np.max, self._buffers))

    def close(self) -> None:
        """Let its threads go."""
        self._pool.shutdown()


def _blas_threads(threads: int) -> AbstractContextManager[object]:
    """numpy's products in ``threads`` threads, where threadpoolctl is installed; else in as many as it likes."""
    try:
        limits: Any = importlib.import_module("threadpoolctl").threadpool_limits
    except ImportError:
        return nullcontext()
    context: AbstractContextManager[object] = limits(threads)
    return context


def _each(cuts: Sequence[slice], job: Callable[[slice], object]) -> list[float]:
    times = []
    for cut in cuts:
        started = time.perf_counter()
        job(cut)
        times.append(time.perf_counter() - started)
    return times


def main() -> None:
    """Command line of this module; the last line printed is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    print(json.dumps(asdict(measure(threads=given.threads))))


if __name__ == "__main__":
    main()
