"""What a caller holds of a session in a service: its audio, its end, and ways to stop it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from ..clock import SessionStats
from .entry import Entry
from .failure import raised_of
from .outlet import End
from .view import Stage
from .work import Speaker

if TYPE_CHECKING:
    from .service import Service


class Ticket:
    """One session of a service. Thread-safe; one reader at a time.

    Iterate to read: ``for audio in ticket`` or ``async for audio in ticket``, float32 (n) at 16 kHz. The
    iterator ends when the stream finished or was cancelled and raises when it failed; ``end`` says which.
    """

    def __init__(self, service: Service, entry: Entry[Speaker]) -> None:
        self._service = service
        self._entry = entry

    @property
    def session_id(self) -> str:
        """The name to resume it by."""
        return self._entry.key

    @property
    def seed(self) -> int:
        """The seed that drives it."""
        return self._entry.body.settings.seed

    @property
    def end(self) -> End | None:
        """The terminal event, None before it. Audio may still be unread."""
        return self._entry.outlet.end

    @property
    def first_audio_s(self) -> float | None:
        """From arrival to the first audio."""
        return self._entry.first_audio_s

    @property
    def underruns(self) -> int:
        """How often a real-time listener ran dry."""
        return self._entry.playback.underruns

    @property
    def stats(self) -> SessionStats:
        """Counts of the stream; engine times are in the service's metrics, which sessions share."""
        stream = self._entry.body.stream
        stats = SessionStats() if stream is None else stream.stats
        stats.first_audio_s = self._entry.first_audio_s
        return stats

    def take(self, timeout: float | None = None) -> np.ndarray | End | None:
        """The next audio (n), or the end after the last; None when ``timeout`` seconds brought neither."""
        return self._entry.outlet.take(timeout)

    def __iter__(self) -> Iterator[np.ndarray]:
        while not isinstance(got := self.take(), End):
            assert got is not None
            yield got
        _raise_if_failed(got)

    async def __aiter__(self) -> AsyncGenerator[np.ndarray, None]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        self.notify(lambda: _wake(loop, ready))
        try:
            while True:
                ready.clear()
                got = self.take(0)
                if got is None:
                    await ready.wait()
                elif isinstance(got, End):
                    _raise_if_failed(got)
                    return
                else:
                    yield got
        finally:
            self.notify(None)

    def notify(self, change: Callable[[], None] | None) -> None:
        """Call ``change`` in the engine's thread with every piece and at the end. It must return at once."""
        self._entry.outlet.on_change = change

    def cancel(self) -> None:
        """End it: the reader has its end at once, and unread audio is dropped.

        The engine lets go of it before its next unit of work.
        """
        asked = time.monotonic()
        self._entry.outlet.cancel()
        self._service._post(lambda core: core.cancel(self._entry, asked))

    def pause(self) -> None:
        """Keep it as it is; it takes part in no step until :meth:`unpause`."""
        self._service._post(lambda core: core.pause(self._entry, True))

    def unpause(self) -> None:
        """Let it go on."""
        self._service._post(lambda core: core.pause(self._entry, False))

    def fork(self, *, seed: int | None = None, session_id: str | None = None) -> Ticket:
        """A new session in the state of this one; with another ``seed`` it goes its own way from here.

        It begins with the audio that this one's reader has not taken. Raises SessionFailed while the prompt
        is still being read or after the end, CapacityError when there is no room.
        """
        return self._service._fork(self._entry, seed, session_id)

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._entry.stage != Stage.ENDED


def _raise_if_failed(end: End) -> None:
    if end.kind == "failed":
        raise raised_of(end)


def _wake(loop: asyncio.AbstractEventLoop, ready: asyncio.Event) -> None:
    # The loop of a reader that is gone may be closed, or close right now.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(ready.set)
