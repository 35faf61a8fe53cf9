"""A snapshot of a terabyte that takes no room on the disk, and one just over the limit."""

import tracemalloc

import numpy as np
import pytest

from speechssm.bundle import limits

from .attack import HostileSnapshot, snapshot_refused


@pytest.mark.parametrize(
    "size", [1 << 40, limits.SNAPSHOT_BYTES + 1, limits.SNAPSHOT_EXTRA_BYTES + (1 << 20)]
)
def test_refused(snapshot: HostileSnapshot, size: int) -> None:
    with snapshot.path.open("r+b") as file:
        file.truncate(size)
    tracemalloc.start()
    snapshot_refused(snapshot.model, snapshot.path, "more than the limit")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_described_truthfully(snapshot: HostileSnapshot) -> None:
    """A state of 70 MiB, each byte of it there: refused by the model's own size before it is read."""
    snapshot.set("lm.L00_lru", np.zeros(70 << 18, np.float32))
    snapshot.is_refused("more than the limit")
