"""What can be measured of speech and tokens without any model: silence, repetition, entropy, jumps at joins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ

Audio = NDArray[np.float32]

FRAME = SAMPLE_RATE_HZ // 50
"""Samples of one level measurement: 20 ms."""
QUIET_DB, FLOOR_DB = 35.0, -60.0
"""A frame is silent when it lies so far below the loud ones (95th percentile), or below so much of full scale."""
BANDS = 24
NGRAM = 4


def silent(audio: Audio) -> NDArray[np.bool_]:
    """Which 20 ms frames of (n) are silent."""
    levels = _levels_db(audio)
    if not len(levels):
        return np.zeros(0, bool)
    quiet: NDArray[np.bool_] = levels < max(FLOOR_DB, float(np.quantile(levels, 0.95)) - QUIET_DB)
    return quiet


def silence(audio: Audio) -> float:
    """Share of 20 ms frames of (n) that are silent; 1 for nothing."""
    frames = silent(audio)
    return float(frames.mean()) if len(frames) else 1.0


def repetition(tokens: Sequence[Hashable], n: int = NGRAM) -> float:
    """Share of n-grams that were said before in the same stretch; runs of one token count as one.

    0 when nothing comes twice; towards 1 in a loop.
    """
    said = [t for i, t in enumerate(tokens) if i == 0 or t != tokens[i - 1]]
    grams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def entropy(tokens: Sequence[Hashable]) -> float:
    """Bits a token of the stretch's own distribution."""
    counts = np.array(list(Counter(tokens).values()), np.float64)
    if not len(counts):
        return 0.0
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def jumps(audio: Audio, places: Sequence[int]) -> list[float]:
    """How abruptly the spectrum changes at each sample of ``places``: 1 is as at any other place.

    Distance between the log spectra of the 20 ms before and behind, over the median of that distance at
    places that are no joins, drawn with a fixed seed where the speech is as loud.
    """
    inside = [p for p in places if FRAME <= p <= len(audio) - FRAME]
    if not inside or len(audio) < 10 * FRAME:
        return []
    rng = np.random.default_rng(0)
    others = rng.integers(FRAME, len(audio) - FRAME, 400)
    others = others[[bool(np.abs(np.array(inside) - p).min() > 2 * FRAME) for p in others]]
    loud = np.array([_loudness(audio, int(p)) for p in others])
    usual = [
        _distance(audio, int(p)) for p, level in zip(others, loud, strict=True) if level >= np.median(loud)
    ]
    typical = float(np.median(usual)) if usual else 0.0
    return [_distance(audio, p) / max(typical, 1e-6) for p in inside]


def clicks(audio: Audio, places: Sequence[int]) -> list[float]:
    """Largest second difference within 1 ms of each place, over the largest in the 50 ms around it.

    A click is a step of the waveform: its second difference stands out. 1 or less is none.
    """
    found = []
    near, wide = SAMPLE_RATE_HZ // 1000, SAMPLE_RATE_HZ // 20
    second = np.abs(np.diff(audio, 2))
    for place in places:
        if not wide < place < len(audio) - wide:
            continue
        here = second[place - near : place + near].max()
        around = np.concatenate(
            [second[place - wide : place - near], second[place + near : place + wide]]
        ).max()
        found.append(float(here / max(float(around), 1e-6)))
    return found


def _levels_db(audio: Audio) -> NDArray[np.float64]:
    frames = len(audio) // FRAME
    power = np.square(audio[: frames * FRAME].astype(np.float64)).reshape(frames, FRAME).mean(1)
    levels: NDArray[np.float64] = 10 * np.log10(power + 1e-12)
    return levels


def _loudness(audio: Audio, place: int) -> float:
    return float(np.square(audio[place - FRAME : place + FRAME]).mean())


def _distance(audio: Audio, place: int) -> float:
    before, behind = (_bands(audio[at : at + FRAME]) for at in (place - FRAME, place))
    return float(np.sqrt(np.square(before - behind).mean()))


def _bands(frame: Audio) -> NDArray[np.float64]:
    power = np.abs(np.fft.rfft(frame * np.hanning(len(frame)))) ** 2
    edges = np.unique(np.geomspace(1, len(power), BANDS + 1).astype(int))
    sums = np.add.reduceat(power, edges[:-1])
    bands: NDArray[np.float64] = 10 * np.log10(sums + 1e-9)
    return bands
