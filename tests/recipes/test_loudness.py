"""The codec's loudness distance: zero for the same, growing with noise, blind to what a listener adapts to."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from recipes.codec.loudness import disturbance  # noqa: E402 - after the guard above


@pytest.fixture
def speech(rng: np.random.Generator) -> np.ndarray:
    """Three voiced-like stretches (3,n): harmonics under a moving envelope, with pauses."""
    t = np.arange(24_000) / 16_000
    rows = []
    for _ in range(3):
        pitch = rng.uniform(90, 220)
        tone = sum(np.sin(2 * np.pi * pitch * k * t + rng.uniform(0, 6)) / k for k in range(1, 20))
        rows.append(0.05 * tone * np.maximum(0, np.sin(2 * np.pi * 3 * t + rng.uniform(0, 6))))
    return np.stack(rows).astype(np.float32)


def apart(made: np.ndarray, real: np.ndarray) -> np.ndarray:
    return disturbance(torch.from_numpy(made), torch.from_numpy(real)).numpy()


def test_nothing_between_a_signal_and_itself(speech: np.ndarray) -> None:
    assert (apart(speech, speech) < 1e-2).all()


def test_more_noise_is_further_off(speech: np.ndarray, rng: np.random.Generator) -> None:
    noise = rng.standard_normal(speech.shape).astype(np.float32)
    found = np.stack([apart(speech + scale * noise, speech) for scale in (1e-4, 1e-3, 1e-2)])
    assert (np.diff(found, axis=0) > 0).all()


def test_added_sound_is_worse_than_missing_sound(speech: np.ndarray, rng: np.random.Generator) -> None:
    noise = 0.0002 * rng.standard_normal(speech.shape).astype(np.float32)
    assert apart(speech + noise, speech).mean() > apart(speech, speech + noise).mean()


def test_loudness_of_the_recording_does_not_matter(speech: np.ndarray, rng: np.random.Generator) -> None:
    noise = 0.003 * rng.standard_normal(speech.shape).astype(np.float32)
    loud = apart(speech + noise, speech)
    np.testing.assert_allclose(apart((speech + noise) / 8, speech / 8), loud, rtol=1e-3)


@pytest.mark.parametrize("made", ["silence", "itself", "noise"])
def test_gradients_are_finite(speech: np.ndarray, rng: np.random.Generator, made: str) -> None:
    start = {"silence": np.zeros_like(speech), "itself": speech, "noise": rng.standard_normal(speech.shape)}[
        made
    ]
    given = torch.from_numpy(start.astype(np.float32)).requires_grad_()
    disturbance(given, torch.from_numpy(speech)).sum().backward()
    assert torch.isfinite(given.grad).all()
    silent = torch.zeros_like(given).requires_grad_()
    disturbance(silent, torch.zeros_like(given)).sum().backward()
    assert torch.isfinite(silent.grad).all()


def test_it_orders_as_pesq_does(speech: np.ndarray, rng: np.random.Generator) -> None:
    pesq = pytest.importorskip("pesq").pesq
    noise = rng.standard_normal(speech.shape).astype(np.float32)
    worse = [speech + scale * noise for scale in (3e-4, 3e-3, 1e-2)]
    scores = [np.mean([pesq(16_000, a, b, "wb") for a, b in zip(speech, w, strict=True)]) for w in worse]
    assert np.argsort(scores).tolist() == np.argsort([-apart(w, speech).mean() for w in worse]).tolist()
