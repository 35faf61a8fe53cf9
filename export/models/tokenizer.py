"""The semantic tokenizer as plain PyTorch: 16 kHz audio to 25 Hz tokens, non-causal.

The paper's tokenizer (USM-v2, section 3.1) is a conformer with an ASR auxiliary loss; this one is a
small conformer of the same kind. Log-mel frames at 100 Hz are halved twice by strided projections, so
all layers run at 25 Hz. Attention has no position embedding but a penalty per head that grows with
distance (ALiBi, arXiv 2108.12409, both directions): windows of any length look alike to it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssm.axes import TOKEN_SAMPLES
from speechssm.bundle.shapes import TokenizerShape

from . import log_mel


class FeedForward(nn.Module):
    """LayerNorm, (d, ff), SiLU, (ff, d); the caller adds half of it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b,t,d) -> (b,t,d)."""
        y: Tensor = self.down(F.silu(self.up(self.norm(x))))
        return y


class DistanceAttention(nn.Module):
    """Bidirectional attention whose scores fall by ``slopes[h]`` per token of distance."""

    slopes: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("slopes", torch.from_numpy(distance_slopes(heads)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b,t,d) -> (b,t,d)."""
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        at = torch.arange(t, device=x.device)
        distance = (at[:, None] - at[None]).abs().to(q.dtype)
        bias = -self.slopes.to(q.dtype)[:, None, None] * distance
        # Written out: PyTorch's fused CPU kernel with a mask takes twice as long to train.
        scores = (q * (d // self.heads) ** -0.5) @ k.transpose(-1, -2) + bias
        y = torch.softmax(scores, dim=-1).to(v.dtype) @ v
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, t, d))
        return out


class Convolution(nn.Module):
    """The conformer's convolution module: gated projection, depthwise convolution, norm, projection."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gated = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.inner_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b,t,d) -> (b,t,d)."""
        y = F.glu(self.gated(self.norm(x)), dim=-1)
        y = self.depthwise(y.transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.out(F.silu(self.inner_norm(y)))
        return out


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward (arXiv 2005.08100), pre-norm."""

    def __init__(self, shape: TokenizerShape) -> None:
        super().__init__()
        self.first = FeedForward(shape.width, shape.ff_width)
        self.attention = DistanceAttention(shape.width, shape.heads)
        self.convolution = Convolution(shape.width, shape.kernel)
        self.second = FeedForward(shape.width, shape.ff_width)

    def forward(self, x: Tensor) -> Tensor:
        """(b,t,d) -> (b,t,d)."""
        x = x + 0.5 * self.first(x)
        x = x + self.attention(x)
        x = x + self.convolution(x)
        y: Tensor = x + 0.5 * self.second(x)
        return y


class Tokenizer(nn.Module):
    """``audio (b,n) -> tokens (b,t)``, t = ceil(n/640)."""

    fourier: Tensor
    filters: Tensor

    def __init__(self, shape: TokenizerShape) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("fourier", torch.from_numpy(log_mel.fourier_matrix()), persistent=False)
        self.register_buffer("filters", torch.from_numpy(log_mel.mel_matrix(shape.mels)), persistent=False)
        self.front = nn.Linear(4 * shape.mels, shape.front_width)
        self.middle = nn.Linear(4 * shape.front_width, shape.width)
        self.layers = nn.ModuleList(ConformerLayer(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocab)

    def power(self, audio: Tensor) -> Tensor:
        """Audio (b,n) in [-1,1] -> power spectrum (b, 4t, 241); n is padded with zeros to a multiple of 640."""
        b, n = audio.shape
        tokens = -(-n // TOKEN_SAMPLES)
        audio = F.pad(audio, (log_mel.HOP, tokens * TOKEN_SAMPLES - n + log_mel.HOP))
        hops = audio.view(b, -1, log_mel.HOP)
        frames = torch.cat([hops[:, :-2], hops[:, 1:-1], hops[:, 2:]], dim=-1)
        cosine, sine = torch.split(frames @ self.fourier, log_mel.BINS, dim=-1)
        power: Tensor = cosine.square() + sine.square()
        return power

    def features(self, power: Tensor, filters: Tensor | None = None) -> Tensor:
        """Power (b, 4t, 241) -> level-free log-mel (b, 4t, mels); ``filters`` replaces the mel matrix."""
        mel = power @ (self.filters if filters is None else filters)
        mean = mel.mean(dim=1, keepdim=True)
        mean = mean + log_mel.BAND_SHARE * mean.mean(dim=2, keepdim=True) + log_mel.SILENCE
        return (torch.log(mel / mean + log_mel.FLOOR) - log_mel.CENTRE) / log_mel.SPREAD

    def encode(self, features: Tensor) -> Tensor:
        """Features (b, 4t, mels) -> hidden (b,t,d), normed."""
        x = F.silu(self.front(halve(features)))
        x = self.middle(halve(x))
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.norm(x)
        return y

    def logits(self, audio: Tensor) -> Tensor:
        """Audio (b,n) -> (b,t,v)."""
        y: Tensor = self.head(self.encode(self.features(self.power(audio))))
        return y

    def forward(self, audio: Tensor) -> Tensor:
        """Audio (b,n) float32 in [-1,1] at 16 kHz -> tokens (b,t) int64."""
        return self.logits(audio).argmax(dim=-1)


def halve(x: Tensor) -> Tensor:
    """(b, 2m, c) -> (b, m, 4c): four neighbouring frames every second frame, zeros outside."""
    x = F.pad(x, (0, 0, 1, 1))
    return torch.cat([x[:, 0:-2:2], x[:, 1:-1:2], x[:, 2::2], x[:, 3::2]], dim=-1)


def distance_slopes(heads: int) -> np.ndarray:
    """Score lost per token of distance (h): 1/4, 1/16, ... 1/256, from the nearest-sighted head on."""
    exponents = np.linspace(2, 8, heads) if heads > 1 else np.array([4.0])
    slopes: np.ndarray = np.exp2(-exponents).astype(np.float32)
    return slopes
