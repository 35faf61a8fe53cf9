"""The weights that are committed: they are the demo preset's parts, within their limits, and do their work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from recipes import places
from safetensors.torch import load_file

from speechssm.audio import read_audio
from speechssm.bundle.shapes import TokenizerShape
from speechssm.export.models.tokenizer import Tokenizer
from speechssm.export.presets import PRESETS

PROMPT = Path(__file__).parents[2] / "examples" / "prompt.flac"


def tokenizer() -> Tokenizer:
    shape = TokenizerShape(**json.loads((places.TRAINED / "tokenizer.json").read_text())["shape"])
    assert shape == PRESETS["demo"].tokenizer
    model = Tokenizer(shape).eval()
    model.load_state_dict(
        {k: v.float() for k, v in load_file(places.TRAINED / "tokenizer.safetensors").items()}
    )
    return model


def test_the_tokenizer_met_its_bars() -> None:
    figures = json.loads((places.TRAINED / "tokenizer.json").read_text())["figures"]
    assert figures["pnmi"] >= 0.60
    assert figures["spread"] <= 0.55
    assert figures["rtf"] <= 0.006
    assert sum(p.numel() for p in tokenizer().parameters()) <= 2_000_000


@torch.no_grad()
def test_tokens_follow_what_is_said_and_not_how_loud() -> None:
    """On the real prompt: many units, changing as phones do, the same at a third of the level."""
    model = tokenizer()
    audio = torch.from_numpy(read_audio(PROMPT))[None]
    loud, soft = (model(gain * audio)[0].numpy() for gain in (1.0, 0.3))
    assert len(loud) == -(-audio.shape[1] // 640)
    assert len(np.unique(loud)) > 60
    changes = np.mean(loud[1:] != loud[:-1]) * 25
    assert 6 < changes < 20
    assert np.mean(loud == soft) > 0.95
    noise = model(0.1 * torch.randn_like(audio))[0].numpy()
    assert len(np.unique(noise)) < len(np.unique(loud)) / 2
