"""Which acoustic windows are decoded together."""

from __future__ import annotations

from collections.abc import Sequence

from .view import WindowKey


def together(first: WindowKey, waiting: Sequence[tuple[int, WindowKey]], pass_tokens: int) -> tuple[int, ...]:
    """Of ``waiting`` (session, key), most urgent first, those that join a batch begun for ``first``.

    One shape and one schedule each; rows times bucket stay within ``pass_tokens``, and one row always
    fits. ``waiting`` includes the session ``first`` belongs to.
    """
    room = max(1, pass_tokens // first.bucket)
    return tuple(number for number, key in waiting if key == first)[:room]
