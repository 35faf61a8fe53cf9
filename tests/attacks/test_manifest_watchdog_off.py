"""A watchdog limit that no state can pass: infinite, not a number, negative, zero."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize("limit", [float("inf"), float("nan"), -1.0, 0.0, "1e9", None])
def test_refused(bundle: HostileBundle, limit: object) -> None:
    bundle.edit(lambda m: m["lm"].update(lru_limit=limit))
    bundle.is_refused("lru_limit")
