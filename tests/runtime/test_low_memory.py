"""With ``low_memory`` the prefill engine and the step engine are not in memory together for one session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import speechssm
from speechssm.engines.loading import BundleGraphs
from speechssm.errors import SettingsError
from speechssm.runtime.model import Model
from speechssm.runtime.prefill_memory import Reading


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was opened and released, in order."""
    log: list[str] = []
    call, release = BundleGraphs.__call__, BundleGraphs.release

    def logged_call(self: BundleGraphs, name: str) -> object:
        if name not in self._graphs:
            log.append(f"open {name}")
        return call(self, name)

    def logged_release(self: BundleGraphs, name: str) -> None:
        if name in self._graphs:
            log.append(f"release {name}")
        release(self, name)

    monkeypatch.setattr(BundleGraphs, "__call__", logged_call)
    monkeypatch.setattr(BundleGraphs, "release", logged_release)
    return log


def of_the_language_model(log: list[str]) -> list[str]:
    return [line for line in log if "lm_" in line]


def prompt(seconds: float = 2) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(int(seconds * 16_000))).astype(np.float32)


def speak(model: Model, seed: int = 3) -> np.ndarray:
    return model.generate(prompt(), rate_hz=16_000, seconds=3, seed=seed, ramp=True).audio


def test_the_same_speech_with_one_engine_at_a_time(tiny_bundle: Path, opened: list[str]) -> None:
    usual = speak(speechssm.load(tiny_bundle, threads=1))
    assert of_the_language_model(opened) == ["open lm_step", "open lm_chunk"]
    opened.clear()
    model = speechssm.load(tiny_bundle, threads=1, low_memory=True)
    assert opened == []
    assert np.array_equal(speak(model), usual)
    assert of_the_language_model(opened) == ["open lm_chunk", "release lm_chunk", "open lm_step"]
    assert np.array_equal(speak(model), usual)
    assert of_the_language_model(opened)[3:] == ["open lm_chunk", "release lm_chunk"]


def test_prompts_that_are_read_together_share_one_engine(tiny_bundle: Path, opened: list[str]) -> None:
    model = speechssm.load(tiny_bundle, threads=1, low_memory=True)
    together = list(
        model.generate_many([prompt(), prompt(3)], seconds=1, seeds=[3, 4], rate_hz=16_000, ramp=True)
    )
    lines = of_the_language_model(opened)
    assert lines.count("open lm_chunk") == lines.count("release lm_chunk") >= 1
    alone = speechssm.load(tiny_bundle, threads=1).generate(
        prompt(3), rate_hz=16_000, seconds=1, seed=4, ramp=True
    )
    assert np.array_equal(together[1].audio, alone.audio)


def test_a_prompt_that_fails_gives_the_engine_back(tiny_bundle: Path, opened: list[str]) -> None:
    model = speechssm.load(tiny_bundle, threads=1, low_memory=True)
    with pytest.raises(SettingsError):
        model.open(prompt(), rate_hz=16_000, temperature=-1)
    session = model.open(prompt(), rate_hz=16_000, seed=1)
    session.close()
    assert of_the_language_model(opened)[-1] == "release lm_chunk"


def test_only_the_last_reader_releases() -> None:
    released: list[int] = []
    reading = Reading(lambda: released.append(1))
    with reading():
        with reading():
            assert not released
        assert not released
    assert released == [1]
    with pytest.raises(ZeroDivisionError), reading():
        raise ZeroDivisionError
    assert released == [1, 1]
