"""Fixtures of the attacks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechssm
from speechssm.runtime.acoustic import AcousticSchedule
from speechssm.runtime.model import Model

from .attack import HostileBundle, HostileSnapshot, copy_bundle


@pytest.fixture(scope="session")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt nothing is wrong with."""
    path = tmp_path_factory.mktemp("prompt") / "prompt.wav"
    soundfile.write(path, 0.1 * np.random.default_rng().standard_normal(24_000), 16_000)
    return path


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path, prompt: Path) -> HostileBundle:
    """A bundle to bend."""
    return copy_bundle(tiny_bundle, tmp_path, prompt)


@pytest.fixture(scope="session")
def model(tiny_bundle: Path) -> Model:
    """The tiny model, for snapshots."""
    return speechssm.load(tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def true_snapshot(model: Model, prompt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot in mid-stream, with codes and audio waiting."""
    path = tmp_path_factory.mktemp("snapshot") / "true.safetensors"
    with model.open(prompt, seed=1, ramp=True, schedule=AcousticSchedule(iterations=(1,))) as session:
        stream = session.stream(7)
        for _ in range(3):
            next(stream)
        session.snapshot(path)
    return path


@pytest.fixture
def snapshot(true_snapshot: Path, model: Model, tmp_path: Path) -> HostileSnapshot:
    """A snapshot to bend."""
    path = tmp_path / "session.safetensors"
    shutil.copy(true_snapshot, path)
    return HostileSnapshot(path, model)
