"""The weights that are committed: they are the demo preset's parts, within their limits, and do their work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from recipes import weights

from speechssm.audio import read_audio
from speechssm.export.presets import PRESETS

PROMPT = Path(__file__).parents[2] / "examples" / "prompt.flac"


def test_the_tokenizer_met_its_bars() -> None:
    found = weights.committed("tokenizer", PRESETS["demo"].tokenizer)
    assert found is not None
    figures = found.about["figures"]
    assert figures["pnmi"] >= 0.60
    assert figures["spread"] <= 0.55
    assert figures["rtf"] <= 0.006
    assert sum(p.numel() for p in found.parameters.values()) <= 2_000_000


@torch.no_grad()
def test_tokens_follow_what_is_said_and_not_how_loud() -> None:
    """On the real prompt: many units, changing as phones do, the same at a third of the level."""
    model = weights.load_tokenizer()
    audio = torch.from_numpy(read_audio(PROMPT))[None]
    loud, soft = (model(gain * audio)[0].numpy() for gain in (1.0, 0.3))
    assert len(loud) == -(-audio.shape[1] // 640)
    assert len(np.unique(loud)) > 60
    changes = np.mean(loud[1:] != loud[:-1]) * 25
    assert 6 < changes < 20
    assert np.mean(loud == soft) > 0.95
    noise = model(0.1 * torch.randn_like(audio))[0].numpy()
    assert len(np.unique(noise)) < len(np.unique(loud)) / 2
