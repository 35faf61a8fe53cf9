"""The bundle that ships: what a newcomer hears is speech, the same for the same seed, and does not fade out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import speechssm
from speechssm.bundle.shipped import demo_voice
from speechssm.runtime.model import Model

from .speechlike import complaints

PROMPT = Path(__file__).parents[2] / "examples" / "prompt.flac"
TRAINED_SECONDS = 60
"""Length of the segments the shipped language model was trained on (recipes/language/small.json)."""


@pytest.fixture(scope="module")
def model() -> Model:
    return speechssm.load(demo_voice(), threads=1)


def test_it_is_small_enough_to_ship_and_says_where_it_comes_from(model: Model) -> None:
    sizes = [entry.size_bytes for entry in model.manifest.files.values()]
    assert sum(sizes) <= 34_000_000
    assert max(sizes) <= 15_000_000
    assert not model.manifest.seeded
    credits = " ".join(model.manifest.licences)
    for source in ("kathleen", "LibriSpeech", "CC BY 4.0", "Kokoro", "Standard Ebooks"):
        assert source in credits


def test_twelve_seconds_are_speech_and_follow_from_the_seed(model: Model) -> None:
    first = model.generate(PROMPT, seconds=12, seed=5).audio
    assert len(first) == 12 * 16_000
    assert complaints(first, model.stages.tokenize(first)) == []
    short, again, other = (model.generate(PROMPT, seconds=2, seed=seed).audio for seed in (5, 5, 6))
    np.testing.assert_array_equal(short, again)
    assert np.abs(short - other).max() > 0.01


@pytest.mark.slow
def test_a2_no_silence_or_noise_at_the_training_length(model: Model) -> None:
    """What a model does that has learned where its examples ended."""
    audio = model.generate(PROMPT, seconds=TRAINED_SECONDS + 30, seed=5).audio
    for start in range(TRAINED_SECONDS - 20, TRAINED_SECONDS + 20, 10):
        piece = audio[start * 16_000 : (start + 10) * 16_000]
        assert complaints(piece, model.stages.tokenize(piece)) == [], f"from {start} s on"
