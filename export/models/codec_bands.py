"""Fixed arrays of the codec: mel bands, synthesis window, and the gain that makes seeded weights audible."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.bundle.shapes.codec import CodecShape

GAIN_POWER = 32
"""The decoder's gain is (1 + m/32)^32, an exp made of multiplications."""


def band_analysis(shape: CodecShape) -> NDArray[np.float32]:
    """(bins, bands): mean power of the bins around each mel-spaced centre, triangles that overlap by half.

    A band narrower than a bin may stay zero.
    """
    hz = np.arange(shape.bins) * (SAMPLE_RATE_HZ / shape.fft)
    position = _mel(hz) / _mel(SAMPLE_RATE_HZ / 2) * (shape.bands - 1)
    weights = np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(shape.bands)))
    made: NDArray[np.float32] = (weights / np.maximum(weights.sum(axis=0), 1e-3)).astype(np.float32)
    return made


def synthesis_window(shape: CodecShape) -> NDArray[np.float32]:
    """(fft,): periodic Hann, scaled so that the overlapped windows sum to one."""
    phase = 2 * np.pi * np.arange(shape.fft) / shape.fft
    made: NDArray[np.float32] = ((0.5 - 0.5 * np.cos(phase)) * 2 / shape.hops).astype(np.float32)
    return made


def gain_bias(shape: CodecShape, rms: float) -> float:
    """The m at which unit directions of every bin overlap to audio of this root mean square."""
    window = synthesis_window(shape).astype(np.float64)
    unit = float(np.sqrt(np.square(window).sum() / shape.fft * shape.hops / 2))
    return float(GAIN_POWER * ((rms / unit) ** (1 / GAIN_POWER) - 1))


def _mel(hz: Any) -> Any:
    return 2595.0 * np.log10(1.0 + hz / 700.0)
