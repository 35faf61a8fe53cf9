"""Where the ``speechssm`` command starts, also as ``python -m speechssm``: small enough to start at once."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

_WORDS = {
    signal.SIGINT: (130, b"speechssm: interrupted\n"),
    signal.SIGTERM: (143, b"speechssm: terminated\n"),
}


def main() -> None:
    """Load the command line and run it; Ctrl-C while it is still loading is no traceback either."""
    for number in _WORDS:
        signal.signal(number, _end_at_once)
    from speechssm.cli import main as run

    run()


def _end_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    # Nothing is open yet, and an exception raised amid imports may be swallowed.
    code, words = _WORDS[signal.Signals(number)]
    os.write(2, words)
    os._exit(code)


if __name__ == "__main__":
    main()
