"""``speechssm plan``."""

from __future__ import annotations

import json

import pytest

from speechssm.cli.plan import size_bytes
from speechssm.errors import SettingsError
from tests.cli.test_generate import run

GPU = ("--bandwidth", 3350, "--flops", 600)


def test_plan_compares_griffin_with_its_transformers() -> None:
    done = run("plan", "--preset", "2b", "--memory", "80GiB", *GPU, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    griffin, mqa, mha = report["models"]
    assert report["tokens"] == 24_000
    assert griffin["session_bytes"] < 17 << 20
    # facts/anchors.md 0.10: about 17.5 times as many sessions at 16 384 tokens, more at 24 000.
    assert 17 < griffin["sessions_fit"] / mqa["sessions_fit"] < 50
    assert mqa["sessions_fit"] > 8 * mha["sessions_fit"]
    assert "griffin" in run("plan", "--preset", "2b", "--memory", "80GiB", *GPU).stdout


@pytest.mark.parametrize(
    ("text", "expected"), [("24GiB", 24 << 30), ("500MB", 500_000_000), ("1.5 gib", 3 << 29), ("7", 7)]
)
def test_sizes(text: str, expected: int) -> None:
    assert size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "many", "-1GiB", "3 quarts", "1e9"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a size"):
        size_bytes(text)


@pytest.mark.parametrize(
    "words", [("--preset", "3b"), ("--dtype", "int2"), ("--bandwidth", "-1"), ("--memory", "x")]
)
def test_mistakes_get_one_line(words: tuple[str, ...]) -> None:
    done = run("plan", *GPU, *words)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
