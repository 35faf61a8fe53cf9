"""External data in a file of the bundle that the manifest does not give to this graph."""

import pytest

from .attack import HostileBundle, place, weight_of


@pytest.mark.parametrize("location", ["codec.safetensors", "manifest.json", "lm_step.onnx"])
def test_refused(bundle: HostileBundle, location: str) -> None:
    with bundle.model() as model:
        place(weight_of(model), location=location)
    bundle.is_refused("which the manifest does not list for this graph")
