"""Measures of quality tell good from bad, and a judge that is absent is null with the reason."""

from __future__ import annotations

import json
import math
import stat
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper

import speechssm
from speechssm.errors import SettingsError
from speechssm.perf.bench.run import run as run_bench
from speechssm.perf.bench.settings import BenchSettings
from speechssm.perf.quality import signals
from speechssm.perf.quality.joins import PADDINGS, grid
from speechssm.perf.quality.judges import ROLES, Judges
from speechssm.perf.quality.speech import librispeech_long, spoken
from speechssm.perf.quality.words import coherence, judge_pairs, perplexity
from speechssm.runtime.acoustic import FAST_SCHEDULE

RATE = 16_000


def speechlike(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Noise whose colour and loudness wander: no two places are alike, none is abrupt."""
    n = round(seconds * RATE)
    slow = np.repeat(rng.uniform(0.2, 1.0, n // 1600 + 1), 1600)[:n]
    smooth = np.convolve(slow, np.ones(1600) / 1600, "same")
    return (0.2 * smooth * np.convolve(rng.standard_normal(n), np.ones(4) / 4, "same")).astype(np.float32)


def test_silence_is_a_share(rng: np.random.Generator) -> None:
    audio = speechlike(rng, 4)
    assert signals.silence(audio) < 0.05
    audio[RATE : 2 * RATE] = 0
    assert signals.silence(audio) == pytest.approx(0.25, abs=0.05)
    assert signals.silence(np.zeros(RATE, np.float32)) == 1.0
    assert signals.silence(np.zeros(3, np.float32)) == 1.0


def test_repetition_and_entropy_know_a_loop(rng: np.random.Generator) -> None:
    said = rng.integers(0, 400, 1500).tolist()
    loop = said[:25] * 60
    assert signals.repetition(said) < 0.01
    assert signals.repetition(loop) > 0.95
    assert signals.entropy(loop) < signals.entropy(said)
    assert signals.entropy([7] * 50) == 0
    assert signals.repetition([7] * 50) == 0, "a run is one token held"
    assert signals.repetition([]) == signals.entropy([]) == 0


def test_a_click_and_a_jump_stand_out(rng: np.random.Generator) -> None:
    audio = speechlike(rng, 6)
    places = [2 * RATE, 4 * RATE]
    smooth = signals.clicks(audio, places), signals.jumps(audio, places)
    audio[places[0] :] += np.float32(1.0)
    other = np.sin(2 * np.pi * 3000 * np.arange(2 * RATE) / RATE).astype(np.float32) / 4
    audio[places[1] :] = other
    assert signals.clicks(audio, places)[0] > 3 * max(smooth[0])
    assert signals.jumps(audio, places)[1] > 2 * max(smooth[1])
    assert signals.jumps(audio, []) == signals.clicks(audio, []) == []


def test_absent_judges_say_how_to_get_them() -> None:
    judges = Judges({})
    for role in ROLES:
        if judges.get(role) is None:
            assert any(word in judges.reason(role) for word in ("install", "--model", "cannot be opened")), (
                role
            )
    damaged = Judges({"asr": "/nonexistent", "speaker": "/nonexistent.onnx"})
    assert damaged.get("speaker") is None
    assert damaged.reason("speaker")


def test_a_speaker_model_may_be_any_onnx_file(tmp_path: Path, rng: np.random.Generator) -> None:
    given = helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["b", "n"])
    made = helper.make_tensor_value_info("voice", TensorProto.FLOAT, ["b", 2])
    nodes = [
        helper.make_node("ReduceMax", ["audio", "axis"], ["most"], keepdims=1),
        helper.make_node("ReduceMin", ["audio", "axis"], ["least"], keepdims=1),
        helper.make_node("Concat", ["most", "least"], ["voice"], axis=1),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "voice", [given], [made], [axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, str(tmp_path / "voice.onnx"))
    judges = Judges({"speaker": str(tmp_path / "voice.onnx")})
    embed = judges.get("speaker")
    assert embed is not None, judges.absent
    assert np.linalg.norm(embed(speechlike(rng, 1))) == pytest.approx(1)


def test_coherence_falls_where_the_topic_changes() -> None:
    def embed(text: str) -> np.ndarray:
        sea = sum(word == "sea" for word in text.split())
        vector = np.array([sea, len(text.split()) - sea], np.float32)
        return vector / np.linalg.norm(vector)

    steps = coherence("sea sea", "sea " * 100 + "hill " * 100 + "sea " * 60 + "x " * 10, embed)
    assert [words for words, _ in steps] == [100, 200, 270]
    assert steps[0][1] == pytest.approx(1)
    assert steps[1][1] == pytest.approx(0)
    assert coherence("sea", "sea " * 40, embed) == []


def test_perplexity_is_over_all_tokens() -> None:
    assert perplexity(["a b", "c"], lambda text: (math.log(8) * len(text.split()), len(text.split()))) == (
        pytest.approx(8)
    )
    assert math.isnan(perplexity([" "], lambda text: (0.0, 0)))


def judge(folder: Path, body: str) -> str:
    script = folder / "judge.py"
    script.write_text(f"import json, sys\npair = json.load(sys.stdin)\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return f"{sys.executable} {script}"


def test_a_judge_has_to_say_the_same_in_both_orders(tmp_path: Path) -> None:
    longer = judge(tmp_path, "print('a' if len(pair['a']) > len(pair['b']) else 'B is better')")
    found = judge_pairs(longer, ["p"] * 3, ["xx", "x", "xx"], ["y", "yy", "yy"])
    assert (found.first, found.second, found.undecided) == (1, 1, 1)
    assert found.win_share == 0.5
    biased = judge(tmp_path, "print('a')")
    assert judge_pairs(biased, ["p"], ["x"], ["y"]).undecided == 1, (
        "whoever always takes the first decides nothing"
    )
    with pytest.raises(SettingsError, match="judge"):
        judge_pairs(judge(tmp_path, "sys.exit(3)"), ["p"], ["x"], ["y"])


def test_the_grid_changes_only_what_overlap_and_padding_can(
    tiny_bundle: Path, rng: np.random.Generator
) -> None:
    """A window of 2 s, so that three fit in seconds: before the last window padding never matters (A2)."""
    model = speechssm.load(tiny_bundle, threads=1)
    stages = model.stages
    audio = speechlike(rng, 4)
    voice = stages.voice(audio, stages.tokenize(audio))
    tokens = rng.integers(0, 64, 121)
    found = {(j.overlap_s, j.padding): j for j in grid(stages, tokens, voice, FAST_SCHEDULE, (0.0, 0.4), 50)}
    assert {padding for _, padding in found} == set(PADDINGS)
    for overlap in (0.0, 0.4):
        base = found[overlap, "stream start"]
        assert len(base.joins) == 2
        assert len(base.audio) == 121 * 640
        for padding in PADDINGS:
            other = found[overlap, padding]
            assert other.joins == base.joins
            assert other.audio[: other.last].tobytes() == base.audio[: base.last].tobytes()
    assert found[0.0, "stream start"].joins != found[0.4, "stream start"].joins


def test_the_tokens_of_new_speech_are_those_the_model_said(
    tiny_bundle: Path, rng: np.random.Generator
) -> None:
    model = speechssm.load(tiny_bundle, threads=1)
    prompt = speechlike(rng, 2)
    said = spoken(model, prompt, 61.0, name="x", schedule="fast", seed=3)
    assert len(said.audio) == 61 * RATE
    assert len(said.tokens) == 61 * 25
    with model.open(prompt, rate_hz=RATE, seed=3) as session:
        expected = [int(session.lm.step().tokens[0]) for _ in range(61 * 25)]
    assert said.tokens.tolist() == expected


def test_recordings_are_judged_and_the_rest_is_null(
    tiny_bundle: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    soundfile.write(tmp_path / "one.wav", speechlike(rng, 30), RATE)
    settings = BenchSettings(
        quick=True, bundle=tiny_bundle, threads=1, speech=tmp_path, judge="false", minutes=0.3, models={}
    )
    section = run_bench(["quality"], settings, "").section("quality")
    minutes = next(t for t in section.tables if t.name == "minutes")
    row = dict(zip(minutes.columns, minutes.rows[0], strict=True))
    assert row["speech"] == "one"
    assert 0 <= row["silence"] <= 1
    joins = next(t for t in section.tables if t.name == "joins")
    assert {(r[0], r[1]) for r in joins.rows} == {(o, p) for o in (0.0, 4.0) for p in PADDINGS}
    for figure in section.figures:
        assert (figure.value is None) == bool(figure.reason)
    assert section.figure("SC-L: mean similarity of 100-word steps to the prompt").value is None
    json.loads(section.model_dump_json())


def test_a_librispeech_long_folder_gives_prompts_and_how_they_went_on(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    for speaker, chapter, name, seconds in (
        ("1", "2", "a", 30),
        ("1", "2", "b", 30),
        ("7", "9", "c", 30),
        ("8", "9", "d", 15),
    ):
        folder = tmp_path / "test-clean" / speaker / chapter
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{name}.flac", speechlike(rng, seconds), RATE)
    found = list(librispeech_long(tmp_path, 3))
    assert [name for name, _, _ in found] == ["a", "c"], (
        "one of every speaker first; too short ones are left out"
    )
    assert all(len(prompt) == 10 * RATE and len(truth) == 20 * RATE for _, prompt, truth in found)
    with pytest.raises(SettingsError, match="no recording"):
        list(librispeech_long(tmp_path / "none", 3))
