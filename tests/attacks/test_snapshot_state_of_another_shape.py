"""State tensors of other shapes, types or names, missing ones and strangers: shape bombs, and silent broadcasts."""

import numpy as np
import pytest

from .attack import HostileSnapshot


def test_refused(snapshot: HostileSnapshot) -> None:
    for name, true in list(snapshot.arrays.items()):
        other = np.int64 if true.dtype.kind == "f" else np.float32
        for bent in (
            true[None],
            np.zeros((*true.shape, 0), true.dtype),
            np.zeros((3, 5, 7), true.dtype),
            true.astype(np.float16),
            true.astype(other),
        ):
            snapshot.set(name, bent)
            snapshot.is_refused("snapshot")
        snapshot.set(name, true)
    snapshot.model.restore(snapshot.write())


def test_missing(snapshot: HostileSnapshot) -> None:
    for name in list(snapshot.arrays):
        array, spec = snapshot.arrays.pop(name), snapshot.specs.pop(name)
        snapshot.is_refused("snapshot")
        snapshot.arrays[name], snapshot.specs[name] = array, spec


NAMES = ["lm.L99_lru", "lm", "x", "evil.x", "tokens.x", "tail.x", "", "lm.a.b", "\x1b[2J", "x" * 10_000]


@pytest.mark.parametrize("name", NAMES)
def test_stranger(snapshot: HostileSnapshot, name: str) -> None:
    snapshot.set(name, np.zeros(3, np.float32))
    snapshot.is_refused("snapshot")


def test_bool(snapshot: HostileSnapshot) -> None:
    snapshot.set("lm.L00_lru", np.zeros(40, np.bool_))
    snapshot.is_refused("has type BOOL")
