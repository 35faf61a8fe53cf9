"""What the scheduler asks of the things it schedules. It knows no model: tests give it a double."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from ..frozen import Frozen
from .view import WindowKey


class Body(Protocol):
    """One session without a row: prompt, tokens, windows, audio. See :class:`speechssm.runtime.stream.Stream`."""

    @property
    def complete(self) -> bool:
        """Whether codes exist for everything asked."""

    @property
    def done(self) -> bool:
        """Whether everything asked was given out."""

    @property
    def has_audio(self) -> bool:
        """Whether :meth:`piece` has something to give."""

    @property
    def made(self) -> int:
        """Samples that codes exist for, counted from the stream's start."""

    @property
    def given(self) -> int:
        """Samples given out, counted from the stream's start."""

    @property
    def passes(self) -> int:
        """Acoustic passes of one window."""

    @property
    def bucket(self) -> int:
        """Tokens of its longest window."""

    @property
    def nbytes(self) -> int:
        """Bytes of its state and of what it has yet to read."""

    @property
    def prompt_s(self) -> float:
        """Seconds of prompt and speaker recording, 0 when there is nothing to read."""

    def read(self, tokens: int) -> bool:
        """One unit of reading the prompt, at most ``tokens`` of prefill; True when it is read."""

    def missing(self) -> int:
        """Steps until the next window."""

    def window(self) -> WindowKey | None:
        """The window that can be begun now."""

    def piece(self) -> np.ndarray:
        """The next audio (n)."""


B = TypeVar("B", bound=Body)
B_contra = TypeVar("B_contra", bound=Body, contravariant=True)


class Batch(Protocol):
    """Windows being decoded together."""

    @property
    def done(self) -> bool:
        """Whether no pass is left."""

    @property
    def passes(self) -> int:
        """All of its passes."""

    def step(self) -> None:
        """One pass."""

    def finish(self, wanted: Sequence[bool]) -> list[Exception | None]:
        """Give each wanted body its codes, or say why its window failed."""


class Engine(Protocol[B_contra]):
    """Rows of the language model, and the acoustic stage. Rows are 0 to ``rows`` - 1, used without gaps."""

    def seat(self, body: B_contra, row: int) -> None:
        """Put a body's state into a row."""

    def unseat(self, body: B_contra, row: int) -> None:
        """Take a body's state out of its row, which is cleared."""

    def move(self, body: B_contra, source: int, target: int) -> None:
        """Take a body from one row to another."""

    def drop(self, row: int) -> None:
        """Clear a row whose state is no longer wanted."""

    def step(self, bodies: Sequence[B_contra]) -> list[Exception | None]:
        """One step of the bodies of rows 0, 1, ..., each of which gets its token or the reason it failed.

        Raises when the engine as a whole failed; then no state has changed.
        """

    def begin(self, bodies: Sequence[B_contra]) -> Batch:
        """Begin one window of each."""

    def freeze(self, body: B_contra, row: int | None, unread: np.ndarray) -> Frozen:
        """A copy of a body as plain data; ``unread`` (n) is given out again by the copy."""
