"""A manifest of another program that also has a version 1."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize("format_", ["onnx-bundle", "", None, 1])
def test_refused(bundle: HostileBundle, format_: object) -> None:
    bundle.edit(lambda m: m.update(format=format_))
    bundle.is_refused("format")
