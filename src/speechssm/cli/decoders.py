"""Reading recordings for the command line: one sentence on standard error, not a decoder's own notes as well."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechssm.audio import read_audio


def read_quietly(path: Path) -> NDArray[np.float32]:
    """``read_audio``, float32 (n) at 16 kHz, without what libmpg123 says of a damaged MP3. Raises AudioError."""
    with _silent():
        return read_audio(path)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing that a C library prints reaches standard error meanwhile.

    libmpg123 writes to descriptor 2 itself, and libsndfile gives no way to ask it not to. The descriptor is
    the whole process's, so this is for a command that does nothing else at that moment, not for a library.
    """
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed: nobody hears it anyway
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
