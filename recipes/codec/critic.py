"""The spectrogram discriminator of the last fifth: small 2-D convolutions over complex spectra.

After EnCodec's multi-scale STFT discriminator (arXiv 2210.13438) with a third of its width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .losses import magnitude, spectrum

WINDOWS = (320, 640, 1280)
CHANNELS = 16
COMPRESSION = 0.5


class Critic(nn.Module):
    """audio (b, n) -> per scale, (scores, features of every layer)."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_Scale(size) for size in WINDOWS)

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        """Layer outputs of every scale; the last of each is its scores."""
        return [scale(audio) for scale in self.scales]


class _Scale(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        c = CHANNELS
        plan = (
            (2, c, (1, 1)),
            (c, c, (2, 1)),
            (c, 2 * c, (2, 1)),
            (2 * c, 2 * c, (2, 1)),
            (2 * c, 2 * c, (1, 1)),
        )
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(i, o, (5, 3), stride=stride, padding=(2, 1))) for i, o, stride in plan
        )
        self.score = weight_norm(nn.Conv2d(2 * c, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> list[Tensor]:
        z = spectrum(audio, self.size)
        shrink = magnitude(z).add(1e-4).pow(COMPRESSION - 1)
        x = torch.stack([z.real * shrink, z.imag * shrink], dim=1)
        seen = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
            seen.append(x)
        return [*seen, self.score(x)]


def critic_loss(real: list[list[Tensor]], made: list[list[Tensor]]) -> Tensor:
    """Hinge loss of the critic."""
    pairs = zip(real, made, strict=True)
    return torch.stack(
        [F.relu(1 - r[-1].float()).mean() + F.relu(1 + m[-1].float()).mean() for r, m in pairs]
    ).mean()


def codec_loss(real: list[list[Tensor]], made: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """(adversarial, feature matching) losses of the codec; features relative to the real ones' size."""
    fool = torch.stack([F.relu(1 - m[-1].float()).mean() for m in made]).mean()
    apart = [
        (a.detach().float() - b.float()).abs().mean() / a.detach().float().abs().mean().clamp_min(1e-3)
        for r, m in zip(real, made, strict=True)
        for a, b in zip(r[:-1], m[:-1], strict=True)
    ]
    return fool, torch.stack(apart).mean()
