"""Weights that are NaN or infinite: what they touch is noise for ever, and looks like a result."""

import numpy as np
import pytest

from speechssm.bundle import tensors

from .attack import HostileBundle


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["lm", "tokenizer", "acoustic", "codec"])
def test_float32(bundle: HostileBundle, part: str, value: float, rng: np.random.Generator) -> None:
    entries = tensors.read_header(bundle.path(f"{part}.safetensors"))
    entry = list(entries.values())[int(rng.integers(len(entries)))]
    at = entry.offset + 4 * int(rng.integers(entry.length // 4))
    with bundle.weights(part) as content:
        content[at : at + 4] = np.float32(value).tobytes()
    bundle.is_refused("is not finite")


@pytest.mark.parametrize(
    ("dtype", "bits"), [("F16", 0x7C00), ("F16", 0xFE01), ("BF16", 0x7F80), ("BF16", 0xFFC0)]
)
def test_half(dtype: str, bits: int, rng: np.random.Generator) -> None:
    """The halves, by their bits; control: the largest number is finite."""
    for value, finite in ((bits, False), (0x7BFF if dtype == "F16" else 0x7F7F, True)):
        block = rng.integers(0, 0x3C00, 999).astype(np.uint16)
        block[int(rng.integers(999))] = value
        assert tensors.finite(block.tobytes(), dtype) is finite
