"""A snapshot of another bundle: its state would be read as this one's."""

import pytest

from .attack import HostileSnapshot


@pytest.mark.parametrize("digest", ["0" * 64, "", "x" * 100_000, "\x1b[2J"])
def test_refused(snapshot: HostileSnapshot, digest: str) -> None:
    snapshot.metadata["bundle"] = digest
    snapshot.is_refused("is a snapshot of another model")


def test_missing(snapshot: HostileSnapshot) -> None:
    del snapshot.metadata["bundle"]
    snapshot.is_refused("is a snapshot of another model")
