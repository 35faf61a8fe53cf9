"""A graph or weight file that has no digest."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize("file", ["lm_step.onnx", "lm.safetensors"])
def test_refused(bundle: HostileBundle, file: str) -> None:
    bundle.edit(lambda m: m["files"].pop(file))
    bundle.is_refused("is not listed under files")
