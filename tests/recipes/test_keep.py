"""Weights kept in the tree: what a fresh machine goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recipes import keep, places
from recipes.acoustic import train as acoustic
from recipes.codec import train as codec
from torch import nn

from speechssm.bundle.shapes.acoustic import ACOUSTIC_PRESETS
from speechssm.bundle.shapes.codec import CODEC_PRESETS

CODEC, ACOUSTIC = CODEC_PRESETS["tiny"], ACOUSTIC_PRESETS["tiny"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a tree of their own."""
    monkeypatch.setenv("SPEECHSSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(places, "TRAINED", tmp_path / "trained")
    places.TRAINED.mkdir()
    return tmp_path


def put_best(part: str, model: nn.Module, **about: object) -> None:
    places.write_tensors(places.cache(part) / "best.safetensors", model.state_dict())
    places.write_json(places.cache(part) / "best.json", about)


def test_keeping_stores_matrices_as_float16_and_says_where_they_come_from() -> None:
    model = codec.Codec(CODEC)
    put_best("codec", model, shape=CODEC.model_dump(), step=7, figures={"score": 1.0}, resting=True)
    places.write_json(places.cache("codec") / "evaluation.json", {"mean": {"stoi": 0.9}})
    keep.run("codec")
    stored = places.load_tensors(places.TRAINED / "codec.safetensors")
    assert {v.dtype for v in stored.values() if v.dim() > 1} == {torch.float16}
    assert {v.dtype for v in stored.values() if v.dim() < 2} == {torch.float32}
    found = places.committed("codec")
    assert found is not None
    weights, about = found
    assert about["step"] == 7
    assert about["evaluation"]["mean"]["stoi"] == 0.9
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)


def test_nothing_is_kept_of_a_part_that_was_never_judged() -> None:
    with pytest.raises(FileNotFoundError, match="train and judge"):
        keep.run("acoustic")
    assert not list(places.TRAINED.iterdir())


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
