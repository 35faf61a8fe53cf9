"""Many sessions of one model: a worker thread that runs the scheduler, and the calls that reach it.

    with Service(model) as service:
        for audio in service.submit("prompt.wav", seconds=60, realtime=True):
            play(audio)

    async with Service(model) as service:
        async for audio in service.stream("prompt.wav", seconds=60):
            await send(audio)

Recordings are read in the caller's thread; everything that touches the model happens in the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import numpy as np

from speechssm.audio import read_audio
from speechssm.errors import CapacityError, SessionFailed, SettingsError, SnapshotError

from ..frozen import Frozen
from ..session import length_in_samples
from ..settings import number
from .checkpoints import CheckpointFolder, check_key
from .core import Scheduler
from .entry import Entry
from .failure import failure_of
from .limits import ServiceLimits
from .metrics import Metrics
from .outlet import End
from .ticket import Ticket
from .view import Stage
from .work import Speaker, Workshop

if TYPE_CHECKING:
    from ..model import Model, Recording

TICK_S = 0.25
"""How often checkpoints and abandoned sessions are looked after."""
PRUNE_S = 2.0
"""How often the files of sessions long gone are looked for."""
P = ParamSpec("P")
T = TypeVar("T")


class Lanes(ThreadPoolExecutor):
    """Threads for acoustic passes; ``landed`` is called whenever one is done."""

    def __init__(self, lanes: int, landed: Callable[[], None]) -> None:
        super().__init__(lanes, thread_name_prefix="speechssm-acoustic")
        self._landed = landed

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See :class:`concurrent.futures.Executor`."""
        flight = super().submit(fn, *args, **kwargs)
        flight.add_done_callback(lambda _: self._landed())
        return flight


class Service:
    """Sessions of one model, together. Thread-safe.

    ``checkpoints`` is a folder in which every session can be resumed after this process died, at most
    ``checkpoint_s`` seconds of speech earlier.
    """

    def __init__(
        self,
        model: Model,
        limits: ServiceLimits | None = None,
        *,
        checkpoints: str | PathLike[str] | None = None,
        checkpoint_s: float = 30.0,
    ) -> None:
        """Raises BundleError for a bundle that cannot speak, SnapshotError if there can be no folder."""
        self.model = model
        self.limits = limits or ServiceLimits()
        self._stages = model.stages
        self._checkpoint_s = number("checkpoint_s", checkpoint_s, 0.0, 86_400.0)
        self._folder: CheckpointFolder | None = None
        if checkpoints is not None:
            size = model.snapshot_state_bytes
            self._folder = CheckpointFolder(Path(checkpoints), model.digest, size, self.limits.snapshots)
        self._commands: deque[Callable[[Scheduler[Speaker]], None]] = deque()
        self._wake = threading.Event()
        self._lanes = Lanes(self.limits.lanes, self._wake.set) if self.limits.lanes else None
        self._core = Scheduler(
            Workshop(self._stages, self.limits.rows), self.limits, interrupted=lambda: bool(self._commands),
            lanes=self._lanes,
        )  # fmt: skip
        self._core.on_live = self._first_checkpoint
        self._thread: threading.Thread | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._writing: dict[str, Future[None]] = {}
        self._accepting = True
        self._stopping = False
        self._start_lock = threading.Lock()
        self._pruned = 0.0

    # sessions

    def submit(
        self,
        prompt: Recording,
        *,
        seconds: float,
        unbounded: bool = False,
        realtime: bool = False,
        session_id: str | None = None,
        rate_hz: int | None = None,
        speaker: Recording | None = None,
        speaker_rate_hz: int | None = None,
        **settings: Any,
    ) -> Ticket:
        """Continue ``prompt`` for ``seconds``; read the returned ticket.

        ``realtime`` says that somebody listens as it comes: such sessions are kept from running dry
        before offline ones are served. ``settings`` (``seed``, ``temperature``, ``top_k``, ``top_p``,
        ``ramp``, ``schedule``) are those of :meth:`Model.open`.

        Raises AudioError, SettingsError, and CapacityError when there is no room: its text says whether
        to try again.
        """
        samples = length_in_samples(seconds, unbounded=unbounded)
        chosen = self.model.settings(**settings)
        key = check_key(session_id) if session_id is not None else secrets.token_hex(8)
        audio = read_audio(prompt, rate_hz)
        other = None if speaker is None else read_audio(speaker, speaker_rate_hz)
        body = Speaker(self._stages, chosen, audio, other, -1 if samples is None else samples)
        return self._enter(key, body, realtime)

    async def stream(self, prompt: Recording, **options: Any) -> AsyncGenerator[np.ndarray, None]:
        """:meth:`submit` and read: ``async for``. Leaving the loop early cancels the session."""
        entering = asyncio.ensure_future(asyncio.to_thread(lambda: self.submit(prompt, **options)))
        try:
            ticket = await asyncio.shield(entering)
        except asyncio.CancelledError:
            # The thread goes on and will be let in: nobody is left to read.
            entering.add_done_callback(_cancel_entered)
            raise
        try:
            # Closed here: a reader that leaves must not leave the inner generator to the loop's finaliser.
            async with contextlib.aclosing(ticket.__aiter__()) as pieces:
                async for audio in pieces:
                    yield audio
        finally:
            if ticket.end is None:
                ticket.cancel()

    def resume(self, session_id: str, from_sample: int, *, realtime: bool = False) -> Ticket:
        """Go on with a session of an earlier process, from sample ``from_sample`` of its stream.

        The samples are those of an undisturbed run. Raises SnapshotError when no checkpoint fits,
        SettingsError for a sample past the stream's end, CapacityError when there is no room.
        """
        if self._folder is None:
            raise SnapshotError("this service keeps no checkpoints: give it a folder")
        if isinstance(from_sample, bool) or not isinstance(from_sample, int) or from_sample < 0:
            raise SettingsError(f"from_sample is {from_sample!r}: give the number of samples already had")
        self._settle(session_id)
        frozen = self._folder.read(session_id, from_sample)
        body = Speaker.thawed(self._stages, frozen)
        if 0 <= body.asked < from_sample:
            raise SettingsError(f"from_sample is {from_sample}, session {session_id} ends at {body.asked}")
        return self._enter(session_id, body, realtime, skip=from_sample - body.given)

    def resumable(self) -> list[str]:
        """Sessions with checkpoints, the one written longest ago first."""
        return [] if self._folder is None else self._folder.keys()

    def forget(self, session_id: str) -> None:
        """Delete a session's checkpoints: its audio is safe elsewhere."""
        if self._folder is not None:
            self._settle(session_id)
            self._folder.forget(session_id)

    def checkpoint(self) -> int:
        """Write a checkpoint of every speaking session now; how many. Raises SnapshotError for the first failure."""
        if self._folder is None:
            raise SnapshotError("this service keeps no checkpoints: give it a folder")
        frozen = self._call(self._freeze_all)
        for key, one in frozen:
            self._settle(key)
            self._folder.write(key, one)
        return len(frozen)

    def metrics(self) -> Metrics:
        """All counters at this moment."""
        return self._call(lambda core: core.metrics())

    # life

    def start(self) -> Service:
        """Start the worker; the first session does it too."""
        with self._start_lock:
            if self._stopping:
                raise SessionFailed("this service is closed: make a new one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="speechssm-service", daemon=True)
                self._thread.start()
        return self

    def drain(self, timeout: float | None = None) -> bool:
        """Admit nobody more and wait until every session has ended; False when ``timeout`` seconds were not enough."""
        self._accepting = False
        until = None if timeout is None else time.monotonic() + timeout
        while self._thread is not None and self._call(lambda core: len(core.entries)):
            if until is not None and time.monotonic() >= until:
                return False
            time.sleep(0.02)
        return True

    def close(self) -> None:
        """End the worker. Sessions get a last checkpoint, if there is a folder, and fail as 'closed'."""
        with self._start_lock:
            self._accepting, self._stopping = False, True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self._writer is not None:
            self._writer.shutdown(wait=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    # between threads

    def _enter(self, key: str, body: Speaker, realtime: bool, skip: int = 0) -> Ticket:
        if not self._accepting:
            raise CapacityError("refused (closed): this service is draining and admits nobody more")
        self.start()
        return Ticket(self, self._call(lambda core: self._admit(core, key, body, realtime, skip)))

    def _admit(
        self, core: Scheduler[Speaker], key: str, body: Speaker, realtime: bool, skip: int
    ) -> Entry[Speaker]:
        entry = core.submit(key, body, realtime=realtime, skip=skip)
        entry.outlet.on_take = self._wake.set
        return entry

    def _fork(self, entry: Entry[Speaker], seed: int | None, session_id: str | None) -> Ticket:
        key = check_key(session_id) if session_id is not None else secrets.token_hex(8)

        def fork(core: Scheduler[Speaker]) -> Entry[Speaker]:
            if entry.stage != Stage.LIVE or entry.skip:
                raise SessionFailed("only a session that is speaking can be forked: wait for its first audio")
            body = Speaker.thawed(self._stages, core.freeze(entry), seed)
            return self._admit(core, key, body, entry.realtime, 0)

        if not self._accepting:
            raise CapacityError("refused (closed): this service is draining and admits nobody more")
        return Ticket(self, self._call(fork))

    def _post(self, command: Callable[[Scheduler[Speaker]], None]) -> None:
        self._commands.append(command)
        self._wake.set()

    def _call(self, question: Callable[[Scheduler[Speaker]], T]) -> T:
        """Ask in the worker's thread, between two units of work. Asked here when no worker runs."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            return question(self._core)
        answer: Future[T] = Future()

        def ask(core: Scheduler[Speaker]) -> None:
            try:
                answer.set_result(question(core))
            except BaseException as error:
                answer.set_exception(error)

        self._post(ask)
        while True:
            try:
                return answer.result(timeout=1.0)
            except TimeoutError:
                if not thread.is_alive() and not answer.done():
                    raise SessionFailed("this service is closed: make a new one") from None

    # the worker

    def _run(self) -> None:
        core = self._core
        looked = time.monotonic()
        try:
            while not self._stopping:
                self._wake.clear()
                self._obey()
                worked = core.cycle()
                now = time.monotonic()
                if now - looked >= TICK_S:
                    looked = now
                    core.expire()
                    self._checkpoint_some(now)
                if not worked and not self._commands:
                    self._wake.wait(TICK_S)
            if self._folder is not None:
                for key, frozen in self._freeze_all(core):
                    self._write(key, frozen)
        except Exception as error:
            self._end_all(failure_of(error))
            raise
        finally:
            self._stopping = True
            if self._lanes is not None:
                self._lanes.shutdown()
            self._obey()
            again = "" if self._folder is None else ": resume it by its session id"
            self._end_all(End("failed", "closed", f"the service was closed{again}"))

    def _obey(self) -> None:
        while self._commands:
            self._commands.popleft()(self._core)

    def _end_all(self, end: End) -> None:
        """Every reader gets its end, whatever state the scheduler is in."""
        for entry in list(self._core.entries.values()):
            try:
                self._core.fail(entry, end.code, end.message)
            finally:
                if entry.outlet.end is None:
                    entry.outlet.finish(end)

    # checkpoints

    def _freeze_all(self, core: Scheduler[Speaker]) -> list[tuple[str, Frozen]]:
        able = [e for e in core.entries.values() if e.stage == Stage.LIVE and not e.skip]
        return [(entry.key, core.freeze(entry)) for entry in able]

    def _first_checkpoint(self, entry: Entry[Speaker]) -> None:
        """Before a session's first audio leaves: from here on it can be resumed."""
        if self._folder is not None and not entry.skip:
            self._write(entry.key, self._core.freeze(entry))

    def _checkpoint_some(self, now: float) -> None:
        if self._folder is None:
            return
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="speechssm-checkpoints")
        self._writing = {key: job for key, job in self._writing.items() if not job.done()}
        for entry in self._core.entries.values():
            due = now - entry.checkpointed >= self._checkpoint_s
            if due and entry.stage == Stage.LIVE and not entry.skip and entry.key not in self._writing:
                entry.checkpointed = now
                frozen = self._core.freeze(entry)
                self._writing[entry.key] = self._writer.submit(self._write, entry.key, frozen)
        if now - self._pruned >= PRUNE_S:
            self._pruned = now
            self._folder.prune({entry.key for entry in self._core.entries.values()})

    def _write(self, key: str, frozen: Frozen) -> None:
        """Write one checkpoint. A full disk costs the checkpoint and not the session."""
        assert self._folder is not None
        tally = self._core.tally
        try:
            self._folder.write(key, frozen)
            tally.checkpoints += 1
        except (SnapshotError, OSError) as error:
            tally.checkpoint_failures += 1
            tally.checkpoint_error = str(error)

    def _settle(self, key: str) -> None:
        """Wait for a checkpoint of this session that is being written."""
        job = self._writing.get(key)
        if job is not None:
            job.result()


def _cancel_entered(entering: asyncio.Future[Ticket]) -> None:
    if not entering.cancelled() and entering.exception() is None:
        entering.result().cancel()
