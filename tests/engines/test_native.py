"""The same language-model graphs with the compiled operators and with the functions of the same names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import speechssm
from speechssm.bundle import open_bundle
from speechssm.errors import EngineError
from speechssm.perf.native import STEPS, pair, parity
from tests.cpp_ext.conftest import built

BOUND = 1e-5
"""Of any state tensor, under the same tokens."""


@pytest.fixture(autouse=True)
def _library() -> None:
    built("host")


def test_states_stay_together_under_the_same_tokens(tiny_bundle: Path) -> None:
    found = parity(open_bundle(tiny_bundle), 400, seed=int(np.random.default_rng().integers(1 << 20)))
    print(found)
    assert 0 < found["largest_state_difference"] <= BOUND


@pytest.mark.slow
def test_states_stay_together_for_sixteen_minutes(tiny_bundle: Path) -> None:
    found = parity(open_bundle(tiny_bundle), STEPS)
    print(found)
    assert 0 < found["largest_state_difference"] <= BOUND


def test_a_chunk_agrees_and_really_runs_the_library(tiny_bundle: Path, rng: np.random.Generator) -> None:
    """Ragged rows in one chunk; the kernels round otherwise than the functions, so equality would mean neither ran."""
    path, entry = open_bundle(tiny_bundle).graph("lm_chunk")
    inputs = {
        v.name: np.zeros([a if isinstance(a, int) else {"b": 3, "t": 50}[a] for a in v.axes], v.dtype)
        for v in entry.inputs
    }
    inputs["tokens"] = rng.integers(0, 64, (3, 50))
    inputs["lengths"] = np.array([50, 0, 17])
    names = [v.name for v in entry.outputs]
    graphs = pair(path, entry, "lm_chunk")
    native, function = (graphs[which].call(inputs, names) for which in ("native", "function"))
    differences = [
        float(np.abs(a.astype(np.float64) - b).max()) for a, b in zip(native, function, strict=True)
    ]
    assert 0 < max(differences) <= BOUND
    for name, a in zip(names, native, strict=True):
        if name.endswith("_lru"):
            assert not a[1].any(), "a row of length 0 keeps its zero state"


def test_native_is_asked_for_and_said_when_it_is_missing(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = speechssm.load(tiny_bundle, threads=1, native=True)
    noise = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    assert len(model.generate(noise, rate_hz=16_000, seconds=0.5, seed=1).audio) == 8000
    monkeypatch.setenv("SPEECHSSM_CPP_EXT", str(tmp_path))
    with pytest.raises(EngineError, match="speechssm ext build host"):
        speechssm.load(tiny_bundle, native=True)
