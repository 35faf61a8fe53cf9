"""The first blocks of the Whisper-base encoder in plain torch: the tokenizer's teacher.

16 kHz audio -> 80 log-mel at 100 Hz -> two convolutions (to 50 Hz) -> pre-norm Transformer blocks,
512 wide, 8 heads. The output of block 4 ("h3") explains phones best (shared facts, section 4); the
final layer is near useless for units.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .ctranslate2 import read_arrays

BLOCKS = 4
HEADS = 8
WIDTH = 512
LONGEST_SAMPLES = 480_000
"""30 s: the position table ends there."""
FFT, HOP, MELS = 400, 160, 80


def mel_filters() -> Tensor:
    """Slaney-normalised mel filters of Whisper, (80, 201)."""
    bins = np.linspace(0, 8000, FFT // 2 + 1)

    def to_mel(hz: np.ndarray) -> np.ndarray:
        return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1) / 1000) / np.log(6.4))

    def to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    edges = to_hz(np.linspace(0, to_mel(np.array(8000.0)), MELS + 2))
    rise = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(filters.astype(np.float32))


class WhisperBlocks(nn.Module):
    """Whisper-base encoder up to block ``BLOCKS``; weights are read, never trained."""

    def __init__(self, model_bin: Path) -> None:
        super().__init__()
        arrays = read_arrays(model_bin)
        wanted = ("encoder/conv", "encoder/position", *(f"encoder/layer_{i}/" for i in range(BLOCKS)))
        self.names: dict[str, str] = {}
        for name, array in arrays.items():
            if name.startswith(wanted):
                key = name.replace("/", "__")
                self.register_buffer(key, torch.from_numpy(array.astype(np.float32)))
        self.register_buffer("filters", mel_filters())
        self.register_buffer("window", torch.hann_window(FFT))

    def _w(self, name: str) -> Tensor:
        return self.get_buffer(f"encoder/{name}".replace("/", "__"))

    def mel(self, audio: Tensor) -> Tensor:
        """Audio (b, n) -> Whisper's log-mel (b, 80, n / 160)."""
        spectrum = torch.stft(audio, FFT, HOP, window=self.window, return_complex=True)[..., :-1]
        mel = self.filters @ spectrum.abs().square()
        log = mel.clamp(min=1e-10).log10()
        log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8)
        return (log + 4) / 4

    def forward(self, audio: Tensor) -> Tensor:
        """Audio (b, n), n at most 480 000 -> h3 (b, ceil(n / 320), 512) at 50 Hz."""
        x = F.gelu(F.conv1d(self.mel(audio), self._w("conv1/weight"), self._w("conv1/bias"), padding=1))
        x = F.gelu(F.conv1d(x, self._w("conv2/weight"), self._w("conv2/bias"), stride=2, padding=1))
        x = x.transpose(1, 2)
        x = x + self._w("position_encodings/encodings")[: x.shape[1]]
        for i in range(BLOCKS):
            x = x + self._attention(self._norm(x, f"layer_{i}/self_attention"), f"layer_{i}/self_attention")
            y = self._linear(self._norm(x, f"layer_{i}/ffn"), f"layer_{i}/ffn/linear_0")
            x = x + self._linear(F.gelu(y), f"layer_{i}/ffn/linear_1")
        return x

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            x, (WIDTH,), self._w(f"{name}/layer_norm/gamma"), self._w(f"{name}/layer_norm/beta")
        )

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._w(f"{name}/weight"), self._w(f"{name}/bias"))

    def _attention(self, x: Tensor, name: str) -> Tensor:
        b, f, _ = x.shape
        parts = self._linear(x, f"{name}/linear_0").view(b, f, 3, HEADS, WIDTH // HEADS)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self._linear(y.transpose(1, 2).reshape(b, f, WIDTH), f"{name}/linear_1")


def token_rate(h3: Tensor, tokens: int) -> Tensor:
    """50 Hz frames (b, f, 512) -> means of pairs (b, tokens, 512) at 25 Hz; an odd last frame is repeated."""
    if h3.shape[1] < 2 * tokens:
        h3 = torch.cat([h3, h3[:, -1:].expand(-1, 2 * tokens - h3.shape[1], -1)], dim=1)
    return h3[:, : 2 * tokens].unflatten(1, (tokens, 2)).mean(2)
