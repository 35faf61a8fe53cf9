"""``speechssm bench pipeline``: where the time of a second of speech goes, and how many can be made at once.

Per stage (tokenize, language model, acoustic, codec, host), first audio, gaps between pieces, real-time
factor and what a player would have heard, for each published schedule; then the largest number of
real-time sessions, by bisection, each load with listeners who play what they get.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.errors import BundleError
from speechssm.runtime.acoustic import SCHEDULES

from . import service
from .bench.probe import STAGES, Probe
from .bench.result import Cell, Figure, Plot, Section, Series, Table, measured, missing
from .bench.run import Bench
from .player import Playback, play
from .soak import prompt as prompt_of
from .steady import rss_bytes

PROMPT_S = 10.0
"""The paper's prompt of long-form continuation."""
LIMITS = {
    "default": {"rtf": 0.4, "first_audio_s": 1.0, "sessions": 2},
    "fast": {"rtf": 0.15, "first_audio_s": 0.5, "sessions": 6},
}
"""Of the demo voice on two cores."""
LOAD_MINUTES, QUICK_LOAD_MINUTES = (0.5, 0.35), (0.05, 0.05)
"""Length of a load of listeners, and of a probe for how many there may be."""
SELF_TEST_S, SEEN, ELSEWHERE = 0.03, 0.95, 0.5
"""Slept in each call of a stage; the least share of it that must show there, and the most that may elsewhere."""


@dataclass(frozen=True)
class Solo:
    """One session by itself, as fast as it goes."""

    schedule: str
    seconds: float
    wall_s: float
    arrivals_s: list[float]
    lengths_s: list[float]
    stages_s: dict[str, float]
    calls: dict[str, int]
    memory: list[tuple[float, int]]
    """Seconds of speech made, and resident bytes then."""

    @property
    def rtf(self) -> float:
        """Wall time over speech, from opening the session on."""
        return self.wall_s / self.seconds

    @property
    def playback(self) -> Playback:
        """What a listener heard."""
        return play(self.arrivals_s, self.lengths_s)

    @property
    def gaps_s(self) -> list[float]:
        """Between one piece and the next."""
        return [float(g) for g in np.diff(self.arrivals_s)] or [0.0]


def solo(bench: Bench, schedule: str, seconds: float, *, seed: int = 0, ramp: bool = True) -> Solo:
    """Open a session on a 10 s prompt and take ``seconds`` of speech from it."""
    model, probe = bench.model, bench.probe
    prompt = prompt_of(PROMPT_S, seed)
    arrivals: list[float] = []
    lengths: list[float] = []
    memory: list[tuple[float, int]] = []
    made = 0.0
    mark = probe.mark()
    with model.open(prompt, rate_hz=SAMPLE_RATE_HZ, seed=seed, ramp=ramp, schedule=schedule) as session:
        for piece in session.stream(seconds):
            arrivals.append(time.perf_counter() - mark.at)
            lengths.append(len(piece) / SAMPLE_RATE_HZ)
            made += lengths[-1]
            if not memory or made >= memory[-1][0] + 10:
                memory.append((made, rss_bytes()))
        stages = probe.since(mark)
        calls = probe.calls_since(mark)
    return Solo(schedule, made, arrivals[-1], arrivals, lengths, stages, calls, memory)


def first_audio(bench: Bench, schedules: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Seconds from ``open()`` on a loaded model to the first sample, schedules in turns."""
    found: dict[str, list[float]] = {name: [] for name in schedules}
    for i in range(rounds):
        for name in schedules if i % 2 == 0 else schedules[::-1]:
            found[name].append(solo(bench, name, 0.5, seed=i).arrivals_s[0])
    return found


def run(bench: Bench) -> Section:
    """Measure and report. Raises BundleError when the bundle cannot speak."""
    started = time.perf_counter()
    quick = bench.settings.quick
    if not bench.bundle.manifest.speaks:
        raise BundleError(
            f"bundle {bench.bundle.manifest.name} lacks parts, so it makes no speech: pass one with all four"
        )
    bench.say("pipeline: warming up ...")
    for name in SCHEDULES:
        solo(bench, name, 0.5)
    firsts = first_audio(bench, list(SCHEDULES), 3 if quick else 7)
    runs = []
    for name in SCHEDULES:
        seconds = 6.0 if quick else 60.0
        bench.say(f"pipeline: {seconds:.0f} s of speech, schedule {name} ...")
        runs.append(solo(bench, name, seconds))
    test = list(self_test(bench.probe, bench))
    long = None
    if not quick:
        bench.say("pipeline: 16 minutes, schedule fast ...")
        long = solo(bench, "fast", 960.0)
    loads = {name: _bisect(bench, name) for name in SCHEDULES}
    return _section(bench, time.perf_counter() - started, firsts, runs, test, long, loads)


def self_test(probe: Probe, bench: Bench) -> Iterator[dict[str, Any]]:
    """Sleep in each stage in turn: the same run with and without, stage by stage."""
    plain = solo(bench, "fast", 2.0)
    kept = dict(probe.delay_s)
    for graph, stage in STAGES.items():
        probe.delay_s = kept | {graph: SELF_TEST_S}
        try:
            slow = solo(bench, "fast", 2.0)
        finally:
            probe.delay_s = kept
        slept = SELF_TEST_S * slow.calls[graph]
        more = {name: slow.stages_s[name] - plain.stages_s[name] for name in slow.stages_s}
        yield {
            "stage": stage,
            "slept_s": slept,
            # What is slept is slept whole, so this cannot be less unless it is booked elsewhere.
            "seen_share": (more[stage] + plain.stages_s[stage]) / slept,
            "elsewhere_share": sum(max(0.0, v) for name, v in more.items() if name != stage) / slept,
        }


def _bisect(bench: Bench, schedule: str) -> dict[str, Any]:
    quick = bench.settings.quick
    most = min(bench.settings.sessions, 2) if quick else bench.settings.sessions
    bench.say(f"pipeline: real-time sessions, schedule {schedule}, at most {most} ...")

    def load(sessions: int, minutes: float) -> dict[str, Any]:
        return service.load(bench.model, sessions, minutes, schedule, ramp=True)

    return service.bisect(load, most, *(QUICK_LOAD_MINUTES if quick else LOAD_MINUTES))


def _section(
    bench: Bench,
    seconds: float,
    firsts: dict[str, list[float]],
    runs: Sequence[Solo],
    test: Sequence[dict[str, Any]],
    long: Solo | None,
    loads: dict[str, dict[str, Any]],
) -> Section:
    manifest = bench.bundle.manifest
    voice = "random weights" if manifest.seeded else "trained"
    return Section(
        name="pipeline",
        title="Pipeline: stages, first audio, real-time sessions",
        about=(
            f"Bundle {manifest.name} ({voice}), a prompt of {PROMPT_S:.0f} s of noise, with the ramp. Engine time is "
            "taken around every engine call; the host's is what no engine took. First audio is from open() on a "
            "loaded model to the first sample. Speech is taken as fast as it comes; a player that starts at "
            "the first piece says what a listener would have heard. The sessions at once are listeners in real time, "
            f"one every {service.EVERY_S:g} s, within half of the load's length."
        ),
        seconds=seconds,
        figures=tuple(_figures(firsts, runs, test, loads)),
        tables=(
            _stage_table(runs, bench),
            _play_table(runs, firsts),
            _load_table(loads),
            Table(
                name="self-test", title="Self-test: sleep in a stage shows in that stage",
                columns=("stage", "slept_s", "seen_share", "elsewhere_share"),
                rows=tuple(tuple(row.values()) for row in test),
                note="Elsewhere is what all other stages took more than in the run without: noise of the machine.",
            ),
        ),
        plots=tuple(_plots(runs, long, loads)),
        facts={"loads": loads, "calls": {r.schedule: r.calls for r in runs}},
    )  # fmt: skip


def _figures(
    firsts: dict[str, list[float]],
    runs: Sequence[Solo],
    test: Sequence[dict[str, Any]],
    loads: dict[str, dict[str, Any]],
) -> Iterable[Figure]:
    for one in runs:
        limits = LIMITS[one.schedule]
        yield measured(f"real-time factor, {one.schedule}", one.rtf, "", most=limits["rtf"])
        yield measured(
            f"first audio, {one.schedule}",
            statistics.median(firsts[one.schedule]),
            "s",
            most=limits["first_audio_s"],
        )
        yield measured(f"underruns, {one.schedule}", one.playback.underruns, "", most=0)
        largest = loads[one.schedule]["largest"]
        yield measured(f"real-time sessions, {one.schedule}", largest, "", least=limits["sessions"])
    yield measured("self-test: least share seen", min(row["seen_share"] for row in test), "", least=SEEN)
    # Short stages sleep little, so noise of the machine weighs more: the median stage is what is held.
    elsewhere = statistics.median(row["elsewhere_share"] for row in test)
    yield measured("self-test: share seen elsewhere", elsewhere, "", most=ELSEWHERE)
    yield missing(
        "word errors and similarity of a schedule", "", "see bench quality: they need a trained voice"
    )


def _stage_table(runs: Sequence[Solo], bench: Bench) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in runs:
        for stage, spent in one.stages_s.items():
            calls = next((one.calls.get(g, 0) for g, s in STAGES.items() if s == stage), None)
            rows.append((one.schedule, stage, calls, spent, 1e3 * spent / one.seconds, spent / one.wall_s))
    return Table(
        name="stages", title="Stages", rows=tuple(rows),
        columns=("schedule", "stage", "calls", "seconds", "ms per second of speech", "share of wall time"),
    )  # fmt: skip


def _play_table(runs: Sequence[Solo], firsts: dict[str, list[float]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in runs:
        heard = one.playback
        p50, p95, p99 = (float(v) for v in np.percentile(one.gaps_s, [50, 95, 99]))
        first = firsts[one.schedule]
        rows.append((
            one.schedule, one.seconds, one.rtf, statistics.median(first), min(first), max(first), p50, p95, p99,
            heard.underruns, heard.stalled_s, heard.least_ahead_s,
        ))  # fmt: skip
    return Table(
        name="playback", title="One session", rows=tuple(rows),
        columns=(
            "schedule", "speech_s", "rtf", "first_audio_s", "least", "most", "gap_p50_s", "gap_p95_s", "gap_p99_s",
            "underruns", "stalled_s", "least_ahead_s",
        ),
        note="Pieces are at most 2 s long; a gap is between the arrivals of two. least_ahead_s is the player's "
        "smallest buffer.",
    )  # fmt: skip


def _load_table(loads: dict[str, dict[str, Any]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for schedule, found in loads.items():
        for count, load in found["runs"].items():
            first, gap = load["first_audio_s"], load["piece_gap_s"]
            rows.append((
                schedule, int(count), load["minutes"], first["p50"], first["p95"], gap["p50"], gap["p95"], gap["p99"],
                load["underruns"], load["stalled_s"], load["rows_per_step"],
            ))  # fmt: skip
    return Table(
        name="sessions", title="Real-time sessions at once", rows=tuple(rows),
        columns=(
            "schedule", "sessions", "minutes", "first_audio_p50_s", "first_audio_p95_s", "gap_p50_s", "gap_p95_s",
            "gap_p99_s", "underruns", "stalled_s", "rows_per_step",
        ),
        note="Found by bisection: the largest number at which nobody ran dry is the figure above. "
        "python -m speechssm.perf.service holds a load for longer.",
    )  # fmt: skip


def _plots(runs: Sequence[Solo], long: Solo | None, loads: dict[str, dict[str, Any]]) -> Iterable[Plot]:
    names = tuple(one.schedule for one in runs)
    yield Plot(
        name="stage-shares", title="Time per second of speech, by stage", x_label="schedule",
        y_label="ms per second of speech", kind="stacked",
        series=tuple(
            Series(name=stage, x=names, y=tuple(1e3 * one.stages_s[stage] / one.seconds for one in runs))
            for stage in runs[0].stages_s
        ),
    )  # fmt: skip
    yield Plot(
        name="session-scaling", title="Gaps between pieces by sessions at once (p95)", x_label="real-time sessions",
        y_label="s",
        series=tuple(
            Series(
                name=schedule, x=tuple(float(n) for n in found["runs"]),
                y=tuple(load["piece_gap_s"]["p95"] for load in found["runs"].values()),
            )
            for schedule, found in loads.items()
        ),
    )  # fmt: skip
    if long is not None:
        yield Plot(
            name="memory-over-minutes", title="Resident memory of the process while one session speaks for 16 minutes",
            x_label="minutes of speech", y_label="MiB",
            series=(
                Series(
                    name="resident", x=tuple(s / 60 for s, _ in long.memory),
                    y=tuple(bytes_ / 2**20 for _, bytes_ in long.memory),
                ),
            ),
        )  # fmt: skip
