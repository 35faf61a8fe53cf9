"""The command line as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechssm
from speechssm.audio import to_pcm16


def run(*words: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from speechssm.cli import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture
def prompt(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Stereo at 44.1 kHz, so that mixing and resampling take part."""
    path = tmp_path / "prompt.flac"
    soundfile.write(path, 0.1 * rng.standard_normal((3 * 44_100, 2)), 44_100)
    return path


def test_generate_prints_one_json_object_last(prompt: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    done = run(
        "generate", prompt, "-o", out, "--seconds", 2.5, "--seed", 7, "--bundle", tiny_bundle, "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert list(report) == [
        "seconds", "sample_rate_hz", "tokens", "windows", "rtf", "first_audio_s", "lm_s", "acoustic_s", "codec_s",
        "peak_rss_bytes", "seed", "bundle",
    ]  # fmt: skip
    assert (report["seconds"], report["sample_rate_hz"], report["seed"]) == (2.5, 16_000, 7)
    audio, rate = soundfile.read(out, dtype="int16")
    assert (len(audio), rate) == (40_000, 16_000)
    assert done.stderr == ""
    same = speechssm.load(tiny_bundle).generate(prompt, seconds=2.5, seed=7)
    assert np.array_equal(to_pcm16(same.audio), audio)


def test_with_prompt_puts_it_in_front_sample_for_sample(
    prompt: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    plain, joined = tmp_path / "plain.wav", tmp_path / "joined.flac"
    common = ("--seconds", 1, "--seed", 1, "--bundle", tiny_bundle)
    for out, extra in ((plain, ()), (joined, ("--with-prompt",))):
        done = run("generate", prompt, "-o", out, *common, *extra)
        assert done.returncode == 0, done.stderr
        assert "noise: this bundle has random weights" in done.stdout
    new, whole = (soundfile.read(path, dtype="int16")[0] for path in (plain, joined))
    read = to_pcm16(speechssm.audio.read_audio(prompt))
    assert np.array_equal(whole, np.concatenate([read, new]))


def test_options_reach_the_session(prompt: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    outs = []
    for i, extra in enumerate(((), ("--temperature", 0), ("--top-k", 1), ("--schedule", "fast"))):
        out = tmp_path / f"{i}.wav"
        words = ("--seconds", 1, "--seed", 1, "--bundle", tiny_bundle, "--ramp", *extra)
        done = run("generate", prompt, "-o", out, *words)
        assert done.returncode == 0, done.stderr
        outs.append(out.read_bytes())
    assert outs[1] == outs[2], "top-k 1 is the likeliest token"
    assert outs[0] != outs[3]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, ""),
        (("generate", "x.wav"), 2, "Missing option"),
        (("frobnicate",), 2, "No such command"),
        (("inspect", "nowhere"), 1, "there is no bundle at nowhere"),
        (("export", "--preset", "huge", "-o", "x"), 1, "there is no preset 'huge'"),
        (("generate", "x.wav", "-o", "y.wav", "--seconds", "90000"), 1, "--unbounded"),
    ],
)
def test_mistakes_get_one_line(words: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    done = run(*words)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 1


def test_export_inspect_verify_doctor(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    done = run("export", "--preset", "tiny", "--seed", 3, "-o", folder, "--dtype", "float16", "--rollout", 64)
    assert done.returncode == 0, done.stderr
    again = run("export", "--preset", "tiny", "--seed", 3, "-o", folder)
    assert again.returncode == 1
    assert "already exists" in again.stderr
    report = json.loads(run("inspect", folder, "--json").stdout)
    assert report["seeded"] is True
    assert "F16" in report["weights"]["lm.safetensors"]["types"]
    assert report["graphs"]["lm_step"]["operators"]["MatMul"] > 0
    assert report["state_bytes_per_session"]["lm"] == 4 * (4 * 40 + 4 * 3 * 40 + 2 * 16 * 2 * 8) + 8
    assert "lm_step" in run("inspect", folder).stdout
    assert "sound" in run("verify", folder).stdout
    doctor = json.loads(run("doctor", "--json").stdout)
    assert {"speechssm", "onnxruntime", "torch"} <= {finding["name"] for finding in doctor}
