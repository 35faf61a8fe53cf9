"""Prompts and settings nobody should give: one sentence, a non-zero exit, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssm.audio import read_audio
from speechssm.errors import AudioError
from tests.attacks.attack import refused, run

SECOND = 16_000
ROOT = Path(__file__).parents[2]


@pytest.fixture
def prompt(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "prompt.wav"
    soundfile.write(path, noise(rng, 1.5), SECOND)
    return path


def noise(rng: np.random.Generator, seconds: float, channels: int | None = None) -> np.ndarray:
    n = round(seconds * SECOND)
    return (0.1 * rng.standard_normal((n, channels) if channels else n)).astype(np.float32)


# ---- prompts -----------------------------------------------------------------------------------------

Make = Callable[[Path, np.random.Generator], None]


def floats(bend: Callable[[np.ndarray], object]) -> Make:
    def make(path: Path, rng: np.random.Generator) -> None:
        audio = noise(rng, 2)
        bend(audio)
        soundfile.write(path, audio, SECOND, format="WAV", subtype="FLOAT")

    return make


def cut(form: str, share: float) -> Make:
    def make(path: Path, rng: np.random.Generator) -> None:
        soundfile.write(path, noise(rng, 3), SECOND, format=form)
        os.truncate(path, int(path.stat().st_size * share))

    return make


def lasting(seconds: float, rate: int = SECOND, channels: int | None = None) -> Make:
    def make(path: Path, rng: np.random.Generator) -> None:
        n = round(seconds * rate)
        soundfile.write(path, 0.1 * rng.standard_normal((n, channels) if channels else n), rate, format="WAV")

    return make


def an_hour_and_a_bit(path: Path, _rng: np.random.Generator) -> None:
    """A true header in front of a hole in the disk."""
    soundfile.write(path, np.zeros(1), 4_000, format="W64", subtype="PCM_U8")
    with soundfile.SoundFile(path, "w", 4_000, 1, "PCM_U8", format="W64") as file:
        for _ in range(3_601):
            file.write(np.zeros(4_000))


BAD_PROMPTS: dict[str, tuple[Make, str]] = {
    "missing": (lambda path, _: None, "there is no file"),
    "empty": (lambda path, _: path.write_bytes(b""), "is empty (0 bytes)"),
    "folder": (lambda path, _: path.mkdir(), "is a folder"),
    "pipe": (lambda path, _: os.mkfifo(path), "is a pipe or device"),
    "endless": (lambda path, _: path.symlink_to("/dev/zero"), "is a pipe or device"),
    "void": (lambda path, _: path.symlink_to("/dev/null"), "is a pipe or device"),
    "loop": (lambda path, _: path.symlink_to(path), "cannot be opened"),
    "text": (lambda path, _: path.write_text("hello " * 99), "is not audio that is read here"),
    "archive": (
        lambda path, _: path.write_bytes(b"PK\x03\x04" + bytes(999)),
        "is not audio that is read here",
    ),
    "cut wav": (cut("WAV", 0.5), "is truncated"),
    "cut flac": (cut("FLAC", 0.5), ""),
    "header only": (cut("WAV", 0.0005), ""),
    "nan": (floats(lambda a: a.__setitem__(12_345, np.nan)), "holds NaN or infinity at 0.772 s"),
    "infinite": (floats(lambda a: a.__setitem__(7, -np.inf)), "holds NaN or infinity"),
    "all nan": (floats(lambda a: a.fill(np.nan)), "holds NaN or infinity"),
    "loud": (floats(lambda a: a.__imul__(1e9)), "but full scale is 1"),
    "silent": (floats(lambda a: a.fill(0)), "is silent"),
    "too short": (lasting(0.9), "give at least 1 s"),
    "one sample": (lasting(1 / SECOND), "give at least 1 s"),
    "no samples": (lasting(0), "holds no samples"),
    "too long": (an_hour_and_a_bit, "at most 3600 s are read"),
    "many channels": (lasting(1, channels=33), "at most 32 are mixed"),
    "absurdly many channels": (lasting(0.01, channels=1_000), "at most 32 are mixed"),
    "slow": (lasting(2, rate=3_999), "has a sample rate of 3999 Hz"),
    "fast": (lasting(1.1, rate=500_000), "has a sample rate of 500000 Hz"),
}


@pytest.mark.parametrize("kind", BAD_PROMPTS)
def test_prompts(tmp_path: Path, tiny_bundle: Path, rng: np.random.Generator, kind: str) -> None:
    make, why = BAD_PROMPTS[kind]
    path = tmp_path / "bad prompt.wav"
    make(path, rng)
    message = refused(
        tmp_path, "generate", path, "-o", tmp_path / "x.wav", "--seconds", 1, "--bundle", tiny_bundle, why=why
    )
    assert "bad prompt.wav" in message


@pytest.mark.parametrize("kind", ["missing", "nan", "silent", "too short", "many channels"])
def test_speakers(
    tmp_path: Path, prompt: Path, tiny_bundle: Path, rng: np.random.Generator, kind: str
) -> None:
    """Another voice is a recording like the prompt; the prompt before it must not be left as a result."""
    make, why = BAD_PROMPTS[kind]
    path = tmp_path / "bad speaker.wav"
    make(path, rng)
    words = ("generate", prompt, "-o", tmp_path / "x.wav", "--seconds", 1, "--bundle", tiny_bundle)
    refused(tmp_path, *words, "--speaker", path, "--with-prompt", why=why)


def test_a_damaged_mp3_gets_one_sentence_and_no_notes_of_its_decoder(
    tmp_path: Path, prompt: Path, tiny_bundle: Path, rng: np.random.Generator
) -> None:
    """libmpg123 prints to descriptor 2 itself; as the prompt and as the other voice."""
    bad = tmp_path / "bad.mp3"
    # By blocks: libsndfile's encoder has its workspace on the stack.
    with soundfile.SoundFile(bad, "w", SECOND, 1, "MPEG_LAYER_III", format="MP3") as file:
        for _ in range(2):
            file.write(noise(rng, 1))
    content = bytearray(bad.read_bytes())
    content[2_000:2_800] = bytes(800)
    bad.write_bytes(content[:-2_500])
    code = "from tests.cli.test_bad_input import refusal_of; refusal_of()"
    noisy = subprocess.run(
        [sys.executable, "-c", code, bad], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "is truncated" in noisy.stdout
    assert "Illegal Audio-MPEG-Header" in noisy.stderr, "control: the decoder has something to say"
    words = ["-o", tmp_path / "x.wav", "--seconds", 1, "--bundle", tiny_bundle]
    for given in ([bad, *words], [prompt, *words, "--speaker", bad]):
        command = [sys.executable, "-m", "speechssm", "generate", *map(str, given)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"speechssm: {bad} is truncated"), done.stderr
        assert len(done.stderr.splitlines()) == 1


def refusal_of() -> None:
    """Print why ``read_audio`` refuses the file named first on the command line."""
    try:
        read_audio(sys.argv[1])
    except AudioError as error:
        print(error)


@pytest.mark.parametrize(
    "name", ["a\nb.wav", "\x1b[2Jx.wav", "x" * 300, "a" * 5_000, "\u202eb.wav", "x\udcff.wav"]
)
def test_prompt_names(tmp_path: Path, tiny_bundle: Path, name: str) -> None:
    """A name is quoted in the refusal, and must not reach the terminal as it is."""
    words = ("generate", name, "-o", tmp_path / "x.wav", "--seconds", 1, "--bundle", tiny_bundle)
    refused(tmp_path, *words, why="")


def test_control(tmp_path: Path, prompt: Path, tiny_bundle: Path, rng: np.random.Generator) -> None:
    """At the edges of what is refused, the same command succeeds."""
    lasting(1.0)(tmp_path / "one.wav", rng)
    lasting(1.0, channels=32)(tmp_path / "many.wav", rng)
    for path in (prompt, tmp_path / "one.wav", tmp_path / "many.wav"):
        words = ("generate", path, "-o", tmp_path / "x.wav", "--seconds", 0.04, "--bundle", tiny_bundle)
        assert run(*words, "--threads", 1, "--schedule", "fast").code == 0


# ---- settings ----------------------------------------------------------------------------------------

BAD_SETTINGS = [
    ("--seconds", "0", "above zero"),
    ("--seconds", "-1", "above zero"),
    ("--seconds", "nan", "above zero"),
    ("--seconds", "inf", "above zero"),
    ("--seconds", "-inf", "above zero"),
    ("--seconds", "1e-9", "above zero"),
    ("--seconds", "86400.1", "--unbounded"),
    ("--seconds", "1e300", "--unbounded"),
    ("--temperature", "-0.1", "temperature is -0.1"),
    ("--temperature", "nan", "temperature is nan"),
    ("--temperature", "inf", "temperature is inf"),
    ("--temperature", "1e9", "temperature is"),
    ("--top-k", "-1", "top_k is -1"),
    ("--top-k", "65", "sorts at most 64"),
    ("--top-k", "99999999999999999999", "top_k is"),
    ("--top-p", "0", "top_p is 0"),
    ("--top-p", "-1", "top_p is -1"),
    ("--top-p", "1.1", "top_p is 1.1"),
    ("--top-p", "nan", "top_p is nan"),
    ("--seed", "-1", "the seed is -1"),
    ("--seed", str(1 << 64), "the seed is"),
    ("--threads", "100000", "threads is 100000"),
    ("--threads", "99999999999999999999", "threads is"),
]


@pytest.mark.parametrize(("option", "value", "why"), BAD_SETTINGS)
def test_settings(tmp_path: Path, prompt: Path, tiny_bundle: Path, option: str, value: str, why: str) -> None:
    """Even with the prompt to be put in front: a prompt alone is no result."""
    given = {"--seconds": "1", option: value}
    words = [word for pair in given.items() for word in pair]
    out = tmp_path / "x.wav"
    refused(
        tmp_path, "generate", prompt, "-o", out, "--bundle", tiny_bundle, "--with-prompt", *words, why=why
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--seconds", "ten"),
        ("--seconds", ""),
        ("--temperature", "hot"),
        ("--top-k", "1.5"),
        ("--seed", "0x10"),
        ("--threads", "-1"),
        ("--schedule", "slow"),
        ("--provider", "quantum"),
        ("--nonsense", "1"),
        ("--seed", "9" * 5_000),
        ("--seed", "\x1b[2J"),
    ],
)
def test_words_that_are_no_values(tmp_path: Path, prompt: Path, option: str, value: str) -> None:
    """The command line's own refusals: exit code 2, one sentence."""
    given = {"--seconds": "1", option: value}
    words = [word for pair in given.items() for word in pair]
    message = refused(tmp_path, "generate", prompt, "-o", tmp_path / "x.wav", *words, why="", code=2)
    assert option.lstrip("-") in message


def test_unbounded_beyond_the_last_position(tmp_path: Path, prompt: Path, tiny_bundle: Path) -> None:
    words = ("generate", prompt, "-o", tmp_path / "x.wav", "--bundle", tiny_bundle, "--unbounded")
    for seconds in ("1e300", "700000"):
        refused(tmp_path, *words, "--seconds", seconds, why="seconds is")
    refused(tmp_path, *words, "--seconds", "inf", why="above zero")


def test_a_setting_that_fails_leaves_an_older_file_alone(
    tmp_path: Path, prompt: Path, tiny_bundle: Path
) -> None:
    out = tmp_path / "x.wav"
    out.write_bytes(b"older")
    words = ("generate", prompt, "-o", out, "--seconds", 1, "--bundle", tiny_bundle, "--top-p", 7)
    refused(tmp_path, *words, why="top_p is 7")
    assert out.read_bytes() == b"older"
