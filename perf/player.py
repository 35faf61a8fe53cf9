"""A player that is simulated: would a listener have heard gaps?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Playback:
    """What a listener heard. ``first_s`` is when sound began, ``stalled_s`` silence in the middle of speech."""

    first_s: float
    underruns: int
    stalled_s: float
    least_ahead_s: float
    """Least speech in the buffer when a piece arrived; below zero where it came too late."""


def play(arrivals_s: Sequence[float], lengths_s: Sequence[float]) -> Playback:
    """Pieces of ``lengths_s`` that arrive at ``arrivals_s`` are played from the first one's arrival on.

    A piece that arrives after all before it were played is an underrun; playing goes on when it is there.
    """
    assert len(arrivals_s) == len(lengths_s) > 0
    until = arrivals_s[0]
    underruns, stalled, least = 0, 0.0, float("inf")
    for arrival, length in zip(arrivals_s, lengths_s, strict=True):
        least = min(least, until - arrival)
        if arrival > until:
            underruns += 1
            stalled += arrival - until
            until = arrival
        until += length
    return Playback(arrivals_s[0], underruns, stalled, least)
