"""Profiles: ranges from text, and the shapes of every input of every graph from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechssm.bundle import GraphEntry, Manifest, open_bundle
from speechssm.bundle.manifest import Value
from speechssm.engines.key import AxisRange
from speechssm.engines.profiles import Profiles, graph_profile, input_shapes, parse_range, shape_values
from speechssm.errors import SettingsError


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return open_bundle(tiny_bundle).manifest


@pytest.mark.parametrize(
    ("text", "found"),
    [("8", (8, 8, 8)), ("1,64", (1, 64, 64)), ("1,8,64", (1, 8, 64)), (" 1, 2 ,3", (1, 2, 3))],
)
def test_ranges_are_read(text: str, found: tuple[int, int, int]) -> None:
    low, likely, high = found
    assert parse_range("--rows", text) == AxisRange(low=low, likely=likely, high=high)


@pytest.mark.parametrize("text", ["", "8,1", "0", "-1", "a", "1,2,3,4", "1,,2", "2,1,3", "1.5"])
def test_bad_ranges_name_the_option(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--rows is .*: give the smallest, likeliest and largest"):
        parse_range("--rows", text)


def test_every_input_of_every_graph_has_a_profile(manifest: Manifest) -> None:
    """No free axis is left out, and sizes that belong together stay together at all three points."""
    profiles = Profiles(
        rows=AxisRange(low=2, likely=5, high=64), batch=AxisRange(low=1, likely=3, high=8),
        tokens=AxisRange(low=4, likely=32, high=200), frames=AxisRange(low=2, likely=50, high=90),
    )  # fmt: skip
    for name, entry in manifest.graphs.items():
        shapes = input_shapes(entry, graph_profile(manifest, name, profiles))
        assert {v.name for v in entry.inputs if any(isinstance(a, str) for a in v.axes)} == shapes.keys()
        for which in range(3):
            sizes: dict[str, int] = {}
            for value in entry.inputs:
                for axis, size in zip(value.axes, shapes.get(value.name, [()] * 3)[which], strict=False):
                    assert size == (axis if isinstance(axis, int) else sizes.setdefault(axis, size))
            assert sizes["b"] == ((2, 5, 64) if name == "lm_step" else (1, 3, 8))[which]
            if name == "acoustic":
                assert sizes["f"] == 2 * sizes["t"]
                assert sizes["t"] == (50, 750, 750)[which]
            if name == "codec_decode":
                assert sizes["f"] == (2, 50, 90)[which]
            if name == "codec_encode":
                assert sizes["n"] == 320 * (1, 150, 150)[which]
            if name == "tokenizer":
                assert sizes["n"] == 640 * (1, 750, 750)[which]
            if name == "lm_chunk":
                assert sizes["t"] == (4, 32, 200)[which]
    assert shape_values(manifest, "acoustic") == {"level": (0, 0, manifest.acoustic.shape.levels - 1)}
    assert shape_values(manifest, "lm_step") == {}


def test_a_cache_that_grows_is_refused() -> None:
    grows = Value(name="in_L00_key", dtype="float32", axes=("b", "s", 1, 8))
    entry = GraphEntry(file="lm_step.onnx", weights=(), inputs=(grows,), outputs=())
    with pytest.raises(SettingsError, match=r"in_L00_key has a free axis 's'.*--capacity"):
        input_shapes(entry, {"b": AxisRange(low=1, likely=1, high=1)})
