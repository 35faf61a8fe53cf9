"""How differently two signals sound loud: a differentiable relative of PESQ, for the decoder's last steps.

The ideas are ITU-T P.862's (and of its use as a loss, Martín-Doñas et al. 2018): power in bands of equal
width on an auditory scale, Zwicker's loudness over the threshold of hearing, differences below a quarter of
the softer loudness not heard, added sound weighted more than missing sound, bad moments weighted more than
even badness. The bands follow Schroeder's formula, the threshold Terhardt's; time alignment
is left out, as a codec shifts nothing. It is a direction to train in,
not a score: the judge's PESQ is the package ``pesq``'s.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from speechssm.axes import SAMPLE_RATE_HZ

SIZE, HOP = 512, 256
"""32 ms windows, half overlapping."""
BANDS, FIRST_BARK, WIDTHS_BARK = 48, 0.16, (0.318, 0.585)
"""From 16 Hz on; bands widen evenly."""
QUIET_DB, QUIET_SLOPE_DB, QUIET_KNEE_HZ, QUIET_BEND_DB = -4.0, 17.6, 505.0, 6.0
"""Threshold of hearing: flat above the knee, rising by so much an octave below it."""
LEVEL_DB = 99.5
"""Sound pressure level that active speech is played at."""
EXPONENT = 0.23
UNHEARD = 0.25
ADDED_EXPONENT, ADDED_FLOOR, ADDED_LEAST, ADDED_MOST = 1.2, 50.0, 3.0, 12.0
WORST = 45.0
"""Beyond this a frame is simply bad."""
BAND_FLOOR, FRAME_FLOOR = 1e3, 5e3
STRETCH, STRETCH_HOP, STRETCH_NORM = 20, 10, 6.0
"""Frames of a moment (about a third of a second), their hop, and the norm over them."""
EVEN_WEIGHT, ADDED_WEIGHT = 0.1, 0.0309


@lru_cache
def _filters(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(bins, bands) power weights; of each band (bands,) its threshold as power, exponent and width in Bark."""
    hz = np.arange(SIZE // 2 + 1) * (SAMPLE_RATE_HZ / SIZE)
    width = np.linspace(*WIDTHS_BARK, BANDS)
    edges = FIRST_BARK + np.concatenate([[0.0], np.cumsum(width)])
    # A bin's power is spread over its own width, so that the narrow low bands are not empty.
    low, high = (_bark(np.maximum(hz + side * hz[1], 0)) for side in (-0.5, 0.5))
    overlap = np.minimum(high[:, None], edges[None, 1:]) - np.maximum(low[:, None], edges[None, :-1])
    weights = np.maximum(overlap, 0) / (high - low)[:, None]
    centre = (edges[:-1] + edges[1:]) / 2
    centre_hz = np.interp(centre, _bark(hz), hz)
    rise_db = QUIET_SLOPE_DB * np.log2(QUIET_KNEE_HZ / centre_hz)
    quiet_db = QUIET_DB + QUIET_BEND_DB * np.logaddexp(0, rise_db / QUIET_BEND_DB)
    exponent = EXPONENT * np.where(centre < 4, np.minimum(2, 6 / (centre + 2)) ** 0.15, 1)
    threshold = 10 ** (quiet_db / 10)
    a, b, c, d = (
        torch.from_numpy(x.astype(np.float32)).to(device) for x in (weights, threshold, exponent, width)
    )
    return a, b, c, d


def _bark(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 13 * np.arctan(0.76e-3 * hz) + 3.5 * np.arctan((hz / 7500) ** 2)


def powers(audio: Tensor, gain: Tensor) -> Tensor:
    """audio (b,n) times gain (b,1) -> band powers (b,frames,bands)."""
    weights, *_ = _filters(str(audio.device))
    window = torch.hann_window(SIZE, device=audio.device)
    z = torch.stft(audio * gain, SIZE, HOP, window=window, center=False, return_complex=True)
    power: Tensor = (z.real.square() + z.imag.square()).transpose(1, 2) @ weights
    return power


def loud(power: Tensor) -> Tensor:
    """Zwicker's loudness of band powers (b,frames,bands); 0 at and below the threshold."""
    _, threshold, exponent, _ = _filters(str(power.device))
    scale = (threshold / 0.5) ** exponent * 0.187
    return F.relu(scale * ((0.5 + 0.5 * power / threshold) ** exponent - 1))


def disturbance(made: Tensor, real: Tensor) -> Tensor:
    """made, real (b,n) float32, full scale 1 -> how far apart they sound (b,); 0 where they are one."""
    *_, width = _filters(str(real.device))
    # Level: mean power in the louder half of the frames, as a pressure level; both get the recording's gain.
    with torch.no_grad():
        unit = torch.ones_like(real[:, :1])
        total = powers(real, unit).sum(-1)
        active = total.topk(max(1, total.shape[1] // 2), 1).values.mean(1, keepdim=True).clamp_min(1e-6)
        gain = (10 ** (LEVEL_DB / 10) / active).sqrt()
    a, b = _evened(powers(made, gain), powers(real, gain))
    loud_a, loud_b = loud(a), loud(b)
    apart = (loud_a - loud_b).abs()
    heard = F.relu(apart - UNHEARD * torch.minimum(loud_a, loud_b))
    ratio = ((a + ADDED_FLOOR) / (b + ADDED_FLOOR)) ** ADDED_EXPONENT
    added = torch.where(ratio < ADDED_LEAST, torch.zeros_like(ratio), ratio.clamp(max=ADDED_MOST))
    even = ((heard * width).square().sum(-1) * width.sum() + 1e-12).sqrt()
    more = (heard * added * width).sum(-1)
    soft = ((b.sum(-1) + 1e5) / 1e7) ** 0.04
    parts = [_over_time((x / soft).clamp(max=WORST)) for x in (even, more)]
    return EVEN_WEIGHT * parts[0] + ADDED_WEIGHT * parts[1]


def _evened(made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Band powers (b,frames,bands) without what a listener adapts to: a lasting colour, slow changes of level."""
    colour = (made.mean(1, keepdim=True) + BAND_FLOOR) / (real.mean(1, keepdim=True) + BAND_FLOOR)
    real = real * colour.clamp(0.01, 100)
    level = (real.sum(-1, keepdim=True) + FRAME_FLOOR) / (made.sum(-1, keepdim=True) + FRAME_FLOOR)
    level = torch.cat([level[:, :1], 0.8 * level[:, 1:] + 0.2 * level[:, :-1]], 1)
    return made * level.clamp(3e-4, 5), real


def _over_time(frames: Tensor) -> Tensor:
    """(b,frames) -> (b,): the norm of six inside a moment, root mean square over moments."""
    if frames.shape[1] < STRETCH:
        frames = F.pad(frames, (0, STRETCH - frames.shape[1]))
    # The sixth power of less has no gradient in float32.
    moments = frames.clamp_min(1e-3).unfold(1, STRETCH, STRETCH_HOP)
    each = (moments**STRETCH_NORM).mean(-1) ** (1 / STRETCH_NORM)
    return each.square().mean(1).sqrt()
