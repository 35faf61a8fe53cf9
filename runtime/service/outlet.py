"""Where a session's audio waits for its reader: bounded by the scheduler, ended exactly once.

The engine's thread puts, any other thread takes or cancels. The only lock of a stream is in here.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from speechssm.axes import SAMPLE_RATE_HZ

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class End:
    """The one terminal event of a stream.

    ``code`` says what failed: 'unhealthy' (the model's state), 'engine', 'audio', 'settings', 'memory',
    'idle' (nobody read), 'closed' (the service shut down) or 'internal'; empty otherwise.
    """

    kind: Literal["finished", "cancelled", "failed"]
    code: str = ""
    message: str = ""


class Outlet:
    """Audio (n) on its way to one reader."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._pieces: deque[np.ndarray] = deque()
        self._unread = 0
        self._end: End | None = None
        self.ends = 0
        """Terminal events given; one at most."""
        self.on_change: Callable[[], None] | None = None
        """Told of every piece and of the end, in the engine's thread."""
        self.on_take: Callable[[], None] | None = None
        """Told when the reader took something, in the reader's thread."""

    # engine's side

    def put(self, piece: np.ndarray) -> None:
        """Add audio. After the engine's end nothing can be added; after a reader's cancel it is dropped."""
        with self._change:
            if self._end is not None:
                assert self._end.kind == "cancelled", "audio after the end of a stream"
                return
            self._pieces.append(piece)
            self._unread += len(piece)
            self._change.notify_all()
        self._tell(self.on_change)

    def finish(self, end: End) -> End:
        """Give the terminal event, unless the reader cancelled first; returns the one that was given.

        What is unread stays readable, unless the stream was cancelled.
        """
        with self._change:
            if self._end is not None:
                assert "cancelled" in (self._end.kind, end.kind), "a second terminal event"
                return self._end
            self._end = end
            self.ends += 1
            if end.kind == "cancelled":
                self._pieces.clear()
                self._unread = 0
            self._change.notify_all()
        self._tell(self.on_change)
        return end

    @property
    def unread_s(self) -> float:
        """Seconds of audio not taken."""
        return self._unread / SAMPLE_RATE_HZ

    def unread(self) -> np.ndarray:
        """A copy of the audio (n) not taken."""
        with self._change:
            return np.concatenate([np.empty(0, np.float32), *self._pieces])

    # reader's side

    @property
    def end(self) -> End | None:
        """The terminal event, once the engine gave it; audio may still be unread."""
        return self._end

    def take(self, timeout: float | None = None) -> np.ndarray | End | None:
        """The next piece, or the end once all pieces are taken; None when nothing came in ``timeout`` seconds."""
        with self._change:
            if not self._change.wait_for(lambda: self._pieces or self._end, timeout):
                return None
            if not self._pieces:
                return self._end
            piece = self._pieces.popleft()
            self._unread -= len(piece)
        self._tell(self.on_take)
        return piece

    def cancel(self) -> None:
        """End the stream for its reader, at once; does nothing after an end. The engine is to be told, too."""
        self.finish(End("cancelled"))

    @staticmethod
    def _tell(whom: Callable[[], None] | None) -> None:
        if whom is not None:
            try:
                whom()
            except Exception:
                # A listener's mistake must not end the streams of the others.
                _LOG.exception("a listener of a stream raised")
