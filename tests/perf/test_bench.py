"""``speechssm bench --quick``: the shape of what it writes, that its clocks tell the truth, and never a time."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest

from speechssm.cli import bench as bench_command
from speechssm.errors import SpeechSSMError
from speechssm.perf import peers, pipeline, roofline, stages, throughput
from speechssm.perf.bench.probe import STAGES, Probe
from speechssm.perf.bench.report import HTML, JSON, MARKDOWN, read, summary, write
from speechssm.perf.bench.result import Figure, Report, Section, Table, measured, missing
from speechssm.perf.bench.run import BENCHMARKS, Bench
from speechssm.perf.bench.run import run as run_bench
from speechssm.perf.bench.settings import BenchSettings
from speechssm.perf.bench.timing import in_turns
from speechssm.perf.contest import SHAPES
from speechssm.perf.pipeline import solo
from speechssm.perf.player import play
from speechssm.perf.throughput import break_even
from tests.cli.test_generate import run

PLOTS = {
    "lm": {"time-per-token", "decode-time", "throughput-ratio", "state-over-minutes"},
    "lm-gpu": set(),  # without a GPU a figure that says so; with one the plots of lm
    "peers": {"peers"},
    "pipeline": {"stage-shares", "session-scaling"},
    "roofline": {"stage-limits"},
    "quality": {"quality-silence", "quality-repetition", "quality-entropy"},
}


@pytest.fixture(scope="module")
def written(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("bench")
    settings = BenchSettings(
        quick=True,
        bundle=tiny_bundle,
        threads=1,
        sessions=1,
        shape="tiny",
        budget_bytes=300 << 10,
        minutes=0.1,
    )
    with pytest.MonkeyPatch.context() as patch:
        # Every benchmark runs whole; only how often a thing is timed is less, for no time is looked at here.
        for module in (throughput, peers, stages):
            patch.setattr(module, "QUICK_TURN_S", 0.05)
        patch.setattr(pipeline, "QUICK_LOAD_MINUTES", (0.01, 0.01))
        patch.setattr(roofline, "BUFFER_BYTES", 2 * roofline.PIECE_BYTES)
        report = run_bench(list(BENCHMARKS), settings, "speechssm bench all --quick")
    write(report, out)
    return out, summary(report)


def test_a_report_shows_no_folder_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv",
        ["speechssm", "bench", "all", "--model", "asr=/home/me/whisper", "-o", "/data/out", "--bundle=a/b"],
    )
    assert bench_command._command() == "speechssm bench all --model asr=whisper -o out --bundle=b"


def test_a_quick_run_writes_every_page(written: tuple[Path, str]) -> None:
    out, printed = written
    report = read(out / JSON)
    assert [s.name for s in report.sections] == list(BENCHMARKS)
    for section in report.sections:
        assert PLOTS[section.name] <= {plot.name for plot in section.plots}
        assert section.figures
        assert section.tables or section.name == "lm-gpu"
        for plot in section.plots:
            assert (out / "plots" / f"{plot.name}.svg").read_text().startswith("<svg")
    last = json.loads(printed.splitlines()[-1])
    assert last["figures"].keys() == {s.name for s in report.sections}
    for name, value in last["figures"]["lm"].items():
        assert value is not None or last["missing"][f"lm.{name}"]
    environment = report.environment
    assert {"commit", "cpu", "threads", "load_average", "packages", "gpu"} <= environment.keys()
    assert str(out) not in (out / JSON).read_text(), "a report names no folder of this machine"


def test_the_pages_stand_alone_and_say_what_the_data_say(written: tuple[Path, str]) -> None:
    out, _ = written
    html = (out / HTML).read_text()
    assert not re.search(r'(?:src|href)\s*=\s*"(?!#)', html.replace("xlink:href", "")), (
        "it needs no other file"
    )
    assert "<script" not in html
    report = read(out / JSON)
    for section in report.sections:
        assert f'id="{section.name}"' in html
        for figure in section.figures:
            if figure.reason:
                assert "null: " in html
    markdown = (out / MARKDOWN).read_text()
    for section in report.sections:
        for table in section.tables:
            header = f"| {' | '.join(table.columns)} |"
            lines = markdown.splitlines()
            at = lines.index(header)
            assert lines[at + 1] == "|" + " --- |" * len(table.columns)
            assert sum(1 for _ in _rows_below(lines, at + 2)) == len(table.rows)


def _rows_below(lines: list[str], at: int) -> list[str]:
    end = next((i for i in range(at, len(lines)) if not lines[i].startswith("|")), len(lines))
    return lines[at:end]


def test_the_language_models_rows_say_what_must_be_known(written: tuple[Path, str]) -> None:
    section = read(written[0] / JSON).section("lm")
    tables = {table.name: table for table in section.tables}
    seven = tables["figure-7"]
    assert {"kv_heads", "cache", "precision", "floor_s", "share_of_floor"} <= set(seven.columns)
    models = {row[0] for row in seven.rows}
    assert models == {"griffin", "transformer-mqa", "transformer-mha"}
    ratios = [dict(zip(tables["ratios"].columns, row, strict=True)) for row in tables["ratios"].rows]
    for row in ratios:
        assert row["ceiling"] > 0
        assert math.isclose(row["ratio_over_ceiling"], row["ratio"] / row["ceiling"])
    # What a memory budget holds is arithmetic, so it can be compared: Griffin fits more the longer it gets.
    at_end = [row for row in ratios if row["at"] == "end" and row["model"] == "transformer-mha"]
    fits = [row["griffin_rows"] / row["rows"] for row in at_end]
    assert fits == sorted(fits)
    (peers,) = read(written[0] / JSON).section("peers").tables
    assert {row[0] for row in peers.rows} >= {"Hugging Face, eager", "Google DeepMind, PyTorch"}
    for row in peers.rows:
        assert (row[1] is None) == bool(row[-1]), "a peer that is absent is null with the reason"


def test_the_self_test_found_every_sleep_where_it_was_put(written: tuple[Path, str]) -> None:
    table = next(t for t in read(written[0] / JSON).section("pipeline").tables if t.name == "self-test")
    assert {row[0] for row in table.rows} == set(STAGES.values())
    for _, slept, seen, _ in table.rows:
        assert slept > 0
        assert seen >= 0.95


def test_a_sleep_put_into_one_stage_by_hand_shows_there(tiny_bundle: Path, tmp_path: Path) -> None:
    delay = {"codec_decode": 0.05}
    bench = Bench(BenchSettings(quick=True, bundle=tiny_bundle, threads=1, delay_s=delay), tmp_path)
    found = solo(bench, "fast", 2.0)
    assert found.stages_s["codec"] >= 0.05 * found.calls["codec_decode"] > 0


def test_time_that_no_engine_took_is_the_hosts() -> None:
    class Graph:
        name, provider = "acoustic", "none"

        def call(self, inputs: object, outputs: object) -> list[object]:
            time.sleep(0.02)
            return []

    probe = Probe(lambda _: Graph())  # type: ignore[arg-type, return-value]
    mark = probe.mark()
    probe("acoustic").call({}, [])
    time.sleep(0.03)
    stages = probe.since(mark)
    assert stages["acoustic"] >= 0.02
    assert stages["host"] >= 0.03
    assert stages["LM"] == 0
    assert probe.calls_since(mark) == {"acoustic": 1}


def test_a_bundle_that_cannot_speak_costs_only_its_section(tmp_path: Path) -> None:
    from speechssm.export.checkpoints.seeded import seeded_griffin
    from speechssm.export.exporter import export_models
    from speechssm.export.presets import PRESETS

    shape = PRESETS["tiny"].lm
    models = {"lm": seeded_griffin(shape, 0)}
    export_models("lm", {"lm": shape}, models, tmp_path / "lm", about="LM only", seeded=True, rollout=8)
    settings = BenchSettings(
        quick=True, bundle=tmp_path / "lm", threads=1, shape="tiny", budget_bytes=1 << 18
    )
    report = run_bench(["pipeline", "roofline"], settings, "")
    assert report.section("pipeline").figures[0].value is None
    assert "lacks parts" in str(report.section("pipeline").figures[0].reason)
    write(report, tmp_path / "report")


# the pieces


def test_turns_alternate_and_count() -> None:
    order: list[str] = []
    found = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0, at_least=4)
    assert "".join(order) == "ab" + "abba" * 2
    assert found["a"].count == found["b"].count == 4
    assert found["a"].low <= found["a"].median <= found["a"].high


def test_a_null_has_a_reason_and_is_never_a_pass() -> None:
    assert missing("x", "s", "not installed", most=1.0).met is False
    assert missing("x", "s", "not installed").met is None
    assert measured("x", 1.0, "s", most=1.0).met is True
    assert measured("x", 1.1, "s", most=1.0).met is False
    assert measured("x", 1.1, "s", least=1.0).met is True
    assert measured("x", float("nan"), "s").reason
    with pytest.raises(ValueError, match="a null has a reason"):
        Figure(name="x", value=None, unit="s")
    with pytest.raises(ValueError, match="a null has a reason"):
        Figure(name="x", value=1.0, unit="s", reason="why")
    with pytest.raises(ValueError, match="2 cells under 1 columns"):
        Table(name="t", title="", columns=("a",), rows=((1, 2),))


def test_pages_escape_what_they_are_given(tmp_path: Path) -> None:
    section = Section(
        name="x", title="<b>&", about="<script>", seconds=0, figures=(missing("<i>", "", "<u>"),)
    )
    report = Report(command="<x>", quick=False, started="", seconds=0, environment={}, sections=(section,))
    write(report, tmp_path)
    html = (tmp_path / HTML).read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize(
    ("arrivals", "lengths", "underruns", "stalled", "least"),
    [
        ([1.0], [2.0], 0, 0.0, 0.0),
        ([1.0, 2.0, 4.5], [2.0, 2.0, 2.0], 0, 0.0, 0.0),
        ([1.0, 3.5], [2.0, 2.0], 1, 0.5, -0.5),
        # Late once, the listener waits, and the next piece is in time again.
        ([0.0, 3.0, 4.0], [1.0, 2.0, 1.0], 1, 2.0, -2.0),
    ],
)
def test_the_player(
    arrivals: list[float], lengths: list[float], underruns: int, stalled: float, least: float
) -> None:
    heard = play(arrivals, lengths)
    assert (heard.underruns, heard.first_s) == (underruns, arrivals[0])
    assert heard.stalled_s == pytest.approx(stalled)
    assert heard.least_ahead_s == pytest.approx(least)


def test_where_one_overtakes_the_other() -> None:
    assert break_even([100, 1000], [0.1, 10.0]) == pytest.approx(316.2, rel=1e-3)
    assert break_even([100, 1000], [2.0, 10.0]) is None
    assert break_even([100, 1000], [0.1, 0.5]) is None


def test_the_cpu_shape_is_what_the_pages_say() -> None:
    shape = SHAPES["40m"]
    assert shape.window == 512
    assert round(shape.parameters / 1e6) == 40


@pytest.mark.parametrize(
    ("what", "given", "message"),
    [
        ("lm", {"shape": "3b"}, "there is no preset '3b'"),
        ("roofline", {"bundle": Path("nowhere")}, "nowhere"),
        ("pipeline", {"bundle": Path("nowhere")}, "nowhere"),
    ],
)
def test_a_benchmark_asked_for_alone_says_why_it_cannot_run(
    what: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpeechSSMError, match=message):
        run_bench([what], BenchSettings(quick=True, **given), "")


def test_the_command_prints_json_last(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run(
        "bench", "roofline", "--quick", "-o", tmp_path / "out", "--bundle", tiny_bundle, "--threads", 1
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["figures"]["roofline"]["read bandwidth"] > 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "report.html",
        "report.md",
        "report.json",
        "plots",
    }
