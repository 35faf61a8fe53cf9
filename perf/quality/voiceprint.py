"""Speaker embeddings by Resemblyzer's network (GE2E d-vector, Apache-2.0), from weights the user has; never shipped.

None of the package's code is run: its own preparation uses a voice activity detector that needs compiling;
here long pauses are cut by energy instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.errors import SpeechSSMError

WIDTH = 256
"""Numbers in a voiceprint; its length is 1 and none is negative."""
MELS, FFT, HOP = 40, 400, 160
PARTIAL = 160
"""Frames (100 Hz) of one partial utterance: 1.6 s."""
STEP = 77
"""Frames between partials: 1.3 a second, as in the package."""
LOUDNESS = 10 ** (-30 / 20)
"""Quieter recordings are raised to this RMS."""


class Voiceprint(nn.Module):
    """Audio -> voiceprint (256)."""

    filters: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, WIDTH, 3, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("filters", torch.from_numpy(_mel_filters()), persistent=False)
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)

    def forward(self, mel: Tensor) -> Tensor:
        """Power mel (b, 160, 40) -> (b, 256) of length 1."""
        _, (hidden, _) = self.lstm(mel)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)

    def mel(self, audio: Tensor) -> Tensor:
        """Audio (n) -> power mel (n // 160 + 1, 40)."""
        spectrum = torch.stft(audio, FFT, HOP, window=self.window, pad_mode="constant", return_complex=True)
        return (self.filters @ spectrum.abs().square()).T

    @torch.no_grad()
    def of(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """The voiceprint (256) of a recording (n) at 16 kHz: the mean over its partials, length 1."""
        rms = float(np.sqrt(np.square(audio).mean()) + 1e-9)
        heard = without_pauses(audio * max(1.0, LOUDNESS / rms))
        mel = self.mel(torch.from_numpy(heard).to(self.window.device))
        short = PARTIAL - len(mel)
        if short > 0:
            mel = nn.functional.pad(mel, (0, 0, 0, short))
        partials = mel.unfold(0, PARTIAL, STEP).transpose(1, 2)
        found: NDArray[np.float32] = nn.functional.normalize(self(partials).mean(0), dim=0).cpu().numpy()
        return found


def load(weights: Path | BinaryIO, device: str = "cpu") -> Voiceprint:
    """The network with the package's ``pretrained.pt``. Raises SpeechSSMError when it holds other weights."""
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    model = Voiceprint()
    wanted = {k: v for k, v in stored["model_state"].items() if k.startswith(("lstm.", "linear."))}
    missing, unknown = model.load_state_dict(wanted, strict=False)
    if missing or unknown:
        raise SpeechSSMError(f"the file holds other weights than Resemblyzer's: {[*missing, *unknown][:3]}")
    return model.eval().to(device)


def without_pauses(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """``audio`` (n) without what lies more than 0.2 s away from sound within 35 dB of the loud parts."""
    frame = SAMPLE_RATE_HZ * 30 // 1000
    frames = len(audio) // frame
    if frames < 8:
        return audio
    power = np.square(audio[: frames * frame]).reshape(frames, frame).mean(1)
    loud = power > np.quantile(power, 0.95) * 10**-3.5
    near = np.convolve(loud, np.ones(13), "same") > 0.5
    kept: NDArray[np.float32] = np.ascontiguousarray(
        audio[: frames * frame].reshape(frames, frame)[near]
    ).ravel()
    return kept


def _mel_filters() -> NDArray[np.float32]:
    """Slaney's triangles with unit area, (40, 201): linear below 1 kHz, logarithmic above."""

    def to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    top = 15 + 27 * np.log(8.0) / np.log(6.4)
    edges = to_hz(np.linspace(0, top, MELS + 2))
    bins = np.linspace(0, SAMPLE_RATE_HZ / 2, FFT // 2 + 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    area = 2 / (edges[2:] - edges[:-2])[:, None]
    filters: NDArray[np.float32] = (np.maximum(0, np.minimum(rise, fall)) * area).astype(np.float32)
    return filters
