"""Something else under the name of a graph: nothing, text, an archive, ONNX Runtime's own format, a cut file."""

import numpy as np
import pytest

from speechssm.bundle import read_manifest
from speechssm.bundle.onnx_check import check_bytes, tensor_ranges
from speechssm.errors import BundleError

from .attack import HostileBundle

CONTENTS = [
    b"",
    b"\x00",
    b"hello world, this is text",
    b"PK\x03\x04" + bytes(100),
    b"\x18\x00\x00\x00ORTM" + bytes(100),
    b"\x7fELF" + bytes(100),
    b"\x80\x04\x95" + bytes(50),
    b"\xff" * 64,
]


@pytest.mark.parametrize("content", CONTENTS)
def test_other(bundle: HostileBundle, content: bytes) -> None:
    bundle.put("lm_step.onnx", content)
    bundle.is_refused("lm_step.onnx")


def test_cut(bundle: HostileBundle, rng: np.random.Generator) -> None:
    """Cut anywhere: never taken for a smaller graph."""
    content = bundle.path("lm_step.onnx").read_bytes()
    entry = read_manifest(bundle.folder)[0].graphs["lm_step"]
    ranges = {"lm.safetensors": tensor_ranges(bundle.path("lm.safetensors"))}
    check_bytes(content, "whole", entry, ranges)
    for size in rng.integers(0, len(content), 100):
        with pytest.raises(BundleError):
            check_bytes(content[:size], "cut", entry, ranges)
    bundle.put("lm_step.onnx", content[: int(rng.integers(len(content)))])
    bundle.is_refused("lm_step.onnx")
