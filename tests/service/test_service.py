"""The service on the tiny bundle: the same samples as alone, whatever happens beside."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import speechssm
from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.errors import (
    AudioError,
    CapacityError,
    EngineError,
    SessionFailed,
    SettingsError,
    SnapshotError,
)
from speechssm.runtime.model import Model
from speechssm.runtime.service import work
from speechssm.runtime.service.invariants import broken
from speechssm.runtime.service.limits import ServiceLimits
from speechssm.runtime.service.outlet import End
from speechssm.runtime.service.service import Service
from speechssm.runtime.service.ticket import Ticket

COMMON = {"rate_hz": SAMPLE_RATE_HZ, "schedule": "fast", "temperature": 3.0, "ramp": True}


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return speechssm.load(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    rng = np.random.default_rng()
    return (0.1 * rng.standard_normal(SAMPLE_RATE_HZ * 2)).astype(np.float32)


@pytest.fixture(scope="module")
def alone(model: Model, voice: np.ndarray) -> dict[tuple[int, float], np.ndarray]:
    """Audio of some seeds and lengths, each made alone."""
    wanted = [(1, 5.0), (2, 5.0), (3, 7.01), (4, 5.0), (5, 33.3)]
    return {
        (seed, seconds): model.generate(voice, seconds=seconds, seed=seed, **COMMON).audio  # type: ignore[arg-type]
        for seed, seconds in wanted
    }


@pytest.fixture
def service(model: Model, watched: None) -> Iterator[Service]:
    before = set(threading.enumerate())
    with Service(model, ServiceLimits(rows=3, sessions=8, pass_tokens=200)) as service:
        yield service
    assert set(threading.enumerate()) == before, "a thread is left"


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every cycle of every service in the test passes the validator."""
    from speechssm.runtime.service.core import Scheduler

    real = Scheduler.cycle
    wrong: list[str] = []

    def cycle(self: Scheduler[work.Speaker]) -> bool:
        worked = real(self)
        wrong.extend(broken(self.view(), self.limits, 30.0))
        return worked

    monkeypatch.setattr(Scheduler, "cycle", cycle)
    yield
    assert not wrong, wrong[:3]


def submit(service: Service, voice: np.ndarray, seed: int, seconds: float, **options: object) -> Ticket:
    return service.submit(voice, seconds=seconds, seed=seed, **{**COMMON, **options})  # type: ignore[arg-type]


def collect(ticket: Ticket) -> np.ndarray:
    return np.concatenate(list(ticket))


Alone = dict[tuple[int, float], np.ndarray]


def test_together_as_alone(service: Service, voice: np.ndarray, alone: Alone) -> None:
    """The same seed alone and among others: the same samples, bit for bit; more sessions than rows."""
    tickets = {key: submit(service, voice, *key, realtime=bool(key[0] % 2)) for key in alone}
    for key, ticket in tickets.items():
        assert collect(ticket).tobytes() == alone[key].tobytes()
        assert ticket.end == End("finished")
        assert ticket.seed == key[0]
        assert ticket.stats.samples == len(alone[key])
    metrics = service.metrics()
    assert metrics.finished_total == len(alone)
    assert metrics.rows_per_step > 1.2
    assert metrics.failed_total == {}
    assert metrics.state_bytes == 0
    assert metrics.flat()["first_audio_s_count"] == len(alone)


@pytest.mark.parametrize("lanes", [1, 2])
def test_lanes_change_no_sample(
    model: Model, voice: np.ndarray, alone: Alone, watched: None, lanes: int
) -> None:
    """Acoustic passes beside everything else: the same samples; whoever is cancelled waits for none of them."""
    before = set(threading.enumerate())
    with Service(model, ServiceLimits(rows=3, sessions=8, pass_tokens=200, lanes=lanes)) as service:
        gone = submit(service, voice, 5, 3600)
        tickets = {key: submit(service, voice, *key, realtime=bool(key[0] % 2)) for key in alone}
        gone.take()
        gone.cancel()
        assert gone.take(0) == End("cancelled")
        for key, ticket in tickets.items():
            assert collect(ticket).tobytes() == alone[key].tobytes()
        assert service.metrics().failed_total == {}
    assert set(threading.enumerate()) == before, "a thread is left"


def test_generate_many_yields_in_order(model: Model, voice: np.ndarray, alone: Alone) -> None:
    seeds = [4, 1, 2]
    spoken = list(model.generate_many([voice] * 3, seconds=5.0, seeds=seeds, together=2, **COMMON))  # type: ignore[arg-type]
    assert [speech.seed for speech in spoken] == seeds
    for speech in spoken:
        assert speech.audio.tobytes() == alone[speech.seed, 5.0].tobytes()
    with pytest.raises(SettingsError, match="seeds"):
        next(model.generate_many([voice], seconds=1, seeds=[1, 2]))
    with pytest.raises(AudioError):
        next(model.generate_many([voice[:100]], seconds=1, rate_hz=SAMPLE_RATE_HZ))


def test_pause_and_fork_change_nobody(service: Service, voice: np.ndarray, alone: Alone) -> None:
    main, other = submit(service, voice, 5, 33.3), submit(service, voice, 3, 7.01)
    first = main.take()
    assert isinstance(first, np.ndarray)
    main.pause()
    twin, stranger = main.fork(), main.fork(seed=77)
    assert collect(other).tobytes() == alone[3, 7.01].tobytes()
    assert main.alive
    main.unpause()
    rest = collect(main)
    assert np.concatenate([first, rest]).tobytes() == alone[5, 33.3].tobytes()
    assert collect(twin).tobytes() == rest.tobytes()
    elsewhere = collect(stranger)
    assert len(elsewhere) == len(rest)
    assert elsewhere.tobytes() != rest.tobytes()
    assert stranger.seed == 77


def test_cancel_ends_one_stream_at_once(service: Service, voice: np.ndarray, alone: Alone) -> None:
    gone, stays = submit(service, voice, 5, 3600), submit(service, voice, 1, 5.0)
    gone.take()
    asked = time.monotonic()
    gone.cancel()
    gone.cancel()
    while not isinstance(got := gone.take(5), End):
        assert got is not None
    assert time.monotonic() - asked < 5
    assert got == End("cancelled")
    assert list(gone) == []
    assert collect(stays).tobytes() == alone[1, 5.0].tobytes()
    assert service.metrics().cancelled_total == 1


def test_a_poisoned_row_ends_its_session_only(
    service: Service, voice: np.ndarray, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = work.Workshop.step

    def step(self: work.Workshop, bodies: list[work.Speaker]) -> list[Exception | None]:
        for row, body in enumerate(bodies):
            if body.settings.seed == 666 and len(body._out.tokens) == 20:
                self.rows.state.current["L00_lru"][row, 3] = np.nan
        return real(self, bodies)

    monkeypatch.setattr(work.Workshop, "step", step)
    sick = submit(service, voice, 666, 5.0)
    well = [submit(service, voice, seed, 5.0) for seed in (1, 2, 4)]
    with pytest.raises(SessionFailed, match="no longer finite"):
        collect(sick)
    assert sick.end is not None
    assert (sick.end.kind, sick.end.code) == ("failed", "unhealthy")
    for seed, ticket in zip((1, 2, 4), well, strict=True):
        assert collect(ticket).tobytes() == alone[seed, 5.0].tobytes()
    assert service.metrics().failed_total == {"unhealthy": 1}


def test_an_engine_that_throws_costs_no_neighbour_a_sample(
    service: Service, voice: np.ndarray, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps and windows that throw with one session in them end that session; one bad call ends nobody."""
    step, begin = work.Workshop.step, work.Windows.step
    calls = {"step": 0, "pass": 0}

    def bad_step(self: work.Workshop, bodies: list[work.Speaker]) -> list[Exception | None]:
        calls["step"] += 1
        if any(b.settings.seed == 666 and len(b._out.tokens) > 60 for b in bodies):
            raise EngineError("the step failed")
        if len(bodies) > 1 and calls["step"] % 17 == 0:
            raise EngineError("now and then")
        return step(self, bodies)

    def bad_pass(self: work.Windows) -> None:
        calls["pass"] += 1
        if len(self._bodies) > 1 and calls["pass"] % 5 == 0:
            raise RuntimeError("not ours")
        begin(self)

    monkeypatch.setattr(work.Workshop, "step", bad_step)
    monkeypatch.setattr(work.Windows, "step", bad_pass)
    sick = submit(service, voice, 666, 5.0)
    well = [submit(service, voice, seed, 5.0) for seed in (1, 2, 4)]
    with pytest.raises(EngineError, match="the step failed"):
        collect(sick)
    for seed, ticket in zip((1, 2, 4), well, strict=True):
        assert collect(ticket).tobytes() == alone[seed, 5.0].tobytes()
    assert service.metrics().retried_total > 0


def test_a_slow_reader_pauses_only_itself(
    model: Model, voice: np.ndarray, alone: Alone, watched: None
) -> None:
    with Service(model, ServiceLimits(buffer_s=2.0, lookahead_s=2.0, rows=2)) as service:
        slow, quick = submit(service, voice, 5, 33.3), submit(service, voice, 3, 7.01)
        assert collect(quick).tobytes() == alone[3, 7.01].tobytes()
        time.sleep(0.3)
        assert 2.0 <= service.metrics().buffered_s <= 4.0
        assert slow.alive
        assert collect(slow).tobytes() == alone[5, 33.3].tobytes()


def test_asyncio_streams_cancel_and_raise(model: Model, voice: np.ndarray, alone: Alone) -> None:
    async def main() -> None:
        async with Service(model, ServiceLimits(rows=4)) as service:

            async def one(seed: int, seconds: float) -> np.ndarray:
                stream = service.stream(voice, seconds=seconds, seed=seed, **COMMON)
                return np.concatenate([audio async for audio in stream])

            spoken = await asyncio.gather(*(one(*key) for key in alone))
            for audio, expected in zip(spoken, alone.values(), strict=True):
                assert audio.tobytes() == expected.tobytes()

            stream = service.stream(voice, seconds=3000, seed=1, **COMMON)
            assert len(await anext(stream))
            await stream.aclose()  # type: ignore[attr-defined]
            task = asyncio.create_task(one(1, 3000))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            task = asyncio.create_task(one(1, 3000))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for _ in range(200):
                if service.metrics().cancelled_total == 3:
                    break
                await asyncio.sleep(0.05)
            assert service.metrics().cancelled_total == 3
            assert service.metrics().live == 0
            with pytest.raises(AudioError):
                await one_bad(service)

    async def one_bad(service: Service) -> None:
        async for _ in service.stream(np.zeros(10, np.float32), seconds=1, rate_hz=SAMPLE_RATE_HZ):
            pass

    asyncio.run(main())


def test_many_threads_share_a_service(service: Service, voice: np.ndarray, alone: Alone) -> None:
    wrong: list[object] = []

    def reader(key: tuple[int, float]) -> None:
        try:
            assert collect(submit(service, voice, *key)).tobytes() == alone[key].tobytes()
        except BaseException as error:
            wrong.append(error)

    keys = [key for key in alone if key[1] < 10] * 2
    threads = [threading.Thread(target=reader, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_refusals_come_before_any_work(model: Model, voice: np.ndarray) -> None:
    limits = ServiceLimits(sessions=1, queue=1, prompt_s=3.0)
    with Service(model, limits) as service:
        held = [submit(service, voice, seed, 3000) for seed in (1, 2)]
        with pytest.raises(CapacityError, match="try again"):
            submit(service, voice, 3, 1)
        with pytest.raises(CapacityError, match="prompt lasts"):
            submit(service, np.tile(voice, 2), 3, 1)
        for bad, message in (
            ({"seconds": 0}, "above zero"),
            ({"temperature": -1}, "temperature"),
            ({"session_id": "../x"}, "session id"),
        ):
            with pytest.raises(SettingsError, match=message):
                service.submit(voice, **{"seconds": 1.0, **COMMON, **bad})  # type: ignore[arg-type]
        with pytest.raises(SessionFailed, match="speaking"):
            held[1].fork()
        held[0].cancel()
        assert isinstance(held[1].take(), np.ndarray), "the next in the queue starts"
        assert service.metrics().refused_total == 2
    for ticket in held[1:]:
        with pytest.raises(SessionFailed, match="closed"):
            collect(ticket)
    with pytest.raises(CapacityError, match="draining"):
        submit(service, voice, 1, 1)
    with pytest.raises(SnapshotError, match="folder"):
        service.checkpoint()


def test_drain_lets_everyone_finish(model: Model, voice: np.ndarray, alone: Alone) -> None:
    service = Service(model)
    ticket = submit(service, voice, 1, 5.0)
    assert service.drain(timeout=60)
    with pytest.raises(CapacityError):
        submit(service, voice, 2, 5.0)
    service.close()
    assert collect(ticket).tobytes() == alone[1, 5.0].tobytes()
    service.close()
