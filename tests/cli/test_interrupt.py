"""Ctrl-C, SIGTERM and kill -9 in the middle of a stream: what is on the disk afterwards, and the exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechssm
from speechssm.audio import read_audio, to_pcm16
from speechssm.cli import stopping
from tests.attacks.attack import listing

ENOUGH_BYTES = 200_000
PATIENCE_S = 240


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompt") / "prompt.wav"
    soundfile.write(path, 0.1 * np.random.default_rng().standard_normal(24_000), 16_000)
    return path


def start(prompt: Path, bundle: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    """A stream of a day, which nobody waits for. A dot is printed when Python itself is up."""
    code = "print('.', flush=True); from speechssm.__main__ import main; main()"
    command = [sys.executable, "-c", code, "generate", prompt, "-o", out, "--bundle", bundle]
    settings = ["--seconds", 86400, "--seed", 5, "--ramp", "--schedule", "fast", "--threads", 1, *words]
    words = tuple(str(word) for word in (*command, *settings))
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(folder: Path, size: int, process: subprocess.Popen[str]) -> Path:
    """The temporary file, once it holds ``size`` bytes."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        for path in folder.glob("*.partial"):
            if path.stat().st_size >= size:
                return path
        time.sleep(0.02)
    raise AssertionError(f"no {size} bytes after {PATIENCE_S} s: {listing(folder)}")


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, what was printed, what was complained about."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def expected(bundle: Path, prompt: Path, samples: int) -> np.ndarray:
    """The start of the same stream, made without a disturbance."""
    with speechssm.load(bundle, threads=1).open(prompt, seed=5, ramp=True, schedule="fast") as session:
        pieces, got = [], 0
        for piece in session.stream(86_400):
            pieces.append(piece)
            got += len(piece)
            if got >= samples:
                break
    return to_pcm16(np.concatenate(pieces))[:samples]


@pytest.mark.parametrize(
    ("number", "code", "word", "suffix"),
    [
        (signal.SIGINT, 130, "interrupted", "wav"),
        (signal.SIGTERM, 143, "terminated", "wav"),
        (signal.SIGINT, 130, "interrupted", "flac"),
    ],
)
def test_a_signal_leaves_a_valid_shorter_file(
    tmp_path: Path, tiny_bundle: Path, prompt: Path, number: int, code: int, word: str, suffix: str
) -> None:
    out = tmp_path / f"x.{suffix}"
    process = start(prompt, tiny_bundle, out)
    wait_for(tmp_path, ENOUGH_BYTES if suffix == "wav" else 1_000, process)
    process.send_signal(number)
    returned, printed, error = ended(process)
    assert (returned, printed) == (code, ".\n"), error
    audio, rate = soundfile.read(out, dtype="int16")
    assert rate == 16_000
    assert error == f"speechssm: {word}; {out} holds the first {len(audio) / 16_000:.1f} s\n"
    assert len(audio) >= 16_000
    assert list(listing(tmp_path)) == [out.name]
    assert np.array_equal(audio, expected(tiny_bundle, prompt, len(audio)))


def test_with_prompt_the_shorter_file_begins_with_it(tmp_path: Path, tiny_bundle: Path, prompt: Path) -> None:
    out = tmp_path / "x.wav"
    process = start(prompt, tiny_bundle, out, "--with-prompt")
    wait_for(tmp_path, ENOUGH_BYTES, process)
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    audio, _ = soundfile.read(out, dtype="int16")
    before = to_pcm16(read_audio(prompt))
    assert np.array_equal(audio[: len(before)], before)
    assert len(audio) > len(before)


def test_two_ctrl_c_are_not_worse_than_one(tmp_path: Path, tiny_bundle: Path, prompt: Path) -> None:
    """A second one, while the file is being finished, must not cost it."""
    out = tmp_path / "x.wav"
    process = start(prompt, tiny_bundle, out)
    wait_for(tmp_path, ENOUGH_BYTES, process)
    process.send_signal(signal.SIGINT)
    for _ in range(3):
        time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    code, _, error = ended(process)
    assert code in (130, -signal.SIGINT), error
    assert soundfile.info(out).frames > 16_000
    assert list(listing(tmp_path)) == ["x.wav"]


def test_kill_leaves_the_temporary_name_only(tmp_path: Path, tiny_bundle: Path, prompt: Path) -> None:
    """And the next run, with an older result in place, replaces it and does not mind the remains."""
    out = tmp_path / "x.wav"
    out.write_bytes(b"older")
    process = start(prompt, tiny_bundle, out)
    partial = wait_for(tmp_path, ENOUGH_BYTES, process)
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL
    assert set(listing(tmp_path)) == {"x.wav", partial.name}
    assert out.read_bytes() == b"older"
    again = start(prompt, tiny_bundle, out)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and not any(p != partial for p in tmp_path.glob("*.partial")):
        time.sleep(0.02)
    again.send_signal(signal.SIGTERM)
    assert ended(again)[0] == 143
    assert partial.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_swallowed_signal_is_noticed_at_the_next_piece() -> None:
    """Python drops what is raised in a destructor, such as the exception of a signal that came just then."""

    class Unlucky:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    handlers = {number: signal.getsignal(number) for number in stopping.CODES}
    stopping.listen()
    try:
        stopping.check()
        one = Unlucky()
        del one
        with pytest.raises(stopping.Stopped) as caught:
            stopping.check()
        assert caught.value.code == 130
        stopping.listen()
        stopping.check()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


MOMENTS_S = [0.02, 0.15, 0.4, 0.8]
MANY = [pytest.param(0.01 * 1.05**i, marks=pytest.mark.slow) for i in range(100)]


@pytest.mark.parametrize("delay_s", MOMENTS_S + MANY)
def test_a_signal_at_any_moment(
    tmp_path: Path, tiny_bundle: Path, prompt: Path, delay_s: float, rng: np.random.Generator
) -> None:
    """While Python starts, modules load, the bundle is checked or the prompt is read: no file, or a valid one."""
    out = tmp_path / "x.wav"
    number = signal.SIGTERM if rng.random() < 0.5 else signal.SIGINT
    process = start(prompt, tiny_bundle, out)
    assert process.stdout is not None
    assert process.stdout.readline() == ".\n"
    time.sleep(delay_s * float(rng.uniform(0.5, 2)))
    process.send_signal(number)
    code, _, error = ended(process)
    # Until our handlers are in place the system ends the process, as the shell's 130 and 143 also mean.
    assert code in ((130, -signal.SIGINT) if number == signal.SIGINT else (143, -signal.SIGTERM)), error
    if code > 0:
        assert len(error.splitlines()) == 1, error
    left = list(listing(tmp_path))
    assert left in ([], ["x.wav"])
    if left:
        assert soundfile.info(out).frames > 0
