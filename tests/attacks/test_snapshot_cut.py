"""A snapshot cut short or longer than it should be, and one byte of its header changed."""

import numpy as np
import pytest

from .attack import HostileSnapshot, snapshot_refused


def test_cut(snapshot: HostileSnapshot, rng: np.random.Generator) -> None:
    content = snapshot.path.read_bytes()
    for size in {0, 1, 8, len(content) - 1, *rng.integers(0, len(content), 30).tolist()}:
        snapshot.path.write_bytes(content[:size])
        snapshot_refused(snapshot.model, snapshot.path, "cannot restore")
    snapshot.path.write_bytes(content + b"x")
    snapshot_refused(snapshot.model, snapshot.path, "truncated or padded")


@pytest.mark.parametrize("name", ["lm.L00_lru", "tokens.tail", "stitch.place", "tail.held"])
def test_header(snapshot: HostileSnapshot, name: str) -> None:
    content = snapshot.path.read_bytes()
    snapshot.path.write_bytes(content.replace(name.encode(), name.upper().encode(), 1))
    snapshot_refused(snapshot.model, snapshot.path, "snapshot")
