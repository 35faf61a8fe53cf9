"""One reader, many damaged inputs, in little memory: ``python -m tests.fuzz READER COUNT SEED BUNDLE FOLDER``.

The input in hand lies in FOLDER, so a crash leaves its cause behind. The last lines say what became of
all of them.
"""

from __future__ import annotations

import random
import re
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from .readers import READERS

MEMORY_BYTES = 256 << 20
"""Address space that reading may add to the process."""
LONGEST_S = 5.0
"""No input may take longer, on a machine with better things to do."""
WARM = 200


def limit_memory() -> None:
    """Allow this process :data:`MEMORY_BYTES` more than it has now."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmSize:\s+(\d+)", status.read_text())
        assert found
        most = int(found[1]) * 1024 + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    name, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    bundle, folder = Path(sys.argv[4]), Path(sys.argv[5])
    reader = READERS[name]
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    longest = 0.0
    started = time.perf_counter()
    for i in range(count):
        if i == min(WARM, count // 2):
            limit_memory()
        before = time.process_time()
        outcomes[reader(rng, bundle, folder)] += 1
        took = time.process_time() - before
        assert took < LONGEST_S or i < WARM, f"input {i} took {took:.1f} s"
        longest = max(longest, took if i >= WARM else 0.0)
    wall = time.perf_counter() - started
    print(
        f"{name}: {count} damaged inputs from seed {seed} in {wall:.0f} s, the longest {longest * 1000:.0f} ms of CPU"
    )
    others = sum(n for _, n in outcomes.most_common()[40:])
    for what, times in outcomes.most_common(40):
        print(f"{times:8d}  {what}")
    if others:
        print(f"{others:8d}  in {len(outcomes) - 40} further ways")


if __name__ == "__main__":
    main()
