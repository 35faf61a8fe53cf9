"""Random schedules of admit, cancel, pause, fork, read and fail against the validator, without an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

import numpy as np
import pytest

from speechssm.errors import CapacityError
from speechssm.runtime.service.core import Scheduler
from speechssm.runtime.service.entry import Entry
from speechssm.runtime.service.invariants import broken
from speechssm.runtime.service.limits import ServiceLimits
from speechssm.runtime.service.outlet import End
from speechssm.runtime.service.plan import Kind, plan
from speechssm.runtime.service.view import Stage

from .double import SAMPLES, SCHEDULES, WINDOW, Body, Engine, Faults, audio_of

DEFAULT, MANY = 300, 10_000
TOKEN_S = SAMPLES / 16_000
LIMITS = [
    ServiceLimits(sessions=4, rows=3, queue=3, queue_prompt_s=7, prompt_s=5, state_mib=1, buffer_s=3 * TOKEN_S,
                  lookahead_s=4 * TOKEN_S, pass_tokens=2 * WINDOW, burst=3),
    ServiceLimits(sessions=6, rows=2, queue=0, buffer_s=0.01, lookahead_s=0.01, pass_tokens=1, burst=1),
    ServiceLimits(sessions=2, rows=8, queue=9, buffer_s=1, lookahead_s=2, pass_tokens=100, burst=8),
    ServiceLimits(sessions=5, rows=3, queue=3, buffer_s=1, lookahead_s=2, pass_tokens=2 * WINDOW, lanes=2),
]  # fmt: skip


class Listener:
    """A reader and what it must hear in the end."""

    def __init__(self, entry: Entry[Body], expected: np.ndarray, offset: int = 0) -> None:
        self.entry, self.expected, self.offset = entry, expected, offset
        self.heard: list[np.ndarray] = []
        self.end: End | None = None

    def listen(self) -> None:
        while self.end is None:
            got = self.entry.outlet.take(timeout=0)
            if got is None:
                return
            if isinstance(got, End):
                self.end = got
            else:
                self.heard.append(got)

    def check(self) -> None:
        heard = np.concatenate([np.empty(0, np.float32), *self.heard])
        wanted = self.expected[self.offset :]
        assert heard.tobytes() == wanted[: len(heard)].tobytes()
        assert self.entry.outlet.ends == (self.entry.stage == Stage.ENDED)
        if self.end is not None and self.end.kind == "finished":
            assert len(heard) == len(wanted)


class Hangar(Executor):
    """Lanes whose passes are done when the test says so."""

    def __init__(self) -> None:
        self.flights: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        flight: Future[Any] = Future()
        self.flights.append((flight, partial(fn, *args, **kwargs)))
        return flight

    def land(self, index: int) -> None:
        flight, work = self.flights.pop(index)
        try:
            flight.set_result(work())
        except Exception as error:
            flight.set_exception(error)


class World:
    """One random schedule: a scheduler on the double, its listeners, and a clock of its own."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.limits = LIMITS[rng.integers(len(LIMITS))]
        self.faults = Faults()
        self.engine = Engine(self.limits.rows, self.faults)
        self.now = 0.0
        self.hangar = Hangar()
        self.core: Scheduler[Body] = Scheduler(
            self.engine, self.limits, clock=self.clock, interrupted=lambda: bool(rng.random() < 0.2),
            lanes=self.hangar if self.limits.lanes else None,
        )  # fmt: skip
        self.listeners: list[Listener] = []
        self.seeds = iter(range(1, 1 << 30))
        self.leaving: list[Entry[Body]] = []
        """Cancelled by their readers; the scheduler has not heard of it."""

    def clock(self) -> float:
        self.now += 1e-5
        return self.now

    def admit(self) -> None:
        seed, asked = next(self.seeds), int(self.rng.integers(1, 16 * SAMPLES))
        if self.rng.random() < 0.1:
            self.faults.unhealthy[seed] = int(self.rng.integers(0, 8))
        if self.rng.random() < 0.1:
            self.faults.bad_windows[seed] = int(self.rng.integers(1, 3))
        if self.rng.random() < 0.05:
            self.faults.poison.add(seed)
        body = Body(seed, asked, self.faults, int(self.rng.integers(1, 4)), SCHEDULES[self.rng.integers(2)])
        self.enter(str(seed), body, audio_of(seed, body.total)[:asked])

    def enter(self, key: str, body: Body, expected: np.ndarray, offset: int = 0) -> None:
        held = len(self.core.entries)
        try:
            entry = self.core.submit(key, body, realtime=bool(self.rng.random() < 0.5))
        except CapacityError:
            assert held >= self.limits.sessions, "refused although there is room"
            return
        self.listeners.append(Listener(entry, expected, offset))

    def act(self) -> None:
        pick = self.rng.random()
        alive = [one for one in self.listeners if one.entry.outlet.end is None]
        some = alive[self.rng.integers(len(alive))] if alive else None
        if pick < 0.15 or some is None:
            self.admit()
        elif pick < 0.18:
            self.core.cancel(some.entry)
            assert some.entry.stage == Stage.ENDED
        elif pick < 0.20:
            some.entry.outlet.cancel()
            self.leaving.append(some.entry)
        elif self.leaving and pick < 0.22:
            self.core.cancel(self.leaving.pop())
        elif pick < 0.26:
            self.core.pause(some.entry, bool(self.rng.random() < 0.5))
        elif pick < 0.30 and some.entry.stage == Stage.LIVE:
            self.fork(some)
        elif pick < 0.34:
            kind = ("step", "pass", "begin", "read", "piece")[self.rng.integers(5)]
            self.faults.once[kind] = 1
        elif pick < 0.5:
            some.listen()
        elif pick < 0.52:
            self.now += self.rng.exponential(0.2)

    def fork(self, parent: Listener) -> None:
        frozen = self.core.freeze(parent.entry)
        twin = frozen.meta["body"]
        parent.listen()
        heard = sum(len(piece) for piece in parent.heard)
        assert twin.given == parent.offset + heard - self.just_read(parent, twin)
        self.enter(f"{next(self.seeds)}f", twin, parent.expected, twin.given)

    @staticmethod
    def just_read(parent: Listener, twin: Body) -> int:
        """Samples the parent took after the fork was made: the fork hears them again."""
        return parent.offset + sum(len(piece) for piece in parent.heard) - twin.given

    def check(self) -> None:
        view = self.core.view()
        assert not (wrong := broken(view, self.limits, WINDOW * TOKEN_S)), wrong

    def run(self, actions: int) -> None:
        for _ in range(actions):
            self.act()
            self.check()
            if self.hangar.flights and self.rng.random() < 0.3:
                self.hangar.land(int(self.rng.integers(len(self.hangar.flights))))
            self.core.cycle()
            self.check()
        self.faults.once.clear()
        for entry in self.leaving:
            self.core.cancel(entry)
        for one in self.listeners:
            self.core.pause(one.entry, False)
        for _ in range(5000):
            worked = self.core.cycle()
            for one in self.listeners:
                one.listen()
            if self.hangar.flights and not worked:
                self.hangar.land(0)
            elif not worked and not self.core.entries:
                break
        assert not self.core.landing
        assert not self.hangar.flights
        self.check()
        assert not self.core.entries, "a session never ended"
        assert not self.core.seats
        assert not self.core.groups
        assert all(row is None for row in self.engine.rows)
        for one in self.listeners:
            one.listen()
            one.check()
            assert one.end is not None


def schedules(count: int) -> Iterator[int]:
    base = int(os.environ.get("SCHEDULE_SEED", "0")) or int(np.random.SeedSequence().generate_state(1)[0])
    yield from range(base, base + count)


def run_many(count: int) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for seed in schedules(count):
        rng = np.random.default_rng(seed)
        world = World(rng)
        try:
            world.run(int(rng.integers(10, 80)))
        except BaseException:
            print(f"SCHEDULE_SEED={seed}")
            raise
        for one in world.listeners:
            assert one.end is not None
            kinds[one.end.kind] = kinds.get(one.end.kind, 0) + 1
        kinds["retried"] = kinds.get("retried", 0) + world.core.tally.retried
    return kinds


def test_random_schedules_keep_every_promise() -> None:
    kinds = run_many(DEFAULT)
    assert min(kinds[k] for k in ("finished", "cancelled", "failed", "retried")) > 10, kinds


@pytest.mark.slow
def test_ten_thousand_random_schedules() -> None:
    print(run_many(MANY))


def quiet(limits: ServiceLimits, faults: Faults | None = None) -> tuple[Scheduler[Body], Engine]:
    faults = faults or Faults()
    engine = Engine(limits.rows, faults)
    return Scheduler(engine, limits), engine


def enter(core: Scheduler[Body], engine: Engine, seed: int, tokens: int = 20, **options: bool) -> Listener:
    body = Body(seed, tokens * SAMPLES, engine.faults)
    options = {"realtime": False, **options}
    return Listener(core.submit(str(seed), body, **options), audio_of(seed, tokens))


def finish(core: Scheduler[Body], *listeners: Listener) -> None:
    for _ in range(10_000):
        core.cycle()
        for one in listeners:
            one.listen()
        if not core.entries:
            return
    raise AssertionError("it never ends")


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("after", [False, True])
def test_cancel_at_every_phase(kind: Kind, after: bool) -> None:
    """Cancelled just before or after its unit of work, a session takes part in nothing more; the other is whole."""
    core, engine = quiet(LIMITS[2])
    gone, stays = enter(core, engine, 1), enter(core, engine, 2)
    for _ in range(500):
        work = plan(core.view(), core.limits)
        assert work is not None, f"no {kind.name} ever came"
        if work.kind == kind and gone.entry.number in work.sessions:
            break
        core.cycle()
        stays.listen()
        gone.listen()
    if after:
        core.cycle()
    steps = len(engine.stepped)
    core.cancel(gone.entry)
    gone.listen()
    assert gone.end == End("cancelled")
    assert not broken(core.view(), core.limits, 1)
    finish(core, stays)
    assert all(1 not in seeds for seeds in engine.stepped[steps:])
    stays.check()
    assert stays.end == End("finished")
    gone.check()
    core.cancel(gone.entry)
    assert gone.entry.outlet.ends == 1


def test_a_slow_reader_stops_only_itself() -> None:
    core, engine = quiet(LIMITS[0])
    slow, quick = enter(core, engine, 1, tokens=60), enter(core, engine, 2, tokens=60)
    finish_quick = 0
    while quick.end is None:
        core.cycle()
        quick.listen()
        finish_quick += 1
        assert finish_quick < 2000
    while core.cycle():
        pass
    view = core.view()
    assert [s.number for s in view.sessions] == [slow.entry.number]
    assert LIMITS[0].buffer_s <= view.sessions[0].buffered_s <= LIMITS[0].buffer_s + 2 * TOKEN_S
    assert slow.entry.body.coded < 60
    finish(core, slow)
    slow.check()
    quick.check()


def test_a_call_that_fails_as_a_whole_fails_only_whom_it_fails_for() -> None:
    core, engine = quiet(LIMITS[0], Faults(poison={2}))
    ones = [enter(core, engine, seed) for seed in (1, 2, 3)]
    engine.faults.poison.clear()
    for _ in range(20):
        core.cycle()
    engine.faults.poison.add(2)
    finish(core, *ones)
    assert [one.end.kind for one in ones if one.end] == ["finished", "failed", "finished"]
    assert ones[1].end is not None
    assert ones[1].end.code == "engine"
    for one in ones:
        one.check()


def test_one_bad_call_costs_nobody_a_sample() -> None:
    for kind in ("step", "pass", "begin"):
        core, engine = quiet(LIMITS[2])
        ones = [enter(core, engine, seed) for seed in (1, 2)]
        while core.tally.batches == 0 and not core.seats:
            core.cycle()
        engine.faults.once[kind] = 1
        finish(core, *ones)
        ends = [one.end.kind for one in ones if one.end]
        # A window or a step made alone has nobody to be told apart from: only then does a session end.
        assert ends.count("failed") <= (0 if core.tally.retried else 1), (kind, ends)
        for one in ones:
            one.check()


def test_sessions_are_refused_with_a_reason_and_a_full_service_says_so() -> None:
    core, engine = quiet(LIMITS[0])
    for seed in range(1, 7):
        enter(core, engine, seed)
    queued = [s.number for s in core.view().sessions if s.stage == Stage.QUEUED]
    assert queued == [4, 5]
    enter_one_more = Body(7, SAMPLES, engine.faults, to_read=4)
    with pytest.raises(CapacityError, match="prompts wait"):
        core.submit("7", enter_one_more, realtime=False)
    enter(core, engine, 7)
    with pytest.raises(CapacityError, match="queue"):
        enter(core, engine, 8)
    with pytest.raises(CapacityError, match="already here"):
        enter(core, engine, 1)
    long = Body(999, SAMPLES, engine.faults, to_read=6)
    with pytest.raises(CapacityError, match="prompt lasts"):
        core.submit("long", long, realtime=False)
    fat = Body(998, SAMPLES, engine.faults, nbytes=2 << 20)
    with pytest.raises(CapacityError, match="one session takes"):
        core.submit("fat", fat, realtime=False)


def test_an_abandoned_session_ends_by_itself() -> None:
    now = [0.0]
    limits = LIMITS[0]
    engine = Engine(limits.rows, Faults())
    core = Scheduler(engine, limits, clock=lambda: now[0])
    one = enter(core, engine, 1, tokens=60)
    while core.cycle():
        pass
    core.expire()
    now[0] = limits.idle_s / 2
    core.expire()
    assert one.entry.stage == Stage.LIVE
    now[0] = limits.idle_s * 1.1
    core.expire()
    one.listen()
    assert one.end is not None
    assert (one.end.kind, one.end.code) == ("failed", "idle")
    one.check()


def test_steps_are_as_wide_as_they_can_be() -> None:
    """Sixteen offline jobs share nearly every step."""
    limits = ServiceLimits(sessions=16, rows=16, pass_tokens=WINDOW)
    core, engine = quiet(limits)
    ones = [enter(core, engine, seed, tokens=40) for seed in range(1, 17)]
    finish(core, *ones)
    assert core.tally.tokens / core.tally.steps > 14


def test_the_one_who_runs_dry_first_goes_first() -> None:
    """One model row, two listeners: the later arrival waits, and nobody starves."""
    now = [0.0]
    limits = ServiceLimits(sessions=2, rows=1, buffer_s=1, lookahead_s=1, pass_tokens=WINDOW, burst=1)
    engine = Engine(1, Faults())
    core = Scheduler(engine, limits, clock=lambda: now[0])
    first = enter(core, engine, 1, tokens=100, realtime=True)
    now[0] = 0.2
    second = enter(core, engine, 2, tokens=100, realtime=True)
    for _ in range(4000):
        core.cycle()
        now[0] += 0.002
        first.listen()
        second.listen()
    assert first.end == End("finished")
    assert second.end == End("finished")
    assert core.tally.underruns == 0
