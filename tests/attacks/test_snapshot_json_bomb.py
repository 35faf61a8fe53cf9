"""The session's table as JSON that recurses, is no table, or holds a number of a million digits."""

import pytest

from speechssm.bundle import tensors

from .attack import HostileSnapshot, snapshot_refused


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 1_000_000, "", "nul", "[]", "1", '"x"', "{}"]
)
def test_refused(snapshot: HostileSnapshot, text: str) -> None:
    metadata = {**snapshot.metadata, "session": text}
    tensors.write(snapshot.path, snapshot.specs, snapshot.arrays.values(), metadata)
    snapshot_refused(snapshot.model, snapshot.path, "damaged")
