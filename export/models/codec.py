"""The codec as a PyTorch reference: SoundStream's role, at frame rate throughout.

Source: SoundStream (arXiv 2107.03312) for the residual vector quantizer and the grid of 50 Hz x 320
samples; Vocos (arXiv 2306.00814) for ConvNeXt blocks at frame rate with an inverse-STFT head. Here
every convolution is causal and the windows begin at their frame, so frame i of the codes is enough,
with the frames before it, to emit samples 320 i .. 320 i + 319: streaming adds no delay. The encoder
pays for that by looking ahead, which costs nothing since prompts are encoded whole.

The reference uses the FFT; the graphs use constant matrices. Letters: b row, f frame (20 ms),
n samples (16 kHz), q levels, c codes per level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssm.axes import FRAME_SAMPLES
from speechssm.bundle.shapes.codec import CodecShape
from speechssm.errors import SettingsError

from .codec_bands import GAIN_POWER, band_analysis, gain_bias, synthesis_window

NORM_EPS = 1e-6
POWER_EPS = 1e-6
"""Added to a bin's power before roots and logarithms: -60 dB below one unit-amplitude sample."""
DIRECTION_EPS = 1e-2
"""Added to the squared length of a direction before it is made unit: bins may also fade by shrinking it."""

State = list[Tensor]
"""Carried by the decoder: one (b, kernel-1, d) per layer, then the overlap tail (b, fft-320)."""


class ConvNeXtBlock(nn.Module):
    """Causal depthwise convolution over f, layer norm, two pointwise layers, residual."""

    def __init__(self, width: int, hidden: int, kernel: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Parameter(torch.randn(kernel, width) / kernel**0.5)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (b, f, d), past (b, kernel-1, d) or None for silence -> y (b, f, d), new past."""
        kernel, frames = self.depthwise.shape[0], x.shape[1]
        if past is None:
            past = x.new_zeros(x.shape[0], kernel - 1, x.shape[2])
        seen = torch.cat([past.to(x.dtype), x], dim=1)
        y = F.conv1d(seen.transpose(1, 2), self.depthwise.T.unsqueeze(1), groups=x.shape[2]).transpose(1, 2)
        y = F.layer_norm(y, y.shape[-1:], eps=NORM_EPS)
        y = self.down(F.hardswish(self.up(y)))
        return x + self.scale * y, seen[:, frames:]


class Encoder(nn.Module):
    """audio (b, n) -> latents (b, f, latent); frame i has seen samples < 320 (i + lookahead) + fft."""

    analysis_window: Tensor
    band_matrix: Tensor

    def __init__(self, shape: CodecShape) -> None:
        super().__init__()
        self.shape = shape
        width, layers = shape.encoder_width, shape.encoder_layers
        self.register_buffer("analysis_window", torch.hann_window(shape.fft), persistent=False)
        self.register_buffer("band_matrix", torch.from_numpy(band_analysis(shape)), persistent=False)
        self.input = nn.Linear(shape.bands + 2 * phase_bins(shape), width)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, shape.expansion * width, shape.kernel, 1 / layers) for _ in range(layers)
        )
        self.output = nn.Linear(width, shape.latent)

    def features(self, audio: Tensor) -> Tensor:
        """audio (b, n) -> (b, f + lookahead, bands + 2 phase bins): log bands, root-compressed spectrum."""
        ahead = self.shape.fft - FRAME_SAMPLES + self.shape.lookahead * FRAME_SAMPLES
        frames = F.pad(audio, (0, ahead)).unfold(-1, self.shape.fft, FRAME_SAMPLES)
        spectrum = torch.fft.rfft(frames * self.analysis_window, norm="ortho")
        power = spectrum.real.square() + spectrum.imag.square()
        bands = torch.log(power @ self.band_matrix + POWER_EPS)
        low = slice(0, phase_bins(self.shape))
        root = (power[..., low] + POWER_EPS).sqrt().sqrt()
        return torch.cat(
            [0.25 * bands, spectrum.real[..., low] / root, spectrum.imag[..., low] / root], dim=-1
        )

    def forward(self, audio: Tensor) -> Tensor:
        """audio (b, n), n a multiple of 320 -> latents (b, n/320, latent)."""
        x = self.input(self.features(audio))
        for block in self.blocks:
            x, _ = block(x)
        x = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
        latents: Tensor = self.output(x[:, self.shape.lookahead :])
        return latents

    def layers(self) -> list[ConvNeXtBlock]:
        """The blocks, in order."""
        return [b for b in self.blocks if isinstance(b, ConvNeXtBlock)]


class Decoder(nn.Module):
    """quantized latents (b, f, latent) -> audio (b, 320 f), streaming with carried state."""

    window: Tensor

    def __init__(self, shape: CodecShape) -> None:
        super().__init__()
        self.shape = shape
        width, layers = shape.decoder_width, shape.decoder_layers
        self.register_buffer("window", torch.from_numpy(synthesis_window(shape)), persistent=False)
        self.input = nn.Linear(shape.latent, width)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, shape.expansion * width, shape.kernel, 1 / layers) for _ in range(layers)
        )
        self.direction = nn.Linear(width, shape.fft)
        self.gain = nn.Linear(width, shape.bins)
        # Seeded weights speak at RMS 0.05: unit directions under this gain.
        nn.init.normal_(self.direction.weight, std=width**-0.5)
        nn.init.zeros_(self.direction.bias)
        nn.init.normal_(self.gain.weight, std=0.4 * width**-0.5)
        nn.init.constant_(self.gain.bias, gain_bias(shape, rms=0.05))

    def coefficients(self, x: Tensor) -> Tensor:
        """x (b, f, d) -> spectrum (b, f, fft): real parts of every bin, then imaginary parts of inner ones.

        A gain per bin times a unit direction in the complex plane (Vocos predicts the angle instead). The
        gain (1 + m/32)^32 stands for exp(m): multiplications, roots and quotients are exact wherever an
        engine computes them, a vectorised exp or sine is not.
        """
        x = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
        gain = F.relu(1.0 + self.gain(x).float() / GAIN_POWER)
        for _ in range(GAIN_POWER.bit_length() - 1):
            gain = gain * gain
        direction = self.direction(x).float()
        real, inner = direction[..., : self.shape.bins], direction[..., self.shape.bins :]
        imaginary = F.pad(inner, (1, 1))
        scale = gain / (real * real + imaginary * imaginary + DIRECTION_EPS).sqrt()
        return torch.cat([real * scale, inner * scale[..., 1:-1]], dim=-1)

    def layers(self) -> list[ConvNeXtBlock]:
        """The blocks, in order."""
        return [b for b in self.blocks if isinstance(b, ConvNeXtBlock)]

    def segments(self, coefficients: Tensor) -> Tensor:
        """coefficients (b, f, fft) -> windowed waveforms (b, f, fft)."""
        bins = self.shape.bins
        z = coefficients.float()
        imaginary = F.pad(z[..., bins:], (1, 1))
        # An orthonormal real basis: inner bins count twice in the inverse, hence the root of a half.
        half = z.new_full((bins,), 0.5**0.5)
        half[0] = half[-1] = 1.0
        spectrum = torch.complex(z[..., :bins] * half, imaginary * half)
        waves: Tensor = torch.fft.irfft(spectrum, n=self.shape.fft, norm="ortho")
        return waves * self.window

    def forward(self, latents: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """latents (b, f, latent), state or None at the start -> audio (b, 320 f), state."""
        past: list[Tensor | None] = [None] * len(self.blocks) if state is None else list(state[:-1])
        x = self.input(latents)
        carried: State = []
        for block, before in zip(self.blocks, past, strict=True):
            x, after = block(x, before)
            carried.append(after)
        waves = self.segments(self.coefficients(x))
        hop = FRAME_SAMPLES
        frames = latents.shape[1]
        audio = waves.new_zeros(waves.shape[0], (frames - 1) * hop + self.shape.fft)
        if state is not None:
            audio[:, : self.shape.fft - hop] += state[-1]
        parts = [waves[..., i * hop : (i + 1) * hop].flatten(1) for i in range(self.shape.hops)]
        for i in reversed(range(self.shape.hops)):
            audio = audio + F.pad(parts[i], (i * hop, audio.shape[1] - i * hop - parts[i].shape[1]))
        carried.append(audio[:, frames * hop :])
        return audio[:, : frames * hop], carried


class Codec(nn.Module):
    """Encoder, residual vector quantizer and decoder of one :class:`CodecShape`.

    ``codebooks`` (q, c, latent) holds the code vectors; a frame's latent is the sum of one per level.
    """

    def __init__(self, shape: CodecShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)
        levels = torch.arange(shape.levels).view(-1, 1, 1)
        spread = 0.3 * 0.8**levels
        self.codebooks = nn.Parameter(torch.randn(shape.levels, shape.codes, shape.latent) * spread)

    def quantize(self, latents: Tensor) -> Tensor:
        """latents (b, f, latent) -> codes (b, q, f) int64: nearest code per level, on what is left."""
        left = latents
        codes = []
        for book in self.codebooks:
            # argmin |left - code|^2 without the term that is the same for every code
            distance = book.square().sum(-1) - 2 * left @ book.T
            chosen = distance.argmin(-1)
            codes.append(chosen)
            left = left - book[chosen]
        return torch.stack(codes, dim=1)

    def embed(self, codes: Tensor) -> Tensor:
        """codes (b, q, f) int64 -> latents (b, f, latent)."""
        latents = self.codebooks[0][codes[:, 0]]
        for level in range(1, codes.shape[1]):
            latents = latents + self.codebooks[level][codes[:, level]]
        return latents

    def encode(self, audio: Tensor) -> Tensor:
        """audio (b, n) float32 in [-1, 1], n a multiple of 320 -> codes (b, q, n/320) int64.

        Raises:
            SettingsError: n is no whole number of frames.
        """
        if audio.shape[-1] % FRAME_SAMPLES or audio.shape[-1] == 0:
            raise SettingsError(
                f"audio of {audio.shape[-1]} samples cannot be encoded: the codec takes whole frames of "
                f"{FRAME_SAMPLES} samples; pad it with zeros to a multiple"
            )
        return self.quantize(self.encoder(audio))

    def decode(self, codes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """codes (b, q, f) int64, state or None at the start -> audio (b, 320 f) float32, state."""
        audio, carried = self.decoder(self.embed(codes), state)
        return audio, carried


def phase_bins(shape: CodecShape) -> int:
    """Bins whose phase the encoder sees: below 4 kHz, where a waveform can be followed at these rates."""
    return shape.fft // 4
