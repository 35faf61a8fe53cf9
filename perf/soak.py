"""Hours of churn in one service: sessions come, go and fail; what is left, and did the neighbours notice?

    python -m speechssm.perf.soak BUNDLE --sessions 16 --minutes 30

Every session speaks one of a few texts that were made alone beforehand, and every piece it is given is compared
with them, bit for bit. Meanwhile readers cancel at any moment, pause, fork, stop reading for half a minute, or
read through asyncio; the language model's state of a row turns NaN; the engine refuses calls; the disk is full
for two seconds in twenty. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import speechssm
from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_RATE_HZ
from speechssm.engines.protocol import Array, Bindings, Graph
from speechssm.errors import CapacityError, EngineError, SessionFailed, SnapshotError
from speechssm.runtime.frozen import Frozen
from speechssm.runtime.model import Model
from speechssm.runtime.service.core import Scheduler
from speechssm.runtime.service.limits import ServiceLimits
from speechssm.runtime.service.outlet import End
from speechssm.runtime.service.service import Service
from speechssm.runtime.service.ticket import Ticket
from speechssm.runtime.service.view import Stage
from speechssm.runtime.service.work import Speaker

from .steady import rss_bytes

NAN_S, FULL_S, FULL_EVERY_S = 7.0, 2.0, 20.0
"""Seconds between two poisoned rows; how long and how often the disk is full."""
REFUSED = 1 / 2000
"""Share of engine calls that are refused."""
STREAMS = 2
"""Sessions read through asyncio, at any time."""
SETTLE_S = 10.0
"""How long submissions may take whose reader was cancelled while they were on their way."""


def prompt(seconds: float, seed: int) -> np.ndarray:
    """Noise (n) of ``seconds`` to continue."""
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE_HZ))).astype(np.float32)


@dataclass(frozen=True)
class Text:
    """One thing to say: how it is asked for, and its audio (n), made alone."""

    prompt: np.ndarray
    options: Mapping[str, Any]
    audio: np.ndarray


def texts(model: Model, lengths: Sequence[float]) -> list[Text]:
    """A text of each of ``lengths`` seconds, with and without the ramp."""
    made = []
    for i, seconds in enumerate(lengths):
        said = prompt(1.0 + i % 3, i)
        options: dict[str, Any] = {
            "seconds": seconds, "seed": i, "ramp": i % 2 == 0, "schedule": "fast", "rate_hz": SAMPLE_RATE_HZ,
            "temperature": 1.5,
        }  # fmt: skip
        made.append(Text(said, options, model.generate(said, **options).audio))
    return made


class Refusing:
    """A graph that refuses a call now and then, before it changes anything."""

    def __init__(self, graph: Graph, strike: Callable[[str], None]) -> None:
        self._graph, self._strike = graph, strike
        self.name, self.provider, self.aliased = graph.name, graph.provider, graph.aliased

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        """See :class:`Graph`."""
        return self._graph.zeros(shape, dtype)

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bindings:
        """See :class:`Graph`."""
        return self._graph.bind(inputs, outputs)

    def run(self, bindings: Bindings) -> None:
        """See :class:`Graph`."""
        self._strike(self.name)
        self._graph.run(bindings)

    def call(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See :class:`Graph`."""
        self._strike(self.name)
        return self._graph.call(inputs, outputs)

    def close(self) -> None:
        """See :class:`Graph`."""
        self._graph.close()


class Faults:
    """What goes wrong, and how often it did."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.active = False
        self.done: Counter[str] = Counter()
        self.poisoned: set[str] = set()
        self._graphs: dict[str, Refusing] = {}

    def graphs(self, inner: Callable[[str], Graph]) -> Callable[[str], Graph]:
        """``inner`` with graphs that refuse calls."""

        def graph(name: str) -> Graph:
            if name not in self._graphs:
                self._graphs[name] = Refusing(inner(name), self.strike)
            return self._graphs[name]

        return graph

    def strike(self, name: str) -> None:
        """Refuse a call of graph ``name``, rarely."""
        if self.active and self.rng.random() < REFUSED:
            self.done[f"refused {name}"] += 1
            raise EngineError(f"graph {name} refuses this call: it was told to")

    def poison(self, core: Scheduler[Speaker]) -> None:
        """NaN in the state of one row that is in use."""
        if core.seats:
            entry = core.seats[int(self.rng.integers(len(core.seats)))]
            state = core.engine.rows.state.current  # type: ignore[attr-defined]
            lru = next(values for name, values in state.items() if name.endswith("_lru"))
            lru[entry.row, 0] = np.nan
            self.poisoned.add(entry.key)
            self.done["poisoned rows"] += 1

    @contextlib.contextmanager
    def disk(self, service: Service) -> Iterator[None]:
        """A disk that is full for a while, again and again."""
        folder = service._folder
        assert folder is not None
        write, started = folder.write, time.monotonic()

        def full(key: str, frozen: Frozen) -> Path:
            if self.active and (time.monotonic() - started) % FULL_EVERY_S < FULL_S:
                self.done["full disk"] += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(key, frozen)

        folder.write = full  # type: ignore[method-assign]
        yield
        folder.write = write  # type: ignore[method-assign]


@dataclass
class Reader:
    """One reader: what it must hear, and how it behaves."""

    ticket: Ticket
    text: Text
    heard: int
    slow: bool = False
    silent_until: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def read(self, now: float, rng: np.random.Generator, *, hurry: bool) -> End | None:
        """Take what is there, or one piece in half a minute unless ``hurry``; the end once it comes."""
        if now < self.silent_until and self.ticket.end is None and not hurry:
            return None
        while (got := self.ticket.take(0)) is not None:
            if isinstance(got, End):
                if got.kind == "finished" and self.heard != len(self.text.audio):
                    self.wrong.append(f"{self.heard} samples of {len(self.text.audio)}")
                return got
            if not same(got, self.text.audio[self.heard : self.heard + len(got)]):
                self.wrong.append(f"other samples from {self.heard} on")
            self.heard += len(got)
            if self.slow and not hurry:
                self.silent_until = now + float(rng.uniform(0, 30))
                break
        return None


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit."""
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def phase(ticket: Ticket) -> str:
    """Where a session stands, for counting at which moments sessions were cancelled."""
    entry = ticket._entry
    if entry.stage != Stage.LIVE:
        return entry.stage.name.lower()
    if entry.group is not None:
        return "in a window"
    if entry.row is not None:
        return "in a row"
    return "complete" if entry.complete else "live"


class Streams:
    """Sessions read through asyncio in a thread of their own; some readers leave early."""

    def __init__(self, service: Service, said: Sequence[Text], seed: int) -> None:
        self._service, self._said = service, said
        self._rng = np.random.default_rng(seed)
        self._stop = threading.Event()
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.tasks_left = -1
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="soak-asyncio")

    def __enter__(self) -> Streams:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _main(self) -> None:
        running: set[asyncio.Task[None]] = set()
        while not self._stop.is_set() or running:
            while len(running) < STREAMS and not self._stop.is_set():
                running.add(asyncio.create_task(self._one()))
            done, running = await asyncio.wait(running, timeout=0.2)
            for task in done:
                self.ends["left" if task.cancelled() else "read"] += 1
            for task in running:
                if self._stop.is_set() or self._rng.random() < 0.01:
                    task.cancel()
        # A reader cancelled while its submission was on its way leaves a task that ends with the submission.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=SETTLE_S)
        self.tasks_left = len(asyncio.all_tasks()) - 1

    async def _one(self) -> None:
        text = self._said[int(self._rng.integers(len(self._said)))]
        heard = 0
        try:
            stream = self._service.stream(text.prompt, realtime=True, **text.options)
            async with contextlib.aclosing(stream):
                async for audio in stream:
                    if not same(audio, text.audio[heard : heard + len(audio)]):
                        self.wrong.append(f"asyncio: other samples from {heard} on")
                    heard += len(audio)
        except (EngineError, SessionFailed, CapacityError):
            return  # injected, or no room just now
        if heard != len(text.audio):
            self.wrong.append(f"asyncio: {heard} samples of {len(text.audio)}")


def soak(model: Model, minutes: float, sessions: int, *, log: bool = False) -> dict[str, Any]:
    """``minutes`` of churn with ``sessions`` sessions at work and four more waiting; what came of it."""
    rng = np.random.default_rng(0)
    faults = Faults(np.random.default_rng(1))
    said = texts(model, (0.5, 3.0, 5.0, 7.0, 12.0, 20.0, 33.0, 40.0))
    model = Model(model.manifest, model.digest, faults.graphs(model._graphs))
    gc.collect()
    before, files = {thread.ident for thread in threading.enumerate()}, open_files()
    marks: list[dict[str, float]] = []
    ends: Counter[str] = Counter()
    phases: Counter[str] = Counter()
    reached: list[float] = []
    wrong: list[str] = []
    unexplained: list[str] = []
    number = forks = 0
    with tempfile.TemporaryDirectory() as folder:
        limits = ServiceLimits(
            sessions=sessions, rows=min(16, sessions), snapshots=2 * sessions, queue=sessions
        )
        with Service(model, limits, checkpoints=folder, checkpoint_s=2.0) as service:
            with faults.disk(service), Streams(service, said, 2) as streams:
                faults.active = True
                started = time.monotonic()
                until, poisoned = started + minutes * 60, started
                readers: list[Reader] = []
                while (now := time.monotonic()) < until or readers:
                    if now >= until:
                        faults.active = False
                        streams._stop.set()
                    if now < until and len(readers) < sessions + 4:
                        number += 1
                        text = said[int(rng.integers(len(said)))]
                        try:
                            ticket = service.submit(
                                text.prompt,
                                realtime=bool(rng.random() < 0.5),
                                session_id=f"s{number}",
                                **text.options,
                            )
                            readers.append(Reader(ticket, text, 0, slow=bool(rng.random() < 0.1)))
                        except CapacityError:
                            ends["refused"] += 1
                    if now < until and now - poisoned > NAN_S:
                        poisoned = now
                        service._call(faults.poison)
                    some, act = readers[int(rng.integers(len(readers)))] if readers else None, rng.random()
                    if some is None:
                        continue
                    if act < 0.004 and some.ticket.end is None:
                        phases[phase(some.ticket)] += 1
                        asked = time.monotonic()
                        some.ticket.cancel()
                        if some.ticket.end is not None:
                            reached.append(time.monotonic() - asked)
                    elif act < 0.008:
                        some.ticket.pause()
                    elif act < 0.011 and some.ticket.end is None and now < until:
                        try:
                            twin = some.ticket.fork(session_id=f"f{forks}")
                            readers.append(Reader(twin, some.text, some.heard))
                            forks += 1
                            if some.ticket.session_id in faults.poisoned:
                                faults.poisoned.add(twin.session_id)
                        except SnapshotError:
                            # A poisoned state has not met its next step yet.
                            assert some.ticket.session_id in faults.poisoned
                        except (SessionFailed, CapacityError):
                            pass  # its prompt is still read, or it has just ended, or there is no room
                    elif act < 0.05 or now >= until:
                        some.ticket.unpause()
                    for reader in list(readers):
                        end = reader.read(now, rng, hurry=now >= until)
                        if end is not None:
                            readers.remove(reader)
                            ends[end.kind] += 1
                            wrong.extend(reader.wrong)
                            unexplained.extend(unexpected(reader.ticket.session_id, end, faults))
                    if len(marks) < (now - started) / max(1.0, minutes):
                        gc.collect()
                        marks.append({"at_s": now - started, "rss_bytes": rss_bytes(), "sessions": number})
                        if log:
                            print(json.dumps(marks[-1]), file=sys.stderr, flush=True)
                    time.sleep(0.005)
            metrics = service.metrics()
    gc.collect()
    settled = marks[len(marks) // 4]["rss_bytes"]
    return {
        "minutes": minutes,
        "sessions": number,
        "forks": forks,
        "ends": dict(ends),
        "failed": metrics.failed_total,
        "faults": dict(faults.done),
        "wrong": wrong + streams.wrong,
        "unexplained": unexplained,
        "asyncio": dict(streams.ends),
        "rss_bytes_settled": settled,
        "rss_bytes_end": rss_bytes(),
        "grown_bytes": rss_bytes() - settled,
        "threads_left": len({thread.ident for thread in threading.enumerate()} - before),
        "files_left": open_files() - files,
        "tasks_left": streams.tasks_left,
        "live_left": metrics.live,
        "state_bytes_left": metrics.state_bytes,
        "orphaned_s": metrics.orphaned_s,
        "engine_s": sum(metrics.stage_s.values()),
        "cancelled_in": dict(phases),
        "cancel_reader_s": max(reached, default=0.0),
        "cancel_s": metrics.cancel_s.__dict__,
        "retried": metrics.retried_total,
        "checkpoints": metrics.checkpoints_total,
        "checkpoint_failures": metrics.checkpoint_failures_total,
        "checkpoint_error": metrics.checkpoint_error,
        "speech_s": metrics.tokens_total / TOKEN_RATE_HZ,
        "marks": marks[:: max(1, len(marks) // 30)],
    }


def unexpected(key: str, end: End, faults: Faults) -> list[str]:
    """A failure that nothing injected explains, in words."""
    explained = {"unhealthy": key in faults.poisoned, "engine": "it was told to" in end.message}
    if end.kind == "failed" and not explained.get(end.code, False):
        return [f"{key}: {end.code}: {end.message}"]
    return []


def open_files() -> int:
    """Open file descriptors of this process; 0 where the system does not say."""
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    model = speechssm.load(given.bundle, threads=given.threads)
    print(json.dumps(soak(model, given.minutes, given.sessions, log=True)))


if __name__ == "__main__":
    main()
