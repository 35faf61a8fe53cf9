"""A safetensors header that claims more than the file or the limit: readers once allocated what it said."""

import struct

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize("length", [0, 100, 1 << 24, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_refused(bundle: HostileBundle, length: int) -> None:
    bundle.put("lm.safetensors", struct.pack("<Q", length) + b"{}".ljust(50))
    bundle.is_refused("is not a safetensors file")


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_too_short(bundle: HostileBundle, content: bytes) -> None:
    bundle.put("lm.safetensors", content)
    bundle.is_refused("is not a safetensors file")
