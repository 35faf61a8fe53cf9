"""Shapes whose product is far beyond the file, or beyond 64 bits."""

import pytest

from .attack import HostileBundle, safetensors_file


@pytest.mark.parametrize(
    "shape", [[1 << 40], [1 << 32, 1 << 32], [1 << 61, 8], [0, 1 << 61], [1 << 61, 0, 1 << 61]]
)
def test_refused(bundle: HostileBundle, shape: list[int]) -> None:
    header = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
    bundle.put("lm.safetensors", safetensors_file(header, bytes(4)))
    bundle.is_refused("cannot have 4 bytes")
