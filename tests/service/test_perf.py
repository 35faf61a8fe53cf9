"""The benchmarks run, and compare what they say they compare."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import speechssm
from speechssm.perf import service as perf
from speechssm.perf import soak
from speechssm.runtime.service.service import Service


def test_together_compares_the_bits(tiny_bundle: Path) -> None:
    report = perf.together(speechssm.load(tiny_bundle, threads=1), 3, 0.7, "fast")
    assert report["identical"] is True
    assert report["rows_per_step"] == 3.0
    assert report["lm_s_alone"] > 0


def test_one_session_is_timed_by_schedule(tiny_bundle: Path) -> None:
    report = perf.alone(speechssm.load(tiny_bundle, threads=1), 1.0, repeats=1)
    assert report.keys() == {"default", "fast"}
    for one in report.values():
        assert 0 < one["first_audio_s"] <= one["first_audio_largest_s"]
        assert 0 < one["lm_s"] + one["acoustic_s"] + one["codec_s"] < one["rtf"] * 1.0


def test_a_short_load(tiny_bundle: Path) -> None:
    load = perf.load(speechssm.load(tiny_bundle, threads=1), 2, 0.05, "fast", ramp=True)
    assert load["refused"] == 0
    assert load["cancel_s"]["count"] == 2


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 6, 11, 16])
@pytest.mark.parametrize("longer", [0, 1])
def test_bisection_finds_the_largest_that_holds(limit: int, longer: int) -> None:
    """Also when ``longer`` runs hold fewer than probes; never past the most that is asked."""
    made: list[tuple[int, float]] = []

    def run(sessions: int, minutes: float) -> dict[str, Any]:
        made.append((sessions, minutes))
        dry = sessions > limit - longer * (minutes == 5)
        return {"underruns": int(dry), "without_audio": 0, "refused": 0}

    report = perf.bisect(run, 11, 5, 1)
    assert report["largest"] == max(0, min(limit, 11) - longer * (limit <= 11))
    assert {n for n, minutes in made if minutes == 1} <= set(range(1, 12))
    assert {1, max(1, report["largest"] // 2)} <= {int(n) for n in report["runs"]}


def sound(report: dict[str, Any]) -> None:
    """What must hold after churn of any length."""
    assert report["wrong"] == []
    assert report["unexplained"] == []
    left = ("threads_left", "files_left", "tasks_left", "live_left", "state_bytes_left")
    assert {name: report[name] for name in left} == dict.fromkeys(left, 0)


def test_a_short_soak(tiny_bundle: Path) -> None:
    report = soak.soak(speechssm.load(tiny_bundle, threads=1), 0.05, 3)
    sound(report)
    assert sum(report["ends"].values()) == report["sessions"] + report["forks"]


def test_the_soak_sees_other_samples(tiny_bundle: Path) -> None:
    """A reader that is given another stream than its own says so."""
    model = speechssm.load(tiny_bundle, threads=1)
    (text,) = soak.texts(model, (0.5,))
    with Service(model) as service:
        ticket = service.submit(text.prompt, **{**text.options, "seed": 77})
        reader = soak.Reader(ticket, text, 0)
        while reader.read(0.0, np.random.default_rng(0), hurry=True) is None:
            time.sleep(0.01)
    assert reader.wrong


@pytest.mark.slow
def test_half_an_hour_of_churn(tiny_bundle: Path) -> None:
    report = soak.soak(speechssm.load(tiny_bundle, threads=1), 30, 16, log=True)
    print(json.dumps(report))
    sound(report)
    assert report["grown_bytes"] < 16 << 20
    assert {"queued", "reading", "in a row", "in a window", "live"} <= report["cancelled_in"].keys()
    assert {"poisoned rows", "full disk", "refused lm_step", "refused acoustic"} <= report["faults"].keys()
    assert report["checkpoint_failures"] > 0
    assert report["orphaned_s"] < 0.01 * report["engine_s"]
    assert report["cancel_s"]["p95"] <= 0.5
