"""The Transformer baseline's caches in the runtime: one that grows says what a fixed one that is large enough says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import speechssm
from speechssm.bundle import open_bundle
from speechssm.bundle.manifest import Manifest
from speechssm.bundle.shapes import LMShape
from speechssm.engines.loading import BundleGraphs
from speechssm.engines.ort import OrtOptions
from speechssm.engines.verify import verify_bundle
from speechssm.errors import SnapshotError
from speechssm.export.checkpoints.seeded import seeded_griffin
from speechssm.export.exporter import export_models, export_preset
from speechssm.export.models.transformer import transformer_shape
from speechssm.runtime.lm import LanguageModel, LMRows, Prefill
from speechssm.runtime.settings import SamplerSettings
from tests.doubles.lm import TINY

BLOCK, LARGE = 8, 96
GREEDY = SamplerSettings(temperature=0)


def loaded(folder: Path, shape: LMShape) -> LanguageModel:
    if not folder.exists():
        export_models(
            "t", {"lm": shape}, {"lm": seeded_griffin(shape, 1)}, folder, about="", rollout=20, threads=1
        )
    bundle = open_bundle(folder)
    manifest: Manifest = bundle.manifest
    graphs = BundleGraphs(bundle, OrtOptions(threads=1))
    return LanguageModel(
        graphs("lm_step"), lambda: graphs("lm_chunk"), manifest.graphs["lm_step"].state, manifest.lm.shape.vocab,
        manifest.lm.k_max, 1e9,
    )  # fmt: skip


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return loaded(tmp_path_factory.mktemp("grow") / "out", transformer_shape(TINY, "mqa", block=BLOCK))


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return loaded(tmp_path_factory.mktemp("fixed") / "out", transformer_shape(TINY, "mqa", capacity=LARGE))


def prompt(length: int, seed: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, TINY.vocab, length)]


def slots(rows: LMRows) -> int:
    return next(rows.state.current[s.name].shape[1] for s in rows.state.schema if s.grows)


def test_a_growing_cache_says_what_a_large_fixed_one_says(
    growing: LanguageModel, fixed: LanguageModel
) -> None:
    """Rows of unequal length, past several blocks; equal but for the order of sums (the slots are more)."""
    said, sure = [], []
    for lm in (growing, fixed):
        rows = LMRows(lm, 3)
        for row, length in enumerate((1, 21, 40)):
            tokens = prompt(length, row)
            rows.start(row, tokens[0], GREEDY, seed=row)
            rows.prefill(row, tokens[1:])
            rows.active[row] = True
        tokens_of, logprobs = [], []
        for _ in range(31):
            step = rows.step()
            assert not step.failed
            tokens_of.append(step.tokens.copy())
            logprobs.append(step.logprobs.copy())
        said.append(np.stack(tokens_of))
        sure.append(np.stack(logprobs))
    assert np.array_equal(*said)
    assert np.abs(sure[0] - sure[1]).max() < 1e-4


def test_room_is_made_a_block_at_a_time(growing: LanguageModel) -> None:
    rows = LMRows(growing, 2)
    rows.start(0, 3, GREEDY, seed=0)
    rows.active[0] = True
    seen = []
    for _ in range(20):
        assert not rows.step().failed
        seen.append(slots(rows))
    assert seen == [BLOCK] * 8 + [2 * BLOCK] * 8 + [3 * BLOCK] * 4


def test_a_saved_row_goes_on_in_another_pool(growing: LanguageModel) -> None:
    tokens = prompt(19, 5)
    rows = LMRows(growing, 1)
    rows.start(0, tokens[0], GREEDY, seed=0)
    rows.prefill(0, tokens[1:])
    rows.active[0] = True
    for _ in range(3):
        rows.step()
    saved = rows.save(0)
    assert {len(saved.state[s.name]) for s in growing.schema if s.grows} == {3 * BLOCK}
    going_on = [int(rows.step().tokens[0]) for _ in range(9)]
    other = LMRows(growing, 2)
    other.load(1, saved)
    other.active[1] = True
    assert [int(other.step().tokens[1]) for _ in range(9)] == going_on
    # A prompt read without a row, in small pieces, leaves the same state.
    prefill = Prefill(growing, tokens, GREEDY, 0)
    while prefill.left:
        prefill.step(5)
    other.load(0, prefill.saved())
    other.active[0] = True
    other.active[1] = False
    for _ in range(3):
        other.step()
    assert [int(other.step().tokens[0]) for _ in range(9)] == going_on
    short = dict(saved.state)
    name = next(s.name for s in growing.schema if s.grows)
    short[name] = short[name][:BLOCK]
    with pytest.raises(SnapshotError, match=f"state tensor {name} is float32"):
        other.state.load(0, short)


def test_a_bundle_with_a_growing_cache_speaks_and_is_restored(tmp_path: Path) -> None:
    export_preset("tiny", tmp_path / "out", transformer="mqa", rollout=20, threads=1)
    assert "lm_step: loads and runs" in list(
        verify_bundle(open_bundle(tmp_path / "out"), OrtOptions(threads=1))
    )
    model = speechssm.load(tmp_path / "out", threads=1)
    audio = (0.1 * np.random.default_rng(0).standard_normal(24_000)).astype(np.float32)
    with model.open(audio, rate_hz=16_000, seed=2, ramp=True) as session:
        list(session.stream(11))  # past the first block of 256 tokens
        session.snapshot(tmp_path / "saved.safetensors")
        going_on = np.concatenate(list(session.stream(3)))
    restored = model.restore(tmp_path / "saved.safetensors")
    assert np.array_equal(np.concatenate(list(restored.stream(3))), going_on)
