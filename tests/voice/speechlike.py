"""Whether audio could be speech: what silence, noise, a tone or a stuck model would each fail."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ

FRAME = 320
"""20 ms."""


def complaints(audio: NDArray[np.float32], tokens: NDArray[np.int64]) -> list[str]:
    """audio (n) of several seconds and its semantic tokens (t) -> what is unlike speech about them."""
    found = []
    frames = audio[: len(audio) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    loud = 10 * np.log10(np.square(frames).mean(1) + 1e-10)
    if np.percentile(loud, 90) < -45:
        found.append(f"silence: the loudest tenth is at {np.percentile(loud, 90):.0f} dB")
    spread = np.percentile(loud, 95) - np.percentile(loud, 5)
    if spread < 15:
        found.append(f"no pauses: loudness spreads over {spread:.0f} dB")
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=1)))
    hz = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE_HZ)
    voiced = power[loud > np.percentile(loud, 50)].sum(0) * (hz > 80)  # a room may hum
    share = voiced[hz < 4000].sum() / voiced.sum()
    if share < 0.7:
        found.append(f"{share:.0%} of the energy above 80 Hz lies below 4 000 Hz")
    flat = np.exp(np.log(voiced[hz > 80] + 1e-12).mean()) / voiced[hz > 80].mean()
    if flat > 0.4:
        found.append(f"a spectrum as flat as noise: {flat:.2f}")
    sharp = voiced.max() / voiced.sum()
    if sharp > 0.8:
        found.append(f"a tone: {sharp:.0%} of the energy in one band of 50 Hz")
    seconds = len(tokens) / 25
    kinds, changes = len(np.unique(tokens)), float(np.mean(tokens[1:] != tokens[:-1])) * 25
    if kinds < 6 * seconds**0.75:
        found.append(f"{kinds} different units in {seconds:.0f} s")
    if not 4 < changes < 21:
        found.append(f"units change {changes:.1f} times a second")
    return found
