"""What must hold of every view: one validator, run after every cycle in tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .limits import ServiceLimits
from .plan import plan, tasks
from .view import ServiceView, Stage

PIECE_S = 2.0
"""Longest piece of audio: one slice of the codec."""


def broken(view: ServiceView, limits: ServiceLimits, window_s: float) -> list[str]:
    """Every promise that ``view`` breaks, in words; ``window_s`` is the longest window of any session."""
    return [*_ends(view), *_rows(view, limits), *_batches(view, limits), *_bounds(view, limits, window_s)]


def _ends(view: ServiceView) -> Iterator[str]:
    for s in view.sessions:
        # A reader that cancels has its end before the scheduler hears of it.
        if not (s.stage == Stage.ENDED) <= s.ends <= 1:
            yield f"session {s.number} is {s.stage.name} with {s.ends} terminal events"
        if s.stage == Stage.ENDED and (s.row is not None or s.batch is not None or s.nbytes):
            yield f"session {s.number} ended but holds something"
        if s.stage < Stage.LIVE and (s.row is not None or s.batch is not None or s.has_audio):
            yield f"session {s.number} is {s.stage.name} but holds a row, a batch or audio"
        if s.stage == Stage.LIVE and s.complete and not s.has_audio:
            yield f"session {s.number} has made everything and was not ended"
        idle = s.missing == 0 and s.window is None and s.batch is None
        if s.stage == Stage.LIVE and not s.complete and idle:
            yield f"session {s.number} is stuck: no token is missing and there is no window to make"


def _rows(view: ServiceView, limits: ServiceLimits) -> Iterator[str]:
    if len(view.seats) > limits.rows:
        yield f"{len(view.seats)} rows are used of {limits.rows}"
    rows = {s.number: s.row for s in view.sessions if s.row is not None}
    if rows != {number: row for row, number in enumerate(view.seats)}:
        yield f"rows {rows} and seats {view.seats} disagree"
    for s in view.sessions:
        if s.row is not None and s.missing == 0:
            yield f"session {s.number} keeps row {s.row} with no step to make"


def _batches(view: ServiceView, limits: ServiceLimits) -> Iterator[str]:
    held = {s.number: s.batch for s in view.sessions if s.batch is not None}
    named = {number: b.number for b in view.batches for number in b.members}
    if held != named or sum(len(b.members) for b in view.batches) != len(named):
        yield f"sessions are in batches {held}, batches hold {named}"
    for b in view.batches:
        if not b.members:
            yield f"batch {b.number} works for nobody"
        if b.rows > max(1, limits.pass_tokens // b.key.bucket) or b.rows < len(b.members):
            yield f"batch {b.number} has {b.rows} rows of {b.key.bucket} tokens for {len(b.members)} sessions"


def _bounds(view: ServiceView, limits: ServiceLimits, window_s: float) -> Iterator[str]:
    count = Counter(s.stage for s in view.sessions)
    working = count[Stage.READING] + count[Stage.LIVE]
    if working > limits.sessions or count[Stage.QUEUED] > limits.queue:
        yield f"{working} sessions work and {count[Stage.QUEUED]} wait: more than the limits"
    if count[Stage.QUEUED] and working < limits.sessions:
        yield "sessions wait although there is room"
    if sum(s.nbytes for s in view.sessions) > limits.state_bytes:
        yield "sessions hold more bytes than the limit"
    queued = [s.number for s in view.sessions if s.stage == Stage.QUEUED]
    started = [s.number for s in view.sessions if s.stage in (Stage.READING, Stage.LIVE)]
    if queued and started and min(queued) < max(started):
        yield f"session {max(started)} overtook session {min(queued)}"
    for s in view.sessions:
        if s.buffered_s > limits.buffer_s + PIECE_S:
            yield f"session {s.number} has {s.buffered_s:.2f} s in its buffer"
        if s.ahead_s > limits.lookahead_s + window_s:
            yield f"session {s.number} is {s.ahead_s:.2f} s ahead"
    if (plan(view, limits) is None) != (not tasks(view, limits)):
        yield "there is work and no plan"
