"""External data that points out of the bundle (CVE-2026-27489, CVE-2026-34445), or memory."""

import pytest

from .attack import HostileBundle, place, weight_of

PLACES = [
    "/etc/passwd",
    "../lm.safetensors",
    "./lm.safetensors",
    "sub/lm.safetensors",
    "/dev/zero",
    "",
    "*/_ORT_MEM_ADDR_/*",
    "file:///etc/passwd",
    "LM.safetensors",
    "lm.safetensors\x00",
    "lm.safetensors\n",
]


@pytest.mark.parametrize("location", PLACES)
def test_refused(bundle: HostileBundle, location: str) -> None:
    with bundle.model() as model:
        place(weight_of(model), location=location)
    bundle.is_refused("which the manifest does not list for this graph")
