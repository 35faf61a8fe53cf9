"""Fixtures every folder of tests may use: a tiny bundle, made once a run and shared by the workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

torch.set_num_threads(1)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Fresh random numbers each run; the seed is printed when a test fails."""
    seed = int(np.random.SeedSequence().entropy % (1 << 32))  # type: ignore[operator]
    print(f"rng seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that lives for the run and is the same for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(shared_folder: Path) -> Path:
    """The ``tiny`` preset at seed 0, all four parts. Read only: copy it before changing it."""
    from speechssm.export.exporter import export_preset

    target = shared_folder / "tiny"
    with FileLock(shared_folder / "tiny.lock"):
        if not target.exists():
            export_preset("tiny", target, seed=0, rollout=64)
    return target
