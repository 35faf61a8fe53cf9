"""What the codec is trained on: distances between spectrograms at several resolutions.

- log-mel L1, as Descript's codec (arXiv 2306.06546) has it;
- L1 between root-compressed spectra, magnitudes and complex values (the idea of arXiv 2203.15149): the
  complex part is what makes the waveform follow where the bits suffice.

Both are read from one STFT a scale. On two cores a step may draw only some of the scales; the
expectation is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from speechssm.axes import SAMPLE_RATE_HZ

SCALES = ((128, 8), (256, 16), (512, 40), (1024, 80), (2048, 120))
"""(window in samples, mel bands)."""
MEL_FLOOR = 5e-4
COMPLEX_SHARE = 0.3
COMPRESSED_WEIGHT = 3.0


@lru_cache
def _window(size: int, device: str) -> Tensor:
    window = torch.hann_window(size, device=device)
    return window / window.square().sum().sqrt()


@lru_cache
def _mel(size: int, bands: int, device: str) -> Tensor:
    """(bins, bands) triangular weights that average magnitude around mel-spaced centres."""
    hz = np.arange(size // 2 + 1) * (SAMPLE_RATE_HZ / size)
    mel = 2595 * np.log10(1 + hz / 700)
    edges = np.linspace(0, mel[-1], bands + 2)
    rise = (mel[:, None] - edges[None, :-2]) / (edges[1] - edges[0])
    fall = (edges[None, 2:] - mel[:, None]) / (edges[1] - edges[0])
    weights = np.maximum(0, np.minimum(rise, fall))
    return torch.from_numpy((weights / np.maximum(weights.sum(0), 1e-3)).astype(np.float32)).to(device)


def spectrum(audio: Tensor, size: int) -> Tensor:
    """audio (b, n) -> complex (b, bins, frames) at hop size/4; white noise of RMS s has magnitude near s."""
    window = _window(size, str(audio.device))
    return torch.stft(audio, size, size // 4, window=window, center=True, return_complex=True)


def magnitude(z: Tensor) -> Tensor:
    """|z| with a gradient that stays finite at zero."""
    return (z.real.square() + z.imag.square() + 1e-8).sqrt()


def distances(made: Tensor, real: Tensor, size: int, bands: int) -> tuple[Tensor, Tensor]:
    """made, real (b, n) -> (log-mel L1, root-compressed L1) at one scale."""
    weights = _mel(size, bands, str(made.device))
    a, b = spectrum(made, size), spectrum(real, size)
    loud_a, loud_b = magnitude(a), magnitude(b)
    mel = [(m.transpose(1, 2) @ weights + MEL_FLOOR).log() for m in (loud_a, loud_b)]
    root_a, root_b = loud_a.sqrt(), loud_b.sqrt()
    apart = (a.real / root_a - b.real / root_b).abs().mean() + (
        a.imag / root_a - b.imag / root_b
    ).abs().mean()
    compressed = (1 - COMPLEX_SHARE) * (root_a - root_b).abs().mean() + COMPLEX_SHARE * apart
    return (mel[0] - mel[1]).abs().mean(), compressed


def reconstruction(
    made: Tensor, real: Tensor, scales: Sequence[tuple[int, int]] = SCALES
) -> tuple[Tensor, dict[str, Tensor]]:
    """made, real (b, n) float32 -> weighted sum and its parts, averaged over ``scales``."""
    found = [torch.stack(distances(made, real, *scale)) for scale in scales]
    mel, compressed = torch.stack(found).mean(0)
    return mel + COMPRESSED_WEIGHT * compressed, {"mel": mel.detach(), "compressed": compressed.detach()}
