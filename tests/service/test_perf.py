"""The benchmarks run, and compare what they say they compare."""

from __future__ import annotations

from pathlib import Path

import pytest

import speechssm
from speechssm.perf import service as perf


def test_together_compares_the_bits(tiny_bundle: Path) -> None:
    report = perf.together(speechssm.load(tiny_bundle, threads=1), 3, 0.7, "fast")
    assert report["identical"] is True
    assert report["rows_per_step"] == 3.0
    assert report["lm_s_alone"] > 0


def test_a_short_load_and_a_short_soak(tiny_bundle: Path) -> None:
    model = speechssm.load(tiny_bundle, threads=1)
    load = perf.load(model, 2, 0.05, "fast", ramp=True)
    assert load["refused"] == 0
    assert load["cancel_s"]["count"] == 2
    soak = perf.soak(model, 0.03, 3)
    assert soak["threads_left"] == soak["files_left"] == soak["live_left"] == soak["state_bytes_left"] == 0
    assert sum(soak["ends"].values()) == soak["sessions"]
    assert "failed" not in soak["ends"]


@pytest.mark.slow
def test_half_an_hour_of_churn(tiny_bundle: Path) -> None:
    soak = perf.soak(speechssm.load(tiny_bundle, threads=1), 30, 16)
    print(soak)
    assert soak["grown_bytes"] < 16 << 20
    assert soak["threads_left"] == soak["files_left"] == soak["state_bytes_left"] == 0
    assert soak["orphaned_s"] < 0.01 * soak["engine_s"]
    assert soak["cancel_s"]["p95"] <= 0.5
