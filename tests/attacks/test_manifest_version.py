"""Another bundle version: newer, older, not a number, missing."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize("version", [2, 0, -1, "1", 1.0, True, None, [1], 10**300])
def test_refused(bundle: HostileBundle, version: object) -> None:
    bundle.edit(lambda m: m.update(version=version))
    bundle.is_refused("this runtime reads version 1")


def test_missing(bundle: HostileBundle) -> None:
    bundle.edit(lambda m: m.pop("version"))
    bundle.is_refused("this runtime reads version 1")
