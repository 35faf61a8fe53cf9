"""The tokens of one stream that may still be read: its start, for padding, and its last window."""

from __future__ import annotations

import numpy as np

from speechssm.errors import SnapshotError

from .windows import WindowCall, WindowSettings, pad_indices


class TokenBuffer:
    """Tokens of a stream in bounded memory.

    Keeps the first ``settings.pad_tokens`` tokens and those from ``drop``'s last argument on.
    """

    def __init__(self, settings: WindowSettings) -> None:
        self._settings = settings
        self._head: list[int] = []
        self._tail: list[int] = []
        self._start = 0

    def __len__(self) -> int:
        """Tokens the stream has had so far, dropped ones included."""
        return self._start + len(self._tail)

    @property
    def kept(self) -> int:
        """Tokens held in memory."""
        return len(self._head) + len(self._tail)

    def append(self, token: int) -> None:
        """Add the stream's next token."""
        if len(self._head) < self._settings.pad_tokens:
            self._head.append(token)
        self._tail.append(token)

    def drop(self, before: int) -> None:
        """Forget tokens before index ``before``, the stream's start excepted."""
        if before > self._start:
            del self._tail[: before - self._start]
            self._start = before

    def read(self, call: WindowCall) -> np.ndarray:
        """The tokens of a call, padded from the stream's own start: int64 (t), t = call.bucket."""
        own = self._tail[call.start - self._start : call.end - self._start]
        padding = [self._at(index) for index in pad_indices(call.end, call.pad)]
        return np.array([*own, *padding], np.int64)

    def _at(self, index: int) -> int:
        return self._head[index] if index < len(self._head) else self._tail[index - self._start]

    def snapshot(self) -> dict[str, np.ndarray]:
        """``head``, ``tail`` (t) and ``start`` (1), int64."""
        return {
            "head": np.array(self._head, np.int64),
            "tail": np.array(self._tail, np.int64),
            "start": np.array([self._start], np.int64),
        }

    def restore(self, saved: dict[str, np.ndarray], vocab: int) -> None:
        """Go on from a snapshot. Raises SnapshotError when it cannot be one of this stream's settings."""
        head, tail, start = (saved.get(key) for key in ("head", "tail", "start"))
        if head is None or tail is None or start is None or start.shape != (1,) or start[0] < 0:
            raise SnapshotError("the snapshot's tokens are incomplete; it was not written by this runtime")
        total = int(start[0]) + len(tail)
        if any(part.ndim != 1 or part.dtype != np.int64 for part in (head, tail)):
            raise SnapshotError(
                "the snapshot's tokens are not int64 lists; it was not written by this runtime"
            )
        if len(head) != min(total, self._settings.pad_tokens) or len(tail) > 2 * self._settings.window + 1:
            raise SnapshotError("the snapshot keeps a number of tokens that no stream of these windows does")
        both = np.concatenate([head, tail])
        if both.size and not (both.min() >= 0 and both.max() < vocab):
            raise SnapshotError(f"the snapshot holds a token outside this model's vocabulary of {vocab}")
        self._head, self._tail, self._start = head.tolist(), tail.tolist(), int(start[0])
