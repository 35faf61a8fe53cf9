"""Damaged and lying files by the thousand: each is read, or refused in one sentence, with little memory.

Run as a script it reads COUNT files made from SEED under a memory limit, as the slow test does:
``python tests/audio/test_read_fuzz.py COUNT SEED FOLDER``. The file in hand is FOLDER/fuzz, so a crash
leaves its cause behind. Beside this file lies the log of the last 100 000.
"""

import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssm.audio import read_audio
from speechssm.errors import AudioError

KINDS = (
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "MS_ADPCM"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_24"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
)
EXTREMES = tuple(
    value.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("little", "big")
)
HEADER_BYTES = 200
LONGEST_S = 5.0
"""No file of 1.2 s may take longer, on a machine with better things to do."""
MEMORY_BYTES = 256 << 20
"""Address space that reading may add to the process."""


@cache
def whole_files() -> tuple[bytes, ...]:
    """A valid file of 1.2 s in every format."""
    time_s = np.arange(19_200) / 16_000
    speech = (0.3 * np.sin(900 * time_s) * np.sin(7 * time_s)).astype(np.float32)
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for form, subtype in KINDS:
            path = Path(folder) / "whole"
            with soundfile.SoundFile(str(path), "w", 16_000, 1, subtype, format=form) as file:
                for first in range(0, len(speech), 4_096):
                    file.write(speech[first : first + 4_096])
            files.append(path.read_bytes())
    return tuple(files)


def damage(rng: random.Random) -> bytes:
    """One of the whole files with a few bytes bent, mostly in its header."""
    files = whole_files()
    content = bytearray(files[rng.randrange(len(files))])
    for _ in range(rng.randrange(1, 6)):
        end = min(len(content), HEADER_BYTES) if rng.random() < 0.8 else len(content)
        place = rng.randrange(max(1, end))
        match rng.randrange(7):
            case 0:
                content[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                content[place : place + 1] = (
                    bytes([content[place] ^ 1 << rng.randrange(8)]) if content else b""
                )
            case 2 | 3:
                value = EXTREMES[rng.randrange(len(EXTREMES))]
                content[place : place + len(value)] = value
            case 4:
                del content[place : place + rng.randrange(1, 64)]
            case 5:
                other = files[rng.randrange(len(files))]
                start = rng.randrange(len(other))
                content[place:place] = other[start : start + rng.randrange(1, 64)]
            case _:
                if rng.random() < 0.3:
                    del content[place:]
    return bytes(content)


def outcome(path: Path) -> str:
    """Read a file; return what became of it, or fail."""
    before = time.perf_counter()
    try:
        speech = read_audio(path)
    except AudioError as error:
        sentence = str(error).replace(str(path), "it")
    else:
        assert np.isfinite(speech).all()
        assert 16_000 <= len(speech) <= 3600 * 16_000
        sentence = ""
    assert time.perf_counter() - before < LONGEST_S
    assert "\n" not in sentence
    return "refused: " + re.sub(r"\d[-+.e\d]*", "#", sentence.split(":")[0]) if sentence else "read"


@given(st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rng: random.Random
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(damage(rng))
    outcome(path)


@given(
    st.binary(max_size=300),
    st.sampled_from([b"RIFF", b"fLaC", b"OggS", b"FORM", b"caff", b"\xff\xfb", b"ID3"]),
)
@settings(max_examples=200, deadline=None)
def test_garbage_behind_a_magic(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes, magic: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage"
    path.write_bytes(magic + garbage)
    assert outcome(path).startswith("refused")


def test_the_whole_files_are_whole(tmp_path: Path) -> None:
    """Control: without damage the same files are read, so refusals above mean something."""
    for content in whole_files():
        (tmp_path / "whole").write_bytes(content)
        assert outcome(tmp_path / "whole") == "read"


def run_apart(count: int, seed: int, folder: Path) -> str:
    out = subprocess.run(
        [sys.executable, __file__, str(count), str(seed), str(folder)],
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert out.returncode == 0, f"{folder / 'fuzz'} ended it with {out.returncode}: {out.stderr[-2000:]}"
    return out.stdout


def test_damaged_files_in_little_memory(tmp_path: Path) -> None:
    print(run_apart(500, random.randrange(2**32), tmp_path))


@pytest.mark.slow
def test_a_hundred_thousand_damaged_files(tmp_path: Path) -> None:
    print(run_apart(100_000, 1, tmp_path))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_the_memory_limit_would_be_noticed() -> None:
    """Control: the same process fails when the reader asks for more than it is allowed."""
    greed = MEMORY_BYTES + (64 << 20)
    code = f"import runpy; runpy.run_path({__file__!r})['limit_memory'](); bytearray({greed})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MemoryError" in out.stderr


def limit_memory() -> None:
    """Allow this process :data:`MEMORY_BYTES` more than it has now."""
    import resource

    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmSize:\s+(\d+)", status.read_text())
        assert found
        most = int(found[1]) * 1024 + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    count, seed, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    whole_files()
    limit_memory()
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    before = time.perf_counter()
    for _ in range(count):
        (folder / "fuzz").write_bytes(damage(rng))
        outcomes[outcome(folder / "fuzz")] += 1
    print(f"{count} damaged files from seed {seed} in {time.perf_counter() - before:.0f} s")
    for what, times in outcomes.most_common():
        print(f"{times:8d}  {what}")


if __name__ == "__main__":
    main()
