"""A header that is not a table of tensors: other JSON, nested deep, not text, a million names."""

import pytest

from .attack import HostileBundle, safetensors_file

HEADERS = [
    b"[]",
    b"1",
    b"nul",
    b"\xff\xff",
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b'{"a": 1}',
    b'{"a": {}}',
    b'{"a": []}',
    b'{"a": "x"}',
]


@pytest.mark.parametrize("header", HEADERS)
def test_refused(bundle: HostileBundle, header: bytes) -> None:
    bundle.put("lm.safetensors", safetensors_file(header))
    bundle.is_refused("lm.safetensors")


def test_many_names(bundle: HostileBundle) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    bundle.put("lm.safetensors", safetensors_file({f"t{i}": entry for i in range(100_001)}))
    bundle.is_refused("lm.safetensors")
