"""Each reader survives what :mod:`tests.fuzz` feeds it, in bounded time and memory.

100 000 inputs each are ``make test-slow``; the logs of such a run are in tests/fuzz/logs. Audio files have
their own, in tests/audio/test_read_fuzz.py.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from .readers import READERS, Reader

FEW = 1_000
MANY = 100_000


def run_apart(reader: str, count: int, seed: int, bundle: Path, folder: Path) -> str:
    words = [sys.executable, "-m", "tests.fuzz", reader, count, seed, bundle, folder]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, errors="replace", cwd=root, check=False
    )
    kept = [path.name for path in folder.iterdir()]
    assert done.returncode == 0, f"{folder} holds {kept}, ended with {done.returncode}: {done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("reader", READERS)
def test_damaged_inputs(reader: str, tiny_bundle: Path, tmp_path: Path) -> None:
    # One fixed seed here, so that a test run does not hang on luck; `python -m tests.fuzz` takes any.
    print(run_apart(reader, FEW, 1, tiny_bundle, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_hundred_thousand_damaged_inputs(reader: str, tiny_bundle: Path, tmp_path: Path) -> None:
    print(run_apart(reader, MANY, 1, tiny_bundle, tmp_path))


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_the_mutations_are_neither_all_refused_nor_all_taken(
    reader: Reader, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Control: some damage is harmless and most is not, so both sides of each reader are exercised."""
    rng = random.Random(7)
    outcomes = [reader(rng, tiny_bundle, tmp_path) for _ in range(150)]
    taken = sum(not outcome.startswith("refused") for outcome in outcomes)
    assert 2 <= taken <= 120
    assert len(set(outcomes)) > 10


def test_the_memory_limit_would_be_noticed() -> None:
    """Control: the same process fails when a reader asks for more than it is allowed."""
    names = "MEMORY_BYTES, limit_memory"
    code = f"from tests.fuzz.__main__ import {names}; limit_memory(); bytearray(MEMORY_BYTES + (64 << 20))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert "MemoryError" in done.stderr
