"""The arithmetic that decides: admission, slack, buckets, the plan. Small ranges in full, no engine."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from speechssm.errors import (
    AudioError,
    EngineError,
    SessionFailed,
    SettingsError,
    SpeechSSMError,
)
from speechssm.runtime.acoustic import AcousticSchedule
from speechssm.runtime.lm import CHUNK_TOKENS
from speechssm.runtime.service.admission import Load, promoted, refusal
from speechssm.runtime.service.buckets import together
from speechssm.runtime.service.costs import Costs
from speechssm.runtime.service.entry import Entry
from speechssm.runtime.service.failure import failure_of, raised_of
from speechssm.runtime.service.invariants import broken
from speechssm.runtime.service.limits import MIB, ServiceLimits
from speechssm.runtime.service.outlet import End, Outlet
from speechssm.runtime.service.plan import Kind, plan, tasks
from speechssm.runtime.service.slack import Playback, is_urgent, offline, slack
from speechssm.runtime.service.view import BatchView, ServiceView, SessionView, Stage, WindowKey

from .double import SAMPLES, Body, Faults

KEY = WindowKey(50, AcousticSchedule())
OTHER = WindowKey(100, AcousticSchedule())


def test_admission_in_full() -> None:
    """Every small load: admitted exactly when there is a place to work or to wait, and room for it."""
    limits = ServiceLimits(sessions=2, queue=2, queue_prompt_s=5, prompt_s=4, state_mib=1)
    half = MIB // 2
    for queued, waiting, working, held, prompt, size in itertools.product(
        range(4), (0, 3, 5), range(4), (0, half, MIB), (0, 2, 4, 4.5), (0, half, MIB, MIB + 1)
    ):
        no = refusal(limits, Load(queued, waiting, working, held), prompt, size)
        starts = queued == 0 and working < 2
        waits = not starts and queued < 2 and waiting + prompt <= 5
        fits = held + size <= MIB and prompt <= 4
        assert (no is None) == (fits and (starts or waits))
        if no is not None:
            assert no.again == (prompt <= 4 and size <= MIB)
            assert no.code in ("prompt", "bytes", "queue")


def test_promotion_in_full() -> None:
    for sessions, working, waiting in itertools.product(range(1, 5), range(6), range(6)):
        queue = list(range(10, 10 + waiting))
        up = promoted(ServiceLimits(sessions=sessions), working, queue)
        assert list(up) == queue[: len(up)]
        assert len(up) == min(waiting, max(0, sessions - working))


def test_playback_against_a_listener_simulated_sample_by_sample(rng: np.random.Generator) -> None:
    """Pieces at random times: underruns and stalls as a listener with a clock counts them."""
    for _ in range(50):
        playback, now = Playback(due=1.0), 0.0
        buffered, stalled, underruns, last = 0.0, 0.0, 0, None
        for _ in range(30):
            now += float(rng.integers(0, 8)) / 4
            samples = int(rng.integers(1, 4)) * 4000
            if last is not None:
                heard = now - last
                if heard > buffered:
                    underruns += 1
                    stalled += heard - buffered
                buffered = max(0.0, buffered - heard)
            if last is None:
                assert playback.dry_at() == playback.dry_at(4000) == 1.0
            playback.give(samples, now)
            buffered, last = buffered + samples / 16_000, now
            assert playback.dry_at() == pytest.approx(now + buffered)
            assert playback.dry_at(16_000) == pytest.approx(now + buffered + 1)
        assert playback.underruns == underruns
        assert playback.stalled_s == pytest.approx(stalled)


def test_offline_readers_never_run_dry() -> None:
    reader = offline()
    assert reader.give(100, 1e9) == 0
    assert reader.dry_at() == math.inf
    assert slack(reader.dry_at(), 5, 7) == math.inf
    assert not is_urgent(math.inf, 1e9)
    assert slack(10, 2, 5) == 3
    assert is_urgent(3, 3.1)
    assert not is_urgent(3, 3)


def test_buckets_in_full() -> None:
    for keys in itertools.product((KEY, OTHER), repeat=4):
        waiting = list(enumerate(keys))
        for room in (1, 49, 50, 100, 149, 150, 1000):
            picked = together(keys[0], waiting, room)
            assert picked[0] == 0
            assert all(keys[i] == keys[0] for i in picked)
            same = keys.count(keys[0])
            assert len(picked) == min(same, max(1, room // keys[0].bucket))
            assert list(picked) == sorted(picked)
            for row_s, most in ((0.0, 9), (0.05, 4), (0.09, 2), (0.15, 1), (5.0, 1)):
                fewer = together(keys[0], waiting, room, row_s, 0.2)
                assert fewer == picked[:most]


def live(number: int, **fields: object) -> SessionView:
    due = fields.pop("due", math.inf)
    base = {"audio_due": due, "codes_due": due, "realtime": due != math.inf}
    return SessionView(number, Stage.LIVE, **{**base, **fields})  # type: ignore[arg-type]


def view(*sessions: SessionView, now: float = 0.0, since_read: int = 1 << 30) -> ServiceView:
    held: dict[int, list[int]] = {}
    for s in sessions:
        if s.batch is not None:
            held.setdefault(s.batch, []).append(s.number)
    batches = tuple(BatchView(b, KEY, tuple(m), len(m)) for b, m in held.items())
    return ServiceView(now, sessions, batches, (), since_read)


LIMITS = ServiceLimits(rows=2, pass_tokens=100, burst=5, steps_beside=24)


def reading(number: int, due: float = math.inf) -> SessionView:
    return SessionView(number, Stage.READING, codes_due=due, realtime=due != math.inf)


def test_every_pair_of_sessions_gets_a_plan_that_fits() -> None:
    """All pairs of states: work is planned exactly when there is some, and only for those who can do it."""
    states: list[SessionView] = [
        SessionView(0, Stage.QUEUED),
        reading(0),
        reading(0, 1.0),
        live(0, paused=True, missing=3),
        live(0, complete=True, has_audio=True),
        live(0, complete=True, has_audio=True, buffered_s=9.0),
        live(0, missing=3),
        live(0, missing=7, due=0.5),
        live(0, missing=7, due=0.4, playing=True),
        live(0, missing=7, ahead_s=99.0),
        live(0, window=KEY),
        live(0, window=OTHER, due=2.0),
        live(0, batch=4),
        live(0, batch=4, due=0.1, has_audio=True),
    ]
    able = {1, 2, 4, 6, 7, 8, 10, 11, 12, 13}
    for (i, a), (j, b), since in itertools.product(enumerate(states), enumerate(states), (0, 22, 24)):
        pair = view(a, b._replace(number=1), now=0.0, since_read=since)
        work = plan(pair, LIMITS)
        assert (work is not None) == (i in able or j in able)
        if work is None:
            continue
        can = {(t.kind, t.session.number) for t in tasks(pair, LIMITS)}
        rides = {n for n, s in enumerate((i, j)) if work.kind == Kind.STEP and s == 9}
        assert all((work.kind, number) in can or number in rides for number in work.sessions)
        assert len(set(work.sessions)) == len(work.sessions)
        if work.kind == Kind.STEP:
            both = {(Kind.STEP, 0), (Kind.STEP, 1)} <= can
            assert len(work.sessions) == (2 if both or rides & set(work.sessions) else 1)
            assert bool(rides & set(work.sessions)) == (bool(rides) and not {7, 8} & {i, j})
            shortest = min(pair.sessions[n].missing for n in work.sessions if n not in rides)
            playing = any(s.playing for s in pair.sessions if (Kind.STEP, s.number) in can)
            held = 99
            if any(k == Kind.READ for k, _ in can):
                assert playing
                assert since < 24, "a prompt goes before any other step"
                held = 24 - since
            assert work.amount == min(5, shortest, held)
        if work.kind == Kind.BEGIN:
            keys = {pair.sessions[n].window for n in work.sessions}
            assert len(keys) == 1
        if work.kind == Kind.PASS:
            assert work.batch == 4


def test_riders_come_along_when_nobody_is_in_a_hurry() -> None:
    """Sessions far ahead that lack tokens join a step of others: no paused one, and none of those at a limit."""
    limits = ServiceLimits(rows=3, lookahead_s=20.0, settled_s=4.0)
    far = {"ahead_s": 25.0, "playing": True, "missing": 9}
    others = [
        live(1, **far, due=25.0), live(2, **far, due=24.0), live(3, **far, due=26.0), live(4, **far, paused=True),
        live(5, ahead_s=25.0, window=KEY), live(6, ahead_s=25.0, missing=9, batch=3), live(7, **far, complete=True),
    ]  # fmt: skip

    def going(first: SessionView, *more: SessionView) -> tuple[int, ...]:
        work = plan(view(first, *others, *more), limits)
        assert work is not None
        assert work.kind in (Kind.STEP, Kind.PASS)
        return work.sessions

    calm = live(0, missing=30, due=19.0, ahead_s=19.0, playing=True)
    assert going(calm) == (0, 2, 1), "as many as there are rows, the first to run dry first"
    assert going(calm._replace(codes_due=3.0)) == (0,), "in a hurry"
    assert going(calm, live(8, missing=5, starting=True, due=19.5)) == (0, 8), "somebody waits to begin"


def test_throughput_order_when_nobody_is_in_a_hurry() -> None:
    everything = [
        reading(0),
        live(1, has_audio=True, complete=True),
        live(2, batch=1),
        live(3, window=KEY),
        live(4, missing=2),
    ]
    for kind in Kind:
        work = plan(view(*everything), LIMITS)
        assert work is not None
        assert work.kind == kind
        everything.pop(0)


def test_the_first_to_run_dry_is_served_first() -> None:
    near, far = live(1, missing=9, due=1.0, cost_s=0.5), live(2, batch=0, due=5.0, cost_s=0.6)
    work = plan(view(far, near), LIMITS)
    assert work is not None
    assert (work.kind, work.sessions) == (Kind.STEP, (1,))
    # With time for both, the order of throughput holds.
    calm = plan(view(far._replace(codes_due=50.0), near._replace(codes_due=50.0)), LIMITS)
    assert calm is not None
    assert calm.kind == Kind.PASS
    # An offline job fills what is left, and comes along where there is room.
    idle = live(3, missing=9)
    work = plan(view(near, idle), LIMITS)
    assert work is not None
    assert work.sessions == (1, 3)
    work = plan(view(near, live(4, missing=1, due=2.0), idle), LIMITS)
    assert work is not None
    assert work.sessions == (1, 4), "no more rows than there are"


def test_prompts_are_read_between_the_steps_of_listeners() -> None:
    listener, job = live(1, missing=9, due=90.0, playing=True), live(1, missing=9)
    first = plan(view(reading(0), listener), LIMITS)
    assert first is not None
    assert (first.kind, first.amount) == (Kind.READ, CHUNK_TOKENS)
    then = plan(view(reading(0), listener, since_read=22), LIMITS)
    assert then is not None
    assert (then.kind, then.amount) == (Kind.STEP, 2)
    # Jobs that nobody listens to are not worth slowing a prompt for.
    work = plan(view(reading(0), job, since_read=0), LIMITS)
    assert work is not None
    assert (work.kind, work.amount) == (Kind.READ, CHUNK_TOKENS)


def test_the_validator_sees_what_is_wrong() -> None:
    """One view that is right, and one change for each promise, which is then reported."""
    limits = ServiceLimits(sessions=2, rows=1, queue=1, state_mib=1, pass_tokens=50)
    right = ServiceView(
        0.0,
        (
            live(0, missing=2, row=0),
            live(1, batch=3, nbytes=5),
            SessionView(2, Stage.QUEUED),
            SessionView(3, Stage.ENDED, ends=1),
        ),
        (BatchView(3, KEY, (1,), 1),),
        (0,),
    )
    assert broken(right, limits, 30) == []

    def changed(index: int, **fields: object) -> ServiceView:
        sessions = list(right.sessions)
        sessions[index] = sessions[index]._replace(**fields)
        return right._replace(sessions=tuple(sessions))

    wrong: list[tuple[ServiceView, str]] = [
        (changed(0, ends=2), "terminal"),
        (changed(3, ends=0), "terminal"),
        (changed(3, ends=2), "terminal"),
        (changed(3, nbytes=1), "holds something"),
        (changed(2, has_audio=True), "but holds"),
        (changed(0, complete=True, missing=0), "not ended"),
        (changed(1, batch=None), "stuck"),
        (changed(0, row=1), "disagree"),
        (changed(0, missing=0), "no step"),
        (right._replace(seats=(0, 1)), "are used"),
        (right._replace(batches=()), "batches hold"),
        (right._replace(batches=(*right.batches, BatchView(4, KEY, (), 1))), "nobody"),
        (right._replace(batches=(BatchView(3, OTHER, (1,), 2),)), "rows of"),
        (changed(3, stage=Stage.LIVE, ends=0, window=KEY), "more than the limits"),
        (changed(1, stage=Stage.ENDED, ends=1, batch=None, nbytes=0)._replace(batches=()), "there is room"),
        (changed(1, nbytes=2 << 20), "bytes"),
        (changed(2, number=-1), "overtook"),
        (changed(0, buffered_s=limits.buffer_s + 2.1), "buffer"),
        (changed(0, ahead_s=limits.lookahead_s + 30.1), "ahead"),
    ]
    for bad, message in wrong:
        assert any(message in text for text in broken(bad, limits, 30)), message


def test_newcomers_come_after_listeners_with_little_ahead_and_in_order() -> None:
    """Before its first audio a session is due ``settled_s`` from now, whenever it came."""
    limits = ServiceLimits(settled_s=4.0)
    now = 100.0

    def entry(number: int, given_s: float | None) -> SessionView:
        body = Body(number, 100 * SAMPLES, Faults(), to_read=0)
        one = Entry(number, str(number), body, Playback(now - 50), True, now - 60, stage=Stage.LIVE)
        if given_s is not None:
            one.first_audio_s = 1.0
            one.playback.give(0, now - 10)
            one.playback.give(round((10 + given_s) * 16_000), now - 10)
        one.look()
        return one.view(Costs(), now + limits.settled_s)

    def first(*sessions: SessionView) -> int:
        work = plan(ServiceView(now, sessions, (), ()), limits)
        assert work is not None
        return work.sessions[0]

    new, newer, short, long = entry(7, None), entry(8, None), entry(3, 2.0), entry(4, 9.0)
    assert [s.starting for s in (new, newer, short, long)] == [True, True, False, False]
    assert [s.playing for s in (new, newer, short, long)] == [False, False, True, True]
    assert first(new, short, long) == 3
    assert first(new, long) == 7
    assert first(newer, new, long) == 7
    assert first(newer, long) == 8


def test_costs_follow_what_is_measured() -> None:
    costs = Costs()
    assert costs.ahead_of_codes(100, 750, 23) == 0
    costs.stepped(0.01)
    costs.passed(750, 4, 0.8)
    assert costs.ahead_of_codes(100, 750, 23) == pytest.approx(1 + 4.6)
    assert costs.ahead_of_codes(100, 50, 23) == pytest.approx(1)
    for _ in range(200):
        costs.stepped(0.02)
    assert costs.step_s == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize(
    "name", ["sessions", "rows", "state_mib", "pass_tokens", "burst", "buffer_s", "start_s"]
)
@pytest.mark.parametrize("value", [0, -1, float("nan"), "3", True, None])
def test_absurd_limits_are_refused(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name):
        ServiceLimits(**{name: value})  # type: ignore[arg-type]


def test_an_outlet_ends_once_and_takes_nothing_after() -> None:
    for end in (End("finished"), End("cancelled"), End("failed", "engine", "it broke")):
        outlet = Outlet()
        outlet.put(np.ones(3, np.float32))
        assert outlet.unread_s == 3 / 16_000
        assert outlet.finish(end) == end
        outlet.cancel()
        if end.kind == "cancelled":
            # The engine hears of it later: what it does until then is dropped.
            assert outlet.finish(End("finished")) == end
            outlet.put(np.ones(3, np.float32))
        else:
            with pytest.raises(AssertionError):
                outlet.finish(End("failed", "internal"))
            with pytest.raises(AssertionError):
                outlet.put(np.ones(3, np.float32))
        got = outlet.take(0)
        if end.kind == "cancelled":
            assert got == end
            assert outlet.unread_s == 0
        else:
            assert isinstance(got, np.ndarray)
            assert outlet.take(0) == end
        assert outlet.take(0) == end
        assert outlet.ends == 1
    assert Outlet().take(0.01) is None


def test_a_listener_that_raises_ends_nobody(caplog: pytest.LogCaptureFixture) -> None:
    outlet = Outlet()
    outlet.on_change = lambda: 1 / 0
    outlet.put(np.ones(3, np.float32))
    outlet.finish(End("finished"))
    assert isinstance(outlet.take(0), np.ndarray)
    assert outlet.take(0) == End("finished")
    assert "ZeroDivisionError" in caplog.text


def test_errors_keep_their_kind_on_the_way_to_the_reader() -> None:
    for error, code in (
        (SessionFailed("not finite"), "unhealthy"),
        (EngineError("broke"), "engine"),
        (AudioError("short"), "audio"),
        (MemoryError(), "memory"),
        (KeyError("x"), "internal"),
    ):
        end = failure_of(error)
        assert (end.kind, end.code) == ("failed", code)
        assert end.message
        again = raised_of(end)
        assert isinstance(again, type(error) if isinstance(error, SpeechSSMError) else SessionFailed)
        assert end.message in str(again)
