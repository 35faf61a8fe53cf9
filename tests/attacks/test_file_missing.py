"""A listed file that is not there."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize("name", ["lm.safetensors", "acoustic.onnx"])
def test_refused(bundle: HostileBundle, name: str) -> None:
    bundle.path(name).unlink()
    bundle.is_refused("the bundle is incomplete")
