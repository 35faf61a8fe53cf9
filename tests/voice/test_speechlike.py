"""The judge of the demo voice's test: it takes a real recording and nothing that is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from recipes import weights

from speechssm.audio import read_audio

from .speechlike import complaints

PROMPT = Path(__file__).parents[2] / "examples" / "prompt.flac"
SECONDS = 10


@torch.no_grad()
def units(audio: NDArray[np.float32]) -> NDArray[np.int64]:
    tokens: NDArray[np.int64] = weights.load_tokenizer()(torch.from_numpy(audio)[None])[0].numpy()
    return tokens


def test_a_recording_passes() -> None:
    audio = read_audio(PROMPT)
    assert complaints(audio, units(audio)) == []


@pytest.mark.parametrize("kind", ["silence", "noise", "tone", "vowel", "loop"])
def test_what_is_no_speech_fails(kind: str) -> None:
    rng = np.random.default_rng()
    time = np.arange(SECONDS * 16_000) / 16_000
    prompt = read_audio(PROMPT)
    audio = {
        "silence": 1e-5 * rng.standard_normal(len(time)),
        "noise": 0.1 * rng.standard_normal(len(time)),
        "tone": 0.2 * np.sin(2 * np.pi * 220 * time),
        "vowel": 0.05 * sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 20)),
        "loop": np.resize(prompt[16_000:24_000], len(time)),
    }[kind].astype(np.float32)
    assert complaints(audio, units(audio))
