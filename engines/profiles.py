"""The sizes an engine is tuned for, and from them the shape of every input. Pure arithmetic.

A graph's axes are letters; rows b, tokens t and frames f are free, samples n follow from them.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from speechssm.axes import FRAME_SAMPLES, TOKEN_FRAMES, TOKEN_SAMPLES
from speechssm.bundle import GraphEntry, Manifest
from speechssm.bundle.shapes import Shape
from speechssm.errors import SettingsError

from .key import AxisRange

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, likeliest and largest shape of an input."""


class Profiles(Shape):
    """Ranges of the free axes. ``rows`` are those of a step, ``batch`` those of every other graph."""

    rows: AxisRange = Field(default=AxisRange(low=1, likely=1, high=64))
    batch: AxisRange = Field(default=AxisRange(low=1, likely=1, high=8))
    tokens: AxisRange = Field(default=AxisRange(low=1, likely=128, high=128))
    """Of a prefill chunk."""
    frames: AxisRange = Field(default=AxisRange(low=1, likely=100, high=100))
    """Of one call of the codec's decoder."""


def parse_range(option: str, text: str) -> AxisRange:
    """``8``, ``1,64`` or ``1,8,64`` as a range. Raises SettingsError naming the option."""
    try:
        numbers = [int(part) for part in text.split(",")]
        if not 1 <= len(numbers) <= 3:
            raise ValueError
        low, high = numbers[0], numbers[-1]
        return AxisRange(low=low, likely=numbers[1] if len(numbers) == 3 else high, high=high)
    except ValueError as error:
        raise SettingsError(
            f"{option} is {text!r}: give the smallest, likeliest and largest size in ascending order, such as 1,8,64"
        ) from error


def graph_profile(manifest: Manifest, graph: str, profiles: Profiles) -> dict[str, AxisRange]:
    """Range of every free axis letter of ``graph``."""
    windows = manifest.windows
    if graph == "lm_step":
        return {"b": profiles.rows}
    ranges = {"b": profiles.batch}
    if graph == "lm_chunk":
        return ranges | {"t": profiles.tokens}
    if graph == "acoustic_prompt":
        return ranges
    if graph == "acoustic":
        high = windows.window_tokens
        tokens = AxisRange(low=windows.buckets[0], likely=high, high=high)
        return ranges | {"t": tokens, "f": _times(tokens, TOKEN_FRAMES)}
    if graph == "tokenizer":
        tokens = AxisRange(low=1, likely=windows.window_tokens, high=windows.window_tokens)
        return ranges | {"t": tokens, "n": _times(tokens, TOKEN_SAMPLES)}
    if graph == "codec_encode":
        prefix = windows.prefix_tokens * TOKEN_FRAMES
        frames = AxisRange(low=1, likely=prefix, high=max(prefix, profiles.frames.high))
    else:
        frames = profiles.frames
    return ranges | {"f": frames, "n": _times(frames, FRAME_SAMPLES)}


def _times(size: AxisRange, factor: int) -> AxisRange:
    return AxisRange(low=size.low * factor, likely=size.likely * factor, high=size.high * factor)


def input_shapes(entry: GraphEntry, ranges: Mapping[str, AxisRange]) -> dict[str, Shapes]:
    """Smallest, likeliest and largest shape of every input that has a free axis.

    Raises SettingsError for an axis that no range covers, such as a cache that grows.
    """
    shapes: dict[str, Shapes] = {}
    for value in entry.inputs:
        free = [axis for axis in value.axes if isinstance(axis, str)]
        for axis in free:
            if axis not in ranges:
                raise SettingsError(
                    f"input {value.name} has a free axis {axis!r}, which no profile of this graph covers: a model "
                    "whose cache grows runs on ONNX Runtime only; export it with --capacity"
                )
        if free:
            small, likely, large = (
                tuple(axis if isinstance(axis, int) else getattr(ranges[axis], which) for axis in value.axes)
                for which in ("low", "likely", "high")
            )
            shapes[value.name] = small, likely, large
    return shapes


def shape_values(manifest: Manifest, graph: str) -> dict[str, tuple[int, int, int]]:
    """Smallest, likeliest and largest value of inputs that sizes inside the graph are computed from."""
    if graph == "acoustic" and manifest.acoustic is not None:
        return {"level": (0, 0, manifest.acoustic.shape.levels - 1)}
    return {}
