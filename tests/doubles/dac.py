"""Descript's audio codec as plain PyTorch in its own names, small: what the converted graphs are held to."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm


class Snake(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(0.5 + torch.rand(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)


def conv(*given: int, **fields: int) -> nn.Module:
    return weight_norm(nn.Conv1d(*given, **fields))  # type: ignore[arg-type]


class Residual(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Snake(width), conv(width, width, 7, dilation=dilation, padding=3 * dilation), Snake(width),
            conv(width, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Block(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y


class Encoder(nn.Module):
    def __init__(self, width: int, strides: list[int], latent: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(1, width, 7, padding=3)]
        for stride in strides:
            parts = [*(Residual(width, d) for d in (1, 3, 9)), Snake(width)]
            down = conv(width, 2 * width, 2 * stride, stride=stride, padding=math.ceil(stride / 2))
            layers.append(Block(*parts, down))
            width *= 2
        self.block = nn.Sequential(*layers, Snake(width), conv(width, latent, 3, padding=1))


class Decoder(nn.Module):
    def __init__(self, width: int, strides: list[int], latent: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(latent, width, 7, padding=3)]
        for stride in strides:
            up = nn.ConvTranspose1d(width, width // 2, 2 * stride, stride, padding=math.ceil(stride / 2))
            layers.append(Block(Snake(width), weight_norm(up), *(Residual(width // 2, d) for d in (1, 3, 9))))
            width //= 2
        self.model = nn.Sequential(*layers, Snake(width), conv(width, 1, 7, padding=3), nn.Tanh())


class Level(nn.Module):
    def __init__(self, latent: int, codes: int, size: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = conv(latent, size, 1), conv(size, latent, 1)
        self.codebook = nn.Embedding(codes, size)


class Quantizer(nn.Module):
    def __init__(self, levels: int, latent: int, codes: int, size: int) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(Level(latent, codes, size) for _ in range(levels))


class DAC(nn.Module):
    """The layout of ``dac.DAC``; strides of the real 16 kHz model, widths of a small one."""

    def __init__(self, levels: int = 3, codes: int = 16, latent: int = 12, size: int = 4) -> None:
        super().__init__()
        self.encoder = Encoder(4, [2, 4, 5, 8], latent)
        self.decoder = Decoder(32, [8, 5, 4, 2], latent)
        self.quantizer = Quantizer(levels, latent, codes, size)

    def encode(self, audio: Tensor) -> Tensor:
        """audio (b,n) -> codes (b,q,f)."""
        left, chosen = self.encoder.block(audio[:, None]), []
        for level in self.quantizer.quantizers:
            assert isinstance(level, Level)
            small = nn.functional.normalize(level.in_proj(left), dim=1)
            book = nn.functional.normalize(level.codebook.weight)
            code = torch.einsum("bkf,ck->bfc", small, book).argmax(-1)
            chosen.append(code)
            left = left - level.out_proj(level.codebook(code).transpose(1, 2))
        return torch.stack(chosen, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes (b,q,f) -> audio (b,n)."""
        total: Tensor | float = 0.0
        for i, level in enumerate(self.quantizer.quantizers):
            assert isinstance(level, Level)
            total = total + level.out_proj(level.codebook(codes[:, i]).transpose(1, 2))
        audio: Tensor = self.decoder.model(total)[:, 0]
        return audio
