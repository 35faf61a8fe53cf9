"""What to do next: a pure function of a view. It decides one unit of work; nothing is begun here.

Two orders take turns. While nobody would run dry if everyone else went first, the order is the one with
the widest steps: prompts, then audio, then windows, and the language model only when all who can have
come back to it. As soon as somebody would, the one who runs dry first goes first, and others come along
for as much as fits in the same call. Offline jobs never run dry, so they fill what is left.

While somebody waits for the first audio the first to run dry goes first, too, newcomers in the order of arrival
and after every listener with less than ``settled_s`` of speech ahead. So when too many come at once, they wait
and nobody who listens runs dry.

Sessions far ahead ride along in the steps of others while nobody is in a hurry.

A prompt goes before any step, because whoever has read it widens the steps. Only while somebody listens
do two pieces of prompts have ``steps_beside`` steps between them: whatever arrives, all but a few gaps
between a listener's tokens are as they were. (Even one token of a prompt costs most of
a step on a CPU, since the weights are read for it: large pieces, rarely, take the least.)
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

from ..lm import CHUNK_TOKENS
from .buckets import together
from .limits import ServiceLimits
from .slack import is_urgent, slack
from .view import ServiceView, SessionView, Stage


class Kind(IntEnum):
    """Kinds of work, in the order for throughput."""

    READ = 0
    SLICE = 1
    PASS = 2
    BEGIN = 3
    STEP = 4


class Task(NamedTuple):
    """Something one session could do now."""

    kind: Kind
    session: SessionView
    due: float


class Work(NamedTuple):
    """One unit of work: ``sessions`` are numbers, in order; ``amount`` prompt tokens or steps."""

    kind: Kind
    sessions: tuple[int, ...]
    amount: int = 1
    batch: int | None = None


def tasks(view: ServiceView, limits: ServiceLimits) -> list[Task]:
    """Everything that can be done. A paused session does nothing, nor one whose reader is far behind.

    With lanes, a pass can be done while one is free, and a batch whose pass is flying waits for it.
    """
    found = []
    flying = {b.number for b in view.batches if b.flying}
    passes = not limits.lanes or view.lanes > 0
    for s in view.sessions:
        if s.paused or s.stage in (Stage.QUEUED, Stage.ENDED):
            continue
        if s.stage == Stage.READING:
            found.append(Task(Kind.READ, s, s.codes_due))
            continue
        if s.has_audio and s.buffered_s < limits.buffer_s:
            found.append(Task(Kind.SLICE, s, s.audio_due))
        if s.complete or s.ahead_s >= limits.lookahead_s:
            continue
        if s.batch is not None:
            if passes and s.batch not in flying:
                found.append(Task(Kind.PASS, s, s.codes_due))
        elif s.missing:
            found.append(Task(Kind.STEP, s, s.codes_due))
        elif s.window is not None and passes:
            found.append(Task(Kind.BEGIN, s, s.codes_due))
    return found


def plan(view: ServiceView, limits: ServiceLimits) -> Work | None:
    """The next unit of work, or None when there is nothing to do."""
    found = tasks(view, limits)
    if limits.lanes:
        # Lanes work beside the rest, so one that is free comes first; what they do is no work of ours.
        acoustic = [t for t in found if t.kind in (Kind.PASS, Kind.BEGIN)]
        found = acoustic or [t for t in found if t.kind not in (Kind.PASS, Kind.BEGIN)]
    if not found:
        return None
    chosen = _choose(found, view)
    steps = [t for t in found if t.kind == Kind.STEP]
    reads = [t for t in found if t.kind == Kind.READ]
    beside = bool(reads) and any(t.session.playing for t in steps)
    held = limits.steps_beside - view.since_read if beside else 0
    if chosen.kind == Kind.READ and held > 0:
        chosen = min(steps, key=_by_due)
    elif chosen.kind == Kind.STEP and reads and held <= 0:
        chosen = min(reads, key=_by_due)
    number = chosen.session.number
    if chosen.kind == Kind.READ:
        return Work(Kind.READ, (number,), CHUNK_TOKENS)
    if chosen.kind == Kind.SLICE:
        return Work(Kind.SLICE, (number,))
    if chosen.kind == Kind.PASS:
        return Work(Kind.PASS, (number,), batch=chosen.session.batch)
    if chosen.kind == Kind.BEGIN:
        assert chosen.session.window is not None
        waiting = [(t.session.number, t.session.window) for t in _first(chosen, found) if t.session.window]
        window, row_s = chosen.session.window, view.row_s.get(chosen.session.window.bucket, 0.0)
        return Work(Kind.BEGIN, together(window, waiting, limits.pass_tokens, row_s, limits.unit_s))
    going = [t.session for t in _first(chosen, steps)]
    burst = min(limits.burst, held if held > 0 else limits.burst, *(s.missing for s in going[: limits.rows]))
    numbers = [s.number for s in going] + _riders(chosen, view, limits)
    return Work(Kind.STEP, tuple(numbers[: limits.rows]), burst)


def _riders(chosen: Task, view: ServiceView, limits: ServiceLimits) -> list[int]:
    """Sessions that are far enough ahead and lack tokens all the same: in a step of others theirs cost little.

    Nobody rides while somebody is in a hurry, or waits for the first audio.
    """
    hurry = slack(chosen.due, chosen.session.cost_s, view.now) < limits.settled_s
    if hurry or any(s.starting and not s.paused for s in view.sessions):
        return []
    idle = [
        s for s in view.sessions
        if s.stage == Stage.LIVE and s.missing and s.batch is None and not s.paused and not s.complete
        and s.ahead_s >= limits.lookahead_s
    ]  # fmt: skip
    return [s.number for s in sorted(idle, key=lambda s: (s.codes_due, s.number))]


def _choose(found: list[Task], view: ServiceView) -> Task:
    costs = {t.session.number: t.session.cost_s for t in found if math.isfinite(t.due)}
    total = sum(costs.values())
    starting = any(t.session.starting for t in found)
    urgent = []
    for t in found:
        if math.isfinite(t.due):
            own = 0.0 if t.kind == Kind.SLICE else t.session.cost_s
            if starting or is_urgent(slack(t.due, own, view.now), total - t.session.cost_s):
                urgent.append(t)
    if urgent:
        return min(urgent, key=_by_due)
    return min(found, key=lambda t: (t.kind, t.due, t.session.number))


def _first(chosen: Task, found: list[Task]) -> list[Task]:
    """Tasks of the chosen one's kind, it first, then by urgency."""
    same = sorted((t for t in found if t.kind == chosen.kind), key=_by_due)
    return [chosen, *(t for t in same if t.session.number != chosen.session.number)]


def _by_due(task: Task) -> tuple[float, Kind, int]:
    return task.due, task.kind, task.session.number
