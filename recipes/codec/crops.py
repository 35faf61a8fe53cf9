"""Random crops of the training recordings, the same for a given seed and step wherever they are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import data, splits

SHARES = {"kathleen": 0.25, "librispeech": 0.4, "stories_speech": 0.35}
"""How often each corpus is drawn from: real voices first, whatever their hours."""
VALIDATION_EVERY = 97
"""Every 97th training recording is kept out of the crops to choose checkpoints by."""
GAIN_DB = (-10.0, 5.0)


def chosen(root: Path) -> tuple[list[data.Recording], list[data.Recording]]:
    """Recordings to crop, and recordings to choose checkpoints by; neither holds a held-out one."""
    training = [r for r in splits.training(data.recordings(root)) if r.corpus in SHARES]
    splits.refuse_held_out(training)
    validation = training[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
    kept = {r.key for r in validation}
    return [r for r in training if r.key not in kept], validation


class Crops:
    """All training audio as int16 on one device (about 0.5 GB for 4.4 h)."""

    def __init__(self, recordings: list[data.Recording], device: str, seed: int) -> None:
        self.device, self.seed = device, seed
        self.corpora = {
            corpus: torch.from_numpy(
                np.concatenate([data.audio(r) for r in recordings if r.corpus == corpus])
            ).to(device)
            for corpus in SHARES
        }

    def __call__(self, step: int, rows: int, samples: int) -> Tensor:
        """Crops (b, n) float32 of ``step``; each at its own loudness, clipping avoided."""
        rng = np.random.default_rng((self.seed, step))
        picks = rng.choice(len(SHARES), rows, p=list(SHARES.values()))
        made = []
        for pick, place in zip(picks, rng.random(rows), strict=True):
            audio = self.corpora[list(SHARES)[pick]]
            start = int(place * (len(audio) - samples))
            made.append(audio[start : start + samples])
        crops = torch.stack(made).float() / 32768.0
        gain = torch.from_numpy(10 ** (rng.uniform(*GAIN_DB, (rows, 1)) / 20)).float().to(self.device)
        peak = crops.abs().amax(dim=1, keepdim=True).clamp_min(1e-4)
        return crops * torch.minimum(gain, 0.95 / peak)
