"""Ctrl-C and SIGTERM: one exception for both, that finishes files and cannot get lost."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
TERMINATED = 143
"""Exit code after SIGTERM."""
CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}

_asked: list[int] = []


class Stopped(SystemExit):
    """Ctrl-C or SIGTERM, raised in the main thread so that ``with`` blocks finish their files.

    Not KeyboardInterrupt, which typer takes for itself.
    """


def listen() -> None:
    """Raise :class:`Stopped` in the main thread from now on, whenever one of the signals comes."""
    _asked.clear()
    for number in CODES:
        signal.signal(number, _on_signal)


def deaf() -> None:
    """Ignore the signals: the command is over and only its last words are left."""
    for number in CODES:
        signal.signal(number, signal.SIG_IGN)


def check() -> None:
    """Raise :class:`Stopped` when a signal came, also one whose exception was swallowed.

    Python drops what is raised inside destructors and callbacks of its garbage collector or import system.
    A loop over pieces of work asks here, so that a signal ends it at the next one at the latest.
    """
    if _asked:
        raise Stopped(_asked[0])


def _on_signal(number: int, _frame: FrameType | None) -> NoReturn:
    _asked.append(CODES[signal.Signals(number)])
    raise Stopped(_asked[-1])
