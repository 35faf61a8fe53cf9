"""Output that cannot be written: refused at once, or, in mid-stream, ended with a valid shorter file."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechssm
from speechssm.audio import AudioWriter, to_pcm16
from tests.attacks.attack import listing, refused, run

SECONDS = 12
WORDS = ("--seconds", SECONDS, "--seed", 3, "--ramp", "--schedule", "fast", "--threads", 1)


@pytest.fixture
def prompt(tmp_path_factory: pytest.TempPathFactory, rng: np.random.Generator) -> Path:
    path = tmp_path_factory.mktemp("prompt") / "prompt.wav"
    soundfile.write(path, 0.1 * rng.standard_normal(24_000), 16_000)
    return path


@pytest.fixture
def whole(prompt: Path, tiny_bundle: Path) -> np.ndarray:
    """What the undisturbed command writes, int16 (n)."""
    model = speechssm.load(tiny_bundle, threads=1)
    return to_pcm16(model.generate(prompt, seconds=SECONDS, seed=3, ramp=True, schedule="fast").audio)


PLACES = {
    "no folder": ("nowhere/x.wav", "there is no folder"),
    "a file for a folder": ("file/x.wav", "there is no folder"),
    "a folder": ("folder.wav", "exists and is not a file"),
    "a pipe": ("pipe.wav", "exists and is not a file"),
    "other ending": ("x.mp3", "must end in .wav"),
    "no ending": ("x", "must end in .wav"),
    "long name": ("x" * 300 + ".wav", "cannot be written"),
    "kernel's": ("/proc/x.wav", "cannot be written"),
    "device": ("/dev/full", "must end in .wav"),
    "escape": ("\x1b[2J/x.wav", "there is no folder"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_places(tmp_path: Path, prompt: Path, tiny_bundle: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    place, why = PLACES[kind]
    refused(tmp_path, "generate", prompt, "-o", tmp_path / place, "--bundle", tiny_bundle, *WORDS, why=why)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_one_may_not_write_to(tmp_path: Path, prompt: Path, tiny_bundle: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    refused(
        tmp_path,
        "generate",
        prompt,
        "-o",
        folder / "x.wav",
        "--bundle",
        tiny_bundle,
        *WORDS,
        why="you may write to",
    )


def test_a_folder_that_vanishes(
    tmp_path: Path, prompt: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    true_write = AudioWriter.write

    def write(self: AudioWriter, audio: np.ndarray) -> None:
        true_write(self, audio)
        shutil.rmtree(folder, ignore_errors=True)

    monkeypatch.setattr(AudioWriter, "write", write)
    done = run("generate", prompt, "-o", folder / "x.wav", "--bundle", tiny_bundle, *WORDS)
    assert done.code == 1
    assert "there is no folder" in done.err
    assert len(done.err.splitlines()) == 1
    assert "holds the first" not in done.err
    assert listing(tmp_path) == {}


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow past ``size``: a full disk that needs no root and no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", ["wav", "flac", "w64"])
def test_a_full_disk_leaves_what_was_written(
    tmp_path: Path, prompt: Path, tiny_bundle: Path, whole: np.ndarray, suffix: str, rng: np.random.Generator
) -> None:
    out = tmp_path / f"x.{suffix}"
    # A share of what the whole takes in this very format: FLAC packs it into less than two bytes a sample.
    with AudioWriter(out) as writer:
        writer.write((whole / 32768).astype(np.float32))
    size = int(out.stat().st_size * rng.uniform(0.35, 0.85))
    out.unlink()
    with largest_file(size):
        done = run("generate", prompt, "-o", out, "--bundle", tiny_bundle, *WORDS)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    assert "cannot grow after" in done.err
    assert f"{out} holds the first" in done.err
    assert list(listing(tmp_path)) == [out.name]
    audio, rate = soundfile.read(out, dtype="int16")
    assert rate == 16_000
    assert 20_000 < len(audio) < len(whole)
    assert np.array_equal(audio, whole[: len(audio)])
    if suffix == "wav":
        assert size - 100 < out.stat().st_size <= size, "all that fitted is there"


def test_a_disk_that_was_full_before(tmp_path: Path, prompt: Path, tiny_bundle: Path) -> None:
    with largest_file(0):
        done = run("generate", prompt, "-o", tmp_path / "x.wav", "--bundle", tiny_bundle, *WORDS)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    assert listing(tmp_path) == {}


def test_a_full_file_system(tmp_path: Path, prompt: Path, tiny_bundle: Path, whole: np.ndarray) -> None:
    """The same on a file system of 128 KiB, where this machine lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "speechssm-test", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount here; the file size limit above stands for it")
    try:
        done = run("generate", prompt, "-o", disk / "x.wav", "--bundle", tiny_bundle, *WORDS)
        assert done.code == 1
        assert "No space left on device" in done.err
        audio, _ = soundfile.read(disk / "x.wav", dtype="int16")
        assert 30_000 < len(audio) < 66_000
        assert np.array_equal(audio, whole[: len(audio)])
        assert list(listing(disk)) == ["x.wav"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_processes_one_output(tmp_path: Path, prompt: Path, tiny_bundle: Path, whole: np.ndarray) -> None:
    """Both finish; the file is whole and one of the two, and nothing else is left."""
    out = tmp_path / "x.wav"
    command = [
        sys.executable,
        "-m",
        "speechssm",
        "generate",
        str(prompt),
        "-o",
        str(out),
        "--bundle",
        str(tiny_bundle),
    ]
    words = [str(w) for w in WORDS]
    other = [*words[:3], "4", *words[4:]]
    running = [subprocess.Popen([*command, *w], stdout=subprocess.PIPE, text=True) for w in (words, other)]
    printed = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert "seed 3" in printed[0]
    assert "seed 4" in printed[1]
    audio, _ = soundfile.read(out, dtype="int16")
    assert len(audio) == len(whole)
    assert list(listing(tmp_path)) == ["x.wav"]
    model = speechssm.load(tiny_bundle, threads=1)
    second = to_pcm16(model.generate(prompt, seconds=SECONDS, seed=4, ramp=True, schedule="fast").audio)
    assert np.array_equal(audio, whole) or np.array_equal(audio, second)


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_full_terminal(tmp_path: Path, prompt: Path, tiny_bundle: Path, as_json: tuple[str, ...]) -> None:
    """The report cannot be printed: the speech is there, the exit code says that not all went well."""
    out = tmp_path / "x.wav"
    command = [sys.executable, "-m", "speechssm", "generate", str(prompt), "-o", str(out), "--seconds", "1"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, "--bundle", str(tiny_bundle), *as_json],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "speechssm: cannot go on: No space left on device\n")
    assert soundfile.info(out).frames == 16_000
