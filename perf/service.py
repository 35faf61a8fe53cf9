"""What many sessions at once cost and gain, on the machine this runs on.

    python -m speechssm.perf.service alone BUNDLE      one session: first audio, real-time factor
    python -m speechssm.perf.service together BUNDLE   co-scheduled against one after another, bits compared
    python -m speechssm.perf.service decode BUNDLE     gaps between a session's tokens, alone and beside prompts
    python -m speechssm.perf.service load BUNDLE       N real-time listeners: first audio, gaps, underruns
    python -m speechssm.perf.service bisect BUNDLE     the largest N without an underrun

The last line printed is one JSON object. Wall times are of this machine as it is; ``cpu_s`` is processor
time, which neighbours on a shared machine disturb less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import speechssm
from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.errors import CapacityError
from speechssm.runtime.acoustic import SCHEDULES
from speechssm.runtime.lm import LMRows
from speechssm.runtime.model import Model
from speechssm.runtime.service.limits import ServiceLimits
from speechssm.runtime.service.outlet import End
from speechssm.runtime.service.service import Service
from speechssm.runtime.service.ticket import Ticket
from speechssm.runtime.settings import SamplerSettings

from .soak import prompt

EVERY_S = 10.0
"""Seconds between two arrivals of a load."""


def alone(model: Model, seconds: float, repeats: int = 5) -> dict[str, Any]:
    """One session by schedule: first audio from ``open`` with the ramp, and the real-time factor of ``seconds``.

    A 3 s prompt, every graph open already. Medians of ``repeats`` for the first audio, in turns.
    """
    said = prompt(3.0, 0)
    first: dict[str, list[float]] = {name: [] for name in SCHEDULES}
    for repeat in range(repeats + 1):
        for name in SCHEDULES:
            started = time.perf_counter()
            options: dict[str, Any] = {"rate_hz": SAMPLE_RATE_HZ, "schedule": name, "seed": repeat}
            with model.open(said, ramp=True, **options) as session:
                next(session.stream(10.0))
                if repeat:  # the first opens the graphs
                    first[name].append(time.perf_counter() - started)
    found: dict[str, Any] = {}
    for name in SCHEDULES:
        wall, cpu = time.perf_counter(), time.process_time()
        speech = model.generate(said, seconds=seconds, seed=0, rate_hz=SAMPLE_RATE_HZ, schedule=name)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found[name] = {
            "first_audio_s": statistics.median(first[name]),
            "first_audio_largest_s": max(first[name]),
            "rtf": wall / seconds,
            "cpu_s_per_s": cpu / seconds,
            "lm_s": speech.stats.lm_s,
            "acoustic_s": speech.stats.acoustic_s,
            "codec_s": speech.stats.codec_s,
        }
    return found


def together(model: Model, sessions: int, seconds: float, schedule: str) -> dict[str, Any]:
    """The same sessions alone and together: processor time, LM time, and whether every bit is the same."""
    options: dict[str, Any] = {"rate_hz": SAMPLE_RATE_HZ, "schedule": schedule}
    prompts = [prompt(3.0, seed) for seed in range(sessions)]
    model.generate(prompts[0], seconds=1.0, seed=0, **options)  # opens every graph
    marks = [(time.perf_counter(), time.process_time())]
    alone = [model.generate(p, seconds=seconds, seed=i, **options) for i, p in enumerate(prompts)]
    marks.append((time.perf_counter(), time.process_time()))
    limits = ServiceLimits(sessions=sessions, rows=sessions, buffer_s=120.0, lookahead_s=600.0)
    with Service(model, limits) as service:
        tickets = [service.submit(p, seconds=seconds, seed=i, **options) for i, p in enumerate(prompts)]
        spoken = [np.concatenate(list(ticket)) for ticket in tickets]
        metrics = service.metrics()
    marks.append((time.perf_counter(), time.process_time()))
    (wall, cpu), (wall_together, cpu_together) = (
        (b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks)
    )
    lm = sum(speech.stats.lm_s for speech in alone)
    return {
        "sessions": sessions,
        "seconds_each": seconds,
        "identical": all(a.audio.tobytes() == b.tobytes() for a, b in zip(alone, spoken, strict=True)),
        "lm_s_alone": lm,
        "lm_s_together": metrics.stage_s["lm"],
        "lm_gain": lm / metrics.stage_s["lm"],
        "rows_per_step": metrics.rows_per_step,
        "cpu_s_alone": cpu,
        "cpu_s_together": cpu_together,
        "pipeline_gain": cpu / cpu_together,
        "wall_s_alone": wall,
        "wall_s_together": wall_together,
        "stage_s": metrics.stage_s,
    }


def steps(model: Model, rows: int, count: int = 60) -> dict[str, Any]:
    """Processor milliseconds of one step by the number of rows, in turns; and of moving a row."""
    widths = [n for n in (1, 2, 4, 8, 16, 32) if n <= rows]
    pool = LMRows(model.language_model, rows)
    for row in range(rows):
        pool.start(row, 1, SamplerSettings(), row)
    times: dict[int, list[float]] = {width: [] for width in widths}
    for _ in range(count):
        for width in widths:
            pool.active[:] = np.arange(rows) < width
            started = time.process_time()
            pool.step(width)
            times[width].append(1e3 * (time.process_time() - started))
    started = time.process_time()
    for _ in range(count):
        pool.load(0, pool.save(0))
    moved = 1e3 * (time.process_time() - started) / count
    medians = {width: statistics.median(values) for width, values in times.items()}
    return {
        "step_cpu_ms": medians,
        "move_cpu_ms": moved,
        "gain": widths[-1] * medians[1] / medians[widths[-1]],
    }


def decode(model: Model, sessions: int, seconds: float) -> dict[str, Any]:
    """p95 of the gap between two tokens of real-time sessions, alone and while prompts keep arriving."""
    options: dict[str, Any] = {"rate_hz": SAMPLE_RATE_HZ, "schedule": "fast"}
    found: dict[str, Any] = {}
    for name in ("steady", "prefill"):
        limits = ServiceLimits(sessions=sessions + 2, rows=sessions, buffer_s=120.0, lookahead_s=600.0)
        with Service(model, limits) as service:
            tickets = [
                service.submit(prompt(1.0, i), seconds=seconds, seed=i, realtime=True, ramp=True, **options)
                for i in range(sessions)
            ]
            while any(ticket.first_audio_s is None for ticket in tickets):
                time.sleep(0.005)
            service._call(lambda core: core.tally.step_gap.clear())
            arrived = 0
            while service.metrics().step_gap_s.count < sessions * 20 and any(t.end is None for t in tickets):
                if name == "prefill" and service.metrics().reading == 0:
                    arrived += 1
                    service.submit(
                        prompt(30.0, 1000 + arrived),
                        seconds=0.04,
                        seed=arrived,
                        session_id=f"p{arrived}",
                        **options,
                    )
                time.sleep(0.01)
            found[name] = service.metrics().step_gap_s.__dict__
            found[f"{name}_prompts"] = arrived
            for ticket in tickets:
                ticket.cancel()
    found["ratio_p95"] = found["prefill"]["p95"] / found["steady"]["p95"]
    found["limit"] = 1.5
    return found


class Listener:
    """Plays a ticket in real time: takes the next piece shortly before it is due."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.until: float | None = None

    def play(self, now: float) -> bool:
        """Take what is due; False once the stream has ended."""
        while self.until is None or now >= self.until - 1.0:
            got = self.ticket.take(0)
            if got is None:
                return True
            if isinstance(got, End):
                return False
            start = now if self.until is None else max(now, self.until)
            self.until = start + len(got) / SAMPLE_RATE_HZ
        return True


def load(
    model: Model,
    sessions: int,
    minutes: float,
    schedule: str,
    *,
    ramp: bool,
    every_s: float = EVERY_S,
    lanes: int = 0,
) -> dict[str, Any]:
    """Real-time listeners that arrive by the clock, whatever the service does, ``sessions`` of them, and listen on."""
    seconds = minutes * 60
    limits = ServiceLimits(sessions=max(64, sessions), rows=16, lanes=lanes)
    model.generate(
        prompt(3.0, 0), seconds=0.5, seed=0, rate_hz=SAMPLE_RATE_HZ, schedule="fast"
    )  # opens graphs
    listeners: list[Listener] = []
    refused, used = 0, time.process_time()
    with Service(model, limits) as service:
        started = time.monotonic()
        arrivals = [started + min(i * every_s, seconds / 2) for i in range(sessions)]
        while time.monotonic() < started + seconds:
            now = time.monotonic()
            while arrivals and arrivals[0] <= now:
                arrivals.pop(0)
                try:
                    ticket = service.submit(
                        prompt(3.0, len(listeners)), seconds=seconds + 60, seed=len(listeners), realtime=True,
                        rate_hz=SAMPLE_RATE_HZ, schedule=schedule, ramp=ramp,
                    )  # fmt: skip
                    listeners.append(Listener(ticket))
                except CapacityError:
                    refused += 1
            for listener in listeners:
                listener.play(now)
            time.sleep(0.01)
        used = time.process_time() - used
        for listener in listeners:
            listener.ticket.cancel()
        metrics = service.metrics()
    silent = sum(listener.ticket.first_audio_s is None for listener in listeners)
    return {
        "sessions": sessions,
        "minutes": minutes,
        "schedule": schedule,
        "ramp": ramp,
        "every_s": every_s,
        "lanes": lanes,
        "refused": refused,
        "without_audio": silent,
        "underruns": metrics.underruns_total,
        "stalled_s": metrics.stalled_s,
        "first_audio_s": metrics.first_audio_s.__dict__,
        "piece_gap_s": metrics.piece_gap_s.__dict__,
        "step_gap_s": metrics.step_gap_s.__dict__,
        "cancel_s": metrics.cancel_s.__dict__,
        "orphaned_s": metrics.orphaned_s,
        "rows_per_step": metrics.rows_per_step,
        "stage_s": metrics.stage_s,
        "cpu_s": used,
    }


def holds(report: dict[str, Any]) -> bool:
    """Whether everybody was let in, heard something and never ran dry."""
    return not (report["underruns"] or report["without_audio"] or report["refused"])


def bisect(
    run: Callable[[int, float], dict[str, Any]], most: int, minutes: float, probe_minutes: float
) -> dict[str, Any]:
    """The largest number of listeners none of whom runs dry, and the load at one, half and all of it.

    ``run`` makes a load of some sessions and minutes. Probes last ``probe_minutes``; what they find is run for
    ``minutes``, with fewer sessions until it holds.
    """
    probes: dict[int, dict[str, Any]] = {}

    def probe(sessions: int) -> bool:
        probes[sessions] = run(sessions, probe_minutes)
        print(json.dumps(probes[sessions]), file=sys.stderr, flush=True)
        return holds(probes[sessions])

    low, high = 0, 1
    while high <= most and probe(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if probe(middle) else (low, middle)
    full: dict[int, dict[str, Any]] = {}
    while low and not holds(full.setdefault(low, run(low, minutes))):
        low -= 1
    for sessions in sorted({1, max(1, low // 2)} - full.keys()):
        full[sessions] = run(sessions, minutes)
    return {
        "largest": low,
        "minutes": minutes,
        "probes": {str(n): not_dry for n, not_dry in sorted((n, holds(r)) for n, r in probes.items())},
        "runs": {str(n): full[n] for n in sorted(full)},
    }


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("alone", "together", "steps", "decode", "load", "bisect"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="speech of each session (alone, together, decode)"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="length of a load")
    parser.add_argument("--schedule", default="default", choices=("default", "fast"))
    parser.add_argument("--ramp", action="store_true")
    parser.add_argument(
        "--every", type=float, default=EVERY_S, help="seconds between arrivals (load, bisect)"
    )
    parser.add_argument("--probe-minutes", type=float, default=1.5, help="length of a probe (bisect)")
    parser.add_argument("--lanes", type=int, default=0, help="acoustic passes beside the rest (load, bisect)")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    model = speechssm.load(given.bundle, threads=given.threads)
    report: dict[str, Any]
    if given.what == "alone":
        report = alone(model, given.seconds)
    elif given.what == "together":
        report = together(model, given.sessions, given.seconds, given.schedule)
    elif given.what == "steps":
        report = steps(model, given.sessions)
    elif given.what == "decode":
        report = decode(model, given.sessions, given.seconds)
    else:

        def run(sessions: int, minutes: float) -> dict[str, Any]:
            return load(
                model,
                sessions,
                minutes,
                given.schedule,
                ramp=given.ramp,
                every_s=given.every,
                lanes=given.lanes,
            )

        if given.what == "load":
            report = run(given.sessions, given.minutes)
        else:
            report = bisect(run, given.sessions, given.minutes, given.probe_minutes)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
