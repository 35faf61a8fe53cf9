"""Work that a Ctrl-C must not cut in two: making a file and finishing one.

A leaf, for everything that owns files.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable

POLL_S = 0.05
"""How often somebody who was interrupted while waiting looks again."""


def run_uninterrupted(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread of its own, because only the main thread can be interrupted.

    An exception that a signal handler raises in the middle waits for ``work``, or keeps it from beginning.
    Whoever catches it must ask which: neither half of it is ever done. Raises what ``work`` raises.
    """
    turn, done = _thread.allocate_lock(), _thread.allocate_lock()
    begun = given_up = ended = False
    failed: list[BaseException] = []

    def run() -> None:
        nonlocal begun, ended
        with turn:
            if given_up:
                return
            begun = True
        try:
            work()
        except BaseException as error:
            failed.append(error)
        finally:
            ended = True
            done.release()

    # Nothing of the threading module: interrupted, its start() keeps a thread that never was in its list, its
    # join() takes a running thread for an ended one (bpo-45274), and its locks may stay locked.
    done.acquire()
    try:
        try:
            _thread.start_new_thread(run, ())
        except RuntimeError:  # no more threads, or the interpreter is shutting down
            run()
        done.acquire()
    except BaseException:
        with turn:
            given_up = not begun
        while begun and not ended:
            done.acquire(timeout=POLL_S)
        raise
    if failed:
        raise failed.pop()  # a list that still held it would be a cycle through this frame
