"""Altered copies of speech for training: other speeds, pitches, formants, rooms and microphones.

A crop of a recording is resampled by a random speed (which moves tempo, pitch and formants together),
and the mel filters are warped by an independent factor (which moves pitch and formants at a fixed
tempo). Their mixture covers each change alone: speed 1.1 under warp 1.1 is a slower reader of the same
voice. Labels follow the original time of each token, so one sound keeps one label in every voice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.export.models import log_mel


@dataclass(frozen=True)
class Views:
    """How far views wander. ``speed`` and ``warp`` are the largest factors (and 1/factor the smallest)."""

    speed: float = 1.18
    warp: float = 1.2
    warps: int = 17
    noise: float = 0.5
    room: float = 0.25
    narrow: float = 0.1
    mask: float = 0.3


def speeded(audio: NDArray[np.float32], samples: int, start: float, speed: float) -> NDArray[np.float32]:
    """``samples`` new samples (n) of ``audio`` from ``start`` on, read ``speed`` times faster; zeros outside."""
    at = start + speed * np.arange(samples)
    low = at.astype(np.int64)
    part = (at - low).astype(np.float32)
    safe = np.clip(low, 0, len(audio) - 2)
    heard = audio[safe] * (1 - part) + audio[safe + 1] * part
    heard[(low < 0) | (low > len(audio) - 2)] = 0
    return heard.astype(np.float32)


def degraded(audio: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """Noise and rooms on some rows of (b,n)."""
    b, n = audio.shape
    level = audio.square().mean(1, keepdim=True).sqrt()
    some = torch.rand(b, 1, generator=generator) < views.noise
    below_db = 12 + 33 * torch.rand(b, 1, generator=generator)
    white = torch.randn(b, n, generator=generator)
    brown = F.avg_pool1d(white[:, None], 5, 1, 2)[:, 0] * 5**0.5
    colour = torch.rand(b, 1, generator=generator)
    noise = colour * white + (1 - colour) * brown
    audio = audio + some * noise * level * 10 ** (-below_db / 20)
    for row in (torch.rand(b, generator=generator) < views.room).nonzero()[:, 0].tolist():
        taps = int(SAMPLE_RATE_HZ * 0.25)
        decay = 0.02 + 0.08 * torch.rand(1, generator=generator)
        tail = torch.randn(taps, generator=generator) * torch.exp(
            -torch.arange(taps) / SAMPLE_RATE_HZ / decay
        )
        tail *= (0.1 + 0.5 * torch.rand(1, generator=generator)) / tail.norm()
        tail[0] = 1
        size = 1 << (n + taps - 1).bit_length()
        audio[row] = torch.fft.irfft(torch.fft.rfft(audio[row], size) * torch.fft.rfft(tail, size), size)[:n]
    return audio


def filter_banks(mels: int, views: Views) -> Tensor:
    """Warped mel filters (warps, 241, mels), from the smallest factor to the largest."""
    factors = np.exp(np.linspace(-np.log(views.warp), np.log(views.warp), views.warps))
    return torch.from_numpy(np.stack([log_mel.mel_matrix(mels, float(f)) for f in factors]))


def narrowed(power: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """Some rows of a power spectrum (b, 4t, 241) lose all above 3.4 to 7 kHz."""
    some = torch.rand(len(power), generator=generator) < views.narrow
    cut = torch.randint(102, 210, (len(power),), generator=generator)
    cut[~some] = log_mel.BINS
    return power * (torch.arange(log_mel.BINS) < cut[:, None])[:, None].to(power.device)


def masked(features: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """Some rows of features (b, 4t, mels) lose a band of up to 12 mels and a stretch of up to 0.16 s."""
    b, f, m = features.shape
    keep = torch.ones(b, f, m, dtype=torch.bool)
    for row in (torch.rand(b, generator=generator) < views.mask).nonzero()[:, 0].tolist():
        low = int(torch.randint(m, (1,), generator=generator))
        keep[row, :, low : low + int(torch.randint(1, 12, (1,), generator=generator))] = False
        at = int(torch.randint(f, (1,), generator=generator))
        keep[row, at : at + int(torch.randint(1, 16, (1,), generator=generator))] = False
    return features * keep.to(features.device)
