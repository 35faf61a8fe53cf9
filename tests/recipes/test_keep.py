"""Weights kept in the tree, by themselves or in a bundle: what a fresh machine goes on from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recipes import places, weights
from recipes.acoustic import train as acoustic
from recipes.codec import train as codec
from torch import nn

from speechssm.bundle.shapes.acoustic import ACOUSTIC_PRESETS
from speechssm.bundle.shapes.codec import CODEC_PRESETS
from speechssm.export.parts import PARTS, seeded_model
from speechssm.export.presets import PRESETS

CODEC, ACOUSTIC = CODEC_PRESETS["tiny"], ACOUSTIC_PRESETS["tiny"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a tree of their own."""
    monkeypatch.setenv("SPEECHSSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "TRAINED", tmp_path / "trained")
    weights.TRAINED.mkdir()
    return tmp_path


def put_best(part: str, model: nn.Module, **about: object) -> None:
    places.write_tensors(places.cache(part) / "best.safetensors", model.state_dict())
    places.write_json(places.cache(part) / "best.json", about)


def test_keeping_stores_matrices_as_float16_and_says_where_they_come_from() -> None:
    model = codec.Codec(CODEC)
    put_best("codec", model, shape=CODEC.model_dump(), step=7, figures={"score": 1.0}, resting=True)
    places.write_json(places.cache("codec") / "evaluation.json", {"mean": {"stoi": 0.9}})
    weights.keep("codec")
    stored = places.load_tensors(weights.TRAINED / "codec.safetensors")
    assert {v.dtype for v in stored.values() if v.dim() > 1} == {torch.float16}
    assert {v.dtype for v in stored.values() if v.dim() < 2} == {torch.float32}
    found = weights.committed("codec", CODEC)
    assert found is not None
    assert found.step == 7
    assert found.about["evaluation"]["mean"]["stoi"] == 0.9
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found.parameters[name], value, rtol=1e-3, atol=1e-4)
    assert weights.committed("codec", CODEC_PRESETS["demo"]) is None, "weights of another shape are no start"


@pytest.mark.parametrize("stage", list(weights.STAGES))
def test_weights_come_back_out_of_a_bundle(
    stage: str, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    """Turned into what graphs read, stored, and turned back: the graphs read the same again."""
    part = weights.STAGES[stage][0]
    shape = getattr(PRESETS["tiny"], part)
    model = seeded_model(part, shape, seed=5)
    stored = {k: np.asarray(v) for k, v in dict(PARTS[part].weights(model)).items()}
    monkeypatch.setattr(weights, "VOICE", elsewhere / "voice")
    weights.VOICE.mkdir()
    places.write_arrays(weights.VOICE / f"{part}.safetensors", stored)
    places.write_json(weights.TRAINED / f"{stage}.json", {"shape": shape.model_dump(), "step": 3})
    found = weights.committed(stage)
    assert found is not None
    again = PARTS[part].model(shape)
    again.load_state_dict(found.parameters)
    for name, value in dict(PARTS[part].weights(again)).items():
        np.testing.assert_allclose(value, stored[name], rtol=1e-6, atol=1e-7, err_msg=name)


def test_nothing_is_kept_of_a_part_that_was_never_judged() -> None:
    with pytest.raises(FileNotFoundError, match="train and judge"):
        weights.keep("acoustic")
    assert not list(weights.TRAINED.iterdir())


@pytest.mark.parametrize("resting", [False, True])
def test_the_codec_goes_on_from_kept_weights(resting: bool) -> None:
    torch.manual_seed(3)
    model = codec.Codec(CODEC)
    plan = codec.Plan(steps=20, batch=2, crop_frames=4, quantize_from=0.1)
    run = codec.Run(CODEC, plan, "cpu")
    run.go_on_from(model.state_dict(), 10, resting)
    audio = 0.05 * torch.randn(2, 320 * 40)
    before = model.encode(audio)
    assert torch.equal(codec.averaged(run).encode(audio), before)
    for _ in range(4):
        run.advance(lambda step, rows, samples: 0.05 * torch.randn(rows, samples))  # type: ignore[arg-type]
    assert run.step == 14
    same = torch.equal(run.model.encode(audio), before)
    assert same == resting, "resting codes stay, others learn on"
    # Even statistics: a code that nobody took for four steps is not yet taken for dead.
    assert float(run.quantizer.counts.min()) > 0


def test_the_acoustic_stage_goes_on_from_kept_weights() -> None:
    model = acoustic.Acoustic(ACOUSTIC)
    run = acoustic.Run(ACOUSTIC, acoustic.Plan(), "cpu")
    run.go_on_from(model.state_dict(), 123)
    assert run.step == 123
    for name, value in run.averaged().state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=0)
