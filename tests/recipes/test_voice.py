"""The stage that makes the demo bundle, with seeded parts of the tiny preset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from recipes import listen, places, voice, weights

import speechssm
from speechssm.audio import read_audio
from speechssm.export.parts import seeded_model
from speechssm.export.presets import PRESETS

FIGURES = {
    "tokenizer": {"pnmi": 0.8, "spread": 0.4},
    "codec": {"stoi": 0.91, "pesq_wb": 2.2},
    "language": {"alice": {"gain_nat": 0.11}, "real": {"gain_nat": -0.02}},
    "acoustic": {"nats 1": 3.2},
}
PROMPT = Path(__file__).parents[2] / "examples" / "prompt.flac"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with four trained parts, and a tree of their own."""
    monkeypatch.setenv("SPEECHSSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "TRAINED", tmp_path / "trained")
    monkeypatch.setattr(weights, "VOICE", tmp_path / "voices" / "demo")
    weights.TRAINED.mkdir()
    for stage, (part, _) in weights.STAGES.items():
        shape = getattr(PRESETS["tiny"], part)
        places.write_tensors(
            places.cache(stage) / "best.safetensors", seeded_model(part, shape, 2).state_dict()
        )
        about = {"shape": shape.model_dump(), "step": 40, "figures": FIGURES[stage]}
        places.write_json(places.cache(stage) / "best.json", about)


def test_the_voice_is_built_credited_and_becomes_where_weights_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build = voice.build
    monkeypatch.setattr(voice, "build", lambda: build(rollout=8, threads=1))
    weights.keep("codec")
    voice.ship()
    model = speechssm.load(weights.VOICE)
    assert not model.manifest.seeded
    assert any("LibriSpeech" in line and "CC BY 4.0" in line for line in model.manifest.licences)
    card = (weights.VOICE / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| codec | 40 | PESQ-wb | 2.20 |" in card
    assert "| language | 40 | nat per token below a 5-gram, real | -0.020 |" in card
    speech = model.generate(PROMPT, seconds=1, seed=0)
    assert len(speech.audio) == 16_000
    assert not list(weights.TRAINED.glob("*.safetensors")), "every weight is committed once"
    monkeypatch.setenv("SPEECHSSM_CACHE", str(tmp_path / "empty"))
    for stage, (part, _) in weights.STAGES.items():
        found, shape = weights.committed(stage), getattr(PRESETS["tiny"], part)
        assert found is not None
        assert found.step == 40
        again = dict(weights.PARTS[part].weights(seeded_model(part, shape, 2)))
        model_again = weights.PARTS[part].model(shape)
        model_again.load_state_dict(found.parameters)
        for name, value in dict(weights.PARTS[part].weights(model_again)).items():
            np.testing.assert_allclose(value, again[name], rtol=2e-3, atol=2e-4, err_msg=name)


def test_the_page_plays_every_version_of_every_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice.build(rollout=8, threads=1)
    prompt = read_audio(PROMPT)[: 2 * 16_000]
    monkeypatch.setattr(listen, "prompts", lambda root, count: [("30-<1>", prompt)])
    places.write_json(
        places.cache("system") / "minutes.json", [{"minute": 1, "similarity": 0.71, "dnsmos": None}]
    )
    page = listen.run(tmp_path, tmp_path / "page", seconds=1.0).read_text(encoding="utf-8")
    assert "<th>30-&lt;1&gt;</th>" in page
    assert "<td>0.71</td><td>-</td>" in page
    for kind in listen.KINDS:
        heard, rate_hz = soundfile.read(tmp_path / "page" / f"30-<1>-{kind.name}.ogg")
        assert rate_hz == 16_000
        assert len(heard) == (16_000 if kind.name == "continuation" else len(prompt))
        assert (tmp_path / "page" / f"30-<1>-{kind.name}.png").stat().st_size > 1000
    assert "http" not in page, "nothing is fetched"


def test_a_voice_with_a_part_missing_names_it() -> None:
    (places.cache("acoustic") / "best.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="acoustic"):
        voice.build()
    assert not weights.VOICE.exists()


def test_a_bundle_too_large_to_commit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    build = voice.build
    monkeypatch.setattr(voice, "build", lambda: build(rollout=8, threads=1))
    monkeypatch.setattr(voice, "MOST_FILE_BYTES", 1000)
    with pytest.raises(ValueError, match="too large"):
        voice.ship()
