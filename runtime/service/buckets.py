"""Which acoustic windows are decoded together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .view import WindowKey


def together(
    first: WindowKey,
    waiting: Sequence[tuple[int, WindowKey]],
    pass_tokens: int,
    row_s: float = 0.0,
    unit_s: float = math.inf,
) -> tuple[int, ...]:
    """Of ``waiting`` (session, key), most urgent first, those that join a batch begun for ``first``.

    One shape and one schedule each; rows times bucket stay within ``pass_tokens``, rows times ``row_s``, the
    seconds a pass takes a row (0 when nobody knows), within ``unit_s``, and one row always fits. ``waiting``
    includes the session ``first`` belongs to.
    """
    room = pass_tokens // first.bucket
    if row_s * room > unit_s:
        room = int(unit_s / row_s)
    room = max(1, room)
    return tuple(number for number, key in waiting if key == first)[:room]
