"""Sessions opened, cancelled at any moment, and closed leave nothing behind: threads, files, memory, state."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

import speechssm
from speechssm.audio import AudioWriter
from speechssm.errors import SessionFailed
from speechssm.runtime.acoustic import AcousticSchedule
from speechssm.runtime.model import Model
from speechssm.runtime.session import Session

SESSIONS = 30
MANY = 1_000


class Cancelled(KeyboardInterrupt):
    """Comes from a timer, between any two instructions, as Ctrl-C does."""


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return speechssm.load(tiny_bundle, threads=1)


VOICE = (0.1 * np.random.default_rng(2).standard_normal(20_000)).astype(np.float32)


def opened(model: Model, seed: int) -> Session:
    return model.open(VOICE, rate_hz=16_000, seed=seed, ramp=True, schedule=AcousticSchedule((1,)))


@contextmanager
def cancelled_within(seconds: float) -> Iterator[None]:
    """Raise :class:`Cancelled` in the block after ``seconds``; the block may end before."""

    def on_time(_number: int, _frame: FrameType | None) -> None:
        raise Cancelled

    before = signal.signal(signal.SIGALRM, on_time)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        # A timer that fires just here is one too late to matter.
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- ways to end a session ---------------------------------------------------------------------------


def between_pieces(model: Model, chance: random.Random, folder: Path) -> None:
    with opened(model, chance.randrange(99)) as session:
        for i, _ in enumerate(session.stream(20)):
            if i >= chance.randrange(4):
                break


def generator_closed(model: Model, chance: random.Random, folder: Path) -> None:
    session = opened(model, chance.randrange(99))
    stream = session.stream(9)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    session.close()


def dropped(model: Model, chance: random.Random, folder: Path) -> None:
    """Nobody closes it."""
    next(opened(model, chance.randrange(99)).stream(3))


def at_any_moment(model: Model, chance: random.Random, folder: Path) -> None:
    delay = chance.uniform(0.0005, 0.12)
    with suppress(Cancelled), cancelled_within(delay), opened(model, chance.randrange(99)) as session:
        for _ in session.stream(60):
            pass


def while_writing(model: Model, chance: random.Random, folder: Path) -> None:
    out = folder / f"x{chance.choice(('.wav', '.flac', '.w64'))}"
    delay, keep = chance.uniform(0.0005, 0.12), chance.random() < 0.5
    with (
        suppress(Cancelled),
        cancelled_within(delay),
        AudioWriter(out, keep_partial=keep) as writer,
        opened(model, 1) as session,
    ):
        for piece in session.stream(60):
            writer.write(piece)
    out.unlink(missing_ok=True)


def while_making_a_file(model: Model, chance: random.Random, folder: Path) -> None:
    """A tenth of a millisecond, tried again and again: the writer is begun, made or being finished."""
    out = folder / "made.wav"
    for _ in range(20):
        with suppress(Cancelled), cancelled_within(chance.uniform(0.00001, 0.001)):
            for _ in range(5):
                with AudioWriter(out) as writer:
                    writer.write(VOICE)
    out.unlink(missing_ok=True)


def while_snapshotting(model: Model, chance: random.Random, folder: Path) -> None:
    with opened(model, 2) as session:
        next(session.stream(9))
        path = folder / "s"
        with suppress(Cancelled), cancelled_within(chance.uniform(0.0001, 0.01)):
            for _ in range(5):
                session.snapshot(path)
                model.restore(path).close()
        path.unlink(missing_ok=True)


def failed(model: Model, chance: random.Random, folder: Path) -> None:
    with opened(model, 3) as session:
        session.lm.state.current["L00_lru"][0, 0] = np.nan
        with pytest.raises(SessionFailed):
            list(session.stream(1))


def in_a_thread(model: Model, chance: random.Random, folder: Path) -> None:
    stop = threading.Event()

    def work() -> None:
        with opened(model, 4) as session:
            for _ in session.stream(3_000):
                if stop.is_set():
                    return

    thread = threading.Thread(target=work)
    thread.start()
    stop.wait(chance.uniform(0, 0.05))
    stop.set()
    thread.join()


WAYS: tuple[Callable[[Model, random.Random, Path], None], ...] = (
    between_pieces, generator_closed, dropped, at_any_moment, at_any_moment, at_any_moment, while_writing,
    while_making_a_file, while_snapshotting, failed, in_a_thread,
)  # fmt: skip


# ---- what is left ------------------------------------------------------------------------------------

SETTLE_S = 30.0
"""Most time until the system has forgotten a thread that Python already took for ended."""


def held(folder: Path) -> dict[str, object]:
    """Threads of this process as Python and the system count them, open files, files left, sessions in memory."""
    gc.collect()
    found: dict[str, object] = {"threads": threading.active_count(), "left": sorted(os.listdir(folder))}
    if Path("/proc/self/task").exists():
        found["tasks"] = len(os.listdir("/proc/self/task"))
        found["files"] = len(os.listdir("/proc/self/fd"))
    found["sessions"] = sum(type(o) is Session for o in gc.get_objects())
    return found


def settled(folder: Path, wanted: dict[str, object]) -> dict[str, object]:
    """As :func:`held`, once it is ``wanted`` or too much time has passed."""
    end = time.monotonic() + SETTLE_S
    while (found := held(folder)) != wanted and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's files lie, temporary ones of any library included."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # An interruption inside a finaliser is reported, not raised. pytest's hook would keep the exception, its
    # frames and so a session until the test is over.
    monkeypatch.setattr(sys, "unraisablehook", lambda report: None)
    return tmp_path


@pytest.mark.parametrize("count", [SESSIONS, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_is_left(model: Model, folder: Path, rng: np.random.Generator, count: int) -> None:
    control = np.concatenate(list(opened(model, 42).stream(5)))
    chance = random.Random(int(rng.integers(1 << 32)))
    for way in WAYS:  # lazily made things are made before the count
        way(model, chance, folder)
    time.sleep(0.5)
    before = held(folder)
    assert (before["left"], before["sessions"]) == ([], 0)
    done: Counter[str] = Counter()
    for _ in range(count):
        way = chance.choice(WAYS)
        way(model, chance, folder)
        done[way.__name__] += 1
    after = settled(folder, before)
    assert after == before
    # And nobody's end has touched what comes after.
    assert np.concatenate(list(opened(model, 42).stream(5))).tobytes() == control.tobytes()
    print(f"{count} sessions ended early, {dict(done)}: before {before}, after {after}")


def test_what_is_left_would_be_noticed(folder: Path, model: Model) -> None:
    """Control: a thread, a file, a temporary name and a session, each kept a moment, change the count."""
    before = held(folder)
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    assert held(folder)["threads"] != before["threads"]
    release.set()
    thread.join()
    kept = tempfile.NamedTemporaryFile()  # noqa: SIM115
    found = held(folder)
    assert found["left"] != before["left"]
    assert found.get("files") != before.get("files") or "files" not in found
    kept.close()
    session = opened(model, 1)
    assert held(folder)["sessions"] == 1
    del session
    assert settled(folder, before) == before


def test_a_closed_session_needs_no_collector(model: Model) -> None:
    """It holds no cycle: dropped, its memory is back at once."""
    gc.disable()
    try:
        session = opened(model, 1)
        next(session.stream(2))
        session.close()
        watch = weakref.ref(session)
        del session
        assert watch() is None
    finally:
        gc.enable()


# ---- memory ------------------------------------------------------------------------------------------

ALLOCATORS_KIB = 1024.0
"""What allocators may take for themselves in all, however many sessions there were."""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("rounds", [20, pytest.param(MANY, marks=pytest.mark.slow)])
def test_memory_is_flat_and_a_planted_leak_is_caught(tiny_bundle: Path, rounds: int) -> None:
    """Negative control included: the same measurement sees sessions that somebody forgot to let go."""
    command = [sys.executable, "-m", "tests.runtime.faults_growth", str(tiny_bundle), str(rounds)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    clean, leaking = map(float, done.stdout.split())
    print(f"KiB per session: {clean:.2f} clean, {leaking:.2f} with a planted leak")
    assert clean * rounds < ALLOCATORS_KIB
    assert leaking * rounds > 2 * ALLOCATORS_KIB
