"""A manifest of 5 MiB, and one of a terabyte that takes no room on the disk."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize("size", [5 << 20, 1 << 40])
def test_refused(bundle: HostileBundle, size: int) -> None:
    with bundle.path("manifest.json").open("r+b") as file:
        file.truncate(size)
    bundle.is_refused("it is not a manifest")
