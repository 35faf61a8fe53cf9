"""``speechssm batch``: exactly one output per prompt, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechssm
from speechssm.audio import to_pcm16
from speechssm.errors import SettingsError
from speechssm.runtime.service.jobs import Journal, read_jobs

COMMAND = [sys.executable, "-c", "from speechssm.cli import main; main()", "batch"]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=200, check=False
    )


@pytest.fixture
def prompts(tmp_path: Path, rng: np.random.Generator) -> list[str]:
    names = ["a.wav", "b.flac"]
    for name in names:
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(24_000), 16_000)
    return names


def write_jobs(tmp_path: Path, jobs: list[dict[str, object]]) -> Path:
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n\n".join(json.dumps(job) for job in jobs))
    return path


def some_jobs(prompts: list[str]) -> list[dict[str, object]]:
    common: dict[str, object] = {"schedule": "fast", "ramp": True}
    return [
        {"prompt": prompts[0], "seconds": 2, "seed": 1, **common},
        {"prompt": prompts[1], "seconds": 0.5, "id": "mine", **common},
        {
            "prompt": prompts[1],
            "seconds": 3.01,
            "seed": 3,
            "speaker": prompts[0],
            "temperature": 2.0,
            **common,
        },
        {"prompt": prompts[0], "seconds": 1.0, "seed": 1, "with_prompt": True, **common},
    ]


def test_every_prompt_gets_its_audio_once(prompts: list[str], tiny_bundle: Path, tmp_path: Path) -> None:
    jobs, out = some_jobs(prompts), tmp_path / "out"
    words = (write_jobs(tmp_path, jobs), "-o", out, "--bundle", tiny_bundle, "--threads", 1, "--json")
    done = run(*words)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["jobs"], report["done"], report["skipped"], report["failed"]) == (4, 4, 0, 0)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(line["number"] for line in lines) == [0, 1, 2, 3]
    model = speechssm.load(tiny_bundle, threads=1)
    for line in lines:
        job = jobs[line["number"]]
        options = {k: v for k, v in job.items() if k not in ("prompt", "id", "with_prompt", "speaker")}
        speaker = tmp_path / str(job["speaker"]) if "speaker" in job else None
        alone = model.generate(
            tmp_path / str(job["prompt"]), **{**options, "seed": line["seed"]}, speaker=speaker
        )  # type: ignore[arg-type]
        audio, rate = soundfile.read(out / line["file"], dtype="int16")
        assert rate == 16_000
        if job.get("with_prompt"):
            assert len(audio) == 24_000 + len(alone.audio)
            audio = audio[24_000:]
        assert np.array_equal(audio, to_pcm16(alone.audio)), job
    assert {line["id"] for line in lines} == {None, "mine"}

    before = {path: path.stat().st_mtime_ns for path in out.glob("*.wav")}
    (out / "000002.wav").unlink()
    again = json.loads(run(*words).stdout.splitlines()[-1])
    assert (again["done"], again["skipped"]) == (1, 3)
    after = {path: path.stat().st_mtime_ns for path in out.glob("*.wav")}
    assert before.keys() == after.keys()
    assert sum(before[path] != after[path] for path in before) == 1

    jobs[0]["seconds"] = 1
    write_jobs(tmp_path, jobs)
    refused = run(*words)
    assert refused.returncode == 1
    assert "--overwrite" in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.wav")} == after


def test_one_bad_job_is_no_error_of_the_others(prompts: list[str], tiny_bundle: Path, tmp_path: Path) -> None:
    jobs = [*some_jobs(prompts)[:1], {"prompt": "missing.wav", "seconds": 1}]
    out = tmp_path / "out"
    words = (write_jobs(tmp_path, jobs), "-o", out, "--bundle", tiny_bundle, "--threads", 1, "--json")
    done = run(*words)
    assert done.returncode == 1
    assert "job 1: " in done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["done"], report["failed"]) == (1, 1)
    soundfile.write(tmp_path / "missing.wav", np.full(24_000, 0.1), 16_000)
    report = json.loads(run(*words).stdout.splitlines()[-1])
    assert (report["done"], report["skipped"], report["failed"]) == (1, 1, 0)
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "000000.wav",
        "000001.wav",
        "results.jsonl",
    ]


def test_killed_and_run_again(prompts: list[str], tiny_bundle: Path, tmp_path: Path) -> None:
    jobs = [
        {"prompt": prompts[i % 2], "seconds": 4, "seed": i, "schedule": "fast", "ramp": True}
        for i in range(30)
    ]
    out = tmp_path / "out"
    words = [write_jobs(tmp_path, jobs), "-o", out, "--bundle", tiny_bundle, "--threads", 1, "--together", 3]
    child = subprocess.Popen(
        [*COMMAND, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 100
    while time.monotonic() < until and len(list(out.glob("*.wav"))) < 4:
        time.sleep(0.01)
    second = run(*words)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert "another run" in second.stderr
    done = len(Journal(out / "results.jsonl").lines)
    assert 0 < done < 30
    report = json.loads(run(*words, "--json").stdout.splitlines()[-1])
    assert report["done"] + report["skipped"] == 30
    assert report["skipped"] >= done
    assert sorted(path.name for path in out.glob("0*")) == [f"{i:06d}.wav" for i in range(30)]
    model = speechssm.load(tiny_bundle, threads=1)
    for i in (0, 4, 29):
        alone = model.generate(tmp_path / prompts[i % 2], seconds=4, seed=i, schedule="fast", ramp=True)
        assert np.array_equal(soundfile.read(out / f"{i:06d}.wav", dtype="int16")[0], to_pcm16(alone.audio))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "not a JSON object"),
        ("[1]", "line 2"),
        ('{"seconds": 1}', "prompt"),
        ('{"prompt": "a.wav", "seconds": "1"}', "seconds"),
        ('{"prompt": "a.wav", "seconds": 0}', "seconds"),
        ('{"prompt": "a.wav", "seconds": 1, "volume": 11}', "volume"),
        ('{"prompt": "a.wav", "seconds": 1, "seed": -1}', "seed"),
        ('{"prompt": "a.wav", "seconds": 1, "ramp": "no"}', "ramp"),
        ('{"prompt": "a.wav", "seconds": NaN}', "seconds"),
        ('{"prompt": "' + "a" * 70_000 + '"}', "longer than"),
    ],
)
def test_a_bad_line_is_named_before_any_work(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt": "a.wav", "seconds": 1}\n' + line)
    with pytest.raises(SettingsError, match=message) as caught:
        read_jobs(path, "bundle")
    assert "line 2" in str(caught.value)


def test_identity_and_seed_of_a_job(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt": "a.wav", "seconds": 1}\n\n{"prompt": "a.wav", "seconds": 1, "id": "x"}\n')
    first, second = read_jobs(path, "bundle")
    assert (first.number, second.number) == (0, 1)
    assert first.seed != second.seed
    assert read_jobs(path, "bundle")[0] == first
    assert read_jobs(path, "other")[0].digest != first.digest
    assert first.prompt == tmp_path / "a.wav"
    path.write_text("\n \n")
    with pytest.raises(SettingsError, match="no job"):
        read_jobs(path, "bundle")
    with pytest.raises(SettingsError, match="cannot read"):
        read_jobs(tmp_path / "none", "bundle")


def test_a_torn_journal_line_counts_as_not_written(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt": "a.wav", "seconds": 1}\n' * 2)
    first, second = read_jobs(path, "bundle")
    audio = tmp_path / "x.wav"
    audio.touch()
    journal = Journal(tmp_path / "results.jsonl")
    journal.done(first)
    journal.done(second)
    raw = journal.path.read_bytes()
    for cut in range(len(raw) // 2 + 1, len(raw)):
        journal.path.write_bytes(raw[:cut])
        again = Journal(journal.path)
        assert again.is_done(first, audio)
        # The line's end may be all that is missing: then the line is whole.
        assert again.is_done(second, audio) == (cut == len(raw) - 1)
        again.done(second)
        assert Journal(journal.path).is_done(second, audio)
    assert not Journal(journal.path).is_done(second, tmp_path / "gone.wav")
