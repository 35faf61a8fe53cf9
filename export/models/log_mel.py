"""The tokenizer's front end as arrays: what a log-mel frame is, shared by the model and the graph.

A frame is 480 samples (30 ms) every 160 (10 ms), centred on its hop: hop i sees samples 160i-160 to
160i+319. Three hops make a frame, so framing is one reshape and a concatenation of three shifted
views, and the Fourier transform is one product with a constant matrix: operators every engine has.

The spectrum is divided by its own mean over the window, band by band, before the logarithm. That
takes away the recording's level and most of microphone and vocal-tract colour, and a band that holds
nothing (digital silence, telephone speech) is held up by a share of the overall mean, so the result
is finite for any finite audio.
"""

from __future__ import annotations

import numpy as np

from speechssm.axes import SAMPLE_RATE_HZ

HOP = 160
"""Samples between frames: 100 Hz."""
HOPS = 3
"""Hops in a frame."""
FRAME = HOP * HOPS
BINS = FRAME // 2 + 1
TOKEN_HOPS = 4
"""Frames per token: 100 Hz to 25 Hz."""

BAND_SHARE = 1e-4
"""Part of the mean power of all bands that holds up a band's own mean."""
SILENCE = 1e-10
"""Power that stands for digital silence; far below 16-bit rounding noise."""
FLOOR = 1e-5
"""Power below a band's mean (-50 dB) where the logarithm flattens."""
CENTRE, SPREAD = -4.0, 4.0
"""Fixed shift and scale that bring the logarithm near zero mean and unit variance."""


def window() -> np.ndarray:
    """Hann window (480) float32."""
    n = np.arange(FRAME)
    hann: np.ndarray = (0.5 - 0.5 * np.cos(2 * np.pi * (n + 0.5) / FRAME)).astype(np.float32)
    return hann


def cosine_table() -> np.ndarray:
    """cos(2 pi j / 480) (480) float32; sin is the same table a quarter later."""
    table: np.ndarray = np.cos(2 * np.pi * np.arange(FRAME) / FRAME).astype(np.float32)
    return table


def fourier_matrix() -> np.ndarray:
    """Windowed real DFT (480, 482) float32: 241 cosine columns, then 241 sine columns."""
    phase = np.outer(np.arange(FRAME), np.arange(BINS)) % FRAME
    table = cosine_table()
    both = np.concatenate([table[phase], table[(phase + 3 * FRAME // 4) % FRAME]], axis=1)
    matrix: np.ndarray = both * window()[:, None]
    return matrix


def mel_matrix(mels: int, warp: float = 1.0) -> np.ndarray:
    """Triangular mel filters (241, mels) float32, each of unit sum, from 30 Hz to 7600 Hz.

    ``warp`` multiplies the filters' frequencies (kept below 8 kHz): training moves formants with it.
    """

    def mel(hz: np.ndarray) -> np.ndarray:
        return 2595 * np.log10(1 + hz / 700)

    edges_mel = np.linspace(mel(np.array(30.0)), mel(np.array(7600.0)), mels + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1) * warp
    edges = np.minimum(edges, SAMPLE_RATE_HZ / 2 - 2 * (mels + 1 - np.arange(mels + 2)))
    # Each side is at least one bin wide, so that no low filter falls between two bins.
    low = np.minimum(edges[:-2], edges[1:-1] - SAMPLE_RATE_HZ / FRAME)
    high = np.maximum(edges[2:], edges[1:-1] + SAMPLE_RATE_HZ / FRAME)
    bins = np.linspace(0, SAMPLE_RATE_HZ / 2, BINS)[:, None]
    rise = (bins - low) / (edges[1:-1] - low)
    fall = (high - bins) / (high - edges[1:-1])
    filters = np.maximum(0, np.minimum(rise, fall))
    matrix: np.ndarray = (filters / filters.sum(axis=0)).astype(np.float32)
    return matrix
