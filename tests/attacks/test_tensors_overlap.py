"""Tensors that share bytes, leave holes where something may hide, or run past the end."""

import pytest

from .attack import HostileBundle, safetensors_file


def entry(start: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}


@pytest.mark.parametrize("spans", [((0, 8), (4, 12)), ((0, 8), (0, 8)), ((0, 8), (0, 4)), ((0, 16), (4, 8))])
def test_overlap(bundle: HostileBundle, spans: tuple[tuple[int, int], ...]) -> None:
    bundle.put(
        "lm.safetensors", safetensors_file({f"t{i}": entry(*s) for i, s in enumerate(spans)}, bytes(16))
    )
    bundle.is_refused("lm.safetensors")


@pytest.mark.parametrize(
    "spans", [((4, 8),), ((0, 4), (8, 12)), ((0, 4), (4, 8)), ((0, 16),), ((0, 1 << 40),)]
)
def test_hole_or_past_the_end(bundle: HostileBundle, spans: tuple[tuple[int, int], ...]) -> None:
    bundle.put(
        "lm.safetensors", safetensors_file({f"t{i}": entry(*s) for i, s in enumerate(spans)}, bytes(12))
    )
    bundle.is_refused("lm.safetensors")
