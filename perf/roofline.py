"""What this machine can do: read bandwidth and matrix-product rate, measured with numpy.

    python -m speechssm.perf.roofline

Both are the best of several passes over buffers far larger than the caches, with all cores: the ceiling
other figures are held against.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

BUFFER_BYTES = 256 << 20
"""Bytes each thread reads in one pass: larger than any cache."""


@dataclass(frozen=True)
class Roofline:
    """Measured ceilings."""

    threads: int
    read_bytes_per_s: float
    copy_bytes_per_s: float
    gemm_flops_per_s: float


def measure(*, threads: int | None = None, passes: int = 5, size: int = 1536) -> Roofline:
    """Best of ``passes`` of each: summing a buffer, copying it (read and written bytes), a float32 product.

    ``size`` is the side of the square matrices. ``threads`` None uses every core.
    """
    threads = threads or os.cpu_count() or 1
    count = BUFFER_BYTES // 8
    sources = [np.ones(count) for _ in range(threads)]
    targets = [np.empty(count) for _ in range(threads)]
    a = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    with ThreadPoolExecutor(threads) as pool:

        def best(job: object, *arguments: list[np.ndarray]) -> float:
            assert callable(job)
            shortest = float("inf")
            for _ in range(passes):
                started = time.perf_counter()
                list(pool.map(job, *arguments))
                shortest = min(shortest, time.perf_counter() - started)
            return shortest

        # A bitwise reduction reads at memory speed; a float sum is bound by its additions.
        read = best(lambda x: np.bitwise_or.reduce(x.view(np.int64)), sources)
        copy = best(lambda y, x: np.copyto(y, x), targets, sources)
    gemm = float("inf")
    for _ in range(passes):
        started = time.perf_counter()
        a @ a
        gemm = min(gemm, time.perf_counter() - started)
    total = threads * count * 8
    return Roofline(threads, total / read, 2 * total / copy, 2 * size**3 / gemm)


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
