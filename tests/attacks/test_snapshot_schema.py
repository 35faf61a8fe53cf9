"""Another snapshot schema: newer, older, none."""

import pytest

from .attack import HostileSnapshot


@pytest.mark.parametrize("schema", ["2", "0", "1.0", " 1", "", "x" * 10_000])
def test_refused(snapshot: HostileSnapshot, schema: str) -> None:
    snapshot.metadata["schema"] = schema
    snapshot.is_refused("use the speechssm version that wrote it")


def test_missing(snapshot: HostileSnapshot) -> None:
    del snapshot.metadata["schema"]
    snapshot.is_refused("use the speechssm version that wrote it")
