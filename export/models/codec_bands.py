"""Fixed arrays of the codec: mel bands, synthesis window, and the gain that makes seeded weights audible."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.bundle.shapes.codec import CodecShape

GAIN_POWER = 32
"""The decoder's gain is (1 + m/32)^32, an exp made of multiplications."""


def band_interpolation(shape: CodecShape) -> NDArray[np.float32]:
    """(bands, bins): weights that interpolate a curve given at mel-spaced centres; columns sum to one."""
    hz = np.arange(shape.bins) * (SAMPLE_RATE_HZ / shape.fft)
    position = _mel(hz) / _mel(SAMPLE_RATE_HZ / 2) * (shape.bands - 1)
    left = np.minimum(position.astype(np.int64), shape.bands - 2)
    share = position - left
    weights = np.zeros((shape.bands, shape.bins))
    weights[left, np.arange(shape.bins)] = 1 - share
    weights[left + 1, np.arange(shape.bins)] += share
    made: NDArray[np.float32] = weights.astype(np.float32)
    return made


def band_analysis(shape: CodecShape) -> NDArray[np.float32]:
    """(bins, bands): mean power of the bins around each mel centre. A band narrower than a bin stays zero."""
    weights = band_interpolation(shape).astype(np.float64).T
    made: NDArray[np.float32] = (weights / np.maximum(weights.sum(axis=0), 1e-3)).astype(np.float32)
    return made


def synthesis_window(shape: CodecShape) -> NDArray[np.float32]:
    """(fft,): periodic Hann, scaled so that the overlapped windows sum to one."""
    phase = 2 * np.pi * np.arange(shape.fft) / shape.fft
    made: NDArray[np.float32] = ((0.5 - 0.5 * np.cos(phase)) * 2 / shape.hops).astype(np.float32)
    return made


def gain_bias(shape: CodecShape, rms: float) -> float:
    """The m at which unit coefficients of every bin overlap to audio of this root mean square."""
    window = synthesis_window(shape).astype(np.float64)
    unit = float(np.sqrt(np.square(window).sum() / shape.fft * shape.hops))
    return float(GAIN_POWER * ((rms / unit) ** (1 / GAIN_POWER) - 1))


def _mel(hz: Any) -> Any:
    return 2595.0 * np.log10(1.0 + hz / 700.0)
